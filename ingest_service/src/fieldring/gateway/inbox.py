"""Devices' messages → one durable block, or dead letters with the reason.

A group of messages becomes as few spool records as possible, because each costs an fdatasync here
and a request upstream. Rows of one block share ``received``, so a key may stand in it only once: a
second value for the same sensor and time starts the next block, with a later ``received``.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fieldring.errors import ClientError, UnsupportedMediaType
from fieldring.gateway.dead_letter import DeadLetters, payload_fields
from fieldring.gateway.metrics import Metrics
from fieldring.model import Batch
from fieldring.wire import block, line_protocol, senml

__all__ = ["Inbox", "Message", "Spool", "Verdict"]

_RECENT = 20_000
"""Remembered message ids of all clients, 200 times what one may have in flight."""

_AHEAD_MS = 300_000
_MAX_AHEAD = 10_000
_NOTHING: Mapping[str, str] = {}

_log = logging.getLogger(__name__)


class Message(NamedTuple):
    """What the broker delivered, or a device sent itself.

    ``client`` makes ``mid`` unique. ``user`` is the device that logged in: it may write under its own name
    only. Empty where a broker has checked that already.
    """

    topic: str
    payload: bytes
    mid: int = 0
    dup: bool = False
    client: str = ""
    user: str = ""
    qos: int = 1


class Verdict(NamedTuple):
    """What became of a message: an empty reason is "in the spool", any other stands in its dead letter."""

    reason: str = ""
    detail: str = ""


_KEPT = Verdict()


class Spool(Protocol):
    """The part of ``spool.Queue`` that takes records."""

    def append(self, payload: bytes, /) -> None: ...


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
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._spool = spool
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._series_tags = frozenset(series_tags)
        self._now_us = now_us
        self._received = 0
        self._received_lock = threading.Lock()
        self._recent: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._ahead: set[str] = set()

    def knows(self, message: Message) -> bool:
        """Whether this is a message that was taken already, and comes again."""
        key = (message.client, message.mid)
        return message.dup and bool(message.mid) and self._recent.get(key) == _digest(message.payload)

    def remember(self, messages: Iterable[Message]) -> None:
        """``knows`` these from now on."""
        for message in messages:
            if message.mid:
                self._recent[(message.client, message.mid)] = _digest(message.payload)

    def take(
        self,
        messages: Sequence[Message],
        *,
        now_us: int | None = None,
        attributes: Mapping[str, str] = _NOTHING,
    ) -> list[Verdict]:
        """Make all of ``messages`` durable; only then may they be acknowledged. What became of each.

        ``now_us`` is when they came, where that is not now; ``attributes`` are given to their sensors.

        Raises:
            SpoolFull: nothing may be acknowledged, the broker keeps the messages.
            OSError: likewise, the spool's disk failed.
        """
        self._metrics.received.inc(len(messages))
        if now_us is None:
            now_us = self._now_us()
        now_ms = now_us // 1000
        batches: list[Batch] = []
        letters: list[tuple[str, dict[str, Any]]] = []
        verdicts: list[Verdict] = []
        digests: dict[tuple[str, int], int] = {}
        seen: set[tuple[str, int]] = set()
        for message in messages:
            if message.mid:
                key = (message.client, message.mid)
                digest = _digest(message.payload)
                if message.dup and digests.get(key, self._recent.get(key)) == digest:
                    # It was spooled, but its acknowledgement got lost with the connection.
                    self._metrics.redelivered.inc()
                    verdicts.append(_KEPT)
                    continue
                digests[key] = digest
            try:
                batch, refused_lines = self._decode(message, now_ms=now_ms)
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
            self._mark_clock(batch, now_ms=now_ms)
            for name, value in attributes.items():
                for sensor in set(batch.sensors):
                    batch.attributes[sensor] = batch.attributes.get(sensor, {}) | {name: value}
            if not batches or not seen.isdisjoint(keys):
                batches.append(Batch())
                seen = set()
            seen |= keys
            _extend(batches[-1], batch)
        for batch in batches:
            self.keep(batch, now_us=now_us)
        self._dead_letters.messages(letters, now_s=now_us / 1e6)
        for key, digest in digests.items():
            self._recent[key] = digest
            self._recent.move_to_end(key)
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        return verdicts

    def keep(self, batch: Batch, *, now_us: int | None = None) -> None:
        """Make one batch durable, which must hold no key twice. From any thread.

        Raises:
            SpoolFull, OSError: as ``take``.
        """
        with self._received_lock:
            self._received = batch.received = max(now_us or self._now_us(), self._received + 1)
        self._spool.append(block.encode(batch))
        self._metrics.spooled_blocks.inc()
        self._metrics.spooled_points.inc(batch.points)

    def _mark_clock(self, batch: Batch, *, now_ms: int) -> None:
        """Times are kept as they are; a device whose clock is ahead of ours is told apart by an attribute."""
        sensor, ahead = batch.sensors[0], max(batch.times_ms) > now_ms + _AHEAD_MS
        if ahead == (sensor in self._ahead):
            return
        if ahead:
            if len(self._ahead) >= _MAX_AHEAD:
                return
            self._ahead.add(sensor)
        else:
            self._ahead.discard(sensor)
        mark = {"device_clock": "ahead" if ahead else "ok"}
        batch.attributes[sensor] = batch.attributes.get(sensor, {}) | mark

    def _decode(self, message: Message, *, now_ms: int) -> tuple[Batch, list[dict[str, Any]]]:
        levels = message.topic.split("/")
        if len(levels) != 3 or levels[0] != "sensors" or not levels[1]:
            raise _Refused("topic", "the topic must be sensors/<sensor>/senml or sensors/<sensor>/lp")
        _, sensor, kind = levels
        if message.user and sensor != message.user:
            raise _Refused("acl", f"{message.user!r} may publish under its own name only")
        payload = message.payload
        try:
            if kind == "senml":
                media = "json" if payload.lstrip()[:1] in (b"[", b"{", b"") else "cbor"
                decoded = senml.decode(payload, content_type=f"application/senml+{media}", now_ms=now_ms)
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
        return decoded.batch, [{"line": error.line, "reason": error.reason} for error in decoded.errors[:100]]

    @staticmethod
    def _letter(message: Message, detail: str, lines: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        letter: dict[str, Any] = {"topic": message.topic, "detail": detail}
        if lines:
            letter["errors"] = lines
        return letter | payload_fields(message.payload)


def _digest(payload: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(payload, digest_size=8, person=b"fieldring").digest(), "little")


def _extend(target: Batch, batch: Batch) -> None:
    target.sensors += batch.sensors
    target.times_ms += batch.times_ms
    target.layouts += batch.layouts
    target.values += batch.values
    target.lines += [0] * len(batch)
    target.collapsed += batch.collapsed
    for sensor, attributes in batch.attributes.items():
        target.attributes[sensor] = target.attributes.get(sensor, {}) | attributes
