"""Who a device is: mosquitto's password file, read again when it changes.

Lines are ``name:$7$iterations$salt$hash`` (PBKDF2, SHA-512), as the role renders and ``mosquitto_passwd``
writes them, so that either listener serves the same accounts. A file that turns bad while we run keeps
the accounts that were known: locking every device out for a typing mistake loses data.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fieldring.errors import ConfigurationError
from fieldring.settings import file_stamp

__all__ = ["Accounts"]

_LINE = re.compile(r"([^:]+):\$7\$([1-9][0-9]{0,6})\$([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+)")
_REMEMBERED = 4096

_log = logging.getLogger(__name__)


class _Account(NamedTuple):
    iterations: int
    salt: bytes
    digest: bytes


_NOBODY = _Account(2000, b"\0" * 12, b"\0" * 64)
"""Unknown names cost as much time as wrong passwords."""


class Accounts:
    """Names and passwords of devices. Thread-safe; ``verify`` computes for milliseconds: not in a loop."""

    def __init__(
        self, path: Path, *, check_interval_s: float = 0.5, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ConfigurationError: the file is missing or wrong."""
        self._path = path
        self._interval_s = check_interval_s
        self._monotonic = monotonic
        self._next_look = 0.0
        self._lock = threading.Lock()
        self._key = os.urandom(32)
        # What verified before, under a key of this process: HTTP devices log in with every request.
        self._verified: OrderedDict[tuple[str, bytes], _Account] = OrderedDict()
        self._seen = file_stamp(self._path)
        self._accounts = _read(path)

    def __len__(self) -> int:
        return len(self._accounts)

    def fingerprint(self, name: str) -> bytes:
        """Changes whenever the account's password does; empty for no account."""
        self._refresh()
        account = self._accounts.get(name)
        return account.digest if account is not None else b""

    def verify(self, name: str, password: bytes) -> bool:
        self._refresh()
        account = self._accounts.get(name)
        short = hmac.digest(self._key, name.encode("utf-8") + b"\0" + password, "sha256")
        with self._lock:
            if account is not None and self._verified.get((name, short)) is account:
                return True
        asked = account or _NOBODY
        derived = hashlib.pbkdf2_hmac("sha512", password, asked.salt, asked.iterations, len(asked.digest))
        if not hmac.compare_digest(derived, asked.digest) or account is None:
            return False
        with self._lock:
            self._verified[(name, short)] = account
            if len(self._verified) > _REMEMBERED:
                self._verified.popitem(last=False)
        return True

    def _refresh(self) -> None:
        now = self._monotonic()
        if now < self._next_look:
            return
        with self._lock:
            self._next_look = now + self._interval_s
            stamp = file_stamp(self._path)
            if stamp == self._seen:
                return
            self._seen = stamp
            try:
                accounts = _read(self._path)
            except ConfigurationError as error:
                _log.error("accounts are not reloaded, the known ones stay in force: %s", error)
                return
            # The same line keeps its account, so that what verified stays verified.
            self._accounts = {
                name: old if (old := self._accounts.get(name)) == new else new
                for name, new in accounts.items()
            }
            _log.info("accounts reloaded: %d", len(accounts))


def _read(path: Path) -> dict[str, _Account]:
    setting = "FIELDRING_DEVICE_PASSWORDS_FILE"
    if not path.name:
        raise ConfigurationError(f"{setting} is not set: name the file with the devices' accounts")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{setting}: cannot read {path}: {error}") from error
    accounts: dict[str, _Account] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        try:
            if found is None:
                raise ValueError
            salt = base64.b64decode(found.group(3), validate=True)
            digest = base64.b64decode(found.group(4), validate=True)
        except (binascii.Error, ValueError):
            raise ConfigurationError(
                f"{setting}: {path}:{number} is not name:$7$iterations$salt$hash, as mosquitto_passwd has it"
            ) from None
        accounts[found.group(1)] = _Account(int(found.group(2)), salt, digest)
    return accounts
