"""The connection to the ring: made lazily, never given up, with a deadline on every statement."""

from __future__ import annotations

import logging
import os
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cassandra import AuthenticationFailed, ConsistencyLevel, DriverException
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.connection import ConnectionException
from cassandra.io.libevreactor import LibevConnection
from cassandra.policies import DCAwareRoundRobinPolicy, ExponentialReconnectionPolicy, TokenAwarePolicy
from cassandra.query import tuple_factory

from fieldring.errors import ConfigurationError, StoreUnavailable
from fieldring.store._rows import PackedMapHandler, pack_maps

__all__ = ["Ring"]

_log = logging.getLogger(__name__)

_FAILURES = (DriverException, NoHostAvailable, ConnectionException, OSError)
_RECONNECT_MAX_S = 10.0
_LOST_AFTER_S = 20.0
"""Without any answer for this long the session is replaced, should the driver have given up on hosts."""


class _Connection(LibevConnection):  # type: ignore[misc]
    """A refused login is a failed connection, no more.

    When too few replicas of ``system_auth`` answer, Cassandra says "bad credentials". The driver takes
    that for final and never tries the host again; the ring comes back, so we do.
    """

    def defunct(self, exc: BaseException) -> Any:
        if isinstance(exc, AuthenticationFailed):
            exc = ConnectionException(str(exc), self.endpoint)
        return super().defunct(exc)


class Ring:
    """One session with the local data centre, for all threads of one process.

    The first use starts a thread that connects, and goes on trying for as long as it takes; meanwhile
    every call fails at once with ``StoreUnavailable``. Nothing is connected before the first use, so
    that a process may fork after making one of these.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        port: int,
        local_dc: str,
        keyspace: str,
        username: str,
        password: str,
        ca_file: str,
        request_timeout_s: float,
        in_flight: int,
    ) -> None:
        self.local_dc = local_dc
        self.request_timeout_s = request_timeout_s
        self._hosts = list(hosts)
        self._port = port
        self._keyspace = keyspace
        self._credentials = (username, password)
        self._in_flight = in_flight
        self._tls = _tls_context(ca_file) if ca_file else None
        self._state = threading.Condition()
        self._preparing = threading.Lock()
        self._prepared: dict[str, Any] = {}
        self._cluster: Any = None
        self._session: Any = None
        self._connecting = False
        self._failure = ""
        self._answered = 0.0
        self._closed = False
        self._process = os.getpid()

    # -- statements --------------------------------------------------------------------------

    def prepare(self, query: str) -> Any:
        """The prepared, idempotent statement for ``query``; prepared once per session."""
        session = self._connected()
        statement = self._prepared.get(query)
        if statement is not None:
            return statement
        with self._preparing:
            statement = self._prepared.get(query)
            if statement is None:
                try:
                    statement = session.prepare(query)
                except _FAILURES as error:
                    raise self._unavailable(error) from error
                statement.is_idempotent = True
                pack_maps(statement)
                self._prepared[query] = statement
        return statement

    def rows(
        self, query: str, arguments: Sequence[object], *, consistency: int | None = None
    ) -> Iterator[Any]:
        """Rows of a read as tuples, page by page."""
        bound = self.prepare(query).bind(arguments)
        if consistency is not None:
            bound.consistency_level = consistency
        session = self._connected()
        try:
            yield from session.execute(bound)
        except _FAILURES as error:
            raise self._unavailable(error) from error
        self._answered = time.monotonic()

    def rows_of_many(
        self, query: str, arguments: Iterable[Sequence[object]], *, ahead: int = 8
    ) -> Iterator[Iterator[Any]]:
        """The rows of each read in turn, with up to ``ahead`` reads under way."""
        statement = self.prepare(query)
        session = self._connected()
        remaining = iter(arguments)
        waiting: deque[Any] = deque()
        while True:
            while len(waiting) < ahead:
                following = next(remaining, None)
                if following is None:
                    break
                waiting.append(session.execute_async(statement.bind(following)))
            if not waiting:
                return
            yield self._pages(waiting.popleft())

    def _pages(self, future: Any) -> Iterator[Any]:
        try:
            yield from future.result()
        except _FAILURES as error:
            raise self._unavailable(error) from error
        self._answered = time.monotonic()

    def applied(self, query: str, arguments: Sequence[object]) -> bool:
        """Run a conditional statement; whether its condition held."""
        statement = self.prepare(query)
        session = self._connected()
        bound = statement.bind(arguments)
        bound.is_idempotent = False
        try:
            return bool(session.execute(bound).was_applied)
        except _FAILURES as error:
            raise self._unavailable(error) from error

    def run(self, statements: Iterable[Any]) -> None:
        """Execute all, at most ``in_flight`` at once; return when every one was acknowledged.

        On the first failure no more are sent; those under way are waited for.
        """
        session = self._connected()
        window = threading.Semaphore(self._in_flight)
        failures: list[Exception] = []

        def failed(error: Exception) -> None:
            failures.append(error)
            window.release()

        def done(_: object) -> None:
            window.release()

        patience = 2 * self.request_timeout_s + 5  # the driver's own timer comes first
        try:
            for statement in statements:
                if not window.acquire(timeout=patience):
                    raise StoreUnavailable("the ring does not answer, and the driver's timer did not fire")
                if failures:
                    window.release()
                    break
                session.execute_async(statement).add_callbacks(done, failed)
        except _FAILURES as error:
            raise self._unavailable(error) from error
        for _ in range(self._in_flight):
            if not window.acquire(timeout=patience):
                raise StoreUnavailable("the ring does not answer, and the driver's timer did not fire")
        if failures:
            raise self._unavailable(failures[0]) from failures[0]
        self._answered = time.monotonic()

    def close(self) -> None:
        """Close the session; a connector that is under way ends by itself."""
        with self._state:
            self._closed = True
            cluster, self._cluster, self._session = self._cluster, None, None
            self._state.notify_all()
        if cluster is not None:
            cluster.shutdown()

    # -- the session -------------------------------------------------------------------------

    def _connected(self) -> Any:
        session = self._session
        if session is not None and self._process == os.getpid():
            return session
        with self._state:
            if self._process != os.getpid():  # forked: sockets and threads stay with the parent
                self._process = os.getpid()
                self._cluster = self._session = None
                self._prepared = {}
                self._connecting = False
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._session is None and not self._connecting:
                self._connecting = True
                self._failure = ""
                threading.Thread(target=self._connect, name="ring-connect", daemon=True).start()
            # Only the first try is worth waiting for; after that the answer is known.
            self._state.wait_for(
                lambda: self._session is not None or self._failure or self._closed, self.request_timeout_s
            )
            if self._session is None:
                raise StoreUnavailable(f"the ring cannot be reached: {self._failure or 'no answer yet'}")
            return self._session

    def _connect(self) -> None:
        pause = 0.5
        while not self._closed:
            cluster = None
            try:
                cluster = self._make_cluster()
                session = cluster.connect(self._keyspace)
                session.use_client_timestamp = False
                session.client_protocol_handler = PackedMapHandler
                session.default_fetch_size = 5000
            except Exception as error:  # noqa: BLE001 - whatever it is, the ring may come back: keep trying
                if cluster is not None:
                    cluster.shutdown()
                text = _describe(error)
                if text != self._failure:
                    _log.warning("ring: cannot connect: %s", text)
                with self._state:
                    self._failure = text
                    self._state.notify_all()
                    self._state.wait_for(lambda: self._closed, pause * random.uniform(0.7, 1.3))
                pause = min(pause * 2, _RECONNECT_MAX_S)
                continue
            with self._state:
                self._connecting = False
                if not self._closed:
                    self._answered = time.monotonic()
                    self._prepared = {}
                    self._cluster, self._session = cluster, session
                    cluster = None
                self._state.notify_all()
            if cluster is not None:
                cluster.shutdown()
            else:
                _log.info("ring: connected to %s", self._keyspace)
            return

    def _make_cluster(self) -> Any:
        username, password = self._credentials
        profile = ExecutionProfile(
            load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(local_dc=self.local_dc)),
            consistency_level=ConsistencyLevel.LOCAL_QUORUM,
            serial_consistency_level=ConsistencyLevel.LOCAL_SERIAL,
            request_timeout=self.request_timeout_s,
            row_factory=tuple_factory,
        )
        return Cluster(
            self._hosts,
            port=self._port,
            auth_provider=PlainTextAuthProvider(username, password) if username else None,
            ssl_context=self._tls,
            connection_class=_Connection,
            # The driver leaves Nagle on; off, batches are many times faster.
            sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            reconnection_policy=ExponentialReconnectionPolicy(1.0, _RECONNECT_MAX_S),
            # 5 would add checksummed frames computed in Python, inside TLS that checks them anyway.
            protocol_version=4,
            compression=False,
            connect_timeout=min(5.0, self.request_timeout_s),
            control_connection_timeout=min(5.0, self.request_timeout_s),
        )

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        """Our name for a driver's failure; a session that reaches nobody for long is replaced."""
        if isinstance(error, NoHostAvailable) and time.monotonic() - self._answered > _LOST_AFTER_S:
            with self._state:
                cluster, self._cluster, self._session = self._cluster, None, None
            if cluster is not None:
                threading.Thread(target=cluster.shutdown, name="ring-shutdown", daemon=True).start()
        return StoreUnavailable(f"the ring cannot serve this now: {_describe(error)}")


def _tls_context(ca_file: str) -> ssl.SSLContext:
    """Trusts this CA only, and checks that the certificate names the address that was dialled."""
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_file)
    except OSError as error:
        raise ConfigurationError(
            f"FIELDRING_CASSANDRA_CA_FILE: cannot read a CA from {ca_file}: {error}"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _describe(error: BaseException) -> str:
    text = str(error)
    details = getattr(error, "errors", None)
    if isinstance(details, dict) and details:
        text = "; ".join(f"{host}: {detail}" for host, detail in details.items())
    return f"{type(error).__name__}: {text}"[:500]
