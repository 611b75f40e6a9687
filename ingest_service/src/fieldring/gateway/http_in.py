"""Writes of devices on the LAN over HTTP: the ingest hosts' calls, answered after the spool's fdatasync.

``POST /write``, ``/api/v2/write`` and ``/api/v1/senml``; ``GET /ping`` and ``/ready``. A device logs in
with its name and password (Basic, ``Token name:password``, or v1's ``u`` and ``p``) and writes its own
sensor only. Age is not checked here: that is done once, at an ingest host.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from fieldring.errors import (
    FieldringError,
    Forbidden,
    LineError,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
    SpoolFull,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from fieldring.gateway.accounts import Accounts
from fieldring.gateway.inbox import Inbox
from fieldring.gateway.metrics import Metrics
from fieldring.http import ByteBudget, ErrorAnswer, Reservation, answer, unpack
from fieldring.http.asgi import refuse_upgrade, send_answer
from fieldring.http.errors import RefusedLines
from fieldring.settings import Settings
from fieldring.wire import Decoded, line_protocol, senml

__all__ = ["HttpIn", "presented_login"]

_BUDGET_BYTES = 33_554_432
_PIECE_BYTES = 131_072
_DECODED_FACTOR = 30
"""Memory that a decoded piece takes at most, as a multiple of its bytes; as measured for ``receive``."""

_BODY_SECONDS = 30.0
_FAILED_LOGIN_SECONDS = 0.5
_THREADS = 8

Message = dict[str, Any]
_log = logging.getLogger(__name__)


class _Decode(NamedTuple):
    """How a body is decoded, and what memory that takes."""

    call: Callable[[bytes], Iterator[Decoded]]
    factor: int = _DECODED_FACTOR
    piece_bytes: int | None = None
    """None: the body is decoded whole."""


class _GoneError(Exception):
    """The client went away: there is nobody to answer."""


class _Progress:
    """``receive``, and whether the request's body has come to its end."""

    def __init__(self, receive: Callable[[], Awaitable[Message]]) -> None:
        self._receive = receive
        self.complete = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.complete = not message.get("more_body")
        return message


class HttpIn:
    """The ASGI application. Logging in, decoding and keeping run in threads.

    An error that the server puts into the state as ``refusal`` is the answer to every request.
    """

    def __init__(
        self,
        inbox: Inbox,
        accounts: Accounts,
        *,
        settings: Settings,
        metrics: Metrics,
        now_ms: Callable[[], int],
        wake: Callable[[], None] = lambda: None,
        open_: Callable[[], bool] = lambda: True,
    ) -> None:
        self._inbox = inbox
        self._accounts = accounts
        self._metrics = metrics
        self._now_ms = now_ms
        self._wake = wake
        self._open = open_
        self._series_tags = settings.series_tags
        self._body_max_bytes = settings.device_body_max_bytes
        self._budget = ByteBudget(_BUDGET_BYTES)
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="http")
        self._routes: dict[str, tuple[str, ...]] = {
            "/write": ("POST",),
            "/api/v2/write": ("POST",),
            "/api/v1/senml": ("POST",),
            "/ping": ("GET", "HEAD"),
            "/ready": ("GET", "HEAD"),
        }

    def close(self) -> None:
        """Wait for what is being kept."""
        self._executor.shutdown(wait=True)

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return
        progress = _Progress(receive)
        try:
            status, headers, body = await self._handle(scope, progress)
        except _GoneError:
            return
        except Exception as error:  # noqa: BLE001
            if not isinstance(error, FieldringError):
                _log.exception("%s %s failed", scope["method"], scope["path"])
            if isinstance(error, Unauthorized):
                await asyncio.sleep(_FAILED_LOGIN_SECONDS)
            found = answer(error)
            status, headers, body = found.status, found.headers, found.body
        self._metrics.http_answers.labels(str(status)).inc()
        await send_answer(
            scope,
            receive,
            send,
            status=status,
            headers=[(name.lower().encode(), value.encode()) for name, value in headers.items()],
            body=body,
            body_read=progress.complete,
        )

    async def _handle(
        self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Message]]
    ) -> tuple[int, dict[str, str], bytes]:
        if "refusal" in scope["state"]:
            raise scope["state"]["refusal"]
        path, method = scope["path"], scope["method"]
        methods = self._routes.get(path)
        if methods is None:
            raise NotFound(f"{path[:80]!r} is not here: {', '.join(self._routes)} are")
        if method not in methods:
            raise MethodNotAllowed(method, allowed=methods)
        if path == "/ping":
            return 204, {"X-Influxdb-Version": "1.8.10-fieldring"}, b""
        if path == "/ready":
            return 200, {"Content-Type": "application/json"}, b'{"status":"ready"}\n'
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        loop = asyncio.get_running_loop()
        login = presented_login(headers.get(b"authorization", ""), query)
        if login is None:
            raise Unauthorized("no login: send the device's name and password (Basic, or u and p)")
        name, password = login
        if not await loop.run_in_executor(self._executor, self._accounts.verify, name, password):
            raise Unauthorized("wrong password or unknown device")
        if not self._open():
            raise Unavailable("the gateway's clock is not synchronised yet: send again", retry_after_s=10)
        decode = self._decoder(path, query, headers)
        with self._budget.reserve() as reservation:
            body = await self._body(headers, receive, reservation)
            encoding = headers.get(b"content-encoding", "")
            points, refused, collapsed = await loop.run_in_executor(
                self._executor, self._keep, name, body, encoding, decode, reservation
            )
        answered: dict[str, str] = {}
        if points:
            answered["Fieldring-Durability"] = "spooled"
        if collapsed:
            answered["Fieldring-Collapsed"] = str(collapsed)
        if refused.errors:
            refusal: ErrorAnswer = answer(refused.as_error())
            return refusal.status, refusal.headers | answered, refusal.body
        # v1 clients take 202 for an error.
        return 204 if path == "/write" else 202, answered, b""

    def _decoder(self, path: str, query: Mapping[str, str], headers: Mapping[bytes, str]) -> _Decode:
        now_ms = self._now_ms()
        if path == "/api/v1/senml":
            content_type = headers.get(b"content-type", "")

            def decode_senml(body: bytes) -> Iterator[Decoded]:
                yield senml.decode(body, content_type=content_type, now_ms=now_ms)

            return _Decode(decode_senml, senml.decoded_factor(content_type))
        precision = query.get("precision") or "ns"
        line_protocol.check_precision(precision)

        def decode_lines(body: bytes) -> Iterator[Decoded]:
            return line_protocol.decode_in_pieces(
                body,
                precision=precision,
                now_ms=now_ms,
                series_tags=self._series_tags,
                piece_bytes=_PIECE_BYTES,
            )

        return _Decode(decode_lines, piece_bytes=_PIECE_BYTES)

    async def _body(
        self,
        headers: Mapping[bytes, str],
        receive: Callable[[], Awaitable[Message]],
        reservation: Reservation,
    ) -> bytes:
        refuse_upgrade(headers)
        limit = self._body_max_bytes
        too_large = f"body is larger than {limit} bytes: send it in parts"
        length = headers.get(b"content-length", "")
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            raise TooLarge(too_large)
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                async with asyncio.timeout(_BODY_SECONDS):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    raise _GoneError
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise TooLarge(too_large)
                reservation.take(2 * len(part))  # parts and whole exist together for a moment
                parts.append(part)
                if not message.get("more_body"):
                    return b"".join(parts)
        except TimeoutError:
            raise RequestTimeout(f"no part of the body came for {_BODY_SECONDS:.0f} s") from None

    def _keep(
        self,
        device: str,
        body: bytes,
        encoding: str,
        decode: _Decode,
        reservation: Reservation,
    ) -> tuple[int, RefusedLines, int]:
        """Runs in a thread. Points kept, lines refused, points that a later line replaced."""
        body = unpack(body, encoding=encoding, max_bytes=8 * self._body_max_bytes, reservation=reservation)
        reservation.take(decode.factor * min(len(body), decode.piece_bytes or len(body)))
        refused = RefusedLines()
        points = collapsed = foreign = 0
        for decoded in decode.call(body):
            batch = decoded.batch
            refused.refuse(decoded.errors, more=decoded.more_errors)
            if set(batch.sensors) - {device}:
                others = [
                    LineError(line, f"{device!r} may not write sensor {sensor!r}")
                    for sensor, line in zip(batch.sensors, batch.lines, strict=True)
                    if sensor != device
                ]
                refused.refuse(others)
                foreign += len(others)
                batch = batch.select([i for i, sensor in enumerate(batch.sensors) if sensor == device])
            if len(batch):
                try:
                    self._inbox.keep(batch)
                except OSError as error:
                    raise SpoolFull(f"the spool's disk failed: {error.strerror}") from error
                points += batch.points
                collapsed += batch.collapsed
        if points:
            self._wake()
        if foreign and foreign == refused.refused and not points:
            raise Forbidden(refused.errors[0].reason)
        return points, refused, collapsed


def presented_login(authorization: str, query: Mapping[str, str]) -> tuple[str, bytes] | None:
    """Name and password in a header (Basic; Token or Bearer with ``name:password``) or in ``u``/``p``."""
    scheme, _, rest = authorization.strip().partition(" ")
    rest = rest.strip()
    text = ""
    match scheme.lower():
        case "basic":
            try:
                text = base64.b64decode(rest, validate=True).decode()
            except (binascii.Error, ValueError):
                return None
        case "token" | "bearer":
            text = rest
        case "" if query.get("u") and query.get("p"):
            return query["u"], query["p"].encode()
    name, colon, password = text.partition(":")
    return (name, password.encode("utf-8", "surrogateescape")) if name and colon and password else None
