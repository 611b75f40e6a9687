"""The list of an hour's verdicts as every store keeps it.

The fingerprint of what was judged stands in it as an entry just before the hour: it so is replaced with the
list, needs no change of the schema, and says nothing to a reader that does not know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fieldring.model import Flag, HourFlags

__all__ = ["packed", "unpacked"]


def packed(verdict: HourFlags) -> list[tuple[int, int, list[str]]]:
    """What is to be kept as ``bad``."""
    entries = [(time_ms, int(flag), list(tests)) for time_ms, flag, tests in verdict.bad]
    if verdict.points is not None:
        entries.append((verdict.hour_ms - 1, int(Flag.GOOD), [str(verdict.points)]))
    return entries


def unpacked(
    entries: Iterable[tuple[int, int, Sequence[str] | None]], *, hour_ms: int
) -> tuple[tuple[tuple[int, Flag, tuple[str, ...]], ...], int | None]:
    """``bad`` and ``points`` of what is kept."""
    bad = []
    points = None
    for time_ms, flag, tests in entries:
        if time_ms < hour_ms:
            points = int((tests or ("0",))[0])
        else:
            bad.append((time_ms, Flag(flag), tuple(tests or ())))
    return tuple(bad), points
