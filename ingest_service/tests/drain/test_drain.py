"""From a real spool into a real store, with a store that fails on purpose in front of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fieldring import spool
from fieldring.drain import Drain
from fieldring.errors import StoreUnavailable
from fieldring.model import Batch, Row
from fieldring.spool import Queue
from fieldring.store.sqlite import SqliteStore
from fieldring.wire import block

DAY = 1_790_000_000_000 - 1_790_000_000_000 % 86_400_000


def made(number: int, *, value: float | str = 0.5, received: int = 0) -> Batch:
    batch = Batch(received=received or number + 1)
    batch.append(Row("s", DAY + number, ("a",), (value,)))
    return batch


class Gate:
    """The store behind a door that tests shut; counts who knocks."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.failure: Exception | None = None
        self.poison: set[int] = set()
        self.refused: set[int] = set()
        self.calls = 0

    def write_many(self, batches: Sequence[Batch]) -> None:
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        for batch in batches:
            if batch.received in self.refused:
                raise StoreUnavailable(f"never {batch.received}")
            if batch.received in self.poison:
                raise TypeError("cannot be stored by a fault of ours")
        self.store.write_many(batches)

    def stored(self) -> list[int]:
        return [p.time_ms - DAY for p in self.store.points("s", start_ms=DAY, end_ms=DAY + 1_000_000)]


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made_queue = spool.open_worker(tmp_path / "spool", "worker")
    yield made_queue
    made_queue.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    store = SqliteStore(tmp_path / "store.sqlite")
    yield Gate(store)
    store.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_everything_arrives_and_leaves_the_queue(queue: Queue, gate: Gate) -> None:
    """run_once moves all records, tells its progress, and the queue is empty for good."""
    for number in range(50):
        queue.append(block.encode(made(number)))
    drain = Drain(queue, gate, read_bytes=500)
    left: list[int] = []
    assert 50 == drain.run_once(progress=left.append)
    assert sorted(left, reverse=True) == left
    assert 0 == left[-1]
    assert len(left) > 2
    assert list(range(50)) == gate.stored()
    assert (50, 50, 0) == (drain.delivered_records, drain.delivered_points, queue.pending_records)
    assert 0 == drain.run_once()


def test_unavailable_store_keeps_every_record(queue: Queue, gate: Gate) -> None:
    """A store that is down stops run_once with its reason; nothing leaves the queue."""
    for number in range(5):
        queue.append(block.encode(made(number)))
    gate.failure = StoreUnavailable("ring down")
    with pytest.raises(StoreUnavailable, match="ring down"):
        Drain(queue, gate).run_once()
    assert 5 == queue.pending_records
    gate.failure = None
    Drain(queue, gate).run_once()
    assert [0, 1, 2, 3, 4] == gate.stored()


def test_thread_waits_backs_off_and_goes_on(
    queue: Queue, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """While the store is down the drain knocks with pauses; once it is back all is moved, new records too."""
    caplog.set_level(logging.INFO)
    gate.failure = StoreUnavailable("ring down")
    drain = Drain(queue, gate, retry_max_s=0.2)
    drain.start()
    queue.append(block.encode(made(0)))
    eventually(lambda: drain.retries >= 3)
    assert "ring down" == drain.last_error
    assert gate.calls < 50
    gate.failure = None
    eventually(lambda: queue.pending_records == 0)
    queue.append(block.encode(made(1)))
    eventually(lambda: gate.stored() == [0, 1])
    drain.stop()
    assert "" == drain.last_error
    waits = [r for r in caplog.records if "ring down" in r.getMessage()]
    assert 1 == len(waits)


def test_delivery_is_told(queue: Queue, gate: Gate) -> None:
    """Whenever the sink has taken something, and not before."""
    told: list[int] = []
    queue.append(block.encode(made(0)))
    gate.failure = StoreUnavailable("ring down")
    drain = Drain(queue, gate, delivered=lambda: told.append(queue.pending_records))
    with pytest.raises(StoreUnavailable):
        drain.run_once()
    assert told == []
    gate.failure = None
    drain.run_once()
    assert len(told) == 1


def test_stop_does_not_wait_for_a_store_that_is_down(queue: Queue, gate: Gate) -> None:
    """Even in a long pause the thread ends at once, and what is left stays."""
    gate.failure = StoreUnavailable("ring down")
    drain = Drain(queue, gate, retry_max_s=600)
    queue.append(block.encode(made(0)))
    drain.start()
    eventually(lambda: drain.retries >= 1)
    started = time.monotonic()
    drain.stop()
    assert time.monotonic() - started < 2
    assert 1 == queue.pending_records


@pytest.mark.parametrize(
    "junk",
    [b"", b"junk", block.encode(made(1))[:-3], block.encode(made(1)) + b"x", b"FRB\x63" + b"\x00" * 20],
    ids=["empty", "junk", "cut_short", "trailing", "unknown_version"],
)
def test_record_that_cannot_be_decoded_is_put_aside(queue: Queue, gate: Gate, junk: bytes) -> None:
    """It is kept as a file with its bytes, counted, and the records around it are delivered."""
    for payload in (block.encode(made(0)), junk, block.encode(made(2))):
        queue.append(payload)
    drain = Drain(queue, gate)
    drain.run_once()
    assert [0, 2] == gate.stored()
    assert (2, 1, 0) == (drain.delivered_records, drain.quarantined_records, queue.pending_records)
    kept = list((queue.directory / "quarantine").iterdir())
    assert [junk] == [path.read_bytes() for path in kept]
    assert "record-00000000000000000002" == kept[0].name


def test_batch_that_a_fault_of_ours_cannot_store_holds_up_no_other(queue: Queue, gate: Gate) -> None:
    """An unexpected exception is narrowed to its record, which is kept; the others are stored."""
    for number in range(6):
        queue.append(block.encode(made(number)))
    gate.poison = {3, 5}
    drain = Drain(queue, gate)
    drain.run_once()
    assert [0, 1, 3, 5] == gate.stored()
    assert 2 == drain.quarantined_records
    kept = sorted((queue.directory / "quarantine").iterdir())
    assert [block.encode(made(2)), block.encode(made(4))] == [path.read_bytes() for path in kept]


def test_record_that_the_store_keeps_refusing_does_not_block_the_others(queue: Queue, gate: Gate) -> None:
    """It goes to the end of the queue, never away: all others are stored, and it too once it is taken."""
    for number in range(6):
        queue.append(block.encode(made(number)))
    gate.refused = {1, 4}
    drain = Drain(queue, gate, retry_max_s=0.05)
    drain.start()
    eventually(lambda: gate.stored() == [1, 2, 4, 5])
    eventually(lambda: queue.pending_records == 2)
    queue.append(block.encode(made(6)))
    eventually(lambda: 6 in gate.stored())
    gate.refused = set()
    eventually(lambda: queue.pending_records == 0)
    drain.stop()
    assert list(range(7)) == gate.stored()
    assert 0 == drain.quarantined_records


def test_what_was_delivered_singly_of_live_records_is_not_delivered_again(queue: Queue, gate: Gate) -> None:
    """The live lane's place went back over them, and what had been refused stood in the queue twice."""
    drain = Drain(queue, gate)
    for number in range(5):
        queue.append(block.encode(made(number)))
    gate.refused = {2}
    assert drain._step(1 << 16, singly=True) == 5
    assert drain.delivered_records == 4
    assert [block.decode(record.payload).received for record in queue.read()] == [2]
    assert (queue.pending_records, queue.appended_records) == (1, 6)
    gate.refused = set()
    queue.append(block.encode(made(5)))
    assert drain.run_once() == 2
    assert (drain.delivered_records, gate.stored()) == (6, [0, 1, 2, 3, 4, 5])


def test_thread_survives_a_fault_that_nobody_expected(
    queue: Queue, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception outside of the store's own is logged and retried: the drain never dies in silence."""
    queue.append(block.encode(made(0)))
    drain = Drain(queue, gate, retry_max_s=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "read", lambda _: 1 // 0)
        drain.start()
        eventually(lambda: drain.retries >= 2)
    eventually(lambda: queue.pending_records == 0)
    drain.stop()
    assert [0] == gate.stored()


def test_old_spool_never_overwrites_a_later_correction(queue: Queue, gate: Gate) -> None:
    """What was accepted last stands, though the older value is drained after it."""
    queue.append(block.encode(made(0, value=1.0, received=100)))
    gate.store.write(made(0, value=2.0, received=200))
    Drain(queue, gate).run_once()
    assert [2.0] == [p.value for p in gate.store.points("s", start_ms=DAY, end_ms=DAY + 1)]


def test_adopted_queue_is_removed_once_it_is_empty(tmp_path: Path, gate: Gate) -> None:
    """What a gone worker left is delivered, then its directory goes; one with quarantine stays."""
    for name, payload in (("clean", block.encode(made(1))), ("odd", b"junk")):
        left = spool.open_worker(tmp_path / "spool", name)
        left.append(block.encode(made(0)))
        left.append(payload)
        left.close()
    drains = [Drain(q, gate, release=True) for q in spool.adopt_orphans(tmp_path / "spool")]
    for drain in drains:
        drain.start()
    eventually(lambda: not (tmp_path / "spool" / "clean").exists())
    eventually(lambda: sum(d.delivered_records for d in drains) == 3)
    for drain in drains:
        drain.stop()
    assert [0, 1] == gate.stored()
    assert [b"junk"] == [p.read_bytes() for p in (tmp_path / "spool" / "odd" / "quarantine").iterdir()]
    assert [] == spool.adopt_orphans(tmp_path / "spool")


def test_crash_between_store_and_commit_delivers_again_without_harm(
    queue: Queue, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit comes after the store: what it did not reach is delivered twice, and stands once."""
    for number in range(3):
        queue.append(block.encode(made(number)))

    def crash(position: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(queue, "commit", crash)
        with pytest.raises(KeyboardInterrupt):
            Drain(queue, gate).run_once()
    assert 3 == queue.pending_records
    Drain(queue, gate).run_once()
    assert [0, 1, 2] == gate.stored()


def test_full_disk_while_putting_aside_loses_nothing(
    queue: Queue, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the unreadable record cannot be kept, it stays in the queue and the drain tries again."""
    queue.append(b"junk")

    def full(record: spool.Record) -> Path:
        raise OSError(28, "No space left on device")

    drain = Drain(queue, gate, retry_max_s=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "put_aside", full)
        drain.start()
        eventually(lambda: drain.retries >= 2)
        assert 1 == queue.pending_records
    eventually(lambda: queue.pending_records == 0)
    drain.stop()
    assert 1 == drain.quarantined_records


def test_appends_go_on_while_draining(queue: Queue, gate: Gate) -> None:
    """Writers and the drain at the same time: each record is delivered, the queue ends empty."""
    drain = Drain(queue, gate)
    drain.start()

    def write(worker: int) -> None:
        for number in range(100):
            queue.append(block.encode(made(worker * 100 + number)))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: queue.pending_records == 0)
    drain.stop()
    assert list(range(400)) == gate.stored()
