"""MQTT packets: what devices send is read right, and nothing that is malformed gets past."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fieldring.gateway import mqtt_packets as packets
from fieldring.gateway.mqtt_packets import V5, V311, Connect, ProtocolError, Publish, Reason, Will


def lp(text: bytes) -> bytes:
    return len(text).to_bytes(2, "big") + text


def body_of(packet: bytes) -> tuple[int, int, bytes]:
    found = packets.frame(packet, 0, max_bytes=1 << 28)
    assert found is not None
    assert found.end == len(packet)
    return found.kind, found.flags, packet[found.start :]


class Wire(Client):
    """paho's own packet code, with what it sends in a list."""

    def __init__(self, protocol: int) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id="kerbside-1", protocol=protocol)
        self.sent: list[bytes] = []
        self._sock = object()  # type: ignore[assignment]

    def _packet_queue(self, _command, packet, *_arguments, **_options):  # type: ignore[no-untyped-def]
        self.sent.append(bytes(packet))
        return 0

    def __del__(self) -> None:
        """Nothing is open."""


CONNECT_311 = b"\0\4MQTT\4\xc2\0\x3c" + lp(b"id") + lp(b"kerbside") + lp(b"secret")


def test_connect_of_311() -> None:
    """Every field of a CONNECT of 3.1.1 with login."""
    assert packets.parse_connect(CONNECT_311) == Connect(V311, "id", True, 60, "kerbside", b"secret")


def test_connect_of_5_with_will_and_properties() -> None:
    """Properties of packet and will are told apart; what says nothing to us is passed over."""
    properties = (
        b"\x11\0\0\0\x0a" + b"\x21\0\x05" + b"\x27\0\0\x10\0" + b"\x17\0" + b"\x26" + lp(b"a") + lp(b"b")
    )
    will = b"\x05\x18\0\0\0\1" + lp(b"sensors/a/will") + lp(b"gone")
    data = (
        b"\0\4MQTT\5\xc4\0\0" + bytes([len(properties)]) + properties + lp(b"") + will + lp(b"u") + lp(b"p")
    )
    assert packets.parse_connect(data) == Connect(
        V5, "", False, 0, "u", b"p", will=Will("sensors/a/will", b"gone", 0), session_expiry_s=10,
        packet_max_bytes=4096, wants_problems=False,
    )  # fmt: skip


@pytest.mark.parametrize(("protocol", "version"), [(MQTTv311, V311), (MQTTv5, V5)], ids=["3.1.1", "5"])
def test_messages_of_paho(protocol: int, version: int) -> None:
    """What paho writes is what we read."""
    client = Wire(protocol)
    properties = None
    if version == V5:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = "application/senml+json"
        properties.UserProperty = ("a", "b")
    client._send_publish(7, b"sensors/a/lp", b"no2 value=1", 1, True, True, properties=properties)
    kind, flags, body = body_of(client.sent[-1])
    assert kind == packets.PUBLISH
    assert packets.parse_publish(flags, body, version) == Publish(
        "sensors/a/lp", b"no2 value=1", 1, 7, True, True
    )


MALFORMED_CONNECTS = {
    "empty": b"",
    "3.1": b"\0\6MQIsdp\3\xc2\0\x3c" + lp(b"id") + lp(b"u") + lp(b"p"),
    "version 6": b"\0\4MQTT\6\xc2\0\x3c" + lp(b"id") + lp(b"u") + lp(b"p"),
    "reserved flag": b"\0\4MQTT\4\xc3\0\x3c" + lp(b"id") + lp(b"u") + lp(b"p"),
    "will of QoS 3": b"\0\4MQTT\4\xde\0\x3c" + lp(b"id") + lp(b"t") + lp(b"m") + lp(b"u") + lp(b"p"),
    "will flags without will": b"\0\4MQTT\4\xca\0\x3c" + lp(b"id") + lp(b"u") + lp(b"p"),
    "will with a wildcard": b"\0\4MQTT\4\xc6\0\x3c" + lp(b"id") + lp(b"a/#") + lp(b"m") + lp(b"u") + lp(b"p"),
    "will without a topic": b"\0\4MQTT\4\xc6\0\x3c" + lp(b"id") + lp(b"") + lp(b"m") + lp(b"u") + lp(b"p"),
    "password without name": b"\0\4MQTT\4\x42\0\x3c" + lp(b"id") + lp(b"p"),
    "cut": CONNECT_311[:-1],
    "longer": CONNECT_311 + b"\0",
    "not UTF-8": b"\0\4MQTT\4\2\0\x3c" + lp(b"\xff"),
    "surrogate": b"\0\4MQTT\4\2\0\x3c" + lp(b"\xed\xa0\x80"),
    "NUL": b"\0\4MQTT\4\2\0\x3c" + lp(b"a\0b"),
    "property twice": b"\0\4MQTT\5\2\0\x3c\x06\x21\0\1\x21\0\1" + lp(b"id"),
    "property of another packet": b"\0\4MQTT\5\2\0\x3c\3\x23\0\1" + lp(b"id"),
    "receive maximum 0": b"\0\4MQTT\5\2\0\x3c\3\x21\0\0" + lp(b"id"),
    "flag property 2": b"\0\4MQTT\5\2\0\x3c\2\x17\2" + lp(b"id"),
    "properties too long": b"\0\4MQTT\5\2\0\x3c\x7f\x17\1" + lp(b"id"),
    "data without method": b"\0\4MQTT\5\2\0\x3c\4\x16" + lp(b"x") + lp(b"id"),
}


@pytest.mark.parametrize("case", MALFORMED_CONNECTS)
def test_malformed_connect(case: str) -> None:
    """None of these gets in."""
    with pytest.raises(ProtocolError):
        packets.parse_connect(MALFORMED_CONNECTS[case])


MALFORMED_PUBLISHES = {
    "QoS 3": (6, lp(b"t") + b"\0\1x", V311, Reason.MALFORMED),
    "dup of QoS 0": (8, lp(b"t") + b"x", V311, Reason.MALFORMED),
    "empty": (0, b"", V311, Reason.MALFORMED),
    "one byte": (0, b"\0", V311, Reason.MALFORMED),
    "topic cut": (0, b"\0\5ab", V311, Reason.MALFORMED),
    "id cut": (2, lp(b"t") + b"\0", V311, Reason.MALFORMED),
    "id 0": (2, lp(b"t") + b"\0\0x", V311, Reason.MALFORMED),
    "no topic": (0, lp(b"") + b"x", V311, Reason.MALFORMED),
    "no topic under 5": (0, lp(b"") + b"\0x", V5, Reason.PROTOCOL_ERROR),
    "plus": (0, lp(b"sensors/+/lp"), V311, Reason.TOPIC),
    "hash": (0, lp(b"sensors/#"), V311, Reason.TOPIC),
    "alias": (0, lp(b"t") + b"\3\x23\0\1x", V5, Reason.TOPIC_ALIAS),
    "no properties": (0, lp(b"t"), V5, Reason.MALFORMED),
    "properties too long": (0, lp(b"t") + b"\5\1\1", V5, Reason.MALFORMED),
    "topic not UTF-8": (0, lp(b"\xc3\x28"), V311, Reason.MALFORMED),
}


@pytest.mark.parametrize("case", MALFORMED_PUBLISHES)
def test_malformed_publish(case: str) -> None:
    """Each is refused with the reason that the standard names."""
    flags, body, version, reason = MALFORMED_PUBLISHES[case]
    with pytest.raises(ProtocolError) as caught:
        packets.parse_publish(flags, body, version)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", None),
        (b"\x30", None),
        (b"\x30\x80", None),
        (b"\x30\xff\xff\x7f", packets.Frame(3, 0, 4, 4 + 2_097_151)),
        (b"\xc0\x00", packets.Frame(12, 0, 2, 2)),
    ],
)
def test_frame(data: bytes, expected: packets.Frame | None) -> None:
    """A head that is not complete is no error."""
    assert packets.frame(data, 0, max_bytes=1 << 28) == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x00", Reason.MALFORMED),
        (b"\x20\x02\0\0", Reason.MALFORMED),
        (b"\x11\x00", Reason.MALFORMED),
        (b"\x80\x00", Reason.MALFORMED),
        (b"\x30\xff\xff\xff\xff", Reason.MALFORMED),
        (b"\x30\xff\x7f", Reason.TOO_LARGE),
    ],
    ids=["type 0", "server's packet", "flags of CONNECT", "flags of SUBSCRIBE", "five bytes", "too large"],
)
def test_impossible_frame(data: bytes, reason: int) -> None:
    """What cannot become a packet is refused by its head."""
    with pytest.raises(ProtocolError) as caught:
        packets.frame(data, 0, max_bytes=10_000)
    assert caught.value.reason == reason


def test_subscribe() -> None:
    """Filters are counted, so that each is refused."""
    assert packets.parse_subscribe(
        packets.SUBSCRIBE, b"\0\7" + lp(b"a/#") + b"\1" + lp(b"b") + b"\0", V311
    ) == (7, 2)
    assert packets.parse_subscribe(packets.UNSUBSCRIBE, b"\0\7\0" + lp(b"a"), V5) == (7, 1)
    assert packets.suback(7, 2, V311) == b"\x90\4\0\7\x80\x80"
    assert packets.suback(7, 2, V5) == b"\x90\5\0\7\0\x87\x87"
    with pytest.raises(ProtocolError):
        packets.parse_subscribe(packets.SUBSCRIBE, b"\0\7", V311)


def test_answers() -> None:
    """Bytes as the standards have them."""
    assert packets.connack(Reason.SUCCESS, V311, session_present=True) == b"\x20\2\1\0"
    assert packets.connack(Reason.BAD_LOGIN, V311, session_present=True) == b"\x20\2\0\4"
    assert packets.connack(Reason.BAD_LOGIN, V5) == b"\x20\3\0\x86\0"
    assert packets.puback(258, Reason.SUCCESS, V5) == b"\x40\2\1\2"
    assert packets.puback(1, Reason.PAYLOAD, V5, "why") == b"\x40\x0a\0\1\x99\6\x1f\0\3why"
    assert packets.puback(1, Reason.PAYLOAD, V311) == b"\x40\2\0\1"
    assert packets.disconnect(Reason.QUOTA, V311) == b""
    assert packets.disconnect(Reason.QUOTA, V5) == b"\xe0\2\x97\0"


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=80), version=st.sampled_from([V311, V5]), flags=st.integers(0, 15))
def test_no_bytes_break_a_parser(data: bytes, version: int, flags: int) -> None:
    """Whatever comes, a parser answers or says ProtocolError."""
    for parse in (
        lambda: packets.parse_connect(data),
        lambda: packets.parse_connect(b"\0\4MQTT" + bytes([version]) + data),
        lambda: packets.parse_publish(flags, data, version),
        lambda: packets.parse_subscribe(packets.SUBSCRIBE, data, version),
        lambda: packets.parse_subscribe(packets.UNSUBSCRIBE, data, version),
        lambda: packets.parse_disconnect(data, version),
        lambda: packets.parse_pubrel(data, version),
        lambda: packets.frame(data, 0, max_bytes=100),
    ):
        try:
            parse()
        except ProtocolError:
            continue
