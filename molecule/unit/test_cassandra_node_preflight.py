"""What the role's preflight refuses on a real host, here this one; check mode writes nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

PEERS = [
    {"name": name, "address": address, "dc": "dc1", "rack": "rack1"}
    for name, address in (("here", "127.0.0.1"), ("there", "127.0.0.2"))
]


def preflight(folder: Path, *arguments: str, known: tuple[str, ...]) -> str:
    """All that it said on one line, its exit status before it; `known` are on the ring's record."""
    nodes = {
        peer["name"]: {**peer, "host_id": peer["name"], "tokens": list(range(16))}
        for peer in PEERS
        if peer["name"] in known
    }
    (folder / "main.json").write_text(json.dumps({"nodes": nodes}))
    variables: dict[str, Any] = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        "cassandra_node_cluster_name": "unit",
        "cassandra_node_dc": "dc1",
        "cassandra_node_rack": "rack1",
        "cassandra_node_address": "127.0.0.1",
        "cassandra_node_minimum_memory_mib": 1,
        "cassandra_node_heap_mib": 1,
        "cassandra_node_direct_memory_mib": 1,
        "cassandra_node_peers": PEERS,
        "cassandra_node_absent_hosts": ["there"],
        "cassandra_node_record_directory": str(folder),
        "cassandra_node_superuser_password": "twelve letters and more",
        "__cassandra_node_conf": str(folder / "etc"),
        "__cassandra_node_data": str(folder / "lib"),
        # Of this machine nothing else is asked for.
        "__cassandra_node_storage_port": 1,
        "__cassandra_node_native_port": 1,
        "__cassandra_node_jmx_port": 1,
    }
    (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"here": {}}}}))
    (folder / "variables.json").write_text(json.dumps(variables))
    role = {"role": "cassandra_node"}
    (folder / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "roles": [role]}]))
    done = subprocess.run(
        ["ansible-playbook", "--check", "-i", "hosts.yml", "-e", "@variables.json", "play.yml", *arguments],
        cwd=folder,
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return f"status {done.returncode} " + re.sub(r"[\s\\]+", " ", done.stdout + done.stderr)


def give_data(folder: Path) -> None:
    """Leave behind what a node that ran here would have."""
    (folder / "etc").mkdir()
    (folder / "lib/commitlog").mkdir(parents=True)
    (folder / "lib/commitlog/CommitLog-8-1.log").touch()


@pytest.mark.playbook
def test_host_that_has_not_finished_joining(tmp_path: Path) -> None:
    """CN-316: site.yml would take it for a node that has nothing to do with the ring."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/joining.json").write_text('{"how": "bootstrap"}')
    said = preflight(tmp_path, known=("there",))
    assert not said.startswith("status 0 ")
    assert "CN-316: a change of the ring's members was begun on here" in said


@pytest.mark.playbook
def test_data_that_the_record_does_not_know(tmp_path: Path) -> None:
    """CN-129: and it is not told to start that machine."""
    give_data(tmp_path)
    said = preflight(tmp_path, known=("there",))
    assert not said.startswith("status 0 ")
    assert "CN-129: here has data, but the record" in said
    assert "CN-115" not in said


@pytest.mark.playbook
def test_node_that_does_not_run(tmp_path: Path) -> None:
    """CN-115, before anything is installed or rendered."""
    give_data(tmp_path)
    said = preflight(tmp_path, known=("here",))
    assert not said.startswith("status 0 ")
    assert "CN-115: here has joined its ring but cassandra.service is not running" in said
    assert "TASK [cassandra_node : Install" not in said


@pytest.mark.playbook
def test_files_of_a_node_that_does_not_run_can_be_rendered(tmp_path: Path) -> None:
    """The way back from a setting that it does not start with."""
    give_data(tmp_path)
    said = preflight(tmp_path, "--tags", "cassandra_node_configure", known=("here",))
    assert "CN-115" not in said
    assert "TASK [cassandra_node : Configure | Render the files]" in said
