"""Runs the test stages, prints how long each took, and sums up.

``fast``: unit tests and the quick linters, no container. ``lint``: all linters. ``full``, ``ci``: everything.
The log of every stage is kept in ``.cache/test-logs/``; the end of it is printed when a stage fails.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / ".cache" / "test-logs"
# With what may have begun before, below the 90 minutes that CI has.
STAGE_TIMEOUT_S = 2_700
# For what a stage that is ended has to take down itself.
STOP_TIMEOUT_S = 30
# The chains of `make test-full`, when two of them share two cores.
LONG_STAGE_TIMEOUT_S = 3_600
# `make test` is to end within 50 minutes: what has not begun after 43 is left out, by name. The longest come
# first, so that none of them is left running alone at the end; then scenarios whose roles or playbooks a
# change touches; and which of the others come last changes from day to day.
CI_BUDGET_S = 2_600
# With a whole lab, or with limits of time inside Cassandra that a node beside others' starts does not keep.
ALONE = ("site", "cassandra_node-day2")
LONGEST = ("cassandra_node-day2", "cassandra_node", "ingest_container", "monitor")
FAILURE_LINES = 120
# What pytest says of a failure, with or without the bar that Molecule puts before it. Repeated below
# everything else: where a log is cut, its end is what remains.
FAILURE = re.compile(r"^[\s│]*(E  .*|(?:FAILED|ERROR) .*)")
FAILURE_SUMMARY_LINES = 40
# Long chains of day-2 operations on rings of their own, 20 to 30 minutes each: CI runs their short form,
# cassandra_node-day2, and `make test-full` runs them.
FULL_ONLY = (
    "cassandra_node-operations",
    "cassandra_node-topology",
    "cassandra_node-datacenter",
    "cassandra_node-backup",
)
# Run with Ansible's own connections, as real sites are; the others with Mitogen's, in half the time.
PLAIN = ("base_host-ssh",)
PLAIN_IN_FULL = ("site",)


@dataclass(frozen=True)
class Stage:
    """One command; ``alone`` stages run with nothing beside them."""

    name: str
    command: list[str]
    cwd: Path = ROOT
    alone: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    timeout_s: int = STAGE_TIMEOUT_S


LINT = [
    Stage("ruff", ["sh", "-c", "ruff check . && ruff format --check ."]),
    Stage("mypy", ["mypy"]),
    Stage("imports", ["lint-imports", "--no-cache"]),
    Stage("yamllint", ["yamllint", "--strict", "."]),
]
# Apart, because it alone takes longer than all that `make test-fast` runs.
ANSIBLE_LINT = [
    Stage("ansible-lint", ["ansible-lint", "--config-file", ".config/ansible-lint.yml", "--offline", "-q"]),
]
UNIT = [
    Stage(
        "unit: service",
        # More than there are cores: many tests wait for a server or a time limit.
        ["pytest", "-q", "-n", "3", "-m", "not cassandra and not browser and not integration"],
        cwd=ROOT / "ingest_service",
    ),
    Stage("unit: repository", ["pytest", "-q", "molecule/unit"]),
]
# With more workers, as there is little beside them; without those that start Ansible, which takes a second or
# more each time.
FAST = [
    replace(UNIT[0], command=[*UNIT[0].command[:2], "-n", "5", "--dist", "worksteal", *UNIT[0].command[4:]]),
    Stage("unit: repository", ["pytest", "-q", "-m", "not playbook", "molecule/unit"]),
]
INTEGRATION = [
    Stage(
        "service: real parts",
        # By file, since a file shares its Cassandra node; many of these tests wait more than they work.
        ["pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "cassandra or browser or integration"],
        cwd=ROOT / "ingest_service",
        alone=True,
    ),
]


def changed_paths() -> list[str]:
    """Files that differ from what has landed; empty where there is no ``origin/main`` to compare with."""
    shown = subprocess.run(
        ["git", "diff", "--name-only", "origin/main...HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.splitlines() if shown.returncode == 0 else []


def touches(path: str, scenario: str) -> bool:
    """Whether a change of ``path`` may change what ``scenario`` shows."""
    role = scenario.split("-", 1)[0]
    return path.startswith((f"molecule/{scenario}/", f"roles/{role}/", "molecule/shared/")) or (
        role == "ingest_container" and path.startswith("ingest_service/src/")
    )


def scenarios(*, everything: bool) -> list[Stage]:
    """One stage per Molecule scenario: the whole lab alone, the longest first, then what a change touches."""
    names = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
    if not everything:
        names = [name for name in names if name not in FULL_ONLY]
    rotation = time.gmtime().tm_yday % len(names)
    names = names[rotation:] + names[:rotation]
    changed = changed_paths()
    untouched = {name for name in names if not any(touches(path, name) for path in changed)}
    plain = PLAIN + PLAIN_IN_FULL if everything else PLAIN
    place = {name: index for index, name in enumerate(LONGEST)}
    return [
        Stage(
            f"scenario: {name}",
            ["bash", "-c", '. lab/transport.sh && exec molecule test --scenario-name "$0"', name],
            alone=name in ALONE,
            # Molecule breaks lines at the width of a terminal: what an assertion says is to be on one.
            environment={"COLUMNS": "200"} | ({"FIELDRING_PLAIN_ANSIBLE": "1"} if name in plain else {}),
            timeout_s=LONG_STAGE_TIMEOUT_S if everything else STAGE_TIMEOUT_S,
        )
        for name in sorted(names, key=lambda name: (place.get(name, len(LONGEST)), name in untouched))
    ]


def remove_leftovers() -> None:
    """Hosts of a run that was killed would make create believe that it has nothing to do."""
    shown = subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--filter", "label=fieldring.kind=scenario"],
        capture_output=True,
        text=True,
        check=True,
    )
    if hosts := shown.stdout.split():
        print(f"removing {len(hosts)} hosts of a run that did not end", flush=True)
        subprocess.run(["docker", "rm", "--force", "--volumes", *hosts], check=True, capture_output=True)
    shutil.rmtree(Path.home() / ".ansible" / "tmp" / "molecule", ignore_errors=True)


def log_of(name: str) -> Path:
    """Where the output of the stage ``name`` is kept."""
    return LOGS / (name.replace(": ", "-").replace(" ", "-") + ".log")


def failure_lines(log: str) -> list[str]:
    """Return the lines of ``log`` that say what failed, without the bar, at most the last 40."""
    found = [match[1] for line in log.splitlines() if (match := FAILURE.match(line))]
    return found[-FAILURE_SUMMARY_LINES:]


class Runner:
    """Runs stages and keeps their results; safe to call from several threads."""

    def __init__(self, *, budget_s: float) -> None:
        self.begin_until = time.monotonic() + budget_s
        self.left_out: list[str] = []
        self.results: list[tuple[str, float, bool]] = []
        self._lock = threading.Lock()
        LOGS.mkdir(parents=True, exist_ok=True)

    def run(self, stage: Stage) -> None:
        """Run one stage to its end or its time limit; leave it out when the budget is used up."""
        if time.monotonic() > self.begin_until:
            self.left_out.append(stage.name)
            print(f"left out (the time of CI is used up; make test-full runs it)  {stage.name}", flush=True)
            return
        log = log_of(stage.name)
        started = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                stage.command,
                cwd=stage.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "NO_COLOR": "1", **stage.environment},
                start_new_session=True,
            )
            try:
                passed = process.wait(timeout=stage.timeout_s) == 0
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(timeout=STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                passed = False
                output.write(f"\nended after {stage.timeout_s} s, the limit of a stage\n")
        elapsed = time.monotonic() - started
        with self._lock:
            self.results.append((stage.name, elapsed, passed))
            print(f"{'passed' if passed else 'FAILED'}  {elapsed:6.0f} s  {stage.name}", flush=True)
            if not passed:
                tail = log.read_text(errors="replace").splitlines()[-FAILURE_LINES:]
                print(f"--- end of {log.relative_to(ROOT)}", *tail, "---", sep="\n", flush=True)

    def run_all(self, stages: list[Stage], *, beside: int) -> None:
        """Run ``stages``, up to ``beside`` at once; those marked alone before, one by one."""
        for stage in stages:
            if stage.alone:
                self.run(stage)
        with ThreadPoolExecutor(beside) as pool:
            list(pool.map(self.run, [stage for stage in stages if not stage.alone]))


def main(mode: str) -> int:
    """Run the stages of ``mode``; the exit code is 0 when all passed."""
    started = time.monotonic()
    runner = Runner(budget_s=CI_BUDGET_S if mode == "ci" else float("inf"))
    if mode in ("full", "fast"):
        os.environ["FIELDRING_TEST_FULL" if mode == "full" else "FIELDRING_TEST_QUICK"] = "1"
    runner.run_all(
        {"lint": ANSIBLE_LINT + LINT, "fast": FAST + LINT}.get(mode, ANSIBLE_LINT + UNIT + LINT), beside=2
    )
    if mode in ("full", "ci"):
        remove_leftovers()
        if mode == "ci":
            for name in FULL_ONLY:
                print(f"left out (make test-full runs it)  scenario: {name}", flush=True)
        runner.run_all(INTEGRATION + scenarios(everything=mode == "full"), beside=2)
    passed = sum(result[2] for result in runner.results)
    failed = [name for name, _, good in runner.results if not good]
    for name in failed:
        lines = failure_lines(log_of(name).read_text(errors="replace"))
        print(f"\n--- what failed in {name} ({log_of(name).relative_to(ROOT)})", *lines, sep="\n")
    print(
        f"\nall stages: {time.monotonic() - started:.0f} s"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    print(f"{passed} passed, {len(failed)} failed, {len(runner.left_out)} left out")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("fast", "lint", "full", "ci"):
        sys.exit("usage: stages.py fast|lint|full|ci")
    if not shutil.which("molecule"):
        sys.exit("the tools of .venv are not on PATH: start the tests with make test")
    sys.exit(main(sys.argv[1]))
