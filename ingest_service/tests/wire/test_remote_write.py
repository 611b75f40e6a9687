"""Prometheus remote write: against the protobuf library, and what is left out or refused."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from fieldring.errors import ClientError, InvalidRequest, UnsupportedMediaType
from fieldring.model import Row
from fieldring.wire import remote_write
from fieldring.wire.decoded import MAX_TIME_MS, Decoded

T = 1_700_000_000_000
STALE = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]


def oracle() -> Any:
    """The message class, made from its published definition without generated code."""
    file = descriptor_pb2.FileDescriptorProto(name="remote.proto", package="prometheus", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, Any, str]) -> None:
        made = file.message_type.add(name=name)
        for label, number, kind, of in fields:
            one = made.field.add(name=label, number=number, type=kind, label=field.LABEL_OPTIONAL)
            if of:
                one.label, one.type_name = field.LABEL_REPEATED, f".prometheus.{of}"

    message("Label", ("name", 1, field.TYPE_STRING, ""), ("value", 2, field.TYPE_STRING, ""))
    message("Sample", ("value", 1, field.TYPE_DOUBLE, ""), ("timestamp", 2, field.TYPE_INT64, ""))
    message("Exemplar", ("labels", 1, field.TYPE_MESSAGE, "Label"), ("value", 2, field.TYPE_DOUBLE, ""))
    message("Histogram", ("sum", 3, field.TYPE_DOUBLE, ""))
    message(
        "TimeSeries",
        ("labels", 1, field.TYPE_MESSAGE, "Label"),
        ("samples", 2, field.TYPE_MESSAGE, "Sample"),
        ("exemplars", 3, field.TYPE_MESSAGE, "Exemplar"),
        ("histograms", 4, field.TYPE_MESSAGE, "Histogram"),
    )
    message("Metadata", ("metric_family_name", 2, field.TYPE_STRING, ""))
    message(
        "WriteRequest",
        ("timeseries", 1, field.TYPE_MESSAGE, "TimeSeries"),
        ("metadata", 3, field.TYPE_MESSAGE, "Metadata"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("prometheus.WriteRequest"))


WriteRequest = oracle()
Labels = dict[str, str]


def request(*series: tuple[Labels, list[tuple[float, int]]]) -> Any:
    made = WriteRequest()
    for labels, samples in series:
        one = made.timeseries.add()
        for name, value in labels.items():
            one.labels.add(name=name, value=value)
        for value, time_ms in samples:
            one.samples.add(value=value, timestamp=time_ms)
    return made


def decode(*series: tuple[Labels, list[tuple[float, int]]], series_tags: tuple[str, ...] = ()) -> Decoded:
    return remote_write.decode(request(*series).SerializeToString(), series_tags=series_tags)


@pytest.fixture(autouse=True)
def nothing_learnt() -> None:
    remote_write._learnt.clear()
    remote_write._learnt_size.clear()


@pytest.mark.parametrize(
    ("labels", "sensor", "metric"),
    [
        ({"__name__": "no2", "sensor": "a", "room": "1"}, "a", "no2"),
        ({"__name__": "no2", "sensor_id": "a"}, "a", "no2"),
        ({"__name__": "no2", "node": "a", "host": "h"}, "a", "no2"),
        ({"__name__": "cpu", "host": "h", "mode": "idle", "core": "0"}, "h", "cpu{core=0,mode=idle}"),
        ({"__name__": "up", "job": "j", "instance": "i:9"}, "up,instance=i:9,job=j", "up"),
        ({"__name__": "up"}, "up", "up"),
        ({"__name__": "up", "empty": ""}, "up", "up"),
        ({"__name__": "n", "sensor": "a", "axis": "x"}, "a", "n{axis=x}"),
    ],
)
def test_names(labels: Labels, sensor: str, metric: str) -> None:
    """The order of tags is that of all formats; the metric is __name__; an empty label is none."""
    for _ in ("cold", "warm"):
        decoded = decode((labels, [(1.5, T)]), series_tags=("axis",))
        assert [Row(sensor, T, (metric,), (1.5,))] == list(decoded.batch.rows())


def test_attributes() -> None:
    """Other labels of a named sensor are its attributes."""
    decoded = decode(({"__name__": "m", "sensor": "a", "room": "1"}, [(1, T)]))
    assert {"a": {"room": "1"}} == decoded.batch.attributes


def test_what_is_no_measurement_is_counted_and_left_out() -> None:
    """Stale markers, NaN, infinities and histograms; a series of nothing else is no error."""
    for _ in ("cold", "warm"):
        message = request(
            ({"__name__": "a"}, [(STALE, T)]),
            ({"__name__": "b"}, [(math.nan, T), (math.inf, T), (-math.inf, T), (2, T)]),
            ({"__name__": "a"}, [(1, T)]),
        )
        message.timeseries[0].histograms.add(sum=1)
        message.timeseries[0].exemplars.add(value=1)
        message.metadata.add(metric_family_name="a")
        decoded = remote_write.decode(message.SerializeToString())
        assert {"stale": 1, "nan": 1, "infinite": 2, "histogram": 1} == decoded.left_out
        assert ((), [(2.0,), (1.0,)]) == (decoded.errors, decoded.batch.values)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"job": "a"}, "no label __name__"),
        ({}, "no label __name__"),
        ({"__name__": "m", "sensor": "a\x01"}, "control character"),
        ({"__name__": "m", "sensor": "a" * 5_000}, "longer than"),
    ],
)
def test_series_refused_alone(labels: Labels, reason: str) -> None:
    """A bad series is named by its number and costs nothing else."""
    decoded = decode(({"__name__": "x"}, [(1, T)]), (labels, [(1, T)]), ({"__name__": "y"}, [(2, T)]))
    assert [2] == [error.line for error in decoded.errors]
    assert reason in decoded.errors[0].reason
    assert [(1.0,), (2.0,)] == decoded.batch.values


def test_label_that_is_no_text_or_stands_twice() -> None:
    """Both are refused alone."""
    for labels in (b"\x0a\x04\x0a\x02\xff\xff", b"\x0a\x06\x0a\x01a\x12\x01x" * 2):
        name = b"\x0a\x0d\x0a\x08__name__\x12\x01m"
        body = name + labels + b"\x12\x0b\x09" + struct.pack("<d", 1) + b"\x10\x05"
        decoded = remote_write.decode(b"\x0a" + bytes([len(body)]) + body)
        assert ([1], 0) == ([error.line for error in decoded.errors], len(decoded.batch))


def test_series_that_differ_in_attributes_only_are_ambiguous() -> None:
    """All of them are refused with a way out, as lines are."""
    series = [({"__name__": "cpu", "node": "a", "core": core}, [(1.0, T)]) for core in "01"]
    decoded = decode(*series, ({"__name__": "mem", "node": "a"}, [(1, T)]))
    assert [1, 2] == [error.line for error in decoded.errors]
    assert "series_tags" in decoded.errors[0].reason
    assert [("mem",)] == decoded.batch.layouts
    assert () == decode(*series, series_tags=("core",)).errors


def test_last_sample_wins_and_is_counted() -> None:
    """A key that occurs twice in a request is kept once."""
    decoded = decode(({"__name__": "m"}, [(1, T), (2, T)]), ({"__name__": "m"}, [(3, T)]))
    assert ([(3.0,)], 2) == (decoded.batch.values, decoded.batch.collapsed)


@pytest.mark.parametrize("time_ms", [0, 1, -1, 2**34, 2**35, 2**42 - 1, 2**42, T])
def test_times(time_ms: int) -> None:
    """Whatever the length of their varint, seen before or not."""
    for _ in ("cold", "warm"):
        decoded = decode(({"__name__": "m"}, [(1, time_ms)]), ({"__name__": "m"}, [(1, T)]))
        assert time_ms == decoded.batch.times_ms[0]


def test_time_out_of_range() -> None:
    """Beyond what any reader can show it is refused."""
    assert "out of range" in decode(({"__name__": "m"}, [(1, 2**62)])).errors[0].reason


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a",
        b"\x0a\x05",
        b"\x0a\x02\x0a\x05",
        b"\xff" * 20,
        b"\x0a\x01\x0b",
        b"\x00\x00",
        b"\x08\x01",
        b"\x0a\x02\x10\x01",
        b"\x22\x00",
        b"\x2a\x00",
        b"\x0a\x84\x00",
    ],
)
def test_malformed(body: bytes) -> None:
    """A message that cannot be parsed, or is one of version 2, is refused whole."""
    with pytest.raises(InvalidRequest, match="not a WriteRequest"):
        remote_write.decode(body)


def test_samples_without_bytes_are_no_bomb() -> None:
    """A sample may take two bytes, but a body of them is not turned into millions of rows."""
    series = b"\x0a\x0d\x0a\x08__name__\x12\x01m" + b"\x12\x00" * 50_000
    length = bytes([len(series) & 127 | 128, len(series) >> 7 & 127 | 128, len(series) >> 14])
    with pytest.raises(InvalidRequest, match="more samples"):
        remote_write.decode(b"\x0a" + length + series)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-protobuf",
        "application/x-protobuf;proto=prometheus.WriteRequest",
        'Application/X-Protobuf; proto="prometheus.WriteRequest"',
    ],
)
def test_content_type(content_type: str) -> None:
    """Version 1 in each way of saying so."""
    remote_write.check_content_type(content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "application/x-protobuf;proto=io.prometheus.write.v2.Request",
        "application/x-protobuf;proto=",
    ],
)
def test_other_content_type(content_type: str) -> None:
    """Version 2 and everything else is 415, so that a sender falls back to version 1."""
    with pytest.raises(UnsupportedMediaType, match=r"remote write 1\.0"):
        remote_write.check_content_type(content_type)


def test_learnt_heads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is dropped whole when it has grown too large."""
    monkeypatch.setattr(remote_write, "_MAX_LEARNT_CHARACTERS", 20_000)
    for number in range(200):
        decode(({"__name__": "m", "job": str(number)}, [(1, T)]))
    assert len(remote_write._learnt[frozenset()]) < 100


LABEL_TEXT = st.sampled_from(["", "a", "b", "é", "x" * 200, "sensor", "host", "__name__", "m"])
SERIES = st.tuples(
    st.dictionaries(LABEL_TEXT, LABEL_TEXT, max_size=4),
    st.lists(
        st.tuples(st.floats() | st.just(STALE), st.integers(-(2**63), 2**63 - 1) | st.just(T)), max_size=3
    ),
)


@given(st.lists(SERIES, max_size=5), st.lists(SERIES, max_size=5))
def test_as_the_protobuf_library_reads_it(first: list[Any], second: list[Any]) -> None:
    """The same series, samples and counts, whatever was learnt before."""
    decode(*first)
    message = request(*second)
    parsed = WriteRequest.FromString(message.SerializeToString())
    decoded = remote_write.decode(message.SerializeToString())
    named = {
        n
        for n, s in enumerate(parsed.timeseries, 1)
        if any(x.name == "__name__" and x.value for x in s.labels)
    }
    refused = {error.line for error in decoded.errors}
    samples = [(n, s) for n, series in enumerate(parsed.timeseries, 1) if n in named for s in series.samples]
    kept = [
        (n, s.timestamp, s.value)
        for n, s in samples
        if math.isfinite(s.value) and abs(s.timestamp) < MAX_TIME_MS
    ]
    batch = decoded.batch
    got = list(zip(batch.lines, batch.times_ms, [v for (v,) in batch.values], strict=True))
    assert set(got) <= set(kept)
    assert len([n for n, *_ in kept if n not in refused]) <= len(got) + batch.collapsed
    not_finite = [n for n, s in samples if n not in refused and not math.isfinite(s.value)]
    assert len(not_finite) <= sum(decoded.left_out.values())


@given(
    st.binary(max_size=80),
    st.lists(SERIES, min_size=1, max_size=3),
    st.integers(0, 200),
    st.binary(max_size=4),
)
def test_any_bytes(junk: bytes, series: list[Any], place: int, patch: bytes) -> None:
    """Bytes are decoded or refused, never a crash; also those of a message with some of them changed."""
    whole = request(*series).SerializeToString()
    for body in (junk, whole, whole[:place] + patch + whole[place + len(patch) :], whole[:place]):
        try:
            decoded = remote_write.decode(body)
        except ClientError:
            continue
        assert all(v == v for row in decoded.batch.rows() for v in row.values)
