"""The command: arguments, settings that are wrong, logs, and a spool looked at."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from fieldring import __version__
from fieldring.cli import json_log, main
from fieldring.model import Batch, Row
from fieldring.spool import Queue
from fieldring.wire import block

COMMANDS = ["receive", "serve", "drain", "analyse", "forward", "import", "inspect-spool"]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command is there with a line of help, and has a help of its own."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert 0 == caught.value.code
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"    {command}" in text
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert 0 == caught.value.code


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """It tells its version, as a module too."""
    with pytest.raises(SystemExit):
        main(["--version"])
    assert f"fieldring {__version__}\n" == capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "fieldring", "--version"], capture_output=True, text=True, check=True
    )
    assert f"fieldring {__version__}\n" == done.stdout


@pytest.mark.parametrize(
    ("command", "environment", "reason"),
    [
        (["receive"], {"FIELDRING_LISTEN_PORT": "http"}, "FIELDRING_LISTEN_PORT is 'http'"),
        (["receive"], {}, "FIELDRING_TOKENS_FILE is not set"),
        (["receive"], {"FIELDRING_TOKENS_FILE": "none.json"}, "FIELDRING_TOKENS_FILE: cannot read none.json"),
        (["serve"], {}, "FIELDRING_TOKENS_FILE is not set"),
        (["analyse"], {}, "FIELDRING_TOKENS_FILE is not set"),
        (["forward"], {}, "FIELDRING_GATEWAY_NAME is ''"),
        (["inspect-spool", "none"], {}, "none is not a directory"),
        (["import", "x.csv"], {}, "no ingest host"),
        (["import", "x.csv", "--url", "http://x"], {}, "no token"),
        (["import", "x", "y", "--url", "http://x", "--from-line", "5"], {}, "--from-line is of one file"),
    ],
)
def test_wrong_settings(
    command: list[str],
    environment: dict[str, str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line says what was found and what to do; the exit code is 2."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert 2 == main(command)
    errors = capsys.readouterr().err
    assert errors.startswith("fieldring: ")
    assert reason in errors


def test_inspect_spool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints what lies there as JSON, and changes nothing."""
    batch = Batch(received=1)
    batch.append(Row("a", 5, ("m",), (1.0,)))
    queue = Queue(tmp_path / "worker", segment_bytes=65_536, max_bytes=1_048_576)
    queue.append(block.encode(batch))
    assert 0 == main(["inspect-spool", str(tmp_path)])
    [found] = json.loads(capsys.readouterr().out)
    assert 1 == found["pending_records"]
    assert 1 == queue.pending_records
    queue.close()


def test_log_lines_are_json_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens in queries and headers are blotted out, also in traces."""
    json_log.configure("info")
    logging.getLogger("x").warning("GET /write?u=me&p=hunter2&db=x with %s", "Authorization: Token hunter2")
    try:
        raise ValueError("Basic hunter2")
    except ValueError:
        logging.getLogger("x").exception("failed")
    logging.getLogger("x").debug("not shown")
    text = capsys.readouterr().err
    assert "hunter2" not in text
    first, second = map(json.loads, text.splitlines())
    assert ("warning", "x") == (first["level"], first["logger"])
    assert "GET /write?u=***&p=***&db=x with Authorization: Token ***" == first["message"]
    assert "ValueError: Basic ***" in second["exception"]
