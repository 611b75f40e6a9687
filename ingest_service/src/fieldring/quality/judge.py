"""Hours of one metric, judged by its rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from fieldring.model import HOUR_MS, Flag
from fieldring.quality.checks import Flags, Times, Values, aggregate
from fieldring.quality.rules import BoundCheck

__all__ = ["Bad", "judge"]

Bad = tuple[int, Flag, tuple[str, ...]]
"""(time_ms, flag, tests): one point that is not good, as ``HourFlags.bad`` lists it."""

_GOOD, _SUSPECT, _FAIL = int(Flag.GOOD), int(Flag.SUSPECT), int(Flag.FAIL)


def judge(
    checks: Sequence[BoundCheck], times_ms: Times, values: Values, *, hours: Iterable[int]
) -> dict[int, tuple[Bad, ...]]:
    """What is not good in each of ``hours``, given the series with its margins on both sides.

    The verdict on an hour depends on nothing but its points and those that its checks declare, so the
    same data give the same verdict however much more of it is given. ``tests`` names every test that
    said suspect or fail, sorted.
    """
    spans = {hour: np.searchsorted(times_ms, (hour, hour + HOUR_MS)).tolist() for hour in hours}
    vectors = [_run(check, times_ms, values, spans) for check in checks]
    total = aggregate(vectors, size=times_ms.size)
    names = [check.check.name for check in checks]
    found: dict[int, tuple[Bad, ...]] = {}
    for hour, (first, last) in spans.items():
        bad: list[Bad] = []
        for index in (np.flatnonzero(total[first:last] != _GOOD) + first).tolist():
            said = (
                name for name, flags in zip(names, vectors, strict=True) if _SUSPECT <= flags[index] <= _FAIL
            )
            bad.append((int(times_ms[index]), Flag(int(total[index])), tuple(sorted(said))))
        found[hour] = tuple(bad)
    return found


def _run(check: BoundCheck, times_ms: Times, values: Values, spans: dict[int, list[int]]) -> Flags:
    """The flags of one check over the whole series; right in the hours asked for, 1 or 2 elsewhere."""
    if not check.window_ms and not check.lookahead_ms:
        return check.run(values, times_ms)
    flags = np.full(values.shape, _GOOD, dtype=np.uint8)
    if check.check.neighbours:
        # Beyond its reach a neighbour is none: the series is judged in pieces that end there.
        far = np.flatnonzero(np.diff(times_ms) > check.window_ms) + 1
        edges = [0, *far.tolist(), values.size]
        for begin, end in pairwise(edges):
            flags[begin:end] = check.run(values[begin:end], times_ms[begin:end])
        return flags
    suspected = check.check.suspected(values, check.arguments) if check.check.suspected else None
    for hour, (first, last) in spans.items():
        if first == last or (suspected is not None and not suspected[first:last].any()):
            continue
        begin = int(np.searchsorted(times_ms, hour - check.window_ms))
        flags[first:last] = check.run(values[begin:last], times_ms[begin:last])[first - begin :]
    return flags
