"""What all rooms speak of: batches of points, flags, receipts and the Store protocol.

Units throughout: point times are epoch **milliseconds** (``int``), acceptance times (``received``)
epoch **microseconds** (``int``). No I/O, no clock: time comes in as an argument.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "DAY_MS",
    "HOUR_MS",
    "MINUTE_MS",
    "Arrivals",
    "Batch",
    "Columns",
    "Flag",
    "FlaggedPoint",
    "HourFlags",
    "Layout",
    "Mark",
    "PackedBatch",
    "Point",
    "Receipt",
    "Row",
    "SensorInfo",
    "Store",
    "Value",
    "fingerprint",
]

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000

Value = float | str
"""A measured value: numbers are doubles (booleans 1.0/0.0), everything else is text."""

Layout = tuple[str, ...]
"""The metric names of one row, in the order of its values. Unique within the tuple."""


class Flag(IntEnum):
    """Primary flags of QARTOD (IOOS Manual, UNESCO 2013)."""

    GOOD = 1
    NOT_EVALUATED = 2
    SUSPECT = 3
    FAIL = 4
    MISSING = 9


class Row(NamedTuple):
    """One source line or record: the metrics that one sensor reported for one instant."""

    sensor: str
    time_ms: int
    layout: Layout
    values: tuple[Value, ...]


@dataclass(slots=True)
class Batch:
    """Rows of one request or block, as parallel columns of length n.

    All rows share ``received``, the time of first acceptance in µs: it decides which of two values
    for the same (sensor, time, metric) stands, and it is kept through spool, block and replay.
    Within a batch a key occurs once only (decoders let the last line win and count the rest in
    ``collapsed``). ``received`` is 0 until the batch is accepted.
    """

    sensors: list[str] = field(default_factory=list)
    times_ms: list[int] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    values: list[tuple[Value, ...]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """Source line of each row, from 1; not kept beyond the request."""
    received: int = 0
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    """Sensor → attributes seen with it in this batch (the last one wins)."""
    collapsed: int = 0

    def __len__(self) -> int:
        return len(self.sensors)

    @property
    def points(self) -> int:
        """Number of (sensor, time, metric) values."""
        return sum(map(len, self.layouts))

    @property
    def names(self) -> Collection[str]:
        """Each sensor once."""
        return set(self.sensors)

    @property
    def span(self) -> tuple[int, int]:
        """First and last time of a batch that is not empty."""
        return min(self.times_ms), max(self.times_ms)

    def rows(self) -> Iterator[Row]:
        return map(Row, self.sensors, self.times_ms, self.layouts, self.values)

    def append(self, row: Row, *, line: int = 0) -> None:
        self.sensors.append(row.sensor)
        self.times_ms.append(row.time_ms)
        self.layouts.append(row.layout)
        self.values.append(row.values)
        self.lines.append(line)

    def select(self, indexes: Sequence[int]) -> Batch:
        """A batch of the rows at ``indexes`` only, in that order."""
        sensors = [self.sensors[i] for i in indexes]
        kept = set(sensors)
        return Batch(
            sensors=sensors,
            times_ms=[self.times_ms[i] for i in indexes],
            layouts=[self.layouts[i] for i in indexes],
            values=[self.values[i] for i in indexes],
            lines=[self.lines[i] for i in indexes] if self.lines else [],
            received=self.received,
            attributes={s: a for s, a in self.attributes.items() if s in kept},
            collapsed=self.collapsed,
        )


class Columns(NamedTuple):
    """Rows of one layout, all of numbers, as arrays."""

    sensors: list[str]
    """Each sensor once, in the order of its first row."""
    sensor_of: NDArray[np.uint32]
    times_ms: NDArray[np.int64]
    layout: Layout
    values: NDArray[np.float64]
    """Of shape (rows, metrics)."""
    first_line: int
    """The rows' lines follow one another from here."""


class PackedBatch(Batch):
    """A batch of arrays, which is spooled without an object for every value.

    Whoever asks for a list gets one: all of them are made then, once, and it is a batch like any other.
    """

    __slots__ = ("columns",)

    def __init__(self, columns: Columns, *, attributes: dict[str, dict[str, str]]) -> None:
        self.columns: Columns | None = columns
        """None once the lists are made, as they may be changed."""
        self.received = 0
        self.attributes = attributes
        self.collapsed = 0

    def __getattr__(self, name: str) -> Any:
        if name not in ("sensors", "times_ms", "layouts", "values", "lines") or self.columns is None:
            raise AttributeError(name)
        columns, self.columns = self.columns, None
        count = len(columns.times_ms)
        self.sensors = [columns.sensors[i] for i in columns.sensor_of.tolist()]
        self.times_ms = columns.times_ms.tolist()
        self.layouts = [columns.layout] * count
        self.values = list(zip(*columns.values.T.tolist(), strict=True))
        self.lines = list(range(columns.first_line, columns.first_line + count))
        return getattr(self, name)

    def __repr__(self) -> str:
        return repr(self._listed())

    def __eq__(self, other: object) -> bool:
        return bool(self._listed() == (other._listed() if isinstance(other, PackedBatch) else other))

    __hash__ = None  # type: ignore[assignment]

    def _listed(self) -> Batch:
        return Batch(
            self.sensors,
            self.times_ms,
            self.layouts,
            self.values,
            self.lines,
            self.received,
            self.attributes,
            self.collapsed,
        )

    def __len__(self) -> int:
        return len(self.sensors) if self.columns is None else len(self.columns.times_ms)

    @property
    def points(self) -> int:
        return super().points if self.columns is None else self.columns.values.size

    @property
    def names(self) -> Collection[str]:
        return super().names if self.columns is None else self.columns.sensors

    @property
    def span(self) -> tuple[int, int]:
        if self.columns is None:
            return super().span
        times = self.columns.times_ms
        return int(times.min()), int(times.max())


class Point(NamedTuple):
    """One stored value after the merge per key. Ordered by (time_ms, metric) within a sensor."""

    sensor: str
    time_ms: int
    metric: str
    value: Value
    received: int


class FlaggedPoint(NamedTuple):
    """A point as readers see it; ``tests`` names the tests that raised the flag, sorted."""

    sensor: str
    time_ms: int
    metric: str
    value: Value
    flag: Flag
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HourFlags:
    """Verdicts on one hour of one metric, always replaced whole.

    ``bad`` lists only what is not good: (time_ms, flag, tests). A point of the hour that is not
    listed is good if its ``received`` is at most ``read_received``, else not evaluated. As what waited in a
    spool comes late under an older ``received``, ``points`` is the ``fingerprint`` of the times that were
    judged: where others are there now, nothing is known to be good. None: written before it was kept.
    ``judged_us`` is the start of the read that the verdict rests on, and the write's timestamp.
    """

    sensor: str
    metric: str
    hour_ms: int
    bad: tuple[tuple[int, Flag, tuple[str, ...]], ...]
    rules_version: str
    read_received: int
    judged_us: int
    points: int | None = None


def fingerprint(times_ms: bytes) -> int:
    """Number and checksum of ascending times, each of 8 bytes."""
    return len(times_ms) // 8 << 32 | zlib.crc32(times_ms)


class Mark(NamedTuple):
    """New data arrived for this hour (epoch ms of its start) of this sensor."""

    sensor: str
    hour_ms: int


@dataclass(frozen=True, slots=True)
class SensorInfo:
    """What is known of a sensor. ``last_ms`` may lag by the registry interval in listings."""

    sensor: str
    attributes: Mapping[str, str]
    metrics: tuple[str, ...]
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an answer promises. ``durability`` is ``stored`` or ``spooled``."""

    durability: str
    points: int
    collapsed: int = 0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Blocks ``first`` to ``last`` of a gateway's epoch, all taken by one process (``writer``).

    ``oldest``: the gateway has nothing before this number any more. ``seen_ms``: when the last of them came.
    """

    gateway: str
    epoch: int
    first: int
    last: int
    writer: str
    oldest: int
    seen_ms: int


class Store(Protocol):
    """Where points and verdicts live. Thread-safe; every call has a deadline of its own.

    Any call raises ``StoreUnavailable`` when the store, or the part it needs, cannot serve now.
    """

    def write(self, batch: Batch) -> None:
        """``write_many`` of one batch."""

    def write_many(self, batches: Sequence[Batch]) -> None:
        """Store the batches durably, then their marks and their sensors' registry rows.

        Returns only when every row is at LOCAL_QUORUM (embedded: committed and fsynced).
        Idempotent: the same batches again change nothing; a key keeps the value with the highest
        ``received``. On ``StoreUnavailable`` any subset may be stored: the caller keeps all.
        """

    def points(
        self,
        sensor: str,
        *,
        start_ms: int,
        end_ms: int,
        metrics: Iterable[str] | None = None,
    ) -> Iterator[Point]:
        """Points in [start_ms, end_ms), merged per key, ordered by (time_ms, metric)."""

    def sensors(self) -> Iterator[SensorInfo]:
        """All sensors, ordered by name."""

    def sensor(self, name: str) -> SensorInfo | None:
        """One sensor with exact first and last time, or None."""

    def attribute_changes(self, sensor: str) -> list[tuple[int, str, str]]:
        """(received, name, value) of every change of the sensor's attributes, oldest first."""

    def hour_flags(self, sensor: str, *, start_ms: int, end_ms: int) -> Iterator[HourFlags]:
        """Verdicts on hours that overlap [start_ms, end_ms), ordered by (hour, metric)."""

    def write_flags(self, flags: Sequence[HourFlags]) -> None:
        """Replace each hour's verdict whole, unless a later ``judged_us`` stands."""

    def marks(self, shard: int, minute: int) -> list[Mark]:
        """Marks that arrived in this minute (epoch minutes) on this shard."""

    def marked_minutes(self, shard: int, *, after: int, upto: int) -> list[int]:
        """Arrival minutes in (after, upto] that have marks on this shard, in order; for long stretches."""

    def cursor(self, shard: int) -> int:
        """The last arrival minute that this shard has closed, or -1."""

    def set_cursor(self, shard: int, minute: int, *, fence: int) -> None:
        """Move the cursor on; a fence older than the lease's is ignored."""

    def lease(self, shard: int, owner: str, *, ttl_s: int) -> int | None:
        """Take or renew the shard's lease. Returns the fencing token, or None if another holds it."""

    def record_arrivals(self, runs: Sequence[Arrivals]) -> None:
        """Keep each run in place of that with the same gateway, epoch, first and writer."""

    def arrivals(self, gateway: str) -> list[Arrivals]:
        """All runs of a gateway, ordered by (epoch, first, writer)."""

    def ping(self) -> None:
        """One cheap read at the store's normal consistency."""

    def close(self) -> None:
        """Release sessions and threads. Idempotent."""
