"""Rows as arrays: gathered while a body is decoded, and written as a block's msgpack.

The block has the very bytes that the encoder makes of the lists. Apart from ``line_protocol`` and ``block``,
as only who receives large bodies has to load numpy.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldring.model import Columns, Layout, PackedBatch
from fieldring.wire.decoded import MAX_TIME_MS

__all__ = ["Packer", "encode_columns", "has_repeats", "times_of"]

_EXACT_DIGITS = 15
_POWERS = np.array([10.0**n for n in reversed(range(_EXACT_DIGITS))])

_ENCODER = msgspec.msgpack.Encoder()
_FIELDS = 9
_FIXED_ARRAY, _ARRAY_16, _ARRAY_32 = 0x90, 0xDC, 0xDD
_DOUBLE, _UINT_64 = 0xCB, 0xCF
_SMALL = 128
"""Whole numbers below this are their own byte."""
_FIXED_MAX = 16
"""Arrays shorter than this have a head of one byte."""


class Packer:
    """Gathers rows of one layout, all numbers, that follow one another line by line."""

    def __init__(self, layout: Layout, first_line: int) -> None:
        self.layout = layout
        self._first_line = self.next_line = first_line
        self._index: dict[str, int] = {}
        self._parts: list[tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.float64]]] = []

    def take(
        self,
        heads: Sequence[bytes],
        sensors: Mapping[bytes, str],
        times_ms: NDArray[np.int64],
        numbers: list[float],
    ) -> None:
        """Rows with these heads; ``sensors`` says whose they are, in the order of their first rows."""
        index = self._index
        codes = {head: index.setdefault(sensor, len(index)) for head, sensor in sensors.items()}
        count = len(heads)
        self.next_line += count
        sensor_of = np.fromiter(map(codes.__getitem__, heads), np.uint32, count)
        values = np.fromiter(numbers, np.float64, len(numbers)).reshape(count, -1)
        self._parts.append((sensor_of, times_ms, values))

    def columns(self) -> Columns:
        """All rows."""
        sensor_of, times_ms, values = (
            self._parts[0] if len(self._parts) == 1 else map(np.concatenate, zip(*self._parts, strict=True))
        )
        return Columns(list(self._index), sensor_of, times_ms, self.layout, values, self._first_line)


def has_repeats(columns: Columns) -> bool:
    """Whether two rows may have the same sensor and time."""
    times = columns.times_ms
    if (times[1:] > times[:-1]).all():
        return False
    since = times - times.min()
    sensors = len(columns.sensors)
    if int(since.max()) >= (1 << 62) // sensors:
        return True  # cannot be told from one number a row
    places = since * sensors + columns.sensor_of
    places.sort()
    return bool((places[1:] == places[:-1]).any())


def times_of(stamps: list[bytes], *, factor: int, divisor: int) -> NDArray[np.int64] | None:
    """Times in ms of stamps that all have equally many digits, as those of one clock have; else None."""
    width = len(stamps[0])
    kept = width - (len(str(divisor)) - 1)  # what is behind is finer than a millisecond
    text = np.frombuffer(b",".join(stamps) + b",", np.uint8)
    if not 0 < kept <= _EXACT_DIGITS or len(text) != len(stamps) * (width + 1):
        return None
    table = text.reshape(-1, width + 1)
    digits = table[:, :width] - np.uint8(ord("0"))  # what is no digit becomes more than 9
    if digits.max() > 9 or (table[:, width] != ord(",")).any():
        return None
    # Sums of whole doubles below 2**53: exact, whatever their order.
    units = (digits[:, :kept] @ _POWERS[_EXACT_DIGITS - kept :]).astype(np.int64)
    if units.max() > (MAX_TIME_MS - 1) // factor:
        return None
    times_ms: NDArray[np.int64] = units * factor
    return times_ms


def encode_columns(batch: PackedBatch, columns: Columns) -> bytes:
    """What stands behind a block's version."""
    encode = _ENCODER.encode
    count = len(columns.times_ms)
    return b"".join(
        (
            _array_head(_FIELDS),
            encode(batch.received),
            encode(columns.sensors),
            _indexes(columns.sensor_of, len(columns.sensors)),
            _times(columns.times_ms),
            encode([columns.layout]),
            _array_head(count) + bytes(count),
            _rows(columns.values),
            encode(batch.attributes),
            encode(batch.collapsed),
        )
    )


def _array_head(count: int) -> bytes:
    if count < _FIXED_MAX:
        return bytes((_FIXED_ARRAY | count,))
    if count < 1 << 16:
        return struct.pack(">BH", _ARRAY_16, count)
    return struct.pack(">BI", _ARRAY_32, count)


def _indexes(values: NDArray[np.uint32], below: int) -> bytes:
    if below > _SMALL:
        return _ENCODER.encode(values.tolist())
    return _array_head(len(values)) + values.astype(np.uint8).tobytes()


def _times(values: NDArray[np.int64]) -> bytes:
    if values.min() < 1 << 32:  # shorter numbers are written shorter
        return _ENCODER.encode(values.tolist())
    written = np.empty(len(values), [("kind", "u1"), ("number", ">u8")])
    written["kind"] = _UINT_64
    written["number"] = values
    return _array_head(len(values)) + written.tobytes()


def _rows(values: NDArray[np.float64]) -> bytes:
    count, width = values.shape
    if width >= _FIXED_MAX:
        return _ENCODER.encode(values.tolist())
    written = np.empty(count, [("head", "u1"), ("row", [("kind", "u1"), ("number", ">f8")], (width,))])
    written["head"] = _FIXED_ARRAY | width
    written["row"]["kind"] = _DOUBLE
    written["row"]["number"] = values
    return _array_head(count) + written.tobytes()
