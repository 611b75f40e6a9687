"""Times in and out."""

from __future__ import annotations

import pytest

from fieldring.errors import InvalidRequest
from fieldring.query import format_time, parse_time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("-1", -1),
        ("1714564800123", 1714564800123),
        ("2024-05-01T12:00:00Z", 1714564800000),
        ("2024-05-01t12:00:00z", 1714564800000),
        ("2024-05-01T12:00:00.1239Z", 1714564800123),
        ("2024-05-01T14:00:00+02:00", 1714564800000),
        ("2024-05-01T14:00:00 02:00", 1714564800000),
        ("2024-05-01T12:00:00", 1714564800000),
        ("2024-05-01", 1714521600000),
        ("1969-12-31T23:59:59.5Z", -500),
    ],
)
def test_forms(text: str, expected: int) -> None:
    """RFC 3339 with any zone, and epoch milliseconds."""
    assert expected == parse_time(text, name="start")


@pytest.mark.parametrize(
    "text", ["", "now", "2024-13-01", "2024-05-01T25:00:00Z", "1e3", "9" * 18, "2024-05-01T12"]
)
def test_anything_else_is_refused_by_name(text: str) -> None:
    """The parameter is named."""
    with pytest.raises(InvalidRequest, match="start"):
        parse_time(text, name="start")


@pytest.mark.parametrize("time_ms", [0, -500, 1714564800123, 253402300799999, -62135596800000])
def test_what_is_written_is_read_back(time_ms: int) -> None:
    """UTC, milliseconds, Z; four digits of year."""
    text = format_time(time_ms)
    assert (24, "Z", time_ms) == (len(text), text[-1], parse_time(text, name="x"))
