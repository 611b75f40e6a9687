"""Which answers mean taken, refused or later; failover, back-off, deadlines."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from fieldring.errors import ConfigurationError
from fieldring.gateway.metrics import Metrics
from fieldring.gateway.upstream import Stopped, Upstreams

Start = Callable[..., Any]


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def upstreams(metrics: Metrics, stop: threading.Event) -> Iterator[Callable[..., Upstreams]]:
    made: list[Upstreams] = []

    def make(*urls: str, timeout_s: float = 5.0, token: Callable[[], str] = lambda: "secret") -> Upstreams:
        made.append(
            Upstreams(
                urls,
                ca_file="",
                token=token,
                timeout_s=timeout_s,
                retry_max_s=0.2,
                gzip_min_bytes=100,
                metrics=metrics,
                stop=stop,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_request(start_upstream: Start, upstreams: Callable[..., Upstreams]) -> None:
    """A block is posted with its type, source and token, on one connection for all."""
    host = start_upstream(204)
    sending = upstreams(host.url + "/")
    for body in (b"small", b"large" * 100):
        assert sending.deliver(body, source="gw;epoch=1;seq=2;count=3").taken
    small, large = host.requests
    assert small.path == "/api/v1/block"
    assert small.headers["Content-Type"] == "application/vnd.fieldring.block"
    assert small.headers["Fieldring-Source"] == "gw;epoch=1;seq=2;count=3"
    assert small.headers["Authorization"] == "Token secret"
    assert (small.body, small.headers.get("Content-Encoding")) == (b"small", None)
    assert (large.body, large.headers.get("Content-Encoding")) == (b"large" * 100, "gzip")
    assert host.connections == 1


@pytest.mark.parametrize("status", [202, 204])
def test_taken(start_upstream: Start, upstreams: Callable[..., Upstreams], status: int) -> None:
    """Stored and spooled both are the upstream's promise."""
    answer = upstreams(start_upstream(status).url).deliver(b"x", source="")
    assert (answer.taken, answer.status) == (True, status)


@pytest.mark.parametrize("status", [400, 413, 415])
def test_refused_for_good(start_upstream: Start, upstreams: Callable[..., Upstreams], status: int) -> None:
    """A verdict on the block comes back at once, with the upstream's words."""
    host = start_upstream((status, {}, b'{"message": "no"}'))
    answer = upstreams(host.url).deliver(b"x", source="")
    assert (answer.taken, answer.status, answer.text) == (False, status, '{"message": "no"}')
    assert len(host.requests) == 1


@pytest.mark.parametrize("status", [200, 301, 401, 403, 404, 408, 429, 500, 502, 503, 504])
def test_tried_again(
    start_upstream: Start, upstreams: Callable[..., Upstreams], count: Callable[..., float], status: int
) -> None:
    """Everything that is neither a promise nor a verdict is tried again until it is one."""
    host = start_upstream(status, status, 204)
    assert upstreams(host.url).deliver(b"x", source="").status == 204
    assert len(host.requests) == 3
    assert count("upstream_answers_total", upstream=host.url, answer=str(status)) == 2
    assert count("upstream_up", upstream=host.url) == 1


def test_failover_and_back(start_upstream: Start, upstreams: Callable[..., Upstreams]) -> None:
    """When one host fails the next takes over at once and keeps the traffic."""
    first, second = start_upstream(503), start_upstream(204)
    sending = upstreams(first.url, second.url)
    began = time.monotonic()
    for _ in range(5):
        assert sending.deliver(b"x", source="").taken
    assert time.monotonic() - began < 1.0
    assert len(second.requests) == 5
    assert sending.state[first.url].startswith("answered 503")
    assert sending.state[second.url] == "up"


def test_dead_host(
    start_upstream: Start, upstreams: Callable[..., Upstreams], count: Callable[..., float]
) -> None:
    """A host that nobody listens at is passed over."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        host = start_upstream(204)
        assert upstreams(dead, host.url).deliver(b"x", source="").taken
    assert count("upstream_up", upstream=dead) == 0
    assert count("upstream_answers_total", upstream=dead, answer="failure") == 1


def test_retry_after_is_kept_within_the_limit(
    start_upstream: Start, upstreams: Callable[..., Upstreams]
) -> None:
    """Retry-After lengthens the pause, but not beyond the longest one of the settings."""
    host = start_upstream((503, {"Retry-After": "3600"}, b""), 204)
    began = time.monotonic()
    assert upstreams(host.url).deliver(b"x", source="").taken
    assert 0.2 <= time.monotonic() - began < 2.0


def test_connection_closed_while_idle(
    start_upstream: Start, upstreams: Callable[..., Upstreams], count: Callable[..., float]
) -> None:
    """A kept connection that the upstream has closed is no failure of the upstream."""

    def close_after(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(204)
        handler.end_headers()
        handler.close_connection = True

    host = start_upstream(close_after, 204)
    sending = upstreams(host.url)
    assert sending.deliver(b"x", source="").taken
    time.sleep(0.1)
    assert sending.deliver(b"x", source="").taken
    assert host.connections == 2
    assert count("upstream_answers_total", upstream=host.url, answer="failure") == 0


def test_silent_upstream(start_upstream: Start, upstreams: Callable[..., Upstreams]) -> None:
    """An upstream that accepts and then says nothing is given up at the deadline."""

    def hang(_handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(3)

    host = start_upstream(hang, 204)
    began = time.monotonic()
    assert upstreams(host.url, timeout_s=0.3).deliver(b"x", source="").taken
    assert time.monotonic() - began < 2.5


def test_dripping_upstream(start_upstream: Start, upstreams: Callable[..., Upstreams]) -> None:
    """An upstream that sends a byte now and then does not get past the deadline."""

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        for _ in range(60):
            handler.wfile.write(b"H")
            time.sleep(0.05)

    host = start_upstream(drip, 204)
    sending = upstreams(host.url, timeout_s=0.3)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            sending.enforce_deadline()

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    try:
        assert sending.deliver(b"x", source="").taken
    finally:
        done.set()
        watcher.join()
    assert time.monotonic() - began < 2.5


def test_endless_answer(start_upstream: Start, upstreams: Callable[..., Upstreams]) -> None:
    """Of an answer without an end only the beginning is read."""

    def flood(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(400)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x" * 65_536)

    answer = upstreams(start_upstream(flood).url).deliver(b"x", source="")
    assert len(answer.text) == 65_536


@pytest.mark.parametrize(
    "junk", [b"\x00\xff\n\n", b"HTTP/1.1 junk\r\n\r\n", b""], ids=["bytes", "status", "nothing"]
)
def test_junk_answer(start_upstream: Start, upstreams: Callable[..., Upstreams], junk: bytes) -> None:
    """What is not HTTP is a failure, tried again."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(junk)
        handler.close_connection = True

    host = start_upstream(answer, 204)
    assert upstreams(host.url).deliver(b"x", source="").status == 204
    assert len(host.requests) == 2


def test_new_token(start_upstream: Start, upstreams: Callable[..., Upstreams]) -> None:
    """A token that was rotated is read anew after a 401; one that cannot be read keeps the old."""
    tokens = iter(["old", ConfigurationError("unreadable"), "new"])

    def token() -> str:
        value = next(tokens)
        if isinstance(value, Exception):
            raise value
        return value

    host = start_upstream(401, 401, 204)
    assert upstreams(host.url, token=token).deliver(b"x", source="").taken
    sent = [request.headers["Authorization"] for request in host.requests]
    assert sent == ["Token old", "Token old", "Token new"]


def test_stop_ends_the_tries(
    start_upstream: Start, upstreams: Callable[..., Upstreams], stop: threading.Event
) -> None:
    """While stopping, a block without a verdict stays with the caller."""
    sending = upstreams(start_upstream(503).url)
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Stopped):
        sending.deliver(b"x", source="")


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("ingest.example", "no URL"),
        ("ftp://ingest.example", "no URL"),
        ("https://", "no URL"),
        ("https://ingest.example:port", "no URL"),
        ("https://ingest.example/?db=x", "no URL"),
        ("http://ingest.example", "clear text"),
        ("https://gw:secret@ingest.example", "credentials"),
    ],
)
def test_refused_url(upstreams: Callable[..., Upstreams], url: str, part: str) -> None:
    """A URL that cannot work or would give the token away is refused at the start, without the secret."""
    with pytest.raises(ConfigurationError, match=part) as refusal:
        upstreams(url)
    assert "secret" not in str(refusal.value)


def test_bare_ipv6_address_has_the_default_port(
    upstreams: Callable[..., Upstreams], stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://[fd00::21] is that address and port 443, not fd00: and port 21."""
    asked: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], *_: object, **__: object) -> NoReturn:
        asked.append(address)
        stop.set()
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(Stopped):
        upstreams("https://[fd00::21]").deliver(b"x", source="")
    assert asked == [("fd00::21", 443)]


def test_no_urls(upstreams: Callable[..., Upstreams]) -> None:
    """A forwarder without upstreams is refused."""
    with pytest.raises(ConfigurationError, match="FIELDRING_UPSTREAM_URLS"):
        upstreams()
