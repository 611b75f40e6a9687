"""What the first play of every day-2 playbook of the ring refuses; no host is touched by it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from repository import ROOT

RING = {"all": {"children": {"cassandra": {"hosts": {"ring1": {}, "ring2": {}, "ring10": {}}}}}}


def said(folder: Path, *arguments: str, playbook: str = "shared/whole_ring.yml") -> tuple[int, str]:
    """Exit status and all that was printed, on one line, on an inventory of three nodes."""
    (folder / "hosts.yml").write_text(json.dumps(RING))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(folder / "hosts.yml"), str(ROOT / "playbooks" / playbook), *arguments],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, re.sub(r"[\\\s]+", " ", done.stdout + done.stderr)


@pytest.mark.playbook
def test_text_is_no_list(tmp_path: Path) -> None:
    """CN-127: ring1 would be found in the text [ring10] too; each is named, with the way to say it."""
    lists = [
        "cassandra_node_absent_hosts",
        "cassandra_node_gate_unavailable_keyspaces",
        "restart_cassandra_nodes",
        "repair_cassandra_nodes",
        "restore_cassandra_tables",
        "restore_cassandra_from_nodes",
    ]
    given = [argument for name in lists for argument in ("-e", f"{name}=[ring10,'ring2']")]
    status, told = said(tmp_path, *given)
    assert status != 0
    assert "CN-127: with -e name=value" in told
    for name in lists:
        assert f"""{name}=[ring10,'ring2'], say -e '{{"{name}": ["ring10", "ring2"]}}'""" in told


@pytest.mark.playbook
def test_text_is_no_list_for_the_first_playbook_either(tmp_path: Path) -> None:
    """CN-127, before any host is touched."""
    text = ("-e", "cassandra_node_absent_hosts=ring10")
    status, told = said(tmp_path, *text, playbook="deploy_cassandra.yml")
    assert status != 0
    assert """say -e '{"cassandra_node_absent_hosts": ["ring10"]}'""" in told


@pytest.mark.playbook
def test_lists_and_known_names_pass(tmp_path: Path) -> None:
    """As JSON, which stays what it is."""
    given: dict[str, list[str]] = {
        "cassandra_node_absent_hosts": ["ring1"],
        "restart_cassandra_nodes": [],
        "repair_cassandra_nodes": ["ring10"],
    }
    status, told = said(tmp_path, "-e", json.dumps(given))
    assert status == 0, told


@pytest.mark.playbook
@pytest.mark.parametrize("variable", ["restart_cassandra_nodes", "repair_cassandra_nodes"])
def test_unknown_names_are_refused(tmp_path: Path, variable: str) -> None:
    """CN-128: doing nothing for it would look done. ring is no node, and ring2 was declared absent."""
    given = {variable: ["ring", "ring2", "ring10"], "cassandra_node_absent_hosts": ["ring2"]}
    status, told = said(tmp_path, "-e", json.dumps(given))
    assert status != 0
    assert "CN-128: ring, ring2 is not in this ring (ring1, ring10)" in told


def test_no_page_gives_a_list_as_text() -> None:
    """What the runbook and the messages say is not refused by CN-127."""
    for folder, suffix in (
        ("docs", "md"),
        ("roles", "md"),
        ("roles", "py"),
        ("roles", "yml"),
        ("playbooks", "yml"),
    ):
        for path in (ROOT / folder).rglob(f"*.{suffix}"):
            text = path.read_text(encoding="utf-8")
            assert re.findall(r"(?:-e '?|`')\w+=\[", text.replace("-e name=[a]", "")) == [], path
