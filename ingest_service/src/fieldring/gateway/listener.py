"""The session with the local broker: one thread reads, makes durable and acknowledges.

Reading and acknowledging happen in turn, in one thread, so that a PUBACK can only leave after the
spool has returned, never on a connection other than the one that brought the message (an id may
mean another message there), and so that at most one group of messages is in memory: while the spool
is busy, the broker waits.
"""

from __future__ import annotations

import logging
import random
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fieldring.errors import SpoolFull
from fieldring.gateway.inbox import Message, boottime_us
from fieldring.gateway.metrics import Metrics

__all__ = ["TOPIC", "Listener"]

TOPIC = "sensors/#"
_DROPPED_TOPIC = "$SYS/broker/publish/messages/dropped"
_GROUP_MESSAGES = 500
_GROUP_BYTES = 1_048_576
_KEEPALIVE_SECONDS = 30
_RETRY_MAX_SECONDS = 5.0
_TICK_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Listener:
    """A persistent session. ``take`` returns when a group is durable, or raises."""

    def __init__(
        self,
        take: Callable[[Sequence[Message]], object],
        *,
        host: str,
        port: int,
        client_id: str,
        username: str,
        password: str,
        metrics: Metrics,
    ) -> None:
        self._take = take
        self._address = f"{host}:{port}"
        self._host, self._port = host, port
        self._metrics = metrics
        self._group: list[Message] = []
        self._group_bytes = 0
        self._connection = 0
        self._acknowledge: list[int] = []
        self._group_limit = _GROUP_MESSAGES
        self._failures = 0
        self._problem = ""
        self.subscribed = threading.Event()
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=False,
            protocol=MQTTProtocolVersion.MQTTv311,
            manual_ack=True,
        )
        if username:
            client.username_pw_set(username, password)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        client.connect_timeout = 5.0
        self._client = client

    def run(self, stop: threading.Event, *, tick: Callable[[], None] = lambda: None) -> None:
        """Serve until ``stop`` is set; ``tick`` is called about twice a second."""
        while not stop.is_set():
            try:
                self._client.connect(self._host, self._port, keepalive=_KEEPALIVE_SECONDS)
                self._serve(stop, tick)
            except SpoolFull as error:
                self._metrics.spool_refusals.inc()
                self._group_limit = 1  # what is too much together may fit one by one
                self._failed(f"messages stay with the broker: {error}")
            except OSError as error:
                self._failed(f"{error.strerror or error}")
            self._drop()
            pause = min(_RETRY_MAX_SECONDS, 0.25 * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
            until = time.monotonic() + pause
            while not stop.is_set() and (left := until - time.monotonic()) > 0:
                tick()
                stop.wait(min(left, _TICK_SECONDS))
            tick()

    def _serve(self, stop: threading.Event, tick: Callable[[], None]) -> None:
        client = self._client
        next_tick = 0.0
        while not stop.is_set():
            if time.monotonic() >= next_tick:
                tick()
                next_tick = time.monotonic() + _TICK_SECONDS
            socket = client.socket()
            if socket is None:
                return
            readable, writable, _ = select.select(
                [socket], [socket] if client.want_write() else [], [], _TICK_SECONDS
            )
            if readable:
                self._read_group()
                self._commit_group()
            if writable:
                client.loop_write()
            if client.loop_misc() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return
        client.disconnect()

    def _read_group(self) -> None:
        client = self._client
        while len(self._group) < self._group_limit and self._group_bytes < _GROUP_BYTES:
            if client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return
            socket = client.socket()
            if socket is None or not select.select([socket], [], [], 0)[0]:
                return

    def _commit_group(self) -> None:
        group, acknowledge = self._group, self._acknowledge
        self._group, self._group_bytes, self._acknowledge = [], 0, []
        if group:
            self._take(group)
            self._failures, self._group_limit = 0, _GROUP_MESSAGES
        for mid in acknowledge:
            # A lost connection takes the acknowledgement with it: paho drops what it had queued.
            if self._client.socket() is None:
                return
            self._client.ack(mid, 1)
            self._metrics.acknowledged.inc()

    def _drop(self) -> None:
        self._group, self._group_bytes, self._acknowledge = [], 0, []
        if self._client.socket() is not None:
            self._client.disconnect()
        self.subscribed.clear()
        self._metrics.mqtt_up.set(0)

    def _failed(self, problem: str) -> None:
        self._failures += 1
        # Said once per problem, not at every try.
        if problem != self._problem:
            _log.warning("broker %s: %s; trying again", self._address, problem)
        self._problem = problem

    def _on_connect(
        self,
        client: Client,
        _data: Any,
        flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._failed(f"refused the connection: {reason}")
            client.disconnect()
            return
        self._connection += 1
        if not flags.session_present:
            _log.warning("broker %s: had no session for us, a new one starts now", self._address)
        client.subscribe([(TOPIC, 1), (_DROPPED_TOPIC, 0)])

    def _on_subscribe(
        self, client: Client, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        # Of the two only the first is vital; a broker may withhold its statistics.
        if reasons[0].is_failure:
            self._failed(f"refused the subscription to {TOPIC}: {reasons[0]}")
            client.disconnect()
            return
        _log.info("broker %s: subscribed to %s", self._address, TOPIC)
        self._problem = ""
        self.subscribed.set()
        self._metrics.mqtt_up.set(1)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        if message.qos:
            self._acknowledge.append(message.mid)
        if message.topic == _DROPPED_TOPIC:
            if message.payload.isdigit():
                self._metrics.broker_dropped.set(int(message.payload))
            return
        if message.retain:
            # A copy sent because we subscribed anew; the original came to our session when it was published.
            self._metrics.retained.inc()
            return
        self._group.append(
            Message(
                message.topic,
                bytes(message.payload),
                message.mid,
                message.dup,
                arrived_us=boottime_us(),
                connection=self._connection,
            )
        )
        self._group_bytes += len(message.payload)

    def _on_disconnect(
        self,
        _client: Client,
        _data: Any,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self.subscribed.clear()
        self._metrics.mqtt_up.set(0)
        if reason.is_failure:
            self._failed(f"connection lost: {reason}")
