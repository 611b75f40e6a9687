"""What all benchmarks send: readings of some sensors, one point a line, and the table they print."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

SENSORS = 10


def bodies(points: int, *, count: int, start_s: int, seed: int = 1) -> list[bytes]:
    """``count`` bodies in line protocol with times in ns: ten sensors a second, two decimals.

    >>> bodies(1, count=1, start_s=1_700_000_000)
    [b'air,sensor=s000 pm25=12.09 1700000000000000000\\n']
    """
    dice = random.Random(seed)
    made = []
    for number in range(count):
        first = number * points
        made.append(
            "".join(
                f"air,sensor=s{i % SENSORS:03d} pm25={dice.uniform(0, 90):.2f} "
                f"{start_s + i // SENSORS}000000000\n"
                for i in range(first, first + points)
            ).encode()
        )
    return made


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    lines = [list(head), ["-" * len(name) for name in head], *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines[1] = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def rate(per_second: float) -> str:
    """1234567 → 1.23M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if per_second >= size:
            return f"{per_second / size:.2f}{letter}"
    return f"{per_second:.0f}"
