"""mosquitto's password file as text: ``name:$7$iterations$salt$hash`` (PBKDF2, SHA-512), one account a line.

Pure: reads and returns text. Only what does not verify is hashed anew, so that a second run changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re

ITERATIONS = 2000
"""For each connection the broker computes this many, in its only thread; it changes no existing line."""

_SALT_BYTES = 12
_HASH_BYTES = 64
_LINE = re.compile(r"([^:]+):\$7\$([1-9][0-9]{0,6})\$([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+)")


def _derive(password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha512", password.encode("utf-8"), salt, iterations, _HASH_BYTES)


def hashed(name: str, password: str, salt: bytes | None = None) -> str:
    """The line of an account."""
    salt = os.urandom(_SALT_BYTES) if salt is None else salt
    digest = _derive(password, salt, ITERATIONS)
    salted, derived = base64.b64encode(salt).decode("ascii"), base64.b64encode(digest).decode("ascii")
    return f"{name}:$7${ITERATIONS}${salted}${derived}"


def verifies(line: str, name: str, password: str) -> bool:
    """Whether ``line`` lets ``name`` in with ``password``."""
    found = _LINE.fullmatch(line)
    if found is None or found.group(1) != name:
        return False
    try:
        salt = base64.b64decode(found.group(3), validate=True)
        digest = base64.b64decode(found.group(4), validate=True)
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(_derive(password, salt, int(found.group(2))), digest)


def updated(text: str, accounts: dict[str, str]) -> tuple[str, list[str]]:
    """The file for exactly ``accounts`` (name to password), and the names whose access changed.

    The very text is returned where all is as it should be.
    """
    lines: dict[str, str] = {}
    for line in text.splitlines():
        lines.setdefault(line.partition(":")[0], line)
    changed = sorted(set(lines) - set(accounts))
    result = []
    for name in sorted(accounts):
        line = lines.get(name, "")
        if not verifies(line, name, accounts[name]):
            line = hashed(name, accounts[name])
            changed.append(name)
        result.append(line)
    new = "".join(line + "\n" for line in result)
    return new, sorted(changed)
