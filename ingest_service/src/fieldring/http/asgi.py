"""Sending an answer through ASGI when the client may still be sending its request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from fieldring.errors import InvalidRequest

__all__ = ["refuse_upgrade", "send_answer"]

_LINGER_S = 30.0
_LINGER_SILENCE_S = 2.0

Message = dict[str, Any]


def refuse_upgrade(headers: Mapping[bytes, bytes | str]) -> None:
    """Of a request that asks for another protocol the HTTP parser passes its body over: nothing was read.

    Raises:
        InvalidRequest: it asks for one.
    """
    if b"upgrade" not in headers:
        return
    connection = headers.get(b"connection", b"")
    text = connection if isinstance(connection, str) else connection.decode("latin-1")
    if "upgrade" in [token.strip().lower() for token in text.split(",")]:
        raise InvalidRequest("no other protocol is offered here: send this without 'Connection: Upgrade'")


async def send_answer(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
    *,
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    body_read: bool,
) -> None:
    """Send one whole answer; a refusal that comes before the request's body ended ends the connection too.

    The rest of that body is still on its way (RFC 9112, 9.3): a proxy that kept the connection for another
    request would wait behind it. ``body_read`` says that the body came to its end.
    """
    sent = list(headers)
    if status != 204:
        sent.append((b"content-length", str(len(body)).encode()))
    early = status >= 400 and not body_read and _has_body(scope) and not await _is_here(scope, receive)
    if early:
        sent.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": sent})
    shown = b"" if scope["method"] == "HEAD" else body
    await send({"type": "http.response.body", "body": shown, "more_body": early})
    if early:
        await _linger(receive)
        await send({"type": "http.response.body", "body": b""})


async def _is_here(scope: Mapping[str, Any], receive: Callable[[], Awaitable[Message]]) -> bool:
    """Whether the body that nobody read has come whole already: then nothing of it is on its way."""
    names = {name for name, _ in scope["headers"]}
    # Who waits for "100 Continue" would be told to send it. What upgrades is not HTTP any more.
    if b"expect" in names or b"upgrade" in names:
        return False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            message = await receive()
            return message["type"] == "http.request" and not message.get("more_body")
    return False


async def _linger(receive: Callable[[], Awaitable[Message]]) -> None:
    """Let the client finish or leave: who still sends when the connection goes never reads the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while True:
                async with asyncio.timeout(_LINGER_SILENCE_S):
                    message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return


def _has_body(scope: Mapping[str, Any]) -> bool:
    """Whether the head announces a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )
