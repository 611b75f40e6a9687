"""What every store must do; each backend's test class inherits it and gives the fixture ``store``.

Sensor names are made unique per test, so that backends may share one database between tests.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace

import pytest

from fieldring.model import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    Arrivals,
    Batch,
    Flag,
    HourFlags,
    Mark,
    Point,
    Row,
    Store,
)
from fieldring.store.marks import shard_of

SHARDS = 4
DAY = 1_700_006_400_000  # 2023-11-15T00:00:00Z
OLD = 994_000_000_000 - 994_000_000_000 % DAY_MS  # 2001-07-01: the age of real test data


def batch(
    *rows: tuple[str, int, dict[str, float | str]],
    received: int,
    attributes: dict[str, dict[str, str]] | None = None,
) -> Batch:
    """A batch of (sensor, time_ms, {metric: value}) rows."""
    made = Batch(received=received, attributes=attributes or {})
    for line, (sensor, time_ms, fields) in enumerate(rows, 1):
        made.append(Row(sensor, time_ms, tuple(fields), tuple(fields.values())), line=line)
    return made


def values(
    store: Store, sensor: str, start_ms: int = DAY, end_ms: int = DAY + DAY_MS
) -> dict[tuple[int, str], object]:
    return {(p.time_ms, p.metric): p.value for p in store.points(sensor, start_ms=start_ms, end_ms=end_ms)}


class StoreContract:
    """Points are keyed by (sensor, time, metric); the highest ``received`` stands."""

    def test_points_come_back_equal_ordered_and_with_their_receipt(self, store: Store, sensor: str) -> None:
        """Numbers, texts, extremes and odd names, ordered by time and metric."""
        fields: dict[str, float | str] = {
            "no2": 41.5,
            "zero": 0.0,
            "tiny": 5e-324,
            "huge": -1.7976931348623157e308,
            "third": 1 / 3,
            "text": "12",
            "empty": "",
            "odd {a=b,c=d}": "grüße \U0001f321 'x'; --",
        }
        store.write(batch((sensor, DAY + 5, {"no2": 1.0}), (sensor, DAY, fields), received=7))
        found = list(store.points(sensor, start_ms=DAY, end_ms=DAY + DAY_MS))
        expected = [Point(sensor, DAY, metric, value, 7) for metric, value in sorted(fields.items())]
        assert [*expected, Point(sensor, DAY + 5, "no2", 1.0, 7)] == found
        assert [type(p.value) for p in expected] == [type(p.value) for p in found[:-1]]

    def test_range_has_its_start_and_not_its_end(self, store: Store, sensor: str) -> None:
        """[start, end) over midnight, and the metrics asked for only."""
        times = [DAY - 1, DAY, DAY + DAY_MS - 1, DAY + DAY_MS]
        store.write(batch(*((sensor, t, {"a": 1.0, "b": 2.0}) for t in times), received=1))
        assert [(DAY, "a"), (DAY, "b"), (DAY + DAY_MS - 1, "a"), (DAY + DAY_MS - 1, "b")] == list(
            values(store, sensor)
        )
        only = store.points(sensor, start_ms=DAY - 1, end_ms=DAY + DAY_MS + 1, metrics=iter(["b"]))
        assert [(t, "b") for t in times] == [(p.time_ms, p.metric) for p in only]
        assert [] == list(store.points(sensor, start_ms=DAY, end_ms=DAY))
        assert [] == list(store.points(sensor, start_ms=DAY, end_ms=DAY + 1, metrics=[]))
        assert [] == list(store.points("no such sensor", start_ms=0, end_ms=DAY))

    def test_same_batch_again_changes_nothing(self, store: Store, sensor: str) -> None:
        """A retry is idempotent."""
        sent = batch((sensor, DAY, {"a": 1.0, "t": "x"}), received=5)
        store.write(sent)
        before = list(store.points(sensor, start_ms=DAY, end_ms=DAY + 1))
        store.write(sent)
        assert before == list(store.points(sensor, start_ms=DAY, end_ms=DAY + 1))

    @pytest.mark.parametrize(
        ("second", "expected"),
        [
            ([{"a": 9.0}], {"a": 9.0, "b": 2.0, "c": 3.0}),
            ([{"a": 9.0, "b": 8.0, "c": 7.0, "d": 6.0}], {"a": 9.0, "b": 8.0, "c": 7.0, "d": 6.0}),
            ([{"b": 8.0}, {"c": 7.0, "a": 9.0}], {"a": 9.0, "b": 8.0, "c": 7.0}),
            ([{"c": 3.5, "b": 2.5, "a": 1.5}], {"a": 1.5, "b": 2.5, "c": 3.5}),
            ([{"b": "text now"}], {"a": 1.0, "b": "text now", "c": 3.0}),
        ],
        ids=["subset", "superset", "regrouped", "reordered", "number_becomes_text"],
    )
    @pytest.mark.parametrize("in_order", [True, False], ids=["in_order", "correction_first"])
    def test_later_receipt_wins_however_points_are_grouped(
        self,
        store: Store,
        sensor: str,
        second: list[dict[str, float | str]],
        expected: dict[str, float | str],
        in_order: bool,
    ) -> None:
        """A correction stands per key, and an older spool that is drained after it never overwrites it."""
        first = batch((sensor, DAY, {"a": 1.0, "b": 2.0, "c": 3.0}), received=100)
        later = batch(*((sensor, DAY, fields) for fields in second), received=200)
        for sent in (first, later) if in_order else (later, first):
            store.write(sent)
        assert expected == {metric: value for (_, metric), value in values(store, sensor).items()}
        receipts = {p.metric: p.received for p in store.points(sensor, start_ms=DAY, end_ms=DAY + 1)}
        corrected = {metric for fields in second for metric in fields}
        assert {m: 200 if m in corrected else 100 for m in expected} == receipts

    def test_many_rows_of_many_sensors_and_days(self, store: Store, sensor: str) -> None:
        """A batch over sensors, days and layouts is stored whole; nothing leaks between sensors."""
        rows = [
            (f"{sensor}-{n % 7}", DAY + n * 1_000_003 % (4 * DAY_MS), {f"m{n % 3}": float(n), "x": float(-n)})
            for n in range(3000)
        ]
        store.write(batch(*rows, received=1))
        expected: dict[str, dict[tuple[int, str], float]] = {}
        for name, time_ms, fields in rows:
            for metric, value in fields.items():
                expected.setdefault(name, {})[time_ms, metric] = value
        for name, points in expected.items():
            found = values(store, name, DAY, DAY + 4 * DAY_MS)
            assert points == found
            assert sorted(points) == list(found)

    def test_long_text_and_wide_rows(self, store: Store, sensor: str) -> None:
        """Rows that are larger than a statement's usual size."""
        wide: dict[str, float | str] = {f"metric_{n:04d}": float(n) for n in range(800)}
        store.write(batch((sensor, DAY, wide), (sensor, DAY + 1, {"log": "x" * 60_000}), received=1))
        found = values(store, sensor)
        assert "x" * 60_000 == found.pop((DAY + 1, "log"))
        assert {(DAY, metric): value for metric, value in wide.items()} == found

    def test_long_names_and_many_attributes(self, store: Store, sensor: str) -> None:
        """Names and attributes at the size that decoders let through: nothing that a ring must refuse."""
        name = f"{sensor}-{'n' * 900}"
        metrics: dict[str, float | str] = {f"m{n:03d}{'x' * 900}": float(n) for n in range(100)}
        attributes = {f"tag{n:02d}": "v" * 4000 for n in range(20)}
        store.write(batch((name, DAY, metrics), received=1, attributes={name: attributes}))
        info = store.sensor(name)
        assert info is not None
        assert attributes == dict(info.attributes)
        assert tuple(sorted(metrics)) == info.metrics
        assert 100 == len(values(store, name))

    def test_decades_old_points_are_stored_and_read_over_a_long_range(
        self, store: Store, sensor: str
    ) -> None:
        """Data of 2001 and of today in one sensor, read over all years between."""
        store.write(batch((sensor, OLD, {"no2": 1.0}), (sensor, DAY, {"no2": 2.0}), received=1))
        started = time.monotonic()
        found = values(store, sensor, OLD - 400 * DAY_MS, DAY + 400 * DAY_MS)
        assert {(OLD, "no2"): 1.0, (DAY, "no2"): 2.0} == found
        assert time.monotonic() - started < 5

    def test_reader_may_stop_early(self, store: Store, sensor: str) -> None:
        """An iterator that is dropped half-way leaves nothing behind and blocks no writer."""
        store.write(batch(*((sensor, DAY + n, {"a": float(n)}) for n in range(2500)), received=1))
        reader = store.points(sensor, start_ms=DAY, end_ms=DAY + DAY_MS)
        assert [0.0, 1.0, 2.0] == [p.value for p in itertools.islice(reader, 3)]
        store.write(batch((sensor, DAY, {"a": -1.0}), received=2))
        del reader
        assert -1.0 == values(store, sensor)[DAY, "a"]

    def test_concurrent_writers_lose_nothing(self, store: Store, sensor: str) -> None:
        """Many threads write to the same sensor and key; the highest receipt stands."""

        def work(worker: int) -> None:
            for n in range(10):
                store.write(
                    batch(
                        (sensor, DAY, {"same": float(worker)}),
                        (sensor, DAY + 1 + worker * 100 + n, {"own": 1.0}),
                        received=1000 + worker,
                    )
                )

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = values(store, sensor)
        assert 7.0 == found[DAY, "same"]
        assert 81 == len(found)

    # -- sensors

    def test_registry_knows_what_was_written(self, store: Store, sensor: str) -> None:
        """Metrics, attributes, first and last time; the listing is ordered by name."""
        store.write(
            batch(
                (sensor, DAY + 50, {"b": 1.0}),
                (f"{sensor}-2", DAY, {"a": 1.0}),
                received=1,
                attributes={sensor: {"site": "roof", "unit": "µg"}},
            )
        )
        store.write(batch((sensor, DAY + 10, {"a": 1.0}), (sensor, DAY + 90, {"a": 1.0}), received=2))
        info = store.sensor(sensor)
        assert info is not None
        assert (sensor, ("a", "b"), DAY + 10, DAY + 90) == (
            info.sensor,
            info.metrics,
            info.first_ms,
            info.last_ms,
        )
        assert {"site": "roof", "unit": "µg"} == dict(info.attributes)
        listed = {i.sensor: i for i in store.sensors()}
        assert sorted(listed) == list(listed)
        assert ("a", "b") == listed[sensor].metrics
        assert {"site": "roof", "unit": "µg"} == dict(listed[sensor].attributes)
        assert DAY <= listed[sensor].first_ms <= listed[sensor].last_ms <= DAY + 90
        assert ("a",) == listed[f"{sensor}-2"].metrics
        assert store.sensor("no such sensor") is None

    def test_attribute_change_is_recorded_and_an_older_one_does_not_win(
        self, store: Store, sensor: str
    ) -> None:
        """Per attribute the highest receipt stands, and each change can be looked up."""
        for received, attributes in [
            (10, {"site": "roof", "kind": "no2"}),
            (30, {"site": "yard"}),
            (20, {"site": "late"}),
            (40, {"site": "yard"}),
            (35, {"site": "late again"}),
        ]:
            store.write(batch((sensor, DAY, {"a": 1.0}), received=received, attributes={sensor: attributes}))
        info = store.sensor(sensor)
        assert info is not None
        assert {"site": "yard", "kind": "no2"} == dict(info.attributes)
        changes = store.attribute_changes(sensor)
        assert [(10, "kind", "no2"), (10, "site", "roof"), (30, "site", "yard")] == [
            change for change in changes if change[0] != 20
        ]

    def test_many_batches_at_once_are_as_one_after_the_other(self, store: Store, sensor: str) -> None:
        """What a drain does: each batch keeps its own receipt, whatever their order."""
        store.write_many(
            [
                batch((sensor, DAY, {"a": 3.0}), received=30, attributes={sensor: {"site": "c"}}),
                batch((sensor, DAY, {"a": 1.0, "b": 1.0}), received=10, attributes={sensor: {"site": "a"}}),
                Batch(received=15),
                batch((sensor, DAY + 1, {"a": 2.0}), (sensor, DAY, {"a": 2.0}), received=20),
            ]
        )
        assert {(DAY, "a"): 3.0, (DAY, "b"): 1.0, (DAY + 1, "a"): 2.0} == values(store, sensor)
        assert [30, 10, 20] == [p.received for p in store.points(sensor, start_ms=DAY, end_ms=DAY + 2)]
        info = store.sensor(sensor)
        assert info is not None
        assert {"site": "c"} == dict(info.attributes)
        store.write_many([])

    # -- marks

    def test_every_hour_that_got_data_is_marked_once_at_its_arrival(self, store: Store, sensor: str) -> None:
        """Marks stand under the minute of arrival and the sensor's shard, one per hour."""
        before = int(time.time()) // 60
        for received in (1, 2, 3):
            store.write(
                batch(
                    (sensor, DAY + 1, {"a": 1.0}),
                    (sensor, DAY + HOUR_MS - 1, {"a": 1.0}),
                    (sensor, DAY - 1, {"a": 1.0}),
                    received=received,
                )
            )
        after = int(time.time()) // 60
        own = shard_of(sensor, SHARDS)
        found = [
            m for minute in range(before, after + 1) for m in store.marks(own, minute) if m.sensor == sensor
        ]
        assert {Mark(sensor, DAY - HOUR_MS), Mark(sensor, DAY)} == set(found)
        assert len(found) <= 2 * (after - before + 1)
        others = [m for s in range(SHARDS) if s != own for m in store.marks(s, after)]
        assert sensor not in {m.sensor for m in others}
        assert [] == [m for m in store.marks(own, before - 5) if m.sensor == sensor]

    def test_minutes_with_marks_are_named(self, store: Store, sensor: str) -> None:
        """Those of the shard only, after the first and up to the second bound."""
        before = int(time.time()) // 60
        store.write(batch((sensor, DAY, {"a": 1.0}), received=1))
        after = int(time.time()) // 60
        own = shard_of(sensor, SHARDS)
        found = store.marked_minutes(own, after=before - 1, upto=after)
        assert [m for m in range(before, after + 1) if store.marks(own, m)] == found
        assert [] == store.marked_minutes(own, after=after, upto=after + 60)
        assert [] == store.marked_minutes(own, after=before - 600, upto=before - 500)

    # -- flags

    def test_flags_are_replaced_whole_and_never_by_an_older_verdict(self, store: Store, sensor: str) -> None:
        """One row per metric and hour; the verdict of the latest read stands."""
        first = HourFlags(
            sensor,
            "no2",
            DAY,
            ((DAY + 1, Flag.FAIL, ("gross_range", "spike")), (DAY + 9, Flag.SUSPECT, ("spike",))),
            "v1",
            50,
            1000,
            2 << 32 | 0xFFFF_FFFF,
        )
        store.write_flags([first, replace(first, metric="pm10", bad=())])
        assert [first, replace(first, metric="pm10", bad=())] == list(
            store.hour_flags(sensor, start_ms=DAY, end_ms=DAY + HOUR_MS)
        )
        newer = replace(
            first, bad=((DAY + 3, Flag.SUSPECT, ("flat_line",)),), rules_version="v2", judged_us=2000
        )
        store.write_flags([newer])
        store.write_flags([replace(first, judged_us=1500)])
        found = list(store.hour_flags(sensor, start_ms=DAY, end_ms=DAY + HOUR_MS))
        assert [newer, replace(first, metric="pm10", bad=())] == found
        assert all(isinstance(flag, Flag) for f in found for _, flag, _ in f.bad)

    def test_flags_of_hours_that_overlap_the_range(self, store: Store, sensor: str) -> None:
        """Hours are found by overlap, over midnight, ordered by hour and metric."""
        hours = [DAY + n * HOUR_MS for n in range(-2, 3)]
        store.write_flags(
            [
                HourFlags(sensor, metric, hour, (), "v1", 1, 1)
                for hour in reversed(hours)
                for metric in ("b", "a")
            ]
        )
        found = [
            (f.hour_ms, f.metric)
            for f in store.hour_flags(sensor, start_ms=DAY - 1, end_ms=DAY + HOUR_MS + 1)
        ]
        assert [(hour, metric) for hour in hours[1:4] for metric in ("a", "b")] == found
        assert [] == list(store.hour_flags("no such sensor", start_ms=DAY, end_ms=DAY + HOUR_MS))

    # -- leases and cursors

    def test_lease_is_held_by_one_and_fences_the_others(self, store: Store, shard: int) -> None:
        """A second owner gets nothing until the lease runs out; then it gets a higher fence."""
        # Long enough for the calls of a busy machine to come before it runs out.
        first = store.lease(shard, "a", ttl_s=5)
        assert first is not None
        assert store.lease(shard, "b", ttl_s=60) is None
        assert first == store.lease(shard, "a", ttl_s=5)
        deadline = time.monotonic() + 30
        while (second := store.lease(shard, "b", ttl_s=60)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert second > first
        assert store.lease(shard, "a", ttl_s=60) is None

    def test_only_one_of_many_gets_a_free_lease(self, store: Store, shard: int) -> None:
        """Owners that race for a lease at the same time: exactly one wins."""
        results: list[int | None] = []
        barrier = threading.Barrier(6)

        def race(owner: str) -> None:
            barrier.wait()
            results.append(store.lease(shard, owner, ttl_s=60))

        threads = [threading.Thread(target=race, args=(f"o{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 == len([fence for fence in results if fence is not None])

    def test_cursor_moves_on_only_for_the_newest_fence(self, store: Store, shard: int) -> None:
        """The cursor starts at -1, never goes back, and ignores who lost the lease."""
        assert -1 == store.cursor(shard)
        fence = store.lease(shard, "a", ttl_s=1)
        assert fence is not None
        store.set_cursor(shard, 28_000_000, fence=fence)
        store.set_cursor(shard, 27_000_000, fence=fence)
        assert 28_000_000 == store.cursor(shard)
        deadline = time.monotonic() + 30
        while (second := store.lease(shard, "b", ttl_s=60)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        store.set_cursor(shard, 28_000_009, fence=fence)
        assert 28_000_000 == store.cursor(shard)
        store.set_cursor(shard, 28_000_005, fence=second)
        assert 28_000_005 == store.cursor(shard)

    def test_ping_answers(self, store: Store) -> None:
        """A store that works says so by returning."""
        store.ping()

    def test_minute_of_marks_is_epoch_minutes(self) -> None:
        """The unit that analyse counts cursors in."""
        assert 60_000 == MINUTE_MS

    def test_arrivals_of_gateways(self, store: Store, sensor: str) -> None:
        """A run replaces itself only; each gateway has its own, in order, with numbers of 63 bits."""
        gateway, epoch = sensor, (1 << 63) - 1
        run = Arrivals(gateway, epoch, 1, 5, "w:1", 3, 1000)
        others = [
            Arrivals(gateway, epoch, 1, 4, "w:2", 1, 900),
            Arrivals(gateway, epoch, 7, 10**17, "w:1", 0, 1001),
            Arrivals(f"{gateway}2", 1, 1, 1, "w:1", 1, 1),
        ]
        store.record_arrivals([run, *others])
        longer = replace(run, last=6, oldest=6, seen_ms=2000)
        store.record_arrivals([longer])
        store.record_arrivals([])
        assert [longer, *others[:2]] == store.arrivals(gateway)
        assert [] == store.arrivals(f"{gateway}3")
