"""How many points each token may write: a rate with a burst, kept per process.

What a request holds is known only when it is decoded. So a token may go into debt by one request, and
is refused until the debt is paid: a batch of any size gets through, and the long-run rate holds.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from fieldring.errors import Overloaded
from fieldring.http.tokens import Identity

__all__ = ["Quotas"]

_MAX_RETRY_AFTER_S = 3_600


class Quotas:
    """Balances of all tokens that have a quota. Thread-safe."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._balances: dict[str, tuple[float, float]] = {}

    def check(self, identity: Identity) -> None:
        """Raises Overloaded: the token is in debt, until when its error says."""
        if not identity.points_per_second:
            return
        with self._lock:
            balance, _ = self._balance(identity)
        if balance <= 0:
            wait_s = min(math.floor(-balance / identity.points_per_second) + 1, _MAX_RETRY_AFTER_S)
            raise Overloaded(
                f"token {identity.id!r} has written more than its {identity.points_per_second:g} points/s: "
                f"retry in {wait_s} s",
                retry_after_s=wait_s,
            )

    def charge(self, identity: Identity, points: int) -> None:
        """Count points that are being written."""
        if not identity.points_per_second:
            return
        with self._lock:
            balance, now = self._balance(identity)
            self._balances[identity.id] = (balance - points, now)

    def _balance(self, identity: Identity) -> tuple[float, float]:
        now = self._monotonic()
        balance, then = self._balances.get(identity.id, (identity.points_burst, now))
        earned = (now - then) * identity.points_per_second
        return min(balance + earned, identity.points_burst), now
