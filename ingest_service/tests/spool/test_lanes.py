"""Two lanes: what is delivered first, what a restart remembers of it, and how the backlog is held back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldring import spool
from fieldring.spool import Endurance, Lanes, Queue


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def fill(queue: Queue, *names: str) -> None:
    for name in names:
        queue.append(name.encode())


def take(lanes: Lanes, max_bytes: int = 1) -> list[str]:
    portion = lanes.read(max_bytes)
    if portion.records:
        lanes.done(portion)
    return [record.payload.decode() for record in portion.records]


def left(queue: Queue) -> list[str]:
    return [record.payload.decode() for record in queue.read(1 << 20)]


def test_live_goes_before_what_waited(tmp_path: Path) -> None:
    """Records that come in meanwhile overtake the backlog, which keeps its own order."""
    queue = Queue(tmp_path)
    fill(queue, "a", "b", "c")
    lanes = Lanes(queue)
    assert ["a"] == take(lanes)
    fill(queue, "x", "y")
    assert [["x"], ["y"], ["b"]] == [take(lanes) for _ in range(3)]
    assert 1 == queue.pending_records
    fill(queue, "z")
    assert [["z"], ["c"], []] == [take(lanes) for _ in range(3)]
    assert (0, 0, queue.last_position) == (queue.pending_records, queue.pending_bytes, queue.position)
    assert 6 == queue.committed_records
    queue.close()


def test_what_was_delivered_ahead_is_remembered_over_a_restart(tmp_path: Path) -> None:
    """It is not delivered again, and the rest is the backlog."""
    queue = Queue(tmp_path)
    fill(queue, "a", "b")
    lanes = Lanes(queue)
    fill(queue, "x", "y", "z")
    assert [["x"], ["y"]] == [take(lanes), take(lanes)]
    queue.close()
    report = spool.inspect(tmp_path)[0]
    assert (3, [[3, 4]]) == (report["pending_records"], report["taken_ahead"])
    assert "3 to 4 were delivered ahead" in spool.render([report])
    again = Queue(tmp_path)
    assert (["a", "b", "z"], 3) == (left(again), again.pending_records)
    assert ["a", "b", "z"] == take(Lanes(again), 1 << 20)
    assert 0 == again.pending_records
    again.close()


def test_failure_makes_all_that_waits_the_backlog(tmp_path: Path) -> None:
    """After an outage the present does not stand behind the outage."""
    queue = Queue(tmp_path)
    lanes = Lanes(queue)
    fill(queue, "a", "b")
    lanes.fall_back()
    fill(queue, "x")
    assert [["x"], ["a"], ["b"]] == [take(lanes) for _ in range(3)]
    queue.close()


def test_backlog_keeps_to_its_rate(tmp_path: Path) -> None:
    """A hundred bytes a second are a hundred bytes a second; live records do not wait."""
    clock = Clock()
    queue = Queue(tmp_path)
    fill(queue, *(f"{n:050d}" for n in range(20)))
    lanes = Lanes(queue, backlog_bytes_per_second=100, monotonic=clock)
    moved = 0
    for _ in range(50):
        moved += sum(map(len, take(lanes, 1 << 20)))
        clock.s += 0.1
    assert 400 <= moved <= 700
    assert lanes.pause_s() > 0
    fill(queue, "x")
    assert (["x"], []) == (take(lanes), take(lanes))
    clock.s += 60
    assert 2 == len(take(lanes, 1 << 20))
    queue.close()


def test_room_is_freed_as_the_backlog_goes(tmp_path: Path) -> None:
    """Segments behind the cursor are recycled although newer records were delivered long ago."""
    queue = Queue(tmp_path, segment_bytes=4096, max_bytes=16 * 4096)
    fill(queue, *("b" * 900 for _ in range(20)))
    lanes = Lanes(queue)
    fill(queue, *("l" * 900 for _ in range(8)))
    assert 8 == len(take(lanes, 1 << 20))
    before = len(list(tmp_path.glob("*.seg")))
    assert 12 == sum(len(take(lanes)) for _ in range(12))
    assert len(list(tmp_path.glob("*.seg"))) < before
    assert 8 == sum(len(take(lanes)) for _ in range(8))
    assert (0, 0) == (queue.pending_records, queue.pending_bytes)
    queue.close()


def test_damaged_cursor_delivers_again_what_was_ahead(tmp_path: Path) -> None:
    """Without its cursor the directory is delivered from the start: twice rather than never."""
    queue = Queue(tmp_path)
    fill(queue, "a")
    lanes = Lanes(queue)
    fill(queue, "x")
    assert ["x"] == take(lanes)
    queue.close()
    raw = bytearray((tmp_path / "cursor").read_bytes())
    raw[-6] ^= 1
    (tmp_path / "cursor").write_bytes(raw)
    again = Queue(tmp_path)
    assert (["a", "x"], 1) == (left(again), again.damage.cursors)
    again.close()


@pytest.mark.parametrize("policy", ["refuse", "drop_oldest"])
def test_full_with_records_ahead(tmp_path: Path, policy: str) -> None:
    """What was delivered ahead is never counted as dropped."""
    queue = Queue(tmp_path, segment_bytes=4096, max_bytes=4 * 4096, full_policy=policy)
    fill(queue, "a" * 900)
    lanes = Lanes(queue)
    fill(queue, "x" * 900, "y" * 900)
    assert 2 == len(take(lanes, 1 << 20))
    refused = queue.append_many([b"z" * 900] * 30)
    if policy == "refuse":
        assert any(refused)
        assert 0 == queue.dropped_records
        assert 1 + refused.count(None) == queue.pending_records
    else:
        assert [None] * 30 == refused
        assert queue.dropped_records == 31 - queue.pending_records
    queue.close()


@given(st.lists(st.sampled_from(["append", "take", "take", "fail", "restart"]), max_size=40))
def test_every_record_is_delivered_once(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    """Whatever the order of events: nothing is lost, and nothing is delivered twice without a crash."""
    directory = tmp_path_factory.mktemp("spool")
    queue = Queue(directory, segment_bytes=4096, max_bytes=1 << 20)
    lanes = Lanes(queue)
    sent: list[str] = []
    taken: list[str] = []
    for step in [*steps, "restart"]:
        if step == "append":
            sent.append(f"{len(sent):0700d}")
            fill(queue, sent[-1])
        elif step == "take":
            taken += take(lanes, 1500)
        elif step == "fail":
            lanes.fall_back()
        else:
            queue.close()
            queue = Queue(directory, segment_bytes=4096, max_bytes=1 << 20)
            lanes = Lanes(queue)
        assert len(sent) - len(taken) == queue.pending_records
    while portion := take(lanes, 1500):
        taken += portion
    assert sent == sorted(taken)
    assert (0, queue.last_position) == (queue.pending_bytes, queue.position)
    queue.close()


def test_append_many_is_durable_and_in_order(tmp_path: Path) -> None:
    """Records that are appended together share an fsync and are found again over segment ends."""
    queue = Queue(tmp_path, segment_bytes=4096, max_bytes=1 << 20)
    assert [None] * 3 == queue.append_many([b"a", b"b", b"c"])
    assert (3, 1) == (queue.appended_records, queue.syncs)
    assert [None] * 10 == queue.append_many([b"d" * 900] * 10)
    assert [] == queue.append_many([])
    queue.close()
    again = Queue(tmp_path, segment_bytes=4096)
    assert ["a", "b", "c", *["d" * 900] * 10] == left(again)
    again.close()
    assert all("is closed" in str(error) for error in again.append_many([b"e", b"f"]))


def test_hours_left_follow_the_rate() -> None:
    """Room over rate; unknown or idle is for ever."""
    clock = Clock()
    endurance = Endurance(window_s=600, monotonic=clock)
    assert float("inf") == endurance.hours(0, room_bytes=3600)
    clock.s += 10
    assert 0.1 == pytest.approx(endurance.hours(100, room_bytes=3600))
    for step in range(1, 100):
        clock.s += 10
        endurance.hours(100 + step * 1000, room_bytes=3600)
    assert 0.01 == pytest.approx(endurance.hours(100 + 99_000, room_bytes=3600))
    clock.s += 700
    endurance.hours(99_100, room_bytes=3600)
    clock.s += 10
    assert float("inf") == endurance.hours(99_100, room_bytes=3600)
