"""A repair that is only looked at, with the real program and a nodetool that notes its calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

PROGRAM = ROOT / "roles" / "cassandra_node" / "files" / "repair" / "cassandra_repair.py"
BEAN = {
    "OperationMode": "NORMAL",
    "NonLocalStrategyKeyspaces": "[fieldring, system_auth]",
    **dict.fromkeys(("UnreachableNodes", "JoiningNodes", "LeavingNodes", "MovingNodes"), "[]"),
}


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The program as the role calls it; nothing of it is there yet but the directories."""
    for name in ("state", "textfile"):
        (tmp_path / name).mkdir()
    answer = json.dumps({"beans": [BEAN]})
    (tmp_path / "nodetool").write_text(f"#!/bin/sh\necho \"$1\" >> {tmp_path}/calls\necho '{answer}'\n")
    (tmp_path / "nodetool").chmod(0o755)
    options = {name: tmp_path / name for name in ("nodetool", "state", "textfile")}
    program = tmp_path / "cassandra_repair"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {PROGRAM} "$@"\n')
    program.chmod(0o755)
    return [str(program), *(f"--{name}={path}" for name, path in options.items())]


def written(folder: Path) -> list[str]:
    """What the program has saved."""
    paths = [*(folder / "state").iterdir(), *(folder / "textfile").iterdir()]
    return sorted(path.name for path in paths if path.name != "lock")


def test_plan_saves_nothing(command: list[str], tmp_path: Path) -> None:
    """A check run asks for it, and would begin the count of a new keyspace."""
    done = subprocess.run([*command, "--plan"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["due"] == ["fieldring", "system_auth"]
    assert written(tmp_path) == []


def test_export_begins_the_count(command: list[str], tmp_path: Path) -> None:
    """Of a new schedule: RepairOverdue counts from then; nothing is repaired."""
    subprocess.run([*command, "--export"], capture_output=True, text=True, check=True)
    assert written(tmp_path) == ["fieldring_repair.prom", "state.json"]
    assert (tmp_path / "calls").read_text() == "sjk\n"


def checked(folder: Path, command: list[str]) -> str:
    """All that a check run of the role's task prints, on one line."""
    given = {"cassandra_node_repair_now_older_than_hours": 12, "__cassandra_node_repair_command": command}
    given["__cassandra_node_repair_program"] = command[0]
    role = {"include_role": {"name": "cassandra_node", "tasks_from": "repair"}, "vars": given}
    (folder / "play.yml").write_text(json.dumps([{"hosts": "ring1", "gather_facts": False, "tasks": [role]}]))
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"ring1": here}}}))
    done = subprocess.run(
        ["ansible-playbook", "--check", "-i", "hosts.yml", "play.yml"],
        cwd=folder,
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.playbook
def test_check_run_on_a_node_without_the_schedule(command: list[str], tmp_path: Path) -> None:
    """It has not brought the program, and ended with "No such file or directory"."""
    Path(command[0]).unlink()
    said = checked(tmp_path, command)
    assert "ring1: would set the schedule up and repair everything" in said
    assert "changed=0" in said


@pytest.mark.playbook
def test_check_run_tells_what_is_due_and_saves_nothing(command: list[str], tmp_path: Path) -> None:
    """Where the program is there, it is asked."""
    assert "ring1: would repair fieldring, system_auth" in checked(tmp_path, command)
    assert written(tmp_path) == []
    assert (tmp_path / "calls").read_text() == "sjk\n"
