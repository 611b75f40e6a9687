"""Acceptance: what is promised when the store takes it, when it cannot, and when nothing can."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fieldring.accept import Accepted, Acceptor
from fieldring.errors import SpoolFull, StoreUnavailable
from fieldring.model import DAY_MS, Batch, Receipt, Row
from fieldring.settings import Settings
from fieldring.wire import block

NOW_US = 1_700_000_000_000_000
NOW_MS = NOW_US // 1000


class Store:
    """The part of a store that accepting uses, with a switch."""

    def __init__(self) -> None:
        self.up = True
        self.batches: list[Batch] = []
        self.tries = 0

    def write(self, batch: Batch) -> None:
        self.tries += 1
        if not self.up:
            raise StoreUnavailable("down")
        self.batches.append(batch)

    def write_many(self, batches: Sequence[Batch]) -> None:
        self.tries += 1
        if not self.up:
            raise StoreUnavailable("down")
        if any(b.sensors == ["poison"] for b in batches):
            raise TypeError("a fault of ours")
        self.batches += batches


class Spool:
    def __init__(self) -> None:
        self.full = False
        self.room = 100
        self.records: list[bytes] = []

    def append(self, payload: bytes) -> None:
        if self.full:
            raise SpoolFull("full")
        self.records.append(payload)

    def append_many(self, payloads: Sequence[bytes]) -> list[SpoolFull | None]:
        room = 0 if self.full else self.room
        self.records += payloads[:room]
        return [None] * len(payloads[:room]) + [SpoolFull("full")] * len(payloads[room:])


class Clock:
    def __init__(self) -> None:
        self.us = NOW_US
        self.s = 0.0

    def pass_s(self, seconds: float) -> None:
        self.s += seconds
        self.us += int(seconds * 1_000_000)


class World:
    def __init__(self) -> None:
        self.store, self.spool, self.clock = Store(), Spool(), Clock()
        self.acceptor = Acceptor(
            self.store,  # type: ignore[arg-type]
            self.spool,
            Settings(retention_days=10, future_limit_seconds=3600),
            lambda: self.clock.us,
            monotonic=lambda: self.clock.s,
        )


@pytest.fixture
def world() -> World:
    return World()


def batch(*times_ms: int, received: int = 0) -> Batch:
    made = Batch(received=received)
    for number, time_ms in enumerate(times_ms or (NOW_MS,), 1):
        made.append(Row("a", time_ms, ("m", "n"), (1.0, "x")), line=number * 10)
    return made


def test_stored(world: World) -> None:
    """What the store took is promised as stored, and is not spooled."""
    assert Receipt("stored", 2) == world.acceptor.accept(batch()).receipt
    assert [] == world.spool.records


def test_spooled(world: World) -> None:
    """What the store cannot take is in the spool, whole, with its time of acceptance."""
    world.store.up = False
    assert Receipt("spooled", 4) == world.acceptor.accept(batch(NOW_MS, NOW_MS - 1)).receipt
    [record] = world.spool.records
    kept = block.decode(record)
    assert NOW_US == kept.received
    assert [NOW_MS, NOW_MS - 1] == kept.times_ms
    assert world.acceptor.store_failing


def test_nothing_is_promised_when_both_fail(world: World) -> None:
    """The caller gets the error, and readiness knows."""
    world.store.up, world.spool.full = False, True
    with pytest.raises(SpoolFull):
        world.acceptor.accept(batch())
    assert world.acceptor.spool_failing
    world.clock.pass_s(60)
    assert not world.acceptor.spool_failing


def test_unknown_failure_is_not_swallowed(world: World) -> None:
    """An error that nobody planned for promises nothing."""
    world.store.write = lambda batch: 1 / 0  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        world.acceptor.accept(batch())
    assert [] == world.spool.records


def test_retention_edges(world: World) -> None:
    """The first and last instant are kept; a millisecond beyond is refused by line, with the reason."""
    first, last = NOW_MS - 10 * DAY_MS, NOW_MS + 3_600_000
    accepted = world.acceptor.accept(batch(first - 1, first, last, last + 1))
    assert [10, 40] == [error.line for error in accepted.errors]
    assert all("retention" in error.reason for error in accepted.errors)
    assert [first, last] == world.store.batches[0].times_ms
    assert Receipt("stored", 4) == accepted.receipt


def test_all_outside_retention(world: World) -> None:
    """Nothing is written when nothing is left."""
    accepted = world.acceptor.accept(batch(0))
    assert (0, 1, 0) == (accepted.receipt.points, len(accepted.errors), world.store.tries)


def test_received_ascends_although_the_clock_does_not(world: World) -> None:
    """Two batches in one µs, and one after the clock stepped back, keep their order."""
    for step in (0, 0, -5_000_000):
        world.clock.us += step
        world.acceptor.accept(batch())
    assert [NOW_US, NOW_US + 1, NOW_US + 2] == [b.received for b in world.store.batches]


def test_block_keeps_its_own_received(world: World) -> None:
    """A gateway's acceptance stands, unless its clock is ahead of ours."""
    world.acceptor.accept(batch(received=NOW_US - 99))
    world.acceptor.accept(batch(received=NOW_US + 99))
    assert [NOW_US - 99, NOW_US] == [b.received for b in world.store.batches]


def test_store_that_is_down_is_not_asked_by_everyone(world: World) -> None:
    """After a failure the spool is used at once; one request tries again after a pause."""
    world.store.up = False
    for _ in range(100):
        world.acceptor.accept(batch())
    assert (1, 100) == (world.store.tries, len(world.spool.records))
    world.clock.pass_s(1)
    world.acceptor.accept(batch())
    world.acceptor.accept(batch())
    assert 2 == world.store.tries
    world.clock.pass_s(600)
    world.store.up = True
    assert "stored" == world.acceptor.accept(batch()).receipt.durability
    assert "stored" == world.acceptor.accept(batch()).receipt.durability
    assert not world.acceptor.store_failing


def test_store_that_somebody_else_reached_is_back(world: World) -> None:
    """The drain's word counts: an idle service would else go on saying that its store fails."""
    world.store.up = False
    world.acceptor.accept(batch())
    assert world.acceptor.store_failing
    world.acceptor.store_answered()
    assert not world.acceptor.store_failing
    world.store.up = True
    assert world.acceptor.accept(batch()).receipt.durability == "stored"


def test_pause_is_bounded(world: World) -> None:
    """However long the store was down, it is used again within seconds."""
    world.store.up = False
    for _ in range(100):
        world.acceptor.accept(batch())
        world.clock.pass_s(60)
    world.acceptor.accept(batch())
    world.store.up = True
    world.clock.pass_s(5.1)
    assert "stored" == world.acceptor.accept(batch()).receipt.durability


def test_together_stored(world: World) -> None:
    """Batches that are accepted together go to the store in one call, each with its own answer."""
    results = world.acceptor.accept_together([batch(), batch(0), batch(NOW_MS, NOW_MS - 1)])
    assert [("stored", 2, 0), ("stored", 0, 1), ("stored", 4, 0)] == [
        (a.receipt.durability, a.receipt.points, len(a.errors)) for a in results if isinstance(a, Accepted)
    ]
    assert (1, [NOW_US, NOW_US + 1]) == (world.store.tries, [b.received for b in world.store.batches])
    assert (6, 0) == (world.acceptor.stored_points, world.acceptor.spooled_points)


def test_together_spooled(world: World) -> None:
    """When the store fails all of them are spooled, and while it is down none of them waits for it."""
    world.store.up = False
    for _ in range(3):
        results = world.acceptor.accept_together([batch(), batch()])
        assert ["spooled"] * 2 == [a.receipt.durability for a in results if isinstance(a, Accepted)]
        world.clock.pass_s(60)
    assert (1, 6) == (world.store.tries, len(world.spool.records))
    assert world.acceptor.probe_due
    world.store.up = True
    assert "stored" == world.acceptor.accept(batch()).receipt.durability
    assert not world.acceptor.probe_due
    world.acceptor.accept_together([batch(), batch()])
    assert 3 == len(world.store.batches)


def test_together_each_has_its_own_promise(world: World) -> None:
    """Who found no room in the spool is told so; the others are promised."""
    world.store.up, world.spool.room = False, 1
    first, second = world.acceptor.accept_together([batch(), batch()])
    assert isinstance(first, Accepted)
    assert isinstance(second, SpoolFull)
    assert world.acceptor.spool_failing


def test_together_one_that_the_store_chokes_on(world: World) -> None:
    """It fails alone: the others are tried one by one."""
    poison = Batch(sensors=["poison"], times_ms=[NOW_MS], layouts=[("m",)], values=[(1.0,)])
    healthy = world.store.write

    def write(one: Batch) -> None:
        if one.sensors == ["poison"]:
            raise TypeError("a fault of ours")
        healthy(one)

    world.store.write = write  # type: ignore[method-assign]
    results = world.acceptor.accept_together([batch(), poison, batch()])
    assert [Accepted, TypeError, Accepted] == [type(result) for result in results]
    assert (2, []) == (len(world.store.batches), world.spool.records)
