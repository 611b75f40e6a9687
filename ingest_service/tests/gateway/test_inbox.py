"""Groups of messages become durable blocks, or dead letters with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fieldring.errors import SpoolFull
from fieldring.gateway.clock_marks import ClockMarks
from fieldring.gateway.dead_letter import DeadLetters
from fieldring.gateway.inbox import Inbox, Message
from fieldring.gateway.metrics import Metrics
from fieldring.model import Batch
from fieldring.store.sqlite import SqliteStore
from fieldring.wire import block

NOW_US = 1_700_000_000_123_456
NOW_MS = NOW_US // 1000
UP_US = 50_000_000


class Memory:
    """Keeps records in a list; ``full`` makes it refuse as a full spool does."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.full = False

    def append_many(self, payloads: Sequence[bytes]) -> list[SpoolFull | None]:
        if self.full:
            return [SpoolFull("no room")] * len(payloads)
        self.records += payloads
        return [None] * len(payloads)

    def batches(self) -> list[Batch]:
        return [block.decode(record) for record in self.records]


@pytest.fixture
def spool() -> Memory:
    return Memory()


@pytest.fixture
def inbox(spool: Memory, metrics: Metrics, tmp_path: Path) -> Inbox:
    letters = DeadLetters(tmp_path, max_bytes=1_000_000, metrics=metrics)
    return Inbox(
        spool, dead_letters=letters, metrics=metrics, now_us=lambda: NOW_US, boottime_us=lambda: UP_US
    )


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


def unstamped(value: float, *, ago_ms: int = 0, sensor: str = "a") -> Message:
    return lp(sensor, value, None, arrived_us=UP_US - ago_ms * 1000)


def times(spool: Memory) -> list[int]:
    """Of all rows, beside the time at which they were taken."""
    return [time_ms - NOW_MS for _, time_ms, _, _ in keys(spool.batches())]


def test_each_message_has_the_time_of_its_own_arrival(inbox: Inbox, spool: Memory) -> None:
    """However long they wait for a slow disk: a time for the whole group made one key of them."""
    inbox.take([unstamped(1, ago_ms=400), unstamped(2, ago_ms=300), unstamped(3, ago_ms=100)])
    inbox.take([unstamped(4)])
    assert times(spool) == [-400, -300, -100, 0]
    assert [batch.received for batch in spool.batches()] == [NOW_US, NOW_US + 1]


def test_messages_within_one_millisecond(inbox: Inbox, spool: Memory) -> None:
    """Those of one sensor get one millisecond after the other; others have nothing to do with it."""
    inbox.take([unstamped(1), unstamped(2), unstamped(3, sensor="b")])
    inbox.take([unstamped(4)])
    assert [(row[0], row[1] - NOW_MS, row[3]) for row in keys(spool.batches())] == [
        ("a", 0, (1.0,)), ("a", 1, (2.0,)), ("b", 0, (3.0,)), ("a", 2, (4.0,)),
    ]  # fmt: skip
    assert len(spool.records) == 2


def test_relative_times_go_with_their_message(inbox: Inbox, spool: Memory) -> None:
    """SenML that counts from its receipt is set apart as a whole."""
    pack = json.dumps([{"bn": "a/", "n": "no2", "v": 1, "t": -5}, {"n": "no2", "v": 2}]).encode()
    inbox.take([Message("sensors/a/senml", pack, arrived_us=UP_US)] * 2)
    assert times(spool) == [-5000, 0, -4999, 1]


def test_times_of_devices_are_not_set_apart(inbox: Inbox, spool: Memory) -> None:
    """Two values for a time that a device gave are two values for one key, also beside its own stamps."""
    inbox.take([lp("a", 1, NOW_MS + 7), lp("a", 2, NOW_MS + 7), unstamped(3)])
    assert times(spool) == [7, 7, 0]


def test_times_run_ahead_for_ten_seconds_only(inbox: Inbox, spool: Memory) -> None:
    """A sensor that sends more than a millisecond can hold does not walk into the future."""
    for first in range(0, 11_000, 1000):
        inbox.take([unstamped(first + number) for number in range(1000)])
    assert times(spool)[:10_001] == list(range(10_001))
    assert set(times(spool)[10_001:]) == {10_000}


def test_clock_was_set_back(spool: Memory, metrics: Metrics, tmp_path: Path) -> None:
    """Messages have the time of their arrival on the clock as it is now, not the last one plus something."""
    now_us = NOW_US
    inbox = Inbox(
        spool,
        dead_letters=DeadLetters(tmp_path, max_bytes=1_000_000, metrics=metrics),
        metrics=metrics,
        now_us=lambda: now_us,
        boottime_us=lambda: UP_US,
    )
    inbox.take([unstamped(1)])
    now_us -= 3_600_000_000
    inbox.take([unstamped(2, ago_ms=5)])
    assert times(spool) == [0, -3_600_005]


def test_refused_message_takes_no_time(inbox: Inbox, spool: Memory) -> None:
    """What becomes a dead letter does not push on what follows."""
    inbox.take([Message("sensors/a/lp", b"no2,sensor=b value=1", arrived_us=UP_US), unstamped(1)])
    assert times(spool) == [0]


def tagged(site: str, time_ms: int) -> Message:
    return Message("sensors/a/lp", f"no2,sensor=a,site={site} value=1 {time_ms}000000".encode())


def test_attribute_that_changes_within_a_group(inbox: Inbox, spool: Memory, tmp_path: Path) -> None:
    """Both values reach the store: a block has room for one, so the other begins the next."""
    inbox.take([tagged("old", 1), lp("a", 1, 2), tagged("old", 3), tagged("new", 4), tagged("new", 5)])
    assert [batch.attributes for batch in spool.batches()] == [{"a": {"site": "old"}}, {"a": {"site": "new"}}]
    assert [len(batch) for batch in spool.batches()] == [3, 2]
    store = SqliteStore(tmp_path / "store.db")
    store.write_many(spool.batches())
    assert [change[1:] for change in store.attribute_changes("a")] == [("site", "old"), ("site", "new")]
    store.close()


def test_attributes_that_add_up_share_a_block(inbox: Inbox, spool: Memory) -> None:
    """Other sensors' values and other names are no contradiction."""
    inbox.take(
        [
            tagged("old", 1),
            Message("sensors/b/lp", b"no2,sensor=b,site=new value=1 1000000"),
            Message("sensors/a/lp", b"no2,sensor=a,floor=2 value=1 2000000"),
        ]
    )
    (batch,) = spool.batches()
    assert batch.attributes == {"a": {"site": "old", "floor": "2"}, "b": {"site": "new"}}


def test_clock_marks_of_one_group(inbox: Inbox, spool: Memory) -> None:
    """A device that was ahead for a part of it is marked, and the mark is taken back."""
    inbox.take([lp("a", 1, NOW_MS + 400_000), lp("a", 2, NOW_MS + 400_001), lp("a", 3, NOW_MS)])
    assert [batch.attributes for batch in spool.batches()] == [
        {"a": {"device_clock": "ahead"}}, {"a": {"device_clock": "ok"}},
    ]  # fmt: skip


def http(sensor: str, time_ms: int) -> Batch:
    return Batch([sensor], [time_ms], [("no2",)], [(1.0,)], [1])


def test_device_ahead_over_http(inbox: Inbox, spool: Memory) -> None:
    """It is marked as over MQTT, and both know of it."""
    inbox.keep(http("a", NOW_MS + 400_000))
    inbox.keep(http("a", NOW_MS + 500_000))
    inbox.keep(http("b", NOW_MS + 299_000))
    inbox.take([lp("a", 1, NOW_MS)])
    assert [batch.attributes for batch in spool.batches()] == [
        {"a": {"device_clock": "ahead"}}, {}, {}, {"a": {"device_clock": "ok"}},
    ]  # fmt: skip


def test_marks_from_many_threads(inbox: Inbox, spool: Memory) -> None:
    """None is lost, and none of a sensor that was not ahead is made."""
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            list(threads.map(lambda n: inbox.keep(http(f"s{n}", NOW_MS + 400_000 * (n % 2))), range(40)))
    ahead = {sensor for batch in spool.batches() for sensor in batch.attributes}
    assert ahead == {f"s{n}" for n in range(1, 40, 2)}


def test_mark_that_is_not_durable_comes_again(inbox: Inbox, spool: Memory) -> None:
    """A full spool does not swallow it."""
    for write in (lambda: inbox.keep(http("a", NOW_MS + 400_000)),
                  lambda: inbox.take([lp("b", 1, NOW_MS + 400_000)])):  # fmt: skip
        spool.full = True
        with pytest.raises(SpoolFull):
            write()
        spool.full = False
        write()
    assert [batch.attributes for batch in spool.batches()] == [
        {"a": {"device_clock": "ahead"}}, {"b": {"device_clock": "ahead"}},
    ]  # fmt: skip


def test_marks_outlive_a_restart(spool: Memory, metrics: Metrics, tmp_path: Path) -> None:
    """A device whose clock was set right while the forwarder was away is not called ahead for ever."""

    def started() -> Inbox:
        letters = DeadLetters(tmp_path, max_bytes=1_000_000, metrics=metrics)
        marks = ClockMarks(tmp_path / "marks.json")
        return Inbox(spool, dead_letters=letters, metrics=metrics, marks=marks, now_us=lambda: NOW_US)

    started().keep(http("a", NOW_MS + 400_000))
    started().keep(http("a", NOW_MS + 500_000))
    started().keep(http("a", NOW_MS))
    started().keep(http("a", NOW_MS))
    assert [batch.attributes for batch in spool.batches()] == [
        {"a": {"device_clock": "ahead"}}, {}, {"a": {"device_clock": "ok"}}, {},
    ]  # fmt: skip


def test_marks_that_cannot_be_read(tmp_path: Path) -> None:
    """The file is put aside, and the forwarder starts."""
    (tmp_path / "marks.json").write_bytes(b"\0\0")
    assert ClockMarks(tmp_path / "marks.json").wrong == {}
    assert (tmp_path / "marks.json.unreadable").read_bytes() == b"\0\0"


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


def test_pack_that_would_take_too_much_memory(
    inbox: Inbox, spool: Memory, letters: Callable[[], list[dict[str, Any]]]
) -> None:
    """CBOR's smallest records take two hundred times their bytes; as many bytes of a text do not."""
    empty_maps = b"\x9a" + (400_000).to_bytes(4, "big") + b"\xa0" * 400_000
    (verdict,) = inbox.take([Message("sensors/a/senml", empty_maps)])
    assert verdict.reason == "payload"
    assert "400005 bytes of SenML in CBOR, at most 335544: send less at once" in verdict.detail
    assert [letter["topic"] for letter in letters()] == ["sensors/a/senml"]
    assert spool.records == []
    text = json.dumps([{"n": "a:note", "vs": "x" * 60_000, "t": float(n)} for n in range(15)]).encode()
    assert len(text) > 900_000
    (verdict,) = inbox.take([Message("sensors/a/senml", text)])
    assert verdict == ("", "")


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
