"""The MQTT listener in this process, over a disk that stands still, is full, or notes what it is given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from forwarder_process import account

from fieldring.errors import SpoolFull
from fieldring.gateway.accounts import Accounts
from fieldring.gateway.group_commit import GroupCommit
from fieldring.gateway.inbox import Message, Verdict
from fieldring.gateway.metrics import Metrics
from fieldring.gateway.mqtt_server import MqttServer

DEVICES = ("a", "b", "c")
ACCEPTED = b"\x20\2\0\0"
PUBACK_7 = b"\x40\2\0\7"
GONE = b"online,sensor=a value=0"
NORMAL, WITH_WILL = b"\xe0\0", b"\xe0\2\4\0"


class Disk:
    """What ``GroupCommit`` hands groups to, in its thread."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.full = False
        self.taken: list[Message] = []

    def take(self, messages: Sequence[Message]) -> list[Verdict]:
        self.goes_on.wait(60)
        if self.full:
            raise SpoolFull("no room")
        self.taken += messages
        return [Verdict()] * len(messages)

    def of(self, device: str) -> list[bytes]:
        return [message.payload for message in self.taken if message.user == device]


class Client:
    """A device that writes bytes and reads bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def says(self, data: bytes, *, hears: bytes = b"", seconds: float = 10) -> None:
        self.writer.write(data)
        if hears:
            async with asyncio.timeout(seconds):
                assert await self.reader.readexactly(len(hears)) == hears

    async def hears_the_end(self) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.read()

    def vanish(self) -> None:
        self.writer.transport.abort()


class Listener:
    def __init__(self, directory: Path, disk: Disk, metrics: Metrics) -> None:
        (directory / "passwords").write_text("".join(account(name, "p") for name in DEVICES))
        self.passwords = directory / "passwords"
        loop = asyncio.get_running_loop()
        self.commit = GroupCommit(disk.take, loop=loop, metrics=metrics)
        self.server = MqttServer(
            self.commit,
            Accounts(self.passwords, check_interval_s=0),
            loop=loop,
            metrics=metrics,
            message_max_bytes=1_048_576,
            connections_max=100,
        )
        self.port = 0
        self.clients: list[Client] = []

    async def connect(self, name: str, **options: Any) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        client.writer.write(connect(name, **options))
        return client

    async def accepted(self, name: str, **options: Any) -> Client:
        client = await self.connect(name, **options)
        async with asyncio.timeout(10):
            head = await client.reader.readexactly(2)
            body = await client.reader.readexactly(head[1])
        assert (head[0], body[1]) == (0x20, 0)
        return client


@asynccontextmanager
async def listening(directory: Path, disk: Disk, metrics: Metrics) -> AsyncIterator[Listener]:
    listener = Listener(directory, disk, metrics)
    server = await asyncio.get_running_loop().create_server(listener.server, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        disk.goes_on.set()
        disk.full = False
        server.close()
        await listener.server.close()
        listener.commit.close()


async def until(condition: Callable[[], object], *, sweep: Callable[[], None] = lambda: None) -> None:
    async with asyncio.timeout(10):
        while not condition():
            sweep()
            await asyncio.sleep(0.02)


def text_of(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


def packet(head: int, body: bytes) -> bytes:
    length, size = b"", len(body)
    while True:
        size, low = size >> 7, size & 127
        length += bytes((low | 128 if size else low,))
        if not size:
            return bytes((head,)) + length + body


def expires(seconds: int) -> bytes:
    return b"\5\x11" + seconds.to_bytes(4, "big") if seconds else b"\0"


def connect(
    name: str,
    *,
    version: int = 4,
    client_id: str = "x",
    keepalive_s: int = 0,
    expiry_s: int = 0,
    will: tuple[str, bytes] | None = None,
    will_qos: int = 1,
    will_properties: bytes = b"",
) -> bytes:
    flags = 0xC2 | (4 | will_qos << 3 if will else 0)
    body = b"\0\4MQTT" + bytes((version, flags)) + keepalive_s.to_bytes(2, "big")
    body += (expires(expiry_s) if version == 5 else b"") + text_of(client_id)
    if will is not None:
        body += bytes((len(will_properties),)) + will_properties if version == 5 else b""
        body += text_of(will[0]) + text_of(will[1])
    return packet(0x10, body + text_of(name) + text_of("p"))


def publish(name: str, payload: bytes, *, mid: int = 0) -> bytes:
    number = mid.to_bytes(2, "big") if mid else b""
    return packet(0x32 if mid else 0x30, text_of(f"sensors/{name}/lp") + number + payload)


@pytest.fixture
def disk() -> Disk:
    return Disk()


Scenario = Callable[[Listener], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path, disk: Disk, metrics: Metrics) -> Callable[[Scenario], None]:
    """A function that runs a scenario with a listener."""

    async def whole(scenario: Scenario) -> None:
        async with listening(tmp_path, disk, metrics) as listener:
            try:
                await scenario(listener)
            finally:
                # Not every Python closes what a scenario leaves open before its loop ends.
                for client in listener.clients:
                    client.vanish()
                await asyncio.sleep(0.01)

    return lambda scenario: uvloop.run(whole(scenario))


# -- a disk that stands still --------------------------------------------------------------------


def test_nobody_is_read_while_the_disk_stands_still(play: Callable[[Scenario], None], disk: Disk) -> None:
    """Who sent while others filled the budget was buffered without end, and stuck when the disk was back."""

    async def scenario(at: Listener) -> None:
        a, b, c = [await at.accepted(name) for name in DEVICES]
        disk.goes_on.clear()
        for mid in range(1, 91):
            await a.says(publish("a", b"x" * 100_000, mid=mid))
        await until(lambda: at.commit.waiting_bytes > 8_388_608)
        await c.says(publish("c", b"m,sensor=c value=1 1", mid=7))
        flood = publish("b", b"y" * 60_000) * 16

        async def send_on() -> None:
            for _ in range(100):
                b.writer.write(flood)
                await b.writer.drain()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send_on(), 3)
        assert at.server.partial_bytes < 1_048_576
        b.vanish()
        disk.goes_on.set()
        await until(lambda: disk.of("c"), sweep=at.server.sweep)
        await c.says(b"", hears=PUBACK_7)
        a.vanish()

    play(scenario)


def test_what_all_hold_while_the_disk_stands_still(
    play: Callable[[Scenario], None], disk: Disk, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One read of each connection is held, but all of them together only within the budget."""
    monkeypatch.setattr("fieldring.gateway.mqtt_server._WAITING_MAX_BYTES", 0)
    monkeypatch.setattr("fieldring.gateway.mqtt_server._PARTIAL_FREE_BYTES", 1_000)
    monkeypatch.setattr("fieldring.gateway.mqtt_server._PARTIAL_MAX_BYTES", 100_000)

    async def scenario(at: Listener) -> None:
        first = await at.accepted("a")
        others = [await at.accepted("b", client_id=f"{n}") for n in range(10)]
        disk.goes_on.clear()
        await first.says(publish("a", b"x", mid=1))
        await until(lambda: at.commit.waiting_bytes)
        for other in others:
            await other.says(publish("b", b"y" * 30_000) * 2)
        refused = metrics.device_refused.labels("memory")._value
        await until(lambda: refused.get() > 0)
        assert at.server.partial_bytes < 200_000
        for client in (first, *others):
            client.vanish()

    play(scenario)


# -- wills ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 5])
def test_will_of_who_vanishes(play: Callable[[Scenario], None], disk: Disk, version: int) -> None:
    """Wills were accepted and never published: it goes to the disk as a message of its client."""

    async def scenario(at: Listener) -> None:
        a = await at.accepted("a", version=version, client_id="x", will=("sensors/a/lp", GONE), will_qos=1)
        await asyncio.sleep(0.05)
        assert disk.taken == []
        a.vanish()
        await until(lambda: disk.taken)

    play(scenario)
    (message,) = disk.taken
    assert (message.topic, message.payload, message.user) == ("sensors/a/lp", GONE, "a")
    assert (message.client, message.mid, message.qos) == ("a\0x", 0, 1)


@pytest.mark.parametrize(
    ("version", "last", "published"),
    [(4, NORMAL, False), (5, NORMAL, False), (5, WITH_WILL, True), (5, b"\xe0\2\x80\0", True)],
    ids=["3.1.1", "5", "5 with will", "5 unspecified error"],
)
def test_disconnect_takes_the_will_back(
    play: Callable[[Scenario], None], disk: Disk, version: int, last: bytes, published: bool
) -> None:
    """Unless it says that the will is to be published, or that something was wrong."""

    async def scenario(at: Listener) -> None:
        a = await at.accepted("a", version=version, will=("sensors/a/lp", GONE))
        await a.says(last)
        assert await a.hears_the_end() == b""
        await until(lambda: at.commit.idle and not at.server.connections)
        assert at.server._will_bytes == 0

    play(scenario)
    assert [GONE] * published == disk.of("a")


@pytest.mark.parametrize(
    ("begun", "ended", "taken"),
    [
        (0xFFFF_FFFF, 60, True),
        (60, 0xFFFF_FFFF, True),
        (60, 0, True),
        (0, 60, False),
        (0, 0xFFFF_FFFF, False),
    ],
)
def test_disconnect_that_changes_how_long_the_session_lasts(
    play: Callable[[Scenario], None], disk: Disk, begun: int, ended: int, taken: bool
) -> None:
    """It may, unless there is none; one without end was taken for none, and the will was published."""

    async def scenario(at: Listener) -> None:
        a = await at.accepted("a", version=5, expiry_s=begun, will=("sensors/a/lp", GONE))
        await a.says(packet(0xE0, b"\0" + (expires(ended) if ended else b"\5\x11\0\0\0\0")))
        assert (await a.hears_the_end() == b"") == taken
        await until(lambda: at.commit.idle and not at.server.connections)
        if taken and ended:
            (until_s,) = at.server._sessions.values()
            assert (until_s is None) == (ended == 0xFFFF_FFFF)

    play(scenario)
    assert ([] if taken else [GONE]) == disk.of("a")


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    "fault", [b"\xf0\0", b"\0\0", publish("+", b"x")], ids=["AUTH", "type 0", "wildcard"]
)
def test_will_after_a_protocol_error(
    play: Callable[[Scenario], None], disk: Disk, version: int, fault: bytes
) -> None:
    """The listener ends the connection, so the client did not take its will back."""

    async def scenario(at: Listener) -> None:
        a = await at.accepted("a", version=version, will=("sensors/a/lp", GONE))
        await a.says(fault)
        await a.hears_the_end()
        await until(lambda: disk.taken)

    play(scenario)
    assert disk.of("a") == [GONE]


def test_will_of_a_silent_client(play: Callable[[Scenario], None], disk: Disk) -> None:
    """Half as long again as its keepalive, then it counts as gone."""

    async def scenario(at: Listener) -> None:
        a = await at.accepted("a", keepalive_s=1, will=("sensors/a/lp", GONE))
        await until(lambda: disk.taken, sweep=at.server.sweep)
        assert await a.hears_the_end() == b""

    play(scenario)
    assert disk.of("a") == [GONE]


def test_will_of_who_is_taken_over(play: Callable[[Scenario], None], disk: Disk) -> None:
    """The old connection's will comes before what the new one sends, and the new one's stays with it."""

    async def scenario(at: Listener) -> None:
        old = await at.accepted("a", version=5, will=("sensors/a/lp", GONE))
        new = await at.connect("a", will=("sensors/a/lp", b"another"))
        await new.says(publish("a", b"m,sensor=a value=1", mid=7), hears=ACCEPTED + PUBACK_7)
        assert await old.hears_the_end() == b"\xe0\2\x8e\0"
        assert disk.of("a") == [GONE, b"m,sensor=a value=1"]
        await new.says(NORMAL)
        await new.hears_the_end()

    play(scenario)
    assert disk.of("a") == [GONE, b"m,sensor=a value=1"]


def test_wills_when_the_forwarder_stops(play: Callable[[Scenario], None], disk: Disk) -> None:
    """They are on the disk before it ends."""

    async def scenario(at: Listener) -> None:
        clients = [await at.accepted(name, will=(f"sensors/{name}/lp", GONE)) for name in DEVICES]
        await at.server.close()
        for client in clients:
            await client.hears_the_end()

    play(scenario)
    assert sorted(message.user for message in disk.taken) == list(DEVICES)


def test_will_while_the_spool_is_full(play: Callable[[Scenario], None], disk: Disk) -> None:
    """Nobody would send it again, so the listener does."""

    async def scenario(at: Listener) -> None:
        a = await at.accepted("a", will=("sensors/a/lp", GONE))
        disk.full = True
        a.vanish()
        await until(lambda: at.commit.refusing)
        disk.full = False
        await until(lambda: disk.taken, sweep=at.server.sweep)
        await until(lambda: at.server._will_bytes == 0)

    play(scenario)
    assert disk.of("a") == [GONE]


@pytest.mark.parametrize(
    ("topic", "will_qos", "reason"),
    [
        ("sensors/b/lp", 1, 0x87),
        ("sensors/aa/lp", 1, 0x87),
        ("sensors/a/csv", 1, 0x90),
        ("status/a", 1, 0x90),
        ("sensors/a/#", 1, 0x90),
        ("sensors/a/lp", 2, 0x9B),
    ],
)
def test_will_that_cannot_be_published(
    play: Callable[[Scenario], None], disk: Disk, topic: str, will_qos: int, reason: int
) -> None:
    """Under 5 its CONNECT is refused as its PUBLISH would be; nothing is published."""

    async def scenario(at: Listener) -> None:
        a = await at.connect("a", version=5, will=(topic, GONE), will_qos=will_qos)
        assert await a.hears_the_end() == bytes((0x20, 3, 0, reason, 0))

    play(scenario)
    assert disk.taken == []


def test_will_for_a_foreign_topic_under_311(play: Callable[[Scenario], None], disk: Disk) -> None:
    """A message to it would be acknowledged and judged by the inbox, and so is the will."""

    async def scenario(at: Listener) -> None:
        a = await at.accepted("a", will=("sensors/b/lp", GONE))
        a.vanish()
        await until(lambda: disk.taken)

    play(scenario)
    assert [(message.topic, message.user) for message in disk.taken] == [("sensors/b/lp", "a")]


def test_will_properties(play: Callable[[Scenario], None], disk: Disk) -> None:
    """They are tolerated; a delay counts as none."""
    properties = b"\x18\0\0\x0e\x10" + b"\x01\1" + b"\x02\0\0\0\5" + b"\x03" + text_of("text/plain")
    properties += b"\x26" + text_of("k") + text_of("v")

    async def scenario(at: Listener) -> None:
        a = await at.accepted("a", version=5, will=("sensors/a/lp", GONE), will_properties=properties)
        a.vanish()
        await until(lambda: disk.taken)

    play(scenario)
    assert disk.of("a") == [GONE]


def test_will_of_a_withdrawn_account(play: Callable[[Scenario], None], disk: Disk) -> None:
    """Nothing of it is taken any more."""

    async def scenario(at: Listener) -> None:
        a = await at.accepted("a", will=("sensors/a/lp", GONE))
        b = await at.accepted("b", will=("sensors/b/lp", GONE))
        at.passwords.write_text(account("b", "another"))
        await until(lambda: not at.server.connections, sweep=at.server.sweep)
        for client in (a, b):
            assert await client.hears_the_end() == b""

    play(scenario)
    assert [message.user for message in disk.taken] == ["b"]


def test_memory_for_wills_is_bounded(
    play: Callable[[Scenario], None], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it a CONNECT with a will is refused for now; those of devices that are gone give way first."""
    monkeypatch.setattr("fieldring.gateway.mqtt_server._WILLS_MAX_BYTES", 4_000)

    async def scenario(at: Listener) -> None:
        will = ("sensors/a/lp", b"x" * 1_000)
        first = await at.accepted("a", client_id="1", will=will)
        second = await at.accepted("a", client_id="2", will=will)
        third = await at.connect("a", client_id="3", will=will)
        assert await third.hears_the_end() == b"\x20\2\0\3"
        disk.full = True
        first.vanish()
        await until(lambda: at.server._wills_refused)
        await until(lambda: not at.commit.refusing)
        fourth = await at.accepted("a", client_id="4", will=will)
        assert not at.server._wills_refused
        disk.full = False
        for client in (second, fourth):
            await client.says(NORMAL)
            await client.hears_the_end()
        await until(lambda: at.server._will_bytes == 0)

    play(scenario)
    assert disk.taken == []
