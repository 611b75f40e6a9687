"""mosquitto's password file: what stays, what is hashed anew, what is damaged."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from types import ModuleType

import pytest
from repository import ROOT


def _load() -> ModuleType:
    path = ROOT / "roles" / "sensor_gateway" / "module_utils" / "mosquitto_password_file.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


passwords = _load()


def test_line_is_what_mosquitto_reads() -> None:
    """PBKDF2 with SHA-512, marked $7$, salt and hash in base64."""
    name, _, rest = passwords.hashed("kerbside", "a good one", b"twelve bytes").partition(":")
    _, kind, iterations, salt, digest = rest.split("$")
    expected = hashlib.pbkdf2_hmac("sha512", b"a good one", b"twelve bytes", int(iterations))
    assert (name, kind) == ("kerbside", "7")
    assert base64.b64decode(salt) == b"twelve bytes"
    assert base64.b64decode(digest) == expected


def test_second_run_changes_nothing() -> None:
    """Lines that verify stay byte for byte."""
    accounts = {"b": "second-password", "a": "first-password"}
    text, names = passwords.updated("", accounts)
    assert names == ["a", "b"]
    assert passwords.updated(text, accounts) == (text, [])


def test_one_new_password() -> None:
    """Only the changed account gets a new line; one that is gone loses its own."""
    text, _ = passwords.updated("", {"a": "one", "b": "two", "c": "three"})
    new, names = passwords.updated(text, {"a": "one", "b": "new"})
    assert names == ["b", "c"]
    assert new.splitlines()[0] == text.splitlines()[0]
    assert passwords.verifies(new.splitlines()[1], "b", "new")
    assert len(new.splitlines()) == 2


def test_same_password_of_two_accounts() -> None:
    """Nobody can see from the file that two devices share a password."""
    text, _ = passwords.updated("", {"a": "same", "b": "same"})
    first, second = (line.partition(":")[2] for line in text.splitlines())
    assert first != second


@pytest.mark.parametrize(
    "line",
    ["", "a", "a:plain", "a:$6$salt$hash", "a:$7$0$AAAA$AAAA", "a:$7$101$!$!", "a:$7$101$AAAA$AAAA", "b:{}"],
    ids=[
        "empty",
        "name only",
        "plain text",
        "older kind",
        "no iterations",
        "no base64",
        "wrong hash",
        "other name",
    ],
)
def test_line_that_does_not_verify(line: str) -> None:
    """Whatever does not let the account in is hashed anew."""
    line = line.replace("{}", passwords.hashed("b", "word").partition(":")[2])
    assert not passwords.verifies(line, "a", "word")
    new, _ = passwords.updated(line + "\n", {"a": "word"})
    assert passwords.verifies(new.strip(), "a", "word")
