"""Marks: which hours of which sensors got new data, found again by arrival minute and shard."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from zlib import crc32

from fieldring.model import HOUR_MS, Batch, Mark

__all__ = ["MarkMemo", "marks_of", "shard_of"]


def shard_of(sensor: str, shards: int) -> int:
    """The shard of a sensor; the same on every host and in every version."""
    return crc32(sensor.encode()) % shards


def marks_of(batches: Iterable[Batch]) -> set[Mark]:
    """Every (sensor, hour) that has a row in the batches."""
    return {
        Mark(sensor, time_ms - time_ms % HOUR_MS)
        for batch in batches
        for sensor, time_ms in zip(batch.sensors, batch.times_ms, strict=True)
    }


class MarkMemo:
    """Remembers which marks this process has written in the current minute, so that one is enough.

    Safe because a minute's marks are only read after the minute is over: a mark that was written
    earlier in the same minute also covers points that are stored later in it. ``remember`` only what
    the store has confirmed. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._minute = -1
        self._written: set[Mark] = set()

    def missing(self, minute: int, marks: set[Mark]) -> set[Mark]:
        """Those of ``marks`` that are not known to be written for this arrival minute."""
        with self._lock:
            return marks - self._written if minute == self._minute else marks

    def remember(self, minute: int, marks: set[Mark]) -> None:
        """The store has these marks for this arrival minute."""
        with self._lock:
            if minute > self._minute:
                self._minute, self._written = minute, set()
            if minute == self._minute:
                self._written |= marks
