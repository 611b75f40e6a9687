"""How long the room that is left lasts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

__all__ = ["Endurance"]

_SAMPLES = 240


class Endurance:
    """Hours of buffer, from the rate at which bytes came in over the last ``window_s``.

    Samples are taken when it is asked, as a monitor does every some seconds.
    """

    def __init__(self, *, window_s: float = 600.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._monotonic = monotonic
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)

    def hours(self, total_bytes: float, *, room_bytes: float) -> float:
        """Hours until ``room_bytes`` are full; infinity where nothing comes in or it is not known yet.

        ``total_bytes`` is what has come in since the start.
        """
        now = self._monotonic()
        while len(self._samples) > 1 and now - self._samples[0][0] > self._window_s:
            self._samples.popleft()
        if not self._samples or now - self._samples[-1][0] >= self._window_s / _SAMPLES:
            self._samples.append((now, total_bytes))
        since, before = self._samples[0]
        if now <= since or total_bytes <= before:
            return float("inf")
        return max(0.0, room_bytes) / ((total_bytes - before) / (now - since)) / 3_600
