"""The sensors' registry without a ring: which statements batches call for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from contract import DAY, batch

from fieldring.store import _registry
from fieldring.store._registry import Registry


class Row:
    """The attributes of one sensor as a ring keeps them: the highest timestamp stands."""

    def __init__(self) -> None:
        self.attributes: dict[str, tuple[int, str]] = {}
        self.writes = 0

    def prepare(self, query: str) -> Any:
        class Prepared:
            @staticmethod
            def bind(values: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
                return query, values

        return Prepared

    def rows(self, query: str, values: tuple[Any, ...]) -> Iterator[Any]:
        found = {name: value for name, (_, value) in self.attributes.items()}
        yield ((tuple(found), tuple(found.values())) if found else None,)

    def apply(self, statements: list[Any]) -> None:
        for query, values in statements:
            if "attributes = attributes +" in query:
                self.writes += 1
                received, changed = values[:2]
                for name, value in changed.items():
                    if received >= self.attributes.get(name, (-1, ""))[0]:
                        self.attributes[name] = (received, value)


class Host:
    """One process's registry."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.registry = Registry(row, interval_s=10)  # type: ignore[arg-type]

    def write(self, received: int, **attributes: str) -> None:
        made = batch(("s", DAY, {"a": 1.0}), received=received, attributes={"s": attributes})
        statements, confirm = self.registry.updates([made])
        self.row.apply(statements)
        confirm()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(_registry.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(_registry, "together", list)
    return now


def test_the_attribute_accepted_last_stands_whichever_host_took_it(clock: list[float]) -> None:
    """A host that knew the value from before never wrote it again over another host's."""
    row = Row()
    one, two = Host(row), Host(row)
    one.write(10, device_clock="ok", site="roof")
    clock[0] += 60
    two.write(20, device_clock="ahead")
    one.write(30, device_clock="ok")
    assert row.attributes == {"device_clock": (30, "ok"), "site": (10, "roof")}


def test_an_attribute_that_comes_again_and_again_costs_a_write_per_interval(clock: list[float]) -> None:
    """The last of them is written by the next batch after the interval, also if that has none."""
    row = Row()
    host = Host(row)
    for received in range(10, 20):
        host.write(received, site="roof")
    assert row.writes == 2
    clock[0] += 10
    host.write(20)
    assert (row.writes, row.attributes) == (3, {"site": (19, "roof")})
    clock[0] += 10
    host.write(21)
    assert row.writes == 3


def test_an_old_value_that_is_confirmed_late_does_not_win(clock: list[float]) -> None:
    """A spool drained by one host does not undo what another accepted since."""
    row = Row()
    one, two = Host(row), Host(row)
    one.write(10, site="roof")
    two.write(30, site="yard")
    clock[0] += 60
    one.write(20, site="roof")
    assert row.attributes == {"site": (30, "yard")}
