"""Our own block: one accepted batch, as it lies in the spool and travels from gateway to ingest.

::

    | "FRB" | version: 1 byte | msgpack array                                              |
                                [received, sensors, sensor of row, times_ms,
                                 layouts, layout of row, values, attributes, collapsed]

``sensors`` and ``layouts`` are tables that the rows point into, so a name stands once however many
rows carry it. Framing and checksum belong to whoever stores or sends the block.
"""

from __future__ import annotations

import itertools
import math

import msgspec

from fieldring.errors import CorruptionError
from fieldring.model import Batch, Layout, PackedBatch, Value
from fieldring.wire.decoded import MAX_TIME_MS
from fieldring.wire.names import MAX_NAME_BYTES

__all__ = ["CONTENT_TYPE", "MAGIC", "VERSION", "decode", "encode"]

CONTENT_TYPE = "application/vnd.fieldring.block"
MAGIC = b"FRB"
VERSION = 1


class _Block(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    received: int
    sensors: list[str]
    sensor_of: list[int]
    times_ms: list[int]
    layouts: list[tuple[str, ...]]
    layout_of: list[int]
    values: list[tuple[float | str, ...]]
    attributes: dict[str, dict[str, str]]
    collapsed: int


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Block)


def encode(batch: Batch) -> bytes:
    """The batch as one block. ``lines`` are not kept."""
    if isinstance(batch, PackedBatch) and batch.columns is not None:
        from fieldring.wire.packed import encode_columns

        return MAGIC + bytes((VERSION,)) + encode_columns(batch, batch.columns)
    sensors: dict[str, int] = {s: i for i, s in enumerate(dict.fromkeys(batch.sensors))}
    layouts: dict[Layout, int] = {x: i for i, x in enumerate(dict.fromkeys(batch.layouts))}
    block = _Block(
        received=batch.received,
        sensors=list(sensors),
        sensor_of=[sensors[s] for s in batch.sensors],
        times_ms=batch.times_ms,
        layouts=list(layouts),
        layout_of=[layouts[x] for x in batch.layouts],
        values=batch.values,
        attributes=batch.attributes,
        collapsed=batch.collapsed,
    )
    return MAGIC + bytes((VERSION,)) + _ENCODER.encode(block)


def decode(data: bytes) -> Batch:
    """The batch of a block; ``lines`` count its rows from 1.

    Raises:
        CorruptionError: not a block, a version that is not spoken, or contents that do not fit together.
    """
    if data[:3] != MAGIC:
        raise CorruptionError("not a Fieldring block: it does not begin with 'FRB'")
    if data[3:4] != bytes((VERSION,)):
        raise CorruptionError(f"block version {data[3:4].hex() or 'missing'}, but only {VERSION} is spoken")
    try:
        block = _DECODER.decode(memoryview(data)[4:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(f"block cannot be decoded: {error}") from None
    _check(block)
    sensors, layouts = block.sensors, block.layouts
    return Batch(
        sensors=[sensors[i] for i in block.sensor_of],
        times_ms=block.times_ms,
        layouts=[layouts[i] for i in block.layout_of],
        values=block.values,
        lines=list(range(1, len(block.times_ms) + 1)),
        received=block.received,
        attributes=block.attributes,
        collapsed=block.collapsed,
    )


def _check(block: _Block) -> None:
    rows = len(block.times_ms)
    if not len(block.sensor_of) == len(block.layout_of) == len(block.values) == rows:
        raise CorruptionError("block has columns of different lengths")
    if not rows:
        return
    if min(block.sensor_of) < 0 or max(block.sensor_of) >= len(block.sensors):
        raise CorruptionError("block names a sensor that is not in its table")
    if min(block.layout_of) < 0 or max(block.layout_of) >= len(block.layouts):
        raise CorruptionError("block names a layout that is not in its table")
    if min(block.times_ms) <= -MAX_TIME_MS or max(block.times_ms) >= MAX_TIME_MS:
        raise CorruptionError("block has a time out of range")
    widths = [len(layout) for layout in block.layouts]
    if any(w == 0 or len(set(x)) != w for w, x in zip(widths, block.layouts, strict=True)):
        raise CorruptionError("block has a layout that is empty or names a metric twice")
    names = itertools.chain(block.sensors, *block.layouts)
    if any(not n or (len(n) > MAX_NAME_BYTES // 4 and len(n.encode()) > MAX_NAME_BYTES) for n in names):
        raise CorruptionError("block has a name that is empty or too long")
    if any(len(v) != widths[i] for v, i in zip(block.values, block.layout_of, strict=True)):
        raise CorruptionError("block has a row whose values do not fit its layout")
    if not all(map(_finite, itertools.chain.from_iterable(block.values))):
        raise CorruptionError("block has a value that is not finite")


def _finite(value: Value) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
