"""Uvicorn's protocol under our limits: raw bytes from clients that keep no rules."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from fieldring.http.protocol import HEAD_MAX_BYTES, HEAD_MAX_FIELDS, LimitedProtocol

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /write HTTP/1.1\r\nHost: x\r\n"


class App:
    """Reads a body, and answers with the path and the body's length as soon as it may."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.paths: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            if not message["more_body"]:
                break
        await asyncio.to_thread(self.may_answer.wait, 30)
        text = f"{scope['path']} {size}".encode()
        headers = [(b"content-length", b"%d" % len(text))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def port(app: App) -> Iterator[int]:
    """A server in a thread of its own."""
    config = uvicorn.Config(app, http=LimitedProtocol, lifespan="off", log_config=None, access_log=False)
    config.load()
    ports: list[int] = []
    began, end = threading.Event(), threading.Event()

    async def serve() -> None:
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: LimitedProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        ports.append(server.sockets[0].getsockname()[1])
        began.set()
        await asyncio.to_thread(end.wait)
        server.close()
        for connection in tuple(state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        while state.tasks:
            await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: uvloop.run(serve()), daemon=True)
    thread.start()
    assert began.wait(10)
    yield ports[0]
    app.may_answer.set()
    end.set()
    thread.join(10)


@pytest.fixture
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        yield client


def rest(client: socket.socket) -> bytes:
    """Everything until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65_536):
            data += piece
    return data


def error(data: bytes, *, status: int) -> dict[str, Any]:
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 %d " % status), data
    assert b"content-type: application/json" in lines
    assert b"connection: close" in lines
    assert b"content-length: %d" % len(body) in lines
    found: dict[str, Any] = json.loads(body)
    assert set(found) == {"code", "message", "error", "errors"}
    return found


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /ping HTTP/1.1\r\nX: ", b"a" * 10_000),
        (b"GET /ping HTTP/1.1\r\n", b"a" * 10_000),
        (b"GET /", b"a" * 10_000),
        (b"GET /ping HTTP/1.1\r\n", b"X: y\r\n" * 1_000),
        (b"GET /ping HTTP/1.1\r\n", b"X: " + b"y" * 9_000 + b"\r\n"),
        (b"", b"\r\n" * 5_000),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: ", b"a" * 10_000),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X: y\r\n" * 1_000),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;x=", b"a" * 10_000),
    ],
    ids=["value", "name", "path", "lines", "long lines", "nothing", "trailer", "trailers", "extension"],
)
def test_a_head_without_end(connected: socket.socket, begin: bytes, more: bytes) -> None:
    """Its bytes were gathered without limit, and copied for every piece: now 431 ends it."""
    connected.sendall(begin)
    for _ in range(4):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connected.sendall(more)
    assert error(rest(connected), status=431)["code"] == "request too large"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"X: y\r\n" * (HEAD_MAX_FIELDS - 1), 200),
        (b"X: y\r\n" * HEAD_MAX_FIELDS, 431),
        (b"X: " + b"y" * (HEAD_MAX_BYTES - 100) + b"\r\n", 200),
        (b"X: " + b"y" * HEAD_MAX_BYTES + b"\r\n", 431),
    ],
    ids=["100 lines", "101 lines", "below 16 KiB", "above"],
)
def test_a_whole_head(connected: socket.socket, lines: bytes, status: int) -> None:
    """The limit counts also where the head comes with one read."""
    connected.sendall(GET[:-2] % 1 + lines + b"\r\n")
    assert connected.recv(65_536).startswith(b"HTTP/1.1 %d " % status)


def test_who_sends_on_still_reads_the_answer(connected: socket.socket) -> None:
    """The connection is not torn down under a client that is busy sending, but nor is it read for ever."""
    connected.sendall(b"GET /ping HTTP/1.1\r\nX: " + b"a" * 500_000)
    assert connected.recv(12) == b"HTTP/1.1 431"
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        connected.sendall(b"a" * 100_000_000)


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_bodies_are_no_heads(connected: socket.socket, piece: int) -> None:
    """Long ones and many small chunks pass, whatever way they come, and the next request too."""
    size = 3_000 if piece == 1 else 200_000
    request = POST + b"Content-Length: %d\r\n\r\n" % size + b"x" * size
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * (size // 10) + b"0\r\n\r\n"
    for data, expected in ((request, size), (chunked, size // 10), (request, size)):
        for start in range(0, len(data), piece):
            connected.sendall(data[start : start + piece])
        answer = b""
        while not answer.endswith(b"/write %d" % expected):
            piece_of_it = connected.recv(4096)
            assert piece_of_it, answer
            answer += piece_of_it


def test_what_is_no_http(connected: socket.socket) -> None:
    """It was text; the one shape has it too."""
    connected.sendall(b"GARBAGE\r\n\r\n")
    assert error(rest(connected), status=400)["code"] == "invalid"


@pytest.mark.parametrize(
    "junk", [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 50_000], ids=["no HTTP", "too long"]
)
def test_junk_behind_a_whole_request(connected: socket.socket, app: App, junk: bytes) -> None:
    """That request's answer is the one that the client waits for; then the connection ends."""
    app.may_answer.clear()
    connected.sendall(GET % 1 + GET % 2 + junk)
    threading.Timer(0.3, app.may_answer.set).start()
    data = rest(connected)
    assert (data.count(b"HTTP/1.1 "), data.count(b"HTTP/1.1 200 ")) == (2, 2)
    assert data.endswith(b"/2 0")


def test_junk_in_a_body(connected: socket.socket) -> None:
    """The request that it belongs to is the one that is refused."""
    connected.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\njunk\r\n")
    error(rest(connected), status=400)


def test_half_closed_behind_whole_requests(connected: socket.socket, app: App) -> None:
    """Who says that nothing more comes still gets all answers."""
    app.may_answer.clear()
    connected.sendall(GET % 1 + GET % 2)
    connected.shutdown(socket.SHUT_WR)
    threading.Timer(0.3, app.may_answer.set).start()
    data = rest(connected)
    assert data.count(b"HTTP/1.1 200 ") == 2
    assert data.endswith(b"/2 0")


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET / HTTP", POST + b"Content-Length: 5\r\n\r\nabc"],
    ids=["nothing", "half a head", "half a body"],
)
def test_half_closed_in_between(connected: socket.socket, begun: bytes) -> None:
    """There is nothing to wait for."""
    connected.sendall(begun)
    connected.shutdown(socket.SHUT_WR)
    assert rest(connected) == b""


def test_many_requests_ahead_of_their_answers(connected: socket.socket, app: App) -> None:
    """Thousands fit into one read, and each took far more memory than its bytes."""
    app.may_answer.clear()
    connected.sendall(b"".join(GET % number for number in range(5_000)))
    threading.Timer(0.3, app.may_answer.set).start()
    data = rest(connected)
    assert 10 < data.count(b"HTTP/1.1 200 ") < 50
    assert b"HTTP/1.1 4" not in data
    assert app.paths == [f"/{number}" for number in range(len(app.paths))]
