"""What every process answers beside its work, as an ASGI application: health, readiness, metrics.

``Probes`` is also the base that routes, answers errors in the one shape and counts requests;
``receive`` adds its routes to it. No framework: a dozen fixed paths need none.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from fieldring import __version__
from fieldring.errors import FieldringError, InvalidRequest, MethodNotAllowed, NotFound
from fieldring.http.asgi import send_answer
from fieldring.http.errors import answer as error_answer
from fieldring.http.tokens import TokenBook

__all__ = [
    "JSON",
    "Answer",
    "Answered",
    "Check",
    "GoneError",
    "Metrics",
    "Probes",
    "Request",
    "error_to_answer",
    "query_of",
    "trusted_header",
]

Scope = dict[str, Any]
Message = dict[str, Any]
ReceiveCall = Callable[[], Awaitable[Message]]
SendCall = Callable[[Message], Awaitable[None]]

JSON = (b"content-type", b"application/json")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of ``/health``."""

    name: str
    ok: bool
    message: str


@dataclass(slots=True)
class Answer:
    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[bytes, bytes]
    receive: ReceiveCall
    body_read: bool = False
    """Whether the body came to its end; who reads it says so."""

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")


Handler = Callable[[Request], Awaitable[Answer]]
Answered = Callable[[Answer], None]


class GoneError(Exception):
    """The client went away before its request was complete: there is nobody to answer."""


class Metrics:
    """What is counted of every process with an HTTP front; ``registry`` takes more."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "fieldring_http_requests",
            "Requests by route and status",
            ["route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "fieldring_http_request_seconds",
            "Time from the request's head to its answer",
            ["route"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )

        # Looking a child up by its labels costs more than counting in it.
        self._answered: dict[tuple[str, int], Counter] = {}
        self._timed: dict[str, Histogram] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        counter = self._answered.get((route, status))
        if counter is None:
            counter = self._answered[route, status] = self.requests.labels(route, str(status))
            self._timed.setdefault(route, self.seconds.labels(route))
        counter.inc()
        self._timed[route].observe(seconds)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Offer a value that somebody else keeps."""
        Gauge(name, text, registry=self.registry).set_function(read)


class Probes:
    """The application. Its collaborators are made and closed by whoever makes it."""

    def __init__(
        self,
        *,
        tokens: TokenBook,
        metrics: Metrics,
        trusted: str = "",
        checks: Callable[[], Iterable[Check]] = tuple,
    ) -> None:
        self.tokens = tokens
        self.metrics = metrics
        self._checks = checks
        self._trusted = trusted_header(trusted)
        self.routes: dict[str, dict[str, Handler]] = {
            "/health": {"GET": self._health, "HEAD": self._health},
            "/ready": {"GET": self._ready, "HEAD": self._ready},
            "/metrics": {"GET": self._metrics},
        }

    async def __call__(self, scope: Scope, receive: ReceiveCall, send: SendCall) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not spoken here")
        started = time.perf_counter()
        path = scope["path"]
        route = path if path in self.routes else "other"
        request: Request | None = None
        try:
            request = Request(
                scope["method"], path, query_of(scope["query_string"]), dict(scope["headers"]), receive
            )
            answer = await self._dispatch(request)
        except GoneError:
            self.metrics.requests.labels(route, "499").inc()
            return
        except Exception as error:  # noqa: BLE001 - the last line of defence: answered, logged, counted
            answer = self.failure(scope["method"], path, error)
        self.note_answer(scope["method"], route, answer.status, time.perf_counter() - started)
        await send_answer(
            scope,
            receive,
            send,
            status=answer.status,
            headers=answer.headers,
            body=answer.body,
            body_read=request is not None and request.body_read,
        )

    @staticmethod
    def failure(method: str, path: str, error: Exception) -> Answer:
        """How a request that failed is answered; a defect of ours is logged whole, and told to nobody."""
        if not isinstance(error, FieldringError):
            _log.error("request failed: %s %s", method, path, exc_info=error)
        return error_to_answer(error)

    def note_answer(self, method: str, route: str, status: int, seconds: float) -> None:
        """Log a refusal, and count the answer."""
        if status >= 400:
            _log.info("refused: %s %s %d", method, route, status)
        self.metrics.answered(route, status, seconds)

    async def _dispatch(self, request: Request) -> Answer:
        handlers = self.routes.get(request.path)
        if handlers is None:
            raise NotFound(f"there is no {request.path[:200]!r} here")
        handler = handlers.get(request.method)
        if handler is None:
            raise MethodNotAllowed(request.method, allowed=tuple(handlers))
        return await handler(request)

    # -- probes --------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether this process can do its work now."""
        return True

    def readiness(self) -> Mapping[str, Any]:
        """What ``/ready`` says beside its status."""
        return {}

    async def _health(self, request: Request) -> Answer:
        """InfluxDB v2's shape."""
        ready = self.ready()
        checks = [
            {"name": c.name, "status": "pass" if c.ok else "fail", "message": c.message}
            for c in self._checks()
        ]
        body = {
            "name": "fieldring",
            "message": "ready" if ready else "not ready",
            "checks": checks,
            "status": "pass" if ready else "fail",
            "version": __version__,
            "commit": "",
        }
        return Answer(200 if ready else 503, (JSON,), msgspec.json.encode(body))

    async def _ready(self, request: Request) -> Answer:
        ready = self.ready()
        body = {"status": "ready" if ready else "unready", **self.readiness()}
        headers = (JSON,) if ready else (JSON, (b"retry-after", b"5"))
        return Answer(200 if ready else 503, headers, msgspec.json.encode(body))

    async def _metrics(self, request: Request) -> Answer:
        name, value = self._trusted
        if not name or not hmac.compare_digest(request.headers.get(name, b""), value):
            identity = self.tokens.authenticate(request.header(b"authorization") or None)
            identity.require("read")
        text = await asyncio.get_running_loop().run_in_executor(None, generate_latest, self.metrics.registry)
        return Answer(200, ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),), text)


@lru_cache(maxsize=256)
def query_of(raw: bytes) -> Mapping[str, str]:
    """Query parameters; of one that is repeated, the first."""
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise InvalidRequest("query has more than 100 parameters") from None
    found: dict[str, str] = {}
    for key, value in pairs:
        found.setdefault(key, value)
    return found


def trusted_header(text: str) -> tuple[bytes, bytes]:
    """Name, in lower case, and value of ``Name: value``; without a value nobody is trusted."""
    name, _, value = text.partition(":")
    if not value.strip():
        return b"", b""
    return name.strip().lower().encode(), value.strip().encode()


def error_to_answer(error: BaseException) -> Answer:
    made = error_answer(error)
    headers = tuple((k.lower().encode(), v.encode("latin-1", "replace")) for k, v in made.headers.items())
    return Answer(made.status, headers, made.body)


async def _lifespan(receive: ReceiveCall, send: SendCall) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
