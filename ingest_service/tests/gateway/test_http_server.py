"""The devices' HTTP listener in this process: what it answers before the application is asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from forwarder_process import account

from fieldring.gateway.accounts import Accounts
from fieldring.gateway.http_in import HttpIn
from fieldring.gateway.http_server import HttpServer
from fieldring.gateway.metrics import Metrics
from fieldring.settings import Settings

PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_PING = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Listener:
    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.port = 0
        self.streams: list[Streams] = []

    async def connect(self, sent: bytes = b"") -> Streams:
        known = len(self.server.state.connections)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.streams.append((reader, writer))
        writer.write(sent)
        async with asyncio.timeout(5):
            while len(self.server.state.connections) <= known and not reader.at_eof():
                await asyncio.sleep(0.01)
        return reader, writer

    async def ask(self, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, _ = await self.connect(sent)
        return parsed(await whole(reader))


async def whole(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.read()


def parsed(data: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, body


Scenario = Callable[[Listener], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, metrics: Metrics) -> Callable[[Scenario], None]:
    """A function that runs a scenario with a listener for two devices."""
    (tmp_path / "passwords").write_text(account("a", "p"))
    app = HttpIn(
        cast(Any, None),  # nothing is written here
        Accounts(tmp_path / "passwords"),
        settings=Settings(),
        metrics=metrics,
        now_ms=lambda: 0,
    )

    async def run(scenario: Scenario) -> None:
        listener = Listener(HttpServer(app, connections_max=2, metrics=metrics))
        server = await asyncio.get_running_loop().create_server(listener.server, "127.0.0.1", 0)
        listener.port = server.sockets[0].getsockname()[1]
        try:
            await scenario(listener)
        finally:
            server.close()
            for _, writer in listener.streams:
                writer.close()
            await listener.server.close()

    return lambda scenario: uvloop.run(run(scenario))


def test_what_is_no_http(play: Callable[[Scenario], None], count: Callable[..., float]) -> None:
    """It was answered with text, and counted nowhere."""

    async def scenario(at: Listener) -> None:
        status, headers, body = await at.ask(b"GARBAGE\r\n\r\n")
        assert (status, headers["content-type"], headers["connection"]) == (400, "application/json", "close")
        assert set(json.loads(body)) == {"code", "message", "error", "errors"}

    play(scenario)
    assert count("http_answers_total", status="400") == 1


def test_a_head_without_end(play: Callable[[Scenario], None], count: Callable[..., float]) -> None:
    """A client without a login took memory, and the loop that MQTT runs on."""

    async def scenario(at: Listener) -> None:
        status, headers, body = await at.ask(b"GET /ping HTTP/1.1\r\nX: " + b"a" * 1_000_000)
        assert (status, headers["connection"]) == (431, "close")
        assert json.loads(body)["code"] == "request too large"

    play(scenario)
    assert count("http_answers_total", status="431") == 1


@pytest.mark.parametrize("tail", [b"", b"Content-Length: 3\r\n"], ids=["GET", "body to come"])
def test_more_connections_than_the_limit(
    play: Callable[[Scenario], None], count: Callable[..., float], tail: bytes
) -> None:
    """They are told to come again, in JSON and with Retry-After; those that are there stay."""

    async def scenario(at: Listener) -> None:
        first, second = await at.connect(), await at.connect()
        head = b"POST /write HTTP/1.1\r\nHost: x\r\n" if tail else PING[:-2]
        status, headers, body = await at.ask(head + tail + b"\r\n" + (b"abc" if tail else b""))
        assert (status, headers["retry-after"], headers["connection"]) == (503, "5", "close")
        assert json.loads(body)["code"] == "unavailable"
        assert set(json.loads(body)) == {"code", "message", "error", "errors"}
        for reader, writer in (first, second):
            writer.write(LAST_PING)
            assert parsed(await whole(reader))[0] == 204
        assert (await at.ask(LAST_PING))[0] == 204

    play(scenario)
    assert count("http_answers_total", status="503") == 1
    assert count("device_refusals_total", reason="connections") == 1


def test_far_more_connections_than_the_limit(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so many are told; those beyond them are ended at once, so that they do not add up."""
    monkeypatch.setattr("fieldring.gateway.http_server._TOLD_MAX", 1)

    async def scenario(at: Listener) -> None:
        for _ in range(3):
            await at.connect()
        reader, _ = await at.connect()
        assert await whole(reader) == b""
        assert len(at.server.state.connections) == 3

    play(scenario)


def test_idle_connections(play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that send no whole head are ended; one that was asked something a moment ago is not idle."""
    monkeypatch.setattr("fieldring.gateway.http_server._IDLE_SECONDS", 1.0)

    async def scenario(at: Listener) -> None:
        silent, _ = await at.connect(b"GET /ping HTTP/1.1\r\n")
        busy, to_busy = await at.connect()
        for _ in range(6):
            to_busy.write(PING)
            async with asyncio.timeout(5):
                assert (await busy.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
            at.server.sweep(asyncio.get_running_loop().time())
            await asyncio.sleep(0.3)
        assert await whole(silent) == b""
        to_busy.write(LAST_PING)
        assert parsed(await whole(busy))[0] == 204

    play(scenario)
