r"""Which sensor and which metric a measurement with tags, or a SenML name, stands for.

Tagged formats: the tag ``sensor``, else ``sensor_id``, else ``node`` names the sensor and the other
tags are its attributes, except those in ``series_tags``, which stand in the metric's name as
``metric{k=v,k2=v2}``. Without these, ``host`` names the sensor and every other tag stands in the
metric's name. Without any, the sensor is ``measurement,k=v,k2=v2`` with all tags, sorted.

Inside composed names ``\``, ``,``, ``=``, ``{`` and ``}`` are escaped with a backslash, so two
different series never share a name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

__all__ = ["MAX_NAME_BYTES", "NameRefused", "Names", "Series", "split_senml_name"]

MAX_NAME_BYTES = 4096
"""Longest name of a sensor or metric: far below what a Cassandra partition key can hold."""

_MAX_REQUEST_NAME_CHARACTERS = 64 * 1024 * 1024
_SERIES_OVERHEAD = 200
_SENSOR_TAGS = ("sensor", "sensor_id", "node")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SPECIAL = re.compile(r"([\\,={}])")


class NameRefused(Exception):  # noqa: N818 - it is a verdict on a line, turned into a LineError
    """A name that cannot be kept; the text is the reason."""


class Series:
    """One measurement with one set of tags, resolved; makes metric names from field names."""

    __slots__ = ("attributes", "layouts", "measurement", "sensor", "suffix")

    def __init__(self, sensor: str, measurement: str, suffix: str, attributes: dict[str, str]) -> None:
        self.sensor = sensor
        self.measurement = measurement
        self.suffix = suffix
        self.attributes = attributes
        self.layouts: dict[tuple[bytes, ...], tuple[str, ...]] = {}
        """For decoders: layouts by the field names as written."""

    def layout(self, fields: Collection[str], *, names: Names) -> tuple[str, ...]:
        """Metric names of these fields, in order; their size is charged to ``names``.

        Raises:
            NameRefused: a field occurs twice, or a name is too long or unprintable.
        """
        if len(set(fields)) != len(fields):
            twice = next(name for name in fields if list(fields).count(name) > 1)
            raise NameRefused(f"field {twice!r} occurs twice")
        # Before they are made: a long measurement times many short fields is a memory bomb.
        names.charge(len(fields) * (len(self.measurement) + len(self.suffix)) + sum(map(len, fields)))
        base, suffix = self.measurement, self.suffix
        layout = tuple(base + suffix if f == "value" else f"{base}_{f}{suffix}" for f in fields)
        for metric in layout:
            check_name("metric", metric)
        return layout


class Names:
    """Resolver for one request; ``series_tags`` always distinguish series."""

    def __init__(self, *, series_tags: Collection[str] = ()) -> None:
        self._series_tags = frozenset(series_tags)
        self.charged = 0

    def charge(self, size: int) -> None:
        """Count names about to be made; a request may make a limited amount."""
        self.charged += size
        if self.charged > _MAX_REQUEST_NAME_CHARACTERS:
            raise NameRefused("too many different names in one request: send it in parts")

    def resolve(self, measurement: str, tags: Mapping[str, str]) -> Series:
        """The series of a measurement and its tags.

        Raises:
            NameRefused: the name is empty, too long or unprintable.
        """
        self.charge(_SERIES_OVERHEAD + len(measurement) + sum(map(len, tags)) + sum(map(len, tags.values())))
        for key, value in tags.items():
            check_name("tag", key)
            check_name(f"value of tag {key!r}", value)
        for tag in _SENSOR_TAGS:
            if tag in tags:
                rest = {k: v for k, v in tags.items() if k != tag}
                apart = {k: rest.pop(k) for k in list(rest) if k in self._series_tags}
                return Series(tags[tag], measurement, _braces(apart), rest)
        if "host" in tags:
            rest = {k: v for k, v in tags.items() if k != "host"}
            return Series(tags["host"], measurement, _braces(rest), {})
        sensor = ",".join([_escape(measurement), *_pairs(tags)])
        check_name("sensor", sensor)
        return Series(sensor, measurement, "", {})


def check_name(what: str, name: str) -> None:
    """Raises NameRefused unless ``name`` is non-empty, printable and not too long."""
    if not name:
        raise NameRefused(f"{what} is empty")
    if len(name) > MAX_NAME_BYTES // 4 and len(name.encode()) > MAX_NAME_BYTES:
        raise NameRefused(f"{what} is longer than {MAX_NAME_BYTES} bytes")
    if not name.isprintable() and _CONTROL.search(name):
        raise NameRefused(f"{what} {name[:80]!r} has a control character")


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def _pairs(tags: Mapping[str, str]) -> list[str]:
    return [f"{_escape(k)}={_escape(tags[k])}" for k in sorted(tags)]


def _braces(tags: Mapping[str, str]) -> str:
    return "{" + ",".join(_pairs(tags)) + "}" if tags else ""


# RFC 9039: hexadecimal bodies end by themselves; the others run over ":" too, of which the last
# part is taken as the metric, as SenML base names end in ":" (RFC 8428, 5.1.2).
_HEX_URN = re.compile(r"(urn:dev:(?:mac|ow):[0-9a-f]+)(?:[:/_](.*))?", re.IGNORECASE)
_ID_URN = re.compile(
    r"(urn:dev:(?:org:[1-9][0-9]*-[0-9a-z.]+|os:[1-9][0-9]*-[0-9a-z.-]+|ops:[1-9][0-9]*-[0-9a-z.]+-[0-9a-z.-]+"
    r"|[a-z][0-9a-z-]*:[0-9a-z.-]+))([:/_].*)?",
    re.IGNORECASE,
)
_HEX_SUBTYPES = ("mac:", "ow:")


def split_senml_name(name: str, unit: str) -> tuple[str, str]:
    """Sensor and metric of a resolved SenML name.

    >>> split_senml_name("urn:dev:ow:10e2073a01080063:voltage", "V")
    ('urn:dev:ow:10e2073a01080063', 'voltage')
    >>> split_senml_name("room1/temp", "Cel")
    ('room1', 'temp')
    >>> split_senml_name("urn:dev:ow:10e2073a01080063", "Cel")
    ('urn:dev:ow:10e2073a01080063', 'Cel')
    """
    sensor, metric = name, ""
    match = _HEX_URN.fullmatch(name)
    if match:
        sensor, metric = match[1], match[2] or ""
    elif (match := _ID_URN.fullmatch(name)) and not match[1][8:].lower().startswith(_HEX_SUBTYPES):
        body, rest = match[1], match[2] or ""
        cut = rest.find("_")
        if cut < 0:
            cut = max(rest.rfind(":"), rest.rfind("/"))
        if cut >= 0:
            sensor, metric = body + rest[:cut], rest[cut + 1 :]
    else:
        cut = max(name.rfind(":"), name.rfind("/"))
        if cut > 0:
            sensor, metric = name[:cut], name[cut + 1 :]
    return sensor, metric or unit or "value"
