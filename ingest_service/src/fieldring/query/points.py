"""Points with their flags: values from one table, verdicts from another, joined as they stream."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from typing import NamedTuple

from fieldring.model import DAY_MS, HOUR_MS, Flag, FlaggedPoint, HourFlags, Point, Store, fingerprint
from fieldring.query import cursor
from fieldring.query.cursor import Position

__all__ = ["Page", "PointsQuery", "page", "stream"]

_LONGEST_SPAN_MS = 32 * DAY_MS
_POINTS_WANTED = 20_000
_Verdict = tuple[Flag, tuple[str, ...]]
_GOOD: _Verdict = (Flag.GOOD, ())
_NOT_EVALUATED: _Verdict = (Flag.NOT_EVALUATED, ())


class _Judged(NamedTuple):
    """What a verdict says: of the times in ``bad``, and of all others."""

    read_received: int
    bad: dict[int, _Verdict]
    other: _Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class PointsQuery:
    """Which points. Without a start or end: from the sensor's first point, through its last."""

    sensor: str
    metric: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    flags: frozenset[Flag] | None = None

    @property
    def question(self) -> tuple[object, ...]:
        """What a cursor is bound to."""
        flags = None if self.flags is None else tuple(sorted(map(int, self.flags)))
        return (self.sensor, self.metric, self.start_ms, self.end_ms, flags)


@dataclass(frozen=True, slots=True)
class Page:
    """Some points, and the cursor of those that follow, if any do."""

    points: list[FlaggedPoint]
    next: str | None


def page(store: Store, query: PointsQuery, *, limit: int, after: str | None = None) -> Page:
    """At most ``limit`` points after the cursor ``after``.

    Raises:
        InvalidRequest: the cursor is not of this query.
    """
    position = cursor.decode(after, question=query.question) if after else None
    points = list(islice(stream(store, query, after=position), limit + 1))
    if len(points) <= limit:
        return Page(points, None)
    last = points[limit - 1]
    place = Position(last.sensor, last.time_ms, last.metric)
    return Page(points[:limit], cursor.encode(place, question=query.question))


def stream(store: Store, query: PointsQuery, *, after: Position | None = None) -> Iterator[FlaggedPoint]:
    """The query's points in the order of (time, metric), those up to ``after`` left out.

    Verdicts are read before the points they speak of: a point accepted in between is newer than its
    verdict and reads as not evaluated, never as good.
    """
    span = _bounds(store, query)
    if span is None:
        return
    start, end = span
    if after is not None:
        start = max(start, after.time_ms)
    length = DAY_MS
    while start < end:
        stop = min(end, start - start % DAY_MS + length)
        count = 0
        for point in _flagged(store, query, start, stop):
            count += 1
            if after is not None and (point.time_ms, point.metric) <= (after.time_ms, after.metric):
                continue
            if query.flags is None or point.flag in query.flags:
                yield point
        # Sparse series are read in long strides, dense ones a day at a time, so memory stays bounded.
        if count * 2 < _POINTS_WANTED:
            length = min(length * 2, _LONGEST_SPAN_MS)
        elif count > _POINTS_WANTED:
            length = max(DAY_MS, length // 2)
        start = stop


def _bounds(store: Store, query: PointsQuery) -> tuple[int, int] | None:
    start, end = query.start_ms, query.end_ms
    if start is None or end is None or end - start > _LONGEST_SPAN_MS:
        # Years that hold nothing need not be walked through day by day.
        info = store.sensor(query.sensor)
        if info is None:
            return None
        start = info.first_ms if start is None else max(start, info.first_ms)
        end = info.last_ms + 1 if end is None else min(end, info.last_ms + 1)
    return start, end


def _flagged(store: Store, query: PointsQuery, start: int, end: int) -> Iterator[FlaggedPoint]:
    verdicts: dict[int, dict[str, HourFlags]] = {}
    for verdict in store.hour_flags(query.sensor, start_ms=start, end_ms=end):
        if query.metric is None or verdict.metric == query.metric:
            verdicts.setdefault(verdict.hour_ms // HOUR_MS, {})[verdict.metric] = verdict
    metrics = None if query.metric is None else (query.metric,)
    # Whether a verdict speaks of all the points that are there is seen in whole hours only.
    first, last = (start - start % HOUR_MS, end + -end % HOUR_MS) if verdicts else (start, end)
    points = store.points(query.sensor, start_ms=first, end_ms=last, metrics=metrics)
    for hour, group in groupby(points, key=lambda point: point.time_ms // HOUR_MS):
        found = verdicts.get(hour)
        if found is None:
            judged: dict[str, _Judged] = {}
            rows: Iterable[Point] = group
        else:
            rows = list(group)
            judged = _judged(found, rows)
        for sensor, time_ms, metric, value, received in rows:
            if not start <= time_ms < end:
                continue
            flag, tests = _NOT_EVALUATED
            known = judged.get(metric)
            if known is not None and received <= known.read_received and value.__class__ is not str:
                flag, tests = known.bad.get(time_ms, known.other)
            yield FlaggedPoint(sensor, time_ms, metric, value, flag, tests)


def _judged(verdicts: Mapping[str, HourFlags], points: Iterable[Point]) -> dict[str, _Judged]:
    """What the verdicts on one hour say of its points, which are all given."""
    times = {metric: array("q") for metric in verdicts}
    upto = {metric: verdict.read_received for metric, verdict in verdicts.items()}
    for _, time_ms, metric, value, received in points:
        if metric in upto and received <= upto[metric] and value.__class__ is not str:
            times[metric].append(time_ms)
    return {
        metric: _Judged(
            verdict.read_received,
            {time_ms: (flag, tests) for time_ms, flag, tests in verdict.bad},
            _GOOD if verdict.points in (None, fingerprint(times[metric].tobytes())) else _NOT_EVALUATED,
        )
        for metric, verdict in verdicts.items()
    }
