"""From bodies that are whole to their outcome: decoded and kept, with as few fsyncs as can be.

Commits run in a thread pool, where those that meet share one wait. Bodies that are complete in the same
turn of the event loop are handed to one thread together; only the smallest are decoded on the loop: that
takes less than handing the interpreter from thread to thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from fieldring.accept import SPOOLED, STORED, Accepted, Acceptor
from fieldring.errors import Forbidden, LineError, SpoolFull, TooLarge, Unavailable
from fieldring.http.errors import RefusedLines
from fieldring.http.limits import ByteBudget, Reservation, unpack
from fieldring.http.quota import Quotas
from fieldring.http.tokens import Identity
from fieldring.model import Batch, PackedBatch
from fieldring.web.receive_metrics import ReceiveMetrics
from fieldring.wire import Decoded

__all__ = ["DECODED_FACTOR", "PIECE_BYTES", "TOGETHER_BYTES", "Commits", "Decode", "Outcome", "Work"]

PIECE_BYTES = 524_288
"""Line protocol is decoded and committed in pieces, so that a large body does not become a large heap."""

DECODED_FACTOR = 30
"""Memory that a decoded body and its block take, as a multiple of its bytes: measured 7 (few sensors, many
fields) to 29 (each line another sensor); only bodies of nothing but names and junk take more."""

TOGETHER_BYTES = 65_536
"""Bodies up to this size that are complete at the same time are committed by one thread, with one wait."""

_JOINED_ON_LOOP_BYTES = 131_072
"""Bodies that come together to this size are decoded as one on the event loop: about a millisecond."""

_ON_LOOP_BYTES = 8_192
"""Bodies up to this size are decoded there one by one: some 0.1 ms, a few ms for nothing but junk."""

_APART_S = 1.0
"""How long no bodies of a token are decoded as one after that was in vain: junk is decoded slowly."""

_TOGETHER_MAX = 64

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome(RefusedLines):
    """What became of one request, piece by piece."""

    kept: bool = False
    """Whether there is a point that a promise can be made for."""
    collapsed: int = 0
    spooled: bool = False
    forbidden: int = 0

    @property
    def durability(self) -> str:
        return SPOOLED if self.spooled else STORED


Decode = Callable[[bytes, int], Iterator[Decoded]]
"""Of a body, and of the time in ms for what has none."""


@dataclass(slots=True)
class Work:
    """One request on its way to its outcome."""

    identity: Identity
    parts: list[bytes]
    encoding: str
    decode: Decode
    now_ms: int
    """When its body was here whole: the time of what has none."""
    piece_bytes: int | None
    reservation: Reservation
    done: Callable[[Work], None]
    """Called on the event loop with this work when its outcome or its error is known."""
    unpack: Callable[..., bytes] = unpack
    heap_factor: int = DECODED_FACTOR
    outcome: Outcome = field(default_factory=Outcome)
    error: Exception | None = None
    batches: list[Batch] | None = None
    """What is to be kept, once it is decoded."""
    precision: str = ""
    """Of lines that may be decoded as one with those of other requests."""
    by_line: bool = False
    """Whether rows are named also where the token may write none of them."""


@dataclass(frozen=True, slots=True)
class _Joined:
    """Requests of which each line is a row, decoded as one body."""

    works: list[Work]
    batch: Batch


class Commits:
    """Everything but what runs in a thread is called on the event loop.

    Args:
        unpacked_max_bytes: of one body, unpacked.
    """

    def __init__(
        self,
        acceptor: Acceptor,
        *,
        quotas: Quotas,
        budget: ByteBudget,
        counters: ReceiveMetrics,
        executor: Executor,
        unpacked_max_bytes: int,
    ) -> None:
        self._acceptor = acceptor
        self._quotas = quotas
        self._budget = budget
        self._counters = counters
        self._executor = executor
        self._unpacked_max_bytes = unpacked_max_bytes
        self._gathered: list[Work] = []
        # By token: until when its writes are decoded one by one.
        self._apart: dict[str, float] = {}
        self._flush_due = False
        self._spooling = False

    def gather(self, work: Work, loop: asyncio.AbstractEventLoop) -> None:
        """Commit this small work with whatever else has come by the end of this turn of the loop."""
        self._gathered.append(work)
        if not self._flush_due:
            self._flush_due = True
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand what was gathered in this turn of the loop to one thread.

        While the store fails there is nothing to wait for but the spool's fsync, so one group is under way
        at a time, and what comes meanwhile is the next one. Whoever tries the store again waits alone.
        """
        self._flush_due = False
        failing = self._acceptor.store_failing
        if failing and self._gathered and self._acceptor.probe_due:
            self._executor.submit(self._commit_alone, self._gathered.pop(0), loop)
        if not self._gathered or (failing and self._spooling):
            return
        group, self._gathered = self._gathered[:_TOGETHER_MAX], self._gathered[_TOGETHER_MAX:]
        self._spooling = failing
        joined: list[_Joined] | None = None
        if sum([work.reservation.size for work in group]) <= _JOINED_ON_LOOP_BYTES:
            joined = self._decode_together(group)
            for work in group:
                if work.parts and len(work.parts[0]) <= _ON_LOOP_BYTES:
                    self._decode_whole(work)
        self._executor.submit(self._commit_together, group, joined, loop, failing)
        if self._gathered and not failing:
            self._flush(loop)

    def _deliver(self, group: list[Work], loop: asyncio.AbstractEventLoop, spooling: bool) -> None:
        if spooling:
            self._spooling = False
            if self._gathered and not self._flush_due:
                self._flush_due = True
                loop.call_soon(self._flush, loop)
        for work in group:
            try:
                work.done(work)
            except Exception:  # noqa: BLE001 - the others have to hear of theirs
                _log.exception("an answer could not be given")

    def alone(self, work: Work, loop: asyncio.AbstractEventLoop) -> None:
        """Commit this work in a thread of its own."""
        self._executor.submit(self._commit_alone, work, loop)

    def _commit_alone(self, work: Work, loop: asyncio.AbstractEventLoop) -> None:
        """Runs in a thread: unpack, decode, keep, piece by piece."""
        self._keep(work)
        loop.call_soon_threadsafe(self._deliver, [work], loop, False)

    def _keep(self, work: Work) -> None:
        try:
            for batch in self._batches(work):
                self._record([work], self._acceptor.accept(batch))
            if work.error is None:
                self._conclude(work)
        except Exception as error:  # noqa: BLE001 - raised again where the request waits
            work.error = error

    def _commit_together(
        self,
        group: list[Work],
        joined: list[_Joined] | None,
        loop: asyncio.AbstractEventLoop,
        spooling: bool,
    ) -> None:
        """Runs in a thread: as above, for requests of one piece each, with one wait for all.

        ``joined``: what ``_decode_together`` made of them, if it has been asked.
        """
        try:
            self._keep_together(group, self._decode_together(group) if joined is None else joined)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            for work in group:
                work.error = work.error or error
        loop.call_soon_threadsafe(self._deliver, group, loop, spooling)

    def _keep_together(self, group: list[Work], joined: list[_Joined]) -> None:
        for work in group:
            self._decode_whole(work)
        kept = [(each.works, each.batch) for each in joined]
        kept += [([work], batch) for work in group for batch in work.batches or ()]
        try:
            results = self._acceptor.accept_together([batch for _, batch in kept])
        except Exception as error:  # noqa: BLE001 - as above
            results = [error] * len(kept)
        again: list[Work] = []
        for (works, _), result in zip(kept, results, strict=True):
            if isinstance(result, SpoolFull) or (isinstance(result, Exception) and len(works) == 1):
                for work in works:
                    work.error = work.error or result
            elif isinstance(result, Exception) or (result.errors and len(works) > 1):
                again += works  # what one is refused for, or fails at, is its own matter
            else:
                self._record(works, result)
        for work in again:
            work.batches = None
            self._keep(work)
        for work in group:
            try:
                if work.error is None:
                    self._conclude(work)
            except Exception as error:  # noqa: BLE001 - as above
                work.error = error

    def _decode_together(self, group: list[Work]) -> list[_Joined]:
        """Decode as many of ``group`` as can be one body; these have no ``batches`` of their own then."""
        alike: dict[tuple[int, str], list[Work]] = {}
        joined: list[_Joined] = []
        for work in group:
            # A quota is charged by the request.
            if work.precision and work.batches is None and not work.identity.points_per_second:
                alike.setdefault((id(work.identity), work.precision), []).append(work)
        for works in alike.values():
            while len(works) > 1:
                count = size = 0
                # One byte more each, for the line end between them.
                while count < len(works) and (size := size + len(works[count].parts[0]) + 1) <= PIECE_BYTES:
                    count += 1
                some, works = works[:count], works[count:]
                if count > 1 and (batch := self._join(some)) is not None:
                    joined.append(_Joined(some, batch))
                    for work in some:
                        work.batches = []
        return joined

    def _join(self, works: list[Work]) -> Batch | None:
        """The rows of these bodies as of one; None where one of them may need an answer of its own.

        That is where a line is no row, where lines of two meet on one key or tell another attribute of one
        sensor, and where they came at different times and have none of their own.
        """
        identity = works[0].identity
        now = time.monotonic()
        if now < self._apart.get(identity.id, 0.0):
            return None
        body = b"\n".join([work.parts[0].removesuffix(b"\n") for work in works])
        if b'"' in body or b"\\" in body:
            return None  # what one leaves open would go on in the next
        batch = self._as_one(works, body)
        if batch is None:
            self._apart[identity.id] = now + _APART_S
        return batch

    def _as_one(self, works: list[Work], body: bytes) -> Batch | None:
        lines = body.count(b"\n") + 1
        if body.count(b"=") < lines or body.count(b" ") < lines:
            return None  # a row has at least one of each
        reservation = works[0].reservation
        heap = DECODED_FACTOR * len(body)
        try:
            reservation.take(heap)
        except (Unavailable, TooLarge):
            return None
        now_ms = works[0].now_ms
        (decoded,) = works[0].decode(body, now_ms)
        batch = decoded.batch
        identity = works[0].identity
        if (
            decoded.errors
            or decoded.attributes_differ
            or batch.collapsed
            or len(batch) != lines
            or not (identity.sees_all or all(map(identity.allows, batch.names)))
            or not self._acceptor.keeps_whole(batch)
            # Rows that are arrays have times of their own.
            or (
                any([work.now_ms != now_ms for work in works])  # noqa: C419 - a list is faster
                and not isinstance(batch, PackedBatch)
                and now_ms in batch.times_ms
            )
        ):
            reservation.give_back(heap)
            return None
        return batch

    def _decode_whole(self, work: Work) -> None:
        """Fill ``batches``, once; what was decoded before an error stands too."""
        if work.batches is not None:
            return
        batches: list[Batch] = []
        try:
            batches.extend(self._batches(work))
        except Exception as error:  # noqa: BLE001 - raised again where the request waits
            work.error = error
        work.batches = batches

    def _batches(self, work: Work) -> Iterator[Batch]:
        """What is to be kept of a request, piece by piece."""
        if work.batches is not None:
            yield from work.batches
            return
        for decoded in self._decoded(work):
            batch = self._admit(work, decoded)
            if len(batch):
                yield batch

    def _decoded(self, work: Work) -> Iterator[Decoded]:
        parts = work.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        # Once for the whole request: one that is larger than its burst must get through at last.
        self._quotas.check(work.identity)
        if work.encoding or work.unpack is not unpack:
            body = work.unpack(
                body,
                encoding=work.encoding,
                max_bytes=self._unpacked_max_bytes,
                reservation=work.reservation,
            )
        heap = work.heap_factor * min(len(body), work.piece_bytes or len(body))
        if len(body) + heap > self._budget.total:
            raise TooLarge(f"a body of {len(body)} bytes in this format is too large: send it in parts")
        work.reservation.take(heap)
        return work.decode(body, work.now_ms)

    @staticmethod
    def _conclude(work: Work) -> None:
        outcome = work.outcome
        if work.by_line:
            return
        if outcome.forbidden and outcome.forbidden == outcome.refused and not outcome.kept:
            raise Forbidden(f"token {work.identity.id!r} may not write: {outcome.errors[0].reason}")

    def _admit(self, work: Work, decoded: Decoded) -> Batch:
        """The rows that the token may write; everything else is counted and noted."""
        identity, outcome, batch = work.identity, work.outcome, decoded.batch
        refused = self._counters.refused
        ambiguous = sum(error.reason.startswith("ambiguous") for error in decoded.errors)
        if decoded.errors:
            refused.labels("ambiguous").inc(ambiguous)
            refused.labels("malformed").inc(len(decoded.errors) - ambiguous + decoded.more_errors)
            outcome.refuse(decoded.errors, more=decoded.more_errors)
        for reason, count in decoded.left_out.items():
            self._counters.left_out.labels(reason).inc(count)
        if not identity.sees_all:
            known = {sensor: identity.allows(sensor) for sensor in batch.names}
            if not all(known.values()):
                forbidden = [
                    LineError(line, f"the token is not for sensor {sensor!r}")
                    for sensor, line in zip(batch.sensors, batch.lines, strict=True)
                    if not known[sensor]
                ]
                outcome.refuse(forbidden)
                outcome.forbidden += len(forbidden)
                refused.labels("forbidden").inc(len(forbidden))
                batch = batch.select([i for i, sensor in enumerate(batch.sensors) if known[sensor]])
        if identity.points_per_second:
            self._quotas.charge(identity, batch.points)
        return batch

    def _record(self, works: Sequence[Work], accepted: Accepted) -> None:
        """Note what became of a batch with rows of each of these requests."""
        receipt = accepted.receipt
        self._counters.points_by[receipt.durability].inc(receipt.points)
        spooled = receipt.durability == SPOOLED
        for work in works:
            outcome = work.outcome
            outcome.kept |= receipt.points > 0
            outcome.spooled |= spooled
        if accepted.errors or receipt.collapsed:
            (work,) = works  # they would not have been joined
            work.outcome.refuse(accepted.errors)
            work.outcome.collapsed += receipt.collapsed
            self._counters.refused.labels("retention").inc(len(accepted.errors))
            self._counters.collapsed.inc(receipt.collapsed)
