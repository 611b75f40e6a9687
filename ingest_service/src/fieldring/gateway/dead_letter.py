"""What could not be taken, kept as JSON lines with the reason, in bounded room.

Two files, each with half of the room, so that a device that sends junk without end cannot push out
blocks that an upstream refused: ``messages.jsonl`` (from devices), ``blocks.jsonl`` (by upstreams).
When a file is full its letters are only counted: an operator reads, moves or empties the file, and
the next letter is kept again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fieldring.gateway.metrics import Metrics

__all__ = ["PAYLOAD_MAX_BYTES", "DeadLetters", "payload_fields"]

PAYLOAD_MAX_BYTES = 65_536
"""Of a device's message this much is kept; the letter says when it was cut."""

_log = logging.getLogger(__name__)


def payload_fields(payload: bytes, *, max_bytes: int = PAYLOAD_MAX_BYTES) -> dict[str, Any]:
    """``payload`` as readable text where it is text, else as base64."""
    fields: dict[str, Any] = {"bytes": len(payload)}
    kept = payload[:max_bytes]
    try:
        fields["payload"] = kept.decode("utf-8")
    except UnicodeDecodeError:
        fields["payload_base64"] = b64encode(kept).decode("ascii")
    if len(kept) < len(payload):
        fields["truncated"] = True
    return fields


class DeadLetters:
    """Both files. Thread-safe: listener and sender write here."""

    def __init__(self, directory: Path, *, max_bytes: int, metrics: Metrics) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._messages = directory / "messages.jsonl"
        self._blocks = directory / "blocks.jsonl"
        self._room = max_bytes // 2
        self._metrics = metrics
        self._lock = threading.Lock()

    def messages(self, letters: Iterable[tuple[str, Mapping[str, Any]]], *, now_s: float) -> None:
        """Keep letters (reason, fields) about devices' messages, on disk when this returns."""
        self._append(self._messages, letters, now_s=now_s)

    def blocks(self, letters: Iterable[tuple[str, Mapping[str, Any]]], *, now_s: float) -> None:
        """Keep letters (reason, fields) about blocks, on disk when this returns."""
        self._append(self._blocks, letters, now_s=now_s)

    def _append(self, path: Path, letters: Iterable[tuple[str, Mapping[str, Any]]], *, now_s: float) -> None:
        time = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds")
        lines = []
        for reason, fields in letters:
            self._metrics.dead_letters.labels(reason).inc()
            text = json.dumps({"time": time, "reason": reason, **fields}, ensure_ascii=False)
            lines.append(text.encode("utf-8", "backslashreplace") + b"\n")
        if not lines:
            return
        with self._lock:
            kept = 0
            try:
                with path.open("ab") as file:
                    # Asked each time: an operator may have emptied or moved the file.
                    room = self._room - file.tell()
                    for line in lines:
                        if len(line) > room:
                            break
                        file.write(line)
                        room -= len(line)
                        kept += 1
                    file.flush()
                    os.fdatasync(file.fileno())
            except OSError as error:
                kept = 0
                _log.error("dead letters: cannot write %s: %s", path, error.strerror)
            if kept < len(lines):
                self._metrics.dead_letters_lost.inc(len(lines) - kept)
                _log.error(
                    "dead letters: %d not kept, see %s (room: %d bytes)", len(lines) - kept, path, self._room
                )
