"""The devices' own listener: MQTT 3.1.1 and 5 for those who publish, a PUBACK only after the fdatasync.

What it does with what it does not offer: SUBSCRIBE is refused by code. QoS 2 is not offered under 5 (the
CONNACK says so, a message sent all the same ends the connection with 0x9B); under 3.1.1, which has no
way to refuse it, it is taken with the promise of QoS 1 and the handshake of 2. Retain flags and the
properties of messages are taken and have no effect. Topic aliases are not offered. 3.1 is refused.

A will goes the way of any message of its client as soon as the connection ends without a DISCONNECT that
takes it back, also where the listener ends it; a will delay counts as 0. It is in memory only until it is
durable, so a forwarder that is killed loses it. One that its client could not publish is refused with the
CONNECT under 5; 3.1.1 knows no refusal of a message, so there it becomes a dead letter as that would.

Memory is bounded whatever clients do: per connection by the packet limit and the messages not yet
acknowledged, together by budgets; a client that does not read its answers is not read either.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from fieldring.gateway import mqtt_packets as packets
from fieldring.gateway.accounts import Accounts
from fieldring.gateway.group_commit import GroupCommit
from fieldring.gateway.inbox import Message, Verdict, boottime_us
from fieldring.gateway.metrics import Metrics
from fieldring.gateway.mqtt_packets import V5, ProtocolError, Reason, Will

__all__ = ["IN_FLIGHT", "MqttServer"]

IN_FLIGHT = 100
"""Messages of one connection that are not acknowledged yet; beyond them it is not read."""

_LOGIN_SECONDS = 10.0
_LOGIN_MAX_BYTES = 65_536
_FAILED_LOGIN_SECONDS = 0.5
_STALLED_SECONDS = 30.0
_WAITING_MAX_BYTES = 8_388_608
_PARTIAL_MAX_BYTES = 16_777_216
_PARTIAL_FREE_BYTES = 65_536
_WRITE_HIGH_BYTES = 65_536
_WILLS_MAX_BYTES = 4_194_304
_WILL_BYTES = 512
"""What a will costs beside its topic and payload, about."""

_SESSIONS = 10_000
_CLOSE_SECONDS = 2.0

_log = logging.getLogger(__name__)
_VERDICTS = {
    "": Reason.SUCCESS,
    "acl": Reason.NOT_AUTHORIZED,
    "sensor": Reason.NOT_AUTHORIZED,
    "topic": Reason.TOPIC,
}
_numbers = itertools.count(1)


class MqttServer:
    """All connections of devices. Everything runs on the loop, except computing passwords."""

    def __init__(
        self,
        commit: GroupCommit,
        accounts: Accounts,
        *,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        message_max_bytes: int,
        connections_max: int,
    ) -> None:
        self.commit = commit
        self.accounts = accounts
        self.loop = loop
        self.metrics = metrics
        self.packet_max_bytes = message_max_bytes + 1024
        self.partial_bytes = 0
        self.closing = False
        self._connections_max = connections_max
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="login")
        self.connections: set[_Connection] = set()
        self._clients: dict[tuple[str, str], _Connection] = {}
        # Until when a session lasts; None while its client is connected, or without end.
        self._sessions: OrderedDict[tuple[str, str], float | None] = OrderedDict()
        self._wills_refused: deque[_LastMessage] = deque()
        self._will_bytes = 0

    def __call__(self) -> asyncio.Protocol:
        """For ``create_server``."""
        return _Connection(self)

    def admits(self) -> bool:
        return not self.closing and len(self.connections) < self._connections_max

    async def verify(self, name: str, password: bytes) -> bool:
        return await self.loop.run_in_executor(self._executor, self.accounts.verify, name, password)

    def enter(self, connection: _Connection, client: tuple[str, str], *, clean: bool, lasts: bool) -> bool:
        """Begin or resume a session. Whether there was one; who held the name before is thrown out."""
        before = self._clients.get(client)
        if before is not None and before is not connection:
            before.end(Reason.TAKEN_OVER)
        self._clients[client] = connection
        until = self._sessions.pop(client, 0.0)
        present = not clean and (until is None or time.monotonic() < until)
        if lasts:
            self._sessions[client] = None
            if len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)
        return present

    def leave(self, connection: _Connection, client: tuple[str, str], *, lasts_s: int | None) -> None:
        """The session of ``client`` lasts so long without it; None is without end."""
        if self._clients.get(client) is not connection:
            return
        del self._clients[client]
        if client in self._sessions:
            if lasts_s == 0:
                del self._sessions[client]
            elif lasts_s is not None:
                self._sessions[client] = time.monotonic() + lasts_s

    def hold_will(self, will: Will) -> bool:
        """Whether there is room for it, until ``drop_will`` or until it is kept."""
        size = _cost(will)
        while self._will_bytes + size > _WILLS_MAX_BYTES and self._wills_refused:
            # Devices that are there go before those that have gone.
            given_up = self._wills_refused.popleft()
            _log.error("a will for %s is given up: the spool has no room for it", given_up.will.topic)
            self.drop_will(given_up.will)
        if self._will_bytes + size > _WILLS_MAX_BYTES:
            return False
        self._will_bytes += size
        return True

    def drop_will(self, will: Will) -> None:
        self._will_bytes -= _cost(will)

    def publish_will(self, will: Will, *, source: str, device: str) -> None:
        """As if its client had sent it."""
        message = Message(
            will.topic,
            will.payload,
            client=source,
            user=device,
            qos=will.qos,
            arrived_us=boottime_us(),
        )
        self.commit.add(message, _LastMessage(self, will, message))

    def will_refused(self, last: _LastMessage) -> None:
        """Nobody sends it again, so it is tried again from here."""
        self._wills_refused.append(last)

    def sweep(self) -> None:
        """About once a second: end who is silent, stalled, or no longer allowed."""
        while self._wills_refused and not self.commit.refusing:
            last = self._wills_refused.popleft()
            self.commit.add(last.message, last)
        now = self.loop.time()
        allowed: dict[str, bytes] = {}
        for connection in tuple(self.connections):
            name = connection.username
            if name and name not in allowed:
                allowed[name] = self.accounts.fingerprint(name)
            connection.sweep(now, allowed.get(name, b""))

    async def close(self) -> None:
        """End all connections, after what they sent is acknowledged."""
        self.closing = True
        end = self.loop.time() + _CLOSE_SECONDS
        while not self.commit.idle and self.loop.time() < end:
            await asyncio.sleep(0.01)
        for connection in tuple(self.connections):
            connection.end(Reason.SHUTTING_DOWN)
        while self.connections and self.loop.time() < end + _CLOSE_SECONDS:
            await asyncio.sleep(0.01)
        for connection in tuple(self.connections):
            connection.abort()
        while not self.commit.idle and self.loop.time() < end + 1.5 * _CLOSE_SECONDS:
            await asyncio.sleep(0.01)  # what is left are wills
        if self._wills_refused:
            _log.error("%d wills are lost: the spool had no room for them", len(self._wills_refused))
        self._executor.shutdown(wait=False, cancel_futures=True)


class _LastMessage:
    """A will on its way to the spool. Its client has gone, so there is nobody to answer."""

    def __init__(self, server: MqttServer, will: Will, message: Message) -> None:
        self._server = server
        self.will = will
        self.message = message

    def kept(self, verdicts: Sequence[tuple[Message, Verdict]]) -> None:
        self._server.drop_will(self.will)

    def not_kept(self, reason: str) -> None:
        self._server.will_refused(self)


class _Connection(asyncio.Protocol):
    """One device. States: not logged in, logging in, logged in, ended."""

    def __init__(self, server: MqttServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._version = 0
        self._keepalive_s = 0.0
        self._client = ("", "")
        self._source = ""
        self._lasts_s: int | None = 0
        self._wants_problems = True
        self._answer_max_bytes = 0
        self._login: asyncio.Task[None] | None = None
        self._will: Will | None = None
        self._fingerprint = b""
        self._uncommitted = 0
        self._paused = False
        self._unread = False
        self._ended = False
        self._began = self._heard = server.loop.time()
        self._peer = "?"
        self.username = ""

    # -- the transport's side ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._server.admits():
            self._server.metrics.device_refused.labels("connections").inc()
            self._ended = True
            self._transport.abort()
            return
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if peer else "?"
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        _keep_alive(transport.get_extra_info("socket"))
        self._server.connections.add(self)
        self._server.metrics.device_connections.set(len(self._server.connections))

    def connection_lost(self, error: Exception | None) -> None:
        server = self._server
        self._ended = True
        if self._login is not None:
            self._login.cancel()
        self._publish_will()
        self._hold(0)
        self._buffer = bytearray()
        server.connections.discard(self)
        server.metrics.device_connections.set(len(server.connections))
        if self.username:
            server.leave(self, self._client, lasts_s=self._lasts_s)

    def pause_writing(self) -> None:
        self._unread = True
        self._reading()

    def resume_writing(self) -> None:
        self._unread = False
        self._go_on()

    def eof_received(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._heard = self._server.loop.time()
        held = len(self._buffer)
        self._buffer += data
        self._hold(len(self._buffer), before=held)
        if self._stopped():
            self._reading()
        else:
            self._parse()
        # Also of who is not parsed now: what came with one read is held.
        if (
            len(self._buffer) > _PARTIAL_FREE_BYTES
            and self._server.partial_bytes > _PARTIAL_MAX_BYTES
            and not self._ended
        ):
            self._server.metrics.device_refused.labels("memory").inc()
            self.end(Reason.QUOTA)

    def _hold(self, size: int, *, before: int | None = None) -> None:
        self._server.partial_bytes += size - (len(self._buffer) if before is None else before)

    def _stopped(self) -> bool:
        """Whether nothing more may be taken from this client now."""
        return (
            self._ended
            or self._unread
            or self._login is not None
            or self._uncommitted >= IN_FLIGHT
            or self._server.commit.waiting_bytes > _WAITING_MAX_BYTES
        )

    def _reading(self) -> None:
        if self._transport is None or self._ended or self._transport.is_closing():
            return
        stop = self._stopped()
        if stop != self._paused:
            self._paused = stop
            if stop:
                self._transport.pause_reading()
            else:
                self._heard = self._server.loop.time()
                self._transport.resume_reading()

    def _go_on(self) -> None:
        if self._buffer and not self._stopped():
            self._parse()
        else:
            self._reading()

    def _parse(self) -> None:
        buffer, server = self._buffer, self._server
        limit = server.packet_max_bytes if self.username else min(_LOGIN_MAX_BYTES, server.packet_max_bytes)
        before, position = len(buffer), 0
        try:
            while not self._stopped():
                found = packets.frame(buffer, position, max_bytes=limit)
                if found is None or found.end > before:
                    break
                with memoryview(buffer) as view:
                    body = bytes(view[found.start : found.end])
                position = found.end
                self._packet(found.kind, found.flags, body)
        except ProtocolError as error:
            server.metrics.device_refused.labels("protocol").inc()
            _log.info("%s (%s): %s", self._peer, self.username or "not logged in", error)
            if not self.username:
                self._refuse(error.reason, text="")
            else:
                self.end(error.reason)
        if self._ended:
            return
        if position:
            del buffer[:position]
            self._hold(len(buffer), before=before)
        self._reading()

    def _packet(self, kind: int, flags: int, body: bytes) -> None:
        if kind == packets.PUBLISH and self.username:
            self._publish(flags, body)
        elif kind == packets.CONNECT and not self.username:
            self._connect(body)
        elif not self.username:
            raise ProtocolError("the first packet is no CONNECT", reason=Reason.PROTOCOL_ERROR)
        elif kind == packets.PINGREQ:
            if body:
                raise ProtocolError("a PINGREQ with a body")
            self._write(packets.PINGRESP)
        elif kind == packets.PUBREL:
            # A message is durable before its PUBREC, so there is nothing left to do for any id.
            self._write(packets.pubcomp(packets.parse_pubrel(body, self._version)))
        elif kind in (packets.SUBSCRIBE, packets.UNSUBSCRIBE):
            mid, count = packets.parse_subscribe(kind, body, self._version)
            answer = packets.suback if kind == packets.SUBSCRIBE else packets.unsuback
            self._server.metrics.device_refused.labels("subscribe").inc()
            self._write(answer(mid, count, self._version))
        elif kind == packets.DISCONNECT:
            reason, expiry = packets.parse_disconnect(body, self._version)
            if expiry is not None:
                if self._lasts_s == 0 and expiry:
                    raise ProtocolError("a session cannot begin at its end", reason=Reason.PROTOCOL_ERROR)
                self._lasts_s = _seconds(expiry)
            if reason == Reason.SUCCESS:
                self._drop_will()
            self._close()
        else:
            raise ProtocolError(f"packet type {kind} at this point", reason=Reason.PROTOCOL_ERROR)

    # -- logging in --------------------------------------------------------------------------

    def _connect(self, body: bytes) -> None:
        try:
            connect = packets.parse_connect(body)
        except ProtocolError:
            if body[:7] == b"\0\4MQTT\5":
                self._version = V5  # which is told why
            raise
        self._version = connect.version
        if connect.auth_method is not None:
            self._refuse(Reason.AUTH_METHOD, text="authentication method")
        elif not connect.client_id and connect.version != V5 and not connect.clean:
            self._refuse(Reason.CLIENT_ID, text="no client id, but a session")
        elif not connect.username or connect.password is None:
            self._refuse(Reason.NOT_AUTHORIZED, text="anonymous")
        elif self._server.commit.refusing:
            self._refuse(Reason.UNAVAILABLE, text="the spool is full")
        else:
            self._login = self._server.loop.create_task(self._log_in(connect))

    async def _log_in(self, connect: packets.Connect) -> None:
        server = self._server
        name = connect.username or ""
        known = await server.verify(name, connect.password or b"")
        if self._ended:
            return
        if not known:
            await asyncio.sleep(_FAILED_LOGIN_SECONDS)
            self._refuse(Reason.BAD_LOGIN, text=f"wrong password or unknown device {name[:80]!r}")
            return
        if connect.will is not None and not self._takes_will(connect.will, connect.version, device=name):
            return
        client_id = connect.client_id
        assigned = None
        if not client_id:
            client_id = assigned = f"fieldring-{secrets.token_hex(8)}"
        if connect.version == V5:
            self._lasts_s = _seconds(connect.session_expiry_s)
        else:
            self._lasts_s = 0 if connect.clean else None
        # The name belongs to the account: no device can take over what another one began.
        self._client = (name, client_id)
        self._source = f"{name}\0{client_id}"
        self._will = connect.will
        self.username = name
        self._fingerprint = server.accounts.fingerprint(name)
        self._keepalive_s = connect.keepalive_s * 1.5
        self._wants_problems = connect.wants_problems
        self._answer_max_bytes = connect.packet_max_bytes
        present = server.enter(self, self._client, clean=connect.clean, lasts=self._lasts_s != 0)
        server.metrics.device_logins.inc()
        self._write(
            packets.connack(
                Reason.SUCCESS,
                connect.version,
                session_present=present,
                receive_maximum=IN_FLIGHT,
                packet_max_bytes=server.packet_max_bytes,
                assigned_id=assigned,
            )
        )
        self._login = None
        self._go_on()

    def _takes_will(self, will: Will, version: int, *, device: str) -> bool:
        """Whether the client may come with it; says so where it may not."""
        reason = _refusal_of(will, device=device) if version == V5 else Reason.SUCCESS
        if reason == Reason.SUCCESS and not self._server.hold_will(will):
            reason = Reason.QUOTA
        if reason != Reason.SUCCESS:
            self._refuse(reason, text=f"a will of {device} for {will.topic[:80]!r}: 0x{reason:02x}")
        return reason == Reason.SUCCESS

    def _refuse(self, reason: int, *, text: str) -> None:
        """A CONNACK that says no, then the end."""
        if text:
            self._server.metrics.device_refused.labels("login").inc()
            _log.info("%s: refused: %s", self._peer, text)
        if self._version or reason == Reason.UNSUPPORTED_VERSION:
            self._write(packets.connack(reason, self._version or packets.V311))
        self._close()

    # -- messages ----------------------------------------------------------------------------

    def _publish(self, flags: int, body: bytes) -> None:
        topic, payload, qos, mid, dup, _ = packets.parse_publish(flags, body, self._version)
        if qos == 2 and self._version == V5:
            raise ProtocolError("QoS 2 is not offered", reason=Reason.QOS)
        self._uncommitted += 1
        message = Message(
            topic, payload, mid, dup, self._source, self.username, qos, boottime_us(), self._began
        )
        self._server.commit.add(message, self)

    def kept(self, verdicts: Sequence[tuple[Message, Verdict]]) -> None:
        if self._ended:
            return
        self._uncommitted -= len(verdicts)
        out = []
        for message, verdict in verdicts:
            if message.qos == 1:
                out.append(self._acknowledgement(message.mid, verdict))
            elif message.qos == 2:
                out.append(packets.pubrec(message.mid))
        if out:
            self._server.metrics.acknowledged.inc(len(out))
            self._write(b"".join(out))
        self._go_on()

    def _acknowledgement(self, mid: int, verdict: Verdict) -> bytes:
        if not verdict.reason or self._version != V5:
            return packets.puback(mid, Reason.SUCCESS, self._version)
        reason = _VERDICTS.get(verdict.reason, Reason.PAYLOAD)
        text = verdict.detail[:200] if self._wants_problems else ""
        answer = packets.puback(mid, reason, V5, text)
        return answer if len(answer) <= self._answer_max_bytes else packets.puback(mid, reason, V5)

    def not_kept(self, reason: str) -> None:
        self.end(Reason.QUOTA)

    # -- the end -----------------------------------------------------------------------------

    def _drop_will(self) -> None:
        will, self._will = self._will, None
        if will is not None:
            self._server.drop_will(will)

    def _publish_will(self) -> None:
        """Once, when the connection is given up: its end may come long after, of who has gone."""
        will, self._will = self._will, None
        if will is not None:
            _log.info("%s (%s): its will is published", self._peer, self.username)
            self._server.publish_will(will, source=self._source, device=self.username)

    def sweep(self, now: float, fingerprint: bytes) -> None:
        if self._ended:
            if self._transport is not None and now - self._heard > _STALLED_SECONDS:
                self.abort()
            return
        if not self.username:
            if now - self._began > _LOGIN_SECONDS:
                self._server.metrics.device_refused.labels("login_timeout").inc()
                self.abort()
        elif fingerprint != self._fingerprint:
            _log.info("%s: the account %s was changed or withdrawn", self._peer, self.username)
            if not fingerprint:
                self._drop_will()  # no message of a device without an account is taken
            self.end(Reason.NOT_AUTHORIZED)
        elif self._unread:
            if now - self._heard > max(_STALLED_SECONDS, self._keepalive_s):
                self.abort()
        else:
            if self._paused or self._buffer:
                self._go_on()
            if self._paused or self._ended:
                return  # who is not read cannot be heard
            if (self._keepalive_s and now - self._heard > self._keepalive_s) or (
                self._buffer and now - self._heard > _STALLED_SECONDS
            ):
                self._server.metrics.device_refused.labels("silent").inc()
                self.end(Reason.KEEP_ALIVE)

    def end(self, reason: int) -> None:
        """Say why, where the version can, and close."""
        if self._ended:
            return
        if self._version:
            self._write(packets.disconnect(reason, self._version))
        self._close()

    def abort(self) -> None:
        self._ended = True
        self._publish_will()
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        self._ended = True
        self._publish_will()
        if self._transport is not None:
            if self._unread:
                self._transport.abort()
            else:
                self._transport.close()

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _cost(will: Will) -> int:
    return len(will.topic) + len(will.payload) + _WILL_BYTES


def _seconds(expiry_s: int) -> int | None:
    """How long a session lasts; None: for ever."""
    return None if expiry_s == 0xFFFF_FFFF else expiry_s


def _refusal_of(will: Will, *, device: str) -> int:
    """What a PUBLISH like it would be answered. The inbox judges it too, when it is published."""
    levels = will.topic.split("/")
    if len(levels) != 3 or levels[0] != "sensors" or not levels[1]:
        return Reason.TOPIC
    if levels[1] != device:
        return Reason.NOT_AUTHORIZED
    if levels[2] not in ("senml", "lp"):
        return Reason.TOPIC
    return Reason.QOS if will.qos == 2 else Reason.SUCCESS


def _keep_alive(sock: socket.socket | None) -> None:
    """A device that lost its power is noticed, even if it wanted no keepalive of MQTT's."""
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000)
