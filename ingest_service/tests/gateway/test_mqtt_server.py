"""The forwarder's own MQTT listener with real clients over TLS: what it promises, and what it refuses."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forwarder_process import Gateway, make_certificate, points
from paho.mqtt.client import Client, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fieldring.errors import ConfigurationError
from fieldring.gateway.forwarder import Forwarder
from fieldring.settings import Settings

pytestmark = [
    pytest.mark.integration,  # a forwarder in a process of its own
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]

MOSQUITTO_PUB = shutil.which("mosquitto_pub")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for all tests that leave it as it was."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway"))
    gateway.start()
    yield gateway
    gateway.close()


@pytest.fixture
def running(gateway: Gateway) -> Gateway:
    gateway.start()
    return gateway


class Device:
    """Publishes at QoS 1 and remembers what was acknowledged, and how."""

    def __init__(self, gateway: Gateway, name: str, *, protocol: int = MQTTv311, **options: Any) -> None:
        self.name = name
        self.answers: dict[int, Any] = {}
        self.connects: list[tuple[Any, Any]] = []
        self.disconnects: list[Any] = []
        self.subscribed: list[Any] = []
        client = Client(CallbackAPIVersion.VERSION2, protocol=protocol, **options)
        client.username_pw_set(name, f"password of {name}")
        client.tls_set_context(gateway.context())
        client.max_inflight_messages_set(50)
        client.reconnect_delay_set(1, 1)
        client.on_publish = lambda _c, _d, mid, reason, _p: self.answers.__setitem__(mid, reason)
        client.on_connect = lambda _c, _d, flags, reason, _p: self.connects.append((flags, reason))
        client.on_disconnect = lambda _c, _d, _f, reason, _p: self.disconnects.append(reason)
        client.on_subscribe = lambda _c, _d, _m, reasons, _p: self.subscribed.append(reasons)
        self.client = client
        self.port = gateway.ports["mqtt"]

    def connect(self, **options: Any) -> Device:
        self.client.connect("127.0.0.1", self.port, **options)
        self.client.loop_start()
        return self

    def publish(self, text: str, *, topic: str = "", qos: int = 1) -> int:
        return int(self.client.publish(topic or f"sensors/{self.name}/lp", text, qos=qos).mid)

    def measure(self, number: int, *, qos: int = 1) -> int:
        return self.publish(f"no2,sensor={self.name} value={number} {number * 1_000_000}", qos=qos)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def device(gateway: Gateway) -> Iterator[Callable[..., Device]]:
    """A function that makes a device, not connected yet; ``at`` another gateway than the test's own."""
    devices: list[Device] = []

    def make(name: str, *, at: Gateway = gateway, **options: Any) -> Device:
        devices.append(Device(at, name, **options))
        return devices[-1]

    yield make
    for one in devices:
        one.close()


def raw(gateway: Gateway) -> ssl.SSLSocket:
    """A connection without a client's good manners."""
    return gateway.context().wrap_socket(
        socket.create_connection(("127.0.0.1", gateway.ports["mqtt"]), timeout=20),
        server_hostname="127.0.0.1",
    )


def text_of(value: str) -> bytes:
    return len(value).to_bytes(2, "big") + value.encode()


def connect_packet(name: str, *, client_id: str = "x", keepalive_s: int = 0, clean: bool = True) -> bytes:
    body = b"\0\4MQTT\4" + bytes((0xC0 | clean << 1,)) + keepalive_s.to_bytes(2, "big")
    body += text_of(client_id) + text_of(name) + text_of(f"password of {name}")
    return b"\x10" + bytes((len(body),)) + body


def publish_packet(name: str, number: int, *, mid: int, dup: bool = False, stamped: bool = True) -> bytes:
    payload = f"no2,sensor={name} value={number}" + (f" {number * 1_000_000}" if stamped else "")
    body = text_of(f"sensors/{name}/lp") + mid.to_bytes(2, "big") + payload.encode()
    return bytes((0x32 | dup << 3, len(body))) + body


@pytest.mark.parametrize("protocol", [MQTTv311, MQTTv5], ids=["3.1.1", "5"])
def test_acknowledged_is_spooled(
    running: Gateway, device: Callable[..., Device], eventually: Callable[..., None], protocol: int
) -> None:
    """kill -9 right after the last PUBACK: every message is in the spool."""
    a = device("a", protocol=protocol).connect()
    for number in range(1, 301):
        a.measure(number)
    eventually(lambda: len(a.answers) == 300)
    running.end(signal.SIGKILL)
    assert running.spooled() == {("a", number, float(number)) for number in range(1, 301)}


def test_from_device_to_upstream(
    gateway: Gateway,
    start_upstream: Callable[..., Any],
    device: Callable[..., Device],
    eventually: Callable[..., None],
) -> None:
    """A message arrives upstream; no secret stands in the log; the end is orderly."""
    upstream = start_upstream(204)
    gateway.upstream_url = upstream.url
    gateway.start()
    device("a").connect().measure(1)
    eventually(lambda: points(request.body for request in upstream.requests) == {("a", 1, 1.0)})
    assert gateway.end() == 0
    assert "a-secret-token" not in gateway.log()
    assert "password of" not in gateway.log()


def test_killed_three_times_while_messages_come(
    running: Gateway, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    """Devices come back by themselves and send again what was not acknowledged: nothing is missing."""
    a = device("a", client_id="a-1").connect()
    for start in range(1, 1501, 500):
        for number in range(start, start + 500):
            a.measure(number)
        eventually(lambda start=start: len(a.answers) > start + 50, seconds=30)
        running.end(signal.SIGKILL)
        running.start()
    eventually(lambda: len(a.answers) == 1500, seconds=60)
    running.end()
    assert running.spooled() == {("a", number, float(number)) for number in range(1, 1501)}


@pytest.mark.parametrize("protocol", [MQTTv311, MQTTv5], ids=["3.1.1", "5"])
@pytest.mark.parametrize(("name", "password"), [("a", "wrong"), ("nobody", "password of a"), ("", "")])
def test_wrong_login(
    shared: Gateway,
    device: Callable[..., Device],
    eventually: Callable[..., None],
    name: str,
    password: str,
    protocol: int,
) -> None:
    """Who is not who he says gets a refusal, not a connection."""
    before = shared.metric("device_logins_total")
    a = device("a", at=shared, protocol=protocol)
    a.client.username_pw_set(name or None, password or None)
    a.connect()
    eventually(lambda: a.connects)
    assert a.connects[0][1].is_failure
    assert shared.metric("device_logins_total") == before


def test_device_speaks_for_itself_only(
    running: Gateway, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    """Another's topic and another's payload are refused by code under 5, and kept with the reason."""
    a = device("a", protocol=MQTTv5).connect()
    refused = {
        a.publish("no2,sensor=b value=1 1000000", topic="sensors/b/lp"): "Not authorized",
        a.publish("no2,sensor=b value=2 1000000"): "Not authorized",
        a.publish("junk"): "Payload format invalid",
        a.publish("no2,sensor=a value=3 3000000\nno2 junk"): "Payload format invalid",
        a.publish("no2,sensor=a value=1", topic="sensors/a/csv"): "Topic name invalid",
        a.publish("no2,sensor=aa value=1", topic="sensors/aa/lp"): "Not authorized",
        a.publish("x", topic="other/a/lp"): "Topic name invalid",
    }
    taken = a.measure(9)
    eventually(lambda: len(a.answers) == 8)
    assert {mid: str(a.answers[mid]) for mid in refused} == refused
    assert str(a.answers[taken]) == "Success"
    running.end()
    assert running.spooled() == {("a", 3, 3.0), ("a", 9, 9.0)}
    assert [letter["reason"] for letter in running.dead_letters()] == [
        "acl", "sensor", "lines", "lines", "topic", "acl", "topic",
    ]  # fmt: skip


def test_refused_message_of_311_is_acknowledged(
    running: Gateway, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    """3.1.1 has no other word: the message is taken from the device and kept as a dead letter."""
    a = device("a").connect()
    a.publish("no2,sensor=b value=1 1000000", topic="sensors/b/lp")
    eventually(lambda: len(a.answers) == 1)
    assert [letter["reason"] for letter in running.dead_letters()] == ["acl"]


@pytest.mark.parametrize("protocol", [MQTTv311, MQTTv5], ids=["3.1.1", "5"])
def test_nobody_reads(
    shared: Gateway, device: Callable[..., Device], eventually: Callable[..., None], protocol: int
) -> None:
    """A subscription is refused by code; the connection stays."""
    a = device("a", at=shared, protocol=protocol).connect()
    eventually(lambda: a.connects)
    a.client.subscribe([("sensors/#", 1), ("$SYS/#", 0)])
    eventually(lambda: a.subscribed)
    assert [reason.value for reason in a.subscribed[0]] == [0x87 if protocol == MQTTv5 else 0x80] * 2
    a.measure(1)
    eventually(lambda: a.answers)


def test_qos_0_and_2_of_311(
    running: Gateway, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    """QoS 0 is taken; QoS 2 is taken with its handshake."""
    a = device("a").connect()
    a.measure(1, qos=0)
    two = a.measure(2, qos=2)
    eventually(lambda: two in a.answers)
    running.end()
    assert running.spooled() == {("a", 1, 1.0), ("a", 2, 2.0)}


def test_qos_2_of_5_is_refused(
    shared: Gateway, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    """The CONNACK offers QoS 1; who sends 2 all the same is told why the connection ends."""
    with raw(shared) as connection:
        body = b"\0\4MQTT\5\xc2\0\0\0" + text_of("x") + text_of("a") + text_of("password of a")
        connection.sendall(b"\x10" + bytes((len(body),)) + body)
        answer = connection.recv(100)
        assert answer[:1] == b"\x20"
        assert answer[3] == 0
        assert b"\x24\x01" in answer
        connection.sendall(b"\x34\x06" + text_of("t") + b"\0\1\0")
        assert connection.recv(100) == b"\xe0\2\x9b\0"
        assert connection.recv(100) == b""


def test_retain_has_no_effect(
    running: Gateway, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    """A message with the retain flag is taken like any other."""
    a = device("a").connect()
    a.client.publish("sensors/a/lp", "no2,sensor=a value=1 1000000", qos=1, retain=True)
    eventually(lambda: a.answers)
    running.end()
    assert running.spooled() == {("a", 1, 1.0)}


@pytest.mark.parametrize("protocol", [MQTTv311, MQTTv5], ids=["3.1.1", "5"])
def test_will(
    running: Gateway, device: Callable[..., Device], eventually: Callable[..., None], protocol: int
) -> None:
    """It was accepted and never published: it is spooled when its device is cut off, not when it leaves."""
    for name in ("a", "b"):
        one = device(name, protocol=protocol)
        will = f"online,sensor={name} value=0 666000000"
        one.client.will_set(f"sensors/{name}/lp", will, qos=1, retain=True)
        one.connect()
        one.measure(1)
        eventually(lambda one=one: one.answers)
        if name == "b":
            one.close()
            continue
        sock = one.client.socket()
        assert sock is not None
        sock.shutdown(socket.SHUT_RDWR)
        eventually(lambda one=one: one.disconnects)
        one.close()
    eventually(lambda: running.metric("points_spooled_total") == 3)
    running.end()
    assert running.spooled() == {("a", 1, 1.0), ("b", 1, 1.0), ("a", 666, 0.0)}


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("sensors/b/lp", "online,sensor=b value=0", "acl"),
        ("sensors/a/lp", "online,sensor=b value=0", "sensor"),
        ("sensors/a/lp", "offline", "lines"),
        ("status/a", "offline", "topic"),
    ],
)
def test_will_that_is_no_message_of_its_device(
    running: Gateway, eventually: Callable[..., None], topic: str, payload: str, reason: str
) -> None:
    """It goes where such a message goes."""
    body = b"\0\4MQTT\4\xce\0\0" + text_of("x") + text_of(topic) + text_of(payload)
    body += text_of("a") + text_of("password of a")
    with raw(running) as connection:
        connection.sendall(b"\x10" + bytes((len(body),)) + body)
        assert _read(connection, 4) == b"\x20\2\0\0"
    eventually(running.dead_letters)
    assert [(letter["reason"], letter["topic"]) for letter in running.dead_letters()] == [(reason, topic)]
    running.end()
    assert running.spooled() == set()


@pytest.mark.parametrize("protocol", [MQTTv311, MQTTv5], ids=["3.1.1", "5"])
def test_session_present(
    shared: Gateway, device: Callable[..., Device], eventually: Callable[..., None], protocol: int
) -> None:
    """A session that was asked for is there the next time; a clean start ends it."""

    def connect(*, clean: bool) -> bool:
        options: dict[str, Any] = {"client_id": "a-1", "protocol": protocol}
        connecting: dict[str, Any] = {}
        if protocol == MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 600
            connecting = {"clean_start": clean, "properties": properties}
        else:
            options["clean_session"] = clean
        a = device("a", at=shared, **options).connect(**connecting)
        eventually(lambda: a.connects)
        a.close()
        assert not a.connects[0][1].is_failure
        return bool(a.connects[0][0].session_present)

    assert [connect(clean=clean) for clean in (False, False, True)] == [False, True, False]


def test_names_of_clients_belong_to_accounts(
    shared: Gateway, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    """The same client id throws out the same device only, which is told so."""
    first = device("a", at=shared, client_id="same", protocol=MQTTv5).connect()
    eventually(lambda: first.connects)
    other = device("b", at=shared, client_id="same", protocol=MQTTv5).connect()
    eventually(lambda: other.connects)
    first.measure(1)
    eventually(lambda: first.answers)
    assert first.disconnects == []
    second = device("a", at=shared, client_id="same", protocol=MQTTv5).connect()
    eventually(lambda: second.connects)
    eventually(lambda: first.disconnects)
    assert str(first.disconnects[0]) == "Session taken over"


def test_redelivered_after_lost_acknowledgement(running: Gateway) -> None:
    """A message without a time that comes again with DUP on a new connection is not a new point."""
    for dup in (False, True):
        with raw(running) as connection:
            connection.sendall(
                connect_packet("a", clean=False) + publish_packet("a", 5, mid=7, dup=dup, stamped=False)
            )
            assert _read(connection, 8)[4:] == b"\x40\2\0\7"
    running.end()
    assert len(running.spooled()) == 1


def _read(connection: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            break
        data += part
    return data


def test_everything_in_one_segment_and_byte_by_byte(running: Gateway) -> None:
    """Packets are found wherever the network cuts them."""
    packets = connect_packet("a") + b"".join(publish_packet("a", n, mid=n) for n in range(1, 20)) + b"\xc0\0"
    expected = 4 + 19 * 4 + 2
    with raw(running) as connection:
        connection.sendall(packets)
        assert len(_read(connection, expected)) == expected
    with raw(running) as connection:
        for byte in packets:
            connection.sendall(bytes((byte,)))
        assert len(_read(connection, expected)) == expected
    running.end()
    assert {value for _, _, value in running.spooled()} == set(map(float, range(1, 20)))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x10\x0c\0\6MQIsdp\3\2\0\0\0\0",
        b"\x30\x05\0\1tx",
        b"\x10\xff\xff\xff\x7f",
        b"\0" * 100,
    ],
    ids=["HTTP", "3.1", "PUBLISH first", "huge CONNECT", "zeros"],
)
def test_who_does_not_log_in_is_let_go(shared: Gateway, data: bytes) -> None:
    """The connection ends at once, the listener goes on."""
    with raw(shared) as connection:
        connection.sendall(data)
        answer = _read(connection, 100)
        assert answer == (b"\x20\2\0\1" if b"MQIsdp" in data else b"")
    with raw(shared) as connection:
        connection.sendall(connect_packet("a"))
        assert _read(connection, 4) == b"\x20\2\0\0"


def test_message_over_the_limit(
    gateway: Gateway, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    """It costs the connection, with the reason under 5; the limit stands in the CONNACK."""
    gateway.start(device_message_max_bytes=10_000)
    a = device("a", protocol=MQTTv5).connect()
    eventually(lambda: a.connects)
    with raw(gateway) as connection:
        connection.sendall(connect_packet("a", client_id="y") + b"\x30\xff\xff\x03")
        assert _read(connection, 100) == b"\x20\2\0\0"
    assert a.disconnects == []


def test_silent_client_is_let_go(shared: Gateway) -> None:
    """Half as long again as its keepalive, then the connection ends; one that pings stays."""
    with raw(shared) as silent, raw(shared) as pinging:
        for connection in (silent, pinging):
            connection.sendall(connect_packet("a", client_id=str(id(connection)), keepalive_s=2))
            assert _read(connection, 4) == b"\x20\2\0\0"
        silent.settimeout(0.5)
        end = time.monotonic() + 30
        while True:
            pinging.sendall(b"\xc0\0")
            assert _read(pinging, 2) == b"\xd0\0"
            with contextlib.suppress(TimeoutError):
                assert silent.recv(10) == b""
                break
            assert time.monotonic() < end


def test_slow_and_deaf_clients_beside_a_fast_one(
    shared: Gateway, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    """Two hundred connections that stand half-way or do not read cost nobody else anything."""
    with contextlib.ExitStack() as stack:
        for number in range(200):
            connection = stack.enter_context(raw(shared))
            packet = connect_packet("b", client_id=f"half-{number}")
            if number % 2:
                connection.sendall(packet[:-3])
            else:
                connection.sendall(packet + publish_packet("b", number, mid=1)[:-3])
        deaf = stack.enter_context(raw(shared))
        deaf.settimeout(0.5)
        deaf.sendall(connect_packet("c"))
        with contextlib.suppress(TimeoutError):
            for _ in range(200):
                deaf.sendall(b"\xc0\0" * 10_000)
        a = device("a", at=shared).connect()
        for number in range(1, 101):
            a.measure(number)
        eventually(lambda: len(a.answers) == 100, seconds=60)
        pid = shared.process.pid if shared.process else 0
        status = Path(f"/proc/{pid}/status").read_text()
        resident_kib = int(status.split("VmRSS:")[1].split()[0])
        assert resident_kib < 200 * 1024


def test_too_many_connections(
    gateway: Gateway, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    """Beyond the limit a connection is closed at once; those that are there stay."""
    gateway.start(device_connections_max=2)
    a = device("a").connect()
    eventually(lambda: a.connects)
    with raw(gateway) as second:
        second.sendall(connect_packet("b"))
        assert _read(second, 4) == b"\x20\2\0\0"
        with contextlib.suppress(OSError), raw(gateway) as third:
            third.sendall(connect_packet("c"))
            assert _read(third, 4) == b""
    a.measure(1)
    eventually(lambda: a.answers)


@pytest.mark.timeout(300)
def test_full_spool_acknowledges_nothing_that_it_does_not_keep(
    gateway: Gateway,
    start_upstream: Callable[..., Any],
    device: Callable[..., Device],
    eventually: Callable[..., None],
) -> None:
    """Devices keep what does not fit and send it again; when there is room, all of it arrives."""
    room = {"spool_segment_bytes": 1_048_576, "spool_max_bytes": 2_097_152}
    gateway.start(**room)
    text = "x" * 30_000
    a = device("a", client_id="a-1", clean_session=False).connect()
    for number in range(1, 101):
        a.publish(f'note,sensor=a text="{text}",value={number} {number * 1_000_000}')
    eventually(lambda: gateway.metric("spool_refusals_total") > 0, seconds=30)
    acknowledged = len(a.answers)
    assert acknowledged < 100
    upstream = start_upstream(204)
    gateway.end()
    gateway.upstream_url = upstream.url
    gateway.start(**room)
    # It is turned away until there is room; on a busy machine that takes its time.
    eventually(lambda: len(a.answers) == 100, seconds=130)
    eventually(lambda: len(points(r.body for r in upstream.requests)) == 100, seconds=60)


def test_new_password_counts_without_a_restart(
    running: Gateway, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    """A device whose account changed is thrown out; the others are not touched."""
    a = device("a", protocol=MQTTv5).connect()
    b = device("b", protocol=MQTTv5).connect()
    eventually(lambda: a.connects and b.connects)
    text = (running.directory / "passwords").read_text()
    running.set_passwords({"a": "another one"})
    new = (running.directory / "passwords").read_text()
    (running.directory / "passwords").write_text(
        new + "".join(line + "\n" for line in text.splitlines() if not line.startswith("a:"))
    )
    eventually(lambda: a.disconnects)
    assert str(a.disconnects[0]) == "Not authorized"
    assert b.disconnects == []
    again = device("a")
    again.client.username_pw_set("a", "another one")
    again.connect()
    eventually(lambda: again.connects)
    assert not again.connects[0][1].is_failure


def test_new_certificate_without_a_restart(running: Gateway, eventually: Callable[..., None]) -> None:
    """The next handshake gets it; one that is broken is not served."""
    address = ("127.0.0.1", running.ports["mqtt"])
    before = ssl.get_server_certificate(address)
    (running.directory / "host.pem").write_text("broken")
    eventually(lambda: "new certificate is not served" in running.log())
    assert ssl.get_server_certificate(address) == before
    make_certificate(running.directory / "host.pem", "renewed")
    eventually(lambda: ssl.get_server_certificate(address) != before)


@pytest.mark.integration
@pytest.mark.skipif(MOSQUITTO_PUB is None, reason="needs mosquitto_pub: apt-get install mosquitto-clients")
@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
@pytest.mark.parametrize("qos", ["0", "1"])
def test_mosquittos_client(shared: Gateway, version: str, qos: str, eventually: Callable[..., None]) -> None:
    """mosquitto_pub as the README shows it, many messages over one connection."""
    before = shared.metric("points_spooled_total")
    lines = "".join(f"no2,sensor=a value={n} {n * 1_000_000}\n" for n in range(1, 51))
    command = [
        str(MOSQUITTO_PUB), "--cafile", str(shared.directory / "ca.pem"), "-h", "127.0.0.1",
        "-p", str(shared.ports["mqtt"]), "-u", "a", "-P", "password of a", "-q", qos, "-V", version,
        "-t", "sensors/a/lp", "-l",
    ]  # fmt: skip
    result = subprocess.run(command, input=lines, text=True, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    eventually(lambda: shared.metric("points_spooled_total") == before + 50)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"device_listener": "both"}, "must be forwarder or mosquitto"),
        ({"device_passwords_file": ""}, "DEVICE_PASSWORDS_FILE is not set"),
        ({"device_mqtt_host": ""}, "passwords would travel in clear text"),
        ({"device_http_port": 1, "device_http_host": "192.0.2.1"}, "DEVICE_HTTP_HOST to 127.0.0.1"),
        ({"device_certificate_file": "/nonexistent"}, "is no key with its certificate"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, settings: dict[str, Any], text: str) -> None:
    """Each is refused at the start with its name."""
    (tmp_path / "token").write_text("x")
    (tmp_path / "passwords").write_text("")
    good: dict[str, Any] = {
        "gateway_name": "gw",
        "listen_port": 0,
        "device_mqtt_host": "127.0.0.1",
        "device_passwords_file": str(tmp_path / "passwords"),
        "upstream_urls": ("http://127.0.0.1:1",),
        "upstream_token_file": str(tmp_path / "token"),
        "spool_dir": str(tmp_path / "spool"),
        "dead_letter_dir": str(tmp_path / "dead"),
    }
    with pytest.raises(ConfigurationError, match=text):
        Forwarder(Settings(**(good | settings)))
