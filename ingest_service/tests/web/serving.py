"""A real ``fieldring serve`` on loopback: gunicorn in a process of its own over the embedded store."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from fieldring.model import HOUR_MS, Batch, Flag, HourFlags, Row, Value
from fieldring.store.sqlite import SqliteStore

TOKENS = {
    "reader": {"roles": ["read"]},
    "writer": {"roles": ["write"]},
    "limited": {"roles": ["read"], "sensors": ["north-*", "hut"]},
}
NAMES = (
    *("hut", "a/b", "/lead", "trail/", "a//b", "sp ace", "100%", "50%2F", "q?x=1&y#z", "a;b", "x\\y", "a+b"),
    *("<script>alert(1)</script>", "quo\"te's", "ünïcode-🌡", "line\nfeed", "{{7*7}}"),
    *("..", ".", "../../etc/passwd", "ü" * 2_000),
)
T0 = 1_700_000_000_000 // HOUR_MS * HOUR_MS


def write_tokens(path: Path) -> None:
    path.write_text(
        json.dumps(
            [
                {"id": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **entry}
                for name, entry in TOKENS.items()
            ]
        )
    )


def put(
    store: SqliteStore,
    sensor: str,
    points: dict[int, dict[str, Value]],
    *,
    received: int = 1,
    attributes: dict[str, str] | None = None,
) -> None:
    batch = Batch(received=received, attributes={sensor: attributes} if attributes else {})
    for time_ms, values in points.items():
        batch.append(Row(sensor, time_ms, tuple(values), tuple(values.values())))
    store.write(batch)


def judge(store: SqliteStore, sensor: str, metric: str, hour: int, **bad: tuple[Flag, str]) -> None:
    """Verdicts of one hour; ``bad`` is minute → flag, test, with minutes as ``m5``."""
    listed = tuple((hour + int(m[1:]) * 60_000, flag, (test,)) for m, (flag, test) in bad.items())
    store.write_flags([HourFlags(sensor, metric, hour, listed, "1", 1, 1)])


class Serving:
    """The running process."""

    def __init__(self, directory: Path, *, script: Path | None = None, **settings: str) -> None:
        self.directory = directory
        write_tokens(directory / "tokens.json")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("FIELDRING_")},
            "FIELDRING_STORE": "sqlite",
            "FIELDRING_SQLITE_PATH": str(directory / "store.sqlite"),
            "FIELDRING_TOKENS_FILE": str(directory / "tokens.json"),
            "FIELDRING_LISTEN_PORT": str(self.port),
            "FIELDRING_RETENTION_DAYS": "10950",
            "FIELDRING_SESSION_COOKIE_SECURE": "0",
            **{f"FIELDRING_{key.upper()}": value for key, value in settings.items()},
        }
        command = [sys.executable, *([str(script)] if script else ["-m", "fieldring", "serve"])]
        self.log = directory / "serve.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log)
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30, headers={"Authorization": "Token reader"})
        deadline = time.monotonic() + 30
        while True:
            try:
                if self.http.get("/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def close(self) -> int:
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)
