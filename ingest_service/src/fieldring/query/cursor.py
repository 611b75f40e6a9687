"""Cursors: where a page ended, bound to the question it answered."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import NamedTuple

import msgspec

from fieldring.errors import InvalidRequest

__all__ = ["Position", "decode", "encode"]


class Position(NamedTuple):
    """The whole key of the last point given out; the next page begins after it."""

    sensor: str
    time_ms: int
    metric: str


class _Cursor(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    question: bytes
    sensor: str
    time_ms: int
    metric: str


def _digest(question: tuple[object, ...]) -> bytes:
    return hashlib.sha256(repr(question).encode()).digest()[:12]


def encode(position: Position, *, question: tuple[object, ...]) -> str:
    """An opaque text; ``question`` is everything that must stay the same from page to page."""
    packed = msgspec.msgpack.encode(_Cursor(1, _digest(question), *position))
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode(text: str, *, question: tuple[object, ...]) -> Position:
    """The position in a cursor.

    Raises:
        InvalidRequest: it is not one of ours, or belongs to another question.
    """
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = msgspec.msgpack.decode(packed, type=_Cursor)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise InvalidRequest("cursor is not one that this service gave out") from None
    if cursor.version != 1 or cursor.question != _digest(question):
        raise InvalidRequest(
            "cursor belongs to another query: repeat sensor, metric, start, end and flags as they were"
        )
    return Position(cursor.sensor, cursor.time_ms, cursor.metric)
