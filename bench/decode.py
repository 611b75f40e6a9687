"""Line protocol to checked columns, one core: ours against line-protocol-parser (C, a dictionary a line).

    python bench/decode.py

Processor time of this thread is measured, not time on the wall, and the best of many short rounds of both in
turn is taken: so a machine that does other things meanwhile still gives a usable ratio.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable

from fieldring.wire import block, line_protocol
from workload import bodies, rate, table

NOW_S = 1_700_000_000


def seconds(work: Callable[[bytes], object], given: list[bytes]) -> float:
    """Processor time per body."""
    began = time.thread_time()
    for body in given:
        work(body)
    return (time.thread_time() - began) / len(given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--points", type=int, nargs="+", default=[1, 100, 1000], help="points a request")
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    try:
        from line_protocol_parser import parse_line
    except ImportError:
        print("line-protocol-parser is not here (pip install -r bench/requirements.txt): no reference")
        parse_line = None

    def ours(body: bytes) -> object:
        return line_protocol.decode(body, now_ms=NOW_S * 1_000)

    def spooled(body: bytes) -> object:
        return block.encode(line_protocol.decode(body, now_ms=NOW_S * 1_000).batch)

    def reference(body: bytes) -> object:
        return [parse_line(line) for line in body.decode().splitlines()]

    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as `receive` runs
    rows = []
    for points in arguments.points:
        given = bodies(points, count=max(1, 2_000 // points), start_s=NOW_S)
        contestants = {"ours": ours, "ours and its block": spooled}
        if parse_line is not None:
            contestants["line-protocol-parser"] = reference
        best = dict.fromkeys(contestants, float("inf"))
        assert sum(len(line_protocol.decode(b, now_ms=1).batch) for b in given) == points * len(given)
        for _ in range(arguments.rounds):
            for name, work in contestants.items():
                best[name] = min(best[name], seconds(work, given))
        base = best.get("line-protocol-parser")
        for name, took in best.items():
            ratio = f"{base / took:.2f}" if base else "-"
            rows.append((str(points), name, rate(points / took), f"{took / points * 1e9:.0f}", ratio))
    print(table(("points/request", "decoder", "points/s", "ns/point", "ratio to C parser"), rows))


if __name__ == "__main__":
    main()
