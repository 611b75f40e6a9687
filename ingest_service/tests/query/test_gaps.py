"""What never arrived, from the runs that did."""

from __future__ import annotations

import pytest

from fieldring.model import Arrivals
from fieldring.query import EpochGaps, Gap, gaps_of


def run(
    first: int, last: int, *, oldest: int = 0, epoch: int = 9, writer: str = "w", seen_ms: int = 1
) -> Arrivals:
    return Arrivals("gw", epoch, first, last, writer, oldest, seen_ms)


@pytest.mark.parametrize(
    ("runs", "gaps", "last"),
    [
        ([run(1, 5)], (), 5),
        ([run(1, 5), run(6, 9, writer="x")], (), 9),
        ([run(1, 5), run(3, 9, writer="x"), run(2, 2)], (), 9),
        ([run(3, 5)], (Gap(1, 2, final=False),), 5),
        ([run(3, 5, oldest=3)], (Gap(1, 2, final=True),), 5),
        ([run(1, 2), run(9, 9, oldest=5)], (Gap(3, 4, final=True), Gap(5, 8, final=False)), 9),
        ([run(1, 2), run(9, 9, oldest=9)], (Gap(3, 8, final=True),), 9),
        ([run(1, 2, oldest=6)], (Gap(3, 5, final=True),), 5),
    ],
    ids=[
        "none", "of two hosts", "overlapping", "beginning, may come", "beginning, lost", "half lost", "lost",
        "lost behind the last",
    ],
)  # fmt: skip
def test_gaps(runs: list[Arrivals], gaps: tuple[Gap, ...], last: int) -> None:
    """Every number between 1 and the last known one is in a run or in a gap."""
    assert gaps_of(reversed(runs)) == [EpochGaps(9, last, 1, gaps)]


def test_epochs() -> None:
    """Each life of a spool by itself, the newest first."""
    found = gaps_of([run(1, 1, epoch=5, seen_ms=10), run(2, 2, epoch=4, seen_ms=20)])
    assert [(one.epoch, len(one.gaps)) for one in found] == [(4, 1), (5, 0)]
