"""The queue: group commit in, checked records out, whole segments recycled behind the cursor."""

from __future__ import annotations

import bisect
import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from fieldring.errors import ConfigurationError, SpoolFull
from fieldring.spool._files import fsync_directory, make_zeroed, quarantine, replace, try_lock, write_all
from fieldring.spool._format import (
    DROPPED,
    HEADER_BYTES,
    RECORD_BYTES,
    Cursor,
    Gap,
    Header,
    crc32c,
    pack_cursor,
    pack_gap,
    pack_header,
    pack_record,
    padded,
    parse_record,
    scan,
)
from fieldring.spool._recovery import Damage, Segment, recover, repair

__all__ = ["Queue", "Record"]

_log = logging.getLogger(__name__)
_READ_AHEAD = 1 << 16
_MAX_AHEAD = 64
_MAX_ENDS = 65_536


class Record(NamedTuple):
    """A record that was appended. ``position`` ascends; holes in it are records that were lost."""

    position: int
    payload: bytes
    time_ms: int


class _Entry:
    """One waiting append. The latch is released when it is done, or when it is its turn to lead."""

    __slots__ = ("done", "error", "latch", "payload", "payload_crc")

    def __init__(self, payload: bytes | None) -> None:
        self.payload = payload  # None: only end the active segment
        self.payload_crc = crc32c(payload) if payload is not None else 0
        self.done = False
        self.error: str | None = None
        self.latch = threading.Lock()
        self.latch.acquire()


class _DamagedError(Exception):
    def __init__(self, segment: Segment) -> None:
        self.segment = segment


class Queue:
    """A durable queue of bytes in one directory.

    Thread contract: any number of threads may append; ``read``, ``commit`` and the counters may be
    called from any thread, but one consumer should own them. Locks are taken in this order:
    leadership of a group, ``_files``, ``_state``. Only the leader writes to the active segment, and
    nothing past its fsynced end is ever read.

    Counters (plain attributes): ``appended_records``, ``appended_bytes``, ``syncs``,
    ``committed_records``, ``refused``, ``dropped_records``, ``dropped_bytes`` (drop_oldest),
    ``damage`` (segments, cursors, torn_tails, lost_records).
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        segment_bytes: int = 8_388_608,
        max_bytes: int = 1_073_741_824,
        full_policy: str = "refuse",
        clock: Callable[[], float] = time.time,
        lock: int | None = None,
    ) -> None:
        if full_policy not in ("refuse", "drop_oldest"):
            raise ConfigurationError(
                f"FIELDRING_SPOOL_FULL_POLICY is {full_policy!r}, but must be refuse or drop_oldest"
            )
        if segment_bytes < 4096 or max_bytes < 2 * segment_bytes:
            raise ConfigurationError(
                f"FIELDRING_SPOOL_MAX_BYTES is {max_bytes}, FIELDRING_SPOOL_SEGMENT_BYTES {segment_bytes}: a "
                " segment needs at least 4096 bytes and the spool room for two segments"
            )
        self.directory = Path(directory)
        self.segment_bytes = segment_bytes
        self.max_bytes = max_bytes
        self.full_policy = full_policy
        self._clock = clock
        if lock is None:
            self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            lock = try_lock(self.directory)
            if lock is None:
                raise ConfigurationError(f"{self.directory} is in use by another process")
        self._lock = lock

        self.appended_records = 0
        self.appended_bytes = 0
        self.syncs = 0
        self.committed_records = 0
        self.refused = 0
        self.dropped_records = 0
        self.dropped_bytes = 0

        self._state = threading.Condition()
        self._files = threading.RLock()
        self._waiting: list[_Entry] = []
        self._leading = False
        self._closed = False
        self._maker: threading.Thread | None = None
        self._spare = self.directory / "spare"
        self._reader: tuple[int, int] | None = None  # segment number, descriptor
        self._writer = -1
        self._active: Segment | None = None
        self._ends: dict[int, tuple[int, int]] = {}  # position handed out -> segment number, end offset
        self._gaps: list[Gap] = []

        try:
            state = recover(self.directory)
        except OSError as error:
            os.close(lock)
            raise ConfigurationError(
                f"cannot open the spool {self.directory}: {error.strerror} ({error.filename})"
            ) from error
        self.identity = state.identity
        self.epoch = state.epoch
        self.damage: Damage = state.damage
        self._segments = state.segments
        self._holes = [(gap.first, gap.last) for gap in state.holes]
        self._taken = state.taken
        self._ahead = state.ahead  # sorted, apart from each other and from the cursor
        self._durable = state.last_seq
        self._number = max([0, *(s.number for s in state.segments), *(int(p.stem) for p in state.spent)])
        self._cursor_at: tuple[int, int] | None = None
        self._taken, self._ahead = self._merged(self._taken)
        with contextlib.suppress(OSError):
            if self._spare.exists() and self._spare.stat().st_size != segment_bytes:
                self._spare.unlink()
        # The numbering must survive the segments that carried it.
        with contextlib.suppress(OSError):
            self._advance(self._taken)
            for path in state.spent:
                self._recycle(path)

    # -- appending ---------------------------------------------------------------------------

    def append(self, payload: bytes) -> None:
        """Return once ``payload`` is fsynced, together with what other threads append meanwhile.

        Raises:
            SpoolFull: no room, or the disk failed; the record is not in the queue.
        """
        entry = _Entry(bytes(payload))
        self._submit([entry])
        if entry.error is not None:
            raise SpoolFull(entry.error)

    def append_many(self, payloads: Iterable[bytes]) -> list[SpoolFull | None]:
        """As ``append`` of each, with one fsync where they fit into one segment.

        Says for each what ``append`` would have raised.
        """
        entries = [_Entry(bytes(payload)) for payload in payloads]
        try:
            self._submit(entries)
        except SpoolFull as error:
            return [error] * len(entries)
        return [None if entry.error is None else SpoolFull(entry.error) for entry in entries]

    def _submit(self, entries: list[_Entry]) -> None:
        """Return when all are done, with or without an error of their own."""
        with self._state:
            if self._closed:
                raise SpoolFull(f"the spool {self.directory} is closed")
            self._waiting += entries
            lead = not self._leading and bool(entries)
            if lead:
                self._leading = True
        if lead:
            self._lead()
        # One group takes all that wait, so whoever is made leader here leads for those behind it too.
        for entry in entries:
            entry.latch.acquire()
            if not entry.done:
                self._lead()

    def _lead(self) -> None:
        with self._state:
            group, self._waiting = self._waiting, []
        try:
            self._write(group)
        finally:
            with self._state:
                for entry in group:
                    if not entry.done:
                        entry.done = True
                        entry.error = entry.error or "the append was interrupted"
                        self.refused += 1
                successor = self._waiting[0] if self._waiting else None
                self._leading = successor is not None
                self._state.notify_all()
            for entry in group:
                entry.latch.release()
            if successor is not None:
                successor.latch.release()

    def _write(self, group: list[_Entry]) -> None:
        index = 0
        while index < len(group):
            try:
                index += self._write_some(group[index:])
            except SpoolFull as error:
                # A smaller one behind it might still fit, but order is simpler to reason about.
                for entry in group[index:]:
                    entry.error = str(error)
                return
            except OSError as error:
                # After a failed write or fsync nothing past the durable end can be trusted.
                _log.error("spool: cannot write to %s: %s", self.directory, error)
                self._seal()
                for entry in group[index:]:
                    entry.error = f"the spool {self.directory} cannot be written: {error.strerror}"
                return

    def _write_some(self, entries: list[_Entry]) -> int:
        """Write as many entries as the active segment takes, fsync, publish. Returns their number."""
        if entries[0].payload is None:
            self._seal()
            with self._state:
                entries[0].done = True
            return 1
        need = padded(len(entries[0].payload)) + sum(padded(32) for _ in self._gaps)
        if self._active is None or self._active.end + need > self._active.size:
            self._roll(padded(len(entries[0].payload)))
        active = self._active
        assert active is not None
        now_ms = int(self._clock() * 1000)
        seq = synced = self._durable
        room = active.size - active.end
        parts = []
        for gap in self._gaps:
            parts.append(pack_gap(gap, epoch=active.epoch, seq=seq, synced=synced, time_ms=now_ms))
            room -= len(parts[-1])
        count = 0
        for entry in entries:
            if entry.payload is None or padded(len(entry.payload)) > room:
                break
            seq += 1
            parts.append(
                pack_record(
                    entry.payload,
                    entry.payload_crc,
                    epoch=active.epoch,
                    seq=seq,
                    synced=synced,
                    time_ms=now_ms,
                )
            )
            room -= len(parts[-1])
            count += 1
        data = b"".join(parts)
        write_all(self._writer, data, active.end)
        os.fdatasync(self._writer)
        with self._state:
            active.end += len(data)
            active.last_seq = seq
            self._durable = seq
            self._gaps = []
            self.syncs += 1
            self.appended_records += count
            for entry in entries[:count]:
                entry.done = True
                assert entry.payload is not None
                self.appended_bytes += len(entry.payload)
            self._state.notify_all()
        if active.end * 2 > active.size:
            self._prepare_spare()
        return count

    def _seal(self) -> None:
        """End the active segment at its durable end; the next append begins another."""
        with self._state:
            if self._active is None:
                return
            self._active = None
            descriptor, self._writer = self._writer, -1
        os.close(descriptor)

    def _roll(self, need: int) -> None:
        """Begin a new segment with room for a record of ``need`` bytes. Only the leader calls this."""
        self._seal()
        # Gap records of what is dropped below go into it as well: leave room for a few.
        size = max(self.segment_bytes, HEADER_BYTES + need + 8 * padded(32))
        if size > self.max_bytes:
            raise SpoolFull(
                f"a record of {need} bytes can never fit: FIELDRING_SPOOL_MAX_BYTES is {self.max_bytes}"
            )
        maker = self._maker
        if maker is not None:
            maker.join()
        while True:
            with self._files:
                spare = self._spare.exists() and size == self.segment_bytes
                if self._disk_bytes() + (0 if spare else size) <= self.max_bytes:
                    try:
                        self._begin(size, spare=spare)
                        return
                    except OSError as error:
                        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or self.full_policy == "refuse":
                            raise SpoolFull(
                                f"the spool cannot begin a segment in {self.directory}: {error.strerror}"
                            ) from error
                        reason = error.strerror or "disk full"
                else:
                    reason = f"{self.max_bytes} bytes (FIELDRING_SPOOL_MAX_BYTES) are in use"
                if self.full_policy == "refuse" or not self._drop_oldest():
                    raise SpoolFull(f"the spool {self.directory} is full: {reason}")

    def _begin(self, size: int, *, spare: bool) -> None:
        """Under ``_files``: header and name of the new segment, durable before its first record."""
        temporary = self._spare if spare else self.directory / "segment.tmp"
        if not spare:
            make_zeroed(temporary, size)
        number = self._number + 1
        path = self.directory / f"{number:020d}.seg"
        first_seq = self._durable + 1
        descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
        try:
            # One that was a segment before still has its header.
            fresh = not any(os.pread(descriptor, HEADER_BYTES, 0))
            header = Header(self.identity, number, first_seq, self.epoch, fresh)
            write_all(descriptor, pack_header(header), 0)
            os.fsync(descriptor)
            temporary.rename(path)
            fsync_directory(self.directory)
        except OSError:
            os.close(descriptor)
            raise
        segment = Segment(number, path, self.epoch, first_seq, first_seq - 1, HEADER_BYTES, size)
        with self._state:
            self._number = number
            self._writer = descriptor
            self._active = segment
            self._segments.append(segment)

    def _prepare_spare(self) -> None:
        """Zero-fill the next segment ahead, in its own thread, so that no append waits for it."""
        if self._maker is not None and self._maker.is_alive():
            return
        with self._files:
            if self._spare.exists() or self._disk_bytes() + self.segment_bytes > self.max_bytes:
                return

        def make() -> None:
            temporary = self.directory / "spare.tmp"
            try:
                make_zeroed(temporary, self.segment_bytes)
                temporary.rename(self._spare)
            except OSError as error:  # the next roll tries again and answers for it
                _log.warning("spool: cannot prepare a segment in %s: %s", self.directory, error)

        self._maker = threading.Thread(target=make, name="spool-spare", daemon=True)
        self._maker.start()

    def _drop_oldest(self) -> bool:
        """Under ``_files``: give up the oldest segment, with a gap record that says what it held."""
        with self._state:
            if not self._segments or self._segments[0] is self._active:
                return False
            oldest = self._segments[0]
            first = max(self._taken + 1, oldest.first_seq)
            lost = self._count(first, oldest.last_seq)
            lost_bytes = oldest.end - (self._offset_of_cursor(oldest) or HEADER_BYTES)
        # The cursor first: after a crash between the two the records are gone either way.
        self._advance(oldest.last_seq)
        with self._state:
            self.dropped_records += lost
            self.dropped_bytes += lost_bytes
            if lost:
                self._gaps.append(Gap(first, oldest.last_seq, lost_bytes, DROPPED))
        _log.error("spool: %s is full, dropped records %d to %d", self.directory, first, oldest.last_seq)
        return True

    # -- reading -----------------------------------------------------------------------------

    def read(self, max_bytes: int = 1 << 20, *, after: int | None = None) -> list[Record]:
        """Fsynced records behind the cursor (or behind position ``after``), oldest first.

        Reading moves nothing: the same call gives the same records until they are committed. At
        least one record is returned if there is one, else as many as fit into ``max_bytes``.
        """
        for _ in range(3):
            try:
                with self._files:
                    return self._read(max_bytes, self._taken if after is None else after)
            except _DamagedError as damaged:
                self._heal(damaged.segment)
        return []

    def _read(self, max_bytes: int, after: int) -> list[Record]:
        records: list[Record] = []
        budget = max_bytes
        with self._state:
            after = max(after, self._taken)
            ends = [
                (segment, segment.end)
                for segment in self._segments
                if segment.last_seq > after
                and not self._is_ahead(max(segment.first_seq, after + 1), segment.last_seq)
            ]
        for segment, end in ends:
            offset = self._offset_behind(segment, after)
            while offset < end and (budget > 0 or not records):
                want = min(end - offset, max(_READ_AHEAD, min(budget, 1 << 20)) + RECORD_BYTES)
                data = memoryview(self._pread(segment, want, offset))
                if len(data) >= RECORD_BYTES:  # a record longer than the read-ahead is fetched whole
                    length = padded(int.from_bytes(data[12:16], "little"))
                    if len(data) < length <= end - offset:
                        data = memoryview(self._pread(segment, length, offset))
                position = 0
                while True:
                    found = parse_record(data, position)
                    if found is None:
                        break
                    if found.epoch != segment.epoch:
                        raise _DamagedError(segment)
                    if found.gap is None and found.seq > after and not self._is_ahead(found.seq, found.seq):
                        if records and found.length > budget:
                            return records
                        body = found.start + RECORD_BYTES
                        payload = bytes(data[body : body + found.length])
                        records.append(Record(found.seq, payload, found.time_ms))
                        budget -= found.length
                        after = found.seq
                    position = found.end
                    if found.gap is None:
                        self._ends[found.seq] = (segment.number, offset + position)
                        if len(self._ends) > _MAX_ENDS:
                            # Of who reads far ahead of the cursor: a read then begins at its segment.
                            del self._ends[next(iter(self._ends))]
                    if budget <= 0 and records:
                        return records
                if position == 0:
                    if records:
                        return records  # hand out what is good; the next read meets the damage first
                    raise _DamagedError(segment)
                offset += position
            if budget <= 0:
                break
        return records

    def commit(self, position: int) -> None:
        """Everything up to ``position`` was taken over: never deliver it again. Durable on return."""
        with self._files:
            with self._state:
                position = min(position, self._durable)
                if position <= self._taken:
                    return
                self.committed_records += self._count(self._taken + 1, position)
            self._advance(position)

    def commit_ahead(self, first: int, last: int) -> None:
        """``first`` to ``last`` were taken over before what stands in front of them. Durable on return.

        Their room is freed when the cursor passes them. At most 64 such ranges are remembered; more are
        delivered again.
        """
        with self._files:
            with self._state:
                first, last = max(first, self._taken + 1), min(last, self._durable)
                if last < first:
                    return
                count = self._count(first, last)
                ranges = sorted([*self._ahead, (first, last)])
                merged = ranges[:1]
                for start, end in ranges[1:]:
                    if start <= merged[-1][1] + 1:
                        merged[-1] = (merged[-1][0], max(merged[-1][1], end))
                    else:
                        merged.append((start, end))
                if len(merged) > _MAX_AHEAD:
                    return
                self.committed_records += count
                self._ahead = merged
                self._ends = {s: at for s, at in self._ends.items() if not first <= s < last}
            self._advance(self._taken)

    def put_aside(self, record: Record) -> Path:
        """Keep a record that its consumer cannot use as a file in ``quarantine``. Durable on return."""
        folder = self.directory / "quarantine"
        folder.mkdir(mode=0o750, exist_ok=True)
        path = folder / f"record-{record.position:020d}"
        replace(path, record.payload)
        return path

    def wait(self, timeout_s: float, *, after: int | None = None) -> bool:
        """Wait until there is something to read behind the cursor (or ``after``)."""
        with self._state:

            def waits() -> bool:
                return self._count(max(self._taken, after or 0) + 1, self._durable) > 0

            self._state.wait_for(lambda: self._closed or waits(), timeout_s)
            return not self._closed and waits()

    # -- what is in it -----------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The last committed position."""
        return self._taken

    @property
    def last_position(self) -> int:
        """The position of the newest record that is durable; 0 where there was none ever."""
        with self._state:
            return self._durable

    @property
    def pending_records(self) -> int:
        with self._state:
            return self._count(self._taken + 1, self._durable)

    @property
    def pending_bytes(self) -> int:
        """Bytes on disk from the cursor on; with records in between that were committed ahead."""
        with self._state:
            total = 0
            for segment in self._segments:
                if segment.last_seq > self._taken:
                    start = self._offset_of_cursor(segment) or HEADER_BYTES
                    total += segment.end - start
            return total

    def oldest_age_s(self, *, now: float) -> float:
        """Age of the oldest record that is not committed; 0 where nothing waits."""
        records = self.read(1)
        return max(0.0, now - records[0].time_ms / 1000) if records else 0.0

    def close(self, *, remove: bool = False) -> None:
        """Let waiting appends finish, release files and flock. With ``remove``: the empty directory too."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._state.notify_all()
            self._state.wait_for(lambda: not self._leading)
        if self._maker is not None:
            self._maker.join()
        with self._files:
            self._seal()
            self._close_reader()
            if remove and self._durable <= self._taken:
                self._remove()
            os.close(self._lock)

    # -- inside ------------------------------------------------------------------------------

    def _count(self, first: int, last: int) -> int:
        count = max(0, last - first + 1)
        if count and (self._holes or self._ahead):
            for start, end in sorted([*self._holes, *self._ahead]):
                start, end = max(start, first), min(end, last)
                if start <= end:
                    count -= end - start + 1
                    first = end + 1
        return count

    def _merged(self, position: int) -> tuple[int, list[tuple[int, int]]]:
        """The cursor moved on over what was committed ahead (or lost) right behind ``position``; the rest."""
        ahead, durable = self._ahead, self._durable
        while ahead and self._count(position + 1, ahead[0][0] - 1) == 0:
            position, ahead = max(position, ahead[0][1]), ahead[1:]
        if self._count(position + 1, durable) == 0:
            position = max(position, durable)  # what is lost at the end is never read, and so never committed
        return position, ahead

    def _is_ahead(self, first: int, last: int) -> bool:
        return any(start <= first and last <= end for start, end in self._ahead)

    def _disk_bytes(self) -> int:
        total = sum(segment.size for segment in self._segments)
        with contextlib.suppress(OSError):
            total += self._spare.stat().st_size
        return total

    def _advance(self, position: int) -> None:
        """Under ``_files``: cursor to ``position``, durably, then recycle what is passed."""
        position, ahead = self._merged(position)
        self._write_cursor(position, ahead)
        with self._state:
            self._ahead = ahead
            if position != self._taken or self._cursor_at is None:
                self._cursor_at = self._ends.get(position)
            self._taken = position
            self._ends = {seq: at for seq, at in self._ends.items() if seq > position}
            self._holes = [hole for hole in self._holes if hole[1] > position]
            passed = [s for s in self._segments if s.last_seq <= position and s is not self._active]
            self._segments = [s for s in self._segments if s not in passed]
        for segment in passed:
            if self._reader is not None and self._reader[0] == segment.number:
                self._close_reader()
            with contextlib.suppress(OSError):
                self._recycle(segment.path)

    def _write_cursor(self, position: int, ahead: list[tuple[int, int]]) -> None:
        data = pack_cursor(Cursor(self.identity, position, self.epoch, tuple(ahead)))
        replace(self.directory / "cursor", data)

    def _recycle(self, path: Path) -> None:
        status = path.stat()
        # One with a second name is kept in quarantine as well: its bytes must stay.
        if status.st_size == self.segment_bytes and status.st_nlink == 1 and not self._spare.exists():
            path.rename(self._spare)
        else:
            path.unlink()
        fsync_directory(self.directory)

    def _offset_of_cursor(self, segment: Segment) -> int | None:
        """Under ``_state``: where the cursor stands inside ``segment``, if that is known."""
        if self._cursor_at is not None and self._cursor_at[0] == segment.number:
            return self._cursor_at[1]
        return None

    def _offset_behind(self, segment: Segment, after: int) -> int:
        """Where to start reading for records behind ``after``: exact if known, else a safe start."""
        known = self._ends.get(after)
        if known is not None and known[0] == segment.number:
            return known[1]
        with self._state:
            return self._offset_of_cursor(segment) or HEADER_BYTES

    def _pread(self, segment: Segment, size: int, offset: int) -> bytes:
        if self._reader is None or self._reader[0] != segment.number:
            self._close_reader()
            try:
                self._reader = (segment.number, os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                raise _DamagedError(segment) from error
        try:
            return os.pread(self._reader[1], size, offset)
        except OSError as error:
            raise _DamagedError(segment) from error

    def _close_reader(self) -> None:
        if self._reader is not None:
            os.close(self._reader[1])
            self._reader = None

    def _heal(self, segment: Segment) -> None:
        """A segment turned out damaged while running: seal it if it is written to, then repair it."""
        if segment is self._active:
            self._submit([_Entry(None)])
        with self._files:
            with self._state:
                if segment not in self._segments:
                    return
                taken = self._taken
            self._close_reader()
            try:
                result = scan(segment.path.read_bytes(), taken=taken, before=segment.last_seq + 1)
                healed = repair(
                    segment.path,
                    segment.number,
                    result,
                    identity=self.identity,
                    taken=taken,
                    damage=self.damage,
                )
            except OSError as error:
                _log.error("spool: %s cannot be read: %s", segment.path, error)
                self.damage.segments += 1
                self.damage.lost_records += self._count(max(taken + 1, segment.first_seq), segment.last_seq)
                with contextlib.suppress(OSError):
                    quarantine(segment.path)
                result, healed = None, None
            with self._state:
                index = bisect.bisect_left([s.number for s in self._segments], segment.number)
                self._segments[index : index + 1] = [healed] if healed else []
                holes = [(hole.first, hole.last) for hole in result.holes] if result else []
                if healed is None:
                    holes = [(segment.first_seq, segment.last_seq)]
                self._holes += [hole for hole in holes if hole[1] > taken]
                self._ends = {k: at for k, at in self._ends.items() if at[0] != segment.number}
                if self._cursor_at is not None and self._cursor_at[0] == segment.number:
                    self._cursor_at = None
            with contextlib.suppress(OSError):
                self._advance(self._taken)

    def _remove(self) -> None:
        kept = self.directory / "quarantine"
        for path in self.directory.iterdir():
            if path != kept and path.name != "lock":
                path.unlink()
        if not kept.exists():
            (self.directory / "lock").unlink()
            self.directory.rmdir()
            fsync_directory(self.directory.parent)
