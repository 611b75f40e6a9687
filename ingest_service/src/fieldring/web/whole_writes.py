"""Uvicorn's protocol with a short way for the commonest request: a small write that comes in one piece.

A task, its messages and its time limits cost several times what decoding and storing a small write does.
They are for requests that may have to be waited for; one whose body is already here needs none of them.
A client's heads differ in their length at most, so heads that made such a write before are not parsed again.
Everything else goes uvicorn's way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from fieldring.http.protocol import LimitedProtocol
from fieldring.web.probes import Answer

__all__ = ["TakesWholeWrites", "WholeWriteProtocol"]

# What makes a request more than its body.
_NOT_PLAIN = (b"content-encoding", b"transfer-encoding", b"upgrade", b"expect")

_HEAD_MAX_BYTES = 1_024
_HEADS_MAX = 4_096
_NO_CONTENT = 204


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
        loop: asyncio.AbstractEventLoop,
    ) -> None: ...


class _Head(NamedTuple):
    """What a write says before its body."""

    path: str
    query: bytes
    headers: Mapping[bytes, bytes]
    length: int


class _Heads:
    """Heads as they were sent → what the parser made of them.

    Only of whole writes that keep their connection, and that began where a request begins: there the same
    bytes always mean the same.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, _Head] = {}
        self.find = self._known.get

    def remember(self, raw: bytes, head: _Head) -> None:
        if len(raw) <= _HEAD_MAX_BYTES:
            if len(self._known) >= _HEADS_MAX:
                self._known.clear()
            self._known[raw] = head


class _Answers:
    """Answers without a body as they are sent; they are few, and differ in their date once a second."""

    def __init__(self) -> None:
        self._default_headers: Sequence[tuple[bytes, bytes]] = ()
        self._made: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}

    def no_content(
        self, default_headers: Sequence[tuple[bytes, bytes]], headers: tuple[tuple[bytes, bytes], ...]
    ) -> bytes:
        if default_headers is not self._default_headers or len(self._made) > _HEADS_MAX:
            self._default_headers = default_headers
            self._made.clear()
        made = self._made.get(headers)
        if made is None:
            answer = Answer(_NO_CONTENT, headers)
            made = self._made[headers] = _as_sent(answer, default_headers, keep_alive=True)
        return made


def _as_sent(made: Answer, default_headers: Sequence[tuple[bytes, bytes]], *, keep_alive: bool) -> bytes:
    content = [STATUS_LINE[made.status]]
    for name, value in (*default_headers, *made.headers):
        if b"\n" in value or b"\r" in value:
            raise RuntimeError(f"header {name!r} has a line break in it")
        content += (name, b": ", value, b"\r\n")
    if made.status != _NO_CONTENT:
        content.append(b"content-length: %d\r\n" % len(made.body))
    if not keep_alive:
        content.append(b"connection: close\r\n")
    content += (b"\r\n", made.body)
    return b"".join(content)


_heads = _Heads()
_answers = _Answers()


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
        default_headers = protocol.server_state.default_headers
        if not self.keep_alive:
            transport.write(_as_sent(made, default_headers, keep_alive=False))
            transport.close()
            protocol.on_response_complete()
            return
        if made.status == _NO_CONTENT:
            transport.write(_answers.no_content(default_headers, made.headers))
        else:
            transport.write(_as_sent(made, default_headers, keep_alive=True))
        protocol.answered()


class _Unheard:
    """An event that nobody waits for."""

    def set(self) -> None:
        pass


_UNHEARD = _Unheard()


class WholeWriteProtocol(LimitedProtocol):
    """A request whose head and body come with one read goes to ``write_whole``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._taker = cast(TakesWholeWrites, self.app)
        self._held: list[bytes] | None = None
        self._head = _Head("", b"", {}, 0)
        self._received = b""
        self._between = True
        """Whether the parser has seen requests to their end, and nothing of another one."""
        self._answered_at = 0.0

    def data_received(self, data: bytes) -> None:
        if self._between and (self.cycle is None or self.cycle.response_complete):
            end = data.find(b"\r\n\r\n") + 4
            head = _heads.find(data[:end])
            if head is not None and len(data) - end == head.length and self._free():
                self._take(head, data[end:], keep_alive=True)
                return
            self._received = data
        super().data_received(data)
        self._received = b""
        if self._held is not None:
            held, self._held = self._held, None
            if not self.transport.is_closing():
                # There is more to come: somebody has to wait for it.
                super().on_headers_complete()
                for part in held:
                    super().on_body(part)

    def connection_lost(self, exc: Exception | None) -> None:
        self._held = None
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        head = self._whole()
        if head is None:
            super().on_headers_complete()
        else:
            self._head = head
            self._held = []
            self._gathered = 0

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)
            self._gathered = 0

    def on_message_complete(self) -> None:
        # Behind an upgrade comes no HTTP that the parser would read.
        self._between = not self.parser.should_upgrade()
        if self._held is None:
            super().on_message_complete()
            return
        body, self._held = b"".join(self._held), None
        self._gathered = 0
        received, keep_alive = self._received, self.parser.should_keep_alive()
        raw = received[: received.find(b"\r\n\r\n") + 4]
        if keep_alive and len(received) - len(raw) == len(body):
            _heads.remember(raw, self._head)
        self._take(self._head, body, keep_alive=keep_alive)

    def answered(self) -> None:
        """``on_response_complete``, but the timer of a connection at rest is not made anew each time."""
        if self.pipeline or self.flow.read_paused or self.transport.is_closing():
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        self._answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._rest(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # its answer sets the timer again
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._rest(left)
        else:
            super().timeout_keep_alive_handler()

    def _rest(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _take(self, head: _Head, body: bytes, *, keep_alive: bool) -> None:
        cycle = _Cycle(self, keep_alive=keep_alive)
        self.cycle = cast(Any, cycle)
        self._taker.write_whole(head.path, head.query, head.headers, body, cycle.answer, self.loop)

    def _free(self) -> bool:
        """Whether an answer could be sent at once."""
        return not (self.flow.write_paused or self.transport.is_closing())

    def _whole(self) -> _Head | None:
        """The head of a write that needs nothing but its body, with no other request before it."""
        path, _, query = self.url.partition(b"?")
        known = self._taker.whole_writes.get(path)
        if known is None or b"#" in query or not self._free():
            return None
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            return None
        headers = dict(self.headers)
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or len(length) > 9 or int(length) > self._taker.whole_writes_max_bytes:
            return None
        if any(name in headers for name in _NOT_PLAIN):
            return None
        if self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        return _Head(known, query, headers, int(length))
