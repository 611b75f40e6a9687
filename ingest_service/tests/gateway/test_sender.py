"""Records leave the spool only with a verdict; restarts and refusals lose nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fieldring.gateway.dead_letter import DeadLetters
from fieldring.gateway.metrics import Metrics
from fieldring.gateway.sender import Sender
from fieldring.gateway.upstream import Answer, Upstreams
from fieldring.spool import Queue
from fieldring.web.receive import Source, parse_source

Start = Callable[..., Any]


@pytest.fixture
def open_queue(tmp_path: Path) -> Callable[[], Queue]:
    def open_() -> Queue:
        return Queue(tmp_path / "spool", segment_bytes=65_536, max_bytes=1_048_576, full_policy="refuse")

    return open_


@pytest.fixture
def send(metrics: Metrics, tmp_path: Path) -> Iterator[Callable[..., Callable[[], None]]]:
    """A function that starts a sender and returns what stops it."""
    stops: list[Callable[[], None]] = []

    def start(queue: Queue, *urls: str, **options: Any) -> Callable[[], None]:
        stop = threading.Event()
        upstreams = Upstreams(
            urls,
            ca_file="",
            token=lambda: "t",
            timeout_s=5,
            retry_max_s=0.1,
            gzip_min_bytes=0,
            metrics=metrics,
            stop=stop,
        )
        letters = DeadLetters(tmp_path / "dead", max_bytes=100_000, metrics=metrics)
        sender = Sender(
            queue, upstreams, gateway="gw", dead_letters=letters, metrics=metrics, stop=stop, **options
        )
        sender.start()

        def end() -> None:
            stop.set()
            sender.wake()
            sender.join(5)
            assert not sender.is_alive()
            upstreams.close()

        stops.append(end)
        return end

    yield start
    for end in stops:
        end()


def fill(queue: Queue, *numbers: int) -> None:
    for number in numbers:
        queue.append(b"block %d" % number)


def sources(host: Any) -> list[str]:
    return [request.headers["Fieldring-Source"] for request in host.requests]


def test_in_order(
    open_queue: Callable[[], Queue], send: Start, start_upstream: Start, eventually: Start, count: Start
) -> None:
    """Blocks arrive in order with their numbers, and the spool is empty afterwards."""
    queue, host = open_queue(), start_upstream(204)
    fill(queue, 1, 2, 3)
    send(queue, host.url)
    eventually(lambda: len(host.requests) == 3)
    assert sources(host) == [f"gw;epoch={queue.identity};seq={n};count=1" for n in (1, 2, 3)]
    assert [request.body for request in host.requests] == [b"block 1", b"block 2", b"block 3"]
    eventually(lambda: queue.pending_bytes == 0)
    assert count("blocks_sent_total") == 3


def test_same_number_on_every_try(
    open_queue: Callable[[], Queue], send: Start, start_upstream: Start, eventually: Start
) -> None:
    """A block that is sent again is recognisable as the same one."""
    queue, host = open_queue(), start_upstream(503, 503, 204)
    fill(queue, 1)
    send(queue, host.url)
    eventually(lambda: len(host.requests) == 3)
    assert len(set(sources(host))) == 1


def test_restart_without_upstream(
    open_queue: Callable[[], Queue], send: Start, start_upstream: Start, eventually: Start
) -> None:
    """What was not acknowledged before a stop is sent after the next start."""
    queue, away = open_queue(), start_upstream(503)
    fill(queue, 1, 2)
    end = send(queue, away.url)
    eventually(lambda: away.requests)
    end()
    queue.close()
    queue, host = open_queue(), start_upstream(204)
    fill(queue, 3)
    send(queue, host.url)
    eventually(lambda: len(host.requests) == 3)
    assert [request.body for request in host.requests] == [b"block 1", b"block 2", b"block 3"]
    assert sources(host)[0] == sources(away)[0]


def test_refused_block(
    open_queue: Callable[[], Queue], send: Start, start_upstream: Start, eventually: Start, tmp_path: Path
) -> None:
    """A refused block becomes a dead letter with the upstream's words, and the next one goes on."""
    queue, host = open_queue(), start_upstream((400, {}, b'{"message": "older than the retention"}'), 204)
    fill(queue, 1, 2)
    send(queue, host.url)
    eventually(lambda: queue.pending_bytes == 0)
    assert len(host.requests) == 2
    (letter,) = [json.loads(line) for line in (tmp_path / "dead" / "blocks.jsonl").read_text().splitlines()]
    assert letter["reason"] == "upstream_400"
    assert letter["source"] == f"gw;epoch={queue.identity};seq=1;count=1"
    assert "retention" in letter["detail"]
    assert letter["payload"] == "block 1"


def test_woken_at_once(
    open_queue: Callable[[], Queue], send: Start, start_upstream: Start, eventually: Start
) -> None:
    """A sender that was idle goes on when records come."""
    queue, host = open_queue(), start_upstream(204)
    send(queue, host.url)
    fill(queue, 1)
    eventually(lambda: len(host.requests) == 1)


def test_source_is_what_upstream_reads(
    open_queue: Callable[[], Queue], send: Start, start_upstream: Start, eventually: Start
) -> None:
    """The largest identity of a spool still makes a header that the ingest hosts take."""
    queue, host = open_queue(), start_upstream(204)
    queue.identity = 2**63 - 1
    fill(queue, 1)
    send(queue, host.url)
    eventually(lambda: host.requests)
    assert parse_source(sources(host)[0]) == Source("gw", 2**63 - 1, 1, 1)


def positions(host: Any) -> list[int]:
    return [parse_source(source).seq for source in sources(host)]


def test_live_goes_before_backlog(
    open_queue: Callable[[], Queue],
    send: Callable[..., Callable[[], None]],
    start_upstream: Start,
    eventually: Callable[..., None],
) -> None:
    """What waits at the start is sent in the gaps of what comes in; nothing is left out or sent twice."""
    queue = open_queue()
    fill(queue, *range(1, 201))
    seen = threading.Event()

    def slow(handler: Any) -> None:
        seen.set()
        time.sleep(0.005)
        handler.send_response(204)
        handler.end_headers()

    host = start_upstream(slow)
    send(queue, host.url)
    assert seen.wait(10)
    fill(queue, *range(201, 211))
    eventually(lambda: queue.pending_records == 0, seconds=30)
    order = positions(host)
    assert sorted(order) == list(range(1, 211))
    assert [seq for seq in order if seq <= 200] == list(range(1, 201))
    # At most the request that is under way goes first.
    assert order.index(210) < order.index(200)


def test_cursor_waits_for_the_backlog(
    open_queue: Callable[[], Queue],
    send: Callable[..., Callable[[], None]],
    start_upstream: Start,
    eventually: Callable[..., None],
) -> None:
    """A crash between the lanes sends again what was live, and loses nothing of the backlog."""
    queue = open_queue()
    fill(queue, *range(1, 51))
    host = start_upstream(204)
    end = send(queue, host.url, backlog_bytes_per_s=50)
    fill(queue, 51, 52)
    eventually(lambda: {51, 52} <= set(positions(host)))
    assert queue.position < 50
    assert host.requests[0].headers["Fieldring-Oldest"] == "1"
    end()
    queue.close()
    queue = open_queue()
    send(queue, host.url)
    eventually(lambda: queue.pending_records == 0)
    assert set(positions(host)) == set(range(1, 53))


def test_outage_makes_a_backlog(
    open_queue: Callable[[], Queue], start_upstream: Start, metrics: Metrics, tmp_path: Path
) -> None:
    """After an upstream was away for long, what comes in goes before what waited."""
    queue = open_queue()
    clock = [0.0]

    class Away:
        """Its first answer takes a minute, in which ten more blocks come."""

        def __init__(self) -> None:
            self.sent: list[int] = []

        def deliver(self, block: bytes, *, source: str, oldest: int) -> Answer:
            self.sent.append(parse_source(source).seq)
            if len(self.sent) == 1:
                clock[0] += 60
                fill(queue, *range(2, 12))
            if len(self.sent) == 3:
                fill(queue, 12)
            return Answer(204)

    upstreams = Away()
    letters = DeadLetters(tmp_path / "dead", max_bytes=100_000, metrics=metrics)
    sender = Sender(
        queue, upstreams, gateway="gw", dead_letters=letters, metrics=metrics, stop=threading.Event(),
        monotonic=lambda: clock[0],
    )  # type: ignore[arg-type]  # fmt: skip
    fill(queue, 1)
    while sender._round():
        continue
    assert upstreams.sent == [1, 2, 3, 12, *range(4, 12)]
    assert (queue.pending_records, sender.backlog) == (0, 0)


def test_backlog_of_three_days(
    open_queue: Callable[[], Queue],
    send: Callable[..., Callable[[], None]],
    start_upstream: Start,
    eventually: Callable[..., None],
    count: Callable[..., float],
) -> None:
    """4,320 blocks, one for each minute of 72 hours: all arrive once, and live ones do not wait for them."""
    queue = open_queue()
    for number in range(1, 4_321):
        queue.append(b"%d" % number)
    host = start_upstream(204)
    send(queue, host.url)
    eventually(lambda: len(host.requests) > 10, seconds=30)
    fill(queue, 4_321)
    eventually(lambda: 4_321 in positions(host), seconds=30)
    assert queue.pending_records > 0
    eventually(lambda: queue.pending_records == 0, seconds=100)
    assert sorted(positions(host)) == list(range(1, 4_322))
