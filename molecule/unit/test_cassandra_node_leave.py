"""Nodes that leave: what is asked of them, and when the run ends early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plays import run, verb

RECORD: dict[str, Any] = {"nodes": {name: {"dc": "dc1"} for name in ("ring1", "ring2")}}
LEAVER: dict[str, Any] = {"address": "10.0.0.2", "host_id": "id-2", "leaving": True, "under_way": False}


def leave(folder: Path, nodetool: str, **leaver: Any) -> tuple[str, list[str]]:
    """What is printed, and what nodetool was asked for: `nodetool` is the shell that answers for it."""
    asked = folder / "asked"
    program = folder / "nodetool"
    program.write_text(f'#!/bin/sh\necho "$*" >> {asked}\ncase "$*" in\n{nodetool}\nesac\n')
    program.chmod(0o755)
    (folder / "ring").mkdir()
    (folder / "ring" / "main.json").write_text(json.dumps(RECORD))
    given = {
        "__cassandra_node_nodetool": str(program),
        "__cassandra_node_spokesman": "ring1",
        "cassandra_node_peers": [{"name": "ring1", "address": "10.0.0.1", "dc": "dc1", "rack": "rack1"}],
        "__cassandra_node_leaver": {**LEAVER, **leaver},
        # Its nodes leave without the gate.
        "cassandra_node_operation": "remove_datacenter",
        "cassandra_node_join_wait_seconds": 0,
    }
    _, said = run(folder, verb(folder, "leave_node"), "-e", json.dumps(given))
    return said, asked.read_text().splitlines()


@pytest.mark.playbook
@pytest.mark.parametrize("under_way", [False, True])
def test_failed_decommission_ends_the_run(tmp_path: Path, under_way: bool) -> None:
    """CN-315 with what nodetool said, not a day of waiting for the others."""
    answers = 'decommission*) echo "Stream failed" >&2; exit 2;; netstats) echo "Mode: DECOMMISSION_FAILED";;'
    said, asked = leave(tmp_path, answers, name="ring1", case="decommission", under_way=under_way)
    assert "CN-315: ring1 has not left (Mode: DECOMMISSION_FAILED)" in said
    assert ("Stream failed" in said) != under_way
    assert ([] if under_way else ["decommission --force"]) + ["netstats"] == asked


@pytest.mark.playbook
@pytest.mark.parametrize(
    ("status", "again"),
    [
        ("No token removals in process.", True),
        ("Removing token (7). Waiting for replication confirmation from [/10.0.0.3].", False),
    ],
    ids=["its daemon was restarted", "goes on"],
)
def test_removal_is_begun_anew_unless_a_node_is_at_it(tmp_path: Path, status: str, again: bool) -> None:
    """That the others see the node leave tells neither."""
    answers = f'"removenode status") echo "RemovalStatus: {status}";;'
    _, asked = leave(tmp_path, answers, name="ring2", case="removenode")
    assert ["removenode status"] + (["removenode id-2"] if again else []) == asked
