r"""InfluxDB line protocol, v1 and v2.

``_parse`` is the one true parser. The fast paths in ``_Decoder`` serve only lines whose measurement,
tags and field names ``_parse`` has understood before, byte for byte, and only where no quote,
backslash or tab stands in the line; whatever they are not sure of goes to ``_parse``. There are three:
``_columns`` takes some hundred lines of one kind at once, without a step per line; ``_plain`` one by one;
``_one_line`` a body of one reading, before a decoder is made.

Kept from InfluxDB: ``\`` escapes only what the place needs (``,`` and space in measurements, also
``=`` in tags and field names, ``"`` and ``\`` in strings) and is a plain character otherwise; strings
may hold line breaks; ``#`` starts a comment line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import msgspec

from fieldring.errors import InvalidRequest, LineError
from fieldring.model import Batch, Columns, Layout, PackedBatch, Value
from fieldring.wire.decoded import MAX_TIME_MS, Decoded, collapse, has_repeats
from fieldring.wire.names import NameRefused, Names, Series

if TYPE_CHECKING:
    from fieldring.wire.packed import Packer

__all__ = ["MAX_LINE_BYTES", "MAX_TEXT_BYTES", "PRECISIONS", "check_precision", "decode", "decode_in_pieces"]

MAX_LINE_BYTES = 1_048_576
"""Longest line: a row must fit into one mutation of the ring."""

MAX_TEXT_BYTES = 65_536
"""Longest text value, as in InfluxDB."""

PRECISIONS: dict[str, tuple[int, int]] = {
    "n": (1, 1_000_000),
    "ns": (1, 1_000_000),
    "u": (1, 1_000),
    "us": (1, 1_000),
    "µ": (1, 1_000),
    "ms": (1, 1),
    "s": (1_000, 1),
    "m": (60_000, 1),
    "h": (3_600_000, 1),
}
"""Unit of time stamps → (factor, divisor) to milliseconds."""

_MEASUREMENT = re.compile(rb"(?:[^, \\\n]|\\[, ]|\\(?![, ]))++")
_KEY = re.compile(rb"(?:[^,= \\\n]|\\[,= ]|\\(?![,= ]))++")
_BARE = re.compile(rb"[^, \n]*+")
_TEXT = re.compile(rb'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_TAIL = re.compile(rb"[^\n]*")
_SPACES = re.compile(rb" *")
_UNESCAPE_MEASUREMENT = re.compile(rb"\\([, ])")
_UNESCAPE_KEY = re.compile(rb"\\([,= ])")
_UNESCAPE_TEXT = re.compile(rb'\\(["\\])')
_ROUGH = re.compile(rb'["\\\t\x0b\x0c\r]')

_FLOAT = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SIGNED = re.compile(rb"([+-]?[0-9]{1,19})i")
_UNSIGNED = re.compile(rb"\+?([0-9]{1,20})u")
_STAMP = re.compile(rb"[+-]?[0-9]{1,19}")
_STAMP_DIGITS = 19
_PLAIN = re.compile(rb"[-+.0-9eE,]+ [-+]?[0-9]{1,19}")
"""Values with commas between, and a time stamp: of these characters ``float`` takes what ``_FLOAT`` does."""
_BOOLEANS = {
    **dict.fromkeys((b"t", b"T", b"true", b"True", b"TRUE"), 1.0),
    **dict.fromkeys((b"f", b"F", b"false", b"False", b"FALSE"), 0.0),
}

_COLUMNS_FROM_LINES = 16
"""Fewer lines are quicker one by one."""

_ARRAYS_FROM_LINES = 256
"""Fewer lines are quicker as lists."""

_SHORT_BYTES = 256

_SLICE_BYTES = 65_536
"""Columns are made of about this much, so that one odd line only slows down its neighbours."""

_ALL_BUT_SPACES = bytes(byte for byte in range(256) if byte not in b" \n")
_ALL_BUT_FIELD_MARKS = bytes(byte for byte in range(256) if byte not in b"=,\n")
_TO_COMMAS = bytes.maketrans(b"=\n", b",,")
_NUMBERS = msgspec.json.Decoder(list[float])


def _stamp_decoder(factor: int, divisor: int) -> msgspec.json.Decoder[list[int]]:
    """For time stamps that are in range as milliseconds and below 2**63."""
    lowest = max((1 - MAX_TIME_MS) * divisor // factor, 1 - 2**63)
    highest = min((MAX_TIME_MS - 1) * divisor // factor, 2**63 - 1)
    return msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=lowest, le=highest)]])


_STAMPS = {scale: _stamp_decoder(*scale) for scale in set(PRECISIONS.values())}


@cache
def _arrays() -> ModuleType:
    """The module of that name, loaded when there are rows for it: small gateways do without numpy."""
    from fieldring.wire import packed

    return packed


class _Refused(Exception):  # noqa: N818
    """A line that cannot be kept; the text is the reason."""


def decode(body: bytes, *, precision: str = "ns", now_ms: int, series_tags: Collection[str] = ()) -> Decoded:
    """Rows of a body in line protocol, and the lines that were refused.

    Lines are counted from 1, comments and blank lines too. One without a time gets ``now_ms``.
    Of lines that have the same sensor, time and metric the last one wins; where such lines differ in
    attribute tags, nobody can say which series was meant, and all of them are refused.

    Raises:
        InvalidRequest: ``precision`` is not known.
    """
    check_precision(precision)
    if len(body) < _SHORT_BYTES and (decoded := _one_line(body, PRECISIONS[precision], series_tags)):
        return decoded
    decoder = _Decoder(precision, now_ms, series_tags, 1)
    decoder.take(body, 0, len(body))
    return decoder.result()


def decode_in_pieces(
    body: bytes,
    *,
    precision: str = "ns",
    now_ms: int,
    series_tags: Collection[str] = (),
    piece_bytes: int,
) -> Iterator[Decoded]:
    """As ``decode``, but about ``piece_bytes`` at a time, so that a large body need not be held decoded.

    What the last line wins over, and what is ambiguous, is then seen within a piece only.
    """
    if len(body) <= piece_bytes:
        yield decode(body, precision=precision, now_ms=now_ms, series_tags=series_tags)
        return
    check_precision(precision)
    position, line = 0, 1
    while position < len(body):
        decoder = _Decoder(precision, now_ms, series_tags, line)
        position = decoder.take(body, position, piece_bytes)
        line = decoder.next_line
        yield decoder.result()


def check_precision(precision: str) -> None:
    """Raises InvalidRequest unless the precision is known."""
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise InvalidRequest(f"precision is {precision[:20]!r}, but must be one of {known}")


class _Learnt:
    """What was understood of heads and field names, kept between requests.

    Shared by threads without a lock: entries are only added, and two threads that learn the same
    line learn equal things. Dropped whole when it has grown too large.
    """

    __slots__ = ("charged", "layouts", "series", "singles")

    def __init__(self) -> None:
        self.layouts: dict[Layout, Layout] = {}
        """One tuple for all series that have the same metrics: compared by identity further on."""
        self.series: dict[bytes, Series] = {}
        """By measurement and tags as written."""
        self.singles: dict[bytes, tuple[Series, tuple[str, ...]]] = {}
        """By a line with one field, up to its ``=``."""
        self.charged = 0


_MAX_LEARNT_CHARACTERS = 8 * 1024 * 1024
_learnt: dict[frozenset[str], _Learnt] = {}


def _one_line(body: bytes, scale: tuple[int, int], series_tags: Collection[str]) -> Decoded | None:
    """The row of a body of one line, if its measurement, tags and field names were understood before."""
    learnt = _learnt.get(frozenset(series_tags))
    if learnt is None:
        return None
    line = body.removesuffix(b"\n")
    before, _, after = line.rpartition(b"=")
    single = learnt.singles.get(before)
    try:
        if single is not None:
            series, layout = single
            raw, _, stamp = after.partition(b" ")
            numbers = [raw]
        else:
            head, fields, stamp = line.split(b" ")
            series = learnt.series[head]
            items = [item.partition(b"=") for item in fields.split(b",")]
            layout = series.layouts[tuple([item[0] for item in items])]
            numbers = [item[2] for item in items]
        if not _PLAIN.fullmatch(b"%b %b" % (b",".join(numbers), stamp)):
            return None
        values = tuple(map(float, numbers))
    except (KeyError, ValueError):
        return None
    time_ms = int(stamp) * scale[0] // scale[1]
    total = sum(values)
    if total - total != 0.0 or not -MAX_TIME_MS < time_ms < MAX_TIME_MS:
        return None
    attributes = {series.sensor: dict(series.attributes)} if series.attributes else {}
    return Decoded(Batch([series.sensor], [time_ms], [layout], [values], [1], attributes=attributes))


class _Decoder:
    """State of one request: its columns, and what is known of its heads and field names."""

    def __init__(self, precision: str, now_ms: int, series_tags: Collection[str], first_line: int) -> None:
        self._factor, self._divisor = PRECISIONS[precision]
        self._now_ms = now_ms
        self.next_line = first_line
        self._names = Names(series_tags=series_tags)
        key = frozenset(series_tags)
        self._learnt = _learnt.get(key) or _learnt.setdefault(key, _Learnt())
        self._learnt_key = key
        self._batch = Batch()
        self._packer: Packer | None = None
        """All rows so far, as long as each could be taken as arrays."""
        self._owners: list[Series] = []
        self._attributed = False
        """Whether an owner may have attributes."""
        self._errors: list[LineError] = []

    def take(self, body: bytes, start: int, size: int) -> int:
        """Decode from ``start`` to the first line end after ``size`` bytes, or the end; returns where."""
        whole = start == 0 and size >= len(body)
        end = len(body) if whole else body.find(b"\n", min(start + size, len(body))) + 1 or len(body)
        piece = body if whole else body[start:end]
        if len(piece) < _SHORT_BYTES:
            if _ROUGH.search(piece):
                return self._rough(body, start, end)
        elif b'"' in piece or b"\\" in piece or b"\t" in piece or b"\x0b" in piece or b"\x0c" in piece:
            return self._rough(body, start, end)
        if b"\r" in piece:
            tidy = piece.replace(b"\r\n", b"\n").removesuffix(b"\r")
            if b"\r" in tidy:
                return self._rough(body, start, end)
            piece = tidy
        self._tidy(piece)
        return end

    def result(self) -> Decoded:
        batch, columns = self._batch, self._packed()
        repeats = columns is None and has_repeats(batch)
        if repeats:
            batch = self._refuse_ambiguous()
        differ = False
        for series in reversed(dict.fromkeys(reversed(self._owners))) if self._attributed else ():
            if series.attributes:
                known = batch.attributes.setdefault(series.sensor, {})
                differ = differ or any(
                    known.get(name, value) != value for name, value in series.attributes.items()
                )
                known.update(series.attributes)
        if columns is not None:
            batch = PackedBatch(columns, attributes=batch.attributes)
        self._errors.sort(key=lambda error: error.line)
        self._learnt.charged += self._names.charged
        if self._learnt.charged > _MAX_LEARNT_CHARACTERS:
            _learnt.pop(self._learnt_key, None)
        return Decoded(collapse(batch) if repeats else batch, tuple(self._errors), attributes_differ=differ)

    def _packed(self) -> Columns | None:
        """All rows, if each could be taken as arrays and none repeats a key."""
        if self._packer is None:
            return None
        columns = self._packer.columns()
        if not _arrays().has_repeats(columns):
            return columns
        self._unpack()
        return None

    def _unpack(self) -> None:
        """Go on with lists."""
        if self._packer is None:
            return
        rows = PackedBatch(self._packer.columns(), attributes={})
        self._packer = None
        batch = self._batch
        batch.sensors, batch.times_ms, batch.layouts = rows.sensors, rows.times_ms, rows.layouts
        batch.values, batch.lines = rows.values, rows.lines

    def _tidy(self, piece: bytes) -> None:
        """Lines without quotes, backslashes, tabs and carriage returns."""
        start, size = 0, len(piece)
        # The last slice is no short one, or its few lines would decide how all the others are kept.
        while size - start > _SLICE_BYTES * 3 // 2:
            cut = piece.find(b"\n", start + _SLICE_BYTES)
            if cut < 0:
                break
            self._slice(piece[start : cut + 1])
            start = cut + 1
        self._slice(piece[start:] if start else piece)

    def _slice(self, piece: bytes) -> None:
        count = piece.count(b"\n")
        first, self.next_line = self.next_line, self.next_line + count
        piece = piece.removesuffix(b"\n")
        if len(piece) > MAX_LINE_BYTES:
            for number, line in enumerate(piece.split(b"\n"), first):
                self._line(line, number)
        elif count < _COLUMNS_FROM_LINES or not self._columns(piece, first):
            self._plain(enumerate(piece.split(b"\n"), first))

    def _columns(self, piece: bytes, first_line: int) -> bool:
        """Lines that all consist of a known head, fields of the same names with plain numbers, and a time.

        Returns False, and keeps nothing, where one of them does not.
        """
        spaces = piece.translate(None, _ALL_BUT_SPACES)
        count = len(spaces) // 3 + 1
        tokens = piece.split()
        if spaces != (b"  \n" * count)[:-1] or len(tokens) != 3 * count:
            return False
        heads, fields = tokens[0::3], tokens[1::3]
        names = tuple([item.partition(b"=")[0] for item in fields[0].split(b",")])
        known = self._learnt.series
        try:
            series = {head: known[head] for head in dict.fromkeys(heads)}
            layouts = {head: each.layouts[names] for head, each in series.items()}
            numbers = _single_column(names[0], fields) if len(names) == 1 else _many_columns(names, fields)
            if numbers is None or len(numbers) != count * len(names):
                return False
            if not self._pack(heads, series, layouts, numbers, tokens[2::3], first_line):
                stamps = _STAMPS[self._factor, self._divisor].decode(b"[%b]" % b",".join(tokens[2::3]))
                if len(stamps) != count:
                    return False
                self._list(heads, series, layouts, numbers, stamps, first_line)
        except (KeyError, msgspec.DecodeError):
            return False
        if any([each.attributes for each in series.values()]):  # noqa: C419 - a list is faster
            self._owners += map(series.__getitem__, heads)
            self._attributed = True
        else:
            # Owners only matter by their attributes.
            self._owners += [next(iter(series.values()))] * count
        return True

    def _pack(
        self,
        heads: list[bytes],
        series: dict[bytes, Series],
        layouts: dict[bytes, Layout],
        numbers: list[float],
        stamps: list[bytes],
        first_line: int,
    ) -> bool:
        """Take these rows as arrays, if they and all before them can be."""
        layout = layouts[heads[0]]
        packer = self._packer
        if any(each is not layout for each in layouts.values()):
            return False
        if packer is None:
            possible = len(heads) >= _ARRAYS_FROM_LINES and not self._batch.times_ms
        else:
            possible = packer.layout is layout and packer.next_line == first_line
        if not possible:
            return False
        times_ms = _arrays().times_of(stamps, factor=self._factor, divisor=self._divisor)
        if times_ms is None:
            return False
        if packer is None:
            packer = self._packer = _arrays().Packer(layout, first_line)
        packer.take(heads, {head: each.sensor for head, each in series.items()}, times_ms, numbers)
        return True

    def _list(
        self,
        heads: list[bytes],
        series: dict[bytes, Series],
        layouts: dict[bytes, Layout],
        numbers: list[float],
        stamps: list[int],
        first_line: int,
    ) -> None:
        """Take these rows as lists."""
        self._unpack()
        factor, divisor, count = self._factor, self._divisor, len(heads)
        if divisor != 1:
            stamps = [stamp // divisor for stamp in stamps]
        elif factor != 1:
            stamps = [stamp * factor for stamp in stamps]
        batch = self._batch
        sensors = {head: each.sensor for head, each in series.items()}
        batch.sensors += map(sensors.__getitem__, heads)
        batch.times_ms += stamps
        different = set(layouts.values())
        batch.layouts += [different.pop()] * count if len(different) == 1 else map(layouts.__getitem__, heads)
        batch.values += zip(*[iter(numbers)] * (len(numbers) // count), strict=True)
        batch.lines += range(first_line, first_line + count)

    def _plain(self, lines: Iterable[tuple[int, bytes]]) -> None:
        """Lines without quotes, backslashes and tabs."""
        self._unpack()
        self._attributed = True
        batch, singles, heads = self._batch, self._learnt.singles, self._learnt.series
        factor, divisor = self._factor, self._divisor
        add_sensor, add_time = batch.sensors.append, batch.times_ms.append
        add_layout, add_values = batch.layouts.append, batch.values.append
        add_line, add_owner = batch.lines.append, self._owners.append
        number = float
        for count, line in lines:
            prefix, _, rest = line.rpartition(b"=")
            single = singles.get(prefix)
            if single is not None:
                raw, _, stamp = rest.partition(b" ")
                try:
                    value = number(raw)
                    time_ms = int(stamp) * factor // divisor
                except ValueError:
                    self._line(line, count)
                    continue
                if (
                    value - value == 0.0
                    and b"_" not in rest
                    and -MAX_TIME_MS < time_ms < MAX_TIME_MS
                    and len(stamp) <= _STAMP_DIGITS
                ):
                    series, layout = single
                    add_sensor(series.sensor)
                    add_time(time_ms)
                    add_layout(layout)
                    add_values((value,))
                    add_line(count)
                    add_owner(series)
                else:
                    self._line(line, count)
                continue
            try:
                head, fields, stamp = line.split(b" ")
                series = heads[head]
                items = [item.partition(b"=") for item in fields.split(b",")]
                layout = series.layouts[tuple([item[0] for item in items])]
                values = tuple([number(item[2]) for item in items])
                time_ms = int(stamp) * factor // divisor
            except (ValueError, KeyError):
                self._line(line, count)
                continue
            total = sum(values)
            if (
                total - total == 0.0
                and -MAX_TIME_MS < time_ms < MAX_TIME_MS
                and not any([b"_" in item[2] for item in items])  # noqa: C419 - a list is faster
                and b"_" not in stamp
                and len(stamp) <= _STAMP_DIGITS
            ):
                add_sensor(series.sensor)
                add_time(time_ms)
                add_layout(layout)
                add_values(values)
                add_line(count)
                add_owner(series)
            else:
                self._line(line, count)

    def _rough(self, body: bytes, position: int, stop: int) -> int:
        """Any lines, up to the first that ends at ``stop`` or after; returns the position behind it.

        A string may run over line ends, so lines are found while parsing.
        """
        count, size = self.next_line, len(body)
        while position < stop:
            end = body.find(b"\n", position)
            if end < 0:
                end = size
            line = body[position:end]
            if _ROUGH.search(line) or len(line) > MAX_LINE_BYTES:
                parsed = self._line(body, count, position)
                count += body.count(b"\n", end, parsed)
                end = parsed
            else:
                self._plain(((count, line),))
            count += 1
            position = end + 1
        self.next_line = count
        return position

    def _line(self, body: bytes, count: int, position: int = 0) -> int:
        """Parse the line that begins at ``position``; returns where it ends.

        A refused line ends at its first line break even inside a string, so that a forgotten quote
        costs its own line only. (Scans stay linear: none passes the next line's opening quote.)
        """
        try:
            return self._parse(body, count, position)
        except (_Refused, NameRefused) as error:
            self._errors.append(LineError(count, str(error)))
        except UnicodeDecodeError:
            self._errors.append(LineError(count, "not valid UTF-8"))
        end = body.find(b"\n", position)
        return len(body) if end < 0 else end

    def _parse(self, body: bytes, count: int, position: int) -> int:
        start = position
        while body[position : position + 1] in (b" ", b"\t"):
            position += 1
        first = body[position : position + 1]
        end = body.find(b"\n", position)
        if end < 0:
            end = len(body)
        if first in (b"", b"\n", b"#") or (first == b"\r" and position + 1 == end):
            return end
        if end - start > MAX_LINE_BYTES:
            raise _Refused(f"line is longer than {MAX_LINE_BYTES} bytes")
        head_start = position
        position, series = self._head(body, position)
        fields_start = position = _skip_spaces(body, position)
        keys: list[bytes] = []
        values: list[Value] = []
        while True:
            match = _KEY.match(body, position)
            if match is None or body[match.end() : match.end() + 1] != b"=":
                found = _shown(body, position)
                raise _Refused(f"expected field=value, found {found}" if found != "''" else "no field")
            key = match[0]
            position, value = _value(body, match.end() + 1, key)
            keys.append(key)
            values.append(value)
            if body[position : position + 1] != b",":
                break
            position += 1
        end = body.find(b"\n", position)
        if end < 0:
            end = len(body)
        if end - start > MAX_LINE_BYTES:
            raise _Refused(f"line is longer than {MAX_LINE_BYTES} bytes")
        time_ms = self._time(body[position:end])
        names = tuple(keys)
        layout = series.layouts.get(names)
        if layout is None:
            layout = series.layout([_text(_UNESCAPE_KEY, key) for key in keys], names=self._names)
            series.layouts[names] = layout = self._learnt.layouts.setdefault(layout, layout)
        if len(keys) == 1:
            shape = body[head_start:fields_start] + keys[0]
            if not _ROUGH.search(shape):
                self._learnt.singles[shape] = (series, layout)
                self._learnt.charged += len(shape) + 200
        self._unpack()
        batch = self._batch
        batch.sensors.append(series.sensor)
        batch.times_ms.append(time_ms)
        batch.layouts.append(layout)
        batch.values.append(tuple(values))
        batch.lines.append(count)
        self._owners.append(series)
        self._attributed = True
        return end

    def _head(self, body: bytes, position: int) -> tuple[int, Series]:
        """Measurement and tags at ``position``: where they end, and their series."""
        start = position
        match = _MEASUREMENT.match(body, position)
        if match is None:
            raise _Refused(f"no measurement before {_shown(body, position)}")
        measurement, position = match[0], match.end()
        pairs: list[tuple[bytes, bytes]] = []
        while body[position : position + 1] == b",":
            key = _KEY.match(body, position + 1)
            if key is None or body[key.end() : key.end() + 1] != b"=":
                raise _Refused(f"expected tag=value, found {_shown(body, position + 1)}")
            value = _KEY.match(body, key.end() + 1)
            if value is None:
                raise _Refused(f"tag {_show(key[0])} has no value")
            pairs.append((key[0], value[0]))
            position = value.end()
        if body[position : position + 1] != b" ":
            found = _shown(body, position)
            raise _Refused("no field" if found == "''" else f"expected a space, found {found}")
        head = body[start:position]
        series = self._learnt.series.get(head)
        if series is None:
            tags = {_text(_UNESCAPE_KEY, k): _text(_UNESCAPE_KEY, v) for k, v in pairs}
            if len(tags) != len(pairs):
                raise _Refused("a tag occurs twice")
            series = self._names.resolve(_text(_UNESCAPE_MEASUREMENT, measurement), tags)
            self._learnt.series[head] = series
        return position, series

    def _time(self, tail: bytes) -> int:
        """Time in ms from what follows the fields."""
        stamp = tail.removesuffix(b"\r").strip(b" ")
        if not stamp:
            if tail[:1] not in (b"", b" ", b"\r"):
                raise _Refused(f"expected a space, found {_show(tail)}")
            return self._now_ms
        if tail[:1] != b" ":
            raise _Refused(f"expected a comma or a space, found {_show(tail)}")
        if not _STAMP.fullmatch(stamp):
            raise _Refused(f"time stamp {_show(stamp)} is not a whole number")
        time_ms = int(stamp) * self._factor // self._divisor
        if not -MAX_TIME_MS < time_ms < MAX_TIME_MS:
            raise _Refused(f"time stamp {_show(stamp)} is out of range: check the precision")
        return time_ms

    def _refuse_ambiguous(self) -> Batch:
        """The batch without lines that meet on one key but carry different attribute tags."""
        batch, owners = self._batch, self._owners
        if not any(s.attributes for s in owners):
            return batch
        places = list(zip(batch.sensors, batch.times_ms, strict=True))
        rows: dict[tuple[str, int], list[int]] = {}
        for index, place in enumerate(places):
            rows.setdefault(place, []).append(index)
        refused: dict[int, int] = {}
        for meeting in rows.values():
            if len(meeting) > 1:
                refused.update(self._clashes(meeting))
        if not refused:
            return batch
        for index, other in refused.items():
            self._errors.append(
                LineError(
                    batch.lines[index],
                    f"ambiguous: differs from line {batch.lines[other]} in nothing but attribute tags; "
                    "name the tag in series_tags, or send another sensor or time",
                )
            )
        keep = [i for i in range(len(batch)) if i not in refused]
        self._owners = [owners[i] for i in keep]
        return batch.select(keep)

    def _clashes(self, meeting: list[int]) -> Iterator[tuple[int, int]]:
        """Rows of one sensor and time that share a metric with a row of other attributes."""
        by_metric: dict[str, list[int]] = {}
        for index in meeting:
            for metric in self._batch.layouts[index]:
                by_metric.setdefault(metric, []).append(index)
        for indexes in by_metric.values():
            first = indexes[0]
            other = next(
                (i for i in indexes if self._owners[i].attributes != self._owners[first].attributes), None
            )
            if other is not None:
                for index in indexes:
                    yield index, other if index != other else first


def _single_column(name: bytes, fields: list[bytes]) -> list[float] | None:
    """Values of fields that are all ``name=number``; None if one is not.

    Raises:
        msgspec.DecodeError: one is no JSON number, or too large for a double.
    """
    before = b"," + b",".join(fields)
    after = before.replace(b",%b=" % name, b",")
    # As many names as fields are gone; if what is left is as many numbers, each had its name.
    if len(before) - len(after) != len(fields) * (len(name) + 1):
        return None
    return _numbers(after[1:])


def _many_columns(names: tuple[bytes, ...], fields: list[bytes]) -> list[float] | None:
    """As above, for fields that all are ``name=number,name=number,...``."""
    width = len(names)
    text = b"\n".join(fields)
    if text.translate(None, _ALL_BUT_FIELD_MARKS) != ((b"=," * (width - 1) + b"=\n") * len(fields))[:-1]:
        return None
    parts = text.translate(_TO_COMMAS).split(b",")
    if parts[0::2] != list(names) * len(fields):
        return None
    return _numbers(b",".join(parts[1::2]))


def _numbers(text: bytes) -> list[float]:
    """Numbers with commas between."""
    numbers = _NUMBERS.decode(b"[%b]" % text)
    if b"-0" in text:
        # "-0" is taken for a whole number, which has no sign.
        numbers = [number or float(raw) for number, raw in zip(numbers, text.split(b","), strict=True)]
    return numbers


def _value(body: bytes, position: int, key: bytes) -> tuple[int, Value]:
    if body[position : position + 1] == b'"':
        text = _TEXT.match(body, position)
        if text is None:
            raise _Refused(f"string of field {_show(key)} is not closed")
        if len(text[1]) > MAX_TEXT_BYTES:
            raise _Refused(f"string of field {_show(key)} is longer than {MAX_TEXT_BYTES} bytes")
        return text.end(), _text(_UNESCAPE_TEXT, text[1])
    bare = _BARE.match(body, position)
    raw = bare[0] if bare else b""
    end = position + len(raw)
    raw = raw.removesuffix(b"\r") if body[end : end + 1] in (b"", b"\n") else raw
    if _FLOAT.fullmatch(raw):
        value = float(raw)
        if value - value != 0.0:
            raise _Refused(f"value {_show(raw)} of field {_show(key)} is too large for a double")
        return end, value
    if signed := _SIGNED.fullmatch(raw):
        whole = int(signed[1])
        if not -(2**63) <= whole < 2**63:
            raise _Refused(f"value {_show(raw)} of field {_show(key)} is out of range")
        return end, float(whole)
    if unsigned := _UNSIGNED.fullmatch(raw):
        whole = int(unsigned[1])
        if whole >= 2**64:
            raise _Refused(f"value {_show(raw)} of field {_show(key)} is out of range")
        return end, float(whole)
    if raw in _BOOLEANS:
        return end, _BOOLEANS[raw]
    if not raw:
        raise _Refused(f"field {_show(key)} has no value")
    raise _Refused(
        f"value {_show(raw)} of field {_show(key)} is neither a finite number, a boolean nor a quoted string"
    )


def _skip_spaces(body: bytes, position: int) -> int:
    match = _SPACES.match(body, position)
    return match.end() if match else position


def _text(escapes: re.Pattern[bytes], raw: bytes) -> str:
    if b"\\" in raw:
        raw = escapes.sub(rb"\1", raw)
    return raw.decode()


def _show(raw: bytes) -> str:
    """For reasons: short, quoted, never a raw control character."""
    text = raw[:60].decode("utf-8", "replace")
    return repr(text + "…" if len(raw) > 60 else text)


def _shown(body: bytes, position: int) -> str:
    match = _TAIL.match(body, position, position + 61)
    return _show(match[0].removesuffix(b"\r") if match else b"")
