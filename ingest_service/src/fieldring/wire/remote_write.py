"""Prometheus remote write, version 1: the protobuf message ``prometheus.WriteRequest``.

Read by hand, because nearly every series is a head that was seen before (its labels) and one sample:
then the head's bytes are looked up whole, which was ten times faster than building messages when both
were measured over 1,000 series. ``_series`` is the one true parser; the fast path serves only heads that
it has understood before, byte for byte.

Only values are kept: stale markers, NaN and infinities are counted and left out, and so are native
histograms; exemplars and metadata are skipped. A message that cannot be parsed is refused whole; a
series with names that cannot be kept is refused alone.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

from fieldring.errors import InvalidRequest, LineError, UnsupportedMediaType
from fieldring.model import Batch, Layout
from fieldring.wire.ambiguous import clashes, keep_attributes
from fieldring.wire.decoded import MAX_ERRORS, MAX_TIME_MS, Decoded, collapse
from fieldring.wire.names import NameRefused, Names, Series

__all__ = ["check_content_type", "decode"]

_V1 = "prometheus.WriteRequest"
_STALE = b"\x02\x00\x00\x00\x00\x00\xf0\x7f"
_SMALLEST_SAMPLE = 8
_MAX_LEARNT_CHARACTERS = 16 * 1024 * 1024
_double = struct.Struct("<d").unpack_from

_Head = tuple[Series, Layout]
_learnt: dict[frozenset[str], dict[bytes, _Head]] = {}
_learnt_size: dict[frozenset[str], int] = {}


class _Malformed(Exception):  # noqa: N818 - it becomes an InvalidRequest
    """The bytes are no such message; the text is the reason."""


class _Refused(Exception):  # noqa: N818
    """A series that cannot be kept; the text is the reason."""


def check_content_type(content_type: str) -> None:
    """Raises UnsupportedMediaType unless the content type is that of version 1."""
    kind, _, rest = content_type.partition(";")
    parameters = dict(p.strip().partition("=")[::2] for p in rest.split(";"))
    proto = parameters.get("proto", _V1).strip('"')
    if kind.strip().lower() != "application/x-protobuf" or proto != _V1:
        raise UnsupportedMediaType(
            f"content type {content_type[:100] or 'missing'!r}: "
            "only remote write 1.0 is spoken here, application/x-protobuf;proto=prometheus.WriteRequest"
        )


def decode(body: bytes, *, series_tags: Collection[str] = ()) -> Decoded:
    """Rows of a WriteRequest, and the series that were refused (``line`` counts series from 1).

    Raises:
        InvalidRequest: the body is no WriteRequest of version 1.
    """
    try:
        return _Decoder(series_tags, len(body)).request(body)
    except IndexError:
        raise InvalidRequest("body is not a WriteRequest: cut short") from None
    except _Malformed as error:
        raise InvalidRequest(f"body is not a WriteRequest: {error}") from None


class _Decoder:
    def __init__(self, series_tags: Collection[str], size: int) -> None:
        key = frozenset(series_tags)
        self._learnt_key = key
        self._heads = _learnt.setdefault(key, {})
        self._names = Names(series_tags=key)
        self._batch = Batch()
        self._owners: list[Series] = []
        self._errors: list[LineError] = []
        self._more_errors = 0
        self._left_out: dict[str, int] = {}
        # Samples without value and time take two bytes: far more rows than memory was reserved for.
        self._max_rows = size // _SMALLEST_SAMPLE + 1_000

    def request(self, body: bytes) -> Decoded:
        batch, heads = self._batch, self._heads
        add_sensor, add_time = batch.sensors.append, batch.times_ms.append
        add_layout, add_values = batch.layouts.append, batch.values.append
        add_line, add_owner = batch.lines.append, self._owners.append
        position, size, count = 0, len(body), 0
        while position < size:
            if body[position] != 0x0A:
                position = self._other(body, position)
                continue
            length = body[position + 1]
            position += 2
            if length >= 0x80:
                length, position = _varint(body, position - 1)
            end = position + length
            if end > size:
                raise _Malformed("cut short")
            count += 1
            # One sample of 16 bytes, its time a varint of 6, as all times from 1971 to 2109 are.
            sample = end - 18
            if (
                sample >= position
                and body[sample : sample + 3] == b"\x12\x10\x09"
                and body[end - 7] == 0x10
                and body[end - 1] < 0x80
            ):
                head = heads.get(body[position:sample])
                if head is not None:
                    a, b, c, d, e, f = body[end - 6 : end]
                    if a & b & c & d & e & 0x80:
                        (value,) = _double(body, sample + 3)
                        if value - value == 0.0:
                            series, layout = head
                            add_sensor(series.sensor)
                            add_time(
                                a & 127
                                | (b & 127) << 7
                                | (c & 127) << 14
                                | (d & 127) << 21
                                | (e & 127) << 28
                                | f << 35
                            )
                            add_layout(layout)
                            add_values((value,))
                            add_line(count)
                            add_owner(series)
                        else:
                            self._leave_out(_reason(body[sample + 3 : sample + 11]))
                        position = end
                        continue
            try:
                self._series(body[position:end], count)
            except (_Refused, NameRefused) as error:
                self._refuse(count, str(error))
            except UnicodeDecodeError:
                self._refuse(count, "a label is not valid UTF-8")
            position = end
        return self._result()

    @staticmethod
    def _other(body: bytes, position: int) -> int:
        """Skip a field of the request that is no series; returns where the next begins."""
        number, position, end = _field(body, position)
        if number in (4, 5):
            raise _Malformed("it is one of remote write 2.0, which is not spoken here")
        if number == 1:
            raise _Malformed("a series is not a message")
        return end

    def _series(self, raw: bytes, count: int) -> None:
        """Parse one series and take its samples."""
        labels: list[bytes] = []
        samples: list[bytes] = []
        histograms = 0
        head_end = -1
        position = 0
        while position < len(raw):
            start = position
            number, position, end = _field(raw, position)
            wire_type = raw[start] & 7
            if number in (1, 2, 4) and wire_type != 2:
                raise _Malformed(f"field {number} of a series is not a message")
            if number == 1:
                labels.append(raw[position:end])
                if head_end >= 0:
                    head_end = len(raw)  # labels behind others: not to be learnt
            elif head_end < 0:
                head_end = start
            if number == 2:
                samples.append(raw[position:end])
            elif number == 4:
                histograms += 1
            position = end
        if len(self._batch) + len(samples) > self._max_rows:
            raise _Malformed("it has more samples than its bytes can describe")
        series, layout = self._resolve(labels)
        if 0 < head_end < len(raw):
            self._learn(raw[:head_end], (series, layout))
        if histograms:
            self._leave_out("histogram", histograms)
        for sample in samples:
            bits, time_ms = _sample(sample)
            (value,) = _double(bits)
            if value - value != 0.0:
                self._leave_out(_reason(bits))
            elif not -MAX_TIME_MS < time_ms < MAX_TIME_MS:
                self._refuse(count, f"time {time_ms} ms is out of range")
            else:
                batch = self._batch
                batch.sensors.append(series.sensor)
                batch.times_ms.append(time_ms)
                batch.layouts.append(layout)
                batch.values.append((value,))
                batch.lines.append(count)
                self._owners.append(series)

    def _resolve(self, labels: list[bytes]) -> _Head:
        tags: dict[str, str] = {}
        for raw in labels:
            name, value = _label(raw)
            if name in tags:
                raise _Refused(f"label {name[:80]!r} occurs twice")
            # An empty value means that there is no such label.
            if value:
                tags[name] = value
        metric = tags.pop("__name__", "")
        if not metric:
            raise _Refused("no label __name__: a series without a name has no metric")
        series = self._names.resolve(metric, tags)
        return series, series.layout(["value"], names=self._names)

    def _learn(self, head: bytes, known: _Head) -> None:
        """Shared by threads without a lock: what two threads learn of one head is equal."""
        key = self._learnt_key
        size = _learnt_size.get(key, 0) + 2 * len(head) + 400
        if size > _MAX_LEARNT_CHARACTERS:
            _learnt[key] = self._heads = {}
            size = 0
        self._heads[head] = known
        _learnt_size[key] = size

    def _leave_out(self, reason: str, count: int = 1) -> None:
        self._left_out[reason] = self._left_out.get(reason, 0) + count

    def _refuse(self, count: int, reason: str) -> None:
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(LineError(count, reason))
        else:
            self._more_errors += 1

    def _result(self) -> Decoded:
        batch, owners = self._batch, self._owners
        if refused := clashes(batch, owners):
            for index, other in refused.items():
                self._refuse(
                    batch.lines[index],
                    f"ambiguous: differs from series {batch.lines[other]} in nothing but attribute labels; "
                    "name the label in series_tags, or send another sensor or time",
                )
            keep = [i for i in range(len(batch)) if i not in refused]
            batch, owners = batch.select(keep), [owners[i] for i in keep]
        keep_attributes(batch, owners)
        self._errors.sort(key=lambda error: error.line)
        return Decoded(
            collapse(batch), tuple(self._errors), left_out=self._left_out, more_errors=self._more_errors
        )


def _reason(bits: bytes) -> str:
    if bits == _STALE:
        return "stale"
    return "nan" if bits[6] & 0x0F or any(bits[:6]) else "infinite"


def _label(raw: bytes) -> tuple[str, str]:
    name = value = b""
    for number, start, end in _fields(raw):
        if number == 1:
            name = raw[start:end]
        elif number == 2:
            value = raw[start:end]
    return name.decode(), value.decode()


def _sample(raw: bytes) -> tuple[bytes, int]:
    """The bits of the value, and the time."""
    bits, time_ms = b"\0" * 8, 0
    for number, start, end in _fields(raw):
        if number == 1:
            bits = raw[start:end]
            if len(bits) != 8:
                raise _Malformed("the value of a sample is not a double")
        elif number == 2:
            time_ms, stop = _varint(raw, start)
            if stop != end:
                raise _Malformed("the time of a sample is not a whole number")
            if time_ms >= 2**63:
                time_ms -= 2**64
    return bits, time_ms


def _fields(raw: bytes) -> Iterator[tuple[int, int, int]]:
    position = 0
    while position < len(raw):
        number, start, position = _field(raw, position)
        yield number, start, position


def _field(raw: bytes, position: int) -> tuple[int, int, int]:
    """Number of the field at ``position``, and where its content begins and ends."""
    key, position = _varint(raw, position)
    number, wire_type = key >> 3, key & 7
    if not 0 < number < 2**29:
        raise _Malformed("a field has no number")
    if wire_type == 2:
        length, position = _varint(raw, position)
        end = position + length
    elif wire_type == 0:
        _, end = _varint(raw, position)
    elif wire_type == 1:
        end = position + 8
    elif wire_type == 5:
        end = position + 4
    else:
        raise _Malformed(f"wire type {wire_type} is not used")
    if end > len(raw):
        raise _Malformed("cut short")
    return number, position, end


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = raw[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
        if shift > 63:
            raise _Malformed("a number is too long")
