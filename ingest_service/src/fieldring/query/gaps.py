"""What never arrived of a gateway's blocks, from the runs that did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fieldring.model import Arrivals

__all__ = ["EpochGaps", "Gap", "gaps_of"]


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers ``first`` to ``last``. Final: the gateway has nothing of them any more."""

    first: int
    last: int
    final: bool


@dataclass(frozen=True, slots=True)
class EpochGaps:
    """One life of a gateway's spool; numbers begin with 1."""

    epoch: int
    last: int
    seen_ms: int
    gaps: tuple[Gap, ...]


def gaps_of(runs: Iterable[Arrivals]) -> list[EpochGaps]:
    """Holes of each epoch, the epoch seen last first. Runs of several writers may overlap."""
    epochs: dict[int, list[Arrivals]] = {}
    for run in runs:
        epochs.setdefault(run.epoch, []).append(run)
    found = []
    for epoch, members in epochs.items():
        oldest = max(run.oldest for run in members)
        gaps: list[Gap] = []
        expected = 1
        for run in sorted(members, key=lambda run: run.first):
            if run.first > expected:
                gaps += _split(expected, run.first - 1, oldest)
            expected = max(expected, run.last + 1)
        if oldest > expected:
            # Given up by the gateway behind the last one that came.
            gaps.append(Gap(expected, oldest - 1, final=True))
            expected = oldest
        seen_ms = max(run.seen_ms for run in members)
        found.append(EpochGaps(epoch, expected - 1, seen_ms, tuple(gaps)))
    return sorted(found, key=lambda one: (-one.seen_ms, one.epoch))


def _split(first: int, last: int, oldest: int) -> list[Gap]:
    if first < oldest <= last:
        return [Gap(first, oldest - 1, final=True), Gap(oldest, last, final=False)]
    return [Gap(first, last, final=last < oldest)]
