"""A real ``receive`` on loopback: uvicorn, a spool on disk and the embedded store."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cramjam
import httpx
import uvicorn

from fieldring.accept import Acceptor
from fieldring.errors import StoreUnavailable
from fieldring.http.tokens import TokenBook
from fieldring.model import Batch, Point
from fieldring.settings import Settings
from fieldring.spool import Queue
from fieldring.store.sqlite import SqliteStore
from fieldring.web.arrivals import ArrivalBook
from fieldring.web.receive import Receive
from fieldring.wiring import server_config

TOKENS = {
    "writer": {"roles": ["write"]},
    "reader": {"roles": ["read"]},
    "limited": {"roles": ["write"], "sensors": ["north-*", "hut"]},
    "slow": {"roles": ["write"], "points_per_second": 1, "points_burst": 20},
    "gate": {"roles": ["write"], "gateway": "gateway1"},
    "north gate": {"roles": ["write"], "gateway": "gateway2", "sensors": ["north-*"]},
}


class SwitchedStore(SqliteStore):
    """The embedded store with a switch, and a gate that holds writes up."""

    up = True
    defect = False

    def __init__(self, path: Path) -> None:
        super().__init__(path, retention_days=10_950)
        self.gate = threading.Event()
        self.gate.set()

    def write_many(self, batches: Sequence[Batch]) -> None:
        self.gate.wait(20)
        if self.defect:
            raise RuntimeError("a defect with a secret inside")
        if not self.up:
            raise StoreUnavailable("switched off")
        super().write_many(batches)


class Service:
    """The running service, and ways to look behind it."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        tokens = [
            {"id": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **entry}
            for name, entry in TOKENS.items()
        ]
        (directory / "tokens.json").write_text(json.dumps(tokens))
        options = {"retention_days": 10_950, "receive_threads": 8, **settings}
        self.settings = Settings(**options)
        self.store = SwitchedStore(directory / "store.sqlite")
        self.queue = Queue(directory / "spool", segment_bytes=65_536, max_bytes=262_144)
        self.receive = Receive(
            acceptor=Acceptor(self.store, self.queue, self.settings),
            tokens=TokenBook(directory / "tokens.json"),
            settings=self.settings,
            arrivals=ArrivalBook(self.store, node_name="ingest1"),
        )
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._server = uvicorn.Server(server_config(self.receive, self.settings))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        wait_until(lambda: self._server.started)
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, headers={"Authorization": "Token writer"}, timeout=30)

    def points(self, sensor: str) -> list[tuple[int, str, float | str]]:
        found: Iterator[Point] = self.store.points(sensor, start_ms=0, end_ms=2**52)
        return [(p.time_ms, p.metric, p.value) for p in found]

    def metric(self, name: str, **labels: str) -> float:
        return self.receive.metrics.registry.get_sample_value(name, labels) or 0.0

    def close(self) -> None:
        self.store.gate.set()
        self.http.close()
        self._server.should_exit = True
        self._thread.join(30)
        self.receive.close()
        self.queue.close()
        self.store.close()


def remote_write_message(*series: tuple[dict[str, str], float], time_ms: int = 1_700_000_000_000) -> bytes:
    """A WriteRequest of small series with one sample each."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    stamp, rest = b"", time_ms
    while rest:
        stamp, rest = stamp + bytes([rest & 127 | (128 if rest > 127 else 0)]), rest >> 7
    body = b""
    for labels, value in series:
        head = b"".join(field(1, field(1, k.encode()) + field(2, v.encode())) for k, v in labels.items())
        body += field(1, head + field(2, b"\x09" + struct.pack("<d", value) + b"\x10" + stamp))
    return body


def remote_write(*series: tuple[dict[str, str], float]) -> bytes:
    """The same as it is sent."""
    return bytes(cramjam.snappy.compress_raw(remote_write_message(*series)))


def wait_until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
