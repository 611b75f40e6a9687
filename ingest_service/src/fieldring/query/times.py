"""Times as clients write and read them: RFC 3339 in UTC with milliseconds and ``Z``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from fieldring.errors import InvalidRequest

__all__ = ["format_time", "parse_time"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = _EPOCH.toordinal()
_LIMIT_MS = 253_402_300_800_000
_NUMBER = re.compile(r"-?\d{1,18}", re.ASCII)
_RFC_3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d+))?([Zz]|[+-]\d{2}:\d{2})?)?", re.ASCII
)


def parse_time(text: str, *, name: str) -> int:
    """Epoch ms of an RFC 3339 time or of epoch ms. Without a zone, and for a bare date, UTC is meant.

    Digits finer than a millisecond are cut off.

    Raises:
        InvalidRequest: neither; ``name`` is the parameter that the message names.
    """
    text = text.strip()
    if _NUMBER.fullmatch(text):
        value = int(text)
        if -62_135_596_800_000 <= value < _LIMIT_MS:
            return value
    # A "+" of the zone arrives as a space where the client did not escape it.
    match = _RFC_3339.fullmatch(re.sub(r" (?=\d{2}:\d{2}$)", "+", text) if "T" in text.upper() else text)
    if match:
        date, clock, fraction, zone = match.groups()
        zone = "+00:00" if zone in (None, "Z", "z") else zone
        try:
            moment = datetime.fromisoformat(f"{date}T{clock or '00:00:00'}{zone}")
            return (moment - _EPOCH) // timedelta(milliseconds=1) + int((fraction or "0").ljust(3, "0")[:3])
        except (ValueError, OverflowError):
            pass
    raise InvalidRequest(
        f"{name} is {text[:60]!r}, but must be epoch milliseconds or an RFC 3339 time "
        "such as 2024-05-01T12:00:00Z"
    )


@lru_cache(maxsize=8192)
def _minute(minute: int) -> str:
    day, rest = divmod(minute, 1440)
    date = datetime.fromordinal(_EPOCH_DAY + day).strftime("%Y-%m-%dT").zfill(11)
    return f"{date}{rest // 60:02}:{rest % 60:02}:"


def format_time(time_ms: int) -> str:
    """``2024-05-01T12:00:00.000Z``."""
    minute, rest = divmod(time_ms, 60_000)
    return f"{_minute(minute)}{rest // 1000:02}.{rest % 1000:03}Z"
