"""``/metrics``, ``/ready`` and a page of the forwarder, for the monitor, for deployments and for people."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

__all__ = ["StatusServer"]


class StatusServer:
    """A small HTTP server in threads of its own; reads only, no secrets in it."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        registry: CollectorRegistry,
        before_scrape: Callable[[], None],
        ready: Callable[[], tuple[bool, Mapping[str, Any]]],
        page: Callable[[], bytes] = bytes,
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5.0
            server_version = "fieldring-forward"
            sys_version = ""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    before_scrape()
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif path == "/ready":
                    is_ready, state = ready()
                    body = {"status": "ready" if is_ready else "not ready", **state}
                    self._json(200 if is_ready else 503, body)
                elif path == "/":
                    before_scrape()
                    self._answer(200, "text/html; charset=utf-8", page())
                else:
                    self._json(404, {"code": "not found", "message": "only /, /metrics and /ready are here"})

            def _json(self, status: int, body: Mapping[str, Any]) -> None:
                self._answer(status, "application/json", json.dumps(body).encode() + b"\n")

            def _answer(self, status: int, media_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Not logged: a scrape every few seconds is no news."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            # Closing must not wait for a client that sends nothing.
            block_on_close = False

        self._server = Server((host, port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="status", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(5.0)
        self._server.server_close()
