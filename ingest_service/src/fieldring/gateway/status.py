"""``/metrics``, ``/ready`` and a page of the forwarder, for the monitor, for deployments and for people.

Every error has the one shape, also those that Python's server finds itself.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from fieldring.errors import FieldringError, HeadTooLarge, InvalidRequest, MethodNotAllowed, NotFound
from fieldring.http.errors import answer

__all__ = ["StatusServer"]

_PATHS = ("/", "/metrics", "/ready")
_METHODS = ("GET", "HEAD")
_BODY_MAX_BYTES = 65_536

_log = logging.getLogger(__name__)


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
                try:
                    status, headers, body = self._found(self.path.partition("?")[0])
                except Exception as error:  # noqa: BLE001
                    if not isinstance(error, FieldringError):
                        _log.exception("%s %s failed", self.command, self.path[:80])
                    self._refuse(error)
                else:
                    self._answer(status, headers, body)

            def do_HEAD(self) -> None:
                self.do_GET()

            def _found(self, path: str) -> tuple[int, Mapping[str, str], bytes]:
                if path == "/metrics":
                    before_scrape()
                    return 200, {"Content-Type": CONTENT_TYPE_LATEST}, generate_latest(registry)
                if path == "/ready":
                    is_ready, state = ready()
                    text = json.dumps({"status": "ready" if is_ready else "not ready", **state})
                    headers = {"Content-Type": "application/json"}
                    if not is_ready:
                        headers["Retry-After"] = "5"
                    return 200 if is_ready else 503, headers, text.encode() + b"\n"
                if path == "/":
                    before_scrape()
                    return 200, {"Content-Type": "text/html; charset=utf-8"}, page()
                raise NotFound(f"{path[:80]!r} is not here: {', '.join(_PATHS)} are")

            def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
                """What has no ``do_...`` of its own: another method, and what is no HTTP."""
                text = f"not a valid HTTP request: {message or explain or 'it cannot be understood'}"
                # Before a version was understood, no status line would be sent.
                self.request_version = self.protocol_version
                self.close_connection = True
                if code in (414, 431):
                    self._refuse(HeadTooLarge(text))
                elif code != 501:
                    self._refuse(InvalidRequest(text), status=code)
                elif (path := self.path.partition("?")[0]) in _PATHS:
                    self._refuse(MethodNotAllowed(self.command[:20], allowed=_METHODS))
                else:
                    self._refuse(NotFound(f"{path[:80]!r} is not here: {', '.join(_PATHS)} are"))

            def _refuse(self, error: Exception, *, status: int = 0) -> None:
                made = answer(error)
                self._answer(status or made.status, made.headers, made.body)
                length = self.headers.get("Content-Length", "") if hasattr(self, "headers") else ""
                if length.isdecimal() and len(length) < 10:
                    # Closed with something unread, the kernel would take the answer away again.
                    self.rfile.read(min(int(length), _BODY_MAX_BYTES))

            def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
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
