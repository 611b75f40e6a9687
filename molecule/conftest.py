"""Fixtures of every scenario's testinfra run; a failing test prints the journal of its host."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def converge_again() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the scenario's role once more with other variables: for changes and refusals."""

    def run(*arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        playbook = Path(__file__).parent / "shared" / "converge.yml"
        inventory = os.environ["MOLECULE_INVENTORY_FILE"]
        command = ["ansible-playbook", "--inventory", inventory, "--extra-vars", json.dumps(variables)]
        # Plain text, each result on one line, so that a test can look for a sentence.
        plain = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "PY_COLORS": "0"}
        return subprocess.run(
            [*command, *arguments, str(playbook)],
            env=os.environ | plain,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Append the host's journal to the report of a failed test, once for all scenarios."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    host = getattr(item, "funcargs", {}).get("host")
    if (
        report.when == "call"
        and report.failed
        and host is not None
        and "MOLECULE_SCENARIO_NAME" in os.environ
    ):
        journal = host.run("journalctl --no-pager --lines 80 --priority 5 2>&1")
        report.sections.append(("journal of the host", journal.stdout))
