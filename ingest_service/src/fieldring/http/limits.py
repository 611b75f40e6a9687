"""Request bodies under limits: memory is reserved before it is spent.

All bodies of a process share one budget. A body reserves what it is about to hold, in steps, as it
arrives and as it is unpacked, so a small bomb is stopped at the limit and not after it.
"""

from __future__ import annotations

import threading
import zlib
from types import TracebackType

import cramjam

from fieldring.errors import BudgetExceeded, InvalidRequest, TooLarge, UnsupportedMediaType

__all__ = ["ByteBudget", "Places", "Reservation", "unpack", "unpack_snappy"]

_STEP = 1_048_576
_INPUT_STEP = 65_536
_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_SNAPPY_FACTOR = 32
"""More than any snappy element expands: 64 bytes from 3."""


class ByteBudget:
    """Bytes that all requests of this process may hold together. Thread-safe."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        return self._taken

    def reserve(self) -> Reservation:
        """An empty reservation; use it as a context manager."""
        return Reservation(self)

    def _take(self, size: int) -> None:
        with self._lock:
            if self._taken + size > self.total:
                raise BudgetExceeded("too many bytes of requests are being worked on: retry shortly")
            self._taken += size

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._taken -= size


class Reservation:
    """What one request holds of the budget; given back when the context ends."""

    __slots__ = ("_budget", "size")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.size = 0

    def take(self, size: int) -> None:
        """Reserve ``size`` bytes more.

        Raises:
            BudgetExceeded: the process's budget is taken.
            TooLarge: the budget is not enough for this request alone, whenever it comes again.
        """
        if self.size + size > self._budget.total:
            raise TooLarge("body takes more memory than this process has for requests: send it in parts")
        self._budget._take(size)
        self.size += size

    def give_back(self, size: int) -> None:
        self._budget._give_back(size)
        self.size -= size

    def release(self) -> None:
        self.give_back(self.size)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Places:
    """A bounded number of places, for what would otherwise queue without end.

    For one event loop, so without a lock; any thread may read ``taken``.
    """

    __slots__ = ("_full", "taken", "total")

    def __init__(self, total: int, *, full: str) -> None:
        self.total = total
        self._full = full
        self.taken = 0

    def take(self) -> None:
        """Raises BudgetExceeded: every place is taken."""
        if self.taken >= self.total:
            raise BudgetExceeded(f"{self._full}: retry shortly")
        self.taken += 1

    def give_back(self) -> None:
        self.taken -= 1

    def __enter__(self) -> None:
        self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()


def unpack(body: bytes, *, encoding: str, max_bytes: int, reservation: Reservation) -> bytes:
    """The body without its content encoding (``gzip``, ``deflate``, ``identity`` or empty).

    Raises:
        UnsupportedMediaType: another encoding.
        InvalidRequest: the body is not what its encoding says, or is cut short.
        TooLarge: it unpacks to more than ``max_bytes``.
        BudgetExceeded: the process's budget is taken.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW:
        raise UnsupportedMediaType(f"content encoding {encoding[:40]!r}: send gzip or none")
    parts: list[bytes] = []
    size = 0
    unpacker = zlib.decompressobj(_WINDOW[encoding])
    view = memoryview(body)
    position = 0
    pending = b""
    try:
        while not unpacker.eof:
            if not pending:
                if position == len(view):
                    break
                pending = bytes(view[position : position + _INPUT_STEP])
                position += len(pending)
            room = min(_STEP, max_bytes - size + 1)
            reservation.take(room)
            part = unpacker.decompress(pending, room)
            pending = unpacker.unconsumed_tail
            size += len(part)
            if size > max_bytes:
                raise TooLarge(f"body unpacks to more than {max_bytes} bytes: send it in parts")
            parts.append(part)
            reservation.give_back(room - len(part))
            if unpacker.eof and encoding != "deflate":
                rest = unpacker.unused_data + bytes(view[position : position + _INPUT_STEP])
                position += _INPUT_STEP
                if rest.strip(b"\0"):
                    # RFC 1952: members may follow one another.
                    unpacker, pending = zlib.decompressobj(_WINDOW[encoding]), rest
        # zlib may still hold output back although all input is consumed.
        while not unpacker.eof:
            room = min(_STEP, max_bytes - size + 1)
            reservation.take(room)
            part = unpacker.decompress(b"", room)
            size += len(part)
            if size > max_bytes:
                raise TooLarge(f"body unpacks to more than {max_bytes} bytes: send it in parts")
            if not part:
                raise InvalidRequest(f"{encoding} body is cut short")
            parts.append(part)
            reservation.give_back(room - len(part))
    except zlib.error as error:
        raise InvalidRequest(f"body is not valid {encoding}: {error}") from None
    reservation.take(size)  # parts and whole exist together for a moment
    whole = b"".join(parts)
    parts.clear()
    reservation.give_back(size)
    return whole


def unpack_snappy(body: bytes, *, encoding: str, max_bytes: int, reservation: Reservation) -> bytes:
    """The body without snappy's block format, the only encoding of Prometheus remote write.

    The block's head claims its length. That is believed only within the limits, and only where the
    bytes that follow could hold as much.

    Raises:
        UnsupportedMediaType: another encoding.
        InvalidRequest: the body is not snappy, or lies about its length.
        TooLarge: it unpacks to more than ``max_bytes``.
        BudgetExceeded: the process's budget is taken.
    """
    if encoding.strip().lower() != "snappy":
        raise UnsupportedMediaType(f"content encoding {encoding[:40]!r}: send snappy (block format)")
    claimed = shift = 0
    for byte in body[:5]:
        claimed |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    else:
        raise InvalidRequest("body is not valid snappy: it does not begin with its length")
    if claimed > max_bytes:
        raise TooLarge(f"body unpacks to more than {max_bytes} bytes: send it in parts")
    if claimed > _SNAPPY_FACTOR * len(body):
        raise InvalidRequest("body is not valid snappy: it claims to be longer than it can be")
    reservation.take(2 * claimed)  # cramjam's buffer and the bytes exist together for a moment
    try:
        whole = bytes(cramjam.snappy.decompress_raw(body))
    except cramjam.DecompressionError as error:
        raise InvalidRequest(f"body is not valid snappy: {error}") from None
    reservation.give_back(claimed)
    return whole
