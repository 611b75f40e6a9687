"""Blocks: what went in comes out, and junk is named as such."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldring.errors import CorruptionError
from fieldring.model import Batch, Row
from fieldring.wire import block

ROWS = st.lists(
    st.builds(
        lambda sensor, time, fields: Row(sensor, time, tuple(fields), tuple(fields.values())),
        st.text(min_size=1, max_size=5),
        st.integers(-(2**52), 2**52),
        st.dictionaries(
            st.text(min_size=1, max_size=5),
            st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
            min_size=1,
            max_size=4,
        ),
    ),
    max_size=10,
)


def batch_of(rows: list[Row], received: int = 0) -> Batch:
    batch = Batch(received=received)
    for number, row in enumerate(rows, 1):
        batch.append(row, line=number)
    return batch


@given(
    ROWS,
    st.integers(0, 2**53),
    st.dictionaries(st.text(max_size=3), st.dictionaries(st.text(max_size=3), st.text(max_size=3))),
)
def test_round_trip(rows: list[Row], received: int, attributes: dict[str, dict[str, str]]) -> None:
    """A batch comes back equal, its rows counted from 1."""
    batch = batch_of(rows, received)
    batch.attributes = attributes
    batch.collapsed = 3
    assert batch == block.decode(block.encode(batch))


def damaged(**changes: object) -> bytes:
    good: dict[str, object] = {
        "received": 1, "sensors": ["a"], "sensor_of": [0], "times_ms": [5], "layouts": [["m"]],
        "layout_of": [0], "values": [[1.0]], "attributes": {}, "collapsed": 0,
    }  # fmt: skip
    good.update(changes)
    return b"FRB\x01" + msgspec.msgpack.encode(list(good.values()))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not begin"),
        (b"GZIP", "does not begin"),
        (b"FRB", "version"),
        (b"FRB\x02", "version 02"),
        (b"FRB\x01", "cannot be decoded"),
        (b"FRB\x01\xc1", "cannot be decoded"),
        (damaged()[:-1], "cannot be decoded"),
        (damaged() + b"\x00", "cannot be decoded"),
        (damaged(sensor_of=[1]), "sensor that is not"),
        (damaged(sensor_of=[-1]), "sensor that is not"),
        (damaged(layout_of=[1]), "layout that is not"),
        (damaged(layout_of=[]), "different lengths"),
        (damaged(values=[[1.0, 2.0]]), "do not fit"),
        (damaged(values=[[float("nan")]]), "not finite"),
        (damaged(layouts=[[]], values=[[]]), "empty"),
        (damaged(layouts=[["m", "m"]], values=[[1.0, 1.0]]), "twice"),
        (damaged(sensors=[""]), "empty or too long"),
        (damaged(times_ms=[2**60]), "out of range"),
        (damaged(values=[[None]]), "cannot be decoded"),
    ],
)
def test_damage(data: bytes, reason: str) -> None:
    """Each kind of junk is refused with its reason."""
    with pytest.raises(CorruptionError, match=reason):
        block.decode(data)
    assert ["a"] == block.decode(damaged()).sensors


@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    """Bytes behind a good header are decoded or refused, never a crash."""
    try:
        block.decode(b"FRB\x01" + data)
    except CorruptionError:
        return
