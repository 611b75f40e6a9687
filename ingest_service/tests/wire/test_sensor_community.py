"""sensor.community: bodies as the airRohr firmware builds them, and values that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldring.errors import ClientError, InvalidRequest, TooLarge
from fieldring.model import Row
from fieldring.wire import sensor_community
from fieldring.wire.decoded import Decoded

NOW = 1_700_000_000_123
DEVICE = "esp8266-12345678"


def decode(values: Any, *, pin: str = "", **more: Any) -> Decoded:
    body = json.dumps({**more, "sensordatavalues": values}).encode()
    return sensor_community.decode(body, device=DEVICE, pin=pin, now_ms=NOW)


def one(value: Any) -> tuple[Any, ...]:
    decoded = decode([{"value_type": "P1", "value": value}])
    return decoded.batch.values[0] if len(decoded.batch) else ()


def test_one_sensor_of_a_device() -> None:
    """To the public API each sensor is pushed apart, with its pin."""
    decoded = decode(
        [{"value_type": "P1", "value": "12.34"}, {"value_type": "P2", "value": "4.50"}],
        pin="1",
        software_version="NRZ-2020-133",
    )
    assert [Row(f"{DEVICE}-1", NOW, ("P1", "P2"), (12.34, 4.5))] == list(decoded.batch.rows())
    assert {f"{DEVICE}-1": {"software_version": "NRZ-2020-133"}} == decoded.batch.attributes


def test_own_api() -> None:
    """To an own API everything comes at once, without a pin, with what else the firmware knows."""
    body = (
        b'{"esp8266id": "12345678", "software_version": "NRZ-2020-133", "sensordatavalues":['
        b'{"value_type":"SDS_P1","value":"8.55"},{"value_type":"SDS_P2","value":"3.23"},'
        b'{"value_type":"BME280_temperature","value":"-1.28"},{"value_type":"BME280_pressure","value":"98723.44"},'
        b'{"value_type":"GPS_lat","value":"48.800000"},{"value_type":"GPS_timestamp","value":"2023-11-14T22:13:20.000"},'
        b'{"value_type":"samples","value":"5040152"},{"value_type":"min_micro","value":"28"},'
        b'{"value_type":"signal","value":"-71"}]}'
    )
    decoded = sensor_community.decode(body, device=DEVICE, now_ms=NOW)
    assert () == decoded.errors
    [row] = decoded.batch.rows()
    assert DEVICE == row.sensor
    assert {
        "SDS_P1": 8.55,
        "SDS_P2": 3.23,
        "BME280_temperature": -1.28,
        "BME280_pressure": 98723.44,
        "GPS_lat": 48.8,
        "GPS_timestamp": "2023-11-14T22:13:20.000",
        "samples": 5040152.0,
        "min_micro": 28.0,
        "signal": -71.0,
    } == dict(zip(row.layout, row.values, strict=True))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12", 12.0),
        (" 12.50 ", 12.5),
        ("-0.0", -0.0),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        (12, 12.0),
        (12.5, 12.5),
        (True, 1.0),
        ("12,5", "12,5"),
        ("on", "on"),
        ("1_0", "1_0"),
        ("0x10", "0x10"),
        ("é", "é"),
    ],
)
def test_value(value: Any, expected: Any) -> None:
    """Numbers come as strings or numbers; other strings are text, unaltered."""
    assert (expected,) == one(value)


@pytest.mark.parametrize("value", ["nan", "NaN", "-nan", "inf", "Infinity", "", "  ", "null", None, "1e999"])
def test_no_value(value: Any) -> None:
    """What says that nothing was measured is counted, and the rest is kept."""
    decoded = decode([{"value_type": "P1", "value": value}, {"value_type": "P2", "value": "1"}])
    assert ((), [("P2",)], {"not_finite": 1}) == (decoded.errors, decoded.batch.layouts, decoded.left_out)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"value_type": "P1"}, "value"),
        ({"value": "1"}, "value_type"),
        ({"value_type": "", "value": "1"}, "empty"),
        ({"value_type": "a\x00b", "value": "1"}, "control character"),
        ({"value_type": 5, "value": "1"}, "value_type"),
        ({"value_type": "P1", "value": ["1"]}, "value"),
        ({"value_type": "P1", "value": "x" * 70_000}, "longer"),
        ("P1", "object"),
        (None, "object"),
    ],
)
def test_entry_refused_alone(entry: Any, reason: str) -> None:
    """A bad entry is named and costs nothing else."""
    decoded = decode([{"value_type": "P1", "value": "1"}, entry, {"value_type": "P2", "value": "2"}])
    assert [2] == [error.line for error in decoded.errors]
    assert reason in decoded.errors[0].reason
    assert [("P1", "P2")] == decoded.batch.layouts


def test_a_type_that_is_sent_twice() -> None:
    """The last value stands, and the other is counted."""
    decoded = decode([{"value_type": "P1", "value": v} for v in ("1", "2")])
    assert ([(2.0,)], 1) == (decoded.batch.values, decoded.batch.collapsed)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"sensordatavalues": 5}', b"\xff", b"[" * 50_000]
)
def test_body_refused(body: bytes) -> None:
    """What is no object with values is refused whole."""
    with pytest.raises(InvalidRequest):
        sensor_community.decode(body, device=DEVICE, now_ms=NOW)


def test_body_that_is_no_reading() -> None:
    """Its values are one row, which the ring must be able to take."""
    with pytest.raises(TooLarge):
        sensor_community.decode(b" " * 1_100_000, device=DEVICE, now_ms=NOW)


@pytest.mark.parametrize(
    ("device", "pin", "expected"),
    [
        ("esp8266-1", "", "esp8266-1"),
        ("esp8266-1", "1", "esp8266-1-1"),
        ("raspi-00ab", "11", "raspi-00ab-11"),
    ],
)
def test_sensor_name(device: str, pin: str, expected: str) -> None:
    """The device, and its pin where there is one."""
    assert expected == sensor_community.sensor_name(device, pin)


@pytest.mark.parametrize(
    ("device", "pin"), [("", "1"), ("a\x07", ""), ("a" * 5_000, ""), ("a", "-"), ("a", "1 2")]
)
def test_headers_refused(device: str, pin: str) -> None:
    """A header that cannot be part of a name is named."""
    with pytest.raises(InvalidRequest, match="X-"):
        sensor_community.sensor_name(device, pin)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["sensordatavalues", "value_type", "value"]), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(st.binary(max_size=60) | st.lists(JSONISH, max_size=4), st.text(max_size=5), st.text(max_size=3))
def test_any_bytes(body: Any, device: str, pin: str) -> None:
    """Bytes are decoded or refused, never a crash."""
    raw = body if isinstance(body, bytes) else json.dumps({"sensordatavalues": body}).encode()
    try:
        decoded = sensor_community.decode(raw, device=device, pin=pin, now_ms=NOW)
    except ClientError:
        return
    assert all(v == v for row in decoded.batch.rows() for v in row.values)
