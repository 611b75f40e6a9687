"""``receive``: everything that writes, as one ASGI application.

The event loop moves bytes; decoding and the durable commit run in a thread pool, where commits that meet
share one fsync. Only the smallest bodies are decoded on the loop: that takes less than handing the
interpreter from thread to thread. A client that stalls costs a coroutine, never a thread.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec
from prometheus_client import Counter, Gauge

from fieldring.accept import SPOOLED, STORED, Accepted, Acceptor
from fieldring.errors import (
    CorruptionError,
    Forbidden,
    InvalidRequest,
    LineError,
    Overloaded,
    RequestTimeout,
    SpoolFull,
    TooLarge,
    Unavailable,
)
from fieldring.http.asgi import refuse_upgrade
from fieldring.http.errors import RefusedLines
from fieldring.http.limits import ByteBudget, Places, Reservation, unpack, unpack_snappy
from fieldring.http.quota import Quotas
from fieldring.http.tokens import Identity, TokenBook, presented_token
from fieldring.model import Batch, PackedBatch
from fieldring.settings import Settings
from fieldring.web.arrivals import ArrivalBook
from fieldring.web.probes import (
    JSON,
    Answer,
    Answered,
    Check,
    GoneError,
    Metrics,
    Probes,
    Request,
    error_to_answer,
    query_of,
)
from fieldring.wire import Decoded, block, line_protocol, remote_write, senml, sensor_community

__all__ = ["TOGETHER_BYTES", "WHOLE_WRITES", "Receive", "ReceiveMetrics", "Source", "parse_source"]

PIECE_BYTES = 524_288
"""Line protocol is decoded and committed in pieces, so that a large body does not become a large heap."""

DECODED_FACTOR = 30
"""Memory that a decoded body and its block take, as a multiple of its bytes: measured 7 (few sensors, many
fields) to 29 (each line another sensor); only bodies of nothing but names and junk take more."""

DEVICE_POINTS_PER_SECOND = 10.0
"""What a sensor.community device without credentials may write: a hundred times what the firmware sends."""

TOGETHER_BYTES = 65_536
"""Bodies up to this size that are complete at the same time are committed by one thread, with one wait."""

WHOLE_WRITES = {"/write": 204, "/api/v2/write": 202}
"""Paths of ``write_whole``, and how they answer what is spooled: v1 clients take 202 for an error."""

_JOINED_ON_LOOP_BYTES = 131_072
"""Bodies that come together to this size are decoded as one on the event loop: about a millisecond."""

_ON_LOOP_BYTES = 8_192
"""Bodies up to this size are decoded there one by one: some 0.1 ms, a few ms for nothing but junk."""

_APART_S = 1.0
"""How long no bodies of a token are decoded as one after that was in vain: junk is decoded slowly."""

_TOGETHER_MAX = 64

_log = logging.getLogger(__name__)

_MAX_EPOCH = (1 << 63) - 1
_INFLUX_VERSION = "1.8.10-fieldring"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a gateway's block stands in that gateway's sequence."""

    gateway: str
    epoch: int
    seq: int
    count: int


@dataclass(slots=True)
class _Outcome(RefusedLines):
    """What became of one request, piece by piece."""

    kept: bool = False
    """Whether there is a point that a promise can be made for."""
    collapsed: int = 0
    spooled: bool = False
    forbidden: int = 0

    @property
    def durability(self) -> str:
        return SPOOLED if self.spooled else STORED


_Decode = Callable[[bytes, int], Iterator[Decoded]]
"""Of a body, and of the time in ms for what has none."""


@dataclass(slots=True)
class _Work:
    """One request on its way to its outcome."""

    identity: Identity
    parts: list[bytes]
    encoding: str
    decode: _Decode
    now_ms: int
    """When its body was here whole: the time of what has none."""
    piece_bytes: int | None
    reservation: Reservation
    done: Callable[[_Work], None]
    """Called on the event loop with this work when its outcome or its error is known."""
    unpack: Callable[..., bytes] = unpack
    heap_factor: int = DECODED_FACTOR
    outcome: _Outcome = field(default_factory=_Outcome)
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

    works: list[_Work]
    batch: Batch


@dataclass(slots=True)
class _WholeWrite(_Work):
    """One that ``write_whole`` was handed."""

    path: str = ""
    started: float = 0.0
    answered: Answered = lambda _: None


def _settle(outcome: asyncio.Future[_Outcome], work: _Work) -> None:
    if outcome.done():  # its request was cancelled
        return
    if work.error is not None:
        outcome.set_exception(work.error)
    else:
        outcome.set_result(work.outcome)


class ReceiveMetrics(Metrics):
    """Counters of one ``receive`` process."""

    def __init__(self) -> None:
        super().__init__()
        self.points = Counter(
            "fieldring_points", "Points acknowledged, by durability", ["durability"], registry=self.registry
        )
        self.refused = Counter(
            "fieldring_lines_refused",
            "Lines or records refused, by reason",
            ["reason"],
            registry=self.registry,
        )
        self.collapsed = Counter(
            "fieldring_points_collapsed",
            "Points that a later line of a request replaced",
            registry=self.registry,
        )
        self.left_out = Counter(
            "fieldring_points_left_out",
            "Values that are no measurement (stale markers, NaN, infinities, native histograms), by reason",
            ["reason"],
            registry=self.registry,
        )
        self.gateway_seq = Gauge(
            "fieldring_gateway_last_sequence", "Last block of a gateway", ["gateway"], registry=self.registry
        )
        self.points_by = {durability: self.points.labels(durability) for durability in (STORED, SPOOLED)}
        for reason in ("malformed", "ambiguous", "retention", "forbidden"):
            self.refused.labels(reason)
        for reason in ("stale", "nan", "infinite", "histogram", "not_finite"):
            self.left_out.labels(reason)


class Receive(Probes):
    """The application. Its collaborators are made and closed by whoever makes it."""

    def __init__(
        self,
        *,
        acceptor: Acceptor,
        tokens: TokenBook,
        settings: Settings,
        checks: Callable[[], Iterable[Check]] = tuple,
        metrics: ReceiveMetrics | None = None,
        arrivals: ArrivalBook | None = None,
    ) -> None:
        self._counters = metrics or ReceiveMetrics()
        super().__init__(
            tokens=tokens,
            metrics=self._counters,
            trusted=settings.metrics_trusted_header,
            checks=checks,
        )
        self._acceptor = acceptor
        self._arrivals = arrivals
        self._settings = settings
        self._budget = ByteBudget(settings.body_budget_bytes)
        self.metrics.gauge(
            "fieldring_request_bytes", "Bytes of request bodies being worked on", lambda: self._budget.taken
        )
        self._quotas = Quotas()
        self._requests = Places(settings.receive_requests_max, full="too many requests are being worked on")
        self._commits = Places(
            settings.receive_threads + settings.receive_queue_max, full="too many requests wait to be stored"
        )
        self.metrics.gauge(
            "fieldring_requests_under_way", "Writes being read or stored", lambda: self._requests.taken
        )
        self.metrics.gauge(
            "fieldring_commits_under_way",
            "Writes being stored or waiting for it",
            lambda: self._commits.taken,
        )
        self._devices = frozenset(settings.sensor_community_devices)
        self._executor = ThreadPoolExecutor(settings.receive_threads, thread_name_prefix="commit")
        self._gathered: list[_Work] = []
        # By token: until when its writes are decoded one by one.
        self._apart: dict[str, float] = {}
        self.whole_writes = {path.encode(): path for path in WHOLE_WRITES}
        self.whole_writes_max_bytes = min(TOGETHER_BYTES, settings.body_max_bytes)
        self._flush_due = False
        self._spooling = False
        self.routes |= {
            "/write": {"POST": self._write_v1},
            "/api/v2/write": {"POST": self._write_v2},
            "/api/v1/senml": {"POST": self._write_senml},
            "/api/v1/block": {"POST": self._write_block},
            "/query": {"GET": self._query, "POST": self._query},
            "/ping": {"GET": self._ping, "HEAD": self._ping},
            "/v1/push-sensor-data/": {"POST": self._write_sensor_community},
            "/api/v1/write": {"POST": self._write_remote},
        }

    def close(self) -> None:
        """Wait for commits that are under way. Idempotent."""
        self._executor.shutdown(wait=True)
        if self._arrivals is not None:
            self._arrivals.flush()

    # -- writing -----------------------------------------------------------------------------

    async def _write_v1(self, request: Request) -> Answer:
        return await self._write_lines(request, spooled_status=WHOLE_WRITES["/write"])

    async def _write_v2(self, request: Request) -> Answer:
        return await self._write_lines(request, spooled_status=WHOLE_WRITES["/api/v2/write"])

    async def _write_lines(self, request: Request, *, spooled_status: int) -> Answer:
        precision = request.query.get("precision") or "ns"
        return await self._write(
            request,
            functools.partial(self._decode_lines, precision),
            spooled_status=spooled_status,
            piece_bytes=PIECE_BYTES,
            check=lambda _: line_protocol.check_precision(precision),
        )

    def _decode_lines(self, precision: str, body: bytes, now_ms: int) -> Iterator[Decoded]:
        return line_protocol.decode_in_pieces(
            body,
            precision=precision,
            now_ms=now_ms,
            series_tags=self._settings.series_tags,
            piece_bytes=PIECE_BYTES,
        )

    async def _write_senml(self, request: Request) -> Answer:
        content_type = request.header(b"content-type")

        def decode(body: bytes, now_ms: int) -> Iterator[Decoded]:
            yield senml.decode(body, content_type=content_type, now_ms=now_ms)

        factor = senml.decoded_factor(content_type)
        return await self._write(request, decode, spooled_status=202, heap_factor=factor)

    async def _write_sensor_community(self, request: Request) -> Answer:
        device, pin = request.header(b"x-sensor").strip(), request.header(b"x-pin").strip()

        def decode(body: bytes, now_ms: int) -> Iterator[Decoded]:
            yield sensor_community.decode(body, device=device, pin=pin, now_ms=now_ms)

        identity = None
        if not presented_token(request.header(b"authorization") or None, request.query):
            identity = self._known_device(device)
        return await self._write(request, decode, spooled_status=202, identity=identity)

    def _known_device(self, device: str) -> Identity | None:
        """What a device without credentials may do: write its own readings, where it is on the list."""
        if device not in self._devices:
            return None
        return Identity(
            f"sensor.community device {device}",
            frozenset({"write"}),
            (device, f"{device}-*"),
            points_per_second=DEVICE_POINTS_PER_SECOND,
            points_burst=100 * DEVICE_POINTS_PER_SECOND,
        )

    async def _write_remote(self, request: Request) -> Answer:
        def check(_: Identity) -> None:
            remote_write.check_content_type(request.header(b"content-type"))

        def decode(body: bytes, _: int) -> Iterator[Decoded]:
            yield remote_write.decode(body, series_tags=self._settings.series_tags)

        try:
            return await self._write(request, decode, spooled_status=202, check=check, unpacked=unpack_snappy)
        except Overloaded as error:
            # By default Prometheus throws away what is answered 429, and sends again what is answered 503.
            raise Unavailable(str(error), retry_after_s=error.retry_after_s) from error

    async def _write_block(self, request: Request) -> Answer:
        source = request.header(b"fieldring-source")
        parsed = parse_source(source) if source else None

        def check(identity: Identity) -> None:
            if parsed is not None and identity.gateway != parsed.gateway:
                raise Forbidden(f"token {identity.id!r} is not that of gateway {parsed.gateway!r}")

        def decode(body: bytes, _: int) -> Iterator[Decoded]:
            try:
                yield Decoded(block.decode(body))
            except CorruptionError as error:
                raise InvalidRequest(str(error)) from error

        # A gateway sends again what is answered 403, as for a token to be mended, before anything behind it.
        answer = await self._write(request, decode, spooled_status=202, check=check, by_line=True)
        if parsed is not None:
            self._counters.gateway_seq.labels(parsed.gateway).set(parsed.seq)
            if self._arrivals is not None:
                # Also where lines of it were refused: it came.
                oldest = request.header(b"fieldring-oldest")
                self._arrivals.arrived(
                    parsed.gateway,
                    parsed.epoch,
                    parsed.seq,
                    parsed.count,
                    oldest=int(oldest) if _NUMBER.fullmatch(oldest) else 0,
                )
                if not self._acceptor.store_failing:
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(self._executor, self._arrivals.write)
        return answer

    async def _write(
        self,
        request: Request,
        decode: _Decode,
        *,
        spooled_status: int,
        piece_bytes: int | None = None,
        check: Callable[[Identity], None] | None = None,
        identity: Identity | None = None,
        unpacked: Callable[..., bytes] = unpack,
        heap_factor: int = DECODED_FACTOR,
        by_line: bool = False,
    ) -> Answer:
        if identity is None:
            identity = self.tokens.authenticate(request.header(b"authorization") or None, request.query)
        identity.require("write")
        if check is not None:
            check(identity)
        self._quotas.check(identity)
        encoding = request.header(b"content-encoding")
        with self._requests, self._budget.reserve() as reservation:
            parts = await self._body(request, reservation)
            loop = asyncio.get_running_loop()
            outcome: asyncio.Future[_Outcome] = loop.create_future()
            work = _Work(
                identity,
                parts,
                encoding,
                decode,
                self._acceptor.now_ms(),
                piece_bytes,
                reservation,
                functools.partial(_settle, outcome),
                unpack=unpacked,
                heap_factor=heap_factor,
                by_line=by_line,
            )
            with self._commits:
                # What has to be unpacked may turn out to be large.
                if reservation.size <= TOGETHER_BYTES and not encoding and unpacked is unpack:
                    self._gather(work, loop)
                else:
                    self._executor.submit(self._commit_alone, work, loop)
                return self._answer_to(await outcome, spooled_status=spooled_status)

    def write_whole(
        self,
        path: str,
        query: bytes,
        headers: Mapping[bytes, bytes],
        body: bytes,
        answered: Answered,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """A write of lines that has come whole, at most ``TOGETHER_BYTES`` and not packed, without a task.

        What ``__call__`` does with the same request, for a third of the time that tasks and messages take.
        ``path`` is one of ``WHOLE_WRITES``. Called on ``loop``, as ``answered`` is, once.
        """
        started = time.perf_counter()
        try:
            words = query_of(query)
            identity = self.tokens.authenticate(
                headers.get(b"authorization", b"").decode("latin-1") or None, words
            )
            identity.require("write")
            precision = words.get("precision") or "ns"
            line_protocol.check_precision(precision)
            self._quotas.check(identity)
            reservation = self._places_for(len(body))
        except Exception as error:  # noqa: BLE001 - answered as every other
            self._answer_whole(path, started, answered, self.failure("POST", path, error))
            return
        decode = functools.partial(self._decode_lines, precision)
        work = _WholeWrite(
            identity,
            [body],
            "",
            decode,
            self._acceptor.now_ms(),
            PIECE_BYTES,
            reservation,
            self._settle_whole,
        )
        work.precision, work.path, work.started, work.answered = precision, path, started, answered
        self._gather(work, loop)

    def _places_for(self, size: int) -> Reservation:
        """A place among the requests and one among the commits, and ``size`` bytes; all of them or none."""
        reservation = self._budget.reserve()
        self._requests.take()
        try:
            self._commits.take()
            try:
                reservation.take(size)
            except BaseException:
                self._commits.give_back()
                raise
        except BaseException:
            self._requests.give_back()
            raise
        return reservation

    def _settle_whole(self, work: _Work) -> None:
        assert isinstance(work, _WholeWrite)
        self._commits.give_back()
        self._requests.give_back()
        work.reservation.release()
        path = work.path
        if work.error is None:
            made = self._answer_to(work.outcome, spooled_status=WHOLE_WRITES[path])
        else:
            made = self.failure("POST", path, work.error)
        self._answer_whole(path, work.started, work.answered, made)

    def _answer_whole(self, path: str, started: float, answered: Answered, made: Answer) -> None:
        self.note_answer("POST", path, made.status, time.perf_counter() - started)
        answered(made)

    def _gather(self, work: _Work, loop: asyncio.AbstractEventLoop) -> None:
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

    def _deliver(self, group: list[_Work], loop: asyncio.AbstractEventLoop, spooling: bool) -> None:
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

    async def _body(self, request: Request, reservation: Reservation) -> list[bytes]:
        """The body in the parts in which it arrived, within the limits.

        The deadline is for the next part, not for the whole: a slow link is no offence.
        """
        refuse_upgrade(request.headers)
        limit = self._settings.body_max_bytes
        too_large = f"body is larger than {limit} bytes: send it in parts"
        length = request.headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            raise TooLarge(too_large)
        patience = self._settings.body_timeout_seconds
        clock = asyncio.get_running_loop().time
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(patience) as deadline:
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise GoneError
                    part = message.get("body", b"")
                    if part:
                        size += len(part)
                        if size > limit:
                            raise TooLarge(too_large)
                        reservation.take(len(part))
                        parts.append(part)
                        deadline.reschedule(clock() + patience)
                    if not message.get("more_body"):
                        request.body_read = True
                        return parts
        except TimeoutError:
            raise RequestTimeout(f"no part of the body came for {patience} s") from None

    def _commit_alone(self, work: _Work, loop: asyncio.AbstractEventLoop) -> None:
        """Runs in a thread: unpack, decode, keep, piece by piece."""
        self._keep(work)
        loop.call_soon_threadsafe(self._deliver, [work], loop, False)

    def _keep(self, work: _Work) -> None:
        try:
            for batch in self._batches(work):
                self._record([work], self._acceptor.accept(batch))
            if work.error is None:
                self._conclude(work)
        except Exception as error:  # noqa: BLE001 - raised again where the request waits
            work.error = error

    def _commit_together(
        self,
        group: list[_Work],
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

    def _keep_together(self, group: list[_Work], joined: list[_Joined]) -> None:
        for work in group:
            self._decode_whole(work)
        kept = [(each.works, each.batch) for each in joined]
        kept += [([work], batch) for work in group for batch in work.batches or ()]
        try:
            results = self._acceptor.accept_together([batch for _, batch in kept])
        except Exception as error:  # noqa: BLE001 - as above
            results = [error] * len(kept)
        again: list[_Work] = []
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

    def _decode_together(self, group: list[_Work]) -> list[_Joined]:
        """Decode as many of ``group`` as can be one body; these have no ``batches`` of their own then."""
        alike: dict[tuple[int, str], list[_Work]] = {}
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

    def _join(self, works: list[_Work]) -> Batch | None:
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

    def _as_one(self, works: list[_Work], body: bytes) -> Batch | None:
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

    def _decode_whole(self, work: _Work) -> None:
        """Fill ``batches``, once; what was decoded before an error stands too."""
        if work.batches is not None:
            return
        batches: list[Batch] = []
        try:
            batches.extend(self._batches(work))
        except Exception as error:  # noqa: BLE001 - raised again where the request waits
            work.error = error
        work.batches = batches

    def _batches(self, work: _Work) -> Iterator[Batch]:
        """What is to be kept of a request, piece by piece."""
        if work.batches is not None:
            yield from work.batches
            return
        for decoded in self._decoded(work):
            batch = self._admit(work, decoded)
            if len(batch):
                yield batch

    def _decoded(self, work: _Work) -> Iterator[Decoded]:
        parts = work.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        # Once for the whole request: one that is larger than its burst must get through at last.
        self._quotas.check(work.identity)
        if work.encoding or work.unpack is not unpack:
            body = work.unpack(
                body,
                encoding=work.encoding,
                max_bytes=self._settings.body_unpacked_max_bytes,
                reservation=work.reservation,
            )
        heap = work.heap_factor * min(len(body), work.piece_bytes or len(body))
        if len(body) + heap > self._budget.total:
            raise TooLarge(f"a body of {len(body)} bytes in this format is too large: send it in parts")
        work.reservation.take(heap)
        return work.decode(body, work.now_ms)

    @staticmethod
    def _conclude(work: _Work) -> None:
        outcome = work.outcome
        if work.by_line:
            return
        if outcome.forbidden and outcome.forbidden == outcome.refused and not outcome.kept:
            raise Forbidden(f"token {work.identity.id!r} may not write: {outcome.errors[0].reason}")

    def _admit(self, work: _Work, decoded: Decoded) -> Batch:
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

    def _record(self, works: Sequence[_Work], accepted: Accepted) -> None:
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

    @staticmethod
    def _answer_to(outcome: _Outcome, *, spooled_status: int) -> Answer:
        if outcome.kept and not outcome.collapsed and not outcome.errors:
            return _PLAIN[outcome.spooled, spooled_status]
        headers: list[tuple[bytes, bytes]] = []
        if outcome.kept:
            headers.append((b"fieldring-durability", outcome.durability.encode()))
        if outcome.collapsed:
            headers.append((b"fieldring-collapsed", str(outcome.collapsed).encode()))
        if outcome.errors:
            refusal = error_to_answer(outcome.as_error())
            return Answer(refusal.status, (*refusal.headers, *headers), refusal.body)
        return Answer(spooled_status if outcome.spooled else 204, tuple(headers))

    # -- what clients ask first -------------------------------------------------------------

    async def _query(self, request: Request) -> Answer:
        """``show databases`` and ``create database``, which v1 clients send before they write."""
        self.tokens.authenticate(request.header(b"authorization") or None, request.query)
        text = request.query.get("q", "")
        if not text and request.method == "POST":
            with self._budget.reserve() as reservation:
                parts = await self._body(request, reservation)
                text = query_of(b"".join(parts)).get("q", "")
        statement = " ".join(text.replace(";", " ").split()).lower()
        result: dict[str, Any] = {"statement_id": 0}
        if statement == "show databases":
            series = {"name": "databases", "columns": ["name"], "values": [["fieldring"]]}
            result["series"] = [series]
        elif not re.fullmatch(r"create database (\"([^\"\\]|\\.)+\"|\S+)( with .*)?", statement):
            raise InvalidRequest(
                "only 'show databases' and 'create database' are answered here; read with /v1/points"
            )
        return Answer(
            200,
            (JSON, (b"x-influxdb-version", _INFLUX_VERSION.encode())),
            msgspec.json.encode({"results": [result]}),
        )

    async def _ping(self, request: Request) -> Answer:
        return Answer(
            204, ((b"x-influxdb-version", _INFLUX_VERSION.encode()), (b"x-influxdb-build", b"fieldring"))
        )

    # -- probes --------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether a write would be acknowledged, by the store or by the spool."""
        return not (self._acceptor.store_failing and self._acceptor.spool_failing)

    def readiness(self) -> Mapping[str, Any]:
        return {"durability": (SPOOLED if self._acceptor.store_failing else STORED) if self.ready() else None}


_PLAIN = {
    (spooled, status): Answer(
        status if spooled else 204, ((b"fieldring-durability", (SPOOLED if spooled else STORED).encode()),)
    )
    for spooled in (False, True)
    for status in (202, 204)
}
"""Answers to what was kept whole: made once, as most are these."""

# Up to 18 digits: the store's numbers have 63 bits.
_SOURCE = re.compile(r"([^;=,\s]{1,100});epoch=([0-9]{1,19});seq=([0-9]{1,18});count=([0-9]{1,9})")
_NUMBER = re.compile(r"[0-9]{1,18}")


def parse_source(text: str) -> Source:
    """``<gateway>;epoch=<e>;seq=<n>;count=<k>``.

    Raises:
        InvalidRequest: another form.
    """
    match = _SOURCE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise InvalidRequest(
            f"Fieldring-Source is {text[:80]!r}, but must be '<gateway>;epoch=<e>;seq=<n>;count=<k>'"
        )
    source = Source(match[1], int(match[2]), int(match[3]), int(match[4]))
    if source.epoch > _MAX_EPOCH or not source.count:
        raise InvalidRequest(f"Fieldring-Source is {text[:80]!r}: its epoch or count is out of range")
    return source
