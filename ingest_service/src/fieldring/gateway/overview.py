"""What a person on the gateway wants to see: one page from the same figures as the metrics."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

__all__ = ["page"]


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
