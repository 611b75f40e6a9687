"""Rows of the points table: layouts, frozen maps and bound values as they are on the wire.

The driver packs and unpacks maps entry by entry through generic types, and binds column by column, which
is most of its work per row. Rows of one layout differ in their doubles only, so here a map of numbers is
one ``struct``, and what rows of one partition share is packed once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any, ClassVar

from cassandra.cqltypes import DoubleType, MapType, UTF8Type, _CassandraType
from cassandra.protocol import ProtocolHandler, ResultMessage
from cassandra.query import UNSET_VALUE, BatchStatement, BatchType, BoundStatement

from fieldring.model import Batch, Layout, Point, Value

__all__ = [
    "PackedMapHandler",
    "PartitionWriter",
    "RowShape",
    "merge_rows",
    "pack_maps",
    "shape_of",
    "together",
]

_SHORT = struct.Struct(">H")
_INT = _COUNT = struct.Struct(">i")
_LONG = struct.Struct(">q")
_ROW_OVERHEAD = 30
_FIXED_BYTES = 32
"""Of a row's day, time, layout, write timestamp and time to live."""
_BATCH_BYTES = 4_700  # below batch_size_warn_threshold (5 KiB) by the ring's own count
_MAX_KNOWN = 4096


class RowShape:
    """How rows of one layout and one choice of text columns are packed.

    ``key`` is the layout column: a hash of the names, told apart by kind of value, so that rows which
    share it always set the same columns and the same entries.
    """

    __slots__ = ("_all_numbers", "_numbers", "_slots", "_struct", "_texts", "key", "packed_key")

    def __init__(self, layout: Layout, is_text: tuple[bool, ...]) -> None:
        order = sorted(range(len(layout)), key=layout.__getitem__)
        self._numbers = [i for i in order if not is_text[i]]
        self._texts = [(i, _text(layout[i])) for i in order if is_text[i]]
        self._struct, prefixes = _number_struct([layout[i] for i in self._numbers])
        self._slots: list[Any] = [None] * (2 * len(self._numbers))
        self._slots[0::2] = prefixes
        names = [f"{'t' if is_text[i] else 'n'}{len(layout[i])}:{layout[i]}" for i in order]
        digest = blake2b("".join(names).encode(), digest_size=8).digest()
        self.key: int = int.from_bytes(digest, "big", signed=True)
        self.packed_key = digest
        self._all_numbers = self._numbers == list(range(len(layout)))

    def pack(self, values: tuple[Value, ...]) -> tuple[bytes | None, bytes | None]:
        """The maps of numbers and texts; None stands for one without entries."""
        numbers = texts = None
        if self._numbers:
            slots = self._slots.copy()  # shapes are shared between threads
            slots[1::2] = values if self._all_numbers else [values[i] for i in self._numbers]
            numbers = self._struct.pack(*slots)
        if self._texts:
            parts = [_COUNT.pack(len(self._texts))]
            for i, name in self._texts:
                parts += (name, _text(values[i]))
            texts = b"".join(parts)
        return numbers, texts


@lru_cache(maxsize=_MAX_KNOWN)
def shape_of(layout: Layout, is_text: tuple[bool, ...]) -> RowShape:
    """The shape of rows with these metrics, of which the marked ones are texts."""
    return RowShape(layout, is_text)


class PartitionWriter:
    """Makes statements of the rows of one partition: single inserts, or unlogged batches below 5 KiB.

    ``insert`` is the prepared ``INSERT INTO points``, whose eight values are packed here as protocol
    version 4 has them, in the order of ``COLUMNS``.
    """

    COLUMNS = ("sensor", "day", "ts", "layout", "numbers", "texts", "[timestamp]", "[ttl]")

    def __init__(self, insert: Any, sensor: str, day: int) -> None:
        self._insert = insert
        self._sensor = sensor.encode()
        self._day = _INT.pack(day)
        self._routing_key = b"".join(
            [_SHORT.pack(len(part)) + part + b"\0" for part in (self._sensor, self._day)]
        )
        self._fixed = _ROW_OVERHEAD + _FIXED_BYTES + len(self._sensor)

    def statements(self, rows: Iterable[tuple[Batch, int, int]]) -> Iterator[Any]:
        """Statements of (batch, index of the row in it, seconds to live)."""
        sensor, day, fixed = self._sensor, self._day, self._fixed
        members: list[list[Any]] = []
        size = 0
        for batch, index, ttl_s in rows:
            values = batch.values[index]
            shape = shape_of(batch.layouts[index], tuple([v.__class__ is str for v in values]))
            numbers, texts = shape.pack(values)
            own = fixed + (len(numbers) if numbers else 0) + (len(texts) if texts else 0)
            if members and size + own > _BATCH_BYTES:
                yield self._one(members)
                members, size = [], 0
            members.append(
                [
                    sensor,
                    day,
                    _LONG.pack(batch.times_ms[index]),
                    shape.packed_key,
                    UNSET_VALUE if numbers is None else numbers,
                    UNSET_VALUE if texts is None else texts,
                    _LONG.pack(batch.received),
                    _INT.pack(ttl_s),
                ]
            )
            size += own
        if members:
            yield self._one(members)

    def _one(self, members: list[list[Any]]) -> Any:
        insert = self._insert
        if len(members) == 1:
            single = BoundStatement(insert, routing_key=self._routing_key)
            single.values = members[0]
            return single
        batch = BatchStatement(batch_type=BatchType.UNLOGGED)
        # What add() makes of bound statements, without a statement object per row.
        batch._statements_and_parameters = [(True, insert.query_id, values) for values in members]
        batch.keyspace = insert.column_metadata[0].keyspace_name
        batch.routing_key = self._routing_key
        batch.is_idempotent = True
        return batch


def together(statements: Iterable[Any]) -> Iterator[Any]:
    """Bound statements of one partition, in unlogged batches of a size that every ring takes."""
    members: list[Any] = []
    size = 0
    for statement in statements:
        own = _ROW_OVERHEAD + sum([len(value) for value in statement.values if value.__class__ is bytes])
        if members and size + own > _BATCH_BYTES:
            yield _one(members)
            members, size = [], 0
        members.append(statement)
        size += own
    if members:
        yield _one(members)


def _one(members: list[Any]) -> Any:
    if len(members) == 1:
        return members[0]
    batch = BatchStatement(batch_type=BatchType.UNLOGGED)
    for member in members:
        batch.add(member)
    batch.is_idempotent = True
    return batch


def merge_rows(sensor: str, rows: Iterable[Any], wanted: frozenset[str] | None) -> Iterator[Point]:
    """Points of (ts, numbers, texts, writetime of numbers, writetime of texts) rows ordered by ts.

    Rows of one time are merged per metric: the highest write time stands.
    """
    time_ms: int | None = None
    held: list[Point] = []
    merged: dict[str, Point] | None = None
    for ts, numbers, texts, numbers_at, texts_at in rows:
        points: list[Point] = []
        if numbers is not None:
            points = [
                Point(sensor, ts, name, value, numbers_at) for name, value in zip(*numbers, strict=True)
            ]
        if texts is not None:
            points += [Point(sensor, ts, name, value, texts_at) for name, value in zip(*texts, strict=True)]
            if numbers is not None:
                points.sort(key=_metric)
        if ts == time_ms:
            if merged is None:
                merged = {point.metric: point for point in held}
            for point in points:
                known = merged.get(point.metric)
                if known is None or known.received < point.received:
                    merged[point.metric] = point
            continue
        if merged is not None:
            held = sorted(merged.values(), key=_metric)
            merged = None
        yield from held if wanted is None else (p for p in held if p.metric in wanted)
        time_ms, held = ts, points
    if merged is not None:
        held = sorted(merged.values(), key=_metric)
    yield from held if wanted is None else (p for p in held if p.metric in wanted)


def _metric(point: Point) -> str:
    return point.metric


def _text(value: Value) -> bytes:
    raw = str(value).encode()
    return _COUNT.pack(len(raw)) + raw


def _number_struct(names: list[str]) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """The struct of a map of doubles, and what stands before each double: lengths and name."""
    prefixes = []
    for index, name in enumerate(names):
        prefix = _text(name) + _COUNT.pack(8)
        prefixes.append(_COUNT.pack(len(names)) + prefix if index == 0 else prefix)
    return struct.Struct(">" + "".join(f"{len(p)}sd" for p in prefixes)), tuple(prefixes)


_known_numbers: dict[int, tuple[struct.Struct, tuple[bytes, ...], tuple[str, ...]]] = {}
"""By the length of the map: the struct and names that were seen last."""


class _PackedNumbers(_CassandraType):  # type: ignore[misc]
    """map<text, double>: packed bytes in, (names, values) out."""

    @staticmethod
    def serialize(value: bytes, protocol_version: int) -> bytes:
        return value

    @staticmethod
    def deserialize(data: bytes, protocol_version: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
        known = _known_numbers.get(len(data))
        if known is not None:
            layout, prefixes, names = known
            fields = layout.unpack(data)
            if fields[0::2] == prefixes:
                return names, fields[1::2]
        entries = [raw.decode() for raw in _raw_map(data)[0::2]]
        layout, prefixes = _number_struct(entries)
        if len(_known_numbers) > _MAX_KNOWN:
            _known_numbers.clear()
        names = tuple(entries)
        _known_numbers[len(data)] = (layout, prefixes, names)
        return names, layout.unpack(data)[1::2]


class _PackedTexts(_CassandraType):  # type: ignore[misc]
    """map<text, text>: packed bytes or a dictionary in, (names, values) out."""

    @staticmethod
    def serialize(value: bytes | dict[str, str], protocol_version: int) -> bytes:
        if isinstance(value, dict):
            return b"".join(
                [_COUNT.pack(len(value)), *(_text(part) for entry in value.items() for part in entry)]
            )
        return value

    @staticmethod
    def deserialize(data: bytes, protocol_version: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        entries = [raw.decode() for raw in _raw_map(data)]
        return tuple(entries[0::2]), tuple(entries[1::2])


def _raw_map(data: bytes) -> list[bytes]:
    """Keys and values in turn."""
    (count,) = _COUNT.unpack_from(data)
    entries = []
    offset = 4
    for _ in range(2 * count):
        (length,) = _COUNT.unpack_from(data, offset)
        offset += 4
        entries.append(data[offset : offset + length])
        offset += length
    return entries


def _packed_type(found: Any) -> Any:
    if issubclass(found, MapType) and issubclass(found.subtypes[0], UTF8Type):
        if issubclass(found.subtypes[1], DoubleType):
            return _PackedNumbers
        if issubclass(found.subtypes[1], UTF8Type):
            return _PackedTexts
    return found


def pack_maps(statement: Any) -> None:
    """Let a prepared statement bind maps as packed here; its results come through PackedMapHandler."""
    columns = statement.column_metadata
    columns[:] = [column._replace(type=_packed_type(column.type)) for column in columns or ()]


class _Result(ProtocolHandler.message_types_by_opcode[ResultMessage.opcode]):  # type: ignore[misc]
    @classmethod
    def read_type(cls, f: Any, user_type_map: Any) -> Any:
        return _packed_type(super().read_type(f, user_type_map))


class PackedMapHandler(ProtocolHandler):  # type: ignore[misc]
    """The driver's handler, but maps of text to numbers or texts are the types above."""

    message_types_by_opcode: ClassVar[dict[int, Any]] = {
        **ProtocolHandler.message_types_by_opcode,
        _Result.opcode: _Result,
    }
