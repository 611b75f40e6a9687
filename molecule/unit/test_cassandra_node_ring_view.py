"""A host that is reached and cannot be asked is told from one that is not reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from plays import run
from repository import ROOT


@pytest.mark.playbook
@pytest.mark.parametrize(
    ("given", "identifier", "words"),
    [
        ({"ansible_python_interpreter": "/nonexistent/python3"}, "CN-204", "/nonexistent/python3"),
        ({"ansible_remote_tmp": "/proc/nowhere", "ansible_pipelining": False}, "CN-204", "/proc/nowhere"),
        ({"ansible_connection": "ssh", "ansible_host": "192.0.2.1", "ansible_ssh_timeout": 1}, "CN-203", ""),
    ],
    ids=["no Python", "no folder for its files", "not reached"],
)
def test_why_a_host_gave_no_view(
    tmp_path: Path, given: dict[str, str | int], identifier: str, words: str
) -> None:
    """Declared absent, as CN-203 advises, a node that runs would be left out of what is judged."""
    _, said = run(tmp_path, ROOT / "playbooks/restart_cassandra.yml", "--check", **given)
    told = said[said.index("What stands against touching the ring now") :]
    assert f"{identifier}: ring1" in told
    assert words in told
    assert ("was not reached in this run" in told) == (identifier == "CN-203")
