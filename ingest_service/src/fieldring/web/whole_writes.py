"""Uvicorn's protocol with a short way for the commonest request: a small write that comes in one piece.

A task, its messages and its time limits cost several times what decoding and storing a small write does.
They are for requests that may have to be waited for; one whose body is already here needs none of them.
Everything else goes uvicorn's way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from fieldring.errors import InvalidRequest
from fieldring.web.probes import Answer, error_to_answer

__all__ = ["TakesWholeWrites", "WholeWriteProtocol"]

# What makes a request more than its body.
_NOT_PLAIN = (b"content-encoding", b"transfer-encoding", b"upgrade", b"expect")


class TakesWholeWrites(Protocol):
    """An ASGI application that can also be handed a write at once."""

    whole_writes: Mapping[bytes, str]
    """Paths, as they are sent and as ``write_whole`` knows them."""
    whole_writes_max_bytes: int

    def write_whole(
        self,
        path: str,
        query: bytes,
        headers: Mapping[bytes, bytes],
        body: bytes,
        answered: Callable[[Answer], None],
    ) -> None: ...


class _Cycle:
    """One request under way, as far as uvicorn's protocol asks after it."""

    __slots__ = (
        "body",
        "disconnected",
        "keep_alive",
        "message_event",
        "more_body",
        "protocol",
        "response_complete",
    )

    def __init__(self, protocol: WholeWriteProtocol, *, keep_alive: bool) -> None:
        self.protocol = protocol
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self.message_event = _UNHEARD
        self.body = b""
        self.more_body = False

    def answer(self, made: Answer) -> None:
        self.response_complete = True
        protocol = self.protocol
        transport = protocol.transport
        if self.disconnected or transport.is_closing():
            return
        content = [STATUS_LINE[made.status]]
        for name, value in (*protocol.server_state.default_headers, *made.headers):
            if b"\n" in value or b"\r" in value:
                raise RuntimeError(f"header {name!r} has a line break in it")
            content += (name, b": ", value, b"\r\n")
        if made.status != 204:
            content.append(b"content-length: %d\r\n" % len(made.body))
        if not self.keep_alive:
            content.append(b"connection: close\r\n")
        content += (b"\r\n", made.body)
        transport.write(b"".join(content))
        if not self.keep_alive:
            transport.close()
        protocol.on_response_complete()


class _Unheard:
    """An event that nobody waits for."""

    def set(self) -> None:
        pass


_UNHEARD = _Unheard()


class WholeWriteProtocol(HttpToolsProtocol):
    """A request whose head and body come with one read goes to ``write_whole``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._taker = cast(TakesWholeWrites, self.app)
        self._held: list[bytes] | None = None
        self._head: tuple[str, bytes, dict[bytes, bytes]] = ("", b"", {})

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._held is not None:
            held, self._held = self._held, None
            if not self.transport.is_closing():
                # There is more to come: somebody has to wait for it.
                super().on_headers_complete()
                for part in held:
                    super().on_body(part)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered in the one shape of errors too."""
        made = error_to_answer(InvalidRequest(f"not a valid HTTP request: {msg}"))
        content = [STATUS_LINE[400]]
        for name, value in (*self.server_state.default_headers, *made.headers):
            content += (name, b": ", value, b"\r\n")
        content += (b"content-length: %d\r\nconnection: close\r\n\r\n" % len(made.body), made.body)
        self.transport.write(b"".join(content))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._held = None
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        if self._may_be_whole():
            self._held = []
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        if self._held is None:
            super().on_message_complete()
            return
        body, self._held = b"".join(self._held), None
        cycle = _Cycle(self, keep_alive=self.parser.should_keep_alive())
        self.cycle = cast(Any, cycle)
        self._taker.write_whole(*self._head, body, cycle.answer)

    def _may_be_whole(self) -> bool:
        """Whether this is a write that needs nothing but its body, with no other request before it."""
        path, _, query = self.url.partition(b"?")
        known = self._taker.whole_writes.get(path)
        if known is None or b"#" in query or self.flow.write_paused:
            return False
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            return False
        headers = dict(self.headers)
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or len(length) > 9 or int(length) > self._taker.whole_writes_max_bytes:
            return False
        if any(name in headers for name in _NOT_PLAIN):
            return False
        if self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return False
        self._head = known, query, headers
        return True
