"""``serve``: readings and pages, as a Flask application under gunicorn's threads.

An answer is begun only when its first part is there, so what fails early fails with a proper status.
What fails later raises out of the body's iterator: gunicorn then closes the connection without the
last chunk, and the client sees an error instead of a short answer that looks whole.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Any

import flask
import msgspec
from flask import Flask, Request, Response, current_app, request
from flask_wtf.csrf import CSRFError, CSRFProtect
from prometheus_client import generate_latest
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

from fieldring import __version__
from fieldring.errors import (
    ClientError,
    FieldringError,
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    StoreUnavailable,
    TooLarge,
    Unauthorized,
)
from fieldring.http.errors import answer as error_answer
from fieldring.http.tokens import Identity, TokenBook
from fieldring.model import Flag, Store
from fieldring.quality import RulesFile
from fieldring.query import PointsQuery, gaps_of, page, parse_time, stream
from fieldring.settings import Settings, read_secret
from fieldring.web import formats, pages
from fieldring.web.openapi import document
from fieldring.web.probes import Metrics, trusted_header

__all__ = ["MAX_LIMIT", "create_app"]

log = logging.getLogger(__name__)

MAX_LIMIT = 100_000
"""A page is held in memory; whoever wants more than this streams."""

_EXTENSION = "fieldring"
_POINTS_PARAMETERS = ("sensor", "metric", "start", "end", "flags", "format", "limit", "cursor")
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class _AnythingConverter(BaseConverter):
    """The rest of the path: a sensor's name may hold slashes, also in front or doubled."""

    regex = r"(?s:.+)"
    part_isolating = False


class Serving:
    """What the routes work with; hangs on the application."""

    def __init__(
        self, *, store: Store, tokens: TokenBook, settings: Settings, rules: RulesFile, metrics: Metrics
    ) -> None:
        self.store = store
        self.tokens = tokens
        self.settings = settings
        self.rules = rules
        self.metrics = metrics
        self.trusted = trusted_header(settings.metrics_trusted_header)

    def caller(self) -> Identity:
        """Who asks: the token sent along, else the session's.

        Raises:
            Unauthorized: neither, or the token is not known any more.
            Forbidden: the token may not read.
        """
        parameters = {key: request.args[key] for key in ("u", "p") if key in request.args}
        authorization = request.headers.get("Authorization")
        session_token = flask.session.get(pages.SESSION_TOKEN_ID)
        if authorization is None and "p" not in parameters and session_token is not None:
            identity = self.tokens.by_id(session_token)
            if identity is None:
                flask.session.clear()
                raise Unauthorized("the session's token is not valid any more: sign in again")
        else:
            identity = self.tokens.authenticate(authorization, parameters)
        identity.require("read")
        return identity


def create_app(
    *,
    store: Store,
    tokens: TokenBook,
    settings: Settings,
    rules: RulesFile | None = None,
    metrics: Metrics | None = None,
) -> Flask:
    """The application over its collaborators, which whoever makes them closes.

    Raises:
        ConfigurationError: the rules file or the session key cannot be used.
    """
    app = Flask(__name__)
    serving = Serving(
        store=store,
        tokens=tokens,
        settings=settings,
        rules=rules or RulesFile(settings.rules_file),
        metrics=metrics or Metrics(),
    )
    app.extensions[_EXTENSION] = serving
    secure = bool(settings.session_cookie_secure)
    app.config.update(
        SECRET_KEY=(
            read_secret("session_key_file", settings.session_key_file)
            if settings.session_key_file
            else secrets.token_bytes(32)
        ),
        # The prefix binds the cookie to this host; browsers take it over HTTPS only.
        SESSION_COOKIE_NAME="__Host-fieldring" if secure else "fieldring",
        SESSION_COOKIE_SECURE=secure,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=12 * 3600,
        MAX_CONTENT_LENGTH=65_536,
        WTF_CSRF_TIME_LIMIT=None,
        SEND_FILE_MAX_AGE_DEFAULT=3600,
        TRAP_HTTP_EXCEPTIONS=False,
    )
    app.url_map.merge_slashes = False
    app.url_map.converters["anything"] = _AnythingConverter
    # Before CSRFProtect, which answers what it refuses without calling those after it.
    app.before_request(_start_clock)
    CSRFProtect(app)
    _add_routes(app)
    app.register_blueprint(pages.blueprint(serving))
    app.register_error_handler(Exception, _answer_error)
    app.after_request(_finish)
    return app


def _serving() -> Serving:
    serving: Serving = current_app.extensions[_EXTENSION]
    return serving


def _add_routes(app: Flask) -> None:
    for rule, view in (
        ("/v1/points", _points),
        ("/v1/sensors", _sensors),
        ("/v1/sensors/<anything:sensor>", _sensor),
        ("/v1/gateways/<anything:gateway>/gaps", _gateway_gaps),
        ("/v1/rules", _rules),
        ("/openapi.json", _openapi),
        ("/health", _health),
        ("/ready", _ready),
        ("/metrics", _metrics),
    ):
        app.add_url_rule(rule, rule.strip("/").replace(".", "_"), view, methods=["GET"])


# -- readings ------------------------------------------------------------------------------------


def _points() -> Response:
    serving = _serving()
    identity = serving.caller()
    arguments = _arguments(request, _POINTS_PARAMETERS)
    sensor = arguments.get("sensor")
    if not sensor:
        raise InvalidRequest("sensor is missing: name the sensor whose points you want")
    if not identity.allows(sensor):
        raise Forbidden(f"token {identity.id!r} may not see sensor {sensor!r}")
    query = PointsQuery(
        sensor=sensor,
        metric=arguments.get("metric") or None,
        start_ms=_time(arguments, "start"),
        end_ms=_time(arguments, "end"),
        flags=_flags(arguments.get("flags")),
    )
    if query.start_ms is not None and query.end_ms is not None and query.start_ms > query.end_ms:
        raise InvalidRequest("start lies after end")
    form = _format(arguments.get("format"), request, ("json", "ndjson", "csv"))
    limit, cursor = _limit(arguments.get("limit")), arguments.get("cursor") or None
    if cursor is not None and limit is None:
        raise InvalidRequest("a cursor needs a limit: without one, everything is streamed")
    writer = formats.WRITERS[form]
    if limit is None:
        body = writer(stream(serving.store, query), None)
        return Response(_begun(body), content_type=formats.CONTENT_TYPES[form])
    found = page(serving.store, query, limit=limit, after=cursor)
    answer = Response(b"".join(writer(found.points, found.next)), content_type=formats.CONTENT_TYPES[form])
    if found.next is not None:
        answer.headers["Fieldring-Next"] = found.next
    return answer


def _sensors() -> Response:
    serving = _serving()
    identity = serving.caller()
    arguments = _arguments(request, ("format",))
    form = _format(arguments.get("format"), request, ("json", "csv"))
    found = (info for info in serving.store.sensors() if identity.allows(info.sensor))
    site = serving.settings.site
    if form == "csv":
        return Response(
            b"".join(formats.sensors_csv(found, site=site)), content_type=formats.CONTENT_TYPES["csv"]
        )
    return _json({"sensors": [formats.sensor_row(info, site=site) for info in found]})


def _sensor(sensor: str) -> Response:
    serving = _serving()
    identity = serving.caller()
    _arguments(request, ())
    if not identity.allows(sensor):
        raise Forbidden(f"token {identity.id!r} may not see sensor {sensor!r}")
    info = serving.store.sensor(sensor)
    if info is None:
        raise NotFound(f"there is no sensor {sensor[:200]!r}")
    return _json(formats.sensor_row(info, site=serving.settings.site))


def _gateway_gaps(gateway: str) -> Response:
    serving = _serving()
    serving.caller()
    _arguments(request, ())
    epochs = gaps_of(serving.store.arrivals(gateway))
    if not epochs:
        raise NotFound(f"no block of a gateway {gateway[:100]!r} has arrived")
    return _json({"gateway": gateway, "epochs": [formats.gaps_row(epoch) for epoch in epochs]})


def _rules() -> Response:
    serving = _serving()
    serving.caller()
    _arguments(request, ())
    rules = serving.rules.current()
    return _json({**rules.document, "version": rules.version})


def _openapi() -> Response:
    return _json(document())


# -- probes --------------------------------------------------------------------------------------


def _health() -> Response:
    """InfluxDB v2's shape. 503 while the store cannot be read."""
    try:
        _serving().store.ping()
        ok, message = True, "readable"
    except StoreUnavailable as error:
        ok, message = False, str(error)
    body = {
        "name": "fieldring",
        "message": "ready" if ok else "not ready",
        "checks": [{"name": "store", "status": "pass" if ok else "fail", "message": message}],
        "status": "pass" if ok else "fail",
        "version": __version__,
        "commit": "",
    }
    return _json(body, status=200 if ok else 503)


def _ready() -> Response:
    """Ready as soon as it answers: without a store it still says so in the one error shape."""
    return _json({"status": "ready"})


def _metrics() -> Response:
    serving = _serving()
    name, value = serving.trusted
    sent = request.headers.get(name.decode("latin-1"), "").encode("latin-1") if name else b""
    if not name or not hmac.compare_digest(sent, value):
        serving.tokens.authenticate(request.headers.get("Authorization")).require("read")
    return Response(
        generate_latest(serving.metrics.registry), content_type="text/plain; version=0.0.4; charset=utf-8"
    )


# -- parameters ----------------------------------------------------------------------------------


def _arguments(asked: Request, known: tuple[str, ...]) -> dict[str, str]:
    for key in asked.args:
        if key not in known and key not in ("u", "p"):
            names = ", ".join(known) or "none"
            raise InvalidRequest(f"parameter {key[:60]!r} is not known here; there are: {names}")
        if len(asked.args.getlist(key)) > 1:
            raise InvalidRequest(f"parameter {key!r} is given more than once")
    return asked.args.to_dict()


def _time(arguments: dict[str, str], name: str) -> int | None:
    return parse_time(arguments[name], name=name) if arguments.get(name) else None


def _flags(text: str | None) -> frozenset[Flag] | None:
    if not text:
        return None
    known_flags = {str(int(flag)): flag for flag in Flag}
    try:
        return frozenset(known_flags[part.strip()] for part in text.split(","))
    except KeyError:
        known = ", ".join(str(int(flag)) for flag in Flag)
        raise InvalidRequest(
            f"flags is {text[:40]!r}, but must be some of {known}, joined by commas"
        ) from None


def _limit(text: str | None) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_LIMIT):
        raise InvalidRequest(
            f"limit is {text[:20]!r}, but must be a whole number from 1 to {MAX_LIMIT}; "
            "without a limit everything is streamed"
        )
    return int(text)


def _format(text: str | None, asked: Request, known: tuple[str, ...]) -> str:
    if text:
        if text not in known:
            raise InvalidRequest(f"format is {text[:20]!r}, but must be one of {', '.join(known)}")
        return text
    by_type = {formats.CONTENT_TYPES[form].split(";")[0]: form for form in known}
    return by_type.get(asked.accept_mimetypes.best_match(list(by_type), "application/json"), "json")


# -- answers -------------------------------------------------------------------------------------


def _json(body: Any, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body) + b"\n", status, content_type="application/json")


def _begun(parts: Iterator[bytes]) -> Iterable[bytes]:
    first = next(parts)
    return _rest(first, parts)


def _rest(first: bytes, parts: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from parts


def _answer_error(error: Exception) -> Response:
    """Every error of every route, in the one JSON shape, or as a page for whoever looks at pages."""
    if isinstance(error, CSRFError):
        ours: Exception = InvalidRequest("the form is too old or was not ours: go back, reload and try again")
    elif isinstance(error, HTTPException):
        if error.code is not None and error.code < 400:
            return Response(error.get_response().get_data(), error.code, dict(error.get_headers()))
        ours = _from_http(error)
    else:
        ours = error
    if not isinstance(ours, FieldringError):
        log.error("request failed: %s %s", request.method, request.path, exc_info=ours)
    elif not isinstance(ours, ClientError):
        log.warning("request failed: %s %s: %s", request.method, request.path, ours)
    made = error_answer(ours)
    for_page = request.blueprint == pages.NAME or (
        request.endpoint is None
        and request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"
    )
    if for_page:
        return pages.error_page(ours, status=made.status, headers=made.headers)
    return Response(made.body, made.status, made.headers)


def _from_http(error: HTTPException) -> Exception:
    match error.code:
        case 404:
            return NotFound(f"there is no {request.path[:200]!r} here")
        case 405:
            return MethodNotAllowed(
                request.method, allowed=tuple(sorted(getattr(error, "valid_methods", None) or ()))
            )
        case 413:
            return TooLarge("the form is too large")
        case code if code is not None and code < 500:
            return InvalidRequest(error.description or error.name)
        case _:
            return error


def _start_clock() -> None:
    flask.g.started = time.perf_counter()


def _finish(response: Response) -> Response:
    headers = response.headers
    headers.setdefault("Content-Security-Policy", _CONTENT_SECURITY_POLICY)
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "same-origin")
    if not flask.g.get("cacheable"):
        headers.setdefault("Cache-Control", "no-store")
    route = str(request.url_rule) if request.url_rule is not None else "other"
    metrics = _serving().metrics
    metrics.requests.labels(route, str(response.status_code)).inc()
    metrics.seconds.labels(route).observe(time.perf_counter() - flask.g.started)
    return response
