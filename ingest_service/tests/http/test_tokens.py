"""Tokens: every form in which they are sent, what they allow, and files that go wrong."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fieldring.errors import ConfigurationError, Forbidden, Unauthorized
from fieldring.http.tokens import Identity, TokenBook, presented_token


def entry(token: str, **changes: Any) -> dict[str, Any]:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return {"id": f"id-{token}", "sha256": digest, "roles": ["write"], "sensors": ["*"], **changes}


def write(path: Path, entries: Any) -> Path:
    temporary = path.with_suffix(".new")
    temporary.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    temporary.replace(path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens.json", [entry("secret"), entry("reader", roles=["read"])])


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "query", "expected"),
    [
        ("Token secret", {}, "secret"),
        ("token   secret ", {}, "secret"),
        ("Bearer secret", {}, "secret"),
        (basic("anyone:secret"), {}, "secret"),
        (basic("anyone:with:colon"), {}, "with:colon"),
        (None, {"u": "anyone", "p": "secret"}, "secret"),
        ("Token header", {"p": "query"}, "header"),
        (None, {"u": "anyone"}, None),
        (None, None, None),
        ("", {}, None),
        ("Token", {}, None),
        ("Token ", {}, None),
        ("Basic !!", {}, None),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), {}, None),
        (basic("nocolon"), {}, None),
        ("Digest secret", {}, None),
    ],
)
def test_presented_token(header: str | None, query: dict[str, str] | None, expected: str | None) -> None:
    """The token is found in each form that clients use, and in no other."""
    assert expected == presented_token(header, query)


def test_known_token(file: Path) -> None:
    """A known token gives its identity, in v1's compatibility form too."""
    book = TokenBook(file)
    assert "id-secret" == book.authenticate("Token secret").id
    assert "id-secret" == book.authenticate("Token anyone:secret").id
    assert "id-reader" == book.by_id("id-reader").id  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "header", [None, "Token wrong", "Token secre", "Token secret2", "Basic eDp4", "Token \udcff"]
)
def test_unknown_token(file: Path, header: str | None) -> None:
    """No token and an unknown one are refused."""
    with pytest.raises(Unauthorized):
        TokenBook(file).authenticate(header)


def test_digest_is_no_token(file: Path) -> None:
    """Who has read the file cannot log in with what stands there."""
    digest = hashlib.sha256(b"secret").hexdigest()
    with pytest.raises(Unauthorized):
        TokenBook(file).authenticate(f"Token {digest}")


def test_role_is_required(file: Path) -> None:
    """A token without the role is told so by id."""
    identity = TokenBook(file).authenticate("Token reader")
    identity.require("read")
    with pytest.raises(Forbidden, match=r"'id-reader'.*'write'"):
        identity.require("write")


@pytest.mark.parametrize(
    ("patterns", "sensor", "expected"),
    [
        (("*",), "anything", True),
        (("a",), "a", True),
        (("a",), "ab", False),
        (("a*",), "ab", True),
        (("a*",), "ba", False),
        (("x", "b*"), "b", True),
        ((), "a", False),
    ],
)
def test_sensor_limit(patterns: tuple[str, ...], sensor: str, expected: bool) -> None:
    """Exact names and prefixes; nothing is matched in the middle."""
    assert expected is Identity("i", frozenset(), patterns).allows(sensor)


def test_quota(tmp_path: Path) -> None:
    """A rate, with a burst of its own or of ten seconds; none given is none."""
    path = write(
        tmp_path / "tokens.json",
        [entry("a", points_per_second=5), entry("b", points_per_second=5, points_burst=7), entry("c")],
    )
    book = TokenBook(path)
    found = [book.authenticate(f"Token {token}") for token in "abc"]
    assert [(5, 50), (5, 7), (0, 0)] == [(i.points_per_second, i.points_burst) for i in found]


def test_changed_file_is_read_again(file: Path) -> None:
    """A token is withdrawn and another given without a restart."""
    book = TokenBook(file, check_interval_s=0)
    write(file, [entry("new")])
    assert "id-new" == book.authenticate("Token new").id
    with pytest.raises(Unauthorized):
        book.authenticate("Token secret")
    assert book.by_id("id-secret") is None


def test_file_is_not_looked_at_for_every_request(file: Path) -> None:
    """Within the interval the known tokens are used; after it a change counts."""
    now = [0.0]
    book = TokenBook(file, check_interval_s=0.25, monotonic=lambda: now[0])
    book.authenticate("Token secret")
    write(file, [entry("new")])
    assert "id-secret" == book.authenticate("Token secret").id
    now[0] = 0.25
    assert "id-new" == book.authenticate("Token new").id


@pytest.mark.parametrize("damage", ["", "{", "[]garbage", '[{"id": "x"}]'])
def test_broken_file_keeps_the_known_tokens(
    file: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A typing mistake locks nobody out; the log says so."""
    book = TokenBook(file, check_interval_s=0)
    write(file, damage)
    assert "id-secret" == book.authenticate("Token secret").id
    assert "stay in force" in caplog.text
    file.unlink()
    assert "id-secret" == book.authenticate("Token secret").id
    write(file, [entry("new")])
    assert "id-new" == book.authenticate("Token new").id


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([entry("a", sha256="abc")], "64 hexadecimal"),
        ([entry("a", roles=["root"])], "role 'root'"),
        ([entry("a"), entry("a", id="other")], "twice"),
        ([entry("a"), entry("b", id="id-a")], "twice"),
        ([entry("a", colour="red")], "colour"),
        ([entry("a", points_per_second=-1)], "points_per_second"),
        ([entry("a", points_per_second=1e300)], "points_per_second"),
        ([entry("a", points_burst=5)], "a burst needs a rate"),
        ([entry("a", points_per_second="many")], "points_per_second"),
        ({"id": "a"}, "expected a list"),
        ("nonsense", "expected a list"),
    ],
)
def test_wrong_file_stops_the_start(tmp_path: Path, entries: Any, reason: str) -> None:
    """The error names the file and what is wrong in it."""
    path = write(tmp_path / "tokens.json", entries)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        TokenBook(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    """The error names the setting and the file."""
    with pytest.raises(ConfigurationError, match=r"FIELDRING_TOKENS_FILE: cannot read .*none\.json"):
        TokenBook(tmp_path / "none.json")
