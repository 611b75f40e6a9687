"""The analyser against the embedded store: what a mark re-opens, in which order, and what it survives."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldring.analyse import Worker
from fieldring.errors import StoreUnavailable
from fieldring.model import HOUR_MS, Batch, Flag, HourFlags, Mark, Point, Row
from fieldring.quality import RulesFile, judge, parse
from fieldring.query import PointsQuery, stream
from fieldring.store.sqlite import SqliteStore

RULES = """{"version": "t1", "metrics": {"no2": {
  "gross_range": {"fail_span": [0, 500], "suspect_span": [0, 300]},
  "spike": {"suspect_threshold": 50, "fail_threshold": 100},
  "rate_of_change": {"threshold": 0.02},
  "flat_line": {"suspect_threshold": 10800, "fail_threshold": 21600, "tolerance": 0.01}}}}"""
T0 = 1_700_000_000_000 // HOUR_MS * HOUR_MS
NOW_S = T0 / 1000 + 500 * 3600


class Clock:
    """Seconds that stand still until moved; also what the lease's deadline is measured with."""

    def __init__(self, now: float = NOW_S) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def us(self) -> int:
        self.now += 0.000_001
        return int(self.now * 1e6)


class Counting(SqliteStore):
    """The embedded store, noting what is read and written, and failing when told to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reads: list[tuple[str, int, int]] = []
        self.verdicts: list[HourFlags] = []
        self.failures: set[str] = set()
        self.defect = False

    def marks(self, shard: int, minute: int) -> list[Mark]:
        if self.defect:
            raise RuntimeError("a fault of ours")
        return super().marks(shard, minute)

    def points(self, sensor: str, *, start_ms: int, end_ms: int, metrics: Any = None) -> Iterator[Point]:
        if "points" in self.failures:
            raise StoreUnavailable("told to fail")
        self.reads.append((sensor, start_ms, end_ms))
        return super().points(sensor, start_ms=start_ms, end_ms=end_ms, metrics=metrics)

    def write_flags(self, flags: Sequence[HourFlags]) -> None:
        if "write_flags" in self.failures:
            raise StoreUnavailable("told to fail")
        self.verdicts.extend(flags)
        super().write_flags(flags)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Counting]:
    store = Counting(tmp_path / "db", mark_shards=2, clock=clock)
    yield store
    store.close()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.json"
    path.write_text(RULES, encoding="utf-8")
    return path


def a_worker(store: SqliteStore, rules: Path, clock: Clock, owner: str = "a") -> Worker:
    return Worker(
        store,
        RulesFile(str(rules), check_interval_s=0, monotonic=clock),
        owner=owner,
        shards=2,
        mark_ttl_s=4 * 3600,
        clock_us=clock.us,
        monotonic=clock,
    )


@pytest.fixture
def worker(store: Counting, rules: Path, clock: Clock) -> Worker:
    return a_worker(store, rules, clock)


def put(
    store: SqliteStore,
    clock: Clock,
    values: dict[int, float | str],
    *,
    sensor: str = "s",
    metric: str = "no2",
) -> None:
    batch = Batch(received=clock.us())
    for time_ms, value in values.items():
        batch.append(Row(sensor, time_ms, (metric,), (value,)))
    store.write(batch)


def verdicts(store: SqliteStore, sensor: str = "s") -> dict[int, tuple[int, tuple[str, ...]]]:
    found = {}
    for hour in store.hour_flags(sensor, start_ms=0, end_ms=T0 + 10_000 * HOUR_MS):
        for time_ms, flag, tests in hour.bad:
            found[time_ms] = (int(flag), tests)
    return found


def hourly(values: Sequence[float], start: int = T0) -> dict[int, float]:
    return {start + i * HOUR_MS: v for i, v in enumerate(values)}


def test_the_flags_of_a_new_point_are_there_after_one_round(
    store: Counting, worker: Worker, clock: Clock
) -> None:
    """The open bucket is read in every round, so nothing waits for it to close."""
    put(store, clock, hourly([10, 900, 10]))
    worker.round()
    assert {T0 + HOUR_MS: (4, ("gross_range", "rate_of_change", "spike"))}.items() <= verdicts(store).items()


def test_what_waited_in_a_spool_reads_as_good_once_it_is_judged(
    store: Counting, worker: Worker, clock: Clock
) -> None:
    """Its ``received`` is older than what the verdict rests on, so that alone would say it was judged."""
    put(store, clock, {T0: 10.0, T0 + 120_000: 10.1})
    worker.round()

    def flags() -> list[int]:
        return [int(point.flag) for point in stream(store, PointsQuery(sensor="s"))]

    assert [1, 1] == flags()
    late = Batch(received=clock.us() - 1_000_000)
    late.append(Row("s", T0 + 60_000, ("no2",), (10.2,)))
    store.write(late)
    assert [2, 2, 2] == flags()
    worker.round()
    assert [1, 1, 1] == flags()


def test_a_metric_without_rules_gets_no_verdict(store: Counting, worker: Worker, clock: Clock) -> None:
    """Without a verdict its points read as not evaluated."""
    put(store, clock, hourly([10, 9e9, 10]), metric="unheard_of")
    worker.round()
    assert [] == store.verdicts


def test_text_values_are_left_alone(store: Counting, worker: Worker, clock: Clock) -> None:
    """A text takes no part, and does not hide the numbers around it."""
    put(store, clock, {T0: 10.0, T0 + 1000: "broken", T0 + 2000: 900.0})
    worker.round()
    assert [T0 + 2000] == [t for t, (flag, _) in verdicts(store).items() if flag == 4]


def test_the_next_point_gives_the_one_before_its_neighbour(
    store: Counting, worker: Worker, clock: Clock
) -> None:
    """Regression shape: a spike in the last value of an hour shows only when the next hour begins."""
    put(store, clock, hourly([10, 10, 160]))
    worker.round()
    assert "spike" not in verdicts(store)[T0 + 2 * HOUR_MS][1]
    put(store, clock, {T0 + 3 * HOUR_MS: 10.0})
    worker.round()
    assert (4, ("rate_of_change", "spike")) == verdicts(store)[T0 + 2 * HOUR_MS]


def test_a_late_point_reopens_the_flat_line_after_it(store: Counting, worker: Worker, clock: Clock) -> None:
    """A value that breaks a flat stretch clears the flags of later hours."""
    put(store, clock, hourly([1, 2, *[7.0] * 8]))
    worker.round()
    assert {T0 + 5 * HOUR_MS, T0 + 9 * HOUR_MS} <= verdicts(store).keys()
    put(store, clock, {T0 + 4 * HOUR_MS: 9.0})
    worker.round()
    assert {T0 + 8 * HOUR_MS, T0 + 9 * HOUR_MS} == verdicts(store).keys()


def test_nothing_new_is_neither_judged_nor_written_again(
    store: Counting, worker: Worker, clock: Clock
) -> None:
    """The mark of an open bucket is seen in every round; the verdict is written once."""
    put(store, clock, hourly([10, 11, 12]))
    worker.round()
    written = len(store.verdicts)
    store.reads.clear()
    clock.now += 2
    worker.round()
    assert (written, [("s", T0, T0 + 3 * HOUR_MS)]) == (len(store.verdicts), store.reads)


def test_live_data_reads_only_its_own_hour(store: Counting, worker: Worker, clock: Clock) -> None:
    """Margins come from what was read before."""
    put(store, clock, {T0 + i * 1000: 10.0 + i % 3 for i in range(3600)})
    put(store, clock, {T0 + HOUR_MS: 11.0})
    worker.round()
    clock.now += 100
    put(store, clock, {T0 + HOUR_MS + 1000: 12.0})
    worker.round()
    store.reads.clear()
    put(store, clock, {T0 + HOUR_MS + 2000: 13.0})
    clock.now += 2
    worker.round()
    assert [("s", T0 + HOUR_MS, T0 + 2 * HOUR_MS)] == store.reads


def test_a_closed_bucket_moves_the_cursor_and_an_open_one_does_not(
    store: Counting, worker: Worker, clock: Clock
) -> None:
    """A bucket closes after its minute plus write timeout plus skew."""
    put(store, clock, hourly([10]))
    minute = int(clock.now // 60)
    worker.round()
    assert minute > store.cursor(0)
    clock.now = (minute + 1) * 60 + 9.9
    worker.round()
    assert minute > store.cursor(0)
    clock.now = (minute + 1) * 60 + 10.1
    worker.round()
    assert (minute, minute) == (store.cursor(0), store.cursor(1))


def test_marks_that_arrived_while_nobody_judged_are_worked_off(
    store: Counting, worker: Worker, clock: Clock
) -> None:
    """The cursor leads through the buckets that closed meanwhile."""
    worker.round()
    put(store, clock, hourly([10, 900, 10]))
    clock.now += 3 * 3600
    for _ in range(5):
        worker.round()
    assert (4, ("gross_range", "rate_of_change", "spike")) == verdicts(store)[T0 + HOUR_MS]


def test_empty_minutes_of_a_long_absence_are_not_read(
    store: Counting, rules: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hours of buckets only those with marks, and the open ones, are read."""
    put(store, clock, hourly([10, 900, 10]))
    minute = int(clock.now // 60)
    clock.now += 3 * 3600
    read: list[int] = []
    marks = store.marks
    monkeypatch.setattr(store, "marks", lambda shard, m: read.append(m) or marks(shard, m))
    worker = a_worker(store, rules, clock)
    while worker.round():
        pass
    closed = store.cursor(0)
    assert closed > minute
    assert {minute} == {m for m in read if m <= closed}
    assert (4, ("gross_range", "rate_of_change", "spike")) == verdicts(store)[T0 + HOUR_MS]


def test_of_two_analysers_one_holds_a_shard(store: Counting, rules: Path, clock: Clock) -> None:
    """The second one takes over when the lease has run out."""
    first, second = a_worker(store, rules, clock, "a"), a_worker(store, rules, clock, "b")
    put(store, clock, hourly([10, 900, 10]))
    first.round()
    written = len(store.verdicts)
    second.round()
    assert (written, {}) == (len(store.verdicts), second._leases)
    clock.now += 31
    second.round()
    assert {0, 1} == set(second._leases)


def test_double_work_ends_in_the_same_verdicts(store: Counting, rules: Path, clock: Clock) -> None:
    """Judging everything again changes nothing."""
    put(store, clock, hourly([10, 900, 10, 10, 10, 10, 10, 10, 10]))
    a_worker(store, rules, clock).round()
    expected = verdicts(store)
    clock.now += 31
    a_worker(store, rules, clock, "b").round()
    assert expected == verdicts(store)
    assert expected


@pytest.mark.parametrize("call", ["points", "write_flags"])
def test_what_failed_half_way_is_done_again(store: Counting, worker: Worker, clock: Clock, call: str) -> None:
    """A store that fails in the middle of a round leaves no hour behind unjudged."""
    put(store, clock, hourly([10, 900, 10]))
    store.failures.add(call)
    with pytest.raises(StoreUnavailable):
        worker.round()
    assert {} == verdicts(store)
    store.failures.clear()
    worker.round()
    assert T0 + HOUR_MS in verdicts(store)


def test_it_survives_a_store_that_goes_away(store: Counting, rules: Path, clock: Clock) -> None:
    """``run`` backs off, goes on when the store is back, and ends when told to; a fault of ours is no end."""
    put(store, clock, hourly([10, 900, 10]))
    store.failures.add("points")
    worker = Worker(
        store,
        RulesFile(str(rules)),
        owner="a",
        shards=2,
        mark_ttl_s=4 * 3600,
        interval_s=0.01,
        retry_max_s=0.01,
        clock_us=clock.us,
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        failed = worker.metrics.rounds.labels("store_unavailable")
        wait(lambda: failed._value.get() >= 3)
        store.defect = True
        failed = worker.metrics.rounds.labels("failed")
        wait(lambda: failed._value.get() >= 3)
        store.defect = False
        store.failures.clear()
        wait(lambda: bool(verdicts(store)))
    finally:
        worker.stop()
        thread.join(5)
    assert not thread.is_alive()


def wait(condition: Any, seconds: float = 10) -> None:
    event = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        event.wait(0.02)
    pytest.fail("nothing happened")


def test_a_fault_with_one_sensor_does_not_stop_the_others(
    store: Counting, worker: Worker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted, and the sensor stays not evaluated."""

    def choke(checks: Any, times: Any, values: Any, *, hours: Any) -> Any:
        if values[0] == 666:
            raise ArithmeticError
        return judge(checks, times, values, hours=hours)

    monkeypatch.setattr("fieldring.analyse.worker.judge", choke)
    for sensor, value in (("a", 900), ("b", 666), ("c", 900)):
        put(store, clock, {T0: value}, sensor=sensor)
    worker.round()
    assert [True, False, True] == [bool(verdicts(store, sensor)) for sensor in "abc"]
    assert worker.metrics.errors._value.get() == 1


def test_new_rules_judge_what_is_marked_from_then_on(
    store: Counting, worker: Worker, rules: Path, clock: Clock
) -> None:
    """The verdict says which version it followed."""
    put(store, clock, hourly([10, 200, 10]))
    worker.round()
    rules.write_text('{"version": "t2", "metrics": {"no2": {"gross_range": {"fail_span": [0, 100]}}}}')
    worker.round()
    assert {T0 + HOUR_MS: (4, ("gross_range",))} == verdicts(store)
    assert {"t2"} == {h.rules_version for h in store.hour_flags("s", start_ms=T0, end_ms=T0 + HOUR_MS)}


def test_a_verdict_is_never_dated_after_its_read(store: Counting, worker: Worker, clock: Clock) -> None:
    """A point accepted after the verdict's read has a later time, so it reads as not evaluated."""
    put(store, clock, hourly([10, 10]))
    worker.round()
    before = max(v.judged_us for v in store.verdicts)
    put(store, clock, {T0 + 1: 11.0})
    (received,) = {p.received for p in store.points("s", start_ms=T0 + 1, end_ms=T0 + 2)}
    assert before < received
    assert all(v.read_received < received for v in store.verdicts)


def test_any_order_of_arrival_ends_in_the_verdicts_of_the_whole(
    store: Counting, worker: Worker, clock: Clock
) -> None:
    """Random batches, with rounds and time between them, against judging each hour over all data."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    level, series = 50.0, {}
    for i in range(400):
        if rng.random() < 0.1:
            continue
        if i in (150, 151, 152):
            continue
        level = level if 200 < i < 225 else max(1.0, round(level + rng.uniform(-20, 20), 1))
        series[T0 + i * (HOUR_MS // 2) + rng.randrange(5000)] = level * (8 if rng.random() < 0.02 else 1)
    keys = list(series)
    rng.shuffle(keys)
    while keys:
        size = rng.randrange(1, 40)
        put(store, clock, {k: series[k] for k in keys[:size]})
        keys = keys[size:]
        clock.now += rng.choice([0.5, 2, 30, 90])
        if rng.random() < 0.7:
            worker.round()
    for _ in range(4):
        clock.now += 60
        worker.round()

    times = np.array(sorted(series), dtype=np.int64)
    values = np.array([series[t] for t in times.tolist()])
    checks = parse(RULES, source="test").for_metric("no2")
    expected = {}
    for bad in judge(checks, times, values, hours=sorted({t - t % HOUR_MS for t in series})).values():
        for time_ms, flag, tests in bad:
            expected[time_ms] = (int(flag), tests)
    assert expected == verdicts(store)
    assert {Flag.SUSPECT, Flag.FAIL} <= {flag for flag, _ in expected.values()}
