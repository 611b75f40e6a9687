"""How points and sensors are written out: JSON, NDJSON and CSV.

All formats carry the same columns, and times as RFC 3339 in UTC with milliseconds and ``Z``. Numbers
are written with as many digits as it takes to read the same double back. In CSV a text value is always
quoted and a number never is; ``tests`` are joined by ``;``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import msgspec

from fieldring.model import FlaggedPoint, SensorInfo
from fieldring.query import EpochGaps, format_time

__all__ = [
    "CONTENT_TYPES",
    "WRITERS",
    "gaps_row",
    "points_csv",
    "points_json",
    "points_ndjson",
    "sensor_row",
    "sensors_csv",
]

CONTENT_TYPES = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
}

_CHUNK = 1000


class _PointRow(msgspec.Struct):
    time: str
    sensor: str
    metric: str
    value: float | str
    flag: int
    tests: tuple[str, ...]


_encoder = msgspec.json.Encoder()


def _rows(points: Iterable[FlaggedPoint]) -> list[_PointRow]:
    return [_PointRow(format_time(p[1]), p[0], p[2], p[3], int(p[4]), p[5]) for p in points]


def points_json(points: Iterable[FlaggedPoint], cursor: str | None) -> Iterator[bytes]:
    """``{"points": [...], "next": ...}``."""
    lead = b'{"points":['
    for chunk in _chunks(points):
        yield lead + _encoder.encode(_rows(chunk))[1:-1]
        lead = b","
    yield (lead if lead != b"," else b"") + b'],"next":' + _encoder.encode(cursor) + b"}\n"


def points_ndjson(points: Iterable[FlaggedPoint], cursor: str | None) -> Iterator[bytes]:
    """One point a line; the last line, ``{"count": n, "next": ...}``, tells that nothing is missing."""
    count = 0
    for chunk in _chunks(points):
        count += len(chunk)
        yield _encoder.encode_lines(_rows(chunk))
    yield _encoder.encode({"count": count, "next": cursor}) + b"\n"


def points_csv(points: Iterable[FlaggedPoint], cursor: str | None) -> Iterator[bytes]:
    """With a header line; where a page ends is told in the answer's ``Fieldring-Next`` header only."""
    lead = "time,sensor,metric,value,flag,tests\n"
    names: dict[str, str] = {}
    for chunk in _chunks(points):
        lines = [lead]
        for sensor, time_ms, metric, value, flag, tests in chunk:
            for name in (sensor, metric):
                if name not in names:
                    names[name] = _field(name)
            text = _quoted(value) if isinstance(value, str) else repr(value)
            lines.append(
                f"{format_time(time_ms)},{names[sensor]},{names[metric]},{text},{int(flag)},{';'.join(tests)}\n"
            )
        yield "".join(lines).encode()
        lead = ""
    if lead:
        yield lead.encode()


def sensor_row(info: SensorInfo, *, site: str) -> dict[str, object]:
    """A sensor as ``/v1/sensors`` tells of it; its own attribute ``site`` goes before the service's."""
    return {
        "sensor": info.sensor,
        "site": info.attributes.get("site", site),
        "attributes": dict(info.attributes),
        "metrics": list(info.metrics),
        "first": format_time(info.first_ms),
        "last": format_time(info.last_ms),
    }


def gaps_row(epoch: EpochGaps) -> dict[str, object]:
    """One life of a gateway's spool. ``epoch`` is a text, as its digits exceed what JSON readers keep."""
    return {
        "epoch": str(epoch.epoch),
        "last": epoch.last,
        "seen": format_time(epoch.seen_ms),
        "missing": sum(gap.last - gap.first + 1 for gap in epoch.gaps),
        "gaps": [
            {
                "first": gap.first,
                "last": gap.last,
                "count": gap.last - gap.first + 1,
                "state": "lost" if gap.final else "pending",
            }
            for gap in epoch.gaps
        ],
    }


def sensors_csv(sensors: Iterable[SensorInfo], *, site: str) -> Iterator[bytes]:
    """``sensor,site,metrics,first,last,attributes``: metrics joined by ``;``, attributes as JSON."""
    yield b"sensor,site,metrics,first,last,attributes\n"
    for info in sensors:
        row = sensor_row(info, site=site)
        fields = (
            info.sensor,
            str(row["site"]),
            ";".join(info.metrics),
            str(row["first"]),
            str(row["last"]),
            _encoder.encode(row["attributes"]).decode(),
        )
        yield (",".join(map(_field, fields)) + "\n").encode()


def _chunks(points: Iterable[FlaggedPoint]) -> Iterator[list[FlaggedPoint]]:
    iterator = iter(points)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _field(text: str) -> str:
    # Blanks at the ends and an empty text are quoted too: readers differ in what they make of them.
    special = any(c in text for c in ',"\r\n') or text != text.strip() or not text
    return _quoted(text) if special else text


PointsWriter = Callable[[Iterable[FlaggedPoint], str | None], Iterator[bytes]]
WRITERS: dict[str, PointsWriter] = {"json": points_json, "ndjson": points_ndjson, "csv": points_csv}
