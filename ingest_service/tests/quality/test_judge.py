"""Judging one hour: the slices that checks see, the precedence of flags, the tests named."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from fieldring.model import HOUR_MS
from fieldring.quality import NEIGHBOUR_REACH_S, aggregate, flat_line, judge, parse

T0 = 1_700_000_000_000 // HOUR_MS * HOUR_MS


def verdict(
    tests: dict[str, Any], points: dict[int, float], *, start: int = 0
) -> dict[int, tuple[int, tuple[str, ...]]]:
    """Judge the hour from ``start`` seconds; points and answers count in seconds from T0."""
    rules = parse(json.dumps({"version": "1", "metrics": {"m": tests}}), source="test")
    times = np.array([T0 + s * 1000 for s in sorted(points)], dtype=np.int64)
    values = np.array([points[s] for s in sorted(points)])
    begin = T0 + start * 1000
    bad = judge(rules.for_metric("m"), times, values, hours=[begin])[begin]
    return {(t - T0) // 1000: (int(flag), tests) for t, flag, tests in bad}


RANGE = {"fail_span": [0, 100], "suspect_span": [0, 50]}
SPIKE = {"suspect_threshold": 10, "fail_threshold": 1000}


def test_the_strongest_flag_wins_and_all_that_spoke_are_named() -> None:
    """Fail by range, suspect by spike: 4, and both tests."""
    found = verdict({"spike": SPIKE, "gross_range": RANGE}, {0: 1, 60: 150, 120: 1, 180: 1})
    assert (4, ("gross_range", "spike")) == found[60]
    assert (3, ("spike",)) == found[120]


def test_what_only_an_undefined_test_judges_is_not_evaluated() -> None:
    """A spike needs two neighbours; with a range beside it, the range decides."""
    assert {0: (2, ())} == verdict({"spike": SPIKE}, {0: 1})
    assert {} == verdict({"spike": SPIKE, "gross_range": RANGE}, {0: 1})


@pytest.mark.parametrize(("gap", "seen"), [(NEIGHBOUR_REACH_S - 1, True), (NEIGHBOUR_REACH_S + 1, False)])
def test_a_neighbour_may_be_a_day_away_and_no_further(gap: int, seen: bool) -> None:
    """On both sides; daily series are judged, values around a long gap are not."""
    found = verdict({"spike": SPIKE}, {-gap: 1, 0: 50, 60: 1})
    assert seen == (found.get(0) == (3, ("spike",)))
    found = verdict({"spike": SPIKE}, {3000: 1, 3060: 50, 3060 + gap: 1})
    assert seen == (found.get(3060) == (3, ("spike",)))


def test_a_flat_line_looks_back_over_hours() -> None:
    """Twice the threshold back, whatever else was read."""
    flat = {"suspect_threshold": 7200, "fail_threshold": 14400, "tolerance": 0.1}
    points = dict.fromkeys(range(-18000, 3600, 600), 5.0)
    found = verdict({"flat_line": flat}, points)
    assert dict.fromkeys(range(0, 3600, 600), (4, ("flat_line",))) == found
    longer = dict.fromkeys(range(-90000, -18000, 600), 7.0) | points
    assert found == verdict({"flat_line": flat}, longer)


def test_an_empty_hour_has_no_verdicts() -> None:
    """Nothing to judge between what lies around it."""
    assert {} == verdict({"gross_range": RANGE}, {-1: 500, 3600: 500})


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([[1, 2, 3, 4, 9], [9, 9, 9, 9, 9]], [1, 2, 3, 4, 9]),
        ([[1, 1, 1, 2], [2, 3, 4, 9]], [1, 3, 4, 2]),
        ([], [2, 2]),
    ],
)
def test_precedence(vectors: list[list[int]], expected: list[int]) -> None:
    """Fail, suspect, good, not evaluated, missing."""
    arrays = [np.array(v, dtype=np.uint8) for v in vectors]
    assert expected == aggregate(arrays, size=len(expected)).tolist()


@pytest.mark.parametrize("interval_ms", [7_200_000, 0, 250])
def test_intervals_that_ioos_qc_cannot_count_in(interval_ms: int) -> None:
    """A threshold below the interval flags nothing; below one second the interval is used as it is."""
    times = np.arange(20, dtype=np.int64) * interval_ms
    flags = flat_line(np.full(20, 5.0), times, suspect_threshold=2, fail_threshold=4, tolerance=0.1)
    assert ([1] * 8 + [3] * 8 + [4] * 4 if interval_ms == 250 else [1] * 20) == flags.tolist()


def test_many_hours_at_once_are_judged_as_each_by_its_own_slice() -> None:
    """Random series with gaps, spikes and flat stretches; the slices as each check declares them."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    tests = {
        "gross_range": RANGE,
        "spike": SPIKE,
        "rate_of_change": {"threshold": 0.02},
        "flat_line": {"suspect_threshold": 7200, "fail_threshold": 14400, "tolerance": 0.5},
    }
    checks = parse(json.dumps({"version": "1", "metrics": {"m": tests}}), source="test").for_metric("m")
    steps = rng.choice([600_000, 1_200_000, 7_200_000, 100_000_000], 2000, p=[0.8, 0.15, 0.04, 0.01])
    times = T0 + np.cumsum(steps).astype(np.int64)
    values = np.round(20 + np.cumsum(rng.choice([0.0, 3.0, -3.0], 2000, p=[0.8, 0.1, 0.1])), 1)
    values[rng.integers(0, 2000, 20)] += 40
    hours = sorted({int(t) - int(t) % HOUR_MS for t in times})
    found = judge(checks, times, values, hours=hours)
    assert {3, 4} == {int(flag) for bad in found.values() for _, flag, _ in bad} & {3, 4}
    for hour in hours:
        first, last = np.searchsorted(times, (hour, hour + HOUR_MS)).tolist()
        vectors = {}
        for check in checks:
            begin, end = first, last
            if check.check.neighbours:
                begin -= first > 0 and times[first] - times[first - 1] <= check.window_ms
                end += last < times.size and times[last] - times[last - 1] <= NEIGHBOUR_REACH_S * 1000
            else:
                begin = int(np.searchsorted(times, hour - check.window_ms))
            flags = check.run(values[begin:end], times[begin:end])
            vectors[check.check.name] = flags[first - begin : last - begin]
        total = aggregate(list(vectors.values()), size=last - first)
        expected = tuple(
            (int(times[first + i]), total[i], tuple(sorted(n for n, f in vectors.items() if f[i] in (3, 4))))
            for i in np.flatnonzero(total != 1)
        )
        assert expected == found[hour]
