"""The devices' side of the forwarder: one thread with an event loop, and the listeners on it."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

from fieldring.errors import ConfigurationError
from fieldring.gateway.accounts import Accounts
from fieldring.gateway.group_commit import GroupCommit
from fieldring.gateway.http_in import HttpIn
from fieldring.gateway.inbox import Message, Verdict
from fieldring.gateway.metrics import Metrics
from fieldring.gateway.mqtt_server import MqttServer
from fieldring.settings import Settings, file_stamp

__all__ = ["Devices"]

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_HANDSHAKE_SECONDS = 10.0
_BACKLOG = 512
_SWEEP_SECONDS = 1.0
_START_SECONDS = 30.0

_log = logging.getLogger(__name__)


class _Certificate:
    """The host's key and certificates in one file, taken anew when it changes: by the next handshake."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = file_stamp(self._path)
        self.context = self._made()

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._path)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"FIELDRING_DEVICE_CERTIFICATE_FILE: {self._path} is no key with its certificate: {error}"
            ) from error
        return context

    def refresh(self) -> None:
        stamp = file_stamp(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._made()  # what is broken must not reach the context in use
            self.context.load_cert_chain(self._path)
        except (OSError, ssl.SSLError, ConfigurationError) as error:
            _log.error("the new certificate is not served, the one before is: %s", error)
        else:
            _log.info("serving the certificate that is now in %s", self._path)


class Devices(threading.Thread):
    """``start`` returns when all listeners listen, or raises."""

    def __init__(
        self,
        settings: Settings,
        *,
        take: Callable[[Sequence[Message]], Sequence[Verdict]],
        http: Callable[[Accounts], HttpIn],
        metrics: Metrics,
        mqtt: bool,
    ) -> None:
        super().__init__(name="devices", daemon=True)
        self._settings = settings
        self._take = take
        self._make_http = http
        self._metrics = metrics
        self._mqtt = mqtt
        self._settled = threading.Event()
        self._problem: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._accounts = Accounts(Path(settings.device_passwords_file))
        self._certificate: _Certificate | None = None
        if settings.device_certificate_file:
            self._certificate = _Certificate(Path(settings.device_certificate_file))
        else:
            for name, host, port in (
                ("MQTT", settings.device_mqtt_host, settings.device_mqtt_port if mqtt else 0),
                ("HTTP", settings.device_http_host, settings.device_http_port),
            ):
                if port and host not in _LOOPBACK:
                    raise ConfigurationError(
                        "FIELDRING_DEVICE_CERTIFICATE_FILE is not set, so passwords would travel in clear "
                        f"text: name the host's certificate, or set FIELDRING_DEVICE_{name}_HOST to 127.0.0.1"
                    )
        self._server: MqttServer | None = None
        self.ports: dict[str, int] = {}

    @property
    def connections(self) -> int:
        """Devices that are connected over MQTT."""
        return len(self._server.connections) if self._server is not None else 0

    @property
    def listening(self) -> bool:
        return self._settled.is_set() and self._problem is None and self.is_alive()

    def start(self) -> None:
        """Raises ConfigurationError: a listener's address cannot be had."""
        super().start()
        self._settled.wait(_START_SECONDS)
        if self._problem is not None:
            self.join()
            raise self._problem

    def stop(self) -> None:
        """From any thread; ``join`` waits until what was sent is acknowledged."""
        loop, end = self._loop, self._end
        if loop is not None and end is not None and self.is_alive():
            try:
                loop.call_soon_threadsafe(end.set)
            except RuntimeError as error:  # it has just ended by itself
                _log.debug("devices: %s", error)

    def run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001
            self._problem = error
            if self._settled.is_set():
                _log.exception("the devices' listeners failed")
        finally:
            self._settled.set()

    async def _serve(self) -> None:
        # Not needed where mosquitto listens, and uvicorn takes its time and memory.
        from fieldring.gateway.http_server import HttpServer

        settings, metrics = self._settings, self._metrics
        loop = asyncio.get_running_loop()
        self._loop, self._end = loop, asyncio.Event()
        commit = GroupCommit(self._take, loop=loop, metrics=metrics)
        mqtt = MqttServer(
            commit,
            self._accounts,
            loop=loop,
            metrics=metrics,
            message_max_bytes=settings.device_message_max_bytes,
            connections_max=settings.device_connections_max,
        )
        self._server = mqtt
        http = HttpServer(
            self._make_http(self._accounts),
            connections_max=settings.device_connections_max,
            metrics=metrics,
        )
        servers = []
        try:
            if self._mqtt:
                servers.append(
                    await self._listen("mqtt", settings.device_mqtt_host, settings.device_mqtt_port, mqtt)
                )
            if settings.device_http_port:
                servers.append(
                    await self._listen("http", settings.device_http_host, settings.device_http_port, http)
                )
            self._settled.set()
            while not self._end.is_set():
                mqtt.sweep()
                http.sweep(loop.time())
                if self._certificate is not None:
                    self._certificate.refresh()
                try:
                    async with asyncio.timeout(_SWEEP_SECONDS):
                        await self._end.wait()
                except TimeoutError:
                    continue
        finally:
            for server in servers:
                server.close()
            await mqtt.close()
            await http.close()
            commit.close()

    async def _listen(self, name: str, host: str, port: int, factory: Callable[[], Any]) -> Any:
        context = self._certificate.context if self._certificate is not None else None
        try:
            server = await asyncio.get_running_loop().create_server(
                factory,
                host or None,
                max(port, 0),
                ssl=context,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS if context is not None else None,
                backlog=_BACKLOG,
            )
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host or '*'}:{port} for devices ({name}): {error.strerror or error}"
            ) from error
        self.ports[name] = server.sockets[0].getsockname()[1]
        _log.info("devices may connect to %s:%d (%s)", host or "*", self.ports[name], name)
        return server
