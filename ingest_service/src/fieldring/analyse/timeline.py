"""What was read of each sensor, hour by hour, so that a round reads only what changed."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fieldring.model import HOUR_MS, Store
from fieldring.quality.checks import Times, Values

__all__ = ["Digest", "Hour", "Judged", "Series", "Timeline", "Timelines"]


class Digest(NamedTuple):
    """Enough of a series to tell whether it changed, and at which end."""

    first: tuple[int, float]
    last: tuple[int, float]
    size: int
    read_received: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Series:
    """The numbers of one metric in one hour, in time order; text values take no part in checks."""

    times_ms: Times
    values: Values
    read_received: int

    @property
    def digest(self) -> Digest:
        return Digest(
            first=(int(self.times_ms[0]), float(self.values[0])),
            last=(int(self.times_ms[-1]), float(self.values[-1])),
            size=self.times_ms.size,
            read_received=self.read_received,
            checksum=zlib.crc32(self.values.tobytes(), zlib.crc32(self.times_ms.tobytes())),
        )


Hour = dict[str, Series]
"""Metric → its series of one hour. Empty: the hour was read and holds nothing."""


class Judged(NamedTuple):
    """Verdicts on an hour, and on all that depends on it, are written."""

    version: str
    digests: Mapping[str, Digest]
    at: float


@dataclass(slots=True)
class Timeline:
    """Hours of one sensor as they were read, and which of them have their verdicts written.

    A mark makes an hour be read again; without one, an hour read before is as good as the store's.
    ``judged`` outlives ``hours``: it costs little, and spares work when the same mark is seen again.
    """

    sensor: str
    hours: dict[int, Hour] = field(default_factory=dict)
    judged: dict[int, Judged] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Roughly the memory it takes, in points."""
        points = sum(series.times_ms.size for hour in self.hours.values() for series in hour.values())
        return points + 10 * len(self.hours) + 30 * len(self.judged)

    def digests(self, hour: int) -> dict[str, Digest]:
        return {metric: series.digest for metric, series in self.hours[hour].items()}

    def read(self, store: Store, hours: Iterable[int]) -> None:
        """Read these hours anew."""
        for start, end in _runs(hours):
            self._fetch(store, start, end)

    def ensure(self, store: Store, start_ms: int, end_ms: int) -> None:
        """Read what of [start_ms, end_ms) was not read yet; both are rounded outwards to hours."""
        start = start_ms - start_ms % HOUR_MS
        missing = [hour for hour in range(start, end_ms, HOUR_MS) if hour not in self.hours]
        for run_start, run_end in _runs(missing):
            self._fetch(store, run_start, run_end)

    def nearest(self, store: Store, metric: str, hour: int, *, reach_ms: int, step: int) -> int | None:
        """The nearest other hour that holds ``metric``, earlier (step -1) or later (step 1).

        Reads further and further out, so that dense series cost one hour and sparse ones few calls.
        """
        limit = -(-reach_ms // HOUR_MS)
        for index in range(1, limit + 1):
            candidate = hour + step * index * HOUR_MS
            if candidate not in self.hours:
                further = (
                    candidate
                    if index == 1
                    else hour + step * min(4 if index <= 4 else limit, limit) * HOUR_MS
                )
                self.ensure(store, min(candidate, further), max(candidate, further) + HOUR_MS)
            if metric in self.hours[candidate]:
                return candidate
        return None

    def series(self, metric: str) -> tuple[Times, Values]:
        """All that was read of ``metric``, in time order."""
        parts = [self.hours[hour][metric] for hour in sorted(self.hours) if metric in self.hours[hour]]
        if not parts:
            return np.empty(0, dtype=np.int64), np.empty(0)
        return np.concatenate([p.times_ms for p in parts]), np.concatenate([p.values for p in parts])

    def forget_before(self, hour: int) -> None:
        """Drop what lies before ``hour``."""
        for old in [h for h in self.hours if h < hour]:
            del self.hours[old]

    def _fetch(self, store: Store, start: int, end: int) -> None:
        columns: dict[int, dict[str, tuple[list[int], list[float], list[int]]]] = {}
        for point in store.points(self.sensor, start_ms=start, end_ms=end):
            if isinstance(point.value, str):
                continue
            hour = columns.setdefault(point.time_ms - point.time_ms % HOUR_MS, {})
            times, values, received = hour.setdefault(point.metric, ([], [], []))
            times.append(point.time_ms)
            values.append(point.value)
            received.append(point.received)
        for at in range(start, end, HOUR_MS):
            self.hours[at] = {
                metric: Series(np.array(times, dtype=np.int64), np.array(values), max(received))
                for metric, (times, values, received) in columns.get(at, {}).items()
            }


class Timelines:
    """The timelines of all sensors of the shards held, the least used dropped first.

    Not for use by several threads.
    """

    def __init__(self, *, max_points: int = 4_000_000) -> None:
        self._max_points = max_points
        self._kept: OrderedDict[str, tuple[Timeline, int]] = OrderedDict()
        self._size = 0

    def peek(self, sensor: str) -> Timeline | None:
        timeline, _ = self._kept.get(sensor, (None, 0))
        return timeline

    def take(self, sensor: str) -> Timeline:
        """The sensor's timeline, out of the cache until ``keep`` puts it back.

        Whoever fails half-way does not put it back, so nothing doubtful is ever kept.
        """
        timeline, size = self._kept.pop(sensor, (None, 0))
        self._size -= size
        return timeline or Timeline(sensor)

    def keep(self, timeline: Timeline) -> None:
        if timeline.size > self._max_points // 2:
            timeline.hours.clear()
        size = timeline.size
        self._kept[timeline.sensor] = (timeline, size)
        self._size += size
        while self._size > self._max_points:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._size -= dropped


def _runs(hours: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ranges [start, end) that cover ``hours``; a hole of one hour is read along."""
    start = end = None
    for hour in sorted(hours):
        if start is None or end is None:
            start, end = hour, hour + HOUR_MS
        elif hour - end <= HOUR_MS:
            end = hour + HOUR_MS
        else:
            yield start, end
            start, end = hour, hour + HOUR_MS
    if start is not None and end is not None:
        yield start, end
