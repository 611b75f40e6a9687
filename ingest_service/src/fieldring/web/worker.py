"""Gunicorn's threaded worker, with the one shape of errors also for what never reaches the application."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from gunicorn.http.errors import (  # type: ignore[import-untyped]
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.util import write_nonblock  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from fieldring.errors import InvalidRequest
from fieldring.http.errors import answer

__all__ = ["ServeWorker"]

_STATUS = {
    ExpectationFailed: 417,
    LimitRequestHeaders: 431,
    LimitRequestLine: 414,
    UnsupportedTransferCoding: 501,
}

_log = logging.getLogger(__name__)


class ServeWorker(ThreadWorker):  # type: ignore[misc]
    """Answers what is no HTTP, or failed outside the application."""

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer in JSON instead of a page, and end the connection, as gunicorn does."""
        # A header of ours that cannot be sent is no fault of the client's.
        ours = isinstance(exc, InvalidResponseHeader | InvalidResponseHeaderName)
        if isinstance(exc, ParseException) and not ours:
            made = answer(InvalidRequest(f"not a valid HTTP request: {str(exc)[:200]}"))
            status = _STATUS.get(type(exc), made.status)
            _log.info("refused: %d, %s", status, str(exc)[:200])
        else:
            made = answer(exc)
            status = made.status
            _log.error("request failed", exc_info=exc)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\n"
        fields = {**made.headers, "Content-Length": str(len(made.body))}
        head += "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        try:
            write_nonblock(client, head.encode("latin-1") + b"\r\n" + made.body)
        except OSError:
            _log.debug("who was to be told has gone")
