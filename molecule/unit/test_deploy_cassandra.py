"""The ring playbook's own refusal; it is heard before any host is touched."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TWO_RINGS = """
all:
  children:
    cassandra:
      hosts:
        a: {cassandra_node_ring: one}
        b: {cassandra_node_ring: two}
"""


@pytest.mark.playbook
def test_two_rings_in_one_inventory_are_refused(tmp_path: Path) -> None:
    """CN-121: every ring playbook works on exactly one."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(TWO_RINGS)
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), str(ROOT / "playbooks/deploy_cassandra.yml")],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "CN-121" in done.stdout + done.stderr


@pytest.mark.playbook
def test_a_host_that_is_declared_absent_is_left_alone(tmp_path: Path) -> None:
    """Though it is still in the group: no role is applied to it, and nothing is refused."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        "all: {children: {cassandra: {hosts: {a: {ansible_connection: local, ansible_become: false}}}}}"
    )
    # --check, since the host is this machine.
    command = [
        "ansible-playbook",
        "--check",
        "-i",
        str(inventory),
        str(ROOT / "playbooks/deploy_cassandra.yml"),
    ]
    done = subprocess.run(
        [*command, "-e", '{"cassandra_node_absent_hosts": ["a"]}'],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TASK [Gathering Facts]" in done.stdout
    assert "TASK [base_host" not in done.stdout


@pytest.mark.playbook
def test_a_clone_without_migrations_is_refused(tmp_path: Path) -> None:
    """CN-122: a ring without the service's tables would take nothing, and everything would stay spooled."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {children: {cassandra: {hosts: {a: {}}}}}")
    playbook = str(ROOT / "playbooks/deploy_cassandra.yml")
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), playbook, "-e", '{"cassandra_node_schema": []}'],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "CN-122" in done.stdout + done.stderr
