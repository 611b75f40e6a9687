"""A real HTTP server with scripted answers, and what the tests of this room share."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fieldring.gateway.metrics import Metrics

Script = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Request:
    """What an upstream was sent."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Upstream:
    """A local ingest host: plays ``script`` item by item, then goes on with the last one."""

    script: list[int | tuple[int, dict[str, str], bytes] | Script]
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    url: str = ""


@pytest.fixture
def start_upstream() -> Iterator[Callable[..., Upstream]]:
    """A function that starts an upstream with its script."""
    servers: list[ThreadingHTTPServer] = []

    def start(*script: Any) -> Upstream:
        upstream = Upstream(list(script) or [204])

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                upstream.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                upstream.requests.append(Request(self.path, dict(self.headers), body))
                step = upstream.script.pop(0) if len(upstream.script) > 1 else upstream.script[0]
                if callable(step):
                    step(self)
                    return
                status, headers, text = step if isinstance(step, tuple) else (step, {}, b"")
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_arguments: Any) -> None:
                """A client that breaks off is part of some tests."""

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        upstream.url = f"http://127.0.0.1:{server.server_address[1]}"
        return upstream

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def count(metrics: Metrics) -> Callable[..., float]:
    """A function that reads one series, 0 where it has none yet."""

    def read(name: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(f"fieldring_forwarder_{name}", labels) or 0.0

    return read


@pytest.fixture
def eventually() -> Callable[..., None]:
    """A function that returns as soon as its condition holds, and fails if it does not in time."""

    def wait(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "did not happen in time"
            time.sleep(0.01)

    return wait
