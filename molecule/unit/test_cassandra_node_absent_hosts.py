"""Hosts that are declared absent, and hosts that are gone without it, as the role's tasks see them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT


def played(folder: Path, play: dict[str, Any], hosts: dict[str, Any]) -> tuple[int, str]:
    """Exit status and all that was printed, on one line."""
    (folder / "play.yml").write_text(json.dumps([play]))
    (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    done = subprocess.run(
        ["ansible-playbook", "--check", "-i", "hosts.yml", "play.yml"],
        cwd=folder,
        env={
            **os.environ,
            "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.playbook
def test_absent_node_on_record_still_holds_copies(tmp_path: Path) -> None:
    """CN-124 and the copies of the accounts count it; one that was removed for good is none."""
    peers = [
        {"name": f"ring{n}", "address": f"192.0.2.1{n}", "dc": "dc1", "rack": f"rack{n}"}
        for n in (1, 2, 3, 4)
    ]
    nodes = {peer["name"]: {**peer, "host_id": peer["name"], "tokens": [1]} for peer in peers[:3]}
    (tmp_path / "main.json").write_text(json.dumps({"nodes": nodes}))
    told = "{{ [__cassandra_node_expected | map(attribute='name') | join(' '), "
    told += (
        "__cassandra_node_owners | map(attribute='name') | join(' '), __cassandra_node_system_replication] }}"
    )
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {
            "cassandra_node_record_directory": str(tmp_path),
            "cassandra_node_peers": peers,
            "cassandra_node_absent_hosts": ["ring3", "ring4"],
        },
        "tasks": [
            {"include_role": {"name": "cassandra_node", "tasks_from": "unlock", "public": True}},
            {"debug": {"msg": told}},
        ],
    }
    status, said = played(tmp_path, play, {"localhost": {}})
    assert status == 0, said
    assert '"ring1 ring2", "ring1 ring2 ring3", { "dc1": 3 }' in said


@pytest.mark.playbook
@pytest.mark.parametrize("tasks", ["gate", "plan_outage"])
def test_host_that_is_gone_is_named_as_a_reason(tmp_path: Path, tasks: str) -> None:
    """CN-203: it does not end the run without a word, though any error ends the play."""
    peers = [{"name": f"ring{n}", "address": f"127.0.0.{n}", "dc": "dc1", "rack": f"rack{n}"} for n in (1, 2)]
    play = {
        "hosts": "all",
        "gather_facts": False,
        "any_errors_fatal": True,
        "vars": {
            "cassandra_node_record_directory": str(tmp_path),
            "cassandra_node_peers": peers,
            "cassandra_node_address": "127.0.0.1",
            "cassandra_node_superuser_password": "unused-here-1",
            **({"cassandra_node_gate_mode": "touch"} if tasks == "gate" else {}),
            "cassandra_node_gate_subjects": ["ring1"],
            "cassandra_node_gate_patience_seconds": 0,
            "cassandra_node_gate_wait_seconds": 0,
        },
        "tasks": [{"include_role": {"name": "cassandra_node", "tasks_from": tasks}}],
    }
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    gone = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    status, said = played(tmp_path, play, {"ring1": here, "ring2": gone})
    assert status != 0
    assert "CN-203: ring2" in said
