"""SenML in JSON and CBOR: RFC 8428's own examples, names of devices, and what is refused."""

from __future__ import annotations

import json
import math
import tracemalloc
from decimal import Decimal
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldring.errors import ClientError, InvalidRequest, UnsupportedMediaType
from fieldring.model import Row
from fieldring.wire import senml
from fieldring.wire.decoded import Decoded
from fieldring.wire.names import split_senml_name

NOW = 1_700_000_000_123


def decode(pack: Any) -> Decoded:
    return senml.decode(json.dumps(pack).encode(), now_ms=NOW)


def rows(pack: Any) -> list[Row]:
    decoded = decode(pack)
    assert decoded.errors == ()
    return list(decoded.batch.rows())


def test_multiple_data_points_of_rfc_8428() -> None:
    """Section 5.1.3: base time, base unit and relative offsets."""
    pack = [
        {
            "bn": "urn:dev:ow:10e2073a0108006:",
            "bt": 1.276020076001e09,
            "bu": "A",
            "bver": 5,
            "n": "voltage",
            "u": "V",
            "v": 120.1,
        },
        {"n": "current", "t": -5, "v": 1.2},
        {"n": "current", "t": -4, "v": 1.3},
        {"n": "current", "v": 1.7},
    ]
    device = "urn:dev:ow:10e2073a0108006"
    assert [
        Row(device, 1276020076001, ("voltage",), (120.1,)),
        Row(device, 1276020071001, ("current",), (1.2,)),
        Row(device, 1276020072001, ("current",), (1.3,)),
        Row(device, 1276020076001, ("current",), (1.7,)),
    ] == rows(pack)
    assert {device: {"unit:voltage": "V", "unit:current": "A"}} == decode(pack).batch.attributes


def test_multiple_data_types_of_rfc_8428() -> None:
    """Section 5.1.5: text, boolean and opaque values; the opaque one is refused with its reason."""
    decoded = decode(
        [
            {"bn": "urn:dev:ow:10e2073a01080063:", "n": "temp", "u": "Cel", "v": 23.1, "t": 1276020076},
            {"n": "label", "vs": "Machine Room", "t": 1276020076},
            {"n": "open", "vb": False, "t": 1276020076},
            {"n": "nfc-reader", "vd": "aGkgCg", "t": 1276020076},
        ]
    )
    assert [(23.1,), ("Machine Room",), (0.0,)] == decoded.batch.values
    assert [4] == [error.line for error in decoded.errors]
    assert "vd" in decoded.errors[0].reason


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        ("urn:dev:ow:10e2073a01080063", "Cel", ("urn:dev:ow:10e2073a01080063", "Cel")),
        ("urn:dev:ow:10e2073a01080063", "", ("urn:dev:ow:10e2073a01080063", "value")),
        ("urn:dev:ow:10e2073a01080063:", "V", ("urn:dev:ow:10e2073a01080063", "V")),
        ("urn:dev:ow:264437f5000000ed_humidity", "", ("urn:dev:ow:264437f5000000ed", "humidity")),
        ("urn:dev:mac:0024befffe804ff1/temp/low", "", ("urn:dev:mac:0024befffe804ff1", "temp/low")),
        ("urn:dev:org:32473-foo", "Cel", ("urn:dev:org:32473-foo", "Cel")),
        ("urn:dev:org:32473-foo:temp", "", ("urn:dev:org:32473-foo", "temp")),
        ("urn:dev:os:32473-123456_t", "", ("urn:dev:os:32473-123456", "t")),
        ("urn:dev:ops:32473-fridge-5002:drawer:t", "", ("urn:dev:ops:32473-fridge-5002:drawer", "t")),
        ("urn:dev:example:new-1-2_comp", "", ("urn:dev:example:new-1-2", "comp")),
        ("urn:dev:mac:nothex:t", "", ("urn:dev:mac:nothex", "t")),
        ("room1/temp", "Cel", ("room1", "temp")),
        ("house/room1:temp", "Cel", ("house/room1", "temp")),
        ("station-3", "Cel", ("station-3", "Cel")),
        ("station-3", "", ("station-3", "value")),
        ("station-3/", "", ("station-3", "value")),
    ],
)
def test_name(name: str, unit: str, expected: tuple[str, str]) -> None:
    """Device URNs first, else up to the last colon or slash; then the unit, else "value"."""
    assert expected == split_senml_name(name, unit)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"n": "a/b", "v": 1}, NOW),
        ({"n": "a/b", "v": 1, "t": -10}, NOW - 10_000),
        ({"n": "a/b", "v": 1, "t": 0.5}, NOW + 500),
        ({"n": "a/b", "v": 1, "t": 2**28 - 1}, NOW + (2**28 - 1) * 1000),
        ({"n": "a/b", "v": 1, "t": 2**28}, 2**28 * 1000),
        ({"n": "a/b", "v": 1, "t": 1700000000.1239}, 1700000000123),
        ({"n": "a/b", "v": 1, "t": 1700000000.001}, 1700000000001),
        ({"n": "a/b", "v": 1, "bt": 1700000000, "t": -0.001}, 1699999999999),
    ],
)
def test_time(record: dict[str, Any], expected: int) -> None:
    """Below 2**28 s a time is relative to now; finer than a millisecond is truncated."""
    assert [expected] == [row.time_ms for row in rows([record])]


def test_base_values_and_sums() -> None:
    """Base value and sum add up; a sum is a metric of its own."""
    assert [
        Row("d", 2**30 * 1000, ("p", "p_sum"), (11.0, 105.0)),
        Row("d", 2**30 * 1000, ("q_sum",), (100.0,)),
    ] == rows(
        [{"bn": "d/", "bt": 2**30, "bv": 10, "bs": 100}, {"n": "p", "v": 1, "s": 5}, {"n": "q", "s": 0}]
    )


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"n": "a/b"}, "no value"),
        ({"n": "a/b", "v": 1, "vs": "x"}, "more than one"),
        ({"v": 1}, "no name"),
        ({"n": "ä/b", "v": 1}, "must begin with"),
        ({"n": "/b", "v": 1}, "must begin with"),
        ({"n": "a b", "v": 1}, "must begin with"),
        ({"n": "a/b", "v": "1"}, "float"),
        ({"n": "a/b", "v": 10**400}, "out of range"),
        ({"n": "a/b", "v": 1, "t": 1e300}, "out of range"),
        ({"n": "a/b", "v": 1, "u": "\x01"}, "control character"),
        ({"n": "a/b", "vs": "x" * 65_537}, "longer than"),
        ({"n": "a" * 5000, "v": 1}, "longer than"),
        ("text", "object"),
        (None, "object"),
    ],
)
def test_record_refused_alone(record: Any, reason: str) -> None:
    """A bad record is named and costs nothing else."""
    decoded = decode([{"n": "x/y", "v": 1}, record, {"n": "x/z", "v": 2}])
    assert [2] == [error.line for error in decoded.errors]
    assert reason in decoded.errors[0].reason
    assert [("y",), ("z",)] == decoded.batch.layouts


def test_base_fields_of_a_refused_record_hold() -> None:
    """A record may be refused for its value while its base name still names those after it."""
    decoded = decode([{"bn": "d/", "n": "p", "v": "junk"}, {"n": "q", "v": 2}])
    assert [1] == [error.line for error in decoded.errors]
    assert ["d"] == decoded.batch.sensors


def test_unreadable_base_fields_refuse_what_follows() -> None:
    """Without its base name a record would be stored under a wrong one."""
    decoded = decode([{"n": "x/y", "v": 1}, {"bn": 5, "n": "p", "v": 1}, {"n": "q", "v": 2}])
    assert [2, 3] == [error.line for error in decoded.errors]
    assert ["x"] == decoded.batch.sensors


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[",
        b"5",
        b'{"n":"a","v":1}',
        b'[{"n":"a","v":NaN}]',
        b"\xff\xfe",
        b'[{"bver":11,"n":"a","v":1}]',
        b'[{"n":"a","v":1,"lock_":1}]',
        b'[{"n":"a","v":1,"lock\\u005f":1}]',
        b"[" * 100_000,
    ],
)
def test_pack_refused(body: bytes) -> None:
    """What is not a pack that we may use is refused whole."""
    with pytest.raises(InvalidRequest):
        senml.decode(body, now_ms=NOW)


def test_base_version_as_any_json_number() -> None:
    """JSON has one kind of number: 5.0 is 5."""
    decoded = senml.decode(b'[{"bver":5.0,"n":"a/m","v":1}]', now_ms=NOW)
    assert [] == list(decoded.errors)
    assert 1 == len(decoded.batch)
    with pytest.raises(InvalidRequest):
        senml.decode(b'[{"bver":5.5,"n":"a/m","v":1}]', now_ms=NOW)


def test_cbor_that_says_that_it_is() -> None:
    """RFC 8949's self-described CBOR."""
    body = b"\xd9\xd9\xf7" + cbor2.dumps([{0: "a/m", 2: 1}])
    decoded = senml.decode(body, content_type="application/senml+cbor", now_ms=NOW)
    assert [("a", ("m",))] == [(row.sensor, row.layout) for row in decoded.batch.rows()]


def test_content_type() -> None:
    """Others are refused as such; parameters do not matter."""
    assert 1 == len(
        senml.decode(
            b'[{"n":"a","v":1}]', content_type="Application/SenML+JSON; charset=utf-8", now_ms=NOW
        ).batch
    )
    with pytest.raises(UnsupportedMediaType):
        senml.decode(b"[]", content_type="application/senml+xml", now_ms=NOW)


def test_last_record_wins() -> None:
    """A key that occurs twice in a pack is kept once and counted."""
    decoded = decode([{"n": "a/b", "v": 1, "t": 2**30}, {"n": "a/b", "v": 2, "t": 2**30}])
    assert [(2.0,)] == decoded.batch.values
    assert 1 == decoded.batch.collapsed


LABELS = {
    "bver": -1,
    "bn": -2,
    "bt": -3,
    "bu": -4,
    "bv": -5,
    "bs": -6,
    "n": 0,
    "u": 1,
    "v": 2,
    "vs": 3,
    "vb": 4,
    "s": 5,
    "t": 6,
    "ut": 7,
    "vd": 8,
}


def cbor(pack: Any) -> Decoded:
    body = pack if isinstance(pack, bytes) else cbor2.dumps(pack)
    return senml.decode(body, content_type="application/senml+cbor", now_ms=NOW)


def numbered(record: dict[str, Any]) -> dict[Any, Any]:
    """The record with CBOR's labels."""
    return {LABELS.get(label, label): value for label, value in record.items()}


def test_cbor_example_of_rfc_8428() -> None:
    """Section 6: half and double floats, a decimal fraction in the base time, negative integers."""
    body = bytes.fromhex(
        "87a721781b75726e3a6465763a6f773a3130653230373361303130383030363a22fb41d303a15b00106223614120050067766f"
        "6c7461676501615602fb405e066666666666a3006763757272656e74062402fb3ff3333333333333a3006763757272656e7406"
        "2302fb3ff4cccccccccccda3006763757272656e74062202fb3ff6666666666666a3006763757272656e74062102f93e00a300"
        "6763757272656e74062002fb3ff999999999999aa3006763757272656e74060002fb3ffb333333333333"
    )
    decoded = cbor(body)
    assert decoded.errors == ()
    assert {"urn:dev:ow:10e2073a0108006"} == set(decoded.batch.sensors)
    assert [(120.1,), (1.2,), (1.3,), (1.4,), (1.5,), (1.6,), (1.7,)] == decoded.batch.values
    assert [1276020076001 - 1000 * n for n in (0, 5, 4, 3, 2, 1, 0)] == decoded.batch.times_ms


@pytest.mark.parametrize("label", [numbered, lambda record: record], ids=["numbers", "names"])
def test_cbor_says_what_json_says(label: Any) -> None:
    """The same pack in both forms gives the same rows, with numbers and with names as labels."""
    pack = [
        {"bn": "urn:dev:ow:10e2073a01080063:", "bt": 2**30, "bu": "Cel", "bv": 20, "bs": 1, "bver": 10},
        {"n": "temp", "v": 3.5, "t": -1},
        {"n": "label", "vs": "Machine Room", "ut": 5},
        {"n": "open", "vb": False},
        {"n": "power", "s": 7, "u": "J"},
        {"n": "nfc-reader", "vd": "aGkgCg"},
        {"n": "x", "v": 1, "colour": {"any": ["thing"]}},
        {"n": "none"},
    ]
    assert decode(pack) == cbor([label(record) for record in pack])


@pytest.mark.parametrize(
    "value", [1, 1.0, Decimal("1.00"), Decimal("10e-1")], ids=["integer", "float", "fraction", "shifted"]
)
def test_cbor_numbers(value: Any) -> None:
    """Integers, floats and decimal fractions are the same number."""
    assert [(1.0,)] == cbor([{0: "a/b", 2: value, 6: value}]).batch.values


def test_cbor_indefinite_lengths() -> None:
    """A pack whose end is not announced is one too, as devices that stream write it."""
    assert [(1.0,)] == cbor(b"\x9f\xbf\x00\x63a/b\x02\x01\xff\xff").batch.values


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({0: "a/b", 2: "1"}, "v: expected a number, found a text string"),
        ({0: "a/b", 2: True}, "v: expected a number, found a boolean"),
        ({0: "a/b", 2: math.nan}, "not a finite number"),
        ({0: "a/b", 2: math.inf}, "not a finite number"),
        ({0: "a/b", 2: Decimal("1e999999")}, "not a finite number"),
        ({0: "a/b", 2: 1, 6: math.nan}, "out of range"),
        ({0: "a/b", 4: 1}, "vb: expected true or false"),
        ({0: "a/b", 3: b"x"}, "vs: expected a text string, found a byte string"),
        ({0: b"a/b", 2: 1}, "n: expected a text string"),
        ({0: "a/b", 8: b"x"}, "opaque data"),
        ({0: "a/b", "n": "a/b", 2: 1}, "occurs twice"),
        ({0: "a/b"}, "no value"),
        (5, "expected a map, found a whole number"),
        ([], "expected a map, found an array"),
        (None, "expected a map"),
    ],
)
def test_cbor_record_refused_alone(record: Any, reason: str) -> None:
    """A bad record is named and costs nothing else."""
    decoded = cbor([{0: "x/y", 2: 1}, record, {0: "x/z", 2: 2}])
    assert [2] == [error.line for error in decoded.errors]
    assert reason in decoded.errors[0].reason
    assert [("y",), ("z",)] == decoded.batch.layouts


def test_cbor_base_fields_of_a_refused_record() -> None:
    """What can be read of them holds; where they cannot be read, all that follows is refused."""
    assert ["d"] == cbor([{-2: "d/", 0: "p", 2: "junk"}, {0: "q", 2: 2}]).batch.sensors
    decoded = cbor([{0: "x/y", 2: 1}, {-2: 5, 0: "p", 2: 1}, {0: "q", 2: 2}])
    assert [2, 3] == [error.line for error in decoded.errors]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "premature end"),
        (b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "not a CBOR array"),
        (b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff", "not a CBOR array"),
        (b"\xff", "break code"),
        (b"\xa0", "something else"),
        (b"\x05", "something else"),
        (b"\x80\x00", "goes on after the CBOR array, which ends at byte 1"),
        (b"\x81" * 5_000, "depth"),
        (b"\x81\xa1\x02\xc2\x41\x01", "tag 2 is not part"),
        (b"\x81\xa1\x02\xc4\x82\x01\xc2\x41\x01", "tag 2 is not part"),
        (b"\x81\xa1\x02\xd8\x1c\x80", "tag 28 is not part"),
        (b"\x81\xa1\x02\xc0\x60", "tag 0 is not part"),
        (b"\x81\xd9\x03\xe7\xa0", "tag 999 is not part"),
        (b"\x81\xa2\x02\x01\x02\x02", "Duplicate"),
        (b"\x81\xa1\x00\x61\xff", "not a CBOR array"),
        (cbor2.dumps([{-1: 11, 0: "a", 2: 1}]), "version 11"),
        (
            cbor2.dumps([{0: "a", 2: 1}, {0: "b", 2: 1, "lock_": 1}]),
            "record 2: label 'lock_' must be understood",
        ),
    ],
)
def test_cbor_pack_refused(body: bytes, reason: str) -> None:
    """What is not a pack that we may use is refused whole, and costs no more than its bytes."""
    with pytest.raises(InvalidRequest, match=reason):
        cbor(body)


def test_base_version_is_a_whole_number_in_cbor() -> None:
    """Unlike other numbers: the base fields then cannot be read."""
    assert [1] == [error.line for error in cbor([{-1: 10.0, 0: "a", 2: 1}]).errors]


@pytest.mark.parametrize(
    ("body", "factor"),
    [
        (b"[" + b"0," * 100_000 + b"0]", 60),
        (b"\x99\x27\x10" + b"\xa0" * 10_000, 200),
        (b"\x99\x27\x11\xa2\x21\x61a\x22\x1a\x65\x00\x00\x00" + b"\xa1\x02\x01" * 10_000, 200),
    ],
    ids=["numbers", "empty maps", "smallest records"],
)
def test_junk_takes_bounded_memory(body: bytes, factor: int) -> None:
    """Bodies of nothing but the smallest records take no more than what is reserved for them."""
    content_type = "application/senml+json" if body[:1] == b"[" else "application/senml+cbor"
    tracemalloc.start()
    try:
        decoded = senml.decode(body, content_type=content_type, now_ms=NOW)
        assert tracemalloc.get_traced_memory()[1] < factor * len(body)
    finally:
        tracemalloc.stop()
    assert len(decoded.errors) <= 10_000
    assert 10_000 <= len(decoded.errors) + decoded.more_errors + len(decoded.batch) + decoded.batch.collapsed


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["bn", "bt", "bu", "bv", "bs", "bver", "n", "u", "v", "vs", "vb", "vd", "s", "t", "x_"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(st.binary(max_size=100) | JSONISH.map(lambda x: json.dumps(x).encode()))
def test_any_bytes(body: bytes) -> None:
    """Bytes are decoded or refused, never a crash."""
    try:
        decoded = senml.decode(body, now_ms=NOW)
    except ClientError:
        return
    assert all(v == v for row in decoded.batch.rows() for v in row.values)


CBORISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=3)
    | st.decimals(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.integers(-8, 10) | st.just("x_"), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(st.binary(max_size=100) | CBORISH.map(cbor2.dumps) | st.lists(CBORISH, max_size=5).map(cbor2.dumps))
def test_any_cbor(body: bytes) -> None:
    """Bytes are decoded or refused, never a crash."""
    try:
        decoded = cbor(body)
    except ClientError:
        return
    assert all(v == v for row in decoded.batch.rows() for v in row.values)
