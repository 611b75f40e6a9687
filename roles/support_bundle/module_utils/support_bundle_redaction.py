"""Takes secrets out of texts. No Ansible here, no files: text in, text out."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

MASK = "[secret]"
SHORTEST = 6
# The word before may be part of a name (mqtt_password_file is a path: its value says no secret).
NAMED = re.compile(
    r"(?i)((?:password|passwd|passphrase|secret|token|api_?key|authorization|credentials)[\"']?\s*[:=]\s*[\"']?)"
    r"(?!/|\[secret\]|true\b|false\b|none\b|null\b)([^\s\"',;}\]]+)"
)
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)
BEARER = re.compile(r"(?i)\b(bearer|basic|token)\s+[A-Za-z0-9+/=._~-]{16,}")


def spellings(secrets: Iterable[str]) -> list[str]:
    """Each secret as it is and in base64, longest first, so that none is cut by a shorter one inside it."""
    found = set()
    for secret in secrets:
        for part in [secret, *secret.splitlines()] if "\n" in secret else [secret]:
            if len(part.strip()) >= SHORTEST and not part.startswith("-----"):
                found.add(part.strip())
                found.add(base64.b64encode(part.strip().encode()).decode())
    return sorted(found, key=len, reverse=True)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text without private keys, these secrets however spelled, and what a name calls a secret."""
    text = PRIVATE_KEY.sub(MASK, text)
    for secret in spellings(secrets):
        text = text.replace(secret, MASK)
    text = BEARER.sub(lambda match: f"{match.group(1)} {MASK}", text)
    return NAMED.sub(lambda match: match.group(1) + MASK, text)


def leaks(text: str, secrets: Iterable[str]) -> bool:
    """Whether a private key or one of these secrets, in any of its spellings, stands in the text."""
    return bool(PRIVATE_KEY.search(text)) or any(secret in text for secret in spellings(secrets))
