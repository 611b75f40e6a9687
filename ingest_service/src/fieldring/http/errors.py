"""The one map from our errors to answers, and the one shape they have.

The body is ``{"code", "message", "error", "errors": [{"line", "reason"}]}``: ``code`` and ``message``
are what InfluxDB v2 clients show, ``error`` what v1 clients show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from fieldring.errors import (
    FieldringError,
    InvalidRequest,
    LineError,
    MethodNotAllowed,
    Overloaded,
    RequestTimeout,
    Unauthorized,
    Unavailable,
)

__all__ = ["MAX_REPORTED_LINES", "ErrorAnswer", "RefusedLines", "answer", "error_body", "refused_lines"]

MAX_REPORTED_LINES = 10_000
"""More refused lines than this are counted in the message, but not named one by one."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """A finished answer; ``headers`` include the content type."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class RefusedLines:
    """Those of one request, piece by piece: all are counted, the first kept, as a body may hold only junk."""

    refused: int = 0
    errors: list[LineError] = field(default_factory=list)

    def refuse(self, errors: Sequence[LineError], *, more: int = 0) -> None:
        self.refused += len(errors) + more
        self.errors.extend(errors[: MAX_REPORTED_LINES - len(self.errors)])

    def as_error(self) -> InvalidRequest:
        """Of at least one line, in the order of the body."""
        return refused_lines(tuple(sorted(self.errors, key=lambda one: one.line)), total=self.refused)


def error_body(code: str, message: str, lines: tuple[LineError, ...] = ()) -> bytes:
    """The one JSON error shape."""
    return msgspec.json.encode(
        {
            "code": code,
            "message": message,
            "error": message,
            "errors": [{"line": e.line, "reason": e.reason} for e in lines[:MAX_REPORTED_LINES]],
        }
    )


def refused_lines(lines: tuple[LineError, ...], *, total: int = 0) -> InvalidRequest:
    """The error of a request of which ``total`` lines were refused (these among them) and all others kept."""
    total = max(total, len(lines))
    listed = min(len(lines), MAX_REPORTED_LINES)
    what = "1 line was" if total == 1 else f"{total} lines were"
    more = f" (the first {listed} are listed)" if total > listed else ""
    first = lines[0]
    return InvalidRequest(
        f"{what} refused{more}, all others were kept; first: line {first.line}: {first.reason}", lines=lines
    )


def answer(error: BaseException) -> ErrorAnswer:
    """The answer to any error; one that is not ours says nothing about its inside."""
    headers = {"Content-Type": "application/json"}
    if not isinstance(error, FieldringError):
        message = "internal error; the service's log has the details"
        return ErrorAnswer(500, headers, error_body("internal", message))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Token realm="fieldring"'
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, RequestTimeout):
        headers["Connection"] = "close"
    if isinstance(error, Overloaded | Unavailable):
        headers["Retry-After"] = str(error.retry_after_s)
    lines = error.lines if isinstance(error, InvalidRequest) else ()
    return ErrorAnswer(error.status, headers, error_body(error.code, str(error), lines))
