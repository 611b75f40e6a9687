"""The ring that a benchmark runs against: the one that is named, or a node of its own in Docker."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "ingest_service/tests/store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hosts", nargs="+", default=[], help="contact points; none: a node of its own")
    parser.add_argument("--port", type=int, default=9042)
    parser.add_argument("--local-dc", default="dc1")
    parser.add_argument(
        "--keyspace", help="keyspace with the schema, of a ring that is named; it is written to"
    )
    parser.add_argument("--username", default="")
    parser.add_argument("--password-file", type=Path)
    parser.add_argument("--ca", default="", help="CA of the ring's certificates")


@contextlib.contextmanager
def ring(arguments: argparse.Namespace) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Contact points and the other options of a CassandraStore."""
    if arguments.hosts:
        password = arguments.password_file.read_text().strip() if arguments.password_file else ""
        yield (
            arguments.hosts,
            {
                "port": arguments.port,
                "local_dc": arguments.local_dc,
                "keyspace": arguments.keyspace or "fieldring",
                "username": arguments.username,
                "password": password,
                "ca_file": arguments.ca,
            },
        )
        return
    found = importlib.util.spec_from_file_location("store_tests_ring", TESTS / "ring.py")
    assert found is not None
    assert found.loader is not None
    tests = sys.modules[found.name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(tests)
    running_node = tests.running_node

    with tempfile.TemporaryDirectory(prefix="fieldring-bench-") as place, running_node(Path(place)) as node:
        yield ["127.0.0.1"], node.options(node.make_keyspace())


def environment(hosts: list[str], options: dict[str, Any], folder: Path, **more: object) -> dict[str, str]:
    """Variables of a `fieldring` process on this ring."""
    (folder / "password").write_text(options["password"])
    settings = {
        "store": "cassandra",
        "cassandra_hosts": ",".join(hosts),
        "cassandra_port": options["port"],
        "cassandra_local_dc": options["local_dc"],
        "cassandra_keyspace": options["keyspace"],
        "cassandra_username": options["username"],
        "cassandra_password_file": folder / "password" if options["password"] else "",
        "cassandra_ca_file": options["ca_file"],
        "spool_dir": folder / "spool",
        "tokens_file": folder / "tokens.json",
        "log_level": "error",
        **more,
    }
    return {**os.environ, **{f"FIELDRING_{name.upper()}": str(value) for name, value in settings.items()}}


@contextlib.contextmanager
def process(command: str, variables: dict[str, str]) -> Iterator[int]:
    """A running `fieldring` process that is ready; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    running = subprocess.Popen(
        [sys.executable, "-m", "fieldring", command], env={**variables, "FIELDRING_LISTEN_PORT": str(port)}
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10):
                    break
            except (OSError, urllib.error.URLError):
                if running.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"fieldring {command} does not start")
                time.sleep(0.2)
        yield port
    finally:
        running.terminate()
        running.wait(60)
