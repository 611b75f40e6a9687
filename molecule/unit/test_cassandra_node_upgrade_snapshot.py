"""When the snapshot before a change of the version counts as taken, by a nodetool that notes its calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

pytestmark = pytest.mark.playbook
FORWARD, BACK = "before-5.0.9-from-5.0.8", "before-5.0.8-from-5.0.9"
# Of two tables; the second fails while there is a file that says so.
NODETOOL = """#!/bin/sh
cd {folder}
echo "$*" >> calls
case "$1" in
  clearsnapshot) rm -rf data/fieldring/*/snapshots/"$3" ;;
  snapshot)
    mkdir -p data/fieldring/points-1/snapshots/"$3"
    [ ! -e full ] || exit 1
    mkdir -p data/fieldring/windows-1/snapshots/"$3" ;;
esac
"""


class Ring:
    """One node below `folder`, and the runs that it goes through."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder / "upgrade_snapshot"
        (folder / "data").mkdir()
        (folder / "nodetool").write_text(NODETOOL.format(folder=folder))
        (folder / "nodetool").chmod(0o755)

    def step(self, tasks: str, version: str, runs: str) -> dict[str, Any]:
        """The role's tasks on a node that runs one version and is to have another."""
        given = {
            "cassandra_node_version": version,
            "cassandra_node_peers": [{"name": "ring1", "address": "127.0.0.1", "dc": "dc1", "rack": "rack1"}],
            "__cassandra_node_gate": {"views": {"ring1": {"version": runs}}},
            # Both are unpacked already.
            "__cassandra_node_peer_states": {},
            "__cassandra_node_state": {"state": {"installed": ["5.0.8", "5.0.9"]}},
            "__cassandra_node_data": str(self.folder),
            "__cassandra_node_home": str(self.folder / "home"),
            "__cassandra_node_nodetool": str(self.folder / "nodetool"),
        }
        return {"include_role": {"name": "cassandra_node", "tasks_from": tasks}, "vars": given}

    def prepare(self, version: str, runs: str) -> dict[str, Any]:
        return self.step("prepare_upgrade", version, runs)

    def switch(self, version: str, runs: str) -> dict[str, Any]:
        return self.step("switch", version, runs)

    def play(self, *tasks: dict[str, Any], check: bool = False) -> str:
        """The exit status and all that was printed, on one line."""
        play = {"hosts": "ring1", "gather_facts": False, "tasks": tasks}
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        (self.folder / "play.yml").write_text(json.dumps([play]))
        (self.folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"ring1": here}}}))
        done = subprocess.run(
            ["ansible-playbook", *(["--check"] if check else []), "-i", "hosts.yml", "play.yml"],
            cwd=self.folder,
            env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return f"status {done.returncode} " + " ".join((done.stdout + done.stderr).split())

    def calls(self) -> list[str]:
        """What nodetool was told since this was asked last."""
        path = self.folder / "calls"
        said = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return said


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path)


TAKEN = [f"clearsnapshot -t {FORWARD}", f"snapshot --tag {FORWARD}"]


def test_half_a_snapshot_is_none(ring: Ring) -> None:
    """One table's folder was enough, so that the run after a failed one went on without a snapshot."""
    (ring.folder / "full").touch()
    assert not ring.play(ring.prepare("5.0.9", "5.0.8")).startswith("status 0 ")
    assert TAKEN == ring.calls()
    (ring.folder / "full").unlink()
    said = ring.play(ring.prepare("5.0.9", "5.0.8"))
    assert said.startswith("status 0 "), said
    assert "changed=1" in said
    assert TAKEN == ring.calls()
    said = ring.play(ring.prepare("5.0.9", "5.0.8"))
    assert said.startswith("status 0 "), said
    assert "changed=0" in said, "a run that goes on keeps the snapshot of before"
    assert [] == ring.calls()


def test_forward_again_after_the_way_back_takes_it_anew(ring: Ring) -> None:
    """It went on with the snapshot of the first time, which had none of the rows of the weeks since."""
    said = ring.play(
        *(ring.prepare("5.0.9", "5.0.8"), ring.switch("5.0.9", "5.0.8")),
        *(ring.prepare("5.0.8", "5.0.9"), ring.switch("5.0.8", "5.0.9")),
    )
    assert said.startswith("status 0 "), said
    assert [*TAKEN, f"clearsnapshot -t {BACK}", f"snapshot --tag {BACK}"] == ring.calls()
    assert not ring.mark.exists()
    said = ring.play(ring.prepare("5.0.9", "5.0.8"))
    assert said.startswith("status 0 "), said
    assert TAKEN == ring.calls()


def test_node_that_had_not_changed_yet_takes_it_anew(ring: Ring) -> None:
    """Where an upgrade is given up half-way, the way back touches only the nodes that had changed."""
    said = ring.play(
        ring.prepare("5.0.9", "5.0.8"), ring.prepare("5.0.8", "5.0.8"), ring.prepare("5.0.9", "5.0.8")
    )
    assert said.startswith("status 0 "), said
    assert TAKEN * 2 == ring.calls()


def test_snapshot_that_was_removed_is_taken_anew(ring: Ring) -> None:
    """The mark alone proves nothing either: the runbook tells how to remove the snapshots."""
    ring.mark.write_text(f"{FORWARD}\n")
    said = ring.play(ring.prepare("5.0.9", "5.0.8"))
    assert said.startswith("status 0 "), said
    assert TAKEN == ring.calls()


def test_check_run_takes_and_forgets_nothing(ring: Ring) -> None:
    """Neither nodetool nor the mark is touched."""
    ring.mark.write_text("of another change\n")
    steps = [ring.prepare("5.0.9", "5.0.8"), ring.prepare("5.0.8", "5.0.8"), ring.switch("5.0.9", "5.0.8")]
    said = ring.play(*steps, check=True)
    assert said.startswith("status 0 "), said
    assert [] == ring.calls()
    assert ring.mark.read_text() == "of another change\n"
