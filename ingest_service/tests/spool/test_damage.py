"""Every kind of damage by name, with the records that must survive it (FORMAT.md, "What a start does").

The spool before the damage: records r1..r12 of 1000 bytes, four to a segment, so segments 1 (r1-r4),
2 (r5-r8) and 3 (r9-r12); nothing is committed, and every record was appended by itself.
"""

from __future__ import annotations

import errno
import json
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fieldring import spool
from fieldring.spool import Queue, _recovery
from fieldring.spool._format import HEADER_BYTES, crc32c, pack_record, padded, unpack_header

SEGMENT = 4400
RECORD = padded(1000)
ALL = frozenset(range(1, 13))


def payload(number: int) -> bytes:
    return b"%03d-" % number * 250


def open_queue(directory: Path) -> Queue:
    return Queue(directory, segment_bytes=SEGMENT, max_bytes=20 * SEGMENT)


def segment(directory: Path, number: int) -> Path:
    return directory / f"{number:020d}.seg"


def start_of(record: int) -> int:
    """Offset of record ``record`` in its segment."""
    return HEADER_BYTES + (record - 1) % 4 * RECORD


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int) -> None:
    raw = path.read_bytes()
    overwrite(path, offset, bytes([raw[offset] ^ 0x40]))


@dataclass(frozen=True)
class Case:
    """``damage`` is done to the closed directory; ``survivors`` are read after the next start."""

    name: str
    damage: Callable[[Path], object]
    survivors: frozenset[int]
    segments: int = 0
    """Segments that count as damaged."""
    lost: int = 0
    torn: int = 0
    cursors: int = 0
    kept: int = 0
    """Files in quarantine."""


def torn_group(d: Path) -> None:
    """r11 never reached the disk, r12 of the same group did: neither was promised."""
    raw = bytearray(segment(d, 3).read_bytes())
    header = unpack_header(bytes(raw))
    assert header is not None
    for number in (11, 12):
        body = payload(number)
        record = pack_record(body, crc32c(body), epoch=header.epoch, seq=number, synced=10, time_ms=0)
        raw[start_of(number) : start_of(number) + RECORD] = record
    raw[start_of(11) : start_of(11) + RECORD] = bytes(RECORD)
    segment(d, 3).write_bytes(raw)


def torn_last_group(d: Path) -> None:
    """Of the group r11, r12 the first pages reached the disk: r11's end and r12 are still zeros."""
    torn_group(d)
    body = payload(11)
    record = pack_record(body, crc32c(body), epoch=1, seq=11, synced=10, time_ms=0)
    overwrite(segment(d, 3), start_of(11), record[:700])
    overwrite(segment(d, 3), start_of(12), bytes(RECORD))


def torn_group_out_of_order(d: Path) -> None:
    """Of the group r11, r12 only the page with r12's header reached the disk."""
    torn_group(d)
    overwrite(segment(d, 3), start_of(12) + 200, bytes(RECORD - 200))


def flip_payloads(d: Path, *records: int) -> None:
    """One bit in the payload of each, all of segment 3."""
    for record in records:
        flip(segment(d, 3), start_of(record) + 500)


def flip_payload_then_magic(d: Path) -> None:
    flip_payloads(d, 11)
    flip(segment(d, 3), start_of(12))


def unknown_version(d: Path) -> None:
    overwrite(segment(d, 2), 7, b"\x02")


CASES = [
    Case("none", lambda d: None, ALL),
    # the end of the last segment: nobody can say that it was promised
    Case("torn_last_payload", lambda d: flip_payloads(d, 12), ALL - {12}, torn=1, kept=1),
    Case("torn_last_header", lambda d: flip(segment(d, 3), start_of(12) + 30), ALL - {12}, torn=1, kept=1),
    Case("torn_last_magic", lambda d: flip(segment(d, 3), start_of(12)), ALL - {12}, torn=1, kept=1),
    Case("torn_last_epoch", lambda d: flip(segment(d, 3), start_of(12) + 16), ALL - {12}, torn=1, kept=1),
    Case(
        "last_header_garbage",
        lambda d: overwrite(segment(d, 3), start_of(12), b"\xa5" * 512),
        ALL - {12},
        torn=1,
        kept=1,
    ),
    Case(
        "last_header_zeroed",
        lambda d: overwrite(segment(d, 3), start_of(12), bytes(512)),
        ALL - {12},
        torn=1,
        kept=1,
    ),
    Case("last_record_zeroed", lambda d: overwrite(segment(d, 3), start_of(12), bytes(RECORD)), ALL - {12}),
    Case(
        "last_segment_cut_short",
        lambda d: overwrite_size(segment(d, 3), start_of(12) + 700),
        ALL - {12},
        torn=1,
        kept=1,
    ),
    Case("torn_group", torn_group, ALL - {11}, torn=1, kept=1),
    Case("torn_last_group", torn_last_group, ALL - {11, 12}, torn=1, kept=1),
    Case("torn_group_out_of_order", torn_group_out_of_order, ALL - {11, 12}, torn=1, kept=1),
    # there too, but what is left of the last one says that those before it were promised
    Case("last_two_payloads", lambda d: flip_payloads(d, 11, 12), ALL - {11, 12}, 1, 1, torn=1, kept=1),
    Case("payload_then_last_magic", flip_payload_then_magic, ALL - {11, 12}, 1, 1, torn=1, kept=1),
    Case(
        "all_payloads_of_the_last_segment",
        lambda d: flip_payloads(d, 9, 10, 11, 12),
        ALL - {9, 10, 11, 12},
        1,
        3,
        torn=1,
        kept=1,
    ),
    # inside: promised, so it is damage, and all around it is kept
    Case("flipped_payload", lambda d: flip(segment(d, 2), start_of(6) + 500), ALL - {6}, 1, 1, kept=1),
    Case("flipped_record_header", lambda d: flip(segment(d, 2), start_of(6) + 12), ALL - {6}, 1, 1, kept=1),
    Case(
        "flipped_in_last_segment", lambda d: flip(segment(d, 3), start_of(10) + 99), ALL - {10}, 1, 1, kept=1
    ),
    Case("first_record_of_all", lambda d: flip(segment(d, 1), start_of(1) + 99), ALL - {1}, 1, 1, kept=1),
    Case(
        "last_record_of_a_full_segment",
        lambda d: flip(segment(d, 1), start_of(4) + 99),
        ALL - {4},
        1,
        1,
        kept=1,
    ),
    Case(
        "zeroed_middle",
        lambda d: overwrite(segment(d, 2), start_of(6), bytes(2 * RECORD)),
        ALL - {6, 7},
        1,
        2,
        kept=1,
    ),
    Case(
        "old_segment_cut_short",
        lambda d: overwrite_size(segment(d, 1), start_of(3) + 9),
        ALL - {3, 4},
        1,
        2,
        kept=1,
    ),
    Case(
        "old_segment_empty_file", lambda d: overwrite_size(segment(d, 2), 0), ALL - {5, 6, 7, 8}, 2, 4, kept=2
    ),
    Case("old_segment_removed", lambda d: segment(d, 2).unlink(), ALL - {5, 6, 7, 8}, 1, 4, kept=1),
    Case("first_segment_removed", lambda d: segment(d, 1).unlink(), ALL - {1, 2, 3, 4}, 0, 4),
    # segment headers
    Case("header_flipped_first", lambda d: flip(segment(d, 1), 20), ALL, 1, kept=1),
    Case("header_flipped_middle", lambda d: flip(segment(d, 2), 20), ALL, 1, kept=1),
    Case("header_flipped_last", lambda d: flip(segment(d, 3), 20), ALL, 1, kept=1),
    Case("header_of_unknown_version", unknown_version, ALL, 1, kept=1),
    Case(
        "last_segment_garbage",
        lambda d: segment(d, 3).write_bytes(b"\xa5" * SEGMENT),
        ALL - {9, 10, 11, 12},
        1,
        kept=1,
    ),
    # the cursor
    Case("cursor_flipped", lambda d: flip(d / "cursor", 20), ALL, cursors=1, kept=1),
    Case("cursor_empty", lambda d: overwrite_size(d / "cursor", 0), ALL, cursors=1, kept=1),
    Case("cursor_removed", lambda d: (d / "cursor").unlink(), ALL),
    # what a crash leaves between two steps
    Case("leftover_temporary_files", lambda d: (d / "spare.tmp").write_bytes(b"x"), ALL),
    Case("spare_of_wrong_size", lambda d: (d / "spare").write_bytes(b"x"), ALL),
    Case("stale_records_in_spare", lambda d: (d / "spare").write_bytes(segment(d, 1).read_bytes()), ALL),
    Case("stray_files", lambda d: (d / "notes.seg").write_bytes(b"x"), ALL),
]


def overwrite_size(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def survivors(queue: Queue) -> list[int]:
    records = queue.read(1 << 30)
    for record in records:
        assert payload(int(record.payload[:3])) == record.payload
    return [int(record.payload[:3]) for record in records]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "worker"
    queue = open_queue(directory)
    for number in range(1, 13):
        queue.append(payload(number))
    queue.close()
    return directory


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
class TestDamage:
    def test_start_keeps_every_good_record(self, directory: Path, case: Case) -> None:
        """The start goes through, the survivors are read in order, the damage is counted and kept."""
        case.damage(directory)
        queue = open_queue(directory)
        assert sorted(case.survivors) == survivors(queue)
        assert len(case.survivors) == queue.pending_records
        damage = queue.damage
        assert (case.segments, case.lost) == (damage.segments, damage.lost_records)
        assert (case.torn, case.cursors) == (damage.torn_tails, damage.cursors)
        folder = directory / "quarantine"
        assert case.kept == (len(list(folder.iterdir())) if folder.exists() else 0)
        queue.close()

    def test_second_start_finds_nothing_new(self, directory: Path, case: Case) -> None:
        """Repair is done once: the next start reads the same and counts no damage again."""
        case.damage(directory)
        open_queue(directory).close()
        queue = open_queue(directory)
        assert sorted(case.survivors) == survivors(queue)
        assert len(case.survivors) == queue.pending_records
        assert (0, 0, 0, 0) == (
            queue.damage.segments,
            queue.damage.lost_records,
            queue.damage.torn_tails,
            queue.damage.cursors,
        )
        queue.close()

    def test_appending_goes_on_behind_the_survivors(self, directory: Path, case: Case) -> None:
        """New records follow, survive another start, and no number is used for two survivors."""
        case.damage(directory)
        queue = open_queue(directory)
        for number in range(13, 23):
            queue.append(payload(number))
        expected = [*sorted(case.survivors), *range(13, 23)]
        assert expected == survivors(queue)
        queue.close()
        again = open_queue(directory)
        assert expected == survivors(again)
        positions = [record.position for record in again.read(1 << 30)]
        assert sorted(set(positions)) == positions
        again.commit(positions[-1])
        assert (0, 0) == (again.pending_records, again.pending_bytes)
        again.close()

    def test_inspection_changes_nothing(self, directory: Path, case: Case) -> None:
        """A look at the damaged spool prints as JSON and leaves every byte as it is."""
        case.damage(directory)
        before = {p.name: p.read_bytes() for p in directory.iterdir()}
        report = spool.inspect(directory.parent)
        assert json.dumps(report)
        damaged = [
            s
            for r in report
            if r["directory"] == str(directory)
            for s in r["segments"]
            if s["state"] == "damaged"
        ]
        assert (case.segments > 0 and case.name != "first_segment_removed") == bool(damaged) or case.torn
        assert before == {p.name: p.read_bytes() for p in directory.iterdir()}


class TestWhileRunning:
    @pytest.mark.parametrize("record", [2, 6, 10, 12])
    def test_damage_met_by_the_reader_is_repaired_and_reading_goes_on(
        self, directory: Path, record: int
    ) -> None:
        """Bits that rot under a running queue cost their record only, in the written segment too."""
        queue = open_queue(directory)
        for number in range(13, 15):  # segment 4, active
            queue.append(payload(number))
        flip(segment(directory, (record + 3) // 4), start_of(record) + 100)
        assert [n for n in range(1, 15) if n != record] == [int(r.payload[:3]) for r in drain(queue)]
        assert (1, 1) == (queue.damage.segments, queue.damage.lost_records)
        assert 0 == queue.pending_records
        queue.close()

    def test_damage_in_the_active_segment_seals_it(self, directory: Path) -> None:
        """The active segment is ended and repaired; appends go on in the next."""
        queue = open_queue(directory)
        for number in range(13, 16):
            queue.append(payload(number))
        flip(segment(directory, 4), HEADER_BYTES + RECORD + 100)
        expected = [*range(1, 14), 15]
        assert expected == [int(r.payload[:3]) for r in drain(queue)]
        queue.append(payload(16))
        assert [16] == survivors(queue)
        queue.close()

    def test_lost_at_the_end_is_not_waited_for(self, directory: Path) -> None:
        """The newest record rots: the consumer, which cannot commit it, is not told that it waits."""
        queue = open_queue(directory)
        queue.append(payload(13))
        flip(segment(directory, 4), start_of(13) + 100)
        assert list(range(1, 13)) == [int(r.payload[:3]) for r in drain(queue)]
        assert (False, 0, 13) == (queue.wait(0), queue.pending_bytes, queue.position)
        queue.close()

    def test_segment_that_vanished_does_not_stop_the_queue(self, directory: Path) -> None:
        """A file that cannot be opened any more is counted, the rest is delivered."""
        queue = open_queue(directory)
        segment(directory, 2).unlink()
        assert [1, 2, 3, 4, 9, 10, 11, 12] == [int(r.payload[:3]) for r in drain(queue)]
        assert (1, 4) == (queue.damage.segments, queue.damage.lost_records)
        queue.close()


def drain(queue: Queue) -> list[spool.Record]:
    taken = []
    while records := queue.read(1500):
        taken += records
        queue.commit(records[-1].position)
    return taken


def test_stale_records_of_a_recycled_segment_are_not_taken_for_new_ones(tmp_path: Path) -> None:
    """A recycled file still holds old records behind the new ones; a start must not revive them."""
    queue = open_queue(tmp_path)
    for number in range(1, 13):
        queue.append(payload(number))
    queue.close()
    (tmp_path / "spare").unlink(missing_ok=True)
    queue = open_queue(tmp_path)
    queue.commit(queue.read(1 << 30)[-1].position)
    queue.append(payload(13))
    queue.close()
    recycled = segment(tmp_path, 4)
    assert payload(2) in recycled.read_bytes()
    again = open_queue(tmp_path)
    assert [13] == survivors(again)
    assert (0, 0) == (again.damage.segments, again.damage.torn_tails)
    again.close()


def counted(queue: Queue) -> tuple[int, int, int, int]:
    damage = queue.damage
    return damage.segments, damage.lost_records, damage.torn_tails, damage.cursors


@pytest.fixture
def no_spare_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that was taken becomes the next one, as where the maker of spares comes too late."""
    monkeypatch.setattr(Queue, "_prepare_spare", lambda self: None)


def recycled_segment(directory: Path) -> Path:
    """r9 alone in segment 3; behind it stand r2 to r4 of the same epoch, which were taken long ago."""
    queue = open_queue(directory)
    for number in range(1, 10):
        queue.append(payload(number))
        if number < 9:
            queue.commit(number)
    queue.close()
    return segment(directory, 3)


@pytest.mark.usefixtures("no_spare_ahead")
class TestEndOfARecycledSegment:
    def test_records_of_an_earlier_life_are_no_torn_tail(self, tmp_path: Path) -> None:
        """Stale records of the same epoch, just where the next would stand, are neither data nor damage."""
        path = recycled_segment(tmp_path)
        raw = path.read_bytes()
        assert payload(9) == raw[HEADER_BYTES + 48 :][:1000]
        assert [payload(n) for n in (2, 3, 4)] == [
            raw[start_of(n) + 48 : start_of(n) + 1048] for n in (2, 3, 4)
        ]
        queue = open_queue(tmp_path)
        assert ([9], (0, 0, 0, 0)) == (survivors(queue), counted(queue))
        assert not (tmp_path / "quarantine").exists()
        queue.close()

    @pytest.mark.parametrize("offset", [0, 4, 12, 16, 24, 32, 500], ids=lambda at: f"byte_{at}")
    def test_damage_to_the_newest_is_told_from_them(self, tmp_path: Path, offset: int) -> None:
        """Whichever field is hit: counted, and kept in quarantine before the file is cut."""
        path = recycled_segment(tmp_path)
        flip(path, HEADER_BYTES + offset)
        record = path.read_bytes()[HEADER_BYTES : HEADER_BYTES + RECORD]
        queue = open_queue(tmp_path)
        assert ([], (0, 0, 1, 0)) == (survivors(queue), counted(queue))
        (kept,) = (tmp_path / "quarantine").iterdir()
        assert kept.read_bytes().startswith(record)
        queue.close()
        again = open_queue(tmp_path)
        assert (0, 0, 0, 0) == counted(again)
        again.close()

    def test_copy_leaves_out_what_an_earlier_life_left(self, tmp_path: Path) -> None:
        """A torn record whose header says how long it is costs its own bytes in quarantine, no more."""
        path = recycled_segment(tmp_path)
        flip(path, HEADER_BYTES + 500)
        open_queue(tmp_path).close()
        (kept,) = (tmp_path / "quarantine").iterdir()
        assert RECORD == kept.stat().st_size

    def test_life_before_a_lost_identity_is_over(self, tmp_path: Path) -> None:
        """The cursor is lost, numbers start again: a spare that holds the same ones is not used."""
        queue = open_queue(tmp_path)
        for number in range(1, 6):
            queue.append(payload(number))
        queue.commit(5)
        queue.close()
        open_queue(tmp_path).close()
        assert [] == list(tmp_path.glob("*.seg"))
        (tmp_path / "spare").write_bytes(
            b"".join(
                [bytes(HEADER_BYTES)]
                + [
                    pack_record(payload(n), crc32c(payload(n)), epoch=1, seq=n, synced=n - 1, time_ms=0)
                    for n in range(1, 5)
                ]
            ).ljust(SEGMENT, b"\0")
        )
        flip(tmp_path / "cursor", 20)
        queue = open_queue(tmp_path)
        queue.append(payload(99))
        queue.close()
        again = open_queue(tmp_path)
        assert ([99], (0, 0, 0, 0)) == (survivors(again), counted(again))
        again.close()


class TestEndOfTheOnlySegment:
    @pytest.mark.parametrize("offset", [0, 500], ids=["magic", "payload"])
    def test_only_record_is_kept_and_counted(self, tmp_path: Path, offset: int) -> None:
        """Nothing says that it was promised, yet its bytes are neither deleted nor overwritten."""
        queue = open_queue(tmp_path)
        queue.append(payload(1))
        queue.close()
        flip(segment(tmp_path, 1), HEADER_BYTES + offset)
        record = segment(tmp_path, 1).read_bytes()[HEADER_BYTES:].rstrip(b"\0")
        queue = open_queue(tmp_path)
        assert ([], (0, 0, 1, 0)) == (survivors(queue), counted(queue))
        assert [record] == [p.read_bytes() for p in (tmp_path / "quarantine").iterdir()]
        queue.append(payload(2))
        assert [2] == survivors(queue)
        queue.close()

    def test_lost_records_leave_nothing_to_wait_for(self, tmp_path: Path) -> None:
        """Of two damaged records the first is lost: nothing waits, its number is not used again."""
        queue = open_queue(tmp_path)
        queue.append(payload(1))
        queue.append(payload(2))
        queue.close()
        for number in (1, 2):
            flip(segment(tmp_path, 1), start_of(number) + 500)
        queue = open_queue(tmp_path)
        assert (1, 1, 1, 0) == counted(queue)
        assert (False, 0, 0) == (queue.wait(0), queue.pending_records, queue.pending_bytes)
        queue.append(payload(3))
        assert [2] == [record.position for record in queue.read()]
        queue.close()


def test_no_room_for_the_torn_tail_cuts_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full disk the file gets a second name instead of a copy, and is not written to again."""
    flip_payloads(directory, 12)
    before = segment(directory, 3).read_bytes()

    def full(path: Path, start: int, end: int) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_recovery, "copy_to_quarantine", full)
        queue = open_queue(directory)
    assert (sorted(ALL - {12}), (0, 0, 1, 0)) == (survivors(queue), counted(queue))
    (directory / "spare").unlink(missing_ok=True)
    drain(queue)
    for number in range(13, 23):
        queue.append(payload(number))
    queue.close()
    assert [before] == [p.read_bytes() for p in (directory / "quarantine").iterdir()]


@pytest.mark.parametrize("recycled", [False, True])
def test_torn_group_costs_only_itself(tmp_path: Path, request: pytest.FixtureRequest, recycled: bool) -> None:
    """Whichever sectors of the last group reached the disk, in a new file or a recycled one."""
    if recycled:
        request.getfixturevalue("no_spare_ahead")
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for round_ in range(25):
        directory = tmp_path / f"round{round_}"
        queue = Queue(directory, segment_bytes=8192, max_bytes=1 << 20)
        number = 0
        for _ in range(chance.randrange(35, 50) if recycled else 3):
            number += 1
            queue.append(payload(number)[: 4 * chance.randrange(1, 250)])
            queue.commit(number)
        before = {p.name: p.read_bytes() for p in directory.glob("*.seg")}
        number += 1
        queue.append(payload(number))
        middle = {p.name: p.read_bytes() for p in directory.glob("*.seg")}
        group = [payload(number + 1 + n)[: 4 * chance.randrange(1, 150)] for n in range(4)]
        queue.append_many(group)
        queue.close()
        path = max(directory.glob("*.seg"))
        raw, old = bytearray(path.read_bytes()), middle.get(path.name)
        if old is None or path.name not in before:
            continue  # the group or the record before it began a segment
        for sector in range(0, len(raw), 512):
            if chance.random() < 0.5:
                raw[sector : sector + 512] = old[sector : sector + 512]
        path.write_bytes(raw)
        for start in range(2):
            queue = Queue(directory, segment_bytes=8192, max_bytes=1 << 20)
            found = [record.payload for record in queue.read(1 << 30)]
            assert payload(number) == found[0], f"seed {seed}, round {round_}"
            assert [p for p in group if p in found] == found[1:], f"seed {seed}, round {round_}"
            assert (0, 0) == counted(queue)[:2], f"seed {seed}, round {round_}"
            assert start == 0 or queue.damage.torn_tails == 0, f"seed {seed}, round {round_}"
            queue.close()


@pytest.mark.parametrize("recycled", [False, True])
def test_undamaged_spool_of_any_history_counts_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, recycled: bool
) -> None:
    """Appends, commits, recycled files and restarts: no start finds damage, a torn tail or an old record."""
    if recycled:
        request.getfixturevalue("no_spare_ahead")
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for round_ in range(12):
        directory = tmp_path / f"round{round_}"
        sizes = chance.choice([[250], [250, 125], range(1, 250)])
        waiting: list[bytes] = []
        number = 0
        queue = open_queue(directory)
        for _ in range(40):
            step = chance.choice(["append", "append", "group", "commit", "restart"])
            if step == "commit" and waiting:
                records = queue.read(1 << 30)
                count = chance.randrange(len(records)) + 1
                queue.commit(records[count - 1].position)
                del waiting[:count]
            elif step == "restart":
                queue.close()
                queue = open_queue(directory)
                assert (0, 0, 0, 0) == counted(queue), f"seed {seed}, round {round_}"
                assert waiting == [r.payload for r in queue.read(1 << 30)], f"seed {seed}, round {round_}"
            else:
                group = []
                for _ in range(1 if step == "append" else 3):
                    number += 1
                    group.append(payload(number)[: 4 * chance.choice(sizes)])
                taken = [p for p, error in zip(group, queue.append_many(group), strict=True) if not error]
                waiting += taken
        queue.close()
        assert not (directory / "quarantine").exists()


def test_no_room_for_the_repair_keeps_the_file_and_the_start(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a full disk a damaged segment cannot be rewritten: it is set aside whole, the rest is read."""
    flip(segment(directory, 2), start_of(6) + 500)
    before = segment(directory, 2).read_bytes()

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_recovery, "replace", full)
        queue = open_queue(directory)
    assert [1, 2, 3, 4, 9, 10, 11, 12] == survivors(queue)
    assert before in [p.read_bytes() for p in (directory / "quarantine").iterdir()]
    queue.close()


def test_good_records_of_every_random_damage_survive(directory: Path, tmp_path: Path) -> None:
    """Whatever bytes are overwritten in segment 2, no record outside of them is lost."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    original = {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}
    for round_ in range(60):
        copy = tmp_path / f"copy{round_}"
        copy.mkdir()
        for name, data in original.items():
            (copy / name).write_bytes(data)
        start = chance.randrange(HEADER_BYTES + 4 * RECORD)
        length = chance.choice([1, 8, 100, 1500])
        overwrite(segment(copy, 2), start, chance.randbytes(length))
        touched = {n for n in range(5, 9) if start < start_of(n) + RECORD and start + length > start_of(n)}
        queue = open_queue(copy)
        found = set(survivors(queue))
        queue.close()
        assert ALL - touched <= found, f"seed {seed}, round {round_}: {start}+{length}"


def test_every_random_damage_to_the_last_segment_is_counted_and_kept(directory: Path, tmp_path: Path) -> None:
    """Whatever bytes are overwritten there, the damaged ones are in quarantine if a record is missing."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    original = {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}
    for round_ in range(100):
        copy = tmp_path / f"copy{round_}"
        copy.mkdir()
        for name, data in original.items():
            (copy / name).write_bytes(data)
        start = chance.randrange(HEADER_BYTES, HEADER_BYTES + 4 * RECORD)
        overwrite(
            segment(copy, 3), start, chance.randbytes(chance.choice([1, 8, 100, 1500]))[: SEGMENT - start]
        )
        damaged = (
            segment(copy, 3).read_bytes()[start_of(9 + (start - HEADER_BYTES) // RECORD) :].rstrip(b"\0")
        )
        queue = open_queue(copy)
        missing = ALL - set(survivors(queue))
        where = f"seed {seed}, round {round_}: {start}"
        assert bool(missing) == any(counted(queue)), where
        assert queue.damage.lost_records <= len(missing), where
        if missing:
            assert any(damaged in p.read_bytes() for p in (copy / "quarantine").iterdir()), where
        queue.close()


def test_inspection_as_text_names_what_is_wrong(directory: Path) -> None:
    """The table for people shows records, damage, gaps and what lies in quarantine."""
    flip(segment(directory, 2), start_of(6) + 500)
    text = spool.render(spool.inspect(directory.parent))
    assert "11 records wait" in text
    assert "damaged: records 6 to 6 cannot be read" in text
    open_queue(directory).close()
    text = spool.render(spool.inspect(directory.parent))
    assert "gap: records 6 to 6, lost to damage" in text
    assert "quarantine/00000000000000000002.seg" in text
    assert "no worker directory here" == spool.render([])


def test_inspection_while_the_worker_appends_never_fails(directory: Path) -> None:
    """A look at a spool that is written, committed and recycled meanwhile gives an answer each time."""
    queue = open_queue(directory)
    stop = threading.Event()

    def work() -> None:
        number = 13
        while not stop.is_set():
            queue.append(payload(number % 1000))
            records = queue.read()
            queue.commit(records[-1].position)
            number += 1

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(100):
        report = spool.inspect(directory.parent)
        assert str(directory) == report[0]["directory"]
    stop.set()
    thread.join()
    queue.close()
