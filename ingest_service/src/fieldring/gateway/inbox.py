"""Devices' messages → one durable block, or dead letters with the reason.

A group of messages becomes as few spool records as possible, because each costs an fdatasync here
and a request upstream. Rows of one block share ``received``, so a key may stand in it only once: a
second value for the same sensor and time starts the next block, with a later ``received``. So does another
value of a sensor's attribute, which has no time of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

from fieldring.errors import ClientError, SpoolFull, UnsupportedMediaType
from fieldring.gateway.clock_marks import ClockMarks, Pending
from fieldring.gateway.dead_letter import DeadLetters, payload_fields
from fieldring.gateway.deliveries import Deliveries
from fieldring.gateway.metrics import Metrics
from fieldring.model import Batch
from fieldring.wire import block, line_protocol, senml

__all__ = ["Inbox", "Message", "Moment", "Spool", "Verdict", "boottime_us"]

_AHEAD_MS = 300_000

_SPREAD_MS = 10_000
"""How far messages that come at once are set apart; a time further ahead is from before the clock was set."""

_STAMPED_SENSORS = 10_000

_BLOCK_MAX_BYTES = 1_048_576
"""Larger ones are sent in parts: an ingest host would answer 413 to what was acknowledged here."""

_DECODED_MAX_BYTES = 67_108_864
"""What one message may take while it is decoded: as 1 MiB of SenML in JSON does, or 327 KiB in CBOR."""

_log = logging.getLogger(__name__)


class Message(NamedTuple):
    """What the broker delivered, or a device sent itself.

    ``client`` makes ``mid`` unique. ``user`` is the device that logged in: it may write under its own name
    only. Empty where a broker has checked that already. ``arrived_us`` is ``boottime_us`` when it came, which
    no setting of the clock changes; 0 is when it is taken. ``connection`` differs from one connection of a
    client to the next.
    """

    topic: str
    payload: bytes
    mid: int = 0
    dup: bool = False
    client: str = ""
    user: str = ""
    qos: int = 1
    arrived_us: int = 0
    connection: float = 0


class Moment(NamedTuple):
    """One moment on both clocks, in µs: since 1970, and since the boot."""

    now_us: int
    boottime_us: int


def boottime_us() -> int:
    """Time since the boot in µs, suspension included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Verdict(NamedTuple):
    """What became of a message: an empty reason is "in the spool", any other stands in its dead letter."""

    reason: str = ""
    detail: str = ""


_KEPT = Verdict()


class Spool(Protocol):
    """The part of ``spool.Queue`` that takes records."""

    def append_many(self, payloads: Sequence[bytes], /) -> Sequence[SpoolFull | None]: ...


class _Refused(Exception):  # noqa: N818 - a verdict on a message, not a failure
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Inbox:
    """Takes groups of messages in one thread, and batches in any."""

    def __init__(
        self,
        spool: Spool,
        *,
        dead_letters: DeadLetters,
        metrics: Metrics,
        series_tags: Collection[str] = (),
        marks: ClockMarks | None = None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        boottime_us: Callable[[], int] = boottime_us,
    ) -> None:
        self._spool = spool
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._series_tags = frozenset(series_tags)
        self._marks = ClockMarks() if marks is None else marks
        self._now_us = now_us
        self._boottime_us = boottime_us
        self._received = 0
        self._received_lock = threading.Lock()
        self._stamped: OrderedDict[str, int] = OrderedDict()
        self.deliveries = Deliveries()
        self.clock_synchronised = True
        """Whether ``gateway_clock: unsynchronised`` may be taken back."""

    def take(
        self, messages: Sequence[Message], *, moment: Moment | None = None, unsynchronised: bool = False
    ) -> list[Verdict]:
        """Make all of ``messages`` durable; only then may they be acknowledged. What became of each.

        ``moment`` is when they were taken, where that is not now; ``unsynchronised`` marks their sensors,
        as nobody knows how far its ``now_us`` was from the truth.

        Raises:
            SpoolFull: nothing may be acknowledged, the broker keeps the messages.
            OSError: likewise, the spool's disk failed.
        """
        self._metrics.received.inc(len(messages))
        now_us, up_us = moment or (self._now_us(), self._boottime_us())
        batches: list[Batch] = []
        letters: list[tuple[str, dict[str, Any]]] = []
        verdicts: list[Verdict] = []
        pending: Pending = {}
        seen: set[tuple[str, int]] = set()
        for message, known in zip(messages, self.deliveries.check(messages), strict=True):
            if known:
                # It was spooled, but its acknowledgement got lost with the connection.
                self._metrics.redelivered.inc()
                verdicts.append(_KEPT)
                continue
            arrived_ms = (now_us - up_us + message.arrived_us if message.arrived_us else now_us) // 1000
            try:
                batch, refused_lines = self._decode(message, arrived_ms=arrived_ms)
            except _Refused as refused:
                letters.append((refused.reason, self._letter(message, str(refused))))
                verdicts.append(Verdict(refused.reason, str(refused)))
                continue
            if refused_lines:
                detail = f"{len(refused_lines)} refused"
                letters.append(("lines", self._letter(message, detail, refused_lines)))
                first = refused_lines[0]
                verdicts.append(Verdict("lines", f"{detail}, first: line {first['line']}: {first['reason']}"))
            else:
                verdicts.append(_KEPT)
            keys = set(zip(batch.sensors, batch.times_ms, strict=True))
            if not keys:
                continue
            ahead = max(batch.times_ms) > arrived_ms + _AHEAD_MS
            if ahead or unsynchronised or pending or self._marks.wrong:
                self._mark_clocks(batch, ahead=ahead, unsynchronised=unsynchronised, pending=pending)
            if not batches or not seen.isdisjoint(keys) or _contradicts(batches[-1], batch):
                batches.append(Batch())
                seen = set()
            seen |= keys
            _extend(batches[-1], batch)
        self._append(batches, now_us=now_us)
        self._dead_letters.messages(letters, now_s=now_us / 1e6)
        self.deliveries.settle()
        self._marks.settle(pending)
        return verdicts

    def keep(self, batch: Batch) -> None:
        """Make one batch of one sensor durable, which must hold no key twice. From any thread.

        Raises:
            SpoolFull, OSError: as ``take``.
        """
        now_us = self._now_us()
        pending: Pending = {}
        ahead = batch.span[1] > now_us // 1000 + _AHEAD_MS
        if ahead or self._marks.wrong:
            self._mark_clocks(batch, ahead=ahead, unsynchronised=False, pending=pending)
        self._append([batch], now_us=now_us)
        self._marks.settle(pending)

    def _append(self, batches: Sequence[Batch], *, now_us: int) -> None:
        blocks: list[bytes] = []
        for batch in batches:
            with self._received_lock:
                self._received = batch.received = max(now_us, self._received + 1)
            blocks += _blocks(batch)
        for failure in self._spool.append_many(blocks):
            if failure is not None:
                raise failure
        self._metrics.spooled_blocks.inc(len(blocks))
        self._metrics.spooled_points.inc(sum(batch.points for batch in batches))

    def _mark_clocks(self, batch: Batch, *, ahead: bool, unsynchronised: bool, pending: Pending) -> None:
        """Times are kept as they are; an attribute tells that a clock is wrong, and when it is right."""
        if unsynchronised:
            # Beside this host's clock a device's cannot be judged.
            states = {"gateway_clock": "unsynchronised"}
        else:
            states = {"device_clock": "ahead" if ahead else "ok"}
            if self.clock_synchronised:
                states["gateway_clock"] = "ok"
        (sensor,) = batch.names
        due = self._marks.due(sensor, states, pending)
        if due:
            batch.attributes[sensor] = batch.attributes.get(sensor, {}) | due

    def _stamp(self, sensor: str, arrived_ms: int) -> int:
        """The time for what has none: that of its arrival, or the next ms that this sensor has not used.

        Otherwise two messages within one ms were one key, and the first would be lost.
        """
        last = self._stamped.get(sensor)
        if last is None or not arrived_ms <= last <= arrived_ms + _SPREAD_MS:
            return arrived_ms
        return min(last + 1, arrived_ms + _SPREAD_MS)

    def _stamped_at(self, sensor: str, time_ms: int) -> None:
        self._stamped[sensor] = time_ms
        self._stamped.move_to_end(sensor)
        if len(self._stamped) > _STAMPED_SENSORS:
            self._stamped.popitem(last=False)

    def _decode(self, message: Message, *, arrived_ms: int) -> tuple[Batch, list[dict[str, Any]]]:
        levels = message.topic.split("/")
        if len(levels) != 3 or levels[0] != "sensors" or not levels[1]:
            raise _Refused("topic", "the topic must be sensors/<sensor>/senml or sensors/<sensor>/lp")
        _, sensor, kind = levels
        if message.user and sensor != message.user:
            raise _Refused("acl", f"{message.user!r} may publish under its own name only")
        payload = message.payload
        now_ms = self._stamp(sensor, arrived_ms)
        try:
            if kind == "senml":
                media = "json" if payload.lstrip()[:1] in (b"[", b"{", b"") else "cbor"
                content_type = f"application/senml+{media}"
                limit = _DECODED_MAX_BYTES // senml.decoded_factor(content_type)
                if len(payload) > limit:
                    found = f"{len(payload)} bytes of SenML in {media.upper()}, at most {limit}"
                    raise _Refused("payload", f"{found}: send less at once")
                decoded = senml.decode(payload, content_type=content_type, now_ms=now_ms)
            elif kind == "lp":
                decoded = line_protocol.decode(
                    payload, precision="ns", now_ms=now_ms, series_tags=self._series_tags
                )
            else:
                raise _Refused("topic", f"{kind!r} is no format spoken here: use senml or lp")
        except UnsupportedMediaType as error:
            raise _Refused("media_type", str(error)) from error
        except ClientError as error:
            raise _Refused("payload", str(error)) from error
        except (_Refused, MemoryError):
            raise
        except Exception as error:
            # A decoder's bug must not stop the gateway: the message would come again for ever.
            _log.exception("a decoder failed on a message of %s", message.topic)
            raise _Refused("decoder", f"{type(error).__name__}: {error}") from error
        others = sorted(set(decoded.batch.sensors) - {sensor})
        if others:
            raise _Refused(
                "sensor", f"the payload is for {', '.join(map(repr, others[:5]))}, the topic for {sensor!r}"
            )
        if not len(decoded.batch) and not decoded.errors:
            raise _Refused("payload", "no points in it")
        if now_ms in decoded.batch.times_ms:
            self._stamped_at(sensor, now_ms)
        return decoded.batch, [{"line": error.line, "reason": error.reason} for error in decoded.errors[:100]]

    @staticmethod
    def _letter(message: Message, detail: str, lines: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        letter: dict[str, Any] = {"topic": message.topic, "detail": detail}
        if lines:
            letter["errors"] = lines
        return letter | payload_fields(message.payload)


def _blocks(batch: Batch) -> list[bytes]:
    """The batch as blocks that an ingest host takes."""
    whole = block.encode(batch)
    middle = len(batch) // 2
    if len(whole) <= _BLOCK_MAX_BYTES or not middle:
        return [whole]
    del whole
    first, second = batch.select(range(middle)), batch.select(range(middle, len(batch)))
    second.collapsed = 0
    return _blocks(first) + _blocks(second)


def _contradicts(target: Batch, batch: Batch) -> bool:
    """Whether a sensor's attribute has another value in ``batch``: one block would keep the last only."""
    for sensor, attributes in batch.attributes.items():
        known = target.attributes.get(sensor)
        if known is not None and any(known.get(name, value) != value for name, value in attributes.items()):
            return True
    return False


def _extend(target: Batch, batch: Batch) -> None:
    target.sensors += batch.sensors
    target.times_ms += batch.times_ms
    target.layouts += batch.layouts
    target.values += batch.values
    target.lines += [0] * len(batch)
    target.collapsed += batch.collapsed
    for sensor, attributes in batch.attributes.items():
        target.attributes[sensor] = target.attributes.get(sensor, {}) | attributes
