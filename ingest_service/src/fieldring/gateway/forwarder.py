"""Puts the forwarder together from settings and runs it until it is told to stop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from fieldring.errors import ConfigurationError, SpoolFull
from fieldring.gateway.clock import open_room
from fieldring.gateway.clock_marks import ClockMarks
from fieldring.gateway.dead_letter import DeadLetters
from fieldring.gateway.devices import Devices
from fieldring.gateway.http_in import HttpIn
from fieldring.gateway.inbox import Inbox, Message, Verdict
from fieldring.gateway.listener import Listener
from fieldring.gateway.metrics import Metrics
from fieldring.gateway.overview import page
from fieldring.gateway.sender import Sender
from fieldring.gateway.status import StatusServer
from fieldring.gateway.upstream import Upstreams
from fieldring.settings import Settings, read_secret
from fieldring.spool import Endurance, Queue

__all__ = ["WORKER", "Forwarder", "run"]

WORKER = "forwarder"
"""Name of the forwarder's directory in the spool root."""

_JOIN_SECONDS = 10.0
_TICK_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Forwarder:
    """One forwarder of one gateway. ``serve`` blocks; ``stop`` may come from any thread."""

    def __init__(self, settings: Settings) -> None:
        _check(settings)
        self._stop = threading.Event()
        self._name, self._listen_host = settings.gateway_name, settings.listen_host
        self._device_listener = settings.device_listener
        self._endurance = Endurance()
        self._hours_left = float("inf")
        self.metrics = metrics = Metrics()
        dead_letters = DeadLetters(
            Path(settings.dead_letter_dir), max_bytes=settings.dead_letter_max_bytes, metrics=metrics
        )
        self._upstreams = Upstreams(
            settings.upstream_urls,
            ca_file=settings.upstream_ca_file,
            token=lambda: read_secret("upstream_token_file", settings.upstream_token_file),
            timeout_s=settings.upstream_timeout_seconds,
            retry_max_s=settings.upstream_retry_max_seconds,
            gzip_min_bytes=settings.upstream_gzip_min_bytes,
            metrics=metrics,
            stop=self._stop,
        )
        own = settings.device_listener == "forwarder"
        password = client_id = ""
        if not own:
            if settings.mqtt_username:
                password = read_secret("mqtt_password_file", settings.mqtt_password_file)
            client_id = read_secret("mqtt_client_id_file", settings.mqtt_client_id_file)
        # Under its lock, so that a second forwarder on this host is refused and not mixed in.
        self._queue = Queue(
            Path(settings.spool_dir) / WORKER,
            segment_bytes=settings.spool_segment_bytes,
            max_bytes=settings.spool_max_bytes,
            full_policy=settings.spool_full_policy,
        )
        self._inbox = Inbox(
            self._queue,
            dead_letters=dead_letters,
            metrics=metrics,
            series_tags=settings.series_tags,
            marks=ClockMarks(Path(settings.spool_dir) / "clock_marks.json"),
        )
        self._room = open_room(settings, self._inbox)
        self._sender = Sender(
            self._queue,
            self._upstreams,
            gateway=settings.gateway_name,
            dead_letters=dead_letters,
            metrics=metrics,
            stop=self._stop,
            backlog_bytes_per_s=settings.upstream_backlog_bytes_per_second,
        )
        self._listener: Listener | None = None
        if not own:
            self._listener = Listener(
                self._take,
                host=settings.mqtt_host,
                port=settings.mqtt_port,
                client_id=client_id,
                username=settings.mqtt_username,
                password=password,
                metrics=metrics,
            )
        self.devices: Devices | None = None
        if own or settings.device_http_port:
            self.devices = Devices(
                settings,
                take=self._take,
                http=lambda accounts: HttpIn(
                    self._inbox,
                    accounts,
                    settings=settings,
                    metrics=metrics,
                    now_ms=lambda: time.time_ns() // 1_000_000,
                    wake=self._sender.wake,
                    open_=lambda: self._room is None or self._room.open,
                ),
                metrics=metrics,
                mqtt=own,
            )
        self.status = StatusServer(
            host=settings.listen_host,
            port=settings.listen_port,
            registry=metrics.registry,
            before_scrape=self._measure,
            ready=self._ready,
            page=self._page,
        )
        _log.info("%d blocks wait in the spool", self._queue.pending_records)

    def serve(self) -> None:
        """Forward until ``stop``; what is in the spool then stays there for the next start."""
        try:
            self.status.start()
            self._sender.start()
            _log.info("status on %s:%d", self._listen_host, self.status.port)
            if self.devices is not None:
                self.devices.start()
            _log.info("ready for devices")
            if self._listener is not None:
                self._listener.run(self._stop, tick=self._tick)
            while not self._stop.wait(_TICK_SECONDS):
                self._tick()
        finally:
            self.stop()
            if self.devices is not None and self.devices.is_alive():
                self.devices.stop()
                self.devices.join(_JOIN_SECONDS)
            self._sender.wake()
            self._upstreams.interrupt()
            if self._sender.is_alive():
                self._sender.join(_JOIN_SECONDS)
            self._upstreams.close()
            self.status.close()
            self._queue.close()
            if self._room is not None:
                self._room.close()
            _log.info("stopped")

    def stop(self) -> None:
        self._stop.set()

    def _tick(self) -> None:
        self._upstreams.enforce_deadline()
        queue = self._queue
        self._hours_left = self._endurance.hours(
            queue.appended_bytes, room_bytes=queue.max_bytes - queue.pending_bytes
        )
        if self._room is not None and not self._room.settled:
            try:
                self._room.release()
            except (SpoolFull, OSError) as error:
                _log.warning("what is held for the clock stays there: %s", error)
            self._sender.wake()
        if self.devices is not None and not self.devices.is_alive():
            # Better started anew by systemd than deaf.
            raise ConfigurationError("the devices' listeners have ended: see the log above")

    def _take(self, messages: Sequence[Message]) -> list[Verdict]:
        verdicts = (self._room or self._inbox).take(messages)
        self._sender.wake()
        return verdicts

    def _measure(self) -> None:
        queue, metrics = self._queue, self.metrics
        metrics.pending_bytes.set(queue.pending_bytes)
        metrics.max_bytes.set(queue.max_bytes)
        metrics.pending_blocks.set(queue.pending_records)
        metrics.oldest_age.set(queue.oldest_age_s(now=time.time()))
        metrics.dropped_blocks.set(queue.dropped_records)
        metrics.hours_left.set(self._hours_left)

    def _page(self) -> bytes:
        queue, devices = self._queue, self.devices
        hours = self._hours_left
        listeners = devices.ports if devices is not None else {}
        ready, _ = self._ready()
        return page(
            f"Gateway {self._name}",
            {
                "State": [
                    ("ready", "yes" if ready else "no"),
                    (
                        "clock",
                        "believed"
                        if self._room is None or self._room.open
                        else f"not synchronised: {self._room.held} groups of messages are held",
                    ),
                ],
                "Devices": [
                    *((f"port for {kind}", port) for kind, port in listeners.items()),
                    ("connected over MQTT", devices.connections if devices is not None else "at mosquitto"),
                    ("listener", self._device_listener),
                ],
                "Spool": [
                    ("blocks waiting", queue.pending_records),
                    ("of these backlog, sent after what comes in now", self._sender.backlog),
                    ("bytes waiting", f"{queue.pending_bytes:,} of {queue.max_bytes:,}"),
                    ("age of the oldest", f"{queue.oldest_age_s(now=time.time()):.0f} s"),
                    (
                        "room lasts, if nothing is sent",
                        "nothing comes in" if hours == float("inf") else f"{hours:.1f} h",
                    ),
                    ("blocks dropped", queue.dropped_records),
                    ("refused for want of room", queue.refused),
                ],
                "Ingest hosts": list(self._upstreams.state.items()),
            },
        )

    def _ready(self) -> tuple[bool, Mapping[str, Any]]:
        # An upstream that is away is no reason to be unready: taking messages is this host's promise.
        listening = self.devices is None or self.devices.listening
        if self._listener is not None:
            listening = listening and self._listener.subscribed.is_set()
        sending = self._sender.is_alive()
        return listening and sending, {
            "listening": listening,
            "sending": sending,
            "pending_bytes": self._queue.pending_bytes,
            "upstreams": self._upstreams.state,
        }


def _check(settings: Settings) -> None:
    if settings.device_listener not in ("forwarder", "mosquitto"):
        raise ConfigurationError(
            f"FIELDRING_DEVICE_LISTENER is {settings.device_listener!r}, but must be forwarder or mosquitto"
        )
    name = settings.gateway_name
    if not name or any(
        character in ";=," or not character.isprintable() or character.isspace() for character in name
    ):
        raise ConfigurationError(
            f"FIELDRING_GATEWAY_NAME is {name!r}, but must be this gateway's name, without blanks and ; = ,"
        )


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code."""
    forwarder = Forwarder(settings)

    def stop(signal_number: int, _frame: FrameType | None) -> None:
        _log.info("%s: stopping", signal.Signals(signal_number).name)
        forwarder.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    forwarder.serve()
    return 0
