"""Marks without a store: shards, hours, and the memory that saves writes."""

from __future__ import annotations

from contract import DAY, batch

from fieldring.model import HOUR_MS, Mark
from fieldring.store.marks import MarkMemo, marks_of, shard_of


def test_shards_are_the_same_everywhere() -> None:
    """The shard is part of what is stored: these values may never change."""
    assert [0, 1, 0] == [shard_of("station-1", 4), shard_of("grüße", 4), shard_of("", 4)]
    assert {0, 1, 2, 3} == {shard_of(f"sensor-{n}", 4) for n in range(100)}


def test_marks_are_hours() -> None:
    """Each row marks the hour that it lies in, also before 1970."""
    made = batch(
        ("a", DAY + 1, {"x": 1.0}), ("a", DAY + HOUR_MS - 1, {"x": 1.0}), ("b", -1, {"x": 1.0}), received=1
    )
    assert {Mark("a", DAY), Mark("b", -HOUR_MS)} == marks_of([made])


def test_memo_forgets_with_the_minute() -> None:
    """Within a minute a confirmed mark is not missing; in the next it is again."""
    memo = MarkMemo()
    one, two = Mark("a", DAY), Mark("b", DAY)
    assert {one, two} == memo.missing(5, {one, two})
    memo.remember(5, {one})
    assert {two} == memo.missing(5, {one, two})
    assert {one} == memo.missing(6, {one})
    memo.remember(6, {two})
    assert {one} == memo.missing(6, {one, two})
    memo.remember(5, {one})
    assert {one} == memo.missing(6, {one, two})
