"""Messages that come before the clock is right are stamped with the time at which they came."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fieldring.gateway.clock import Clock, WaitingRoom, kernel_synchronised
from fieldring.gateway.clock_marks import ClockMarks
from fieldring.gateway.dead_letter import DeadLetters
from fieldring.gateway.inbox import Inbox, Message
from fieldring.gateway.metrics import Metrics
from fieldring.model import Batch
from fieldring.spool import Queue
from fieldring.wire import block

SECOND = 1_000_000
REAL = 1_700_000_000 * SECOND
"""The true time at boot; the clock shows 1970 until it is synchronised."""


class Host:
    """Clocks of a host without a battery."""

    def __init__(self) -> None:
        self.up_us = 0
        self.boot = "first"
        self.synchronised = False

    def now_us(self) -> int:
        return self.up_us + (REAL if self.synchronised else 0)

    def clock(self, *, wait_s: float = 3600) -> Clock:
        return Clock(
            wait_s=wait_s,
            synchronised=lambda: self.synchronised,
            boot_id=lambda: self.boot,
            boottime_us=lambda: self.up_us,
            now_us=self.now_us,
        )


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "spool", segment_bytes=65_536, max_bytes=1_048_576)


@pytest.fixture
def open_room(host: Host, queue: Queue, metrics: Metrics, tmp_path: Path) -> Callable[..., WaitingRoom]:
    letters = DeadLetters(tmp_path / "dead", max_bytes=100_000, metrics=metrics)

    def make(**options: float) -> WaitingRoom:
        inbox = Inbox(
            queue,
            dead_letters=letters,
            metrics=metrics,
            marks=ClockMarks(tmp_path / "marks.json"),
            now_us=host.now_us,
            boottime_us=lambda: host.up_us,
        )
        held = Queue(tmp_path / "clock", segment_bytes=65_536, max_bytes=1_048_576)
        return WaitingRoom(held, inbox, host.clock(**options))

    return make


def lp(
    value: int,
    *,
    stamp_ms: int | None = None,
    mid: int = 1,
    dup: bool = False,
    sensor: str = "a",
    arrived_us: int = 0,
) -> Message:
    text = f"no2,sensor={sensor} value={value}" + ("" if stamp_ms is None else f" {stamp_ms}000000")
    topic = f"sensors/{sensor}/lp"
    return Message(topic, text.encode(), mid, dup, "c", sensor, arrived_us=arrived_us)


def spooled(queue: Queue) -> list[Batch]:
    return [block.decode(record.payload) for record in queue.read()]


def rows(queue: Queue) -> list[tuple[int, float]]:
    return [(row.time_ms, row.values[0]) for batch in spooled(queue) for row in batch.rows()]  # type: ignore[misc]


def test_held_until_synchronised(host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]) -> None:
    """Each message has the time of its own receipt, a time of the device stays, and so does the order."""
    room = open_room()
    host.up_us = 10 * SECOND
    room.take([lp(1), lp(2, stamp_ms=1_600_000_000_000, mid=2)])
    host.up_us = 20 * SECOND
    room.take([lp(3, mid=3)])
    assert (rows(queue), room.open, room.held) == ([], False, 2)
    host.synchronised = True
    host.up_us = 100 * SECOND
    room.take([lp(4, mid=4)])
    base = REAL // 1000
    assert rows(queue) == [
        (base + 10_000, 1.0), (1_600_000_000_000, 2.0), (base + 20_000, 3.0), (base + 100_000, 4.0),
    ]  # fmt: skip
    assert [batch.received for batch in spooled(queue)] == [
        REAL + 10 * SECOND, REAL + 20 * SECOND, REAL + 100 * SECOND,
    ]  # fmt: skip
    assert (room.open, room.held) == (True, 0)


def test_held_messages_of_one_group(host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]) -> None:
    """Each keeps its own arrival though they waited for the disk, or the next millisecond that is free."""
    room = open_room()
    host.up_us = 10 * SECOND
    room.take(
        [lp(n, mid=n, arrived_us=10 * SECOND - ago) for n, ago in enumerate((700_000, 300_000, 0, 0), 1)]
    )
    host.synchronised, host.up_us = True, 60 * SECOND
    room.release()
    base = REAL // 1000
    assert rows(queue) == [
        (base + 9_300, 1.0),
        (base + 9_700, 2.0),
        (base + 10_000, 3.0),
        (base + 10_001, 4.0),
    ]


def test_held_by_the_release_before(
    host: Host, queue: Queue, open_room: Callable[..., WaitingRoom], tmp_path: Path
) -> None:
    """It knew one time for all; an upgrade while messages are held loses none of them."""
    held = Queue(tmp_path / "clock", segment_bytes=65_536, max_bytes=1_048_576)
    messages = [(message.topic, message.payload, message.user) for message in (lp(1), lp(2))]
    held.append(msgspec.msgpack.encode([host.boot, 10 * SECOND, 10 * SECOND, messages]))
    held.close()
    host.synchronised, host.up_us = True, 60 * SECOND
    open_room().release()
    assert rows(queue) == [(REAL // 1000 + 10_000, 1.0), (REAL // 1000 + 10_001, 2.0)]


def test_clock_is_set_while_messages_wait_for_the_disk(
    host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]
) -> None:
    """What came while it showed 1970 and is taken after it was set did not come in 1970."""
    room = open_room()
    message = lp(1, arrived_us=10 * SECOND)
    host.synchronised, host.up_us = True, 11 * SECOND
    room.take([message])
    assert rows(queue) == [(REAL // 1000 + 10_000, 1.0)]


def test_released_without_a_further_message(
    host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]
) -> None:
    """The forwarder asks now and then."""
    room = open_room()
    room.take([lp(1)])
    room.release()
    assert rows(queue) == []
    host.synchronised, host.up_us = True, 5 * SECOND
    room.release()
    assert rows(queue) == [(REAL // 1000, 1.0)]


def test_restart_within_a_boot(host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]) -> None:
    """What an earlier process held is stamped as well; nothing is marked."""
    room = open_room()
    host.up_us = 10 * SECOND
    room.take([lp(1)])
    room.close()
    host.up_us, host.synchronised = 60 * SECOND, True
    open_room().release()
    assert rows(queue) == [(REAL // 1000 + 10_000, 1.0)]
    assert spooled(queue)[0].attributes == {}


def test_power_cut_before_it_was_ever_synchronised(
    host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]
) -> None:
    """Nobody knows when that was: it keeps the time shown, and the sensor says so."""
    room = open_room()
    host.up_us = 10 * SECOND
    room.take([lp(1)])
    room.close()
    host.boot, host.synchronised = "second", True
    open_room().release()
    assert rows(queue) == [(10_000, 1.0)]
    assert spooled(queue)[0].attributes == {"a": {"gateway_clock": "unsynchronised"}}


def marks(queue: Queue, after: int = 0) -> list[dict[str, dict[str, str]]]:
    return [block.decode(record.payload).attributes for record in queue.read(after=after)]


def held_over_a_power_cut(host: Host, open_room: Callable[..., WaitingRoom], *sensors: str) -> None:
    """The next start is in another boot."""
    room = open_room()
    room.take([lp(1, sensor=sensor, mid=mid) for mid, sensor in enumerate(sensors, 1)])
    room.close()
    host.boot, host.up_us = "second", 5 * SECOND


def test_mark_of_the_gateway_is_taken_back(
    host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]
) -> None:
    """It stayed for ever: now each sensor's first message after the synchronisation says "ok", once."""
    held_over_a_power_cut(host, open_room, "a", "b")
    host.synchronised = True
    room = open_room()
    room.release()
    assert marks(queue) == [{name: {"gateway_clock": "unsynchronised"} for name in "ab"}]
    room.take([lp(2), lp(3, mid=2)])
    room.take([lp(4, mid=3)])
    room._inbox.keep(Batch(["b"], [REAL // 1000], [("no2",)], [(1.0,)], [1]))
    assert marks(queue)[1:] == [{"a": {"gateway_clock": "ok"}}, {}, {"b": {"gateway_clock": "ok"}}]


def test_mark_is_taken_back_by_what_this_boot_held(
    host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]
) -> None:
    """Its time is known by then."""
    held_over_a_power_cut(host, open_room, "a")
    room = open_room()
    room.take([lp(2, mid=2)])
    host.synchronised, host.up_us = True, 20 * SECOND
    room.release()
    assert marks(queue) == [{"a": {"gateway_clock": "unsynchronised"}}, {"a": {"gateway_clock": "ok"}}]


def test_mark_is_taken_back_after_a_restart(
    host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]
) -> None:
    """A sensor that speaks once a day may find another process."""
    held_over_a_power_cut(host, open_room, "a")
    host.synchronised = True
    room = open_room()
    room.release()
    room.close()
    room = open_room()
    room.take([lp(2, mid=2)])
    assert marks(queue)[1:] == [{"a": {"gateway_clock": "ok"}}]


def test_mark_stays_while_the_clock_is_only_believed(
    host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]
) -> None:
    """After the wait without a synchronisation nobody knows; a later synchronisation is noticed."""
    held_over_a_power_cut(host, open_room, "a")
    host.up_us = 31 * SECOND
    room = open_room(wait_s=30)
    room.take([lp(2, mid=2)])
    assert (room.open, room.settled) == (True, False)
    host.synchronised, host.up_us = True, 40 * SECOND
    room.release()
    assert room.settled
    room.take([lp(3, mid=3)])
    assert marks(queue)[1:] == [{}, {"a": {"gateway_clock": "ok"}}]


def test_device_beside_a_clock_that_was_wrong(
    host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]
) -> None:
    """A device with the right time is not ahead because the gateway was in 1970."""
    room = open_room()
    room.take([lp(1, stamp_ms=REAL // 1000)])
    room.close()
    host.boot, host.synchronised, host.up_us = "second", True, 5 * SECOND
    open_room().release()
    assert marks(queue) == [{"a": {"gateway_clock": "unsynchronised"}}]


def test_never_synchronised(host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]) -> None:
    """A gateway without time servers forwards all the same, after a while."""
    room = open_room(wait_s=30)
    room.take([lp(1)])
    host.up_us = 31 * SECOND
    room.release()
    assert len(rows(queue)) == 1


def test_redelivered_while_held(host: Host, queue: Queue, open_room: Callable[..., WaitingRoom]) -> None:
    """A message that comes again with DUP is held once, also if it comes again after the release."""
    room = open_room()
    room.take([lp(1, mid=7)])
    room.take([lp(1, mid=7, dup=True)])
    host.synchronised, host.up_us = True, 5 * SECOND
    room.take([lp(1, mid=7, dup=True)])
    assert len(rows(queue)) == 1


def test_dead_letters_of_held_messages(
    host: Host, queue: Queue, open_room: Callable[..., WaitingRoom], tmp_path: Path
) -> None:
    """What cannot be taken is found out at the release and costs itself only."""
    room = open_room()
    room.take([Message("sensors/b/lp", b"x", 1, False, "c", "a"), lp(1, mid=2)])
    host.synchronised, host.up_us = True, 5 * SECOND
    room.release()
    assert len(rows(queue)) == 1
    letters = [json.loads(line) for line in (tmp_path / "dead" / "messages.jsonl").read_text().splitlines()]
    assert [letter["reason"] for letter in letters] == ["acl"]


def test_the_kernel_can_be_asked() -> None:
    """Whatever it says here."""
    assert kernel_synchronised() in (True, False)


def test_device_ahead_of_the_gateway(queue: Queue, metrics: Metrics, tmp_path: Path) -> None:
    """Its times are kept; the sensor is marked when that begins and when it ends."""
    letters = DeadLetters(tmp_path / "dead", max_bytes=100_000, metrics=metrics)
    inbox = Inbox(queue, dead_letters=letters, metrics=metrics, now_us=lambda: REAL)
    base = REAL // 1000
    for number, ahead_ms in enumerate((0, 400_000, 500_000, 0, 0)):
        inbox.take([lp(number, stamp_ms=base + ahead_ms, mid=number + 1)])
    assert [batch.attributes.get("a") for batch in spooled(queue)] == [
        None, {"device_clock": "ahead"}, None, {"device_clock": "ok"}, None,
    ]  # fmt: skip
