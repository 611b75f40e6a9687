"""The sensors' registry on the ring: written before an answer, but only where something is new."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fieldring.model import Batch, SensorInfo
from fieldring.store._ring import Ring
from fieldring.store._rows import together
from fieldring.store.marks import shard_of

__all__ = ["BUCKETS", "Registry", "sensor_info"]

BUCKETS = 16
_MAX_REMEMBERED = 200_000
_EARLIER_WINS = 1 << 53
_NAMES_AT_ONCE = 50

_SET_FIRST = "UPDATE sensors USING TIMESTAMP ? SET first_ms = ? WHERE bucket = ? AND sensor = ?"
_SET_LAST = "UPDATE sensors USING TIMESTAMP ? SET last_ms = ? WHERE bucket = ? AND sensor = ?"
_ADD_METRICS = "UPDATE sensors SET metrics = metrics + ? WHERE bucket = ? AND sensor = ?"
_ADD_ATTRIBUTES = (
    "UPDATE sensors USING TIMESTAMP ? SET attributes = attributes + ? WHERE bucket = ? AND sensor = ?"
)
_SELECT_ATTRIBUTES = "SELECT attributes FROM sensors WHERE bucket = ? AND sensor = ?"
_INSERT_CHANGE = "INSERT INTO attribute_changes (sensor, received, name, value) VALUES (?, ?, ?, ?)"


@dataclass(slots=True)
class _Known:
    """What this process knows to stand in a sensor's row."""

    metrics: set[str] = field(default_factory=set)
    attributes: dict[str, tuple[int, str]] = field(default_factory=dict)
    attributes_read: bool = False
    unwritten: set[str] = field(default_factory=set)
    """Attributes that came anew with the value that stands, after they were last written."""
    attributes_written: float = float("-inf")
    first_ms: int = 1 << 62
    last_ms: int = -(1 << 62)
    last_written: float = float("-inf")


@dataclass(slots=True)
class _Seen:
    """What batches say of one sensor; attributes as (received, name, value)."""

    first_ms: int
    last_ms: int
    metrics: set[str]
    attributes: list[tuple[int, str, str]] = field(default_factory=list)


class Registry:
    """Remembers per process what was confirmed, so that a steady sensor costs a write per interval.

    Several processes may write the same row: metrics and attributes are added to sets and maps, and
    the extremes of time carry timestamps by which the extreme stands. An attribute that is confirmed is
    written again once per interval, as another process may have written another value in between.
    """

    def __init__(self, ring: Ring, *, interval_s: float) -> None:
        self._ring = ring
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def updates(self, batches: Sequence[Batch]) -> tuple[list[Any], Callable[[], None]]:
        """Statements that the batches call for, and what to call once those are confirmed."""
        now = time.monotonic()
        statements: list[Any] = []
        confirmations: list[Callable[[], None]] = []
        for sensor, seen in _seen(batches).items():
            with self._lock:
                known = self._known.setdefault(sensor, _Known())
            if seen.attributes and not known.attributes_read:
                self._read_attributes(sensor, known)
            with self._lock:
                metrics = seen.metrics - known.metrics
                is_first = seen.first_ms < known.first_ms
                is_last = seen.last_ms > known.last_ms and now - known.last_written >= self._interval_s
                changes = _changes(known, seen)
                again: list[tuple[int, str, str]] = []
                if known.unwritten and now - known.attributes_written >= self._interval_s:
                    for name in sorted(known.unwritten.difference([name for _, name, _ in changes])):
                        received, value = known.attributes[name]
                        again.append((received, name, value))
            if not (metrics or is_first or is_last or changes or again):
                continue
            statements += self._statements(
                sensor,
                metrics=metrics,
                first_ms=seen.first_ms if is_first else None,
                last_ms=seen.last_ms if is_last else None,
                changes=changes,
                again=again,
            )

            def confirm(
                known: _Known = known,
                metrics: set[str] = metrics,
                first_ms: int = seen.first_ms,
                last_ms: int | None = seen.last_ms if is_last else None,
                changes: list[tuple[int, str, str]] = changes,
                again: list[tuple[int, str, str]] = again,
            ) -> None:
                known.metrics |= metrics
                known.first_ms = min(known.first_ms, first_ms)
                if last_ms is not None:
                    known.last_ms = max(known.last_ms, last_ms)
                    known.last_written = now
                for received, name, value in changes:
                    if received >= known.attributes.get(name, (0, ""))[0]:
                        known.attributes[name] = (received, value)
                for received, name, _ in (*changes, *again):
                    if received >= known.attributes[name][0]:
                        known.unwritten.discard(name)
                if again:
                    known.attributes_written = now

            confirmations.append(confirm)

        def remember() -> None:
            with self._lock:
                for confirm in confirmations:
                    confirm()
                if len(self._known) > _MAX_REMEMBERED:
                    self._known.clear()

        return statements, remember

    def _statements(
        self,
        sensor: str,
        *,
        metrics: set[str],
        first_ms: int | None,
        last_ms: int | None,
        changes: list[tuple[int, str, str]],
        again: list[tuple[int, str, str]],
    ) -> list[Any]:
        prepare = self._ring.prepare
        at = (shard_of(sensor, BUCKETS), sensor)
        updates = []
        names = sorted(metrics)
        for start in range(0, len(names), _NAMES_AT_ONCE):
            updates.append(prepare(_ADD_METRICS).bind((set(names[start : start + _NAMES_AT_ONCE]), *at)))
        if first_ms is not None:
            updates.append(prepare(_SET_FIRST).bind((_EARLIER_WINS - first_ms, first_ms, *at)))
        if last_ms is not None:
            updates.append(prepare(_SET_LAST).bind((_EARLIER_WINS + last_ms, last_ms, *at)))
        for received, name, value in (*changes, *again):
            updates.append(prepare(_ADD_ATTRIBUTES).bind((received, {name: value}, *at)))
        recorded = [prepare(_INSERT_CHANGE).bind((sensor, *change)) for change in changes]
        return [*together(updates), *together(recorded)]

    def _read_attributes(self, sensor: str, known: _Known) -> None:
        for (attributes,) in self._ring.rows(_SELECT_ATTRIBUTES, (shard_of(sensor, BUCKETS), sensor)):
            with self._lock:
                for name, value in _pairs(attributes).items():
                    known.attributes.setdefault(name, (0, value))
        known.attributes_read = True


def _seen(batches: Sequence[Batch]) -> dict[str, _Seen]:
    found: dict[str, _Seen] = {}
    for batch in batches:
        for sensor, time_ms, layout in zip(batch.sensors, batch.times_ms, batch.layouts, strict=True):
            seen = found.get(sensor)
            if seen is None:
                found[sensor] = _Seen(time_ms, time_ms, set(layout))
                continue
            seen.metrics.update(layout)
            if time_ms < seen.first_ms:
                seen.first_ms = time_ms
            if time_ms > seen.last_ms:
                seen.last_ms = time_ms
        for sensor, attributes in batch.attributes.items():
            if sensor in found:
                found[sensor].attributes += [(batch.received, *pair) for pair in attributes.items()]
    return found


def _changes(known: _Known, seen: _Seen) -> list[tuple[int, str, str]]:
    """Attributes that differ from what stands and are not older than it, in order of receipt."""
    standing: dict[str, tuple[int, str]] = {}
    changes = []
    for received, name, value in sorted(seen.attributes):
        since, current = standing.get(name) or known.attributes.get(name) or (-1, None)
        if received <= since:
            continue
        if value == current:
            # Confirmed anew: an older spool that is drained later must not win over it.
            if name not in standing:
                known.attributes[name] = (received, value)
                known.unwritten.add(name)
        else:
            changes.append((received, name, value))
            standing[name] = (received, value)
    return changes


def sensor_info(row: Any) -> SensorInfo:
    """A row of (sensor, attributes, metrics, first_ms, last_ms) of the table sensors."""
    sensor, attributes, metrics, first_ms, last_ms = row
    return SensorInfo(sensor, _pairs(attributes), tuple(sorted(metrics or ())), first_ms or 0, last_ms or 0)


def _pairs(packed: tuple[tuple[str, ...], tuple[str, ...]] | None) -> dict[str, str]:
    return dict(zip(*packed, strict=True)) if packed else {}
