"""``fieldring import``: CSV files to the HTTP API, with progress on stderr.

Long files have the columns ``time,sensor,metric,value``; wide ones ``time``, maybe ``sensor``, and one
column per metric. Empty cells and ``NA`` are values that are missing. Keys repeat, so a file may be
imported again, whole or from the line where the last run stopped.
"""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from fieldring.client import Client, Reading, Refused

__all__ = ["Import", "UnreadableFile"]

MISSING = frozenset({"", "na", "nan", "null", "none", "n/a"})
_LONG = {"time", "sensor", "metric", "value"}
_PROGRESS_EVERY_S = 1.0


class UnreadableFile(Exception):  # noqa: N818
    """A file that cannot be imported at all; the text names file and line."""


@dataclass(slots=True)
class Import:
    """One run over some files. ``report`` gets one line per problem, ``progress`` what was done so far."""

    client: Client
    sensor: str = ""
    text: bool = False
    batch_points: int = 5_000
    from_line: int = 1
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr)
    progress: Callable[[str], None] = lambda line: None
    clock: Callable[[], float] = time.monotonic

    rows: int = 0
    points: int = 0
    missing: int = 0
    refused: int = 0
    spooled: int = 0
    collapsed: int = 0
    line: int = 0
    sent_line: int = 0
    """All rows of the file up to this line were sent, or refused."""
    _readings: list[Reading] = field(default_factory=list)
    _lines: list[int] = field(default_factory=list)
    _started: float = 0.0
    _shown: float = 0.0

    def file(self, path: Path) -> None:
        """Import one file (``-``: standard input).

        Raises:
            UnreadableFile: missing, not UTF-8, or without the columns that are needed.
            RequestFailed: the service does not take it.
        """
        self._started = self._shown = self.clock()
        self.line = self.sent_line = 0
        try:
            if str(path) == "-":
                self._stream("standard input", sys.stdin)
            else:
                with path.open(encoding="utf-8-sig", newline="") as stream:
                    self._stream(str(path), stream)
        except OSError as error:
            raise UnreadableFile(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UnreadableFile(f"{path}:{self.line + 1}: not valid UTF-8 ({error.reason})") from error
        except csv.Error as error:
            raise UnreadableFile(f"{path}:{self.line + 1}: {error}") from error

    def _stream(self, name: str, stream: TextIO) -> None:
        table = csv.reader(stream, strict=True)
        header = [column.strip() for column in next(table, [])]
        read = self._columns(name, header)
        for row in table:
            self.line = table.line_num
            if not row or self.line < self.from_line:
                continue
            self.rows += 1
            if len(row) != len(header):
                self._refuse(name, self.line, f"{len(row)} columns, but the header has {len(header)}")
                continue
            for reading in read(name, self.line, row):
                self._readings.append(reading)
                self._lines.append(self.line)
            if len(self._readings) >= self.batch_points:
                self._send(name)
        self._send(name)

    def _columns(self, name: str, header: list[str]) -> Callable[[str, int, list[str]], Iterator[Reading]]:
        """How rows of this file are read."""
        if len(set(header)) != len(header):
            twice = next(c for c in header if header.count(c) > 1)
            raise UnreadableFile(f"{name}:1: column {twice!r} occurs twice")
        if "time" not in header:
            raise UnreadableFile(f"{name}:1: no column 'time' in {header!r}")
        place = {column: index for index, column in enumerate(header)}
        if set(header) >= {"metric", "value"}:
            if set(header) - _LONG:
                raise UnreadableFile(
                    f"{name}:1: unknown columns {sorted(set(header) - _LONG)}: "
                    "a long file has time,sensor,metric,value"
                )
            metrics: list[tuple[str, int]] = []
        else:
            metrics = [(c, i) for c, i in place.items() if c not in ("time", "sensor") and c]
            if not metrics:
                raise UnreadableFile(f"{name}:1: no column with values: expected one per metric")
        if not self.sensor and "sensor" not in place:
            raise UnreadableFile(f"{name}:1: no column 'sensor': name the sensor with --sensor")
        time_at, sensor_at = place["time"], place.get("sensor")

        def read(name: str, line: int, row: list[str]) -> Iterator[Reading]:
            sensor = self.sensor or (row[sensor_at] if sensor_at is not None else "")
            try:
                time_ms = _time(row[time_at])
            except ValueError as error:
                self._refuse(name, line, f"time {row[time_at]!r}: {error}")
                return
            if not sensor:
                self._refuse(name, line, "sensor is empty")
                return
            cells = metrics or [(row[place["metric"]], place["value"])]
            for metric, index in cells:
                value = self._value(name, line, metric, row[index].strip())
                if value is not None:
                    yield Reading(sensor, time_ms, metric, value)

        return read

    def _value(self, name: str, line: int, metric: str, cell: str) -> float | str | None:
        if not metric:
            self._refuse(name, line, "metric is empty")
            return None
        if cell.lower() in MISSING:
            self.missing += 1
            return None
        try:
            value = float(cell)
            if math.isfinite(value) and "_" not in cell:
                return value
        except ValueError:
            pass
        if self.text:
            return cell
        self._refuse(name, line, f"{metric}: {cell!r} is not a finite number (--text keeps it as text)")
        return None

    def _refuse(self, name: str, line: int, reason: str) -> None:
        self.refused += 1
        self.report(f"{name}:{line}: {reason}")

    def _send(self, name: str) -> None:
        if self._readings:
            refused = 0
            try:
                written = self.client.write(self._readings)
            except Refused as error:
                refused = len(error.errors)
                for index, reason in error.errors:
                    self._refuse(name, self._lines[index], reason)
            else:
                self.collapsed += written.collapsed
                if written.durability == "spooled":
                    self.spooled += len(self._readings)
            self.points += len(self._readings) - refused
            self._readings, self._lines = [], []
        self.sent_line = self.line
        now = self.clock()
        if now - self._shown >= _PROGRESS_EVERY_S:
            self._shown = now
            rate = self.points / max(now - self._started, 1e-9)
            self.progress(f"{name}:{self.line}: {self.points} points, {rate:.0f}/s")


def _time(text: str) -> int:
    """Epoch ms, or RFC 3339 with an offset."""
    text = text.strip()
    if text.lstrip("+-").isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("neither epoch milliseconds nor RFC 3339") from None
    if moment.tzinfo is None:
        raise ValueError("no offset from UTC: write 2024-01-31T12:00:00Z or +01:00")
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _MS


_MS = datetime(1970, 1, 1, microsecond=1000) - datetime(1970, 1, 1)
