"""Ingest hosts to send blocks to: one request at a time, the healthiest first, a deadline on each.

Only 204 and 202 count as taken. 400, 413 and 415 are a verdict on the block. Everything else, a
redirect or an unknown status included, is taken as "not now": never a reason to lose a block.
"""

from __future__ import annotations

import gzip
import http.client
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from fieldring.errors import ConfigurationError
from fieldring.gateway.metrics import Metrics

__all__ = ["BLOCK_TYPE", "PATH", "Answer", "Stopped", "Upstreams"]

PATH = "/api/v1/block"
BLOCK_TYPE = "application/vnd.fieldring.block"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_TAKEN = frozenset({202, 204})
_REFUSED = frozenset({400, 413, 415})
_ANSWER_MAX_BYTES = 65_536
_REMIND_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 - not a failure
    """The process is to end; the block stays in the spool."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An upstream's verdict on a block: taken, or refused for good with its reason."""

    status: int
    text: str = ""

    @property
    def taken(self) -> bool:
        return self.status in _TAKEN


class _Upstream:
    """One host: its connection and how it fares."""

    def __init__(self, url: str, *, ca_file: str) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or port == 0
            or parts.query
            or parts.fragment
        ):
            raise ConfigurationError(
                f"FIELDRING_UPSTREAM_URLS: {url!r} is no URL like https://ingest.example:443"
            )
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError(
                f"FIELDRING_UPSTREAM_URLS: the URL of {parts.hostname} carries credentials, which "
                "would be logged: the token belongs into FIELDRING_UPSTREAM_TOKEN_FILE"
            )
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ConfigurationError(
                f"FIELDRING_UPSTREAM_URLS: {url!r} would send the token in clear text: use https://"
            )
        self.url = url.rstrip("/")
        self._secure = parts.scheme == "https"
        # Said in full: http.client would take the end of a bare IPv6 address for a port.
        self._host, self._port = parts.hostname, port or (443 if self._secure else 80)
        self._path = parts.path.rstrip("/") + PATH
        self._ca_file = ca_file
        self._connection: http.client.HTTPConnection | None = None
        self.failures = 0
        self.not_before = 0.0
        self.reminded = 0.0
        self.problem = "not tried yet"

    def post(self, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> tuple[int, float, str]:
        """Status, Retry-After and text of the answer."""
        reused = self._connection is not None
        try:
            return self._post(body, headers, timeout_s=timeout_s)
        except (http.client.BadStatusLine, BrokenPipeError, ConnectionResetError):
            # BadStatusLine covers RemoteDisconnected: an idle connection was closed in the meantime.
            self.close()
            if not reused:
                raise
        except BaseException:
            self.close()
            raise
        try:
            return self._post(body, headers, timeout_s=timeout_s)
        except BaseException:
            self.close()
            raise

    def _post(self, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> tuple[int, float, str]:
        if self._connection is None:
            if self._secure:
                # Read anew for each connection, so that a new CA needs no restart.
                context = ssl.create_default_context(cafile=self._ca_file or None)
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=timeout_s, context=context
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.request("POST", self._path, body, dict(headers))
        response = self._connection.getresponse()
        text = response.read(_ANSWER_MAX_BYTES)
        if not response.isclosed():
            # Longer than any answer of ours, or one without an end: not worth keeping the connection.
            self.close()
        try:
            retry_after = float(response.headers.get("Retry-After", "0"))
        except ValueError:
            retry_after = 0.0
        return response.status, retry_after, text.decode("utf-8", "replace")

    def abort(self) -> None:
        """Break off what another thread is doing on the connection; it gets an error."""
        sock = getattr(self._connection, "sock", None)
        if sock is not None:
            try:
                # Past SSLSocket's own shutdown, which would take its state from under the other thread.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError as error:
                _log.debug("upstream %s: %s", self.url, error)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Upstreams:
    """All ingest hosts. ``deliver`` belongs to one thread; ``enforce_deadline`` to another."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        ca_file: str,
        token: Callable[[], str],
        timeout_s: float,
        retry_max_s: float,
        gzip_min_bytes: int,
        metrics: Metrics,
        stop: threading.Event,
    ) -> None:
        if not urls:
            raise ConfigurationError(
                "FIELDRING_UPSTREAM_URLS is not set: name at least one ingest host's URL"
            )
        self._upstreams = [_Upstream(url, ca_file=ca_file) for url in dict.fromkeys(urls)]
        self._token = token
        self._authorization = f"Token {token()}"
        self._timeout_s = timeout_s
        self._retry_max_s = retry_max_s
        self._gzip_min_bytes = gzip_min_bytes
        self._metrics = metrics
        self._stop = stop
        self._current = self._upstreams[0]
        self._lock = threading.Lock()
        self._under_way: tuple[float, _Upstream] | None = None

    @property
    def state(self) -> dict[str, str]:
        """URL → ``up``, or what was wrong at the last try."""
        return {upstream.url: upstream.problem or "up" for upstream in self._upstreams}

    def deliver(self, block: bytes, *, source: str, oldest: int = 0) -> Answer:
        """Try until an upstream takes or refuses the block. Nothing before ``oldest`` will be sent any more.

        Raises:
            Stopped: told to end before there was a verdict.
        """
        headers = {"Content-Type": BLOCK_TYPE, "Fieldring-Source": source, "User-Agent": "fieldring-forward"}
        if oldest:
            headers["Fieldring-Oldest"] = str(oldest)
        if self._gzip_min_bytes and len(block) >= self._gzip_min_bytes:
            block = gzip.compress(block, compresslevel=1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        while not self._stop.is_set():
            now = time.monotonic()
            ready = [upstream for upstream in self._upstreams if upstream.not_before <= now]
            if not ready:
                self._stop.wait(min(upstream.not_before for upstream in self._upstreams) - now)
                continue
            # The one that worked last keeps the traffic; among those that failed, the least bad one.
            upstream = min(ready, key=lambda one: (one.failures, one is not self._current))
            answer = self._try(upstream, block, headers)
            if answer is not None:
                return answer
        raise Stopped

    def _try(self, upstream: _Upstream, block: bytes, headers: dict[str, str]) -> Answer | None:
        headers["Authorization"] = self._authorization
        with self._lock:
            self._under_way = (time.monotonic() + self._timeout_s, upstream)
        retry_after = 0.0
        try:
            status, retry_after, text = upstream.post(block, headers, timeout_s=self._timeout_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ValueError: http.client's answer to garbage in a chunk header.
            label, problem = "failure", f"{type(error).__name__}: {error}"
        else:
            label, problem = str(status), f"answered {status} {_first_line(text)}"
            if status in _TAKEN or status in _REFUSED:
                self._metrics.answers.labels(upstream.url, label).inc()
                self._succeeded(upstream)
                return Answer(status, text)
            if status in (401, 403):
                self._read_token()
        finally:
            with self._lock:
                self._under_way = None
        self._metrics.answers.labels(upstream.url, label).inc()
        self._failed(upstream, problem, retry_after=retry_after)
        return None

    def _succeeded(self, upstream: _Upstream) -> None:
        if upstream.failures:
            _log.info("upstream %s: takes blocks again", upstream.url)
        upstream.failures, upstream.not_before, upstream.problem = 0, 0.0, ""
        self._current = upstream
        self._metrics.upstream_up.labels(upstream.url).set(1)

    def _failed(self, upstream: _Upstream, problem: str, *, retry_after: float) -> None:
        upstream.failures += 1
        now = time.monotonic()
        # Jitter, so that all gateways of a site do not come back at the same instant.
        pause = min(self._retry_max_s, 0.5 * 2 ** min(upstream.failures - 1, 16)) * random.uniform(0.5, 1.0)
        pause = max(pause, min(retry_after, self._retry_max_s))
        upstream.not_before = now + pause
        if problem != upstream.problem or now - upstream.reminded > _REMIND_SECONDS:
            _log.warning("upstream %s: %s; blocks stay in the spool", upstream.url, problem)
            upstream.reminded = now
        upstream.problem = problem
        self._metrics.upstream_up.labels(upstream.url).set(0)

    def _read_token(self) -> None:
        """Take a new token without a restart, since credentials are rotated under running gateways."""
        try:
            self._authorization = f"Token {self._token()}"
        except ConfigurationError as error:
            _log.warning("%s; the previous token stays", error)

    def enforce_deadline(self) -> None:
        """Break off a request that is over its deadline.

        Socket timeouts start anew with every byte; a peer that drips must not hold the sender.
        """
        with self._lock:
            if self._under_way is not None and time.monotonic() > self._under_way[0]:
                self._under_way[1].abort()

    def interrupt(self) -> None:
        """Break off the request under way, as the process is to end."""
        with self._lock:
            if self._under_way is not None:
                self._under_way[1].abort()

    def close(self) -> None:
        for upstream in self._upstreams:
            upstream.close()


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
