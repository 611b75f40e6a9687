"""Spool → upstream. A record leaves the spool only after an upstream has taken or refused it.

Two lanes: what comes in now goes first; what was waiting when the forwarder started or an outage ended
is the backlog, sent in the gaps, oldest first, at most at a given rate.

``Fieldring-Source`` numbers the blocks by what the spool keeps anyway: ``epoch`` is the identity of its
directory, ``seq`` the record's position in it, ``count`` how many records the request carries. A block
so has the same number at every try and after every restart, and positions that were dropped or lost
show upstream as a gap.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from fieldring.gateway.dead_letter import DeadLetters, payload_fields
from fieldring.gateway.metrics import Metrics
from fieldring.gateway.upstream import Stopped, Upstreams
from fieldring.spool import Queue, Record

__all__ = ["Sender"]

_READ_BYTES = 262_144
_BACKLOG_READ_BYTES = 65_536
_IDLE_SECONDS = 0.5
_OUTAGE_SECONDS = 5.0
"""A block that took longer than this to deliver has kept others waiting: they are a backlog."""

_log = logging.getLogger(__name__)


class Sender(threading.Thread):
    """The thread that empties the spool.

    ``_backlog`` holds ranges (after, upto) that are still to be sent, ascending; all else up to ``_live``
    is settled. So the cursor, which is one number, may stand at the first range only. What was sent
    beyond it is sent again after a crash, which changes nothing upstream.
    """

    def __init__(
        self,
        queue: Queue,
        upstreams: Upstreams,
        *,
        gateway: str,
        dead_letters: DeadLetters,
        metrics: Metrics,
        stop: threading.Event,
        backlog_bytes_per_s: int = 0,
        now_s: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self._queue = queue
        self._upstreams = upstreams
        self._gateway = gateway
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._stop_event = stop
        self._backlog_bytes_per_s = backlog_bytes_per_s
        self._now_s = now_s
        self._monotonic = monotonic
        self._wake = threading.Event()
        self._live = queue.position
        self._backlog: list[tuple[int, int]] = []
        self._backlog_not_before = 0.0
        self._divide()

    def wake(self) -> None:
        """Something was appended: look at once."""
        self._wake.set()

    @property
    def backlog(self) -> int:
        """Blocks of the second lane."""
        return sum(upto - after for after, upto in tuple(self._backlog))

    def run(self) -> None:
        while not self._stop_event.is_set():
            try:
                if not self._round():
                    self._wake.wait(_IDLE_SECONDS)
                    self._wake.clear()
            except Stopped:
                return
            except Exception:  # noqa: BLE001
                # A thread that died silently would fill the spool; trying again loses nothing.
                _log.exception("the sender failed; trying again")
                self._stop_event.wait(1.0)

    def _round(self) -> bool:
        self._metrics.backlog_blocks.set(self.backlog)
        records = self._queue.read(_READ_BYTES, after=self._live)
        if not records:
            return self._send_backlog()
        try:
            for record in records:
                outage = self._deliver(record)
                self._live = record.position
                if outage:
                    self._divide()
                    break
        finally:
            self._commit()
        return True

    def _send_backlog(self) -> bool:
        if not self._backlog:
            return False
        pause = self._backlog_not_before - self._monotonic()
        if pause > 0:
            self._wake.wait(min(pause, _IDLE_SECONDS))
            self._wake.clear()
            return True
        after, upto = self._backlog[0]
        records = self._queue.read(_BACKLOG_READ_BYTES, after=after)
        try:
            for record in records:
                if record.position > upto:
                    after = upto  # the rest of the range was dropped or damaged
                    break
                began = self._monotonic()
                outage = self._deliver(record)
                after = record.position
                self._backlog[0] = (after, upto)
                if self._backlog_bytes_per_s:
                    self._backlog_not_before = began + len(record.payload) / self._backlog_bytes_per_s
                if outage:
                    self._divide()
                if outage or self._backlog_bytes_per_s or self._queue.last_position > self._live:
                    break
        finally:
            # Asked twice: a read that met damage gives nothing though there is more.
            if after >= upto or (not records and not self._queue.read(1, after=after)):
                del self._backlog[0]
            self._commit()
        return True

    def _divide(self) -> None:
        """What waits now is backlog from here on."""
        end = self._queue.last_position
        if end > self._live:
            self._backlog.append((self._live, end))
            self._live = end

    def _commit(self) -> None:
        """One for all that were sent: it costs an fsync. A crash before it sends blocks twice."""
        self._queue.commit(self._backlog[0][0] if self._backlog else self._live)

    def _deliver(self, record: Record) -> bool:
        """Returns whether there was an outage before it was taken or refused."""
        source = f"{self._gateway};epoch={self._queue.identity};seq={record.position};count=1"
        began = self._monotonic()
        answer = self._upstreams.deliver(record.payload, source=source, oldest=self._queue.position + 1)
        outage = self._monotonic() - began > _OUTAGE_SECONDS
        if answer.taken:
            self._metrics.sent_blocks.inc()
            return outage
        _log.error("block %s was refused with %d: see blocks.jsonl", source, answer.status)
        letter = {"source": source, "status": answer.status, "detail": answer.text[:4096]}
        letter |= payload_fields(record.payload, max_bytes=len(record.payload))
        self._dead_letters.blocks([(f"upstream_{answer.status}", letter)], now_s=self._now_s())
        return outage
