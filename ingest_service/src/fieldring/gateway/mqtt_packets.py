"""MQTT packets of a publish-only server, 3.1.1 and 5: bytes ⇄ values, no I/O, no state.

Only what devices send is parsed (CONNECT, PUBLISH, PUBREL, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT; PINGREQ has
no body) and only what they need is written. Everything that the standards call malformed is refused
with the reason code that MQTT 5 has for it, under 3.1.1 the connection is closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "AUTH",
    "CONNECT",
    "DISCONNECT",
    "PINGREQ",
    "PINGRESP",
    "PUBLISH",
    "PUBREL",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "V5",
    "V311",
    "Connect",
    "Frame",
    "ProtocolError",
    "Publish",
    "Reason",
    "Will",
    "connack",
    "disconnect",
    "frame",
    "parse_connect",
    "parse_disconnect",
    "parse_publish",
    "parse_pubrel",
    "parse_subscribe",
    "puback",
    "pubcomp",
    "pubrec",
    "suback",
    "unsuback",
]

V311 = 4
V5 = 5

CONNECT, PUBLISH, PUBREL, SUBSCRIBE, UNSUBSCRIBE = 1, 3, 6, 8, 10
PINGREQ, DISCONNECT, AUTH = 12, 14, 15
_KNOWN = frozenset({CONNECT, PUBLISH, PUBREL, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT, AUTH})
PINGRESP = b"\xd0\x00"


class Reason:
    """Reason codes of MQTT 5 that are used here."""

    SUCCESS = 0x00
    NO_SUBSCRIPTION = 0x11
    MALFORMED = 0x81
    PROTOCOL_ERROR = 0x82
    UNSUPPORTED_VERSION = 0x84
    CLIENT_ID = 0x85
    BAD_LOGIN = 0x86
    NOT_AUTHORIZED = 0x87
    UNAVAILABLE = 0x88
    BUSY = 0x89
    SHUTTING_DOWN = 0x8B
    AUTH_METHOD = 0x8C
    KEEP_ALIVE = 0x8D
    TAKEN_OVER = 0x8E
    TOPIC = 0x90
    TOPIC_ALIAS = 0x94
    TOO_LARGE = 0x95
    QUOTA = 0x97
    PAYLOAD = 0x99
    QOS = 0x9B


_CONNACK_311 = {
    Reason.SUCCESS: 0,
    Reason.UNSUPPORTED_VERSION: 1,
    Reason.CLIENT_ID: 2,
    Reason.UNAVAILABLE: 3,
    Reason.BUSY: 3,
    Reason.QUOTA: 3,
    Reason.BAD_LOGIN: 4,
    Reason.NOT_AUTHORIZED: 5,
}


class ProtocolError(Exception):
    """The peer broke the protocol; ``reason`` is what MQTT 5 calls it."""

    def __init__(self, text: str, reason: int = Reason.MALFORMED) -> None:
        super().__init__(text)
        self.reason = reason


class Frame(NamedTuple):
    """Where a packet lies in a buffer."""

    kind: int
    flags: int
    start: int
    end: int


class Will(NamedTuple):
    """A message for when its client goes without saying so. Its properties say nothing to us."""

    topic: str
    payload: bytes
    qos: int


@dataclass(frozen=True, slots=True)
class Connect:
    version: int
    client_id: str
    clean: bool
    keepalive_s: int
    username: str | None
    password: bytes | None
    will: Will | None = None
    session_expiry_s: int = 0
    packet_max_bytes: int = 268_435_460
    wants_problems: bool = True
    auth_method: str | None = None


class Publish(NamedTuple):
    topic: str
    payload: bytes
    qos: int
    mid: int
    dup: bool
    retain: bool


def frame(data: bytes | bytearray, position: int, *, max_bytes: int) -> Frame | None:
    """The packet that begins at ``position``; its end may lie behind ``data``. None: its head is cut.

    Raises:
        ProtocolError: a type or length that cannot be, or a packet over ``max_bytes``.
    """
    available = len(data) - position
    if available < 1:
        return None
    head = data[position]
    kind, flags = head >> 4, head & 15
    if kind not in _KNOWN or (kind != PUBLISH and flags != (2 if kind in (6, 8, 10) else 0)):
        raise ProtocolError(f"a packet begins with 0x{head:02x}")
    length = shift = 0
    for index in range(position + 1, position + 5):
        if index >= len(data):
            return None
        byte = data[index]
        length |= (byte & 127) << shift
        if byte < 128:
            if index - position + 1 + length > max_bytes:
                raise ProtocolError(
                    f"a packet of {length} bytes, the limit is {max_bytes}", reason=Reason.TOO_LARGE
                )
            return Frame(kind, flags, index + 1, index + 1 + length)
        shift += 7
    raise ProtocolError("a length of more than four bytes")


class _Body:
    """Reads the fields of a packet in their order."""

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.end = len(data)

    def byte(self) -> int:
        if self.position >= self.end:
            raise ProtocolError("a packet ends too early")
        value = self.data[self.position]
        self.position += 1
        return value

    def number(self, size: int) -> int:
        return int.from_bytes(self.raw(size), "big")

    def raw(self, size: int) -> bytes:
        end = self.position + size
        if end > self.end:
            raise ProtocolError("a packet ends too early")
        value = self.data[self.position : end]
        self.position = end
        return value

    def binary(self) -> bytes:
        return self.raw(self.number(2))

    def text(self) -> str:
        return _text(self.binary())

    def variable(self) -> int:
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ProtocolError("a number of more than four bytes")

    def rest(self) -> bytes:
        return self.raw(self.end - self.position)

    def finish(self) -> None:
        if self.position != self.end:
            raise ProtocolError("a packet is longer than its fields")


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("a text that is not UTF-8") from None
    if "\0" in text:
        raise ProtocolError("a text with a NUL in it")
    return text


# Identifier -> how its value is written: b byte, h two bytes, i four, v variable, s text, r binary, p pair.
_PROPERTIES = {
    0x01: "b", 0x02: "i", 0x03: "s", 0x08: "s", 0x09: "r", 0x0B: "v", 0x11: "i", 0x12: "s", 0x13: "h",
    0x15: "s", 0x16: "r", 0x17: "b", 0x18: "i", 0x19: "b", 0x1A: "s", 0x1C: "s", 0x1F: "s", 0x21: "h",
    0x22: "h", 0x23: "h", 0x24: "b", 0x25: "b", 0x26: "p", 0x27: "i", 0x28: "b", 0x29: "b", 0x2A: "b",
}  # fmt: skip
_SESSION_EXPIRY, _AUTH_METHOD, _AUTH_DATA, _WANTS_PROBLEMS, _WANTS_RESPONSE = 0x11, 0x15, 0x16, 0x17, 0x19
_RECEIVE_MAXIMUM, _ALIAS_MAXIMUM, _ALIAS, _PACKET_MAXIMUM, _USER = 0x21, 0x22, 0x23, 0x27, 0x26
_OF_CONNECT = frozenset({0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27})
_OF_WILL = frozenset({0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26})
_OF_PUBLISH = frozenset({0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26})
_OF_SUBSCRIBE = frozenset({0x0B, 0x26})
_OF_UNSUBSCRIBE = frozenset({0x26})
_OF_ACKNOWLEDGEMENT = frozenset({0x1F, 0x26})
_OF_DISCONNECT = frozenset({0x11, 0x1C, 0x1F, 0x26})


def _properties(body: _Body, allowed: frozenset[int]) -> dict[int, int | str | bytes]:
    length = body.variable()
    end = body.position + length
    if end > body.end:
        raise ProtocolError("properties are longer than their packet")
    found: dict[int, int | str | bytes] = {}
    whole, body.end = body.end, end
    while body.position < end:
        name = body.variable()
        if name not in allowed:
            raise ProtocolError(f"property 0x{name:02x} has no place here", reason=Reason.PROTOCOL_ERROR)
        value: int | str | bytes
        match _PROPERTIES[name]:
            case "b":
                value = body.byte()
                if name in (0x01, 0x17, 0x19) and value > 1:
                    raise ProtocolError(
                        f"property 0x{name:02x} is {value}, not 0 or 1", reason=Reason.PROTOCOL_ERROR
                    )
            case "h":
                value = body.number(2)
            case "i":
                value = body.number(4)
            case "v":
                value = body.variable()
            case "s":
                value = body.text()
            case "r":
                value = body.binary()
            case _:
                body.text()
                body.text()
                continue  # user properties may repeat, and say nothing to us
        if name in found:
            raise ProtocolError(f"property 0x{name:02x} stands twice", reason=Reason.PROTOCOL_ERROR)
        if name in (_RECEIVE_MAXIMUM, _PACKET_MAXIMUM) and not value:
            raise ProtocolError(f"property 0x{name:02x} is 0", reason=Reason.PROTOCOL_ERROR)
        found[name] = value
    body.end = whole
    return found


def parse_connect(data: bytes) -> Connect:
    """Body of a CONNECT.

    Raises:
        ProtocolError: with UNSUPPORTED_VERSION where another version is asked for.
    """
    body = _Body(data)
    protocol = body.binary()
    version = body.byte()
    if protocol != b"MQTT" or version not in (V311, V5):
        raise ProtocolError(
            f"protocol {protocol[:20]!r} version {version}", reason=Reason.UNSUPPORTED_VERSION
        )
    flags = body.byte()
    has_will, will_qos = bool(flags & 4), flags >> 3 & 3
    has_password, has_username = bool(flags & 64), bool(flags & 128)
    if flags & 1 or will_qos == 3 or (not has_will and flags & 0b111000):
        raise ProtocolError(f"connect flags 0x{flags:02x}")
    if version == V311 and has_password and not has_username:
        raise ProtocolError("a password without a user name")
    keepalive_s = body.number(2)
    properties = _properties(body, _OF_CONNECT) if version == V5 else {}
    if _AUTH_DATA in properties and _AUTH_METHOD not in properties:
        raise ProtocolError("authentication data without a method", reason=Reason.PROTOCOL_ERROR)
    client_id = body.text()
    will = None
    if has_will:
        if version == V5:
            _properties(body, _OF_WILL)
        will = Will(body.text(), body.binary(), will_qos)
        if not will.topic or "+" in will.topic or "#" in will.topic:
            raise ProtocolError(f"a will for the topic {will.topic[:80]!r}", reason=Reason.TOPIC)
    username = body.text() if has_username else None
    password = body.binary() if has_password else None
    body.finish()
    expiry = properties.get(_SESSION_EXPIRY, 0)
    packet_maximum = properties.get(_PACKET_MAXIMUM, 268_435_460)
    method = properties.get(_AUTH_METHOD)
    assert isinstance(expiry, int)
    assert isinstance(packet_maximum, int)
    assert method is None or isinstance(method, str)
    return Connect(
        version=version,
        client_id=client_id,
        clean=bool(flags & 2),
        keepalive_s=keepalive_s,
        username=username,
        password=password,
        will=will,
        session_expiry_s=expiry,
        packet_max_bytes=packet_maximum,
        wants_problems=properties.get(_WANTS_PROBLEMS, 1) == 1,
        auth_method=method,
    )


def parse_publish(flags: int, data: bytes, version: int) -> Publish:
    """Body of a PUBLISH. This is the path of every message: no field is read twice."""
    qos = flags >> 1 & 3
    if qos == 3 or (qos == 0 and flags & 8):
        raise ProtocolError(f"publish flags {flags}")
    position = 2 + (data[0] << 8 | data[1]) if len(data) >= 2 else 3
    mid = 0
    if position + (2 if qos else 0) > len(data):
        raise ProtocolError("a packet ends too early")
    topic = _text(data[2:position])
    if qos:
        mid = data[position] << 8 | data[position + 1]
        position += 2
        if not mid:
            raise ProtocolError("a message id of 0")
    if version == V5:
        if position < len(data) and not data[position]:
            position += 1
        else:
            body = _Body(data)
            body.position = position
            if _ALIAS in _properties(body, _OF_PUBLISH):
                raise ProtocolError("topic aliases are not offered", reason=Reason.TOPIC_ALIAS)
            position = body.position
    if not topic:
        raise ProtocolError(
            "a message without a topic", reason=Reason.PROTOCOL_ERROR if version == V5 else Reason.MALFORMED
        )
    if "+" in topic or "#" in topic:
        raise ProtocolError(f"the topic {topic[:80]!r} has wildcards", reason=Reason.TOPIC)
    return Publish(topic, data[position:], qos, mid, bool(flags & 8), bool(flags & 1))


def parse_pubrel(data: bytes, version: int) -> int:
    """The message id of a PUBREL."""
    body = _Body(data)
    mid = body.number(2)
    if version == V5 and body.position < body.end:
        body.byte()
        if body.position < body.end:
            _properties(body, _OF_ACKNOWLEDGEMENT)
    body.finish()
    return mid


def parse_subscribe(kind: int, data: bytes, version: int) -> tuple[int, int]:
    """Message id and number of filters of a SUBSCRIBE or UNSUBSCRIBE."""
    body = _Body(data)
    mid = body.number(2)
    if not mid:
        raise ProtocolError("a message id of 0")
    if version == V5:
        _properties(body, _OF_SUBSCRIBE if kind == SUBSCRIBE else _OF_UNSUBSCRIBE)
    count = 0
    while body.position < body.end:
        if not body.text():
            raise ProtocolError("an empty topic filter")
        if kind == SUBSCRIBE:
            options = body.byte()
            if options & 3 == 3 or options & (0xC0 if version == V5 else 0xFC):
                raise ProtocolError(f"subscription options 0x{options:02x}")
        count += 1
    if not count:
        raise ProtocolError("no topic filter", reason=Reason.PROTOCOL_ERROR)
    return mid, count


def parse_disconnect(data: bytes, version: int) -> tuple[int, int | None]:
    """Reason and new session expiry of a DISCONNECT."""
    body = _Body(data)
    if version == V311:
        body.finish()
        return Reason.SUCCESS, None
    reason = body.byte() if body.position < body.end else Reason.SUCCESS
    expiry: int | str | bytes | None = None
    if body.position < body.end:
        expiry = _properties(body, _OF_DISCONNECT).get(_SESSION_EXPIRY)
    body.finish()
    assert expiry is None or isinstance(expiry, int)
    return reason, expiry


# -- what we answer ------------------------------------------------------------------------------


def _packet(head: int, body: bytes) -> bytes:
    return bytes((head,)) + _variable(len(body)) + body


def _variable(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 127
        out.append(low | 128 if value else low)
        if not value:
            return bytes(out)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return len(data).to_bytes(2, "big") + data


def connack(
    reason: int,
    version: int,
    *,
    session_present: bool = False,
    receive_maximum: int = 65_535,
    packet_max_bytes: int = 0,
    session_expiry_s: int | None = None,
    assigned_id: str | None = None,
) -> bytes:
    present = bytes((1 if session_present and not reason else 0,))
    if version == V311:
        return b"\x20\x02" + present + bytes((_CONNACK_311.get(reason, 5),))
    properties = b""
    if not reason:
        properties += b"\x21" + receive_maximum.to_bytes(2, "big")
        properties += b"\x24\x01"  # QoS 2 is not offered
        if packet_max_bytes:
            properties += b"\x27" + packet_max_bytes.to_bytes(4, "big")
        if session_expiry_s is not None:
            properties += b"\x11" + session_expiry_s.to_bytes(4, "big")
        if assigned_id is not None:
            properties += b"\x12" + _string(assigned_id)
        properties += b"\x28\x00\x29\x00\x2a\x00"  # nor wildcard, numbered or shared subscriptions
    return _packet(0x20, present + bytes((reason,)) + _variable(len(properties)) + properties)


def puback(mid: int, reason: int, version: int, text: str = "") -> bytes:
    """3.1.1 knows no reason; under 5 a success is as short as under 3.1.1."""
    head = mid.to_bytes(2, "big")
    if version == V311 or not reason:
        return b"\x40\x02" + head
    properties = b"\x1f" + _string(text) if text else b""
    return _packet(0x40, head + bytes((reason,)) + _variable(len(properties)) + properties)


def pubrec(mid: int) -> bytes:
    return b"\x50\x02" + mid.to_bytes(2, "big")


def pubcomp(mid: int) -> bytes:
    return b"\x70\x02" + mid.to_bytes(2, "big")


def suback(mid: int, count: int, version: int) -> bytes:
    """Every subscription is refused: nobody reads here."""
    if version == V311:
        return _packet(0x90, mid.to_bytes(2, "big") + b"\x80" * count)
    return _packet(0x90, mid.to_bytes(2, "big") + b"\0" + bytes((Reason.NOT_AUTHORIZED,)) * count)


def unsuback(mid: int, count: int, version: int) -> bytes:
    if version == V311:
        return b"\xb0\x02" + mid.to_bytes(2, "big")
    return _packet(0xB0, mid.to_bytes(2, "big") + b"\0" + bytes((Reason.NO_SUBSCRIPTION,)) * count)


def disconnect(reason: int, version: int) -> bytes:
    """Why the server closes; 3.1.1 has no such packet."""
    return b"" if version == V311 else b"\xe0\x02" + bytes((reason, 0))
