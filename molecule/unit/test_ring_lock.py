"""What works on the nodes of a ring does it under the ring's lock, and a deployment looks at it."""

from __future__ import annotations

import getpass
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plays import run, verb
from repository import PLAYBOOKS, ROOT, load

sys.path.insert(0, str(ROOT / "roles/cassandra_node/action_plugins"))
import cassandra_node_lock as lock  # type: ignore[import-not-found]

SHARED = ROOT / "playbooks" / "shared"
# Task files of cassandra_node that change nodes, accounts or tables.
CHANGING = {
    "backup", "cleanup", "drain", "even_out", "join", "leave", "prepare_upgrade", "rebuild", "repair",
    "replicate", "restart", "restore", "retire_accounts", "rotate_accounts", "start", "stop", "switch",
    "unpack", "upgrade_sstables",
}  # fmt: skip
THEIRS = {
    "owner": "mara",
    "host": "another-controller",
    "pid": 1,
    "started": "1",
    "operation": "remove_datacenter",
}
# A process that cannot be: it was interrupted.
MINE = {"owner": getpass.getuser(), "host": socket.gethostname(), "pid": 2**22 + 5, "started": "1"}


def included(tasks: list[dict[str, Any]], *, always: bool = False) -> Iterator[tuple[str, bool]]:
    """(`role/tasks_from`, whether it stands in an `always`) of every role of a play, in order."""
    for task in tasks:
        role = task.get("ansible.builtin.include_role") or task.get("ansible.builtin.import_role")
        if role:
            yield f"{role['name']}/{role.get('tasks_from', 'main')}", always
        yield from included(task.get("block", []), always=always)
        yield from included(task.get("always", []), always=True)


@pytest.mark.parametrize(
    "playbook", [*PLAYBOOKS, SHARED / "serve_certificates.yml"], ids=lambda path: path.name
)
def test_what_changes_a_ring_is_done_under_its_lock(playbook: Path) -> None:
    """And the lock is given back however the work ends."""
    for play in load(playbook):
        locked = False
        for name, always in included(play.get("tasks") or []):
            verb = name.removeprefix("cassandra_node/")
            if verb == "lock":
                locked = True
            elif verb == "unlock":
                assert locked, play["name"]
                assert always, play["name"]
                locked = False
            elif verb in CHANGING or (name == "site_ca/main" and str(play["hosts"]).startswith("cassandra")):
                assert locked, f"{play['name']}: {name}"
        assert not locked, play["name"]


def held(folder: Path, lock: dict[str, Any]) -> Path:
    """The lock's file, as somebody else's run has left it."""
    path = folder / "ring" / "main.lock"
    path.parent.mkdir()
    path.write_text(json.dumps({"since": time.time() - 60, "until": time.time() + 3600, **lock}))
    return path


@pytest.mark.playbook
@pytest.mark.parametrize(
    ("playbook", "arguments"),
    [
        ("site.yml", []),
        ("deploy_cassandra.yml", ["--tags", "cassandra_node_configure"]),
        ("rotate_certificates.yml", []),
    ],
)
def test_nothing_is_changed_while_the_ring_is(tmp_path: Path, playbook: str, arguments: list[str]) -> None:
    """CN-219, before the first role: keyspaces and the record would be changed under a run that goes on."""
    lock = held(tmp_path, THEIRS)
    before = lock.read_bytes()
    status, said = run(tmp_path, ROOT / "playbooks" / playbook, "--check", *arguments)
    assert status != 0
    assert "CN-219: the ring is locked by mara on another-controller for remove_datacenter" in said
    for role in ("base_host", "site_ca"):
        assert f"TASK [{role}" not in said
    assert lock.read_bytes() == before


@pytest.mark.playbook
@pytest.mark.parametrize(
    ("lock", "arguments", "words"),
    [
        (None, [], "failed=0"),
        (
            {**MINE, "operation": "restart_cassandra"},
            [],
            "did not give the ring's lock back",
        ),
        ({**THEIRS, "until": 1}, [], "remove_datacenter of mara"),
        (THEIRS, ["-e", "cassandra_node_lock_take_over=true"], "remove_datacenter of mara"),
        (THEIRS, [], "CN-219: the ring is locked by mara"),
    ],
    ids=["none", "my own interrupted run", "run out", "taken over", "somebody's"],
)
def test_the_look_passes_what_the_lock_would_and_changes_nothing(
    tmp_path: Path, lock: dict[str, Any] | None, arguments: list[str], words: str
) -> None:
    """CN-219 for somebody else's lock alone."""
    path = held(tmp_path, lock) if lock else tmp_path / "ring" / "main.lock"
    before = path.read_bytes() if lock else None
    status, said = run(tmp_path, verb(tmp_path, "lock_look"), *arguments)
    assert words in said
    assert (status != 0) == words.startswith("CN-219")
    assert before == (path.read_bytes() if path.exists() else None)


@pytest.mark.parametrize("left", [MINE, {**THEIRS, "until": 1}], ids=["interrupted", "run out"])
def test_two_runs_that_find_a_stale_lock_do_not_both_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: dict[str, Any]
) -> None:
    """The second once took away what the first had just written."""
    path = held(tmp_path, {**left, "operation": "restart_cassandra"})
    decide = lock.refusal

    def slowly(*arguments: Any, **named: Any) -> Any:
        said = decide(*arguments, **named)
        time.sleep(0.3)
        return said

    monkeypatch.setattr(lock, "refusal", slowly)
    fork = multiprocessing.get_context("fork")
    start, told = fork.Event(), fork.Queue()

    def take() -> None:
        pid = os.getpid()
        wanted = {
            **MINE,
            "pid": pid,
            "started": lock.process_start(pid),
            "operation": "remove_cassandra_node",
        }
        start.wait()
        got = lock.take(
            path, {**wanted, "since": 0, "until": time.time() + 60}, now=time.time(), take_over=False
        )
        told.put((pid, got.get("msg", "")))
        # Its process is what holds the lock.
        time.sleep(1)

    runs = [fork.Process(target=take) for _ in range(2)]
    for one in runs:
        one.start()
    start.set()
    said = dict(told.get(timeout=10) for _ in runs)
    for one in runs:
        one.join()
    winners = [pid for pid, refused in said.items() if not refused]
    assert winners == [json.loads(path.read_text())["pid"]]
    assert sum("CN-219" in refused for refused in said.values()) == 1


@pytest.mark.playbook
@pytest.mark.parametrize(
    ("given", "minutes"), [({}, 1680), ({"cassandra_node_join_wait_seconds": 3600}, 300)]
)
def test_a_lock_outlasts_the_longest_wait_of_a_run(
    tmp_path: Path, given: dict[str, int], minutes: int
) -> None:
    """Another controller would be let in while a node still streams: nothing renews a lock."""
    status, said = run(tmp_path, verb(tmp_path, "lock"), **given)
    assert status == 0, said
    lock = json.loads((tmp_path / "ring" / "main.lock").read_text())
    assert minutes * 60 == lock["until"] - lock["since"]
