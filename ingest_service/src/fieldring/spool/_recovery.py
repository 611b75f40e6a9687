"""What a start does: read cursor and segments, repair damage, cut the torn tail (FORMAT.md, last part)."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from fieldring.spool._files import copy_to_quarantine, link_to_quarantine, quarantine, replace
from fieldring.spool._format import (
    DAMAGED,
    HEADER_BYTES,
    Cursor,
    Gap,
    Header,
    Scan,
    pack_gap,
    pack_header,
    scan,
    unpack_cursor,
    unpack_header,
)

__all__ = ["Damage", "Recovered", "Segment", "list_segments", "read_cursor", "recover", "repair", "survey"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Segment:
    """A segment whose records first_seq..last_seq are good up to ``end``."""

    number: int
    path: Path
    epoch: int
    first_seq: int
    last_seq: int
    end: int
    size: int


@dataclass(slots=True)
class Damage:
    """What was found wrong, and what is lost by it."""

    segments: int = 0
    cursors: int = 0
    torn_tails: int = 0
    """Ends that were torn, or damaged where nothing says any more that they were promised."""
    lost_records: int = 0


@dataclass(slots=True)
class Recovered:
    """The state that a queue starts from. ``epoch`` is the new one, ``spent`` may be recycled."""

    identity: int
    epoch: int
    taken: int
    last_seq: int
    segments: list[Segment]
    spent: list[Path]
    holes: list[Gap]
    damage: Damage
    ahead: list[tuple[int, int]]
    """Ranges behind ``taken`` that were delivered before it."""


def list_segments(directory: Path) -> list[tuple[int, Path]]:
    """Numbers and paths of the segments, ascending."""
    return sorted((int(path.stem), path) for path in directory.glob("*.seg") if path.stem.isdecimal())


def read_cursor(directory: Path) -> Cursor | None:
    """The cursor; None if there is none or it is unreadable."""
    try:
        return unpack_cursor((directory / "cursor").read_bytes())
    except OSError:
        return None


def survey(paths: list[tuple[int, Path]], *, taken: int) -> list[tuple[int, Path, Scan | None]]:
    """Scan the segments, read-only. None stands for one that the cursor has passed."""
    found: list[tuple[int, Path, Scan | None]] = []
    following: int | None = None
    for number, path in reversed(paths):
        if following is not None and following <= taken + 1:
            found.append((number, path, None))
            continue
        try:
            raw = path.read_bytes()
        except OSError as error:
            _log.error("spool: cannot read %s: %s", path, error)
            raw = b""
        result = scan(raw, taken=taken, before=following)
        found.append((number, path, result))
        if result.header is not None:
            following = result.header.first_seq
        elif result.records:
            following = result.records[0].seq
    return found[::-1]


def recover(directory: Path) -> Recovered:
    """Bring ``directory`` into a state that can be read and appended to. Needs the flock."""
    for leftover in directory.glob("*.tmp"):
        leftover.unlink()
    damage = Damage()
    paths = list_segments(directory)
    cursor = read_cursor(directory)
    identity = _identity(paths, cursor)
    if identity is None:
        # Numbers and epochs start again: what a recycled file still holds could pass for new records.
        (directory / "spare").unlink(missing_ok=True)
        identity = secrets.randbits(63) | 1
    if (directory / "cursor").exists() and (cursor is None or cursor.identity != identity):
        _log.error("spool: the cursor of %s is damaged; what is left is delivered again", directory)
        quarantine(directory / "cursor")
        damage.cursors += 1
        cursor = None
    taken = cursor.taken if cursor else 0

    segments: list[Segment] = []
    spent: list[Path] = []
    holes: list[Gap] = []
    epoch = cursor.epoch if cursor else 0
    highest = taken
    surveyed = survey(paths, taken=taken)
    for index, (number, path, result) in enumerate(surveyed):
        if result is None:
            spent.append(path)
            continue
        if result.header is not None and result.header.identity != identity:
            _log.error("spool: %s is of another directory; moved to quarantine", path)
            quarantine(path)
            damage.segments += 1
            continue
        is_last = index == len(surveyed) - 1
        holes += [found.gap for found in result.records if found.gap] + result.holes
        epoch = max([epoch, *(found.epoch for found in result.records[:1])])
        damage.torn_tails += result.torn
        if result.header is None or result.holes:
            segment = repair(path, number, result, identity=identity, taken=taken, damage=damage)
        else:
            header = result.header
            epoch = max(epoch, header.epoch)
            last_seq = result.records[-1].seq if result.records else header.first_seq - 1
            highest = max(highest, last_seq)
            if not result.records and not result.torn:
                spent.append(path)
                continue
            size = path.stat().st_size
            if _keep_tail(path, result) and (is_last or result.torn):
                size = _cut(path, result.end)
            segment = Segment(number, path, header.epoch, header.first_seq, last_seq, result.end, size)
        if segment is not None:
            segments.append(segment)
            highest = max(highest, segment.last_seq)
    for segment in [s for s in segments if s.last_seq <= taken]:
        segments.remove(segment)
        spent.append(segment.path)
    floor = segments[0].first_seq - 1 if segments else highest
    if cursor is not None and floor > taken and segments:
        damage.lost_records += floor - taken
        _log.error("spool: records %d to %d of %s are missing", taken + 1, floor, directory)
    taken = max(taken, floor)
    ahead = [
        (max(first, taken + 1), last) for first, last in (cursor.ahead if cursor else ()) if last > taken
    ]
    return Recovered(
        identity,
        epoch + 1,
        taken,
        highest,
        segments,
        spent,
        [h for h in holes if h.last > taken],
        damage,
        [(first, min(last, highest)) for first, last in ahead if first <= highest],
    )


def repair(
    path: Path, number: int, result: Scan, *, identity: int, taken: int, damage: Damage
) -> Segment | None:
    """Keep the damaged file in quarantine and put its good records, with gaps, in its place.

    Returns None where nothing is left to read.
    """
    damaged = [hole for hole in result.holes if hole.reason == DAMAGED]
    lost = sum(max(0, hole.last - max(hole.first - 1, taken)) for hole in damaged)
    if damaged or result.header is None:
        damage.segments += 1
    damage.lost_records += lost
    _log.error("spool: %s is damaged: %d records kept, %d lost", path, len(result.records), lost)
    records, holes = result.records, result.holes
    if not records and not holes:
        quarantine(path)
        return None
    if result.header is not None:
        epoch, first_seq = result.header.epoch, result.header.first_seq
    else:
        epoch = records[0].epoch if records else 0
        first_seq = min([record.seq for record in records[:1]] + [hole.first for hole in holes[:1]])
    raw = path.read_bytes()
    parts: list[tuple[int, int, bytes]] = [(found.seq, 1, raw[found.start : found.end]) for found in records]
    for hole in holes:
        time_ms = next((found.time_ms for found in records if found.seq > hole.last), 0)
        parts.append(
            (hole.last, 0, pack_gap(hole, epoch=epoch, seq=hole.last, synced=hole.last, time_ms=time_ms))
        )
    parts.sort(key=lambda part: part[:2])
    header = pack_header(Header(identity, number, first_seq, epoch))
    body = b"".join([header, *(part for _, _, part in parts)])
    try:
        link_to_quarantine(path)
        replace(path, body)
    except OSError as error:  # no room for the repaired copy: the start goes on, the file is kept
        kept = quarantine(path)
        _log.error("spool: cannot rewrite %s (%s); its records wait in %s", path, error, kept)
        path.with_name(path.name + ".tmp").unlink(missing_ok=True)
        damage.lost_records += sum(1 for found in records if found.gap is None and found.seq > taken)
        return None
    return Segment(number, path, epoch, first_seq, parts[-1][0], len(body), len(body))


def _identity(paths: list[tuple[int, Path]], cursor: Cursor | None) -> int | None:
    """That of the directory; None where nothing says it any more."""
    for _, path in reversed(paths):
        try:
            with path.open("rb") as file:
                header = unpack_header(file.read(HEADER_BYTES))
        except OSError:
            continue
        if header is not None:
            return header.identity
    return cursor.identity if cursor else None


def _keep_tail(path: Path, result: Scan) -> bool:
    """Copy to quarantine what was begun behind the last good record. Returns whether it may be cut off.

    Damage to the newest records looks just like a write that was torn, so it is not for us to delete.
    """
    if result.begun == result.end:
        return True
    try:
        kept = copy_to_quarantine(path, result.end, result.begun)
    except OSError as error:  # no room: the start goes on, and a second name keeps the file whole
        _log.error("spool: cannot copy the torn tail of %s (%s); it is not cut off", path, error)
        with contextlib.suppress(OSError):
            link_to_quarantine(path)
        return False
    _log.warning("spool: %s ends in a torn or damaged record; it is kept in %s", path, kept)
    return True


def _cut(path: Path, end: int) -> int:
    """Remove everything behind ``end`` for good, so that no stale byte can ever be taken for a record."""
    if path.stat().st_size > end:
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return end
