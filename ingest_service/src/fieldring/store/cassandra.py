"""The ring as a store: rows with the acceptance time as write timestamp, merged per key on reading."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple
from typing import Any

from cassandra import ConsistencyLevel

from fieldring.model import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    Arrivals,
    Batch,
    HourFlags,
    Mark,
    Point,
    SensorInfo,
)
from fieldring.store._registry import BUCKETS, Registry, sensor_info
from fieldring.store._ring import Ring
from fieldring.store._rows import PartitionWriter, merge_rows, together
from fieldring.store._verdicts import packed, unpacked
from fieldring.store.marks import MarkMemo, marks_of, shard_of

__all__ = ["CassandraStore"]

_MAX_TTL_S = 630_720_000  # Cassandra's limit: 20 years
_LONGEST_TTL_DAYS = 7_300
_PERIOD_MS = 32 * DAY_MS
_MAX_REMEMBERED = 500_000
_DAYS_AT_ONCE = 16
_FENCE_SHIFT = 32

_INSERT_POINTS = (
    "INSERT INTO points (sensor, day, ts, layout, numbers, texts) VALUES (?, ?, ?, ?, ?, ?) "
    "USING TIMESTAMP ? AND TTL ?"
)
_INSERT_DAY = "INSERT INTO sensor_days (sensor, day) VALUES (?, ?) USING TTL ?"
_SELECT_POINTS = (
    "SELECT ts, numbers, texts, WRITETIME(numbers), WRITETIME(texts) FROM points "
    "WHERE sensor = ? AND day = ? AND ts >= ? AND ts < ?"
)
_SELECT_DAYS = "SELECT day FROM sensor_days WHERE sensor = ? AND day >= ? AND day <= ?"
_SELECT_ALL_DAYS = "SELECT day FROM sensor_days WHERE sensor = ?"
_SELECT_DAYS_BACKWARDS = "SELECT day FROM sensor_days WHERE sensor = ? ORDER BY day DESC"
_SELECT_FIRST = "SELECT ts FROM points WHERE sensor = ? AND day = ? LIMIT 1"
_SELECT_LAST = "SELECT ts FROM points WHERE sensor = ? AND day = ? ORDER BY ts DESC, layout DESC LIMIT 1"

_INSERT_MARK = "INSERT INTO marks (shard, minute, sensor, hour_ms) VALUES (?, ?, ?, ?) USING TTL ?"
_SELECT_MARKS = "SELECT sensor, hour_ms FROM marks WHERE shard = ? AND minute = ?"
_SELECT_MARKED = "SELECT DISTINCT shard, minute FROM marks"

_SELECT_SENSORS = "SELECT sensor, attributes, metrics, first_ms, last_ms FROM sensors WHERE bucket = ?"
_SELECT_SENSOR = (
    "SELECT sensor, attributes, metrics, first_ms, last_ms FROM sensors WHERE bucket = ? AND sensor = ?"
)
_SELECT_CHANGES = "SELECT received, name, value FROM attribute_changes WHERE sensor = ?"

_INSERT_FLAGS = (
    "INSERT INTO flags (sensor, period, hour_ms, metric, bad, rules_version, read_received, judged_us) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?"
)
_SELECT_FLAGS = (
    "SELECT metric, hour_ms, bad, rules_version, read_received, judged_us FROM flags "
    "WHERE sensor = ? AND period = ? AND hour_ms > ? AND hour_ms < ?"
)

_SELECT_LEASE = "SELECT owner, fence FROM leases WHERE dc = ? AND shard = ?"
_RENEW_LEASE = "UPDATE leases USING TTL ? SET owner = ? WHERE dc = ? AND shard = ? IF owner = ?"
# The owner expires by itself, the fence never: two statements, since a TTL goes with a statement.
_TAKE_LEASE = (
    "BEGIN BATCH "
    "UPDATE leases USING TTL ? SET owner = ? WHERE dc = ? AND shard = ? IF owner = null AND fence = ?; "
    "UPDATE leases SET fence = ? WHERE dc = ? AND shard = ?; "
    "APPLY BATCH"
)
_SELECT_CURSOR = "SELECT minute FROM cursors WHERE dc = ? AND shard = ?"
_SET_CURSOR = "INSERT INTO cursors (dc, shard, minute) VALUES (?, ?, ?) USING TIMESTAMP ?"


_INSERT_ARRIVALS = (
    "INSERT INTO gateway_blocks (gateway, epoch, first, last, writer, oldest, seen_ms) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_SELECT_ARRIVALS = (
    "SELECT gateway, epoch, first, last, writer, oldest, seen_ms FROM gateway_blocks WHERE gateway = ?"
)


class CassandraStore:
    """The Store protocol on a ring; safe for any number of threads.

    Every row carries its acceptance time as write timestamp, so an old spool that is drained late
    never overwrites a later correction, and a retry changes nothing. Registry, days and marks are
    remembered per process once they are confirmed, and not written again.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        port: int = 9042,
        local_dc: str = "dc1",
        keyspace: str = "fieldring",
        username: str = "",
        password: str = "",
        ca_file: str = "",
        request_timeout_s: float = 5.0,
        in_flight: int = 128,
        registry_interval_s: int = 10,
        retention_days: int = 1825,
        mark_shards: int = 4,
        mark_ttl_days: int = 7,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ring = Ring(
            hosts,
            port=port,
            local_dc=local_dc,
            keyspace=keyspace,
            username=username,
            password=password,
            ca_file=ca_file,
            request_timeout_s=request_timeout_s,
            in_flight=in_flight,
        )
        self._dc = local_dc
        self._retention_days = retention_days
        self._registry = Registry(self._ring, interval_s=registry_interval_s)
        self._mark_shards = mark_shards
        self._mark_ttl_s = mark_ttl_days * 86_400
        self._clock = clock
        self._memo = MarkMemo()
        self._lock = threading.Lock()
        self._days: set[tuple[str, int]] = set()

    # -- points ------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        self.write_many((batch,))

    def write_many(self, batches: Sequence[Batch]) -> None:
        if not any(map(len, batches)):
            return
        days: set[tuple[str, int]] = set()
        statements = self._point_statements(batches, days)
        self._ring.run(itertools.chain(statements, self._day_statements(days)))
        with self._lock:
            if len(self._days) > _MAX_REMEMBERED:
                self._days.clear()
            self._days |= days
        # After the points: a mark's minute may then be closed as soon as it is over, however long
        # the points took. Before the answer: an acknowledged point is always judged.
        minute = int(self._clock() * 1000) // MINUTE_MS
        marks = self._memo.missing(minute, marks_of(batches))
        registry, confirm = self._registry.updates(batches)
        followers = list(itertools.chain(self._mark_statements(minute, marks), registry))
        if followers:
            self._ring.run(followers)
        self._memo.remember(minute, marks)
        confirm()

    def points(
        self,
        sensor: str,
        *,
        start_ms: int,
        end_ms: int,
        metrics: Iterable[str] | None = None,
    ) -> Iterator[Point]:
        wanted = None if metrics is None else frozenset(metrics)
        if start_ms >= end_ms or (wanted is not None and not wanted):
            return
        first, last = start_ms // DAY_MS, (end_ms - 1) // DAY_MS
        days: Iterable[int] = range(first, last + 1)
        if last - first >= 4:
            days = self._days_between(sensor, first, last)
        reads = ((sensor, day, start_ms, end_ms) for day in days)
        for rows in self._ring.rows_of_many(_SELECT_POINTS, reads, ahead=_DAYS_AT_ONCE):
            yield from merge_rows(sensor, rows, wanted)

    def _point_statements(self, batches: Sequence[Batch], days: set[tuple[str, int]]) -> Iterator[Any]:
        """Statements of one row or an unlogged batch of rows each, never across partitions."""
        insert = self._ring.prepare(_INSERT_POINTS)
        now_ms = int(self._clock() * 1000)
        partitions: dict[tuple[str, int], list[tuple[Batch, int]]] = {}
        for batch in batches:
            for index, (sensor, time_ms) in enumerate(zip(batch.sensors, batch.times_ms, strict=True)):
                partitions.setdefault((sensor, time_ms // DAY_MS), []).append((batch, index))
        days.update(partitions)
        for (sensor, day), members in partitions.items():
            rows = ((b, i, self._ttl_s(b.times_ms[i], now_ms)) for b, i in members)
            yield from PartitionWriter(insert, sensor, day).statements(rows)

    def _day_statements(self, days: set[tuple[str, int]]) -> Iterator[Any]:
        """Days that this process has not written yet; ``days`` keeps only those."""
        with self._lock:
            days -= self._days
        if not days:
            return
        insert = self._ring.prepare(_INSERT_DAY)
        now_ms = int(self._clock() * 1000)
        for sensor, day in days:
            yield insert.bind((sensor, day, self._ttl_s((day + 1) * DAY_MS, now_ms)))

    def _days_between(self, sensor: str, first: int, last: int) -> Iterator[int]:
        for (day,) in self._ring.rows(_SELECT_DAYS, (sensor, first, last)):
            yield day

    def _ttl_s(self, time_ms: int, now_ms: int) -> int:
        """Seconds until a point of this time has outlived the retention; 0 means for ever."""
        if self._retention_days > _LONGEST_TTL_DAYS:
            return 0
        left = (time_ms - now_ms) // 1000 + self._retention_days * 86_400
        return min(max(left, 1), _MAX_TTL_S)

    # -- sensors -----------------------------------------------------------------------------

    def sensors(self) -> Iterator[SensorInfo]:
        buckets = self._ring.rows_of_many(
            _SELECT_SENSORS, ((bucket,) for bucket in range(BUCKETS)), ahead=BUCKETS
        )
        infos = [map(sensor_info, rows) for rows in buckets]
        yield from heapq.merge(*infos, key=lambda info: info.sensor)

    def sensor(self, name: str) -> SensorInfo | None:
        rows = list(self._ring.rows(_SELECT_SENSOR, (shard_of(name, BUCKETS), name)))
        if not rows:
            return None
        info = sensor_info(rows[0])
        first = self._edge(name, _SELECT_ALL_DAYS, _SELECT_FIRST)
        last = self._edge(name, _SELECT_DAYS_BACKWARDS, _SELECT_LAST)
        return SensorInfo(
            name,
            info.attributes,
            info.metrics,
            info.first_ms if first is None else first,
            info.last_ms if last is None else last,
        )

    def _edge(self, sensor: str, days: str, time_of_day: str) -> int | None:
        """The outermost time that has points; days whose points have expired are passed over."""
        for (day,) in self._ring.rows(days, (sensor,)):
            for (time_ms,) in self._ring.rows(time_of_day, (sensor, day)):
                return int(time_ms)
        return None

    def attribute_changes(self, sensor: str) -> list[tuple[int, str, str]]:
        return [
            (received, name, value) for received, name, value in self._ring.rows(_SELECT_CHANGES, (sensor,))
        ]

    # -- flags -------------------------------------------------------------------------------

    def hour_flags(self, sensor: str, *, start_ms: int, end_ms: int) -> Iterator[HourFlags]:
        if start_ms >= end_ms:
            return
        after, before = start_ms - HOUR_MS, end_ms
        first, last = (after + 1) // _PERIOD_MS, (before - 1) // _PERIOD_MS
        periods: Iterable[int] = range(first, last + 1)
        if last - first > 4:
            days = self._days_between(sensor, first * 32, last * 32 + 31)
            periods = (period for period, _ in itertools.groupby(days, lambda day: day // 32))
        reads = ((sensor, period, after, before) for period in periods)
        for rows in self._ring.rows_of_many(_SELECT_FLAGS, reads):
            for metric, hour_ms, bad, rules_version, read_received, judged_us in rows:
                listed, points = unpacked(bad or (), hour_ms=hour_ms)
                yield HourFlags(
                    sensor, metric, hour_ms, listed, rules_version, read_received, judged_us, points
                )

    def write_flags(self, flags: Sequence[HourFlags]) -> None:
        now_ms = int(self._clock() * 1000)
        insert = self._ring.prepare(_INSERT_FLAGS)
        partitions: dict[tuple[str, int], list[HourFlags]] = {}
        for each in flags:
            partitions.setdefault((each.sensor, each.hour_ms // _PERIOD_MS), []).append(each)

        def bound(f: HourFlags) -> Any:
            return insert.bind(
                (
                    f.sensor,
                    f.hour_ms // _PERIOD_MS,
                    f.hour_ms,
                    f.metric,
                    packed(f),
                    f.rules_version,
                    f.read_received,
                    f.judged_us,
                    f.judged_us,
                    self._ttl_s(f.hour_ms + HOUR_MS, now_ms),
                )
            )

        # An hour without anything bad is some 150 bytes, and a statement costs the same up to kilobytes.
        self._ring.run(
            statement for members in partitions.values() for statement in together(map(bound, members))
        )

    # -- marks, leases, cursors --------------------------------------------------------------

    def marks(self, shard: int, minute: int) -> list[Mark]:
        return [Mark(sensor, hour_ms) for sensor, hour_ms in self._ring.rows(_SELECT_MARKS, (shard, minute))]

    def marked_minutes(self, shard: int, *, after: int, upto: int) -> list[int]:
        # Over the whole ring, but of partition keys only: cheaper than a read for each of many empty minutes.
        rows = self._ring.rows(_SELECT_MARKED, ())
        return sorted(minute for owner, minute in rows if owner == shard and after < minute <= upto)

    def _mark_statements(self, minute: int, marks: set[Mark]) -> Iterator[Any]:
        if not marks:
            return
        insert = self._ring.prepare(_INSERT_MARK)
        shards: dict[int, list[Mark]] = {}
        for mark in marks:
            shards.setdefault(shard_of(mark.sensor, self._mark_shards), []).append(mark)
        for shard, members in shards.items():
            yield from together(
                insert.bind((shard, minute, mark.sensor, mark.hour_ms, self._mark_ttl_s)) for mark in members
            )

    def cursor(self, shard: int) -> int:
        for (minute,) in self._ring.rows(_SELECT_CURSOR, (self._dc, shard)):
            return int(minute)
        return -1

    def set_cursor(self, shard: int, minute: int, *, fence: int) -> None:
        _, newest = self._lease_row(shard)
        if newest is not None and fence < newest:
            return
        # The fence is the high part of the write timestamp: who lost the lease between this check and
        # the write still loses against the new owner's cursor, and a cursor never goes back.
        timestamp = (fence << _FENCE_SHIFT) + minute + 1
        self._ring.run([self._ring.prepare(_SET_CURSOR).bind((self._dc, shard, minute, timestamp))])

    def lease(self, shard: int, owner: str, *, ttl_s: int) -> int | None:
        holder, fence = self._lease_row(shard)
        if holder == owner and fence is not None:
            renewed = self._ring.applied(_RENEW_LEASE, (ttl_s, owner, self._dc, shard, owner))
            return fence if renewed else None
        if holder is not None:
            return None
        following = (fence or 0) + 1
        taken = self._ring.applied(
            _TAKE_LEASE, (ttl_s, owner, self._dc, shard, fence, following, self._dc, shard)
        )
        return following if taken else None

    def _lease_row(self, shard: int) -> tuple[str | None, int | None]:
        rows = self._ring.rows(_SELECT_LEASE, (self._dc, shard), consistency=ConsistencyLevel.LOCAL_SERIAL)
        for owner, fence in rows:
            return owner, fence
        return None, None

    # -- gateways ----------------------------------------------------------------------------

    def record_arrivals(self, runs: Sequence[Arrivals]) -> None:
        insert = self._ring.prepare(_INSERT_ARRIVALS)
        self._ring.run(insert.bind(astuple(run)) for run in runs)

    def arrivals(self, gateway: str) -> list[Arrivals]:
        return [Arrivals(*row) for row in self._ring.rows(_SELECT_ARRIVALS, (gateway,))]

    # -- life --------------------------------------------------------------------------------

    def ping(self) -> None:
        for _ in self._ring.rows(_SELECT_CURSOR, (self._dc, 0)):
            pass

    def close(self) -> None:
        self._ring.close()
