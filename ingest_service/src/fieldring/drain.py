"""Spool → store: moves what was promised while the store could not take it, and refuses none of it.

May not stand between a request and its answer, nor judge what it moves: retention and limits were
checked when the batch was accepted.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from fieldring.errors import CorruptionError, StoreUnavailable, Unavailable
from fieldring.model import Batch
from fieldring.spool import Lanes, Queue, Record
from fieldring.wire import block

__all__ = ["Drain", "Sink"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_READ_BYTES = 2 << 20
_PROBE_BYTES = 1 << 16
_IDLE_S = 1.0
_SINGLY_AFTER = 5


class Sink(Protocol):
    """Where batches go. The part of ``model.Store`` that draining needs."""

    def write_many(self, batches: Sequence[Batch]) -> None:
        """Return when all are safe. Raises StoreUnavailable: any subset may be, all are sent again."""


class Drain:
    """Moves one queue into one sink, in a thread of its own or by ``run_once``.

    What comes in while the sink takes it goes first; what had to wait goes oldest first in the gaps, no
    faster than ``backlog_bytes_per_second`` (0: no limit), so that the past does not make the present late.

    A record leaves the queue only after the sink has it (or, unreadable, after it was put aside), so
    a crash at any point delivers again rather than never; the store's key rule makes that harmless.

    ``delivered`` is called whenever the sink has taken something.

    With ``release`` the queue is closed, and its directory removed, as soon as it is empty: for
    directories whose worker is gone.

    Counters (plain attributes): ``delivered_records``, ``delivered_points``, ``retries``,
    ``quarantined_records``; ``last_error`` is empty while the sink takes what it is given.
    """

    def __init__(
        self,
        queue: Queue,
        sink: Sink,
        *,
        retry_max_s: float = 30.0,
        read_bytes: int = _READ_BYTES,
        release: bool = False,
        backlog_bytes_per_second: int = 0,
        delivered: Callable[[], None] | None = None,
    ) -> None:
        self._queue = queue
        self._lanes = Lanes(queue, backlog_bytes_per_second=backlog_bytes_per_second)
        self._sink = sink
        self._retry_max_s = retry_max_s
        self._read_bytes = read_bytes
        self._release = release
        self._delivered = delivered
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.delivered_records = 0
        self.delivered_points = 0
        self.retries = 0
        self.quarantined_records = 0
        self.last_error = ""

    def start(self) -> None:
        """Drain until ``stop``."""
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the delivery that is under way; what is left stays in the queue."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def run_once(self, *, progress: Callable[[int], None] | None = None) -> int:
        """Move everything that is in the queue now; returns the number of records moved.

        ``progress`` is told how many records are left after each step.

        Raises:
            StoreUnavailable: the sink cannot take more; what is left stays in the queue.
        """
        moved = 0
        while count := self._step(self._read_bytes):
            moved += count
            if progress is not None:
                progress(self._queue.pending_records)
        return moved

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        failures = 0
        while not self._stopping.is_set():
            try:
                # Whether the store is back is asked with a few records: all others are read in vain if not.
                moved = self._step(
                    min(self._read_bytes, _PROBE_BYTES) if failures else self._read_bytes,
                    singly=failures >= _SINGLY_AFTER,
                )
            except Exception as error:  # noqa: BLE001 - a thread that died would fill the spool in silence
                failures += 1
                self._lanes.fall_back()
                if not self.last_error:
                    unexpected = not isinstance(error, (Unavailable, OSError))
                    _log.warning("drain: %s waits: %s", self._queue.directory, error, exc_info=unexpected)
                self.last_error = str(error) or type(error).__name__
                self.retries += 1
                # Jittered, so that many workers do not come back to a recovering ring at once.
                self._stopping.wait(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, self._retry_max_s)
                continue
            if self.last_error:
                _log.info("drain: %s goes on", self._queue.directory)
                self.last_error = ""
            pause_s = _FIRST_PAUSE_S
            failures = 0
            if moved:
                continue
            if self._release and not self._queue.pending_bytes:
                _log.info("drain: %s is empty and released", self._queue.directory)
                self._queue.close(remove=True)
                return
            self._lanes.wait(_IDLE_S)

    def _step(self, read_bytes: int, *, singly: bool = False) -> int:
        """Move one read's worth of records. Returns their number, 0 when the queue is empty."""
        portion = self._lanes.read(read_bytes)
        records = portion.records
        if not records:
            return 0
        batches: list[Batch] = []
        good: list[Record] = []
        for record in records:
            try:
                batch = block.decode(record.payload)
            except CorruptionError as error:
                self._put_aside(record, f"cannot be decoded: {error}")
                continue
            batches.append(batch)
            good.append(record)
        refused: list[Record] = []
        if singly and len(batches) > 1:
            refused = self._deliver_singly(good, batches)
        elif batches:
            self._deliver(good, batches)
        for record in refused:
            self._queue.append(record.payload)
        # Durable at the end before they are gone here; and what falls back would move the portion's place.
        self._lanes.done(portion)
        if refused:
            self._lanes.fall_back()  # they are no news
        return len(records)

    def _deliver_singly(self, records: list[Record], batches: list[Batch]) -> list[Record]:
        """For a store that works but keeps refusing something in here: that goes to the end of the queue.

        Raises StoreUnavailable if nothing at all can be stored.
        """
        refused: list[Record] = []
        for record, batch in zip(records, batches, strict=True):
            try:
                self._deliver([record], [batch])
            except StoreUnavailable as error:
                if len(refused) + 1 == len(records) or self._stopping.is_set():
                    raise
                refused.append(record)
                self.last_error = str(error)
        return refused

    def _deliver(self, records: list[Record], batches: list[Batch]) -> None:
        try:
            self._sink.write_many(batches)
            self._count(batches)
        except (StoreUnavailable, OSError):
            raise
        except Exception:  # noqa: BLE001 - each record is tried again below, and kept whatever happens
            # A fault of ours in one batch must not hold up the others for ever.
            _log.exception("drain: delivering %d records failed, trying them one by one", len(batches))
            for record, batch in zip(records, batches, strict=True):
                try:
                    self._sink.write_many([batch])
                    self._count([batch])
                except (StoreUnavailable, OSError):
                    raise
                except Exception as error:  # noqa: BLE001 - kept on disk with its reason, and counted
                    self._put_aside(record, f"cannot be stored: {type(error).__name__}: {error}")

    def _count(self, batches: list[Batch]) -> None:
        if self._delivered is not None:
            self._delivered()
        self.delivered_records += len(batches)
        self.delivered_points += sum(batch.points for batch in batches)

    def _put_aside(self, record: Record, reason: str) -> None:
        path = self._queue.put_aside(record)
        self.quarantined_records += 1
        _log.error(
            "drain: record %d of %s (from %s) %s; kept as %s",
            record.position,
            self._queue.directory,
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.time_ms / 1000)),
            reason,
            path,
        )
