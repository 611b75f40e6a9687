"""Which blocks arrived, as the store has it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from fieldring.errors import StoreUnavailable
from fieldring.model import Arrivals
from fieldring.query import gaps_of
from fieldring.web.arrivals import ArrivalBook


class Memory:
    """Keeps runs as a store does; away while ``away``."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, int, int, str], Arrivals] = {}
        self.away = False
        self.writes = 0

    def record_arrivals(self, runs: Sequence[Arrivals]) -> None:
        if self.away:
            raise StoreUnavailable("away")
        self.writes += 1
        self.runs |= {(run.gateway, run.epoch, run.first, run.writer): run for run in runs}


@pytest.fixture
def store() -> Memory:
    return Memory()


class Book(ArrivalBook):
    """Writes after each block, as ``receive`` does; its clock stands until it is set."""

    def __init__(self, store: Memory, *, now_ms: int = 5) -> None:
        self.now = 0.0
        super().__init__(store, node_name="n", now_ms=lambda: now_ms, monotonic=lambda: self.now)  # type: ignore[arg-type]

    def take(self, epoch: int, seq: int, count: int = 1, *, gateway: str = "gw", oldest: int = 0) -> None:
        self.arrived(gateway, epoch, seq, count, oldest=oldest)
        self.write()


@pytest.fixture
def book(store: Memory) -> Book:
    return Book(store)


def spans(store: Memory) -> list[tuple[int, int, int]]:
    return sorted((run.first, run.last, run.oldest) for run in store.runs.values())


def test_runs_grow_and_holes_begin_new_ones(store: Memory, book: Book) -> None:
    """In order, behind a hole, again, and into the hole."""
    for seq in (1, 2, 3, 7, 8):
        book.take(1, seq, 1, oldest=seq)
    assert spans(store) == [(1, 3, 3), (7, 8, 8)]
    writes = store.writes
    book.take(1, 2, 1, oldest=2)
    assert store.writes == writes
    book.take(1, 4, 2)
    book.take(2, 1, 1)
    assert [len(one.gaps) for one in gaps_of(store.runs.values())] == [1, 0]


def test_runs_wait_while_the_store_is_away(store: Memory, book: Book) -> None:
    """They are written with the next block, or at the end."""
    store.away = True
    for seq in (1, 2, 5):
        book.take(1, seq, 1)
    assert store.runs == {}
    store.away = False
    book.now = 60
    book.take(1, 5, 1)
    assert spans(store) == [(1, 2, 0), (5, 5, 0)]
    store.away = True
    book.take(1, 6, 1)
    store.away = False
    book.flush()
    assert spans(store) == [(1, 2, 0), (5, 6, 0)]


def test_another_start_has_its_own_runs(store: Memory, book: Book) -> None:
    """A process that is sent the same first number again does not shorten what it knew before."""
    for seq in (1, 2, 3):
        book.take(1, seq, 1)
    Book(store, now_ms=6).take(1, 1, 1)
    assert spans(store) == [(1, 1, 0), (1, 3, 0)]


def test_a_store_that_hangs_holds_up_each_gateway_once(store: Memory, book: Book) -> None:
    """They waited for it one after another, longer than a gateway waits for an answer."""
    entered, leave = threading.Event(), threading.Event()
    calls: list[int] = []

    def hang(runs: Sequence[Arrivals]) -> None:
        calls.append(len(runs))
        entered.set()
        leave.wait(20)
        raise StoreUnavailable("timed out")

    gateways = [f"gw{number}" for number in range(8)]
    with ThreadPoolExecutor(len(gateways)) as pool:
        store.record_arrivals = hang  # type: ignore[method-assign]
        waiting = [pool.submit(book.take, 1, 1, gateway=gateways[0])]
        assert entered.wait(20)
        waiting += [pool.submit(book.take, 1, 1, gateway=gateway) for gateway in gateways[1:]]
        # Noting waits for nobody.
        book.arrived("gw0", 1, 2, 1)
        leave.set()
        for one in waiting:
            one.result(20)
        book.take(1, 3, gateway="gw0")
        assert len(calls) == 1

        entered.clear()
        leave.clear()
        book.now = 60
        trying = pool.submit(book.take, 1, 4, gateway="gw0")
        assert entered.wait(20)
        for gateway in gateways[1:]:
            book.take(1, 2, gateway=gateway)
        assert not trying.done()
        leave.set()
        trying.result(20)
        assert len(calls) == 2
    del store.record_arrivals
    book.now = 120
    book.write()
    found = sorted((run.gateway, run.first, run.last) for run in store.runs.values())
    assert found == [("gw0", 1, 4), *((gateway, 1, 2) for gateway in gateways[1:])]


def test_runs_that_a_defect_kept_from_the_store_wait_too(store: Memory, book: Book) -> None:
    """Whatever the store raises, what came is not forgotten."""

    def fail(_: Sequence[Arrivals]) -> None:
        raise RuntimeError("a defect")

    store.record_arrivals = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        book.take(1, 1)
    del store.record_arrivals
    book.flush()
    assert spans(store) == [(1, 1, 0)]
