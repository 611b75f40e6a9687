"""Line protocol to checked columns, one core: ours against line-protocol-parser (C, a dictionary a line).

    python bench/decode.py

Processor time of this thread is measured, not time on the wall, and the best of many short rounds of both in
turn is taken: so a machine that does other things meanwhile still gives a usable ratio.

`receive` decodes small writes that come together as one body: "16 together" is that, with the joining.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable

from fieldring.wire import Decoded, block, line_protocol
from workload import bodies, rate, table

NOW_S = 1_700_000_000
TOGETHER = 16


def seconds(work: Callable[[list[bytes]], object], given: list[list[bytes]]) -> float:
    """Processor time per body."""
    began = time.thread_time()
    for bodies_of_one in given:
        work(bodies_of_one)
    return (time.thread_time() - began) / sum(map(len, given))


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

    def ours(given: list[bytes]) -> Decoded:
        body = given[0] if len(given) == 1 else b"\n".join([body.removesuffix(b"\n") for body in given])
        return line_protocol.decode(body, now_ms=NOW_S * 1_000)

    def spooled(given: list[bytes]) -> object:
        return block.encode(ours(given).batch)

    def reference(given: list[bytes]) -> object:
        return [parse_line(line) for line in given[0].decode().splitlines()]

    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as `receive` runs
    rows = []
    for points in arguments.points:
        given = bodies(points, count=max(TOGETHER, 2_000 // points), start_s=NOW_S)
        single = [[body] for body in given]
        groups = [given[i : i + TOGETHER] for i in range(0, len(given), TOGETHER)]
        contestants: dict[str, tuple[Callable[[list[bytes]], object], list[list[bytes]]]] = {
            "ours": (ours, single),
            "ours and its block": (spooled, single),
            "ours, 16 together": (ours, groups),
            "ours and its block, 16 together": (spooled, groups),
        }
        if parse_line is not None:
            contestants["line-protocol-parser"] = (reference, single)
        best = dict.fromkeys(contestants, float("inf"))
        for many in (single, groups):
            assert sum(len(ours(each).batch) for each in many) == points * len(given)
        for _ in range(arguments.rounds):
            for name, (work, units) in contestants.items():
                best[name] = min(best[name], seconds(work, units))
        base = best.get("line-protocol-parser")
        for name, took in best.items():
            ratio = f"{base / took:.2f}" if base else "-"
            rows.append((str(points), name, rate(points / took), f"{took / points * 1e9:.0f}", ratio))
    print(table(("points/request", "decoder", "points/s", "ns/point", "ratio to C parser"), rows))


if __name__ == "__main__":
    main()
