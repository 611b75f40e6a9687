"""One directory per worker under a spool root, and adoption of those whose worker is gone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fieldring.errors import ConfigurationError
from fieldring.spool._files import try_lock
from fieldring.spool.queue import Queue

__all__ = ["adopt_orphans", "open_worker"]


def open_worker(spool_dir: str | Path, worker_name: str, **options: Any) -> Queue:
    """The queue of this worker: the first of ``name``, ``name.2``, ``name.3``… that nobody holds.

    A restarted worker so gets its own directory back, unless its predecessor (or who adopted the
    directory) is still at it. ``options`` are those of ``Queue``.
    """
    if not worker_name or "/" in worker_name or worker_name.startswith("."):
        raise ConfigurationError(f"worker name {worker_name!r} cannot be a directory name")
    root = _root(spool_dir)
    count = 1
    while True:
        directory = root / (worker_name if count == 1 else f"{worker_name}.{count}")
        queue = _open_unless_held(directory, options)
        if queue is not None:
            return queue
        count += 1


def adopt_orphans(spool_dir: str | Path, **options: Any) -> list[Queue]:
    """Queues of all directories that nobody holds and that still have records; empty ones are removed."""
    root = _root(spool_dir)
    adopted = []
    for directory in sorted(entry for entry in root.iterdir() if (entry / "lock").exists()):
        try:
            queue = _open_unless_held(directory, options)
        except FileNotFoundError:
            continue  # another worker emptied and removed it just now
        if queue is None:
            continue
        if queue.pending_bytes:
            adopted.append(queue)
        else:
            queue.close(remove=True)
    return adopted


def _root(spool_dir: str | Path) -> Path:
    root = Path(spool_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"FIELDRING_SPOOL_DIR: cannot make {root}: {error.strerror}") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"FIELDRING_SPOOL_DIR: {root} is not writable for user id {os.geteuid()}: change its owner"
        )
    return root


def _open_unless_held(directory: Path, options: dict[str, Any]) -> Queue | None:
    directory.mkdir(mode=0o750, exist_ok=True)
    lock = try_lock(directory)
    return None if lock is None else Queue(directory, lock=lock, **options)
