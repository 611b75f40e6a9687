"""Dead letters: readable, bounded, one source cannot push out the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fieldring.gateway.dead_letter import DeadLetters, payload_fields
from fieldring.gateway.metrics import Metrics


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_letter_says_when_and_why(tmp_path: Path, metrics: Metrics, count: Callable[..., float]) -> None:
    """A letter is one line of JSON with time, reason and what was sent."""
    letters = DeadLetters(tmp_path / "new", max_bytes=10_000, metrics=metrics)
    letters.messages([("sensor", {"topic": "sensors/a/lp", **payload_fields(b"x\n")})], now_s=0.5)
    assert read(tmp_path / "new" / "messages.jsonl") == [
        {
            "time": "1970-01-01T00:00:00.500+00:00",
            "reason": "sensor",
            "topic": "sensors/a/lp",
            "bytes": 2,
            "payload": "x\n",
        }
    ]
    assert count("dead_letters_total", reason="sensor") == 1


def test_full_file_counts_only(tmp_path: Path, metrics: Metrics, count: Callable[..., float]) -> None:
    """When the room is used up letters are counted, and blocks still have their own room."""
    letters = DeadLetters(tmp_path, max_bytes=2_000, metrics=metrics)
    for _ in range(50):
        letters.messages([("payload", payload_fields(b"x" * 100))], now_s=0)
    kept = len(read(tmp_path / "messages.jsonl"))
    assert (tmp_path / "messages.jsonl").stat().st_size <= 1_000
    assert 0 < kept < 50
    assert count("dead_letters_total", reason="payload") == 50
    assert count("dead_letters_not_kept_total") == 50 - kept
    letters.blocks([("upstream_400", {})], now_s=0)
    assert len(read(tmp_path / "blocks.jsonl")) == 1


def test_emptied_file_takes_letters_again(tmp_path: Path, metrics: Metrics) -> None:
    """An operator who has moved the file away makes room without a restart."""
    letters = DeadLetters(tmp_path, max_bytes=600, metrics=metrics)
    for _ in range(10):
        letters.messages([("payload", payload_fields(b"x" * 100))], now_s=0)
    (tmp_path / "messages.jsonl").rename(tmp_path / "seen.jsonl")
    letters.messages([("payload", payload_fields(b"new"))], now_s=0)
    assert [letter["payload"] for letter in read(tmp_path / "messages.jsonl")] == ["new"]


def test_unwritable_directory_is_counted(
    tmp_path: Path, metrics: Metrics, count: Callable[..., float]
) -> None:
    """A file that cannot be written costs the letter, not the forwarder."""
    letters = DeadLetters(tmp_path, max_bytes=600, metrics=metrics)
    (tmp_path / "messages.jsonl").mkdir()
    letters.messages([("payload", {})], now_s=0)
    assert count("dead_letters_not_kept_total") == 1


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"text", {"bytes": 4, "payload": "text"}),
        (b"\xff\x00", {"bytes": 2, "payload_base64": "/wA="}),
        (b"123456", {"bytes": 6, "payload": "1234", "truncated": True}),
    ],
    ids=["text", "binary", "too long"],
)
def test_payload_is_readable(payload: bytes, expected: dict[str, object]) -> None:
    """Text stays text, anything else is base64, and a cut is said."""
    assert payload_fields(payload, max_bytes=4) == expected
