"""BU-101: no secret leaves in a support bundle, however it is spelled."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/support_bundle/module_utils"))
import support_bundle_redaction as redaction  # type: ignore[import-not-found]

SECRET = "Tr0ub4dor-and-3"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\nZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "text",
    [
        f"login failed for {SECRET}",
        f"curl -u x:{SECRET}@host",
        base64.b64encode(SECRET.encode()).decode(),
        KEY,
        "password: unknown-to-the-inventory",
        'AWS_SECRET="unknown-to-the-inventory"',
        "api_key=unknown-to-the-inventory",
        "Authorization: Bearer unknown-to-the-inventory",
    ],
)
def test_secret_is_taken_out(text: str) -> None:
    """Those of the inventory anywhere, others by what stands before them."""
    clean = redaction.redacted(text, [SECRET, KEY])
    assert SECRET not in clean
    assert "unknown-to-the-inventory" not in clean
    assert "b3BlbnNzaC1r" not in clean
    assert not redaction.leaks(clean, [SECRET, KEY])


@pytest.mark.parametrize(
    "text", ["password_file = /etc/x", "num_tokens: 16 of 4", "initial_token: null", "UN 10.0.0.1"]
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    """Paths, numbers and views are what a helper needs."""
    assert "/etc/x" in redaction.redacted(text, []) or "UN" in text or "token" in redaction.redacted(text, [])


def test_leak_is_found() -> None:
    """What is searched for at the end: the secret itself, its base64, a line of a key, a private key."""
    assert redaction.leaks(f"x{SECRET}y", [SECRET])
    assert redaction.leaks(base64.b64encode(SECRET.encode()).decode(), [SECRET])
    assert redaction.leaks(KEY, [])
    assert not redaction.leaks("nothing", [SECRET])
