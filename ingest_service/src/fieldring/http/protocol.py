"""Uvicorn's protocol with the limits it lacks, and the one shape of errors for what reaches no application.

The only module of this room that knows a server. The parser alone takes a head of any length, and keeps a
value that does not end by copying what it has for every piece that comes, on the loop of all connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from fieldring.errors import BudgetExceeded, FieldringError, HeadTooLarge, InvalidRequest
from fieldring.http.errors import answer

__all__ = ["HEAD_MAX_BYTES", "HEAD_MAX_FIELDS", "LimitedProtocol"]

HEAD_MAX_BYTES = 16_384
HEAD_MAX_FIELDS = 100
"""Trailers count as well."""

_AHEAD_MAX = 16
"""Requests sent before the answer to an earlier one; each holds far more than the bytes it came with."""

_LINGER_SECONDS = 2.0
_LINGER_BYTES = 1_048_576


class LimitedProtocol(HttpToolsProtocol):
    """Refuses what the parser would gather without end, and answers whole requests of who half-closes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Since the parser last handed on a head or a part of a body: what it may hold by now.
        self._gathered = 0
        self._fields = self._field_bytes = 0
        self._problem: FieldringError | None = None
        self._refused = False
        self._leaving: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        # In pieces, as one read may bring sixteen times the limit.
        for start in range(0, len(data), HEAD_MAX_BYTES):
            if self._refused:
                self._passed_over(len(data) - start)
                return
            piece = data[start : start + HEAD_MAX_BYTES]
            self._gathered += len(piece)
            super().data_received(piece)
            if self._gathered > HEAD_MAX_BYTES and not self._refused:
                self.refuse(_too_large())

    def eof_received(self) -> bool:  # type: ignore[override]
        """Who says that nothing more comes, behind a whole request, still waits for its answer."""
        cycle = self.cycle
        if self._refused or cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
        super().connection_lost(exc)

    def refuse(self, error: FieldringError) -> None:
        """Answer this, and take nothing more from the client."""
        self._refused = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body or self.pipeline:
                # What came before is whole and may be kept already: its answer is the one waited for.
                cycle.keep_alive = False
                return
            if cycle.response_started:
                self.transport.close()
                return
            # It is this request that is refused: the application has nobody to answer any more.
            cycle.disconnected = True
            cycle.message_event.set()
        made = answer(error)
        self.note_refusal(made.status)
        content = [STATUS_LINE[made.status]]
        headers = [(name.lower().encode(), value.encode()) for name, value in made.headers.items()]
        for name, value in (*self.server_state.default_headers, *headers):
            content += (name, b": ", value, b"\r\n")
        content += (b"content-length: %d\r\nconnection: close\r\n\r\n" % len(made.body), made.body)
        self.transport.write(b"".join(content))
        self._leave()

    def note_refusal(self, status: int) -> None:
        """For who counts answers: this one is no application's."""

    def send_400_response(self, msg: str) -> None:
        problem = self._problem or InvalidRequest("not a valid HTTP request")
        self.refuse(problem)

    def _passed_over(self, size: int) -> None:
        if self._leaving is None:
            self.flow.pause_reading()  # until what came before is answered
            return
        self._gathered += size
        if self._gathered > _LINGER_BYTES:
            self.transport.close()

    def _leave(self) -> None:
        # Closed with something unread, the kernel would take the answer away from who still sends.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._leaving = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    # -- what the parser finds: an error that is raised here ends in send_400_response ------------

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _AHEAD_MAX:
            # Those that are here are answered, then the connection ends (RFC 9112, 9.3.2).
            raise BudgetExceeded("too many requests ahead of their answers")
        self._fields = self._field_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._gathered = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._gathered = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._gathered = 0
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > HEAD_MAX_BYTES or self._fields > HEAD_MAX_FIELDS:
            self._problem = _too_large()
            raise self._problem


def _too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"the request's head is larger than {HEAD_MAX_BYTES} bytes, or has more than {HEAD_MAX_FIELDS} lines"
    )
