"""sensor.community: what airRohr devices push to an "own API".

The header ``X-Sensor`` names the device and ``X-PIN`` one of its sensors; the body has no time, so all
values are of the time of receipt. Values come as strings. One that is no number is kept as text, for
the firmware sends dates of its GPS too; ``nan``, infinities and empty ones say that there was nothing
to measure: they are left out and counted, since no device could do anything about them.
"""

from __future__ import annotations

import re

import msgspec

from fieldring.errors import InvalidRequest, LineError, TooLarge
from fieldring.model import Batch, Row, Value
from fieldring.wire.decoded import Decoded, collapse
from fieldring.wire.names import NameRefused, check_name

__all__ = ["MAX_BODY_BYTES", "MAX_TEXT_BYTES", "decode", "sensor_name"]

MAX_BODY_BYTES = 1_048_576
"""Longest body: its values are one row, which must fit into one mutation of the ring."""

MAX_TEXT_BYTES = 65_536

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOTHING = re.compile(r"(?:[+-]?(?:nan|inf|infinity)|null|none)?", re.IGNORECASE)
_PIN = re.compile(r"[0-9A-Za-z]{1,16}")


class _Body(msgspec.Struct):
    sensordatavalues: list[msgspec.Raw]
    software_version: str | None = None


class _Entry(msgspec.Struct):
    value_type: str
    value: str | float | bool | None


_BODY = msgspec.json.Decoder(_Body)
_ENTRY = msgspec.json.Decoder(_Entry)


def sensor_name(device: str, pin: str) -> str:
    """The sensor of the headers ``X-Sensor`` and ``X-PIN``.

    >>> sensor_name("esp8266-12345678", "1")
    'esp8266-12345678-1'

    Raises:
        InvalidRequest: a header is missing or cannot be part of a name.
    """
    if not device:
        raise InvalidRequest("header X-Sensor is missing: it names the device, as in 'esp8266-12345678'")
    if pin and not _PIN.fullmatch(pin):
        raise InvalidRequest(f"header X-PIN is {pin[:40]!r}, but must be up to 16 letters and digits")
    sensor = f"{device}-{pin}" if pin else device
    try:
        check_name("header X-Sensor", sensor)
    except NameRefused as error:
        raise InvalidRequest(str(error)) from None
    return sensor


def decode(body: bytes, *, device: str, pin: str = "", now_ms: int) -> Decoded:
    """One row of all values, and the entries that were refused (``line`` counts entries from 1).

    Raises:
        InvalidRequest: no device, or the body is not a JSON object with ``sensordatavalues``.
        TooLarge: the body is no reading of one device any more.
    """
    sensor = sensor_name(device, pin)
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge(f"body is larger than {MAX_BODY_BYTES} bytes, too much for one reading of a device")
    try:
        body.decode()
        parsed = _BODY.decode(body)
    except UnicodeDecodeError:
        raise InvalidRequest("body is not valid UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"body is not an object with sensordatavalues: {error}") from None
    batch = Batch()
    errors: list[LineError] = []
    left_out = 0
    for count, raw in enumerate(parsed.sensordatavalues, 1):
        try:
            entry = _ENTRY.decode(raw)
            check_name("value_type", entry.value_type)
            value = _value(entry.value)
        except (msgspec.DecodeError, RecursionError, NameRefused) as error:
            errors.append(LineError(count, str(error)))
            continue
        if value is None:
            left_out += 1
            continue
        batch.append(Row(sensor, now_ms, (entry.value_type,), (value,)), line=count)
    if len(batch) and parsed.software_version:
        version = parsed.software_version[:200]
        if version.isprintable():
            batch.attributes[sensor] = {"software_version": version}
    return Decoded(
        _one_row(collapse(batch)), tuple(errors), left_out={"not_finite": left_out} if left_out else {}
    )


def _value(value: str | float | bool | None) -> Value | None:
    """A value as it is kept, or None where there is none."""
    if value is None:
        return None
    if not isinstance(value, str):
        return float(value)
    text = value.strip()
    if _NUMBER.fullmatch(text):
        number = float(text)
        return number if number - number == 0.0 else None
    if _NOTHING.fullmatch(text):
        return None
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise NameRefused(f"value is longer than {MAX_TEXT_BYTES} bytes")
    return text


def _one_row(batch: Batch) -> Batch:
    """All values as one row, as they are one reading of one device."""
    if len(batch) < 2:
        return batch
    return Batch(
        sensors=batch.sensors[:1],
        times_ms=batch.times_ms[:1],
        layouts=[tuple(layout[0] for layout in batch.layouts)],
        values=[tuple(values[0] for values in batch.values)],
        lines=batch.lines[:1],
        attributes=batch.attributes,
        collapsed=batch.collapsed,
    )
