"""Which blocks arrived, as the store has it."""

from __future__ import annotations

from collections.abc import Sequence

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


@pytest.fixture
def book(store: Memory) -> ArrivalBook:
    return ArrivalBook(store, node_name="n", now_ms=lambda: 5)  # type: ignore[arg-type]


def spans(store: Memory) -> list[tuple[int, int, int]]:
    return sorted((run.first, run.last, run.oldest) for run in store.runs.values())


def test_runs_grow_and_holes_begin_new_ones(store: Memory, book: ArrivalBook) -> None:
    """In order, behind a hole, again, and into the hole."""
    for seq in (1, 2, 3, 7, 8):
        book.arrived("gw", 1, seq, 1, oldest=seq)
    assert spans(store) == [(1, 3, 3), (7, 8, 8)]
    writes = store.writes
    book.arrived("gw", 1, 2, 1, oldest=2)
    assert store.writes == writes
    book.arrived("gw", 1, 4, 2)
    book.arrived("gw", 2, 1, 1)
    assert [len(one.gaps) for one in gaps_of(store.runs.values())] == [1, 0]


def test_runs_wait_while_the_store_is_away(store: Memory, book: ArrivalBook) -> None:
    """They are written with the next block, or at the end."""
    store.away = True
    for seq in (1, 2, 5):
        book.arrived("gw", 1, seq, 1)
    assert store.runs == {}
    store.away = False
    book.arrived("gw", 1, 5, 1)
    assert spans(store) == [(1, 2, 0), (5, 5, 0)]
    store.away = True
    book.arrived("gw", 1, 6, 1)
    store.away = False
    book.flush()
    assert spans(store) == [(1, 2, 0), (5, 6, 0)]


def test_another_start_has_its_own_runs(store: Memory, book: ArrivalBook) -> None:
    """A process that is sent the same first number again does not shorten what it knew before."""
    for seq in (1, 2, 3):
        book.arrived("gw", 1, seq, 1)
    ArrivalBook(store, node_name="n", now_ms=lambda: 6).arrived("gw", 1, 1, 1)  # type: ignore[arg-type]
    assert spans(store) == [(1, 1, 0), (1, 3, 0)]
