"""What the role says and would do about huge pages, read-ahead and swap, on hosts described to it."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest
from repository import ROOT

WRONG = {"transparent_hugepage": "always", "swap_mib": 512, "device": "vdb", "read_ahead_kib": 4096}
RIGHT = {"transparent_hugepage": "madvise", "swap_mib": 0, "device": "vdc", "read_ahead_kib": 64}
FAULTS = "transparent huge pages are always (wanted: madvise); read-ahead of vdb is 4096 KiB (wanted: 64)"
HOSTS = {
    "contained": {"container": True, **WRONG},
    "machine": {"container": False, **WRONG},
    "switched-off": {"container": False, **WRONG},
    "right": {"container": True, **RIGHT},
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All that a check run of these tasks prints, on one line; check mode writes nothing anywhere."""
    folder = tmp_path_factory.mktemp("play")
    hosts = {
        name: {"__cassandra_node_state": {"state": {"kernel_memory": found}}} for name, found in HOSTS.items()
    }
    hosts["switched-off"]["cassandra_node_kernel_memory_enabled"] = False  # type: ignore[assignment]
    everybody = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
    }
    (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts, "vars": everybody}}))
    role = {"name": "cassandra_node", "tasks_from": "kernel_memory"}
    play = {"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.include_role": role}]}
    (folder / "play.yml").write_text(json.dumps([play]))
    done = subprocess.run(
        ["ansible-playbook", "--check", "--diff", "-i", "hosts.yml", "play.yml"],
        cwd=folder,
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.sub(r"[\s\\]+", " ", done.stdout)


@pytest.mark.playbook
def test_container_is_told_that_it_is_not_possible(said: str) -> None:
    """What is found, and where it can be set; nothing would be written."""
    assert f"contained: {FAULTS}. Not possible here: it is a container" in said
    assert re.search(r"contained : ok=\d+ changed=0", said)


@pytest.mark.playbook
def test_machine_gets_both_settings_for_every_boot(said: str) -> None:
    """The file says what systemd-tmpfiles writes, on this host alone."""
    assert "w! /sys/kernel/mm/transparent_hugepage/enabled - - - - madvise" in said
    assert "w! /sys/block/vdb/queue/read_ahead_kb - - - - 64" in said
    assert re.search(r"machine : ok=\d+ changed=1", said)
    assert f"machine: {FAULTS}" not in said


@pytest.mark.playbook
def test_switched_off(said: str) -> None:
    """A machine whose owner sets them otherwise is only told."""
    assert f"switched-off: {FAULTS}. Not possible here: cassandra_node_kernel_memory_enabled is false" in said
    assert re.search(r"switched-off : ok=\d+ changed=0", said)


@pytest.mark.playbook
def test_swap_is_reported_where_there_is_some(said: str) -> None:
    """With what to do; never switched off from here."""
    for name in ("contained", "machine", "switched-off"):
        assert f"{name} has 512 MiB of swap" in said
    assert "right has" not in said


@pytest.mark.playbook
def test_what_is_right_is_not_mentioned(said: str) -> None:
    """No report without a reason."""
    assert "right: " not in said
