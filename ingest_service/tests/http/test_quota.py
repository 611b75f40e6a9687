"""Quotas: a burst, a rate, debts and when to come back."""

from __future__ import annotations

import pytest

from fieldring.errors import Overloaded
from fieldring.http.quota import Quotas
from fieldring.http.tokens import Identity

WRITER = Identity("w", frozenset({"write"}), points_per_second=10, points_burst=100)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_burst_then_rate() -> None:
    """What was saved up may go at once; then the rate holds, and the answer says how long to wait."""
    clock = Clock()
    quotas = Quotas(monotonic=clock)
    for _ in range(4):
        quotas.check(WRITER)
        quotas.charge(WRITER, 50)
        if _ == 1:
            break
    with pytest.raises(Overloaded, match=r"10 points/s") as refused:
        quotas.check(WRITER)
    assert 1 == refused.value.retry_after_s
    clock.now += 1
    quotas.check(WRITER)


def test_a_batch_beyond_the_burst_gets_through_and_is_paid_for() -> None:
    """Else a client with large batches could never write."""
    clock = Clock()
    quotas = Quotas(monotonic=clock)
    quotas.check(WRITER)
    quotas.charge(WRITER, 500)
    with pytest.raises(Overloaded) as refused:
        quotas.check(WRITER)
    assert 41 == refused.value.retry_after_s
    clock.now += 40
    with pytest.raises(Overloaded):
        quotas.check(WRITER)
    clock.now += 1
    quotas.check(WRITER)


def test_nothing_is_saved_beyond_the_burst() -> None:
    """A long silence is worth one burst."""
    clock = Clock()
    quotas = Quotas(monotonic=clock)
    quotas.charge(WRITER, 1)
    clock.now += 1_000_000
    quotas.charge(WRITER, 100)
    with pytest.raises(Overloaded):
        quotas.check(WRITER)


def test_tokens_do_not_pay_for_each_other() -> None:
    """Each token has a balance of its own; one without a quota has none."""
    quotas = Quotas(monotonic=Clock())
    quotas.charge(WRITER, 1_000)
    quotas.check(Identity("other", frozenset(), points_per_second=10, points_burst=100))
    free = Identity("free", frozenset())
    quotas.charge(free, 10**12)
    quotas.check(free)
