"""/metrics and /ready."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from fieldring.gateway.metrics import Metrics
from fieldring.gateway.overview import page
from fieldring.gateway.status import StatusServer


class State:
    ready = True


@pytest.fixture
def server(metrics: Metrics) -> Iterator[StatusServer]:
    server = StatusServer(
        host="127.0.0.1",
        port=0,
        registry=metrics.registry,
        before_scrape=lambda: metrics.pending_bytes.set(77),
        ready=lambda: (State.ready, {"subscribed": State.ready}),
        page=lambda: page("Gateway <gw>", {"Spool": [("waiting", "<1>")]}),
    )
    server.start()
    yield server
    server.close()


def get(server: StatusServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def ask(server: StatusServer, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """For requests that no client would make."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(sent)
        data = b""
        while piece := connection.recv(65_536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, body


def test_metrics_are_measured_at_the_scrape(server: StatusServer) -> None:
    """Gauges are as of now."""
    status, text = get(server, "/metrics")
    assert status == 200
    assert "fieldring_forwarder_pending_bytes 77.0" in text


@pytest.mark.parametrize(("ready", "expected"), [(True, (200, "ready")), (False, (503, "not ready"))])
def test_ready(
    server: StatusServer, monkeypatch: pytest.MonkeyPatch, ready: bool, expected: tuple[Any, ...]
) -> None:
    """/ready says yes or no by its status, and why in its body."""
    monkeypatch.setattr(State, "ready", ready)
    status, text = get(server, "/ready")
    assert (status, json.loads(text)["status"]) == expected
    assert json.loads(text)["subscribed"] is ready


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /etc/passwd HTTP/1.1", 404),
        (b"POST /nope HTTP/1.1", 404),
        (b"POST /ready HTTP/1.1", 405),
        (b"OPTIONS / HTTP/1.1", 405),
        (b"GARBAGE", 400),
        (b"GARBAGE HTTP/1.1", 400),
        (b"GET / HTTP/3.0", 505),
        (b"GET / HTTP/1.1" + 101 * b"\r\nX: y", 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1", 431),
    ],
    ids=["path", "path, POST", "POST", "OPTIONS", "one word", "two words", "version", "lines", "long"],
)
def test_refused(server: StatusServer, request_line: bytes, status: int) -> None:
    """Some were pages, and the others half of the one shape."""
    found, headers, body = ask(server, request_line + b"\r\nContent-Length: 3\r\n\r\nabc")
    assert (found, headers["content-type"]) == (status, "application/json")
    assert set(json.loads(body)) == {"code", "message", "error", "errors"}
    assert headers.get("allow") == ("GET, HEAD" if status == 405 else None)


@pytest.mark.parametrize("path", ["/", "/metrics", "/ready", "/nope"])
def test_head(server: StatusServer, path: str) -> None:
    """As GET, without the body."""
    with_body = ask(server, f"GET {path} HTTP/1.1\r\n\r\n".encode())
    status, headers, body = ask(server, f"HEAD {path} HTTP/1.1\r\n\r\n".encode())
    assert (status, headers["content-type"], body) == (with_body[0], with_body[1]["content-type"], b"")
    assert int(headers["content-length"]) > 0


def test_not_ready_says_when_to_come_again(server: StatusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every 503 does."""
    monkeypatch.setattr(State, "ready", False)
    assert ask(server, b"GET /ready HTTP/1.1\r\n\r\n")[1]["retry-after"] == "5"


def test_a_defect_is_answered(server: StatusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection just ended, with a trace on the standard error."""
    monkeypatch.delattr(State, "ready")
    status, _, body = ask(server, b"GET /ready HTTP/1.1\r\n\r\n")
    assert (status, json.loads(body)["code"]) == (500, "internal")


def test_silent_clients_do_not_hold_the_rest(server: StatusServer) -> None:
    """Connections that send nothing keep neither a scrape nor the stop waiting."""
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
    try:
        assert get(server, "/ready")[0] == 200
    finally:
        for connection in silent:
            connection.close()


def test_page(server: StatusServer) -> None:
    """Names and values, escaped."""
    status, text = get(server, "/")
    assert status == 200
    assert "<h1>Gateway &lt;gw&gt;</h1>" in text
    assert "<tr><th>waiting<td>&lt;1&gt;" in text
