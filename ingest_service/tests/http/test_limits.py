"""Unpacking under limits: what fits, what is cut short, and bombs that are stopped before they go off."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
import zlib

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldring.errors import BudgetExceeded, InvalidRequest, TooLarge, UnsupportedMediaType
from fieldring.http.limits import ByteBudget, Places, unpack, unpack_snappy

MIB = 1_048_576


def opened(body: bytes, encoding: str = "gzip", *, limit: int = 16 * MIB, budget: int = 64 * MIB) -> bytes:
    shared = ByteBudget(budget)
    with shared.reserve() as reservation:
        try:
            result = unpack(body, encoding=encoding, max_bytes=limit, reservation=reservation)
            assert reservation.size >= len(result) or result is body
        finally:
            assert shared.taken == reservation.size
    assert 0 == shared.taken
    return result


@given(st.lists(st.binary(max_size=5000), min_size=1, max_size=4), st.sampled_from([1, 9]))
def test_gzip(parts: list[bytes], level: int) -> None:
    """Any body comes back, also from several members in a row."""
    assert b"".join(parts) == opened(b"".join(gzip.compress(part, level) for part in parts))


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB])
def test_sizes_around_the_step(size: int) -> None:
    """Nothing is lost where a step ends."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert body == opened(gzip.compress(body))
    assert body == opened(zlib.compress(body), "deflate")


def test_padding_after_gzip_is_no_member() -> None:
    """Zeros after the last member are padding."""
    assert b"abc" == opened(gzip.compress(b"abc") + b"\0" * 100)


def test_no_encoding() -> None:
    """A plain body is not touched."""
    assert b"abc" == opened(b"abc", "")
    assert b"abc" == opened(b"abc", "Identity")


@pytest.mark.parametrize("cut", range(0, len(gzip.compress(b"hello, world")), 3))
def test_cut_short(cut: int) -> None:
    """Half a body is an error, never half the data."""
    with pytest.raises(InvalidRequest):
        opened(gzip.compress(b"hello, world")[:cut])


@pytest.mark.parametrize(
    "body",
    [b"not gzip", gzip.compress(b"abc", mtime=0)[:-8] + b"wrongcrc", gzip.compress(b"a", mtime=0) + b"junk"],
    ids=["no gzip", "wrong checksum", "more behind it"],
)
def test_junk(body: bytes) -> None:
    """What is not gzip, or fails its checksum, is refused."""
    with pytest.raises(InvalidRequest, match="not valid gzip"):
        opened(body)


def test_unknown_encoding() -> None:
    """Other encodings are refused by name."""
    with pytest.raises(UnsupportedMediaType, match="'br'"):
        opened(b"", "br")


def test_limit_is_exact() -> None:
    """At the limit a body passes; one byte more does not."""
    assert MIB == len(opened(gzip.compress(b"x" * MIB), limit=MIB))
    with pytest.raises(TooLarge):
        opened(gzip.compress(b"x" * (MIB + 1)), limit=MIB)


@pytest.mark.parametrize(
    ("limit", "budget", "error"), [(8 * MIB, 64 * MIB, TooLarge), (1024 * MIB, 8 * MIB, TooLarge)]
)
def test_bomb_is_stopped_before_memory_is_spent(limit: int, budget: int, error: type[Exception]) -> None:
    """200 KiB that unpack to 200 MiB cost no more than the limit or the budget."""
    bomb = gzip.compress(b"\0" * 200 * MIB, 9)
    tracemalloc.start()
    try:
        with pytest.raises(error):
            opened(bomb, limit=limit, budget=budget)
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()


def test_budget_is_shared_and_given_back() -> None:
    """What one request holds another cannot take, until it ends."""
    budget = ByteBudget(100)
    with budget.reserve() as first:
        first.take(60)
        with budget.reserve() as second, pytest.raises(BudgetExceeded):
            second.take(41)
        second.take(40)
        second.release()
    assert 0 == budget.taken


def test_what_never_fits_is_not_asked_to_come_again() -> None:
    """A 503 would have the client retry for ever."""
    with ByteBudget(100).reserve() as one:
        one.take(60)
        with pytest.raises(TooLarge):
            one.take(41)
        assert 60 == one.size


# -- snappy, as Prometheus sends it ----------------------------------------------------------


def opened_snappy(body: bytes, encoding: str = "snappy", *, limit: int = 16 * MIB) -> bytes:
    shared = ByteBudget(64 * MIB)
    with shared.reserve() as reservation:
        try:
            result = unpack_snappy(body, encoding=encoding, max_bytes=limit, reservation=reservation)
            assert len(result) == reservation.size
        finally:
            assert shared.taken == reservation.size
    assert 0 == shared.taken
    return result


@given(st.binary(max_size=5000), st.integers(0, 40))
def test_snappy(part: bytes, times: int) -> None:
    """Any body comes back, compressible or not."""
    assert part * times == opened_snappy(bytes(cramjam.snappy.compress_raw(part * times)))


@pytest.mark.parametrize("encoding", ["", "gzip", "zstd"])
def test_snappy_only(encoding: str) -> None:
    """Another encoding is refused by name."""
    with pytest.raises(UnsupportedMediaType, match="snappy"):
        opened_snappy(b"\x00", encoding)


@given(st.binary(max_size=50))
def test_snappy_junk(body: bytes) -> None:
    """Junk is refused or is snappy, never a crash."""
    with contextlib.suppress(InvalidRequest, TooLarge):
        opened_snappy(body)


def test_snappy_that_lies_costs_nothing() -> None:
    """A head that claims gigabytes is not believed, within the limit or beyond it."""
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            opened_snappy(b"\xff\xff\xff\xff\x0f" + b"x" * 100)
        with pytest.raises(InvalidRequest, match="claims"):
            opened_snappy(b"\x80\x80\x80\x04" + b"x" * 100)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_snappy_limits() -> None:
    """The limit is exact, and what the budget does not have is not spent."""
    assert MIB == len(opened_snappy(bytes(cramjam.snappy.compress_raw(b"x" * MIB)), limit=MIB))
    with pytest.raises(TooLarge):
        opened_snappy(bytes(cramjam.snappy.compress_raw(b"x" * (MIB + 1))), limit=MIB)
    with ByteBudget(MIB).reserve() as reservation, pytest.raises(TooLarge):
        unpack_snappy(bytes(cramjam.snappy.compress_raw(b"x" * MIB)), encoding="snappy", max_bytes=2 * MIB,
                      reservation=reservation)  # fmt: skip


def test_places() -> None:
    """When all are taken the next is refused, and a place that is left can be taken again."""
    places = Places(2, full="full up")
    with places, places:
        with pytest.raises(BudgetExceeded, match="full up"), places:
            pass
        assert 2 == places.taken
    with places:
        assert 1 == places.taken
