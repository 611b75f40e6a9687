"""Pages for people: sign in, the list of sensors, a sensor's chart.

Pages work without scripts (the table below the chart carries the values) and without any other host.
A session holds the id of a token and nothing else, so withdrawing the token ends it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import flask
from flask import Blueprint, Response, redirect, render_template, request
from werkzeug.wrappers import Response as WerkzeugResponse

from fieldring.errors import FieldringError, Forbidden, NotFound, Unauthorized
from fieldring.model import DAY_MS, HOUR_MS, Flag, SensorInfo
from fieldring.query import PointsQuery, format_time, stream

if TYPE_CHECKING:
    from fieldring.web.serve import Serving

__all__ = ["NAME", "SESSION_TOKEN_ID", "blueprint", "chart_url", "error_page"]

NAME = "pages"
SESSION_TOKEN_ID = "token_id"

_FRESH_MS = 2 * HOUR_MS
_LATE_MS = DAY_MS
_TABLE_ROWS = 100
_TABLE_SPAN_MS = 2 * DAY_MS
_RANGES = {
    "1d": ("24 hours", DAY_MS),
    "7d": ("7 days", 7 * DAY_MS),
    "30d": ("30 days", 30 * DAY_MS),
    "365d": ("1 year", 365 * DAY_MS),
    "all": ("everything", None),
}
_DEFAULT_RANGE = "7d"
_FLAG_TEXTS = {
    Flag.GOOD: "good",
    Flag.NOT_EVALUATED: "not evaluated",
    Flag.SUSPECT: "suspect",
    Flag.FAIL: "fail",
    Flag.MISSING: "missing",
}
_DYGRAPHS_FILES = {"dygraph.min.js", "dygraph.min.css"}


@dataclass(frozen=True, slots=True)
class _Freshness:
    """How long ago a sensor last measured: ``fresh``, ``late`` or ``silent``, and in words."""

    state: str
    words: str


def chart_url(sensor: str) -> str:
    """The page of a sensor, whatever its name holds.

    Browsers resolve the path segments ``.`` and ``..`` even when they are escaped, so these two names
    travel as a parameter.
    """
    if sensor in (".", ".."):
        return f"/chart?sensor={sensor}"
    return "/sensors/" + quote(sensor, safe="")


def freshness(last_ms: int, *, now_ms: int) -> _Freshness:
    """Up to 2 hours fresh, up to a day late, else silent."""
    age = max(0, now_ms - last_ms)
    state = "fresh" if age <= _FRESH_MS else "late" if age <= _LATE_MS else "silent"
    for unit, name in ((365 * DAY_MS, "year"), (DAY_MS, "day"), (HOUR_MS, "hour"), (60_000, "minute")):
        if age >= unit:
            count = age // unit
            return _Freshness(state, f"{count} {name}{'s' if count > 1 else ''} ago")
    return _Freshness(state, "just now")


def blueprint(serving: Serving) -> Blueprint:
    """The pages over what ``serve`` works with."""
    pages = Blueprint(NAME, __name__)

    @pages.app_context_processor
    def context() -> dict[str, object]:
        return {"site": serving.settings.site, "signed_in": SESSION_TOKEN_ID in flask.session}

    @pages.get("/")
    def home() -> WerkzeugResponse:
        return redirect("/sensors")

    @pages.route("/sign-in", methods=["GET", "POST"])
    def sign_in() -> WerkzeugResponse | tuple[str, int]:
        target = _local(request.values.get("next", ""))
        problem = ""
        if request.method == "POST":
            identity = serving.tokens.find(request.form.get("token", "").strip())
            if identity is not None and "read" in identity.roles:
                # A new session, so that one planted before cannot be used after.
                flask.session.clear()
                flask.session[SESSION_TOKEN_ID] = identity.id
                flask.session.permanent = True
                return redirect(target or "/sensors", 303)
            problem = "This token is not known." if identity is None else "This token may not read."
        return render_template("sign_in.html", target=target, problem=problem), 403 if problem else 200

    @pages.post("/sign-out")
    def sign_out() -> WerkzeugResponse:
        flask.session.clear()
        return redirect("/sign-in", 303)

    @pages.get("/sensors")
    def sensors() -> str:
        identity = serving.caller()
        now_ms = int(time() * 1000)
        rows = [
            (info, chart_url(info.sensor), freshness(info.last_ms, now_ms=now_ms))
            for info in serving.store.sensors()
            if identity.allows(info.sensor)
        ]
        return render_template("sensors.html", rows=rows, format_time=format_time)

    @pages.get("/sensors/<anything:sensor>")
    def sensor(sensor: str) -> str:
        return chart(sensor)

    @pages.get("/chart")
    def chart_by_parameter() -> str:
        return chart(request.args.get("sensor", ""))

    def chart(sensor: str) -> str:
        identity = serving.caller()
        if not identity.allows(sensor):
            raise Forbidden(f"your token does not cover the sensor {sensor[:200]!r}")
        info = serving.store.sensor(sensor)
        if info is None:
            raise NotFound(f"there is no sensor {sensor[:200]!r}")
        return _render_chart(serving, info)

    @pages.get("/assets/dygraphs/<name>")
    def dygraphs(name: str) -> Response:
        if name not in _DYGRAPHS_FILES:
            raise NotFound(f"there is no asset {name[:100]!r}")
        flask.g.cacheable = True
        return flask.send_from_directory(serving.settings.dygraphs_dir, name, max_age=86_400)

    return pages


def _render_chart(serving: Serving, info: SensorInfo) -> str:
    metric = request.args.get("metric") or (info.metrics[0] if info.metrics else "")
    if info.metrics and metric not in info.metrics:
        raise NotFound(f"sensor {info.sensor[:200]!r} has no metric {metric[:200]!r}")
    chosen = request.args.get("range", _DEFAULT_RANGE)
    if chosen not in _RANGES:
        chosen = _DEFAULT_RANGE
    span = _RANGES[chosen][1]
    end = info.last_ms + 1
    start = info.first_ms if span is None else max(info.first_ms, end - span)
    query = PointsQuery(
        sensor=info.sensor, metric=metric, start_ms=max(start, end - _TABLE_SPAN_MS), end_ms=end
    )
    latest = deque(stream(serving.store, query), maxlen=_TABLE_ROWS)
    return render_template(
        "sensor.html",
        info=info,
        metric=metric,
        ranges=_RANGES,
        chosen=chosen,
        start=format_time(start),
        end=format_time(end),
        freshness=freshness(info.last_ms, now_ms=int(time() * 1000)),
        points=[(point, _FLAG_TEXTS[point.flag]) for point in reversed(latest)],
        format_time=format_time,
        action=chart_url(info.sensor).partition("?")[0],
    )


def error_page(error: Exception, *, status: int, headers: dict[str, str]) -> Response:
    """An error as a page; who is not signed in is asked to."""
    if isinstance(error, Unauthorized) and request.method == "GET":
        target = request.full_path.rstrip("?")
        return flask.make_response(redirect("/sign-in?next=" + quote(target, safe=""), 303))
    message = str(error) if isinstance(error, FieldringError) else "Something went wrong on our side."
    titles = {400: "That did not work", 403: "Not allowed", 404: "Not found", 503: "Not available right now"}
    text = render_template("error.html", status=status, title=titles.get(status, "Error"), message=message)
    kept = {name: value for name, value in headers.items() if name != "Content-Type"}
    return Response(text, status, kept, content_type="text/html; charset=utf-8")


def _local(target: str) -> str:
    """The target, if it is a path of ours; a redirect elsewhere would lend our name to others."""
    inside = target == "/sensors" or target.startswith(("/sensors/", "/sensors?", "/chart?"))
    return target if inside and not any(c in target for c in "\\\r\n\t") else ""
