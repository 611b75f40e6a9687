"""Messages of all connections → groups, each durable with as few fdatasyncs as one message alone.

Everything but ``take`` runs on the event loop. While one group is on its way to the disk the next one
gathers, so a group grows with the load and nobody waits for a timer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from fieldring.errors import SpoolFull
from fieldring.gateway.inbox import Message, Verdict
from fieldring.gateway.metrics import Metrics

__all__ = ["GroupCommit", "Sender"]

_GROUP_MESSAGES = 1000
_GROUP_BYTES = 1_048_576
_FULL_PAUSE_SECONDS = (0.5, 5.0)

_log = logging.getLogger(__name__)


class Sender(Protocol):
    """Who sent a message, and is to learn what became of it."""

    def kept(self, verdicts: Sequence[tuple[Message, Verdict]]) -> None:
        """These are durable, or kept as dead letters: acknowledge them."""

    def not_kept(self, reason: str) -> None:
        """Nothing that was handed in and not answered is kept: it has to be sent again."""


class GroupCommit:
    """``add`` from the loop; ``take`` is called in a thread of its own, one group at a time."""

    def __init__(
        self, take: Callable[[Sequence[Message]], Sequence[Verdict]], *, loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self._take = take
        self._loop = loop
        self._metrics = metrics
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._waiting: deque[tuple[Message, Sender]] = deque()
        self._busy = False
        self._failures = 0
        self._refuse_until = 0.0
        self.waiting_bytes = 0

    @property
    def refusing(self) -> bool:
        """The spool refused a moment ago: devices had better keep their messages."""
        return self._loop.time() < self._refuse_until

    @property
    def idle(self) -> bool:
        return not self._busy and not self._waiting

    def add(self, message: Message, sender: Sender) -> None:
        self._waiting.append((message, sender))
        self.waiting_bytes += len(message.payload)
        if not self._busy:
            self._busy = True
            # After what else this turn of the loop brings.
            self._loop.call_soon(self._start)

    def close(self) -> None:
        """Wait for the group that is under way."""
        self._executor.shutdown(wait=True)

    def _start(self) -> None:
        waiting = self._waiting
        # What is too much together may fit one by one.
        limit = 1 if self._failures else _GROUP_MESSAGES
        group: list[tuple[Message, Sender]] = []
        size = 0
        while waiting and len(group) < limit and size < _GROUP_BYTES:
            member = waiting.popleft()
            size += len(member[0].payload)
            group.append(member)
        if not group:
            self._busy = False
            return
        work = self._executor.submit(self._take, [message for message, _ in group])
        work.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._done, group, size, done))

    def _done(self, group: list[tuple[Message, Sender]], size: int, work: Future[Sequence[Verdict]]) -> None:
        self.waiting_bytes -= size
        error = work.exception()
        if error is None:
            self._failures = 0
            answers: dict[Sender, list[tuple[Message, Verdict]]] = {}
            for (message, sender), verdict in zip(group, work.result(), strict=True):
                answers.setdefault(sender, []).append((message, verdict))
            for sender, verdicts in answers.items():
                try:
                    sender.kept(verdicts)
                except Exception:  # noqa: BLE001
                    # One connection's trouble must not keep the next group from starting.
                    _log.exception("a device could not be answered")
                    sender.not_kept("its answer failed")
            self._start()
            return
        if isinstance(error, SpoolFull):
            self._metrics.spool_refusals.inc()
        if not isinstance(error, SpoolFull | OSError):
            _log.error("a group of messages could not be kept", exc_info=error)
        elif not self._failures:
            _log.warning("devices keep their messages: %s", error)
        shortest, longest = _FULL_PAUSE_SECONDS
        pause = min(longest, shortest * 2 ** min(self._failures, 10))
        self._failures += 1
        self._refuse_until = self._loop.time() + pause
        refused = {sender: None for _, sender in (*group, *self._waiting)}
        self._waiting.clear()
        self.waiting_bytes = 0
        self._busy = False
        for sender in refused:
            sender.not_kept(str(error))
