"""Bytes of segments, records and the cursor (FORMAT.md), and the scan that finds good records."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from google_crc32c import value as crc32c

__all__ = [
    "DAMAGED",
    "DROPPED",
    "HEADER_BYTES",
    "RECORD_BYTES",
    "UNPROMISED",
    "Cursor",
    "Found",
    "Gap",
    "Header",
    "Scan",
    "crc32c",
    "pack_cursor",
    "pack_gap",
    "pack_header",
    "pack_record",
    "padded",
    "parse_record",
    "scan",
    "unpack_cursor",
    "unpack_header",
]

_SEGMENT_MAGIC = b"FRSEG\0\0\1"
_CURSOR_MAGIC = b"FRCUR\0\0\1"
_LANES_MAGIC = b"FRCUR\0\0\2"
_DATA_MAGIC = b"FRD1"
_GAP_MAGIC = b"FRG1"

_SEGMENT = struct.Struct("<8sQQQIII")
_CURSOR = struct.Struct("<8sQQI")
_COUNT = struct.Struct("<I")
_RANGE = struct.Struct("<QQ")
_RECORD = struct.Struct("<4sIIIIIQQQ")
_RECORD_BODY = struct.Struct("<IIIIQQQ")
_GAP = struct.Struct("<QQQQ")
_CRC = struct.Struct("<I")

HEADER_BYTES = 48
RECORD_BYTES = 48
_EPOCH_AT = 16
DROPPED = 1
DAMAGED = 2
UNPROMISED = 3


class Header(NamedTuple):
    """A segment's header."""

    identity: int
    number: int
    first_seq: int
    epoch: int
    fresh: bool = False
    """The file was all zeros: whatever is in it was written since."""


class Cursor(NamedTuple):
    """How far the records were taken; ``ahead`` are ranges (first, last) behind that which were too."""

    identity: int
    taken: int
    epoch: int
    ahead: tuple[tuple[int, int], ...] = ()


class Gap(NamedTuple):
    """Records that are gone: ``first``..``last``; ``lost_bytes`` is 0 where it is not known."""

    first: int
    last: int
    lost_bytes: int
    reason: int


class Found(NamedTuple):
    """A record in a buffer: its bytes are [start, end), the payload follows the header."""

    start: int
    end: int
    length: int
    epoch: int
    seq: int
    synced: int
    time_ms: int
    gap: Gap | None


def padded(length: int) -> int:
    """Bytes that a payload of ``length`` takes on disk, header included."""
    return RECORD_BYTES + length + (-length % 8)


def pack_header(header: Header) -> bytes:
    """The ``HEADER_BYTES`` at the start of a segment (FORMAT.md, Segment)."""
    identity, number, first_seq, epoch, fresh = header
    body = _SEGMENT.pack(_SEGMENT_MAGIC, identity, number, first_seq, epoch, fresh, 0)
    return body + _CRC.pack(crc32c(body))


def unpack_header(data: bytes | memoryview) -> Header | None:
    """The header, or None if it is not a whole one of this version."""
    raw = bytes(data[:HEADER_BYTES])
    if len(raw) < HEADER_BYTES or _CRC.unpack_from(raw, 44)[0] != crc32c(raw[:44]):
        return None
    magic, identity, number, first_seq, epoch, fresh, _ = _SEGMENT.unpack_from(raw)
    return Header(identity, number, first_seq, epoch, fresh == 1) if magic == _SEGMENT_MAGIC else None


def pack_cursor(cursor: Cursor) -> bytes:
    """The cursor file (FORMAT.md, Cursor): 32 bytes, or 36 and 16 for each range in ``ahead``."""
    # Without ranges as version 1, which any version of ours reads.
    magic = _LANES_MAGIC if cursor.ahead else _CURSOR_MAGIC
    body = _CURSOR.pack(magic, cursor.identity, cursor.taken, cursor.epoch)
    if cursor.ahead:
        body += _COUNT.pack(len(cursor.ahead)) + b"".join(_RANGE.pack(*each) for each in cursor.ahead)
    return body + _CRC.pack(crc32c(body))


def unpack_cursor(raw: bytes) -> Cursor | None:
    """The cursor, or None if it is not a whole one of a version that is known."""
    body = raw[:-4]
    if len(body) < _CURSOR.size or _CRC.unpack(raw[-4:])[0] != crc32c(body):
        return None
    magic, identity, taken, epoch = _CURSOR.unpack_from(body)
    if magic == _CURSOR_MAGIC and len(body) == _CURSOR.size:
        return Cursor(identity, taken, epoch)
    ranges = body[_CURSOR.size + _COUNT.size :]
    if magic != _LANES_MAGIC or len(ranges) % _RANGE.size:
        return None
    return Cursor(identity, taken, epoch, tuple(_RANGE.iter_unpack(ranges)))


def pack_record(
    payload: bytes, payload_crc: int, *, epoch: int, seq: int, synced: int, time_ms: int, gap: bool = False
) -> bytes:
    """Header, payload and padding of one record. ``payload_crc`` is made by the appending thread."""
    body = _RECORD_BODY.pack(payload_crc, len(payload), epoch, 0, seq, synced, time_ms)
    magic = _GAP_MAGIC if gap else _DATA_MAGIC
    return b"".join((magic, _CRC.pack(crc32c(body)), body, payload, bytes(-len(payload) % 8)))


def pack_gap(gap: Gap, *, epoch: int, seq: int, synced: int, time_ms: int) -> bytes:
    """A record that stands for what was dropped or lost (FORMAT.md, Record)."""
    payload = _GAP.pack(*gap)
    return pack_record(
        payload, crc32c(payload), epoch=epoch, seq=seq, synced=synced, time_ms=time_ms, gap=True
    )


def parse_record(data: memoryview, start: int) -> Found | None:
    """The whole, checked record at ``start``, or None."""
    if start + RECORD_BYTES > len(data):
        return None
    magic, header_crc, payload_crc, length, epoch, _, seq, synced, time_ms = _RECORD.unpack_from(data, start)
    if magic not in (_DATA_MAGIC, _GAP_MAGIC):
        return None
    body = start + RECORD_BYTES
    if crc32c(bytes(data[start + 8 : body])) != header_crc or body + length > len(data):
        return None
    payload = bytes(data[body : body + length])
    if crc32c(payload) != payload_crc:
        return None
    gap = None
    if magic == _GAP_MAGIC:
        if length != _GAP.size:
            return None
        gap = Gap(*_GAP.unpack(payload))
    return Found(start, start + padded(length), length, epoch, seq, synced, time_ms, gap)


@dataclass(slots=True)
class Scan:
    """What a segment holds. ``end`` is where the last good record ends.

    Behind it, up to ``begun``, stands what is neither good nor left over from an earlier use of the file.
    """

    header: Header | None
    records: list[Found] = field(default_factory=list)
    end: int = HEADER_BYTES
    begun: int = HEADER_BYTES
    holes: list[Gap] = field(default_factory=list)
    """Missing records: DAMAGED ones had been fsynced, UNPROMISED ones had not."""
    torn: bool = False
    """Something was begun that nobody was told is safe."""


def scan(raw: bytes, *, taken: int, before: int | None) -> Scan:
    """Find the good records of a segment.

    ``taken`` is the cursor; ``before`` is the next segment's first sequence, None for the last one.
    Without a readable header records are accepted if they are newer than the cursor and share the
    newest epoch in the file.
    """
    data = memoryview(raw)
    header = unpack_header(data)
    result = Scan(header)
    if header is None:
        epochs = [found.epoch for found in _candidates(raw, data, 0) if found.seq > taken]
        epoch = max(epochs, default=0)
        previous = None
    else:
        epoch = header.epoch
        previous = header.first_seq - 1
    for found in _candidates(raw, data, HEADER_BYTES if header else 0):
        if found.epoch != epoch or (before is not None and found.seq >= before):
            continue
        if previous is None:
            if found.seq <= taken:
                continue
            previous = found.seq if found.gap else found.seq - 1
        if found.seq < previous or (found.seq == previous and found.gap is None):
            continue
        if found.gap is None and found.seq != previous + 1:
            result.holes.append(Gap(previous + 1, found.seq - 1, 0, DAMAGED))
        result.records.append(found)
        previous = found.seq
    if result.records:
        result.end = result.records[-1].end
    result.begun = result.end
    if before is not None:
        durable = before - 1
    else:
        durable = max((found.synced for found in result.records), default=0)
        if previous is not None:
            heads = _heads(raw, result.end, epoch=epoch, last=previous)
            durable = max([durable, *(head.synced for head in heads)])
            result.begun = _begun(raw, result, heads, epoch=epoch, last=previous)
    if previous is not None and previous < durable:
        result.holes.append(Gap(previous + 1, durable, 0, DAMAGED))
    result.holes = [
        hole if hole.first <= durable else hole._replace(reason=UNPROMISED) for hole in result.holes
    ]
    result.torn = result.begun > result.end or any(hole.reason == UNPROMISED for hole in result.holes)
    return result


def _candidates(raw: bytes, data: memoryview, start: int) -> list[Found]:
    """Every whole record at or after ``start``, skipping over what is not one."""
    found = []
    position = start
    while True:
        record = parse_record(data, position)
        if record is not None:
            found.append(record)
            position = record.end
            continue
        position += 1
        while True:
            position = raw.find(b"FR", position)
            if position < 0:
                return found
            if position % 8 == 0:
                break
            position += 1


def _heads(raw: bytes, start: int, *, epoch: int, last: int) -> list[Found]:
    """Headers behind ``start`` that hold and come after ``last``; their records are damaged or torn.

    The magic may be what is damaged, so they are searched for by their epoch. What the file held in an
    earlier use has lower numbers, or another epoch.
    """
    heads = []
    needle = _CRC.pack(epoch)
    position = raw.find(needle, start + _EPOCH_AT)
    while position >= 0:
        at = position - _EPOCH_AT
        if at % 8 == 0 and at + RECORD_BYTES <= len(raw):
            magic, header_crc, _, length, _, _, seq, synced, time_ms = _RECORD.unpack_from(raw, at)
            # Only a gap carries the number of what stands before it.
            newer = seq > last or (seq == last and magic != _DATA_MAGIC)
            if newer and crc32c(raw[at + 8 : at + RECORD_BYTES]) == header_crc:
                heads.append(Found(at, at + padded(length), length, epoch, seq, synced, time_ms, None))
        position = raw.find(needle, position + 1)
    return heads


def _begun(raw: bytes, result: Scan, heads: list[Found], *, epoch: int, last: int) -> int:
    """Where that ends which was written behind the last good record; ``result.end`` if nothing was."""
    filled = max(result.end, len(raw.rstrip(b"\0")))
    if result.header is not None and result.header.fresh:
        return filled
    begun = min(filled, max([result.end, *(head.end for head in heads)]))
    last = max([last, *(head.seq for head in heads)])
    return filled if _half_written(raw, begun, epoch=epoch, last=last) else begun


def _half_written(raw: bytes, position: int, *, epoch: int, last: int) -> bool:
    """Whether ``position`` holds a header that is damaged itself, but not by much, or torn in two."""
    if position + RECORD_BYTES > len(raw):
        return False
    magic, header_crc, _, _, found_epoch, _, seq, _, _ = _RECORD.unpack_from(raw, position)
    if crc32c(raw[position + 8 : position + RECORD_BYTES]) == header_crc:
        return False  # one that holds and is not among the heads is of an earlier use of the file
    agreeing = (magic in (_DATA_MAGIC, _GAP_MAGIC)) + (found_epoch == epoch) + (seq in (last, last + 1))
    return bool(seq == last + 1 or agreeing >= 2)
