"""Whether this host's clock can be believed, and what to do with messages until it can.

A gateway without a battery starts with some old time. Until the first synchronisation its messages are
held, durable and acknowledged, with boot id and monotonic time; then they are stamped with the time at which
they really came. What was held over a restart without ever a synchronisation keeps the time the clock
showed, and its sensors get the attribute ``gateway_clock: unsynchronised``, until their first message after
a synchronisation.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fieldring.errors import ConfigurationError
from fieldring.gateway.inbox import Inbox, Message, Moment, Verdict
from fieldring.gateway.inbox import boottime_us as _boottime_us
from fieldring.settings import Settings
from fieldring.spool import Queue

__all__ = ["Clock", "WaitingRoom", "kernel_synchronised", "open_room"]

_STA_UNSYNC = 0x40
_STATUS_OFFSET = 40
_CHECK_SECONDS = 1.0
_READ_BYTES = 1_048_576

_log = logging.getLogger(__name__)


def kernel_synchronised() -> bool:
    """What the time daemon has told the kernel (chrony with rtcsync, systemd-timesyncd, ntpd do)."""
    libc = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
    # struct timex with modes 0, which only asks: 208 bytes where long has 8; more does no harm.
    timex = ctypes.create_string_buffer(512)
    if libc.adjtimex(timex) < 0:
        raise OSError(ctypes.get_errno(), "adjtimex")
    status = int.from_bytes(timex.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], "little")
    return not status & _STA_UNSYNC


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Clock:
    """Trusted once synchronised, or after ``wait_s`` of uptime without it: then better than nothing."""

    def __init__(
        self,
        *,
        wait_s: float,
        synchronised: Callable[[], bool] = kernel_synchronised,
        boot_id: Callable[[], str] = _boot_id,
        boottime_us: Callable[[], int] = _boottime_us,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._wait_us = int(wait_s * 1e6)
        self._synchronised = synchronised
        self.boot_id = boot_id()
        self.boottime_us = boottime_us
        self.now_us = now_us
        self.synchronised = False
        """What ``trusted`` was told last, or true where nobody can be asked."""
        self._next_look = 0
        self._waited = False

    def trusted(self) -> bool:
        if self.synchronised:
            return True
        now = self.boottime_us()
        if now >= self._next_look:
            self._next_look = now + int(_CHECK_SECONDS * 1e6)
            self._look(now)
        return self.synchronised or self._waited

    def _look(self, now: int) -> None:
        try:
            self.synchronised = self._synchronised()
        except OSError as error:
            _log.warning("cannot ask the kernel for its clock's state (%s): it is believed", error.strerror)
            self.synchronised = True
        if not self.synchronised and not self._waited and now > self._wait_us:
            _log.warning("the clock was not synchronised within %d s: it is believed", self._wait_us // 10**6)
            self._waited = True

    def time_of(self, boot_id: str, boottime_us: int) -> int | None:
        """When something happened in this boot; None for another one."""
        if boot_id != self.boot_id or not boot_id:
            return None
        return self.now_us() - (self.boottime_us() - boottime_us)


class _Held(msgspec.Struct, array_like=True):
    boot_id: str
    boottime_us: int
    shown_us: int
    messages: list[tuple[str, bytes, str]]
    arrived_us: list[int] = []
    """``boottime_us`` of each message; the release before had only one for all."""


class WaitingRoom:
    """In front of the inbox. Thread-safe; ``release`` is also called now and then without messages."""

    def __init__(self, queue: Queue, inbox: Inbox, clock: Clock) -> None:
        self._queue = queue
        self._inbox = inbox
        self._clock = clock
        self._lock = threading.Lock()
        self._open = False
        inbox.clock_synchronised = False

    @property
    def open(self) -> bool:
        """Whether messages pass; HTTP devices are asked to come again while they do not."""
        return self._open

    @property
    def settled(self) -> bool:
        """Whether it is open, and not for want of a synchronisation only: ``release`` has nothing to do."""
        return self._open and self._inbox.clock_synchronised

    @property
    def held(self) -> int:
        return self._queue.pending_records

    def take(self, messages: Sequence[Message]) -> list[Verdict]:
        """As ``Inbox.take``; what is held is durable too."""
        with self._lock:
            if self._release():
                return self._inbox.take(messages)
            clock, deliveries = self._clock, self._inbox.deliveries
            known = deliveries.check(messages)
            new = [message for message, again in zip(messages, known, strict=True) if not again]
            if new:
                now = clock.boottime_us()
                held = _Held(
                    clock.boot_id,
                    now,
                    clock.now_us(),
                    [(message.topic, message.payload, message.user) for message in new],
                    [message.arrived_us or now for message in new],
                )
                self._queue.append(msgspec.msgpack.encode(held))
            deliveries.settle()
            return [Verdict()] * len(messages)

    def release(self) -> None:
        """Stamp and hand on what is held, if the clock can be believed by now.

        Raises:
            SpoolFull, OSError: as ``Inbox.take``; what is not handed on stays held.
        """
        if not self.settled:
            with self._lock:
                self._release()

    def close(self) -> None:
        self._queue.close()

    def _release(self) -> bool:
        if self.settled:
            return True
        trusted = self._clock.trusted()
        self._inbox.clock_synchronised = self._clock.synchronised
        if self._open or not trusted:
            return self._open
        count = 0
        while records := self._queue.read(_READ_BYTES):
            for record in records:
                held = msgspec.msgpack.decode(record.payload, type=_Held)
                when = self._clock.time_of(held.boot_id, held.boottime_us)
                moment = Moment(held.shown_us if when is None else when, held.boottime_us)
                arrived_us = held.arrived_us or [0] * len(held.messages)
                messages = [
                    Message(topic, payload, user=user, arrived_us=arrived)
                    for (topic, payload, user), arrived in zip(held.messages, arrived_us, strict=True)
                ]
                self._inbox.take(messages, moment=moment, unsynchronised=when is None)
                count += len(messages)
                self._queue.commit(record.position)
        if count:
            _log.info("the clock is believed now: %d messages that were held are stamped", count)
        self._open = True
        return True


def open_room(settings: Settings, inbox: Inbox) -> WaitingRoom | None:
    """The room that the settings ask for; None where the clock is always believed."""
    if settings.gateway_clock_trust == "always":
        return None
    if settings.gateway_clock_trust != "kernel":
        raise ConfigurationError(
            f"FIELDRING_GATEWAY_CLOCK_TRUST is {settings.gateway_clock_trust!r}, but must be kernel or always"
        )
    queue = Queue(
        Path(settings.spool_dir) / "clock",
        segment_bytes=settings.spool_segment_bytes,
        max_bytes=max(2 * settings.spool_segment_bytes, settings.spool_max_bytes // 4),
    )
    return WaitingRoom(queue, inbox, Clock(wait_s=settings.gateway_clock_wait_seconds))
