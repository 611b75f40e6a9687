"""Which blocks of gateways this process has taken, as runs in the store."""

from __future__ import annotations

import bisect
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from fieldring.errors import StoreUnavailable
from fieldring.model import Arrivals, Store

__all__ = ["ArrivalBook"]

_MAX_EPOCHS = 1_000
_PAUSE_S = 5.0
"""How long the store is left alone after it failed: it may hang, and a gateway waits for its answer."""

_TRY_S = 30.0
"""How long one try may take, at most."""

_log = logging.getLogger(__name__)


class ArrivalBook:
    """Thread-safe. A block is recorded before it is answered; while the store is away, runs wait in memory.

    ``arrived`` waits for nobody. Of those who ``write`` at once, one writes for all, and the others wait for
    it: at most once while the store fails.

    A process that is killed while the store is away forgets those: they then show as gaps, though their
    points are in its spool. The other way round, a gap that is not shown, cannot happen.
    """

    def __init__(
        self,
        store: Store,
        *,
        node_name: str,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        # Unique per start: a run that begins anew at the same number must not shorten an older one.
        self._writer = f"{node_name}:{now_ms()}"
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._turn = threading.Lock()
        self._failing = False
        self._next_try = 0.0
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, int], list[Arrivals]] = {}
        self._waiting: dict[tuple[str, int, int], Arrivals] = {}

    def arrived(self, gateway: str, epoch: int, seq: int, count: int, *, oldest: int = 0) -> None:
        """Blocks ``seq`` to ``seq + count - 1`` are stored or spooled."""
        with self._lock:
            runs = self._runs.setdefault((gateway, epoch), [])
            if len(self._runs) > _MAX_EPOCHS:
                del self._runs[next(iter(self._runs))]
            last = seq + count - 1
            index = bisect.bisect_right(runs, seq, key=lambda run: run.first) - 1
            if index >= 0 and runs[index].last >= seq - 1:
                run = runs[index]
                if run.last >= last and run.oldest >= oldest:
                    return
                run = replace(
                    run, last=max(run.last, last), oldest=max(run.oldest, oldest), seen_ms=self._now_ms()
                )
                runs[index] = run
            else:
                run = Arrivals(gateway, epoch, seq, last, self._writer, oldest, self._now_ms())
                runs.insert(index + 1, run)
            self._waiting[(gateway, epoch, run.first)] = run

    def write(self) -> None:
        """Record what waits, unless the store failed a moment ago."""
        with self._lock:
            tries_again = self._failing
            if tries_again:
                now = self._monotonic()
                if not self._waiting or now < self._next_try:
                    return
                self._next_try = now + _TRY_S  # the others do not wait until this one knows
        # Also where nothing waits any more: another one may be writing it.
        with self._turn:
            if tries_again or not self._failing:
                self._write()

    def flush(self) -> None:
        """Once more, before the process ends."""
        with self._turn:
            self._write()

    def _write(self) -> None:
        with self._lock:
            runs, self._waiting = self._waiting, {}
        if not runs:
            return
        failed = True
        try:
            self._store.record_arrivals(tuple(runs.values()))
            failed = False
        except StoreUnavailable as error:
            _log.debug("arrivals of gateways wait for the store: %s", error)
        finally:
            with self._lock:
                self._failing = failed
                if failed:
                    self._waiting = runs | self._waiting
                    self._next_try = self._monotonic() + _PAUSE_S
