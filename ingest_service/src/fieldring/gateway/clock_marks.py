"""What sensors' attributes say of clocks: ``device_clock``, ``gateway_clock``, each ``ok`` or what is wrong.

Only a change is written. What is not ``ok`` stands in a file, so that a restart in between does not leave
the attribute as it is for ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

__all__ = ["ClockMarks", "Pending"]

_OK = "ok"
_SENSORS = 10_000
_log = logging.getLogger(__name__)

Pending = dict[str, dict[str, str]]
"""Sensor → attributes that are in a block, but not durable yet."""


class ClockMarks:
    """Thread-safe. Without a ``path`` it forgets at a restart."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.wrong = _read(path) if path is not None else {}
        """Sensor → attributes that were written and are not ``ok``."""

    def due(self, sensor: str, states: Mapping[str, str], pending: Pending) -> dict[str, str]:
        """Those of ``states`` (attribute → value) that are new; they are noted in ``pending``."""
        known = self.wrong.get(sensor)
        if known is None and len(self.wrong) >= _SENSORS:
            return {}
        written = (known or {}) | pending.get(sensor, {})
        changes = {name: value for name, value in states.items() if written.get(name, _OK) != value}
        if changes:
            pending[sensor] = pending.get(sensor, {}) | changes
        return changes

    def settle(self, pending: Pending) -> None:
        """What is pending is durable now."""
        if not pending:
            return
        with self._lock:
            for sensor, changes in pending.items():
                states = self.wrong.get(sensor, {}) | changes
                wrong = {name: value for name, value in states.items() if value != _OK}
                if wrong:
                    self.wrong[sensor] = wrong
                else:
                    self.wrong.pop(sensor, None)
            if self._path is not None:
                try:
                    _replace(self._path, msgspec.json.encode(self.wrong))
                except OSError as error:
                    _log.warning("cannot write %s: %s", self._path, error.strerror)


def _read(path: Path) -> Pending:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Pending)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("%s cannot be read, so marks in it are not taken back: %s", path, error)
        with contextlib.suppress(OSError):
            path.replace(path.with_name(path.name + ".unreadable"))
        return {}


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
