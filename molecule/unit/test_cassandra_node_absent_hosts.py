"""Who still holds copies where hosts are declared absent, as the role's tasks are told."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from repository import ROOT


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
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    done = subprocess.run(
        ["ansible-playbook", "--check", "-i", "localhost,", "play.yml"],
        cwd=tmp_path,
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
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert '"ring1 ring2", "ring1 ring2 ring3", { "dc1": 3 }' in said
