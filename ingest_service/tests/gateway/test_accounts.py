"""Devices' accounts in mosquitto's format."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from fieldring.errors import ConfigurationError
from fieldring.gateway.accounts import Accounts


def line(name: str, password: str, salt: bytes = b"0123456789ab") -> str:
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101, 64)
    return f"{name}:$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    path.write_text(line("kerbside", "grüße & more") + "\n# comment\n" + line("park", "another"))
    return path


@pytest.fixture
def accounts(path: Path) -> Accounts:
    return Accounts(path, check_interval_s=0)


@pytest.mark.parametrize(
    ("name", "password", "expected"),
    [
        ("kerbside", "grüße & more", True),
        ("kerbside", "another", False),
        ("kerbside", "", False),
        ("Kerbside", "grüße & more", False),
        ("nobody", "another", False),
    ],
)
def test_verify(accounts: Accounts, name: str, password: str, expected: bool) -> None:
    """Only the very name with its own password; asked twice, as the second answer is remembered."""
    assert [accounts.verify(name, password.encode()) for _ in range(2)] == [expected, expected]


def test_line_of_mosquittos_own_tool(tmp_path: Path) -> None:
    """A line that mosquitto_passwd 2.0.11 wrote for the password "secret"."""
    path = tmp_path / "passwords"
    path.write_text(RECORDED)
    assert Accounts(path).verify("a", b"secret")
    assert not Accounts(path).verify("a", b"Secret")


RECORDED = (
    "a:$7$101$wlYW1yuu2YBGOV89$SoTMkddh4LJXSHLErb4PERU+fdnkKblvfv"
    "hpFAtOvyGqnioE6kk269nAdXcukfI2qVFrrWIz1CaJBtnRnnbGVg==\n"
)


def test_changed_password_counts_at_once(accounts: Accounts, path: Path) -> None:
    """Also where the old one verified before; the other account keeps its fingerprint."""
    assert accounts.verify("kerbside", "grüße & more".encode())
    before = accounts.fingerprint("kerbside"), accounts.fingerprint("park")
    path.write_text(line("kerbside", "new", b"ba9876543210") + line("park", "another"))
    assert not accounts.verify("kerbside", "grüße & more".encode())
    assert accounts.verify("kerbside", b"new")
    assert accounts.fingerprint("kerbside") != before[0]
    assert accounts.fingerprint("park") == before[1]


def test_withdrawn_account(accounts: Accounts, path: Path) -> None:
    """It does not verify any more and has no fingerprint."""
    assert accounts.verify("park", b"another")
    path.write_text(line("kerbside", "x"))
    assert not accounts.verify("park", b"another")
    assert accounts.fingerprint("park") == b""


def test_file_that_turns_bad_keeps_the_accounts(accounts: Accounts, path: Path) -> None:
    """A typing mistake does not lock everybody out."""
    path.write_text("kerbside:plain\n")
    assert accounts.verify("park", b"another")


@pytest.mark.parametrize("text", ["kerbside\n", "kerbside:plain\n", "a:$6$x$y\n", "a:$7$101$!!$!!\n"])
def test_bad_file_at_the_start(tmp_path: Path, text: str) -> None:
    """Refused with setting, file and line."""
    path = tmp_path / "passwords"
    path.write_text("# first\n" + text)
    with pytest.raises(ConfigurationError, match=r"FIELDRING_DEVICE_PASSWORDS_FILE: .*passwords:2 is not"):
        Accounts(path)


def test_no_file(tmp_path: Path) -> None:
    """Not set, and not there."""
    with pytest.raises(ConfigurationError, match="DEVICE_PASSWORDS_FILE is not set"):
        Accounts(Path())
    with pytest.raises(ConfigurationError, match="cannot read"):
        Accounts(tmp_path / "missing")
