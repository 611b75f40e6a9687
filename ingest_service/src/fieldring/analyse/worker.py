"""The analyser's rounds: leases, buckets of marks, and what a mark re-opens."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fieldring.analyse.metrics import Metrics
from fieldring.analyse.timeline import Digest, Judged, Timeline, Timelines
from fieldring.errors import StoreUnavailable
from fieldring.model import HOUR_MS, MINUTE_MS, HourFlags, Mark, Store, fingerprint
from fieldring.quality import Rules, RulesFile, judge

__all__ = ["Worker"]

log = logging.getLogger(__name__)

_CHUNK_HOURS = 7 * 24
_CHUNK_GAP_MS = 48 * HOUR_MS
_WRITE_AT_ONCE = 2_000
_MINUTES_AT_ONCE = 60
_BULK_HOURS = 100
_BULK_PAUSE_S = 15.0


class _LeaseLostError(Exception):
    """The shard's lease ran out during work; another analyser may have it."""


@dataclass(slots=True)
class _Lease:
    fence: int
    until: float
    renew_at: float
    cursor: int
    # Work of closed buckets up to ``upto`` that is still to be done before the cursor may move there.
    pending: list[tuple[str, list[int]]] = field(default_factory=list)
    upto: int = -1
    # Minutes up to ``scanned`` that have marks, where many were asked for at once.
    marked: frozenset[int] = frozenset()
    scanned: int = -1


class Worker:
    """One analyser. ``run`` until told to stop, or ``round`` by hand; one thread only.

    Order that matters: a verdict's ``judged_us`` is taken before its hour is read, and the lease is
    found still held after that, so a verdict can never look newer than the data it rests on. The
    cursor moves only after the verdicts of its bucket are written.
    """

    def __init__(
        self,
        store: Store,
        rules: RulesFile,
        *,
        owner: str,
        shards: int,
        interval_s: float = 2.0,
        closes_after_s: float = 10.0,
        mark_ttl_s: float = 7 * 86_400,
        lease_ttl_s: int = 30,
        share_s: float = 1.0,
        retry_max_s: float = 30.0,
        metrics: Metrics | None = None,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``closes_after_s``: how long a bucket stays open after its minute: write timeout plus clock skew.

        ``share_s``: how long bulk work may hold up a round, so that live data stay live.
        """
        self._store = store
        self._rules_file = rules
        self._owner = owner
        self._shards = shards
        self._interval = interval_s
        self._closes_after = closes_after_s
        self._mark_ttl = mark_ttl_s
        self._lease_ttl = lease_ttl_s
        self._share = share_s
        self._retry_max = retry_max_s
        self._clock_us = clock_us
        self._monotonic = monotonic
        self._leases: dict[int, _Lease] = {}
        self._timelines: dict[int, Timelines] = {}
        self._stop = threading.Event()
        self._version = ""
        self.metrics = metrics or Metrics()

    def run(self) -> None:
        """Rounds until ``stop``; whatever goes wrong only makes them rarer."""
        failures = 0
        while not self._stop.is_set():
            began = self._monotonic()
            try:
                pause = 0.0 if self.round() else self._interval
            except Exception as error:
                # A thread that died would judge nothing any more, in silence.
                failures += 1
                unavailable = isinstance(error, StoreUnavailable)
                self.metrics.rounds.labels("store_unavailable" if unavailable else "failed").inc()
                if unavailable and failures == 1:
                    log.warning("the store is unavailable, judging waits: %s", error)
                elif not unavailable:
                    log.exception("a round failed, judging waits")
                pause = min(self._retry_max, 0.5 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)
            else:
                if failures:
                    log.info("judging goes on after %d tries", failures)
                failures = 0
                self.metrics.rounds.labels("ok").inc()
            self.metrics.round_seconds.observe(self._monotonic() - began)
            self._stop.wait(pause)

    def stop(self) -> None:
        """Finish the hour at hand and return from ``run``. Callable from a signal handler."""
        self._stop.set()

    def round(self) -> bool:
        """Judge the open buckets of every shard that can be had, then closed ones.

        Returns whether work was left for the next round.
        """
        rules = self._rules()
        held = 0
        left = False
        for work in (self._live, self._backlog):
            deadline = self._monotonic() + self._share
            held = 0
            for shard in range(self._shards):
                if self._stop.is_set():
                    return False
                lease = self._hold(shard)
                if lease is None:
                    continue
                held += 1
                try:
                    left |= work(shard, lease, rules, deadline)
                except _LeaseLostError:
                    log.warning("shard %d: the lease ran out during work; it is taken up again", shard)
                    self._drop(shard)
        self.metrics.leases.set(held)
        return left

    def _rules(self) -> Rules:
        rules = self._rules_file.current()
        self.metrics.rules_broken.set(1 if self._rules_file.error else 0)
        if rules.version != self._version:
            self.metrics.rules.clear()
            self.metrics.rules.labels(rules.version).set(1)
            self._version = rules.version
        return rules

    def _hold(self, shard: int) -> _Lease | None:
        lease = self._leases.get(shard)
        began = self._monotonic()
        if lease is not None and began < lease.renew_at:
            return lease
        fence = self._store.lease(shard, self._owner, ttl_s=self._lease_ttl)
        if fence is None:
            self._drop(shard)
            return None
        if lease is None or lease.fence != fence:
            # Somebody else may have judged meanwhile: what was read before says nothing any more.
            self._drop(shard)
            lease = _Lease(fence, 0.0, 0.0, self._store.cursor(shard))
            self._leases[shard] = lease
            self._timelines[shard] = Timelines()
        lease.until = began + self._lease_ttl
        lease.renew_at = began + self._lease_ttl / 3
        return lease

    def _drop(self, shard: int) -> None:
        self._leases.pop(shard, None)
        self._timelines.pop(shard, None)
        with contextlib.suppress(KeyError):
            self.metrics.lag.remove(str(shard))

    def _closed(self) -> int:
        """The last arrival minute that no mark can come to any more."""
        return int((self._clock_us() / 1e6 - self._closes_after) // 60) - 1

    def _live(self, shard: int, lease: _Lease, rules: Rules, deadline: float) -> bool:
        """Open buckets, which are read in every round: sensors with few marked hours first and always."""
        # A host whose clock is ahead may already write into the next minute.
        minutes = range(self._closed() + 1, int(self._clock_us() / 60e6) + 2)
        by_sensor = _by_sensor(mark for minute in minutes for mark in self._store.marks(shard, minute))
        for sensor, hours in by_sensor:
            if len(hours) > _BULK_HOURS:
                # Hours of a bulk import that were just judged need not be read in every round.
                known = self._timelines[shard].peek(sensor)
                judged = known.judged if known is not None else {}
                fresh = self._monotonic() - _BULK_PAUSE_S
                hours = [hour for hour in hours if hour not in judged or judged[hour].at < fresh]
            for number, chunk in enumerate(_chunks(hours)):
                if self._stop.is_set():
                    return False
                if number and self._monotonic() >= deadline:
                    return True
                self._judge(shard, lease, sensor, chunk, rules)
        return False

    def _backlog(self, shard: int, lease: _Lease, rules: Rules, deadline: float) -> bool:
        """Closed buckets, each read once for good; at least one step a round."""
        closed = self._closed()
        while True:
            if not lease.pending and lease.upto > lease.cursor:
                self._store.set_cursor(shard, lease.upto, fence=lease.fence)
                lease.cursor = lease.upto
            self.metrics.lag.labels(str(shard)).set(
                max(0.0, self._clock_us() / 1e6 - (lease.cursor + 1) * MINUTE_MS / 1000)
            )
            if not lease.pending:
                lease.cursor = max(lease.cursor, closed - int(self._mark_ttl // 60) - 1)
                if lease.cursor >= closed:
                    return False
                self._collect(shard, lease, closed)
            while lease.pending:
                if self._stop.is_set():
                    return False
                sensor, chunk = lease.pending[-1]
                self._judge(shard, lease, sensor, chunk, rules)
                lease.pending.pop()
                if self._monotonic() >= deadline:
                    return True
            if self._stop.is_set() or self._monotonic() >= deadline:
                return True

    def _collect(self, shard: int, lease: _Lease, closed: int) -> None:
        """The work of the next closed buckets."""
        if closed - max(lease.cursor, lease.scanned) > _MINUTES_AT_ONCE:
            # On a new ring, or after a long absence: one question instead of thousands of empty reads.
            lease.marked = frozenset(self._store.marked_minutes(shard, after=lease.cursor, upto=closed))
            lease.scanned = closed
        marks: set[Mark] = set()
        upto = lease.cursor
        reads = 0
        while upto < closed and reads < _MINUTES_AT_ONCE and len(marks) < 10_000:
            upto += 1
            if upto > lease.scanned or upto in lease.marked:
                marks.update(self._store.marks(shard, upto))
                reads += 1
        lease.pending = [(sensor, chunk) for sensor, hours in _by_sensor(marks) for chunk in _chunks(hours)]
        # Worked off from the end: the sensors with few hours first, their hours in order.
        lease.pending.reverse()
        lease.upto = upto

    def _judge(self, shard: int, lease: _Lease, sensor: str, chunk: list[int], rules: Rules) -> None:
        if self._hold(shard) is not lease:
            raise _LeaseLostError
        timelines = self._timelines[shard]
        timeline = timelines.take(sensor)
        try:
            self._judge_chunk(timeline, chunk, rules, lease)
        except (StoreUnavailable, _LeaseLostError):
            raise
        except Exception:
            # Data that our checks choke on must not keep every other sensor from being judged.
            self.metrics.errors.inc()
            log.exception("cannot judge %d hours of %r; they stay not evaluated", len(chunk), sensor)
        else:
            timelines.keep(timeline)

    def _judge_chunk(self, timeline: Timeline, marked: list[int], rules: Rules, lease: _Lease) -> None:
        """Read the marked hours anew, and judge them and all that depends on what changed in them."""
        store = self._store
        judged_us = self._clock_us()
        if self._monotonic() >= lease.until:
            raise _LeaseLostError
        # What was not judged under these rules counts as unknown, so that all its neighbours follow.
        before = {
            hour: timeline.judged[hour].digests
            for hour in marked
            if hour in timeline.judged and timeline.judged[hour].version == rules.version
        }
        timeline.read(store, marked)
        now = {hour: timeline.digests(hour) for hour in marked}
        at = self._monotonic()
        changed = [hour for hour in marked if before.get(hour) != now[hour]]
        if changed:
            # In two calls what the loops below would read hour by hour.
            metrics = {metric for hour in changed for metric in now[hour]}
            checks = [check for metric in metrics for check in rules.for_metric(metric)]
            window = max((c.window_ms for c in checks if not c.check.neighbours), default=0)
            timeline.ensure(store, changed[0] - window, changed[-1] + HOUR_MS + window)
        affected = set(changed)
        for hour in changed:
            affected |= self._reopened(timeline, hour, before.get(hour, {}), now[hour], rules)
        timeline.read(store, affected - set(marked))

        pending: list[HourFlags] = []
        margin = max((self._load_margins(timeline, hour, rules) for hour in sorted(affected)), default=0)
        by_metric: dict[str, list[int]] = {}
        for hour in sorted(affected):
            for metric in timeline.hours[hour]:
                if rules.for_metric(metric):
                    by_metric.setdefault(metric, []).append(hour)
        for metric, hours in by_metric.items():
            times, values = timeline.series(metric)
            for hour, bad in judge(rules.for_metric(metric), times, values, hours=hours).items():
                pending.append(
                    HourFlags(
                        sensor=timeline.sensor,
                        metric=metric,
                        hour_ms=hour,
                        bad=bad,
                        rules_version=rules.version,
                        read_received=timeline.hours[hour][metric].read_received,
                        judged_us=judged_us,
                        points=fingerprint(timeline.hours[hour][metric].times_ms.tobytes()),
                    )
                )
        # Verdicts on one hour lie together in the store.
        pending.sort(key=lambda verdict: (verdict.hour_ms, verdict.metric))
        for start in range(0, len(pending), _WRITE_AT_ONCE):
            store.write_flags(pending[start : start + _WRITE_AT_ONCE])
        # Not the hours that merely depend on these: a mark of their own may be on its way.
        for hour in marked:
            timeline.judged[hour] = Judged(rules.version, now[hour], at)
        self.metrics.hours.inc(len(pending))
        for verdict in pending:
            for _, flag, _ in verdict.bad:
                self.metrics.flags.labels(flag.name.lower()).inc()
        timeline.forget_before(marked[-1] - max(margin, _CHUNK_GAP_MS))

    def _reopened(
        self,
        timeline: Timeline,
        hour: int,
        before: Mapping[str, Digest],
        now: Mapping[str, Digest],
        rules: Rules,
    ) -> set[int]:
        """Other hours whose verdicts a change in this one touches: [t - lookahead, t + window]."""
        found: set[int | None] = set()
        for metric, digest in now.items():
            old = before.get(metric)
            if old == digest:
                continue
            for check in rules.for_metric(metric):
                if check.check.neighbours:
                    # Only the outermost values of the hour have neighbours in others.
                    if check.lookahead_ms and (old is None or old.first != digest.first):
                        reach = check.lookahead_ms
                        found.add(timeline.nearest(self._store, metric, hour, reach_ms=reach, step=-1))
                    if check.window_ms and (old is None or old.last != digest.last):
                        reach = check.window_ms
                        found.add(timeline.nearest(self._store, metric, hour, reach_ms=reach, step=1))
                elif check.window_ms:
                    later = range(hour + HOUR_MS, hour + HOUR_MS + check.window_ms, HOUR_MS)
                    found.update(each for each in later if metric in timeline.hours.get(each, {}))
        return {each for each in found if each is not None}

    def _load_margins(self, timeline: Timeline, hour: int, rules: Rules) -> int:
        """Read what the verdicts of ``hour`` look at; the longest way back, in ms."""
        window = 0
        for metric in timeline.hours[hour]:
            before = after = 0
            for check in rules.for_metric(metric):
                if check.check.neighbours:
                    before, after = max(before, check.window_ms), max(after, check.lookahead_ms)
                else:
                    window = max(window, check.window_ms)
            timeline.nearest(self._store, metric, hour, reach_ms=before, step=-1)
            timeline.nearest(self._store, metric, hour, reach_ms=after, step=1)
        timeline.ensure(self._store, hour - window, hour)
        return window


def _by_sensor(marks: Iterable[Mark]) -> list[tuple[str, list[int]]]:
    """Sensors with their marked hours in order; those with the fewest first, as they are the live ones."""
    found: dict[str, set[int]] = {}
    for mark in marks:
        found.setdefault(mark.sensor, set()).add(mark.hour_ms)
    return sorted(
        ((s, sorted(hours)) for s, hours in found.items()), key=lambda item: (len(item[1]), item[0])
    )


def _chunks(hours: list[int]) -> Iterator[list[int]]:
    """Sorted hours in groups that lie together, each short enough to be read at once."""
    chunk: list[int] = []
    for hour in hours:
        if chunk and (hour - chunk[-1] > _CHUNK_GAP_MS or hour - chunk[0] >= _CHUNK_HOURS * HOUR_MS):
            yield chunk
            chunk = []
        chunk.append(hour)
    if chunk:
        yield chunk
