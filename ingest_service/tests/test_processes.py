"""Whole processes, started as on a host: killed, stopped, and started while the ring is away."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fieldring.client import Client, Reading
from fieldring.model import Batch, Row
from fieldring.spool import Queue
from fieldring.store.sqlite import SqliteStore
from fieldring.wire import block
from processes import Process, free_port, wait_until

T = 1_700_000_000_000

pytestmark = pytest.mark.integration


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Process] = []

    def make(command: str, **settings: Any) -> Process:
        process = Process(command, tmp_path, **settings)
        made.append(process)
        process.start()
        return process

    yield make
    for process in made:
        if process.process is not None and process.process.poll() is None:
            process.process.kill()
            process.process.wait(10)


def metric(process: Process, name: str) -> float:
    text = httpx.get(process.url + "/metrics", headers={"Authorization": "Token read"}).text
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name + " ")))


class Feed(threading.Thread):
    """Writes one reading after the other and remembers those that were acknowledged."""

    def __init__(self, url: str, sensor: str) -> None:
        super().__init__(daemon=True)
        self.url, self.sensor = url, sensor
        self.acknowledged: list[tuple[int, float]] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        with Client(self.url, token="write", retry_for_s=30) as client:
            for number in itertools.count():
                if self.stopped.is_set():
                    return
                client.write([Reading(self.sensor, T + number, "m", float(number))])
                self.acknowledged.append((T + number, float(number)))


def test_killed_again_and_again(start: Start) -> None:
    """After kill -9 in the middle of writing, every acknowledged value is there."""
    receive = start("receive")
    feeds = [Feed(receive.url, f"s{n}") for n in range(4)]
    for feed in feeds:
        feed.start()
    for _ in range(3):
        time.sleep(1)
        receive.stop(signal.SIGKILL)
        receive.start()
    time.sleep(0.5)
    for feed in feeds:
        feed.stopped.set()
        feed.join(40)
        assert len(feed.acknowledged) > 10
    assert 0 == receive.stop()
    store = SqliteStore(receive.directory / "store.sqlite")
    for feed in feeds:
        stored = {(p.time_ms, p.value) for p in store.points(feed.sensor, start_ms=0, end_ms=2**50)}
        assert set() == set(feed.acknowledged) - stored
    store.close()


def test_ring_away_at_start(start: Start, tmp_path: Path) -> None:
    """It starts, is ready and answers 202; kill -9 loses nothing of that; ``drain`` stores it."""
    (tmp_path / "password").write_text("any")
    receive = start(
        "receive",
        store="cassandra",
        cassandra_hosts="127.0.0.1",
        cassandra_port=free_port(),
        cassandra_username="fieldring_ingest",
        cassandra_password_file=tmp_path / "password",
    )
    for number in range(20):
        answer = httpx.post(
            receive.url + "/api/v2/write?precision=ms",
            content=f"m,sensor=a value={number} {T + number}",
            headers={"Authorization": "Token write"},
            timeout=20,
        )
        assert (202, "spooled") == (answer.status_code, answer.headers["fieldring-durability"])
    assert "spooled" == httpx.get(receive.url + "/ready").json()["durability"]
    receive.stop(signal.SIGKILL)
    environment = {**receive.environment, "FIELDRING_STORE": "sqlite"}
    subprocess.run(
        [sys.executable, "-m", "fieldring", "drain"], env=environment, check=True, timeout=60, cwd=tmp_path
    )
    store = SqliteStore(tmp_path / "store.sqlite")
    points = [(p.time_ms, p.value) for p in store.points("a", start_ms=0, end_ms=2**50)]
    store.close()
    assert [(T + n, float(n)) for n in range(20)] == points


def test_spool_is_drained_into_the_store(start: Start, tmp_path: Path) -> None:
    """What an earlier run left in its spool is stored by the next."""
    queue = Queue(tmp_path / "spool" / "other-worker", segment_bytes=1_048_576, max_bytes=16_777_216)
    batch = Batch(received=T * 1000)
    batch.append(Row("a", T, ("m",), (1.0,)))
    queue.append(block.encode(batch))
    queue.close()
    receive = start("receive")
    wait_until(lambda: 0 == metric(receive, "fieldring_spool_pending_records"))
    receive.stop()
    store = SqliteStore(tmp_path / "store.sqlite")
    assert [1.0] == [p.value for p in store.points("a", start_ms=0, end_ms=2**50)]
    store.close()


def test_serve_reads_what_receive_took(start: Start) -> None:
    """Two processes, one store: a value is readable as soon as it is acknowledged."""
    receive, serve = start("receive"), start("serve")
    with Client(receive.url, token="write") as writer, Client(serve.url, token="read") as reader:
        for number in range(20):
            writer.write([Reading("a/b c", T + number, "m", number / 7)])
            found = list(reader.read("a/b c", start=T, end=T + 1000))
            assert [(T + n, n / 7) for n in range(number + 1)] == [(r.time_ms, r.value) for r in found]
    assert 0 == serve.stop()


def test_analyse_judges(start: Start) -> None:
    """A value out of its gross range is flagged soon after it was written."""
    receive, serve, analyse = start("receive"), start("serve"), start("analyse")
    now = int(time.time() * 1000)
    with Client(receive.url, token="write") as writer, Client(serve.url, token="read") as reader:
        writer.write([Reading("a", now - n * 1000, "temperature", 20.0 + n / 10) for n in range(3)])
        writer.write([Reading("a", now - 5000, "temperature", 9_999.0)])
        wait_until(
            lambda: (
                4 in [r.flag for r in reader.read("a", start=now - 10_000, end=now + 1) if r.value == 9_999]
            ),
            seconds=60,
        )
    assert 200 == httpx.get(analyse.url + "/metrics", headers={"Authorization": "Token read"}).status_code
    assert 401 == httpx.get(analyse.url + "/metrics").status_code
    assert 0 == analyse.stop()


def test_stops_when_told(start: Start) -> None:
    """SIGTERM ends it at once, without a trace of an error."""
    receive = start("receive")
    httpx.post(receive.url + "/write", content="m,sensor=a value=1", headers={"Authorization": "Token write"})
    began = time.monotonic()
    assert 0 == receive.stop()
    assert time.monotonic() - began < 10
    assert '"error"' not in receive.log
    assert "Traceback" not in receive.log
