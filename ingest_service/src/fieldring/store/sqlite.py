"""The embedded store: one SQLite file, WAL, fsynced at every commit. For tests and single-box sites."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from fieldring.errors import ConfigurationError, StoreUnavailable
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
from fieldring.store._verdicts import packed, unpacked
from fieldring.store.marks import MarkMemo, marks_of, shard_of

__all__ = ["SqliteStore"]

_SCHEMA_VERSION = 1
_LOCKED_S = 5.0
# `value` has no type on purpose: a REAL column would turn the text "12" into a number.
_SCHEMA = """
CREATE TABLE points (
  sensor TEXT NOT NULL, time_ms INTEGER NOT NULL, metric TEXT NOT NULL,
  value NOT NULL, received INTEGER NOT NULL,
  PRIMARY KEY (sensor, time_ms, metric)) WITHOUT ROWID;
CREATE TABLE sensors (
  sensor TEXT PRIMARY KEY, first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sensor_metrics (
  sensor TEXT NOT NULL, metric TEXT NOT NULL, PRIMARY KEY (sensor, metric)) WITHOUT ROWID;
CREATE TABLE sensor_attributes (
  sensor TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, received INTEGER NOT NULL,
  PRIMARY KEY (sensor, name)) WITHOUT ROWID;
CREATE TABLE attribute_changes (
  sensor TEXT NOT NULL, received INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (sensor, received, name)) WITHOUT ROWID;
CREATE TABLE flags (
  sensor TEXT NOT NULL, hour_ms INTEGER NOT NULL, metric TEXT NOT NULL, bad TEXT NOT NULL,
  rules_version TEXT NOT NULL, read_received INTEGER NOT NULL, judged_us INTEGER NOT NULL,
  PRIMARY KEY (sensor, hour_ms, metric)) WITHOUT ROWID;
CREATE TABLE marks (
  shard INTEGER NOT NULL, minute INTEGER NOT NULL, sensor TEXT NOT NULL, hour_ms INTEGER NOT NULL,
  PRIMARY KEY (shard, minute, sensor, hour_ms)) WITHOUT ROWID;
CREATE TABLE leases (
  shard INTEGER PRIMARY KEY, owner TEXT NOT NULL, fence INTEGER NOT NULL, expires REAL NOT NULL);
CREATE TABLE cursors (shard INTEGER PRIMARY KEY, minute INTEGER NOT NULL, fence INTEGER NOT NULL);
"""


# Tables that came later: no version of their own, as an older service does without them.
_LATER = """
CREATE TABLE IF NOT EXISTS gateway_blocks (
  gateway TEXT NOT NULL, epoch INTEGER NOT NULL, first INTEGER NOT NULL, writer TEXT NOT NULL,
  last INTEGER NOT NULL, oldest INTEGER NOT NULL, seen_ms INTEGER NOT NULL,
  PRIMARY KEY (gateway, epoch, first, writer)) WITHOUT ROWID
"""


class SqliteStore:
    """The Store protocol on one file.

    Thread contract: one connection writes under a lock; every read opens its own, so a slow reader
    never holds up a writer (WAL) and an iterator may be consumed in another thread.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        mark_shards: int = 4,
        mark_ttl_days: int = 7,
        retention_days: int = 1825,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = str(path)
        self._mark_shards = mark_shards
        self._mark_ttl_minutes = mark_ttl_days * 1440
        self._retention_ms = retention_days * DAY_MS
        self._clock = clock
        self._memo = MarkMemo()
        self._lock = threading.Lock()
        self._pruned = 0.0
        self._closed = False
        try:
            self._writer = self._connect()
            self._patiently_migrate()
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"FIELDRING_SQLITE_PATH: cannot open {path} as a database: {error}"
            ) from error

    # -- points ------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        self.write_many((batch,))

    def write_many(self, batches: Sequence[Batch]) -> None:
        now = self._clock()
        spans: dict[str, tuple[int, int]] = {}
        metrics: set[tuple[str, str]] = set()
        rows = []
        for batch in batches:
            for sensor, time_ms, layout, values in batch.rows():
                first, last = spans.get(sensor, (time_ms, time_ms))
                spans[sensor] = (min(first, time_ms), max(last, time_ms))
                for metric, value in zip(layout, values, strict=True):
                    metrics.add((sensor, metric))
                    stored = value if isinstance(value, str) else float(value)
                    rows.append((sensor, time_ms, metric, stored, batch.received))
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO points VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
                "SET value = excluded.value, received = excluded.received "
                "WHERE excluded.received > points.received",
                rows,
            )
            db.executemany(
                "INSERT INTO sensors (sensor, first_ms, last_ms) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
                "first_ms = min(first_ms, excluded.first_ms), last_ms = max(last_ms, excluded.last_ms)",
                [(sensor, *span) for sensor, span in spans.items()],
            )
            db.executemany("INSERT OR IGNORE INTO sensor_metrics VALUES (?, ?)", metrics)
            for batch in batches:
                for sensor, attributes in batch.attributes.items():
                    _set_attributes(db, sensor, attributes, batch.received)
            # One transaction, so the marks are there exactly when the points are.
            minute = int(self._clock() * 1000) // MINUTE_MS
            marks = self._memo.missing(minute, marks_of(batches))
            db.executemany(
                "INSERT OR IGNORE INTO marks VALUES (?, ?, ?, ?)",
                [(shard_of(m.sensor, self._mark_shards), minute, m.sensor, m.hour_ms) for m in marks],
            )
            if now - self._pruned > 3600:
                self._prune(db, now)
        self._memo.remember(minute, marks)

    def points(
        self,
        sensor: str,
        *,
        start_ms: int,
        end_ms: int,
        metrics: Iterable[str] | None = None,
    ) -> Iterator[Point]:
        query = (
            "SELECT sensor, time_ms, metric, value, received FROM points "
            "WHERE sensor = ? AND time_ms >= ? AND time_ms < ?"
        )
        arguments: list[object] = [sensor, start_ms, end_ms]
        if metrics is not None:
            chosen = sorted(set(metrics))
            query += f" AND metric IN ({', '.join('?' * len(chosen))})"
            arguments += chosen
        return (Point(*row) for row in self._select(query + " ORDER BY time_ms, metric", arguments))

    # -- sensors -----------------------------------------------------------------------------

    def sensors(self) -> Iterator[SensorInfo]:
        metrics: dict[str, list[str]] = {}
        for sensor, metric in self._select("SELECT sensor, metric FROM sensor_metrics ORDER BY 1, 2"):
            metrics.setdefault(sensor, []).append(metric)
        attributes: dict[str, dict[str, str]] = {}
        for sensor, name, value in self._select(
            "SELECT sensor, name, value FROM sensor_attributes ORDER BY 1, 2"
        ):
            attributes.setdefault(sensor, {})[name] = value
        for sensor, first_ms, last_ms in self._select(
            "SELECT sensor, first_ms, last_ms FROM sensors ORDER BY 1"
        ):
            yield SensorInfo(
                sensor, attributes.get(sensor, {}), tuple(metrics.get(sensor, ())), first_ms, last_ms
            )

    def sensor(self, name: str) -> SensorInfo | None:
        rows = list(
            self._select(
                "SELECT first_ms, last_ms, "
                "(SELECT min(time_ms) FROM points WHERE sensor = s.sensor), "
                "(SELECT max(time_ms) FROM points WHERE sensor = s.sensor) FROM sensors s WHERE sensor = ?",
                [name],
            )
        )
        if not rows:
            return None
        listed_first, listed_last, first_ms, last_ms = rows[0]
        attributes = self._select(
            "SELECT name, value FROM sensor_attributes WHERE sensor = ? ORDER BY 1", [name]
        )
        metrics = self._select("SELECT metric FROM sensor_metrics WHERE sensor = ? ORDER BY 1", [name])
        return SensorInfo(
            name,
            dict(attributes),
            tuple(metric for (metric,) in metrics),
            listed_first if first_ms is None else first_ms,
            listed_last if last_ms is None else last_ms,
        )

    def attribute_changes(self, sensor: str) -> list[tuple[int, str, str]]:
        rows = self._select(
            "SELECT received, name, value FROM attribute_changes WHERE sensor = ? ORDER BY 1, 2", [sensor]
        )
        return [(received, name, value) for received, name, value in rows]

    # -- flags -------------------------------------------------------------------------------

    def hour_flags(self, sensor: str, *, start_ms: int, end_ms: int) -> Iterator[HourFlags]:
        rows = self._select(
            "SELECT sensor, metric, hour_ms, bad, rules_version, read_received, judged_us FROM flags "
            "WHERE sensor = ? AND hour_ms > ? AND hour_ms < ? ORDER BY hour_ms, metric",
            [sensor, start_ms - HOUR_MS, end_ms],
        )
        for name, metric, hour_ms, bad, rules_version, read_received, judged_us in rows:
            listed, points = unpacked(json.loads(bad), hour_ms=hour_ms)
            yield HourFlags(name, metric, hour_ms, listed, rules_version, read_received, judged_us, points)

    def write_flags(self, flags: Sequence[HourFlags]) -> None:
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO flags VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "bad = excluded.bad, rules_version = excluded.rules_version, "
                "read_received = excluded.read_received, judged_us = excluded.judged_us "
                "WHERE excluded.judged_us >= flags.judged_us",
                [
                    (
                        f.sensor,
                        f.hour_ms,
                        f.metric,
                        json.dumps(packed(f)),
                        f.rules_version,
                        f.read_received,
                        f.judged_us,
                    )
                    for f in flags
                ],
            )

    # -- marks, leases, cursors --------------------------------------------------------------

    def marks(self, shard: int, minute: int) -> list[Mark]:
        rows = self._select(
            "SELECT sensor, hour_ms FROM marks WHERE shard = ? AND minute = ? ORDER BY 1, 2", [shard, minute]
        )
        return [Mark(*row) for row in rows]

    def marked_minutes(self, shard: int, *, after: int, upto: int) -> list[int]:
        rows = self._select(
            "SELECT DISTINCT minute FROM marks WHERE shard = ? AND minute > ? AND minute <= ? ORDER BY 1",
            [shard, after, upto],
        )
        return [minute for (minute,) in rows]

    def cursor(self, shard: int) -> int:
        rows = list(self._select("SELECT minute FROM cursors WHERE shard = ?", [shard]))
        return int(rows[0][0]) if rows else -1

    def set_cursor(self, shard: int, minute: int, *, fence: int) -> None:
        with self._transaction() as db:
            held = db.execute("SELECT fence FROM leases WHERE shard = ?", [shard]).fetchone()
            if held is not None and fence < held[0]:
                return
            db.execute(
                "INSERT INTO cursors VALUES (?, ?, ?) ON CONFLICT DO UPDATE "
                "SET minute = excluded.minute, fence = excluded.fence "
                "WHERE excluded.fence >= cursors.fence AND excluded.minute > cursors.minute",
                [shard, minute, fence],
            )

    def lease(self, shard: int, owner: str, *, ttl_s: int) -> int | None:
        now = self._clock()
        with self._transaction() as db:
            row = db.execute("SELECT owner, fence, expires FROM leases WHERE shard = ?", [shard]).fetchone()
            holder, fence, expires = row or ("", 0, 0.0)
            if now < expires:
                if holder != owner:
                    return None
            else:
                fence += 1
            db.execute(
                "INSERT INTO leases VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE "
                "SET owner = excluded.owner, fence = excluded.fence, expires = excluded.expires",
                [shard, owner, fence, now + ttl_s],
            )
        return int(fence)

    # -- gateways ----------------------------------------------------------------------------

    def record_arrivals(self, runs: Sequence[Arrivals]) -> None:
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO gateway_blocks "
                "(gateway, epoch, first, last, writer, oldest, seen_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [astuple(run) for run in runs],
            )

    def arrivals(self, gateway: str) -> list[Arrivals]:
        rows = self._select(
            "SELECT gateway, epoch, first, last, writer, oldest, seen_ms FROM gateway_blocks "
            "WHERE gateway = ? ORDER BY epoch, first, writer",
            [gateway],
        )
        return [Arrivals(*row) for row in rows]

    # -- life --------------------------------------------------------------------------------

    def ping(self) -> None:
        list(self._select("SELECT 1"))

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._writer.close()

    # -- inside ------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=_LOCKED_S)
        db.execute("PRAGMA synchronous = FULL")
        return db

    def _patiently_migrate(self) -> None:
        """SQLite waits for no other process while the journal of a new file is set up."""
        deadline = time.monotonic() + _LOCKED_S
        while True:
            try:
                return self._migrate()
            except sqlite3.OperationalError as error:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _migrate(self) -> None:
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("BEGIN IMMEDIATE")  # two processes may make the file at once
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _SCHEMA.split(";"):
                self._writer.execute(statement)
            self._writer.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        self._writer.execute(_LATER)
        self._writer.execute("COMMIT")
        if version > _SCHEMA_VERSION:
            raise ConfigurationError(
                f"FIELDRING_SQLITE_PATH: {self._path} has schema {version}, this version knows "
                f"{_SCHEMA_VERSION}: install the version that wrote it"
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the embedded store is closed")
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    self._writer.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
            except sqlite3.DatabaseError as error:  # locked, disk full, I/O error, damaged file
                raise StoreUnavailable(f"the embedded store cannot write: {error}") from error

    def _select(self, query: str, arguments: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        if self._closed:
            raise StoreUnavailable("the embedded store is closed")
        try:
            with contextlib.closing(self._connect()) as db:
                cursor = db.execute(query, arguments)
                while rows := cursor.fetchmany(1000):
                    yield from rows
        except sqlite3.DatabaseError as error:
            raise StoreUnavailable(f"the embedded store cannot read: {error}") from error

    def _prune(self, db: sqlite3.Connection, now: float) -> None:
        """Delete what has outlived its retention; sensor by sensor, so that each is one key range."""
        self._pruned = now
        oldest_ms = int(now * 1000) - self._retention_ms
        for (sensor,) in db.execute("SELECT sensor FROM sensors WHERE first_ms < ?", [oldest_ms]).fetchall():
            db.execute("DELETE FROM points WHERE sensor = ? AND time_ms < ?", [sensor, oldest_ms])
            db.execute("DELETE FROM flags WHERE sensor = ? AND hour_ms < ?", [sensor, oldest_ms - HOUR_MS])
        oldest_minute = int(now) // 60 - self._mark_ttl_minutes
        db.execute("DELETE FROM marks WHERE minute < ?", [oldest_minute])


def _set_attributes(db: sqlite3.Connection, sensor: str, attributes: dict[str, str], received: int) -> None:
    for name, value in sorted(attributes.items()):
        known = db.execute(
            "SELECT value, received FROM sensor_attributes WHERE sensor = ? AND name = ?", [sensor, name]
        ).fetchone()
        if known is not None and received <= known[1]:
            continue
        db.execute(
            "INSERT OR REPLACE INTO sensor_attributes VALUES (?, ?, ?, ?)", [sensor, name, value, received]
        )
        if known is not None and value == known[0]:
            continue
        db.execute(
            "INSERT OR REPLACE INTO attribute_changes VALUES (?, ?, ?, ?)", [sensor, received, name, value]
        )
