"""File primitives of the spool: flock, directory fsync, zero-filled files, atomic replacement."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

__all__ = [
    "copy_to_quarantine",
    "fsync_directory",
    "link_to_quarantine",
    "make_zeroed",
    "quarantine",
    "replace",
    "try_lock",
    "write_all",
]

_ZEROS = bytes(1 << 20)


def try_lock(directory: Path) -> int | None:
    """Take the flock of ``directory``; the descriptor holds it, None means that another has it."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    # The file may have been removed with its directory between open and flock.
    try:
        same = os.fstat(descriptor).st_ino == (directory / "lock").stat().st_ino
    except FileNotFoundError:
        same = False
    if not same:
        os.close(descriptor)
        return None
    return descriptor


def fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def make_zeroed(path: Path, size: int) -> None:
    """A file of ``size`` real zero bytes, fsynced: later writes into it change no metadata."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        offset = 0
        while offset < size:
            step = min(len(_ZEROS), size - offset)
            write_all(descriptor, memoryview(_ZEROS)[:step], offset)
            offset += step
        os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` so that a crash leaves the old or the new, whole and durable."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        write_all(descriptor, data, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(path)
    fsync_directory(path.parent)


def quarantine(path: Path) -> Path:
    """Move ``path`` into ``quarantine/`` beside it; on a full disk rename it in place. Never deletes."""
    try:
        kept = link_to_quarantine(path)
        path.unlink()
    except OSError:
        kept = _free(path.with_name(path.name + ".damaged"))
        path.rename(kept)
    fsync_directory(path.parent)
    return kept


def link_to_quarantine(path: Path) -> Path:
    """A second name for ``path`` in ``quarantine/``, so that a replacement may be renamed over it."""
    folder = path.parent / "quarantine"
    folder.mkdir(mode=0o750, exist_ok=True)
    target = _free(folder / path.name)
    os.link(path, target)
    fsync_directory(folder)
    return target


def copy_to_quarantine(path: Path, start: int, end: int) -> Path:
    """The bytes [start, end) of ``path`` as a file of their own in ``quarantine/``, durable on return."""
    folder = path.parent / "quarantine"
    folder.mkdir(mode=0o750, exist_ok=True)
    target = _free(folder / f"{path.name}.tail")
    try:
        replace(target, path.read_bytes()[start:end])
    except OSError:
        target.with_name(target.name + ".tmp").unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)
    return target


def _free(path: Path) -> Path:
    count = 0
    candidate = path
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.name}.{count}")
    return candidate
