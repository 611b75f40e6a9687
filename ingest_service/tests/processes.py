"""Whole ``fieldring`` processes, started as on a host."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Process:
    """One ``fieldring`` process and its settings."""

    def __init__(self, command: str, directory: Path, *, script: Path | None = None, **settings: Any) -> None:
        """``script`` runs instead of the command, with the same settings."""
        self.command, self.directory = command, directory
        self._program = [str(script)] if script else ["-m", "fieldring", command]
        tokens = [
            {"id": token, "sha256": hashlib.sha256(token.encode()).hexdigest(), "roles": [role]}
            for token, role in (("write", "write"), ("read", "read"), ("writer", "write"))
        ]
        (directory / "tokens.json").write_text(json.dumps(tokens))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given = {
            "store": "sqlite",
            "sqlite_path": directory / "store.sqlite",
            "spool_dir": directory / "spool",
            "spool_segment_bytes": 1_048_576,
            "spool_max_bytes": 16_777_216,
            "tokens_file": directory / "tokens.json",
            "listen_port": self.port,
            "retention_days": 10_950,
            **settings,
        }
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("FIELDRING_")},
            **{f"FIELDRING_{name.upper()}": str(value) for name, value in given.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.directory / f"{self.command}.log").read_text()

    def start(self) -> None:
        with (self.directory / f"{self.command}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._program],
                env=self.environment,
                stderr=log,
                cwd=self.directory,
            )
        deadline = time.monotonic() + 30
        while True:
            assert self.process.poll() is None, self.log
            try:
                if httpx.get(self.url + "/ready", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    @property
    def memory_mib(self) -> int:
        """Resident memory now."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) // 1024

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(with_signal)
        return self.process.wait(40)


def wait_until(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
