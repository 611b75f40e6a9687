"""Two ways out of one queue: what arrives now first, what had to wait in the gaps between."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from fieldring.spool.queue import Queue, Record

__all__ = ["Lanes", "Portion"]

_BURST_S = 1.0


class Portion(NamedTuple):
    """Records that were read together, to be handed back to ``Lanes.done``."""

    records: list[Record]
    live: bool


class Lanes:
    """The consumer's view of a queue. One thread only.

    Live is what was appended after the last ``fall_back`` (or the start), in its order. Everything older
    is the backlog: oldest first, since room is freed from that end only, a portion whenever nothing live
    waits, and at most ``backlog_bytes_per_second`` of it (0: no limit).
    """

    def __init__(
        self,
        queue: Queue,
        *,
        backlog_bytes_per_second: int = 0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._rate = backlog_bytes_per_second
        self._monotonic = monotonic
        self._allowed_at = monotonic()
        self._live = queue.last_position

    def read(self, max_bytes: int) -> Portion:
        """The next portion; empty where nothing waits, or only backlog that has to wait its turn."""
        if self._queue.last_position > self._live:
            live = self._queue.read(max_bytes, after=self._live)
            if live:
                return Portion(live, True)
        if self.pause_s() > 0:
            return Portion([], False)
        # A portion must not hold up the live lane for longer than the rate means it to.
        return Portion(self._queue.read(min(max_bytes, self._rate) if self._rate else max_bytes), False)

    def done(self, portion: Portion) -> None:
        """The records were taken over. Durable on return."""
        last = portion.records[-1].position
        if portion.live:
            self._queue.commit_ahead(self._live + 1, last)
            self._live = last
            return
        self._queue.commit(last)
        self._live = max(self._live, last)
        if self._rate:
            size = sum(len(record.payload) for record in portion.records)
            now = self._monotonic()
            self._allowed_at = max(self._allowed_at, now - _BURST_S) + size / self._rate

    def pause_s(self) -> float:
        """How long the backlog has to wait by its rate."""
        return max(0.0, self._allowed_at - self._monotonic()) if self._rate else 0.0

    def fall_back(self) -> None:
        """The sink has failed: what waits now is backlog, what comes from here on is live."""
        self._live = self._queue.last_position

    def wait(self, timeout_s: float) -> bool:
        """Wait until there may be something to read."""
        pause_s = self.pause_s()
        if pause_s <= 0:
            return self._queue.wait(timeout_s)
        return self._queue.wait(min(timeout_s, pause_s), after=self._live)
