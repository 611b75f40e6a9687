"""Checks a site manifest: one YAML file that describes a new deployment site.

Pure logic: text and what is known of the running platform in, manifest and problems out.
Every problem carries the line it stands on and what to do about it.
"""

from __future__ import annotations

import ipaddress
import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

__all__ = ["Known", "Problem", "check"]

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
# MQTT's wildcards and level separator would let one device's topic match another's, and a colon ends a name
# in the password file: nothing that the role sensor_gateway refuses (SG-103).
SENSOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,126}")
FORWARDER = "fieldring-forwarder"

# key → (type, required, what it is)
_FIELDS: dict[str, dict[str, tuple[type, bool, str]]] = {
    "": {
        "site": (str, True, "the site's name, in lower case letters, digits and dashes"),
        "description": (str, False, "one sentence for people"),
        "timezone": (str, True, "a time zone of the tz database, for example Europe/Oslo"),
        "gateway": (dict, True, "the gateway host: name and address"),
        "sensors": (list, True, "the sensors, each with an id"),
    },
    "gateway": {
        "name": (str, True, "the host's name in the inventory"),
        "address": (str, True, "the IP address by which the other hosts reach it"),
        "connection": (dict, False, "variables of Ansible's connection, for example ansible_user"),
    },
    "sensors[]": {
        "id": (str, True, "the sensor's name, also its MQTT user"),
        "description": (str, False, "one sentence for people"),
    },
}
_KINDS: dict[type, str] = {str: "a text", dict: "a mapping", list: "a list"}


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong; ``line`` counts from 1."""

    line: int
    message: str


@dataclass(frozen=True)
class Known:
    """What the running platform has already."""

    addresses: Mapping[str, str] = field(default_factory=dict)
    """Host → address."""
    sensors: Mapping[str, str] = field(default_factory=dict)
    """Sensor → the host that serves it."""


def _line(node: Any, key: Any = None) -> int:
    """The line of ``node``, or of its entry ``key``."""
    position = getattr(node, "lc", None)
    if position is None:
        return 1
    if key is not None and position.data and key in position.data:
        return int(position.data[key][0]) + 1
    return int(position.line) + 1


def _check_fields(node: Any, where: str, label: str, problems: list[Problem]) -> bool:
    fields = _FIELDS[where]
    before = len(problems)
    for key in node:
        if key not in fields:
            problems.append(
                Problem(_line(node, key), f"{label}{key} is not known here: use one of {', '.join(fields)}")
            )
    for key, (kind, required, meaning) in fields.items():
        if key not in node:
            if required:
                problems.append(Problem(_line(node), f"{label}{key} is missing: {meaning}"))
        elif not isinstance(node[key], kind):
            problems.append(
                Problem(
                    _line(node, key), f"{label}{key} is {node[key]!r}, but must be {_KINDS[kind]}: {meaning}"
                )
            )
        elif kind is not dict and not node[key]:
            problems.append(Problem(_line(node, key), f"{label}{key} is empty: {meaning}"))
    return len(problems) == before


def _check_gateway(gateway: Any, known: Known, problems: list[Problem]) -> None:
    if not _check_fields(gateway, "gateway", "gateway.", problems):
        return
    name, address = str(gateway["name"]), str(gateway["address"])
    if not NAME.fullmatch(name):
        problems.append(
            Problem(
                _line(gateway, "name"), f"gateway.name is {name!r}: use lower case letters, digits and dashes"
            )
        )
    try:
        ipaddress.ip_address(address)
    except ValueError:
        problems.append(
            Problem(
                _line(gateway, "address"),
                f"gateway.address is {address!r}, but must be an IPv4 or IPv6 address",
            )
        )
    for host, taken in known.addresses.items():
        if host != name and taken == address:
            problems.append(
                Problem(
                    _line(gateway, "address"),
                    f"gateway.address {address} belongs to {host} already: give the new host its own",
                )
            )
        if host == name and taken != address:
            problems.append(
                Problem(
                    _line(gateway, "name"),
                    f"gateway.name {name} is a host of the inventory already ({taken}): choose another name",
                )
            )


def _check_sensors(sensors: Any, gateway: str, known: Known, problems: list[Problem]) -> None:
    seen: dict[str, int] = {}
    for index, sensor in enumerate(sensors):
        label = f"sensors[{index}]."
        if not isinstance(sensor, dict):
            problems.append(
                Problem(
                    _line(sensors, index), f"sensors[{index}] is {sensor!r}, but must be a mapping with an id"
                )
            )
            continue
        if not _check_fields(sensor, "sensors[]", label, problems):
            continue
        name, line = str(sensor["id"]), _line(sensor, "id")
        if not SENSOR.fullmatch(name):
            problems.append(
                Problem(
                    line,
                    f"{label}id is {name!r}: use letters, digits, . _ - (not / + # :, which topics and "
                    "passwords need)",
                )
            )
        if name == FORWARDER:
            problems.append(
                Problem(line, f"{label}id {name} is the forwarder's own account: choose another name")
            )
        if name in seen:
            problems.append(
                Problem(line, f"{label}id {name} stands on line {seen[name]} already: each sensor once")
            )
        seen.setdefault(name, line)
        if known.sensors.get(name, gateway) != gateway:
            problems.append(
                Problem(
                    line,
                    f"{label}id {name} is a sensor of {known.sensors[name]} already: choose another name",
                )
            )


def check(text: str, *, known: Known) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The manifest in ``text`` and its problems, by line; the manifest is None when there are any."""
    try:
        document = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return None, [Problem(mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}")]
    if not isinstance(document, dict):
        return None, [Problem(1, "a manifest is a mapping with the keys " + ", ".join(_FIELDS[""]))]
    problems: list[Problem] = []
    _check_fields(document, "", "", problems)
    site, timezone = document.get("site"), document.get("timezone")
    if isinstance(site, str) and site and not NAME.fullmatch(site):
        problems.append(
            Problem(_line(document, "site"), f"site is {site!r}: use lower case letters, digits and dashes")
        )
    if isinstance(timezone, str) and timezone and timezone not in zoneinfo.available_timezones():
        problems.append(
            Problem(
                _line(document, "timezone"),
                f"timezone {timezone!r} is not in the tz database: for example Europe/Oslo",
            )
        )
    gateway = document.get("gateway")
    if isinstance(gateway, dict):
        _check_gateway(gateway, known, problems)
    if isinstance(document.get("sensors"), list):
        name = str(gateway.get("name")) if isinstance(gateway, dict) else ""
        _check_sensors(document["sensors"], name, known, problems)
    if problems:
        return None, sorted(problems)
    return _plain(document), []


def _plain(node: Any) -> Any:
    """``node`` without ruamel's types."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return str(node) if isinstance(node, str) else node
