"""The promise behind an answer: what is acknowledged is stored at quorum, or fsynced in the spool.

Nothing below this room decides what a client is told, and nothing above it may answer before
``Acceptor.accept`` has returned.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fieldring.errors import LineError, SpoolFull, StoreUnavailable
from fieldring.model import DAY_MS, Batch, Receipt, Store
from fieldring.settings import Settings
from fieldring.wire import block

__all__ = ["SPOOLED", "STORED", "Accepted", "Acceptor", "SpoolSink", "system_clock_us"]

STORED = "stored"
SPOOLED = "spooled"

_PAUSE_MIN_S = 0.25
_PAUSE_MAX_S = 5.0
_PROBE_S = 30.0
_SPOOL_FAILED_S = 5.0


class SpoolSink(Protocol):
    """The part of ``spool.Queue`` that accepting needs."""

    def append(self, payload: bytes) -> None:
        """Returns when the payload is durable. Raises SpoolFull."""

    def append_many(self, payloads: Sequence[bytes]) -> Sequence[SpoolFull | None]:
        """``append`` of each, together; says for each what that would have raised."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a batch: the promise for what was kept, and the rows that were refused."""

    receipt: Receipt
    errors: tuple[LineError, ...] = ()


def system_clock_us() -> int:
    """Wall clock in µs."""
    return time.time_ns() // 1_000


class Acceptor:
    """Takes batches to the store, or to the spool when the store cannot. Thread-safe.

    Counters (plain attributes): ``stored_points``, ``spooled_points``.

    While the store is down not every request waits out its deadline: after a failure the spool is
    used directly for a moment, then a single request tries the store again.
    """

    def __init__(
        self,
        store: Store,
        spool: SpoolSink,
        settings: Settings,
        clock: Callable[[], int] = system_clock_us,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._spool = spool
        self._retention_ms = settings.retention_days * DAY_MS
        self._future_ms = settings.future_limit_seconds * 1_000
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self.stored_points = 0
        self.spooled_points = 0
        self._last_received = 0
        self._down_since: float | None = None
        self._next_try = 0.0
        self._spool_failed_at: float | None = None

    @property
    def store_failing(self) -> bool:
        """Whether the last write to the store failed."""
        return self._down_since is not None

    @property
    def spool_failing(self) -> bool:
        """Whether the spool refused within the last seconds."""
        failed_at = self._spool_failed_at
        return failed_at is not None and self._monotonic() - failed_at < _SPOOL_FAILED_S

    @property
    def probe_due(self) -> bool:
        """Whether the store is down and the next ``accept`` tries it again, which may take its deadline."""
        return self._down_since is not None and self._monotonic() >= self._next_try

    def store_answered(self) -> None:
        """Somebody else's write went through: the store is back, also where nobody writes here just now."""
        if self._down_since is not None:
            with self._lock:
                self._down_since = None

    def now_ms(self) -> int:
        """Wall clock in ms, as decoders take it."""
        return self._clock() // 1_000

    def accept(self, batch: Batch) -> Accepted:
        """Keep what lies within retention, and say how.

        ``batch.received`` is set unless it came with the batch (a gateway's block).

        Raises:
            SpoolFull: neither store nor spool can take it; nothing is promised.
        """
        now_us = self._clock()
        batch, errors = self._prepare(batch, now_us)
        if not len(batch):
            return Accepted(Receipt(STORED, 0, batch.collapsed), errors)
        durability = STORED if self._may_try() and self._try_store([batch]) else SPOOLED
        if durability == SPOOLED:
            failure = self._spool_all([batch])[0]
            if failure is not None:
                raise failure
        return self._accepted(durability, batch, errors)

    def accept_together(self, batches: Sequence[Batch]) -> list[Accepted | Exception]:
        """As ``accept`` of each in turn, but they share the wait; says for each what that would have raised.

        While the store is down they are spooled at once: only ``accept`` tries it again.
        """
        now_us = self._clock()
        prepared = [self._prepare(batch, now_us) for batch in batches]
        going = [batch for batch, _ in prepared if len(batch)]
        if going and self._down_since is None:
            try:
                stored = self._try_store(going)
            except Exception as error:  # noqa: BLE001 - one that the store chokes on must not cost the others
                return [self._alone(batch) for batch in batches] if len(batches) > 1 else [error]
        else:
            stored = False
        failures = iter([None] * len(going) if stored else self._spool_all(going))
        durability = STORED if stored else SPOOLED
        results: list[Accepted | Exception] = []
        for batch, errors in prepared:
            if not len(batch):
                results.append(Accepted(Receipt(STORED, 0, batch.collapsed), errors))
                continue
            failure = next(failures)
            results.append(self._accepted(durability, batch, errors) if failure is None else failure)
        return results

    def _accepted(self, durability: str, batch: Batch, errors: tuple[LineError, ...]) -> Accepted:
        points = batch.points
        with self._lock:
            if durability == STORED:
                self.stored_points += points
            else:
                self.spooled_points += points
        return Accepted(Receipt(durability, points, batch.collapsed), errors)

    def _alone(self, batch: Batch) -> Accepted | Exception:
        try:
            return self.accept(batch)
        except Exception as error:  # noqa: BLE001 - handed to the caller of accept_together
            return error

    def _prepare(self, batch: Batch, now_us: int) -> tuple[Batch, tuple[LineError, ...]]:
        """What lies within retention, with its time of acceptance."""
        batch, errors = self._within_retention(batch, now_us // 1_000)
        if len(batch) and not 0 < batch.received <= now_us:
            # A clock that runs ahead must not win over every later correction.
            batch.received = self._stamp(now_us)
        return batch, errors

    def _spool_all(self, batches: Sequence[Batch]) -> Sequence[SpoolFull | None]:
        payloads = [block.encode(batch) for batch in batches]
        if len(payloads) == 1:
            try:
                self._spool.append(payloads[0])
            except SpoolFull as error:
                self._spool_failed_at = self._monotonic()
                return [error]
            failures: Sequence[SpoolFull | None] = [None]
        else:
            failures = self._spool.append_many(payloads)
        failed = any(failure is not None for failure in failures)
        self._spool_failed_at = self._monotonic() if failed else None
        return failures

    def keeps_whole(self, batch: Batch) -> bool:
        """Whether no row of ``batch`` would be refused now for its time."""
        return not len(batch) or self._all_within(batch, self._limits(self.now_ms()))

    def _limits(self, now_ms: int) -> tuple[int, int]:
        return now_ms - self._retention_ms, now_ms + self._future_ms

    @staticmethod
    def _all_within(batch: Batch, limits: tuple[int, int]) -> bool:
        earliest, latest = batch.span
        return earliest >= limits[0] and latest <= limits[1]

    def _within_retention(self, batch: Batch, now_ms: int) -> tuple[Batch, tuple[LineError, ...]]:
        first, last = limits = self._limits(now_ms)
        if not len(batch) or self._all_within(batch, limits):
            return batch, ()
        keep: list[int] = []
        errors: list[LineError] = []
        for index, time_ms in enumerate(batch.times_ms):
            if first <= time_ms <= last:
                keep.append(index)
                continue
            line = batch.lines[index] if batch.lines else index + 1
            if time_ms < first:
                reason = (
                    f"time {time_ms} ms is older than the retention of {self._retention_ms // DAY_MS} days"
                )
            else:
                reason = (
                    f"time {time_ms} ms is more than {self._future_ms // 1_000} s ahead, outside retention: "
                    "check the clock and the precision"
                )
            errors.append(LineError(line, reason))
        return batch.select(keep), tuple(errors)

    def _stamp(self, now_us: int) -> int:
        with self._lock:
            self._last_received = max(now_us, self._last_received + 1)
            return self._last_received

    def _may_try(self) -> bool:
        with self._lock:
            if self._down_since is not None:
                now = self._monotonic()
                if now < self._next_try:
                    return False
                # This request is the one that tries; the others spool until it knows.
                self._next_try = now + _PROBE_S
        return True

    def _try_store(self, batches: Sequence[Batch]) -> bool:
        try:
            if len(batches) == 1:
                self._store.write(batches[0])
            else:
                self._store.write_many(batches)
        except StoreUnavailable:
            with self._lock:
                now = self._monotonic()
                if self._down_since is None:
                    self._down_since = now
                down = now - self._down_since
                self._next_try = now + min(max(down / 2, _PAUSE_MIN_S), _PAUSE_MAX_S)
            return False
        except BaseException:
            with self._lock:
                self._next_try = 0.0
            raise
        with self._lock:
            self._down_since = None
        return True
