"""``receive``: everything that writes, as one ASGI application.

The event loop moves bytes, and ``commits`` takes bodies that are whole. A client that stalls costs a
coroutine, never a thread.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from fieldring.accept import SPOOLED, STORED, Acceptor
from fieldring.errors import (
    CorruptionError,
    Forbidden,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    TooLarge,
    Unavailable,
)
from fieldring.http.asgi import refuse_upgrade
from fieldring.http.limits import ByteBudget, Places, Reservation, unpack, unpack_snappy
from fieldring.http.quota import Quotas
from fieldring.http.tokens import Identity, TokenBook, presented_token
from fieldring.settings import Settings
from fieldring.web.arrivals import ArrivalBook
from fieldring.web.commits import DECODED_FACTOR, PIECE_BYTES, TOGETHER_BYTES, Commits, Decode, Outcome, Work
from fieldring.web.probes import (
    JSON,
    Answer,
    Answered,
    Check,
    GoneError,
    Probes,
    Request,
    error_to_answer,
    query_of,
)
from fieldring.web.receive_metrics import ReceiveMetrics
from fieldring.wire import Decoded, block, line_protocol, remote_write, senml, sensor_community

__all__ = ["TOGETHER_BYTES", "WHOLE_WRITES", "Receive", "Source", "parse_source"]

DEVICE_POINTS_PER_SECOND = 10.0
"""What a sensor.community device without credentials may write: a hundred times what the firmware sends."""

WHOLE_WRITES = {"/write": 204, "/api/v2/write": 202}
"""Paths of ``write_whole``, and how they answer what is spooled: v1 clients take 202 for an error."""

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
class _WholeWrite(Work):
    """One that ``write_whole`` was handed."""

    path: str = ""
    started: float = 0.0
    answered: Answered = lambda _: None


def _settle(outcome: asyncio.Future[Outcome], work: Work) -> None:
    if outcome.done():  # its request was cancelled
        return
    if work.error is not None:
        outcome.set_exception(work.error)
    else:
        outcome.set_result(work.outcome)


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
        self._waiting = Places(
            settings.receive_threads + settings.receive_queue_max, full="too many requests wait to be stored"
        )
        self.metrics.gauge(
            "fieldring_requests_under_way", "Writes being read or stored", lambda: self._requests.taken
        )
        self.metrics.gauge(
            "fieldring_commits_under_way",
            "Writes being stored or waiting for it",
            lambda: self._waiting.taken,
        )
        self._devices = frozenset(settings.sensor_community_devices)
        self._executor = ThreadPoolExecutor(settings.receive_threads, thread_name_prefix="commit")
        self._commits = Commits(
            acceptor,
            quotas=self._quotas,
            budget=self._budget,
            counters=self._counters,
            executor=self._executor,
            unpacked_max_bytes=settings.body_unpacked_max_bytes,
        )
        self.whole_writes = {path.encode(): path for path in WHOLE_WRITES}
        self.whole_writes_max_bytes = min(TOGETHER_BYTES, settings.body_max_bytes)
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
        decode: Decode,
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
            outcome: asyncio.Future[Outcome] = loop.create_future()
            work = Work(
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
            with self._waiting:
                # What has to be unpacked may turn out to be large.
                if reservation.size <= TOGETHER_BYTES and not encoding and unpacked is unpack:
                    self._commits.gather(work, loop)
                else:
                    self._commits.alone(work, loop)
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
        self._commits.gather(work, loop)

    def _places_for(self, size: int) -> Reservation:
        """A place among the requests and one among the commits, and ``size`` bytes; all of them or none."""
        reservation = self._budget.reserve()
        self._requests.take()
        try:
            self._waiting.take()
            try:
                reservation.take(size)
            except BaseException:
                self._waiting.give_back()
                raise
        except BaseException:
            self._requests.give_back()
            raise
        return reservation

    def _settle_whole(self, work: Work) -> None:
        assert isinstance(work, _WholeWrite)
        self._waiting.give_back()
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

    @staticmethod
    def _answer_to(outcome: Outcome, *, spooled_status: int) -> Answer:
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
