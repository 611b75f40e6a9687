"""Changes of whole data centres are on trial: refused before any host is touched, unless rehearsed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("operation", ["add_datacenter", "remove_datacenter"])
def test_a_change_that_was_not_rehearsed_is_refused(tmp_path: Path, operation: str) -> None:
    """CN-318 stands before the ring's lock, and says what to do."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        "all: {children: {cassandra: {hosts: {a: {ansible_connection: local, host_address: 127.0.0.1, "
        "ansible_become: false, cassandra_node_dc: north, cassandra_node_rack: r1, "
        f"ansible_python_interpreter: {sys.executable}, site_state_directory: {tmp_path}, "
        "vault_cassandra_superuser_password: none}}}}}"
    )
    playbook = str(ROOT / f"playbooks/{operation}.yml")
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), playbook, "-e", "cassandra_node_subject=south"],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "CN-318" in done.stdout + done.stderr
    assert "-e cassandra_node_rehearsed=true" in done.stdout
    assert ["hosts.yml"] == [path.name for path in tmp_path.iterdir()]
