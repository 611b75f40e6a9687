#!/usr/bin/python3
"""Repairs the primary ranges of this host's node, keyspace by keyspace, and exports when each was last well.

Always full and never incremental: an incremental repair would split the SSTables of time-window tables into
repaired and unrepaired ones, which then never expire together. Exit status 75: not now, try again later.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BEAN = "org.apache.cassandra.db:type=StorageService"
METRIC = "fieldring_repair_last_success_seconds"
LATER = 75


def parse_list(text: str) -> list[str]:
    """JMX prints a list as `[a, b]`."""
    return [item for item in text.strip("[]").split(", ") if item]


def hindrances(bean: dict[str, Any]) -> list[str]:
    """Why this is no time for a repair; a range is repaired only when all its replicas answer."""
    found = [] if bean["OperationMode"] == "NORMAL" else [f"the node's mode is {bean['OperationMode']}"]
    for attribute, what in (
        ("UnreachableNodes", "down"), ("JoiningNodes", "joining"),
        ("LeavingNodes", "leaving"), ("MovingNodes", "moving"),
    ):  # fmt: skip
        if names := parse_list(bean[attribute]):
            found.append(f"{', '.join(names)} {what}")
    return found


def due(state: dict[str, Any], keyspaces: list[str], *, now: float, older_than: float) -> list[str]:
    """Keyspaces whose last success is longer ago than that."""
    return [k for k in keyspaces if now - state["success"].get(k, 0) >= older_than]


def exported(state: dict[str, Any]) -> str:
    """The metric's text. A keyspace that was never repaired counts from when its schedule began."""
    lines = [
        f"# HELP {METRIC} When this node last repaired its primary ranges, or when its schedule began.",
        f"# TYPE {METRIC} gauge",
    ]
    for keyspace in sorted(set(state["success"]) | set(state["since"])):
        at = state["success"].get(keyspace, state["since"].get(keyspace, 0))
        lines.append(f'{METRIC}{{keyspace="{keyspace}"}} {int(at)}')
    return "\n".join(lines) + "\n"


class Keeper:
    """State on disk and the file for the node exporter; both are replaced by a rename."""

    def __init__(self, state: Path, textfile: Path) -> None:
        self.path = state / "state.json"
        self.textfile = textfile / "fieldring_repair.prom"
        self.state: dict[str, Any] = {"success": {}, "since": {}}
        if self.path.is_file():
            self.state.update(json.loads(self.path.read_text()))

    def save(self) -> None:
        for path, text in (
            (self.path, json.dumps(self.state, sort_keys=True)),
            (self.textfile, exported(self.state)),
        ):
            if path.parent.is_dir() and not (path.is_file() and path.read_text() == text):
                new = path.with_name(path.name + ".new")
                new.write_text(text)
                new.rename(path)

    def know(self, keyspaces: list[str], now: float) -> None:
        """New keyspaces count from now; one that was dropped is forgotten."""
        for name in keyspaces:
            self.state["since"].setdefault(name, int(now))
        for part in ("since", "success"):
            self.state[part] = {k: v for k, v in self.state[part].items() if k in keyspaces}


def ask(nodetool: str) -> dict[str, Any]:
    done = subprocess.run(
        [nodetool, "sjk", "mxdump", "-q", BEAN], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"not now: nodetool: {(done.stderr or done.stdout).strip()[-300:]}", file=sys.stderr)
        sys.exit(LATER)
    return dict(json.loads(done.stdout)["beans"][0])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nodetool", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--textfile", type=Path, required=True)
    parser.add_argument("--older-than-hours", type=float, default=0, help="leave out what was repaired since")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--plan", action="store_true", help="print what is due, change nothing")
    only.add_argument("--export", action="store_true", help="as --plan, and save since when it counts")
    options = parser.parse_args()

    with (options.state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("not now: another repair of this node is running", file=sys.stderr)
            return LATER
        bean = ask(options.nodetool)
        keyspaces = sorted(parse_list(bean["NonLocalStrategyKeyspaces"]))
        keeper = Keeper(options.state, options.textfile)
        keeper.know(keyspaces, time.time())
        # A check run asks for the plan.
        if not options.plan:
            keeper.save()
        todo = due(keeper.state, keyspaces, now=time.time(), older_than=options.older_than_hours * 3600)
        if options.plan or options.export:
            print(json.dumps({"due": todo, "hindrances": hindrances(bean)}))
            return 0
        if not todo:
            print("nothing is due")
            return 0
        if found := hindrances(bean):
            print(f"not now: {'; '.join(found)}", file=sys.stderr)
            return LATER
        for keyspace in todo:
            began = time.time()
            command = [options.nodetool, "repair", "--full", "--partitioner-range", keyspace]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(
                    f"repair of {keyspace} failed: {(done.stdout + done.stderr).strip()[-600:]}",
                    file=sys.stderr,
                )
                return 1
            # The start, since what was written meanwhile may not have been looked at.
            keeper.state["success"][keyspace] = int(began)
            keeper.save()
            print(f"repaired {keyspace} in {time.time() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
