"""What a person on the gateway wants to see: one page from the same figures as the metrics."""

from __future__ import annotations

import html
from collections import deque
from collections.abc import Iterable, Mapping

__all__ = ["Inflow", "page"]

_STEP_SECONDS = 10.0
_WINDOW_STEPS = 60


class Inflow:
    """How fast the spool fills, over the last ten minutes. Used by one thread."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_WINDOW_STEPS)

    def note(self, now: float, appended_bytes: int) -> None:
        """Called often; keeps a sample every ten seconds."""
        if not self._samples or now - self._samples[-1][0] >= _STEP_SECONDS:
            self._samples.append((now, appended_bytes))

    def hours_left(self, now: float, appended_bytes: int, room_bytes: int) -> float:
        """How long the room lasts if nothing is sent; infinite while nothing comes in."""
        if not self._samples:
            return float("inf")
        began, before = self._samples[0]
        rate = (appended_bytes - before) / max(now - began, 1.0)
        return max(0, room_bytes) / rate / 3600 if rate > 0 else float("inf")


def page(title: str, sections: Mapping[str, Iterable[tuple[str, object]]]) -> bytes:
    """Tables of names and values; no script, nothing from elsewhere."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=10>",
        f"<title>{html.escape(title)}</title>",
        "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:60rem}"
        "td,th{text-align:left;padding:.1rem 1.5rem .1rem 0;vertical-align:top}</style>",
        f"<h1>{html.escape(title)}</h1>",
    ]
    for name, rows in sections.items():
        parts.append(f"<h2>{html.escape(name)}</h2><table>")
        parts += [f"<tr><th>{html.escape(key)}<td>{html.escape(str(value))}" for key, value in rows]
        parts.append("</table>")
    return "".join(parts).encode() + b"\n"
