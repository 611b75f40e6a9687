"""What a running node says of itself and of its ring, and what waits for its next restart."""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.cassandra_node_files import masked

STORAGE_SERVICE = "org.apache.cassandra.db:type=StorageService"
SYSTEM_LOG = "/var/log/cassandra/system.log"
LOG_TAIL_BYTES = 262_144
# Only the first start has these; taking them away again needs no restart.
FIRST_START_KEYS = ("initial_token", "auto_bootstrap")


class ViewError(Exception):
    """The node did not answer, or not what it should."""


def normal_address(text: Any) -> str:
    """One spelling per address: Java writes `host/10.0.0.1` and `2001:db8:0:0:0:0:0:1`."""
    bare = str(text).rsplit("/", 1)[-1].strip("[]").split("%", 1)[0]
    try:
        return ipaddress.ip_address(bare).compressed
    except ValueError:
        return bare


def parse_list(text: str) -> list[str]:
    """JMX prints a list as `[a, b]`."""
    return [item for item in text.strip("[]").split(", ") if item]


def parse_map(text: str) -> dict[str, str]:
    """JMX prints a map as `{a=b, c=d}`."""
    return dict(item.split("=", 1) for item in text.strip("{}").split(", ") if "=" in item)


def parse_view(text: str) -> dict[str, Any]:
    """The view in the output of `nodetool sjk mxdump` for the StorageService bean."""
    try:
        bean = next(b for b in json.loads(text)["beans"] if b["name"] == STORAGE_SERVICE)
    except (ValueError, KeyError, StopIteration) as error:
        raise ViewError(f"nodetool printed no StorageService bean: {text[:200]}") from error
    owners = {token: normal_address(a) for token, a in parse_map(bean["TokenToEndpointMap"]).items()}
    return {
        "mode": bean["OperationMode"],
        "version": bean["ReleaseVersion"],
        "cluster_name": bean["ClusterName"],
        "host_id": bean["LocalHostId"],
        "tokens": sorted(int(token) for token in parse_list(bean["Tokens"])),
        "schema_version": bean["SchemaVersion"],
        "keyspaces": sorted(parse_list(bean["Keyspaces"])),
        "live": sorted(map(normal_address, parse_list(bean["LiveNodes"]))),
        "unreachable": sorted(map(normal_address, parse_list(bean["UnreachableNodes"]))),
        "joining": sorted(map(normal_address, parse_list(bean["JoiningNodes"]))),
        "leaving": sorted(map(normal_address, parse_list(bean["LeavingNodes"]))),
        "moving": sorted(parse_list(bean["MovingNodes"])),
        "host_ids": {normal_address(a): h for a, h in parse_map(bean["EndpointToHostId"]).items()},
        "tokens_of": {
            address: sorted(int(token) for token, owner in owners.items() if owner == address)
            for address in sorted(set(owners.values()))
        },
        "cql": bool(bean["NativeTransportRunning"]),
    }


def missing_from(view: dict[str, Any], expected: list[str]) -> list[str]:
    """Sentences on why this view is not yet the whole ring; none when it is."""
    faults = []
    wanted = {normal_address(address) for address in expected}
    if view["mode"] != "NORMAL":
        faults.append("its mode is {}".format(view["mode"]))
    if not view["cql"]:
        faults.append("it does not serve CQL")
    faults += [f"it does not see {a} as up" for a in sorted(wanted - set(view["live"]))]
    faults += [f"it knows no tokens of {a}" for a in sorted(wanted - set(view["tokens_of"]))]
    return faults


def _lines(text: str) -> list[str]:
    kept = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#") and not line.startswith(FIRST_START_KEYS):
            kept.append(line.rstrip())
    return kept


def pending_changes(started: dict[str, str], now: dict[str, str]) -> list[str]:
    """One sentence per file whose meaning changed since the daemon started: {name: text} twice.

    Comments, blank lines and the keys of the first start do not count.
    """
    changes = []
    for name in sorted(set(started) | set(now)):
        if started and name not in started:
            # It was started before this file was looked after.
            changes.append(f"{name}: (not known) -> (as it is now)")
            continue
        before, after = _lines(started.get(name, "")), _lines(now.get(name, ""))
        if before != after:
            gone = [masked(line).strip() for line in before if line not in after]
            come = [masked(line).strip() for line in after if line not in before]
            changes.append(
                "{}: {} -> {}".format(name, "; ".join(gone) or "(nothing)", "; ".join(come) or "(nothing)")
            )
    return changes


def waiting_changes(started_directory: str, conf_directory: str, files: list[str]) -> list[str]:
    """What waits for a restart. A file is a name in `conf_directory`, or has a path of its own, as a unit."""
    names = {path.name: path for path in (Path(conf_directory) / file for file in files)}
    return pending_changes(
        _read({name: Path(started_directory) / name for name in names}),
        _read(names),
    )


def _read(paths: dict[str, Path]) -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path.is_file()}


def last_error(log: str = SYSTEM_LOG) -> str:
    """The last error of the daemon's log, with its exception, on one line; "" where there is none."""
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    found = [number for number, line in enumerate(lines) if line.startswith("ERROR")]
    if not found:
        return ""
    # "ERROR [main] 2026-01-01 00:00:00,000 CassandraDaemon.java:900 - text"; its exception stands below it.
    said = [line.split(" - ", 1)[-1].strip() for line in lines[found[-1] : found[-1] + 2]]
    return ": ".join(line for line in said if line and not line.startswith("at "))[:400]


def wait_for_port(address: str, port: int, deadline: float, unit_failed: Callable[[], bool]) -> None:
    """Cheap waiting: a JVM for nodetool would take the processor from the one that starts."""
    while True:
        try:
            with socket.create_connection((address, port), timeout=2):
                return
        except OSError as error:
            if unit_failed():
                why = last_error()
                raise ViewError(
                    f"cassandra.service failed{f' ({why})' if why else ''}: see journalctl -u cassandra and "
                    f"{SYSTEM_LOG}"
                ) from error
            if time.monotonic() > deadline:
                raise ViewError(
                    f"no answer on {address}:{port} in time ({error}): see journalctl -u cassandra and "
                    "/var/log/cassandra/system.log"
                ) from error
            time.sleep(0.5)


def ask(nodetool: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [nodetool, "sjk", "mxdump", "-q", STORAGE_SERVICE],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except subprocess.TimeoutExpired as error:
        raise ViewError(
            "nodetool gave no answer within 60 s: the host is overloaded, or the node hangs"
        ) from error
    if done.returncode:
        raise ViewError(f"nodetool failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return parse_view(done.stdout)


def wait_for_view(nodetool: str, expected: list[str], deadline: float) -> tuple[dict[str, Any], list[str]]:
    """The first view that holds every expected address, or the faults of the last one."""
    while True:
        try:
            view = ask(nodetool)
        except ViewError:
            # JMX opens before the node is ready, and a host that starts a node is busy.
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
            continue
        faults = missing_from(view, expected)
        if not faults or time.monotonic() > deadline:
            return view, faults
        time.sleep(1)
