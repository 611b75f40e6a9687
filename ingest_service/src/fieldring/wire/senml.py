"""SenML in JSON and CBOR (RFC 8428), names of devices as in RFC 9039.

Each record becomes one row. A sum (``s``, ``bs``) is a metric of its own, ``<metric>_sum``, as it has
another unit than the value. Units become attributes of the sensor, ``unit:<metric>``.
A bad record is refused alone, unless it carried base fields that nobody can read: then the names
and times of all that follow are unknown, and they are refused with it.

CBOR has integer labels (table 4 of the RFC); the names are taken too. Of tags only decimal fractions
are part of SenML; every other is refused before it is built, as are bytes behind the pack.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from io import BytesIO
from typing import Any

import cbor2
import msgspec

from fieldring.errors import InvalidRequest, LineError, UnsupportedMediaType
from fieldring.model import Batch, Row, Value
from fieldring.wire.decoded import MAX_ERRORS, MAX_TIME_MS, Decoded, collapse
from fieldring.wire.names import NameRefused, check_name, split_senml_name

__all__ = ["CBOR", "CONTENT_TYPES", "MAX_TEXT_BYTES", "RELATIVE_BELOW_SECONDS", "decode", "decoded_factor"]

CBOR = "application/senml+cbor"
CONTENT_TYPES = ("application/senml+json", "application/json", CBOR)
MAX_TEXT_BYTES = 65_536
RELATIVE_BELOW_SECONDS = 2**28
"""Times below are relative to now (RFC 8428, 4.5.3)."""

_VERSION = 10
_MAX_REQUEST_NAME_CHARACTERS = 32 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-:./_]*")
_BASE_FIELDS = ("bn", "bt", "bu", "bv", "bs", "bver")


class _Record(msgspec.Struct, gc=False):
    bn: str | None = None
    bt: float | None = None
    bu: str | None = None
    bv: float | None = None
    bs: float | None = None
    bver: float | None = None
    n: str = ""
    u: str | None = None
    v: float | None = None
    vs: str | None = None
    vb: bool | None = None
    vd: str | None = None
    s: float | None = None
    t: float = 0.0


class _Base(msgspec.Struct, gc=False):
    bn: str | None = None
    bt: float | None = None
    bu: str | None = None
    bv: float | None = None
    bs: float | None = None
    bver: float | None = None


class _Refused(Exception):  # noqa: N818
    """A record that cannot be kept; the text is the reason."""


_PACK = msgspec.json.Decoder(list[_Record])
_RAW_PACK = msgspec.json.Decoder(list[msgspec.Raw])
_RECORD = msgspec.json.Decoder(_Record)
_BASE = msgspec.json.Decoder(_Base)
_LABELS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode(body: bytes, *, content_type: str = CONTENT_TYPES[0], now_ms: int) -> Decoded:
    """Rows of a SenML pack, and the records that were refused (``line`` counts records from 1).

    Raises:
        UnsupportedMediaType: ``content_type`` is not SenML in JSON or CBOR.
        InvalidRequest: the body is not an array of records, or asks for a SenML that we do not speak.
    """
    kind = _kind(content_type)
    if kind not in CONTENT_TYPES:
        raise UnsupportedMediaType(
            f"content type {kind[:80] or 'missing'!r}: send application/senml+json or application/senml+cbor"
        )
    pack = _Pack(now_ms)
    if kind == CBOR:
        _decode_cbor(body, pack)
    else:
        _decode_json(body, pack)
    return pack.result()


def decoded_factor(content_type: str) -> int:
    """Memory that a decoded body and its block take at most, as a multiple of its bytes.

    A pack is decoded whole. Measured at its worst: bodies of the smallest records that can be written.
    """
    return 200 if _kind(content_type) == CBOR else 60


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _decode_json(body: bytes, pack: _Pack) -> None:
    try:
        body.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("body is not valid UTF-8") from None
    if b'_"' in body or b"\\u" in body:
        _must_understand(body)
    try:
        records = _PACK.decode(body)
    except msgspec.ValidationError:
        _one_by_one(body, pack)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"body is not a JSON array of SenML records: {error}") from None
    else:
        for count, record in enumerate(records, 1):
            pack.add(count, record)


def _one_by_one(body: bytes, pack: _Pack) -> None:
    try:
        raws = _RAW_PACK.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"body is not a JSON array of SenML records: {error}") from None
    for count, raw in enumerate(raws, 1):
        try:
            record = _RECORD.decode(raw)
        except (msgspec.DecodeError, RecursionError) as error:
            pack.refuse(count, str(error))
            if not bytes(raw).lstrip().startswith(b"{"):
                continue
            try:
                pack.rebase(_BASE.decode(raw))
            except (msgspec.DecodeError, RecursionError):
                for later in range(count + 1, len(raws) + 1):
                    pack.refuse(later, f"base fields of record {count} cannot be read")
                return
        else:
            pack.add(count, record)


def _must_understand(body: bytes) -> None:
    """A label that ends in "_" and is not known forbids using the pack (RFC 8428, 4.4)."""
    try:
        raws = _RAW_PACK.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"body is not a JSON array of SenML records: {error}") from None
    for count, raw in enumerate(raws, 1):
        try:
            labels = _LABELS.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            continue
        for label in labels:
            if label.endswith("_"):
                reason = f"label {label[:60]!r} must be understood, but is not"
                raise InvalidRequest(f"record {count}: {reason}", lines=(LineError(count, reason),))


# Table 4 of RFC 8428. "ut" (7) is known, but says nothing of a value.
_CBOR_LABELS: dict[Any, str] = {
    -1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs",
    0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 8: "vd",
}  # fmt: skip
_CBOR_LABELS |= {name: name for name in _CBOR_LABELS.values()}
_MAX_CBOR_DEPTH = 8


class _OnlyDecimalFractions(Mapping[int, Callable[..., Any]]):
    """Decoders by tag, as cbor2 asks for them: its own for tag 4, a refusal for every other.

    Numbers of any length, shared references, dates and patterns would cost more than their bytes.
    """

    def __getitem__(self, tag: int) -> Callable[..., Any]:
        if tag == 4:
            raise KeyError(tag)

        def refuse(*_: object) -> Any:
            raise _Refused(f"tag {tag} is not part of SenML")

        return refuse

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 1


_TAGS = _OnlyDecimalFractions()


def _refuse_tag(tag: cbor2.CBORTag, *_: object) -> Any:
    raise _Refused(f"tag {tag.tag} is not part of SenML")


def _decode_cbor(body: bytes, pack: _Pack) -> None:
    # RFC 8949, 3.4.6: a tag that says nothing but that this is CBOR.
    stream = BytesIO(body.removeprefix(b"\xd9\xd9\xf7"))
    length = len(stream.getbuffer())
    try:
        records = cbor2.CBORDecoder(
            stream,
            tag_hook=_refuse_tag,
            semantic_decoders=_TAGS,
            max_depth=_MAX_CBOR_DEPTH,
            allow_duplicate_keys=False,
        ).decode()
    except (cbor2.CBORDecodeError, _Refused) as error:
        cause = error.__cause__ if isinstance(error.__cause__, _Refused) else error
        raise InvalidRequest(f"body is not a CBOR array of SenML records: {str(cause)[:200]}") from None
    if not isinstance(records, list):
        raise InvalidRequest("body is not a CBOR array of SenML records: it holds something else")
    if stream.tell() != length:
        raise InvalidRequest(f"body goes on after the CBOR array, which ends at byte {stream.tell()}")
    for count, item in enumerate(records, 1):
        if isinstance(item, dict):
            for label in item:
                if isinstance(label, str) and label.endswith("_"):
                    reason = f"label {label[:60]!r} must be understood, but is not"
                    raise InvalidRequest(f"record {count}: {reason}", lines=(LineError(count, reason),))
    for count, item in enumerate(records, 1):
        if not isinstance(item, dict):
            pack.refuse(count, f"expected a map, found {_shown(item)}")
            continue
        try:
            record = _Record(**_fields(item))
        except _Refused as error:
            pack.refuse(count, str(error))
            try:
                pack.rebase(_Base(**_fields(item, only=_BASE_FIELDS)))
            except _Refused:
                for later in range(count + 1, len(records) + 1):
                    pack.refuse(later, f"base fields of record {count} cannot be read")
                return
        else:
            pack.add(count, record)


def _fields(item: dict[Any, Any], *, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Fields of a record that we know, by name and of the right type."""
    found: dict[str, Any] = {}
    for label, value in item.items():
        if type(label) is not int and type(label) is not str:
            continue
        name = _CBOR_LABELS.get(label)
        if name is None or value is None or (only and name not in only):
            continue
        if name in found:
            raise _Refused(f"{name} occurs twice, as number and as name of the label")
        found[name] = _FIELD_TYPES[name](name, value)
    return found


def _number(name: str, value: Any) -> float:
    kind = type(value)
    if kind is float:
        return float(value)
    if kind is int or kind is Decimal:
        try:
            return float(value)
        except OverflowError:
            raise _Refused(f"{name} is out of range") from None
    raise _Refused(f"{name}: expected a number, found {_shown(value)}")


def _whole(name: str, value: Any) -> int:
    if type(value) is not int:
        raise _Refused(f"{name}: expected a whole number, found {_shown(value)}")
    return value


def _string(name: str, value: Any) -> str:
    if type(value) is not str:
        raise _Refused(f"{name}: expected a text string, found {_shown(value)}")
    return value


def _boolean(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise _Refused(f"{name}: expected true or false, found {_shown(value)}")
    return value


def _opaque(name: str, value: Any) -> str:
    return ""


_FIELD_TYPES: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("bt", "bv", "bs", "v", "s", "t"), _number),
    **dict.fromkeys(("bn", "bu", "n", "u", "vs"), _string),
    "bver": _whole,
    "vb": _boolean,
    "vd": _opaque,
}

_KINDS = {
    bool: "a boolean", int: "a whole number", float: "a number", Decimal: "a number", str: "a text string",
    bytes: "a byte string", list: "an array", dict: "a map",
}  # fmt: skip


def _shown(value: object) -> str:
    return _KINDS.get(type(value), "something else")


class _Pack:
    """Base fields in force, and the rows so far."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._batch = Batch()
        self._errors: list[LineError] = []
        self._more_errors = 0
        self._known: dict[tuple[str, str, str], tuple[str, str]] = {}
        self._left = _MAX_REQUEST_NAME_CHARACTERS
        self._bn = self._bu = ""
        self._bt = self._bv = 0.0
        self._bs: float | None = None

    def refuse(self, count: int, reason: str) -> None:
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(LineError(count, reason))
        else:
            self._more_errors += 1

    def rebase(self, record: _Record | _Base) -> None:
        if record.bver is not None and not (1 <= record.bver <= _VERSION and record.bver == int(record.bver)):
            raise InvalidRequest(f"SenML version {record.bver:g} is not spoken here, only up to {_VERSION}")
        if record.bn is not None:
            self._bn = record.bn
        if record.bt is not None:
            self._bt = record.bt
        if record.bu is not None:
            self._bu = record.bu
        if record.bv is not None:
            self._bv = record.bv
        if record.bs is not None:
            self._bs = record.bs

    def add(self, count: int, record: _Record) -> None:
        self.rebase(record)
        try:
            row = self._row(record)
        except (_Refused, NameRefused) as error:
            self.refuse(count, str(error))
        else:
            if row is not None:
                self._batch.append(row, line=count)

    def result(self) -> Decoded:
        return Decoded(collapse(self._batch), tuple(self._errors), more_errors=self._more_errors)

    def _row(self, record: _Record) -> Row | None:
        given = [record.v is not None, record.vs is not None, record.vb is not None, record.vd is not None]
        if sum(given) > 1:
            raise _Refused("more than one of v, vs, vb and vd")
        if record.vd is not None:
            raise _Refused("vd: opaque data is not a measurement and is not kept")
        value: Value | None = None
        if record.v is not None:
            value = _finite("v", record.v + self._bv)
        elif record.vb is not None:
            value = float(record.vb)
        elif record.vs is not None:
            if len(record.vs) > MAX_TEXT_BYTES // 4 and len(record.vs.encode()) > MAX_TEXT_BYTES:
                raise _Refused(f"vs is longer than {MAX_TEXT_BYTES} bytes")
            value = record.vs
        total: float | None = None
        if record.s is not None or (self._bs is not None and value is not None):
            total = _finite("s", (record.s or 0.0) + (self._bs or 0.0))
        if value is None and total is None:
            if not record.n and any(getattr(record, name) is not None for name in _BASE_FIELDS):
                return None
            raise _Refused("no value: expected v, vs, vb or s")
        unit = record.u if record.u is not None else self._bu
        sensor, metric = self._resolve(record.n, unit)
        time_ms = self._time(record.t)
        layout: tuple[str, ...]
        values: tuple[Value, ...]
        if total is None:
            layout, values = (metric,), (value,) if value is not None else ()
        elif value is None:
            layout, values = (metric + "_sum",), (total,)
        else:
            layout, values = (metric, metric + "_sum"), (value, total)
        if unit and value is not None:
            self._batch.attributes.setdefault(sensor, {})[f"unit:{metric}"] = unit
        return Row(sensor, time_ms, layout, values)

    def _resolve(self, name: str, unit: str) -> tuple[str, str]:
        key = (self._bn, name, unit)
        found = self._known.get(key)
        if found is None:
            self._left -= len(self._bn) + len(name)
            if self._left < 0:
                raise _Refused("too many different names in one request: send it in parts")
            whole = self._bn + name
            if not whole:
                raise _Refused("no name: neither bn nor n")
            check_name("name", whole)
            if not _NAME.fullmatch(whole):
                raise _Refused(
                    f"name {whole[:80]!r} must begin with a letter or digit and hold only these and -:./_"
                )
            if unit:
                check_name("unit", unit)
            found = self._known[key] = split_senml_name(whole, unit)
        return found

    def _time(self, offset: float) -> int:
        seconds = self._bt + offset
        if not -MAX_TIME_MS < seconds * 1000 < MAX_TIME_MS:
            raise _Refused(f"time {seconds} s is out of range")
        # A double holds decimal seconds inexactly: to the nearest µs first, then truncated.
        ms = round(seconds * 1e6) // 1000
        return self._now_ms + ms if seconds < RELATIVE_BELOW_SECONDS else ms


def _finite(what: str, value: float) -> float:
    if value - value != 0.0:
        raise _Refused(f"{what} is not a finite number")
    return value
