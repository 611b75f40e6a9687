"""What every decoder returns, and the collapse of repeated keys that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fieldring.errors import LineError
from fieldring.model import Batch, Layout, Value

__all__ = ["MAX_ERRORS", "MAX_TIME_MS", "Decoded", "collapse", "has_repeats"]

MAX_ERRORS = 10_000
"""Refused lines that a decoder names; more are only counted, since a body may hold nothing but junk."""

MAX_TIME_MS = 8_640_000_000_000_000
"""Largest distance of a time from 1970 that any reader (JavaScript's dates included) can show."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Rows that were understood, and the lines that were not."""

    batch: Batch
    errors: tuple[LineError, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Values that are no measurement and no mistake of the sender's either, by reason: only counted."""
    more_errors: int = 0
    """Refused lines beyond those in ``errors``."""
    attributes_differ: bool = False
    """Whether an attribute of a sensor came with more than one value: ``batch`` holds the last one."""


def has_repeats(batch: Batch) -> bool:
    """Whether two rows have the same sensor and time."""
    times = batch.times_ms
    count = len(times)
    if count < 2 or (times[0] != times[1] and len(set(times)) == count):
        return False
    return len(set(zip(batch.sensors, times, strict=True))) != count


def collapse(batch: Batch) -> Batch:
    """Leave every (sensor, time, metric) once, with its last value; the rest is counted.

    An earlier row keeps its other metrics; a row without any left is gone. Returns ``batch`` itself
    where no key repeats, which is the rule.
    """
    if not has_repeats(batch):
        return batch
    places = list(zip(batch.sensors, batch.times_ms, strict=True))
    taken: dict[tuple[str, int], set[str]] = {}
    keep: list[int] = []
    shrunk: dict[int, tuple[Layout, tuple[Value, ...]]] = {}
    collapsed = 0
    for index in range(len(places) - 1, -1, -1):
        layout = batch.layouts[index]
        seen = taken.get(places[index])
        if seen is None:
            taken[places[index]] = set(layout)
        elif seen.isdisjoint(layout):
            seen.update(layout)
        else:
            left = [(m, v) for m, v in zip(layout, batch.values[index], strict=True) if m not in seen]
            collapsed += len(layout) - len(left)
            if not left:
                continue
            names, values = zip(*left, strict=True)
            shrunk[index] = (names, values)
            seen.update(names)
        keep.append(index)
    if not collapsed:
        return batch
    keep.reverse()
    result = batch.select(keep)
    for place, index in enumerate(keep):
        if index in shrunk:
            result.layouts[place], result.values[place] = shrunk[index]
    result.attributes = batch.attributes
    result.collapsed = batch.collapsed + collapsed
    return result
