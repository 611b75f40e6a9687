"""Messages are stamped when they arrive at a listener, not when the disk has time for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from forwarder_process import account
from paho.mqtt.client import MQTTMessage

from fieldring.gateway.accounts import Accounts
from fieldring.gateway.dead_letter import DeadLetters
from fieldring.gateway.group_commit import GroupCommit
from fieldring.gateway.inbox import Inbox, Message, Verdict, boottime_us
from fieldring.gateway.listener import Listener
from fieldring.gateway.metrics import Metrics
from fieldring.gateway.mqtt_server import MqttServer
from fieldring.wire import block

COUNT, EVERY_SECONDS, DISK_SECONDS = 12, 0.02, 0.1


class SlowSpool:
    """Takes its time for every record."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def append_many(self, payloads: Sequence[bytes]) -> list[None]:
        for _ in payloads:
            time.sleep(DISK_SECONDS)
        self.records += payloads
        return [None] * len(payloads)


def text_of(value: str) -> bytes:
    return len(value).to_bytes(2, "big") + value.encode()


def connect() -> bytes:
    body = b"\0\4MQTT\4\xc0\0\0" + text_of("a-1") + text_of("a") + text_of("p")
    return b"\x10" + bytes((len(body),)) + body


def publish(number: int) -> bytes:
    body = text_of("sensors/a/lp") + number.to_bytes(2, "big") + f"t,sensor=a value={number}".encode()
    return b"\x32" + bytes((len(body),)) + body


@pytest.fixture
def serve(metrics: Metrics, tmp_path: Path) -> Callable[..., None]:
    """A function that runs a client of a listener whose messages go to ``take``."""

    def run(
        take: Callable[[Sequence[Message]], Sequence[Verdict]],
        client: Callable[[int], Coroutine[Any, Any, None]],
    ) -> None:
        (tmp_path / "passwords").write_text(account("a", "p"))

        async def main() -> None:
            loop = asyncio.get_running_loop()
            commit = GroupCommit(take, loop=loop, metrics=metrics)
            listener = MqttServer(
                commit,
                Accounts(tmp_path / "passwords"),
                loop=loop,
                metrics=metrics,
                message_max_bytes=100_000,
                connections_max=10,
            )
            server = await loop.create_server(listener, "127.0.0.1", 0)
            try:
                async with asyncio.timeout(60):
                    await client(server.sockets[0].getsockname()[1])
            finally:
                server.close()
                await listener.close()
                commit.close()

        uvloop.run(main())

    return run


def test_messages_while_the_disk_is_slow(
    serve: Callable[..., None], metrics: Metrics, tmp_path: Path
) -> None:
    """Acknowledged messages without a time had one for the whole group, and so one key: 20 left 3 points."""
    spool = SlowSpool()
    inbox = Inbox(
        spool, dead_letters=DeadLetters(tmp_path, max_bytes=100_000, metrics=metrics), metrics=metrics
    )

    async def device(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(connect())
        await reader.readexactly(4)
        for number in range(1, COUNT + 1):
            writer.write(publish(number))
            await asyncio.sleep(EVERY_SECONDS)
        acknowledged = await reader.readexactly(4 * COUNT)
        assert acknowledged.count(b"\x40\2") == COUNT
        writer.close()

    serve(inbox.take, device)
    rows = [row for record in spool.records for row in block.decode(record).rows()]
    assert [row.values for row in rows] == [(float(number),) for number in range(1, COUNT + 1)]
    times = [row.time_ms for row in rows]
    steps = [later - earlier for earlier, later in pairwise(times)]
    # Less than the disk takes, and no longer the same.
    assert min(steps) > 0
    assert times[-1] - times[0] >= (COUNT - 1) * EVERY_SECONDS * 1000 * 0.9
    assert sorted(steps)[len(steps) // 2] < DISK_SECONDS * 1000


def test_connections_are_told_apart(serve: Callable[..., None]) -> None:
    """What comes again is known by it."""
    taken: list[Message] = []

    def take(messages: Sequence[Message]) -> list[Verdict]:
        taken.extend(messages)
        return [Verdict()] * len(messages)

    async def device(port: int) -> None:
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(connect() + publish(1) + publish(2))
            await reader.readexactly(12)
            writer.close()
            await asyncio.sleep(0.01)

    before = boottime_us()
    serve(take, device)
    connections = [message.connection for message in taken]
    assert connections[0] == connections[1] != connections[2] == connections[3]
    moments = [before, *(message.arrived_us for message in taken), boottime_us()]
    assert moments == sorted(moments)


def test_messages_that_mosquitto_had_kept(metrics: Metrics, tmp_path: Path) -> None:
    """They come at once when the forwarder is back: each has a time of its own, in their order."""
    spool = SlowSpool()
    inbox = Inbox(
        spool, dead_letters=DeadLetters(tmp_path, max_bytes=100_000, metrics=metrics), metrics=metrics
    )
    groups: list[Sequence[Message]] = []

    def take(messages: Sequence[Message]) -> None:
        groups.append(messages)
        inbox.take(messages)

    listener = Listener(
        take, host="127.0.0.1", port=1, client_id="f", username="", password="", metrics=metrics
    )
    flags: Any = SimpleNamespace(session_present=True)
    reason: Any = SimpleNamespace(is_failure=False)
    for first in (0, 20):
        listener._on_connect(listener._client, None, flags, reason, None)
        for number in range(first, first + 20):
            message = MQTTMessage(number + 1, b"sensors/a/lp")
            message.payload, message.qos = f"t,sensor=a value={number}".encode(), 1
            listener._on_message(listener._client, None, message)
        listener._commit_group()
    rows = [row for record in spool.records for row in block.decode(record).rows()]
    assert [row.values for row in rows] == [(float(number),) for number in range(40)]
    assert len({row.time_ms for row in rows}) == 40
    assert [len({message.connection for message in group}) for group in groups] == [1, 1]
    assert groups[0][0].connection != groups[1][0].connection
