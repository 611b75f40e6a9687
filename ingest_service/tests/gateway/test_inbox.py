"""Groups of messages become durable blocks, or dead letters with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fieldring.errors import SpoolFull
from fieldring.gateway.dead_letter import DeadLetters
from fieldring.gateway.inbox import Inbox, Message
from fieldring.gateway.metrics import Metrics
from fieldring.model import Batch
from fieldring.wire import block

NOW_US = 1_700_000_000_123_456
NOW_MS = NOW_US // 1000


class Memory:
    """Keeps records in a list; ``full`` makes it refuse as a full spool does."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.full = False

    def append(self, payload: bytes) -> None:
        if self.full:
            raise SpoolFull("no room")
        self.records.append(payload)

    def batches(self) -> list[Batch]:
        return [block.decode(record) for record in self.records]


@pytest.fixture
def spool() -> Memory:
    return Memory()


@pytest.fixture
def inbox(spool: Memory, metrics: Metrics, tmp_path: Path) -> Inbox:
    letters = DeadLetters(tmp_path, max_bytes=1_000_000, metrics=metrics)
    return Inbox(spool, dead_letters=letters, metrics=metrics, now_us=lambda: NOW_US)


@pytest.fixture
def letters(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    def read() -> list[dict[str, Any]]:
        path = tmp_path / "messages.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


def lp(sensor: str, value: float = 1.0, time_ms: int | None = 5_000, **message: Any) -> Message:
    stamp = "" if time_ms is None else f" {time_ms * 1_000_000}"
    text = f"no2,sensor={sensor} value={value}{stamp}"
    return Message(f"sensors/{sensor}/lp", text.encode(), **message)


def keys(batches: list[Batch]) -> list[tuple[str, int, tuple[str, ...], tuple[Any, ...]]]:
    return [tuple(row) for batch in batches for row in batch.rows()]  # type: ignore[misc]


def test_group_becomes_one_block(inbox: Inbox, spool: Memory, count: Callable[..., float]) -> None:
    """Messages of several sensors share a block with their time of receipt."""
    inbox.take([lp("a", 1), lp("b", 2), lp("a", 3, 6_000)])
    (batch,) = spool.batches()
    assert batch.received == NOW_US
    assert keys([batch]) == [
        ("a", 5_000, ("no2",), (1.0,)),
        ("b", 5_000, ("no2",), (2.0,)),
        ("a", 6_000, ("no2",), (3.0,)),
    ]
    assert count("points_spooled_total") == 3


def test_same_key_twice_in_a_group(inbox: Inbox, spool: Memory) -> None:
    """The later of two values for one key goes into a later block, so that it wins everywhere."""
    inbox.take([lp("a", 1), lp("a", 2)])
    first, second = spool.batches()
    assert first.received < second.received
    assert keys([first]) == [("a", 5_000, ("no2",), (1.0,))]
    assert keys([second]) == [("a", 5_000, ("no2",), (2.0,))]


def test_received_grows_though_the_clock_stands(inbox: Inbox, spool: Memory) -> None:
    """Two groups within one tick of the clock, or after it was set back, keep their order."""
    inbox.take([lp("a", 1)])
    inbox.take([lp("a", 2)])
    assert [batch.received for batch in spool.batches()] == [NOW_US, NOW_US + 1]


def test_point_without_time(inbox: Inbox, spool: Memory) -> None:
    """A point without a time has the time of its receipt."""
    inbox.take([lp("a", 1, None)])
    assert spool.batches()[0].times_ms == [NOW_MS]


def test_senml(inbox: Inbox, spool: Memory) -> None:
    """SenML records are taken under the sensor of their base name."""
    pack = [{"bn": "a/", "bt": 1_600_000_000, "n": "no2", "v": 41.5}, {"n": "o3", "v": 7}]
    inbox.take([Message("sensors/a/senml", json.dumps(pack).encode())])
    points = {
        (row.sensor, row.time_ms, metric, value)
        for batch in spool.batches()
        for row in batch.rows()
        for metric, value in zip(row.layout, row.values, strict=True)
    }
    assert points == {("a", 1_600_000_000_000, "no2", 41.5), ("a", 1_600_000_000_000, "o3", 7.0)}


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("sensors/a/lp", b"no2,sensor=b value=1 1000000", "sensor"),
        ("sensors/a/lp", b"no2,sensor=a value=1 1000000\nno2,sensor=b value=1 1000000", "sensor"),
        ("sensors/a/senml", b'[{"bn": "b/", "n": "no2", "v": 1}]', "sensor"),
        ("sensors/a/lp", b"no2,sensor=aa value=1 1000000", "sensor"),
        ("sensors/a/senml", b"{not json", "payload"),
        ("sensors/a/lp", b"", "payload"),
        ("sensors/a/lp", b"# only a comment", "payload"),
        ("sensors/a/csv", b"1,2", "topic"),
        ("sensors/a", b"no2,sensor=a value=1", "topic"),
        ("sensors//lp", b"no2,sensor=a value=1", "topic"),
        ("sensors/a/b/lp", b"no2,sensor=a value=1", "topic"),
    ],
    ids=[
        "another sensor", "one line of another sensor", "another sensor in SenML", "near miss", "junk",
        "empty", "comment", "format", "two levels", "no sensor", "four levels",
    ],
)  # fmt: skip
def test_refused_message(
    inbox: Inbox,
    spool: Memory,
    letters: Callable[[], list[dict[str, Any]]],
    count: Callable[..., float],
    topic: str,
    payload: bytes,
    reason: str,
) -> None:
    """A message that may not be taken costs itself only, and its letter says why."""
    inbox.take([lp("good"), Message(topic, payload)])
    assert keys(spool.batches()) == [("good", 5_000, ("no2",), (1.0,))]
    (letter,) = letters()
    assert (letter["reason"], letter["topic"], letter["payload"]) == (reason, topic, payload.decode())
    assert letter["detail"]
    assert count("dead_letters_total", reason=reason) == 1


def test_one_bad_line(inbox: Inbox, spool: Memory, letters: Callable[[], list[dict[str, Any]]]) -> None:
    """A line that is not understood is named; the others of the message are taken."""
    inbox.take([Message("sensors/a/lp", b"no2,sensor=a value=1 1000000\nno2,sensor=a value=x 2000000")])
    assert keys(spool.batches()) == [("a", 1, ("no2",), (1.0,))]
    (letter,) = letters()
    assert letter["reason"] == "lines"
    assert [error["line"] for error in letter["errors"]] == [2]


def test_redelivered_after_lost_acknowledgement(
    inbox: Inbox, spool: Memory, count: Callable[..., float]
) -> None:
    """A message without a time that comes again with the same id is not a new point."""
    inbox.take([lp("a", 1, None, mid=7)])
    inbox.take([lp("a", 1, None, mid=7, dup=True)])
    assert len(spool.records) == 1
    assert count("messages_redelivered_total") == 1


@pytest.mark.parametrize(
    "message",
    [lp("a", 1, None, mid=7), lp("a", 2, None, mid=7, dup=True), lp("a", 1, None, mid=8, dup=True)],
    ids=["same id but not marked", "same id, another payload", "another id"],
)
def test_not_taken_for_redelivered(inbox: Inbox, spool: Memory, message: Message) -> None:
    """Only mark, id and payload together mean a message that is in the spool already."""
    inbox.take([lp("a", 1, None, mid=7)])
    inbox.take([message])
    assert len(spool.records) == 2


def test_full_spool_takes_nothing(
    inbox: Inbox, spool: Memory, letters: Callable[[], list[dict[str, Any]]]
) -> None:
    """A group that is not durable raises, and is taken when it comes again."""
    spool.full = True
    group = [lp("a", 1, mid=7), Message("sensors/a/lp", b"junk", 8)]
    with pytest.raises(SpoolFull):
        inbox.take(group)
    assert letters() == []
    spool.full = False
    inbox.take([message._replace(dup=True) for message in group])
    assert len(spool.records) == 1
    assert len(letters()) == 1
