"""Who is calling: tokens, their roles and the sensors they are limited to.

``tokens.json`` holds only SHA-256 digests: ``[{"id", "sha256", "roles", "sensors", "gateway",
"points_per_second", "points_burst"}]``; the last four are optional.
Tokens are 256-bit random, so looking their digest up in a dict tells an attacker nothing by its timing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fieldring.errors import ConfigurationError, Forbidden, Unauthorized
from fieldring.settings import file_stamp

__all__ = ["BURST_SECONDS", "MAX_QUOTA", "ROLES", "Identity", "TokenBook", "presented_token"]

ROLES = ("write", "read", "review")
MAX_QUOTA = 1e12

_MAX_HEADERS = 4_096

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """The bearer of a known token. ``sensors`` are exact names, or prefixes that end in ``*``."""

    id: str
    roles: frozenset[str]
    sensors: tuple[str, ...] = ("*",)
    gateway: str = ""
    points_per_second: float = 0.0
    """How much it may write in the long run; 0: as much as it likes."""
    points_burst: float = 0.0
    """How much at once."""

    def require(self, role: str) -> None:
        """Raises Forbidden unless the token has the role."""
        if role not in self.roles:
            raise Forbidden(f"token {self.id!r} does not have the role {role!r}")

    @property
    def sees_all(self) -> bool:
        return "*" in self.sensors

    def allows(self, sensor: str) -> bool:
        """Whether the token may write or see this sensor."""
        return any(
            sensor.startswith(pattern[:-1]) if pattern.endswith("*") else sensor == pattern
            for pattern in self.sensors
        )


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    sha256: str
    roles: list[str]
    sensors: list[str] = msgspec.field(default_factory=lambda: ["*"])
    gateway: str = ""
    points_per_second: float = 0.0
    points_burst: float = 0.0


BURST_SECONDS = 10
"""A quota's burst where none is given: what it allows in this time."""


class TokenBook:
    """Tokens of one file, read again when it changes. Thread-safe.

    A file that turns bad while we run keeps the tokens that were known: locking every device out for
    a typing mistake loses data; the log says so until it is mended.
    """

    def __init__(
        self,
        path: Path,
        *,
        check_interval_s: float = 0.25,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigurationError: the file is missing or wrong."""
        self._path = path
        self._interval_s = check_interval_s
        self._monotonic = monotonic
        self._next_look = 0.0
        self._lock = threading.Lock()
        self._by_digest: dict[str, Identity] = {}
        self._by_id: dict[str, Identity] = {}
        self._by_header: dict[str, Identity] = {}
        self._seen = file_stamp(self._path)
        self._load()

    def find(self, token: str) -> Identity | None:
        """The identity of a token, or None."""
        self._refresh()
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        for known, identity in ((d, self._by_digest[d]) for d in (digest,) if d in self._by_digest):
            if hmac.compare_digest(known, digest):
                return identity
        return None

    def by_id(self, token_id: str) -> Identity | None:
        """The identity with this id, for sessions, which hold the id only; None when it was withdrawn."""
        self._refresh()
        return self._by_id.get(token_id)

    def authenticate(self, authorization: str | None, query: Mapping[str, str] | None = None) -> Identity:
        """The caller's identity from its ``Authorization`` header or v1's ``u`` and ``p``.

        Raises:
            Unauthorized: there is no token, or it is not known.
        """
        self._refresh()
        # Held from before the look-up: what is found while tokens are reloaded must not outlive that.
        known = self._by_header
        if authorization is not None and (identity := known.get(authorization)) is not None:
            return identity
        token = presented_token(authorization, query)
        if token is None:
            raise Unauthorized("no token: send 'Authorization: Token …'")
        identity = self.find(token)
        if identity is None and ":" in token:
            # "Token user:password", as v1 clients against InfluxDB v2 send it.
            identity = self.find(token.partition(":")[2])
        if identity is None:
            raise Unauthorized("token is not known")
        if authorization is not None:
            if len(known) >= _MAX_HEADERS:
                known.clear()
            known[authorization] = identity
        return identity

    def _refresh(self) -> None:
        now = self._monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self._interval_s
        stamp = file_stamp(self._path)
        if stamp == self._seen:
            return
        with self._lock:
            if stamp == self._seen:
                return
            self._seen = stamp
            try:
                self._load()
            except ConfigurationError as error:
                _log.error("tokens are not reloaded, the known ones stay in force: %s", error)
            else:
                _log.info("tokens reloaded: %d", len(self._by_id))

    def _load(self) -> None:
        by_digest: dict[str, Identity] = {}
        by_id: dict[str, Identity] = {}
        for number, entry in enumerate(_read(self._path), 1):
            where = f"{self._path}: token {number} ({entry.id!r})"
            digest = entry.sha256.lower()
            if len(digest) != 64 or not all(c in "0123456789abcdef" for c in digest):
                raise ConfigurationError(f"{where}: sha256 must be 64 hexadecimal digits")
            unknown = [role for role in entry.roles if role not in ROLES]
            if unknown:
                raise ConfigurationError(f"{where}: role {unknown[0]!r} is not one of {', '.join(ROLES)}")
            if digest in by_digest or entry.id in by_id:
                raise ConfigurationError(f"{where}: its id or sha256 occurs twice")
            rate, burst = entry.points_per_second, entry.points_burst
            if not 0 <= rate <= MAX_QUOTA or not 0 <= burst <= MAX_QUOTA or (burst and not rate):
                raise ConfigurationError(
                    f"{where}: points_per_second ({rate:g}) and points_burst ({burst:g}) must be from 0 to "
                    f"{MAX_QUOTA:g}, and a burst needs a rate"
                )
            identity = Identity(
                entry.id,
                frozenset(entry.roles),
                tuple(entry.sensors),
                entry.gateway,
                points_per_second=rate,
                points_burst=burst or rate * BURST_SECONDS,
            )
            by_digest[digest] = by_id[entry.id] = identity
        self._by_digest, self._by_id, self._by_header = by_digest, by_id, {}


def _read(path: Path) -> list[_Entry]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[_Entry])
    except OSError as error:
        raise ConfigurationError(f"FIELDRING_TOKENS_FILE: cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"{path}: {error}; expected a list of {{id, sha256, roles, sensors, gateway, "
            "points_per_second, points_burst}}"
        ) from None


def presented_token(authorization: str | None, query: Mapping[str, str] | None = None) -> str | None:
    """The token in a header (``Token``, ``Bearer``, ``Basic`` with it as password) or in ``u``/``p``."""
    if authorization:
        scheme, _, rest = authorization.strip().partition(" ")
        rest = rest.strip()
        match scheme.lower():
            case "token" | "bearer":
                return rest or None
            case "basic":
                try:
                    decoded = base64.b64decode(rest, validate=True).decode()
                except (binascii.Error, ValueError):
                    return None
                return decoded.partition(":")[2] or None
        return None
    if query and query.get("p"):
        return query["p"]
    return None
