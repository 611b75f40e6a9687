"""Points joined with their verdicts, over the embedded store."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldring.errors import InvalidRequest
from fieldring.model import DAY_MS, HOUR_MS, Batch, Flag, FlaggedPoint, HourFlags, Row, Value, fingerprint
from fieldring.query import PointsQuery, page, stream
from fieldring.store.sqlite import SqliteStore

T0 = 1_700_000_000_000 // DAY_MS * DAY_MS


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "db", retention_days=10_950)
    yield store
    store.close()


def put(store: SqliteStore, rows: dict[int, dict[str, Value]], *, received: int = 100) -> None:
    batch = Batch(received=received)
    for time_ms, values in rows.items():
        batch.append(Row("s", time_ms, tuple(values), tuple(values.values())))
    store.write(batch)


def judged(
    store: SqliteStore, *bad: tuple[int, Flag, tuple[str, ...]], metric: str = "a", upto: int = 100
) -> None:
    store.write_flags([HourFlags("s", metric, T0, bad, "1", upto, 1)])


def flags(store: SqliteStore, query: PointsQuery) -> dict[int, tuple[int, tuple[str, ...]]]:
    return {p.time_ms - T0: (int(p.flag), p.tests) for p in stream(store, query)}


def test_flags_of_a_judged_hour(store: SqliteStore) -> None:
    """Listed: its flag and tests. Not listed: good. Accepted after the verdict's read: not evaluated."""
    put(store, {T0: {"a": 1.0}, T0 + 1: {"a": 2.0}})
    put(store, {T0 + 2: {"a": 3.0}}, received=101)
    judged(store, (T0 + 1, Flag.FAIL, ("gross_range",)))
    assert {0: (1, ()), 1: (4, ("gross_range",)), 2: (2, ())} == flags(store, PointsQuery(sensor="s"))


def test_what_came_late_under_an_older_receipt_is_not_good(store: SqliteStore) -> None:
    """It had waited in a gateway's spool: nobody had judged it, and it read as good."""
    put(store, {T0: {"a": 1.0, "b": 1.0}, T0 + 1: {"a": 2.0}, T0 + 3: {"a": "text"}})
    put(store, {T0 + 5: {"a": 5.0}}, received=101)
    points = fingerprint(array("q", [T0, T0 + 1]).tobytes())
    bad = ((T0 + 1, Flag.FAIL, ("gross_range",)),)
    store.write_flags([HourFlags("s", "a", T0, bad, "1", 100, 1, points)])
    seen = {0: (1, ()), 1: (4, ("gross_range",)), 3: (2, ()), 5: (2, ())}
    query = PointsQuery(sensor="s", metric="a")
    assert seen == flags(store, query)
    put(store, {T0 + 2: {"a": 3.0}}, received=99)
    assert seen | {0: (2, ()), 2: (2, ())} == flags(store, query)
    store.write_flags(
        [HourFlags("s", "a", T0, bad, "1", 100, 2, fingerprint(array("q", [T0, T0 + 1, T0 + 2]).tobytes()))]
    )
    assert seen | {2: (1, ())} == flags(store, query)


def test_a_part_of_an_hour_has_the_flags_of_the_whole(store: SqliteStore) -> None:
    """Whoever asks for a part, or goes on within an hour, gets that part only, and as good."""
    times = list(range(T0, T0 + 2 * HOUR_MS, HOUR_MS // 4))
    put(store, {time_ms: {"a": 1.0} for time_ms in times})
    for hour in (T0, T0 + HOUR_MS):
        of_hour = [t for t in times if hour <= t < hour + HOUR_MS]
        points = fingerprint(array("q", of_hour).tobytes())
        store.write_flags([HourFlags("s", "a", hour, (), "1", 100, 1, points)])
    query = PointsQuery(sensor="s", start_ms=times[1], end_ms=times[6])
    assert {t - T0: (1, ()) for t in times[1:6]} == flags(store, query)
    first = page(store, query, limit=2)
    rest = page(store, query, limit=9, after=first.next)
    assert [(t, 1) for t in times[1:6]] == [(p.time_ms, p.flag) for p in first.points + rest.points]


def test_a_corrected_value_loses_its_flag(store: SqliteStore) -> None:
    """The verdict spoke of the value before."""
    put(store, {T0: {"a": 1.0}})
    judged(store, (T0, Flag.FAIL, ("spike",)))
    put(store, {T0: {"a": 2.0}}, received=101)
    assert {0: (2, ())} == flags(store, PointsQuery(sensor="s"))


def test_what_nobody_judged_is_not_evaluated(store: SqliteStore) -> None:
    """No verdict on the metric or the hour, or a text: 2."""
    put(store, {T0: {"a": "text", "b": 1.0}, T0 + HOUR_MS: {"a": 1.0}})
    judged(store)
    found = list(stream(store, PointsQuery(sensor="s")))
    assert [Flag.NOT_EVALUATED] * 3 == [p.flag for p in found]


def test_flags_filter(store: SqliteStore) -> None:
    """Only the flags asked for."""
    put(store, {T0 + i: {"a": float(i)} for i in range(4)})
    judged(store, (T0 + 1, Flag.FAIL, ("spike",)), (T0 + 3, Flag.SUSPECT, ("spike",)))
    bad = PointsQuery(sensor="s", flags=frozenset({Flag.SUSPECT, Flag.FAIL}))
    assert {1: (4, ("spike",)), 3: (3, ("spike",))} == flags(store, bad)


def test_start_is_included_and_end_is_not(store: SqliteStore) -> None:
    """Half-open, so that neighbouring queries meet without a gap or a double."""
    put(store, {T0 + i: {"a": float(i)} for i in range(4)})
    assert [1, 2] == list(flags(store, PointsQuery(sensor="s", start_ms=T0 + 1, end_ms=T0 + 3)))


def test_without_start_and_end_everything_is_given(store: SqliteStore) -> None:
    """Years that lie apart are found without walking through what lies between."""
    put(store, {T0 - 5000 * DAY_MS: {"a": 1.0}, T0: {"a": 2.0}, T0 + 40 * DAY_MS: {"b": 3.0}})
    expected = [-5000 * DAY_MS, 0, 40 * DAY_MS]
    assert expected == list(flags(store, PointsQuery(sensor="s")))
    assert expected[:2] == list(flags(store, PointsQuery(sensor="s", metric="a")))
    assert [] == list(stream(store, PointsQuery(sensor="unknown")))


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
def test_pages_make_up_the_whole(store: SqliteStore, limit: int) -> None:
    """Whatever the limit, nothing is lost or doubled where pages meet, also within one instant."""
    rng = random.Random(limit)
    rows: dict[int, dict[str, Value]] = {
        T0 + rng.randrange(60) * HOUR_MS * 9: {m: float(i) for m in "abc"[: rng.randint(1, 3)]}
        for i in range(20)
    }
    put(store, rows)
    query = PointsQuery(sensor="s")
    whole = list(stream(store, query))
    found: list[FlaggedPoint] = []
    cursor = None
    while True:
        part = page(store, query, limit=limit, after=cursor)
        assert len(part.points) <= limit
        found += part.points
        cursor = part.next
        if cursor is None:
            break
    assert whole == found
    assert len(whole) > 20


@pytest.mark.parametrize(
    "other",
    [
        PointsQuery(sensor="x"),
        PointsQuery(sensor="s", metric="a"),
        PointsQuery(sensor="s", start_ms=T0),
        PointsQuery(sensor="s", end_ms=T0 + DAY_MS),
        PointsQuery(sensor="s", flags=frozenset({Flag.FAIL})),
    ],
)
def test_a_cursor_is_refused_by_another_query(store: SqliteStore, other: PointsQuery) -> None:
    """It would skip or repeat points."""
    put(store, {T0: {"a": 1.0, "b": 2.0}})
    cursor = page(store, PointsQuery(sensor="s"), limit=1).next
    with pytest.raises(InvalidRequest, match="another query"):
        page(store, other, limit=1, after=cursor)


@pytest.mark.parametrize("text", ["x", "!!", "AAAA", "lQGhAQ", "é"])
def test_junk_is_no_cursor(store: SqliteStore, text: str) -> None:
    """Clear words, no crash."""
    with pytest.raises(InvalidRequest, match="cursor"):
        page(store, PointsQuery(sensor="s"), limit=1, after=text)
