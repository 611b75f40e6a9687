"""A read-only look at a spool, also while its worker runs (`fieldring inspect-spool`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fieldring.spool._recovery import list_segments, read_cursor, survey

__all__ = ["inspect", "render"]


def inspect(spool_dir: str | Path) -> list[dict[str, Any]]:
    """One dictionary per worker directory: cursor, segments, pending records, damage, quarantine.

    Nothing is locked, repaired or created. A worker that writes or recycles meanwhile can make the
    last segment look torn or one segment missing; look again before believing it.
    """
    root = Path(spool_dir)
    directories = sorted(entry for entry in root.iterdir() if entry.is_dir() and (entry / "lock").exists())
    if (root / "lock").exists():
        directories.append(root)
    return [_inspect(directory) for directory in directories]


def render(report: list[dict[str, Any]]) -> str:
    """The report as text for people."""
    lines: list[str] = []
    for worker in report:
        lines.append(
            f"{worker['directory']}: {worker['pending_records']} records wait, the oldest for "
            f"{worker['oldest_age_seconds']} s; cursor {worker['cursor']} ({worker['cursor_state']})"
        )
        for first, last in worker["taken_ahead"]:
            lines.append(f"  records {first} to {last} were delivered ahead of what waits")
        for segment in worker["segments"]:
            span = f"{segment['first']}..{segment['last']}" if segment.get("first") is not None else "-"
            lines.append(
                f"  {segment['file']}  {segment['state']:<9} {segment['records']:>9} records  {span:>21}  "
                f"{segment['bytes']:>10} bytes"
            )
            for hole in segment.get("holes", []):
                lines.append(f"    damaged: records {hole['first']} to {hole['last']} cannot be read")
            for gap in segment.get("gaps", []):
                why = {1: "dropped because full", 2: "lost to damage", 3: "never promised"}[gap["reason"]]
                lines.append(f"    gap: records {gap['first']} to {gap['last']}, {why}")
        lines += [f"  quarantine/{name}" for name in worker["quarantine"]]
    return "\n".join(lines) or "no worker directory here"


def _inspect(directory: Path) -> dict[str, Any]:
    cursor = read_cursor(directory)
    taken = cursor.taken if cursor else 0
    ahead = cursor.ahead if cursor else ()
    segments = []
    pending = 0
    oldest: int | None = None
    for number, path, result in survey(list_segments(directory), taken=taken):
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            continue  # recycled while we looked
        entry: dict[str, Any] = {"number": number, "file": path.name, "bytes": size}
        if result is None:
            entry |= {"state": "taken", "records": 0}
        else:
            data = [found for found in result.records if found.gap is None]
            waiting = [
                found
                for found in data
                if found.seq > taken and not any(first <= found.seq <= last for first, last in ahead)
            ]
            pending += len(waiting)
            if waiting and oldest is None:
                oldest = waiting[0].time_ms
            damaged = result.header is None or bool(result.holes)
            entry |= {
                "state": "damaged" if damaged else "torn tail" if result.torn else "good",
                "records": len(data),
                "first": data[0].seq if data else None,
                "last": data[-1].seq if data else None,
                "used_bytes": result.end,
                "gaps": [found.gap._asdict() for found in result.records if found.gap],
                "holes": [hole._asdict() for hole in result.holes],
            }
        segments.append(entry)
    quarantine = directory / "quarantine"
    return {
        "directory": str(directory),
        "cursor": taken if cursor else None,
        "taken_ahead": [list(each) for each in ahead],
        "cursor_state": "good" if cursor else "damaged" if (directory / "cursor").exists() else "none",
        "identity": f"{cursor.identity:016x}" if cursor else None,
        "pending_records": pending,
        "oldest_age_seconds": round(max(0.0, time.time() - oldest / 1000), 1) if oldest is not None else 0,
        "segments": segments,
        "quarantine": sorted(path.name for path in quarantine.iterdir()) if quarantine.exists() else [],
    }
