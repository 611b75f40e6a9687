"""The checks of QARTOD, as arrays in, flags out.

Sources: QARTOD real-time quality control manuals (U.S. IOOS), in the form of ioos_qc 3.0.0's
``qartod`` module, whose argument names and verdicts these follow; where one differs, its docstring
says so. ``inp`` are float64 values with NaN for missing, ``times_ms`` epoch milliseconds, ascending.
Every check answers with uint8 flags of the shape of ``inp``; a missing value is flagged 9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fieldring.model import Flag

__all__ = ["Flags", "Times", "Values", "aggregate", "flat_line", "gross_range", "rate_of_change", "spike"]

Values = NDArray[np.float64]
Times = NDArray[np.int64]
Flags = NDArray[np.uint8]

# From the weakest to the strongest verdict, as qartod_compare has it.
_PRECEDENCE = tuple(
    int(flag) for flag in (Flag.MISSING, Flag.NOT_EVALUATED, Flag.GOOD, Flag.SUSPECT, Flag.FAIL)
)


def aggregate(vectors: Sequence[Flags], *, size: int) -> Flags:
    """The strongest flag of each position: fail, suspect, good, not evaluated, missing.

    Source: ``qartod_compare``. Without any vector nothing was evaluated, so all are 2.
    """
    if not vectors:
        return np.full(size, Flag.NOT_EVALUATED, dtype=np.uint8)
    result = np.full(size, Flag.MISSING, dtype=np.uint8)
    for flag in _PRECEDENCE[1:]:
        for vector in vectors:
            result[vector == flag] = flag
    return result


def gross_range(
    inp: Values,
    *,
    fail_span: tuple[float, float],
    suspect_span: tuple[float, float] | None = None,
) -> Flags:
    """4 outside of ``fail_span``, 3 outside of ``suspect_span``; both ends of a span belong to it.

    Source: QARTOD gross range test, ``gross_range_test``.

    [1, 2, 3, 4, 8] with fail_span (0, 5) and suspect_span (1, 3) gives [1, 1, 1, 3, 4].
    """
    flags = np.full(inp.shape, Flag.GOOD, dtype=np.uint8)
    # A comparison with NaN is False, so missing values pass through to the last line.
    if suspect_span is not None:
        low, high = sorted(suspect_span)
        flags[(inp < low) | (inp > high)] = Flag.SUSPECT
    low, high = sorted(fail_span)
    flags[(inp < low) | (inp > high)] = Flag.FAIL
    flags[np.isnan(inp)] = Flag.MISSING
    return flags


def spike(
    inp: Values,
    *,
    suspect_threshold: float | None = None,
    fail_threshold: float | None = None,
    method: Literal["average", "differential"] = "average",
) -> Flags:
    """3 or 4 where a value stands out from its two neighbours by more than a threshold.

    Source: QARTOD spike test, ``spike_test``. ``average``: the distance from the midpoint of both
    neighbours. ``differential``: the smaller of the two steps, if they point in opposite directions.
    The first and the last value, and values beside a missing one, are 2.

    [10, 10, 50, 10, 10] with thresholds 25 and 35 gives [2, 1, 4, 1, 2].
    """
    flags = np.full(inp.shape, Flag.GOOD, dtype=np.uint8)
    size = inp.size
    distance = np.zeros(size)
    if size > 2:
        steps = np.diff(inp)
        if method == "average":
            distance[1:-1] = np.abs(inp[1:-1] - (inp[:-2] + inp[2:]) / 2)
        else:
            smaller = np.minimum(np.abs(steps[:-1]), np.abs(steps[1:]))
            smaller[steps[:-1] * steps[1:] >= 0] = 0
            distance[1:-1] = smaller
    # As in ioos_qc a threshold of zero is none.
    if suspect_threshold:
        flags[distance > suspect_threshold] = Flag.SUSPECT
    if fail_threshold:
        flags[distance > fail_threshold] = Flag.FAIL
    flags[:1] = Flag.NOT_EVALUATED
    flags[-1:] = Flag.NOT_EVALUATED
    flags[np.isnan(distance)] = Flag.NOT_EVALUATED
    flags[np.isnan(inp)] = Flag.MISSING
    return flags


def rate_of_change(
    inp: Values,
    times_ms: Times,
    *,
    threshold: float,
    fail_threshold: float | None = None,
) -> Flags:
    """3 or 4 where the step from the value before is steeper than a threshold, in units per second.

    Source: QARTOD rate of change test, ``rate_of_change_test``. The first value, and one after a
    missing value, are 1. Differs: time steps count in milliseconds, ioos_qc cuts them to seconds.

    [0, 1, 11] at 0 s, 1 s, 2 s with threshold 5 gives [1, 1, 3].
    """
    flags = np.full(inp.shape, Flag.GOOD, dtype=np.uint8)
    if inp.size > 1:
        seconds = np.diff(times_ms) / 1000.0
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.abs(np.diff(inp)) / seconds
        flags[1:][rate > threshold] = Flag.SUSPECT
        if fail_threshold is not None:
            flags[1:][rate > fail_threshold] = Flag.FAIL
    flags[np.isnan(inp)] = Flag.MISSING
    return flags


def flat_line(
    inp: Values,
    times_ms: Times,
    *,
    suspect_threshold: float,
    fail_threshold: float,
    tolerance: float = 0.0,
) -> Flags:
    """3 or 4 where all values of the last so many seconds lie within less than ``tolerance``.

    Source: QARTOD flat line test, ``flat_line_test``: seconds become a number of observations by the
    median interval of the given slice (whole seconds), so the verdict depends on the slice; see
    ``Check.window_s`` for the one that the product uses. Fewer than 3 values are all 1.
    Differs: a threshold shorter than the interval flags nothing, where ioos_qc flags everything;
    intervals below one second are used as they are, where ioos_qc divides by zero.

    [1, 2, 2, 2, 2, 2] at one-second steps, thresholds 2 and 4, tolerance 0.1 gives [1, 1, 1, 3, 3, 4].
    """
    flags = np.full(inp.shape, Flag.GOOD, dtype=np.uint8)
    if inp.size >= 3:
        interval = float(np.median(np.diff(times_ms))) / 1000.0
        if interval >= 1.0:
            interval = float(np.floor(interval))
        for limit, flag in ((suspect_threshold, Flag.SUSPECT), (fail_threshold, Flag.FAIL)):
            count = int(int(limit) / interval) if interval > 0 else 0
            if count < 1 or inp.size <= count:
                continue
            spread = _sliding(np.fmax, inp, count + 1) - _sliding(np.fmin, inp, count + 1)
            flags[count:][spread < tolerance] = flag
    flags[np.isnan(inp)] = Flag.MISSING
    return flags


def _sliding(pick: Callable[[Values, Values], Values], inp: Values, width: int) -> Values:
    """``pick`` over every window of ``width`` values, by doubling: n log(width) instead of n width."""
    result = inp
    span = 1
    while span * 2 <= width:
        result = pick(result[span:], result[:-span])
        span *= 2
    rest = width - span
    return pick(result[rest:], result[:-rest]) if rest else result
