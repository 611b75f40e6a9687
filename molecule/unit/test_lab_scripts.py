"""The scripts of `make lab`, with the engine's script replaced; nothing is started."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from repository import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose first stage leaves a daemon behind and then fails."""
    (tmp_path / "lab").mkdir()
    for name in ("up.sh", "transport.sh"):
        shutil.copy(ROOT / "lab" / name, tmp_path / "lab")
    engine = tmp_path / "lab" / "engine.sh"
    engine.write_text("#!/bin/sh\nsetsid sleep 60 >/dev/null 2>&1 </dev/null &\necho $! >>daemons\nexit 3\n")
    engine.chmod(0o755)
    return tmp_path


def up(clone: Path) -> subprocess.CompletedProcess[str]:
    """One `make lab`."""
    return subprocess.run(
        ["lab/up.sh"],
        cwd=clone,
        env={**os.environ, "FIELDRING_PLAIN_ANSIBLE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_an_engine_started_by_hand_does_not_keep_the_lock(clone: Path) -> None:
    """The engine outlives the first `make lab`; the second is not refused for it."""
    try:
        for _ in range(2):
            done = up(clone)
            assert done.returncode == 3
            assert 'stopped in stage "engine"' in done.stderr
            assert "another make lab" not in done.stderr
    finally:
        for pid in (clone / "daemons").read_text().split():
            os.kill(int(pid), 15)


def test_a_second_lab_at_the_same_time_is_refused(clone: Path) -> None:
    """Two would race for hosts and secrets."""
    (clone / ".lab").mkdir()
    with subprocess.Popen(["flock", ".lab/lock", "sleep", "30"], cwd=clone) as holder:
        try:
            while (
                subprocess.run(["flock", "-n", ".lab/lock", "true"], cwd=clone, check=False).returncode == 0
            ):
                pass
            done = up(clone)
        finally:
            holder.terminate()
    assert done.returncode == 1
    assert "refused: another make lab is running in this clone" in done.stderr
