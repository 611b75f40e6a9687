"""The queue's promises while all is well: order, durability order, limits, recycling, many threads."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fieldring import spool
from fieldring.errors import ConfigurationError, SpoolFull
from fieldring.spool import Queue
from fieldring.spool import queue as queue_module

SEGMENT = 4096


def payloads(queue: Queue) -> list[bytes]:
    return [record.payload for record in queue.read(1 << 30)]


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class TestAppendAndRead:
    def test_records_come_back_in_order_until_they_are_committed(self, tmp_path: Path) -> None:
        """Reading moves nothing; a commit moves the cursor for good, over a restart too."""
        queue = Queue(tmp_path)
        for number in range(10):
            queue.append(b"%d" % number)
        first = queue.read()
        assert [b"%d" % n for n in range(10)] == [record.payload for record in first]
        assert first == queue.read()
        queue.commit(first[3].position)
        assert (6, first[3].position) == (queue.pending_records, queue.position)
        queue.close()
        again = Queue(tmp_path)
        assert [b"%d" % n for n in range(4, 10)] == payloads(again)
        assert 6 == again.pending_records
        again.commit(again.read()[-1].position)
        again.close()
        empty = Queue(tmp_path)
        assert [] == payloads(empty)
        assert (0, 0) == (empty.pending_records, empty.pending_bytes)
        empty.close()

    def test_numbering_goes_on_after_everything_was_taken(self, tmp_path: Path) -> None:
        """Positions never start again in one directory, whatever was recycled."""
        last = 0
        identities = set()
        for _ in range(5):
            queue = Queue(tmp_path, segment_bytes=SEGMENT, max_bytes=4 * SEGMENT)
            identities.add(queue.identity)
            queue.append(b"x" * 3000)
            record = queue.read()[-1]
            assert last + 1 == record.position
            last = record.position
            queue.commit(last)
            queue.close()
        assert 1 == len(identities)

    def test_reading_ahead_of_the_cursor_pipelines(self, tmp_path: Path) -> None:
        """`after` reads on behind records that are still in flight."""
        queue = Queue(tmp_path)
        for number in range(6):
            queue.append(b"%d" % number)
        two = queue.read(1, after=None)
        assert [b"0"] == [r.payload for r in two]
        rest = queue.read(after=two[-1].position)
        assert [b"1", b"2", b"3", b"4", b"5"] == [r.payload for r in rest]
        assert 6 == queue.pending_records
        queue.close()

    @pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000, 4000, 5000, 70_000, 3_000_000])
    def test_any_size_comes_back_equal(self, tmp_path: Path, size: int) -> None:
        """Records around padding, segment and read-ahead sizes; a large one gets a segment of its own."""
        queue = Queue(tmp_path, segment_bytes=SEGMENT, max_bytes=1 << 24)
        data = os.urandom(size)
        queue.append(b"before")
        queue.append(data)
        queue.append(b"after")
        assert [b"before", data, b"after"] == payloads(queue)
        queue.close()
        queue = Queue(tmp_path, segment_bytes=SEGMENT, max_bytes=1 << 24)
        assert [b"before", data, b"after"] == payloads(queue)
        queue.close()

    def test_pending_bytes_shrink_with_each_commit(self, tmp_path: Path) -> None:
        """pending_bytes counts exactly what is not committed, header and padding included."""
        queue = Queue(tmp_path)
        for _ in range(4):
            queue.append(b"x" * 100)
        assert 4 * 152 == queue.pending_bytes
        queue.commit(queue.read()[2].position)
        assert 152 == queue.pending_bytes
        queue.close()

    def test_age_is_that_of_the_oldest_uncommitted(self, tmp_path: Path) -> None:
        """The age moves on with the cursor and is 0 for an empty queue."""
        now = [1000.0]
        queue = Queue(tmp_path, clock=lambda: now[0])
        queue.append(b"old")
        now[0] = 1060.0
        queue.append(b"young")
        assert 70.0 == queue.oldest_age_s(now=1070.0)
        queue.commit(1)
        assert 10.0 == queue.oldest_age_s(now=1070.0)
        queue.commit(2)
        assert 0.0 == queue.oldest_age_s(now=1070.0)
        queue.close()

    def test_wait_wakes_on_an_append(self, tmp_path: Path) -> None:
        """A waiting reader hears of a record at once, and of nothing in time."""
        queue = Queue(tmp_path)
        assert not queue.wait(0.01)
        timer = threading.Timer(0.05, queue.append, [b"x"])
        timer.start()
        assert queue.wait(10)
        timer.join()
        queue.close()
        assert not queue.wait(0.01)


class TestGroupCommit:
    def test_many_threads_share_fsyncs_and_lose_nothing(self, tmp_path: Path) -> None:
        """Each append returns after its own fsync; concurrent ones are grouped; all are read once."""
        queue = Queue(tmp_path, segment_bytes=65536, max_bytes=1 << 26)
        each, workers = 200, 16

        def work(worker: int) -> None:
            for number in range(each):
                queue.append(b"%d-%d" % (worker, number))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert each * workers == queue.appended_records
        assert queue.syncs < each * workers
        found = payloads(queue)
        assert {b"%d-%d" % (w, n) for w in range(workers) for n in range(each)} == set(found)
        assert each * workers == len(found)
        for worker in range(workers):
            own = [p for p in found if p.startswith(b"%d-" % worker)]
            assert [b"%d-%d" % (worker, n) for n in range(each)] == own
        queue.close()

    def test_nothing_is_read_before_its_fsync(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """While fdatasync runs, neither the reader nor the appender sees the record as safe."""
        queue = Queue(tmp_path)
        entered, go_on = threading.Event(), threading.Event()
        real = os.fdatasync

        def slow(descriptor: int) -> None:
            entered.set()
            go_on.wait(10)
            real(descriptor)

        monkeypatch.setattr(queue_module.os, "fdatasync", slow)
        appender = threading.Thread(target=queue.append, args=(b"x",))
        appender.start()
        assert entered.wait(10)
        assert [] == queue.read()
        assert appender.is_alive()
        go_on.set()
        appender.join(10)
        assert [b"x"] == payloads(queue)
        queue.close()

    def test_failed_fsync_is_refused_and_never_trusted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An append whose fsync fails is refused; the next goes to a new segment under the same number."""
        queue = Queue(tmp_path)
        queue.append(b"good")

        def fail(descriptor: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(queue_module.os, "fdatasync", fail)
            with pytest.raises(SpoolFull, match="cannot be written: Input/output error"):
                queue.append(b"lost")
        assert 1 == queue.refused
        queue.append(b"next")
        assert [b"good", b"next"] == payloads(queue)
        queue.close()
        again = Queue(tmp_path)
        assert [b"good", b"next"] == payloads(again)
        assert (0, 0) == (again.damage.segments, again.damage.lost_records)
        again.close()


class TestFull:
    def test_refuse_keeps_everything_and_goes_on_after_a_commit(self, tmp_path: Path) -> None:
        """At its limit the spool refuses with the setting's name; room from a commit is used again."""
        queue = Queue(tmp_path, segment_bytes=SEGMENT, max_bytes=3 * SEGMENT)
        kept = [b"%04d" % number * 200 for number in range(12)]
        for payload in kept:
            queue.append(payload)
        with pytest.raises(SpoolFull, match="FIELDRING_SPOOL_MAX_BYTES"):
            queue.append(b"x" * 800)
        assert 1 == queue.refused
        assert kept == payloads(queue)
        assert sum(p.stat().st_size for p in tmp_path.glob("*.seg")) <= 3 * SEGMENT
        queue.commit(queue.read(1 << 30)[7].position)
        queue.append(b"again")
        assert [*kept[8:], b"again"] == payloads(queue)
        queue.close()

    def test_drop_oldest_counts_what_it_gives_up(self, tmp_path: Path) -> None:
        """The newest records survive, the counters and a gap record name the others."""
        queue = Queue(tmp_path, segment_bytes=SEGMENT, max_bytes=3 * SEGMENT, full_policy="drop_oldest")
        sent = [b"%04d" % number * 200 for number in range(40)]
        for payload in sent:
            queue.append(payload)
        kept = payloads(queue)
        assert sent[-len(kept) :] == kept
        assert len(kept) >= 8
        assert 40 - len(kept) == queue.dropped_records
        assert len(kept) == queue.pending_records
        assert 0 <= queue.dropped_bytes - queue.dropped_records * 848 < 28 * 80
        report = spool.inspect(tmp_path)[0]
        gaps = [gap for segment in report["segments"] for gap in segment.get("gaps", [])]
        assert queue.read(1)[0].position - 1 in {gap["last"] for gap in gaps} | {queue.position}
        assert gaps
        queue.close()
        again = Queue(tmp_path, segment_bytes=SEGMENT, max_bytes=3 * SEGMENT, full_policy="drop_oldest")
        assert kept == payloads(again)
        again.close()

    def test_record_that_can_never_fit_drops_nothing(self, tmp_path: Path) -> None:
        """A record above the whole limit is refused even by drop_oldest, and what waits stays."""
        queue = Queue(tmp_path, segment_bytes=SEGMENT, max_bytes=3 * SEGMENT, full_policy="drop_oldest")
        queue.append(b"kept")
        with pytest.raises(SpoolFull, match="can never fit"):
            queue.append(b"x" * 20_000)
        assert [b"kept"] == payloads(queue)
        queue.close()

    def test_disk_full_is_refused_and_recovers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """ENOSPC while a segment is made is an answer, not a crash; no half-made file is left."""
        queue = Queue(tmp_path)

        def full(path: Path, size: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(queue_module, "make_zeroed", full)
            with pytest.raises(SpoolFull, match="No space left"):
                queue.append(b"x")
        assert ["cursor", "lock"] == files(tmp_path)
        queue.append(b"y")
        assert [b"y"] == payloads(queue)
        queue.close()

    def test_segments_are_recycled_not_multiplied(self, tmp_path: Path) -> None:
        """With a consumer that keeps up the directory stays at two or three files of segment size."""
        queue = Queue(tmp_path, segment_bytes=SEGMENT, max_bytes=100 * SEGMENT)
        for number in range(200):
            queue.append(b"%03d" % number * 300)
            records = queue.read()
            assert [b"%03d" % number * 300] == [r.payload for r in records]
            queue.commit(records[-1].position)
        assert len(list(tmp_path.glob("*.seg"))) <= 2
        queue.close()
        again = Queue(tmp_path, segment_bytes=SEGMENT, max_bytes=100 * SEGMENT)
        assert [] == payloads(again)
        assert 0 == again.damage.segments
        again.close()


class TestWorkers:
    def test_second_worker_of_a_name_gets_its_own_directory(self, tmp_path: Path) -> None:
        """A directory under flock is never shared; after its release it is taken again."""
        first = spool.open_worker(tmp_path, "receive-1")
        second = spool.open_worker(tmp_path, "receive-1")
        assert ("receive-1", "receive-1.2") == (first.directory.name, second.directory.name)
        with pytest.raises(ConfigurationError, match="in use by another process"):
            Queue(first.directory)
        first.close()
        third = spool.open_worker(tmp_path, "receive-1")
        assert "receive-1" == third.directory.name
        second.close()
        third.close()

    def test_orphans_with_records_are_adopted_and_empty_ones_removed(self, tmp_path: Path) -> None:
        """What a gone worker left is handed over; a held directory is left alone."""
        gone = spool.open_worker(tmp_path, "gone")
        gone.append(b"left behind")
        gone.close()
        spool.open_worker(tmp_path, "empty").close()
        held = spool.open_worker(tmp_path, "held")
        held.append(b"mine")
        adopted = spool.adopt_orphans(tmp_path)
        assert ["gone"] == [queue.directory.name for queue in adopted]
        assert [b"left behind"] == payloads(adopted[0])
        assert ["gone", "held"] == files(tmp_path)
        adopted[0].commit(adopted[0].read()[-1].position)
        adopted[0].close(remove=True)
        assert ["held"] == files(tmp_path)
        held.close()

    @pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden"])
    def test_worker_name_must_be_a_file_name(self, tmp_path: Path, name: str) -> None:
        """A name that would leave the root is refused."""
        with pytest.raises(ConfigurationError, match="cannot be a directory name"):
            spool.open_worker(tmp_path, name)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"full_policy": "drop"}, "FIELDRING_SPOOL_FULL_POLICY"),
            ({"segment_bytes": 100}, "FIELDRING_SPOOL_SEGMENT_BYTES"),
            ({"max_bytes": 8_388_608}, "FIELDRING_SPOOL_MAX_BYTES"),
        ],
    )
    def test_settings_that_cannot_work_are_named(
        self, tmp_path: Path, options: dict[str, int], named: str
    ) -> None:
        """The refusal says which setting is wrong."""
        with pytest.raises(ConfigurationError, match=named):
            Queue(tmp_path, **options)  # type: ignore[arg-type]


class TestKill:
    def test_kill_9_in_the_middle_of_appends_loses_nothing_acknowledged(self, tmp_path: Path) -> None:
        """Every record whose append returned before SIGKILL is there at the next start."""
        program = (
            "import sys, threading\n"
            "from fieldring.spool import Queue\n"
            f"queue = Queue({str(tmp_path)!r}, segment_bytes=16384, max_bytes=1 << 24)\n"
            "guard = threading.Lock()\n"
            "def work(worker):\n"
            "    for number in range(10**6):\n"
            "        queue.append(b'%d-%d' % (worker, number))\n"
            "        with guard:\n"
            "            sys.stdout.write(f'{worker}-{number}\\n'); sys.stdout.flush()\n"
            "for worker in range(4): threading.Thread(target=work, args=(worker,)).start()\n"
        )
        for round_ in range(3):
            child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
            assert child.stdout is not None
            acknowledged = []
            while len(acknowledged) < 300 * (round_ + 1):
                acknowledged.append(child.stdout.readline().strip())
            child.send_signal(signal.SIGKILL)
            acknowledged += [line for line in child.stdout.read().split(b"\n")[:-1] if line]
            child.stdout.close()
            child.wait()
            queue = Queue(tmp_path, segment_bytes=16384, max_bytes=1 << 24)
            found = payloads(queue)
            assert set(acknowledged) <= set(found)
            assert 0 == queue.damage.segments
            queue.commit(queue.read(1 << 30)[-1].position)
            queue.close()


def test_appends_while_a_consumer_commits_meet_once_each(tmp_path: Path) -> None:
    """Producers, a committing consumer, rolling and recycling at once: every record exactly once."""
    queue = Queue(tmp_path, segment_bytes=8192, max_bytes=1 << 22)
    total = 4000
    taken: list[bytes] = []
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
                failures.append(error)

        return threading.Thread(target=run)

    def produce(worker: int) -> Callable[[], None]:
        def work() -> None:
            for number in range(total // 4):
                queue.append(b"%d-%d-" % (worker, number) + b"x" * (number % 300))

        return work

    def consume() -> None:
        while len(taken) < total:
            queue.wait(5)
            records = queue.read(10_000)
            taken.extend(record.payload for record in records)
            if records:
                queue.commit(records[-1].position)

    threads = [guarded(produce(worker)) for worker in range(4)] + [guarded(consume)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [] == failures
    assert total == len(taken) == len(set(taken))
    assert (0, 0) == (queue.pending_records, queue.pending_bytes)
    queue.close()
