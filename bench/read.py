"""Reading a day of values at 1 Hz: JSON and CSV over HTTP against a raw driver read of the same rows.

    python bench/read.py
    python bench/read.py --hosts 192.0.2.11 --username fieldring --password-file pw --ca ca.crt

Without --hosts it starts one node in Docker, as the store's tests do. "raw driver" is cassandra-driver with
its defaults, rows as tuples, the map decoded to a dictionary: what a program of one's own would do.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from cassandra.protocol import ProtocolHandler

from fieldring.model import DAY_MS, Batch
from fieldring.store.cassandra import CassandraStore
from rings import add_arguments, environment, process, ring
from workload import rate, table

SECONDS = 86_400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5, help="reads of each, in turn; the best counts")
    arguments = parser.parse_args()
    day_ms = (int(time.time() * 1_000) // DAY_MS - 2) * DAY_MS
    sensor = f"bench-{time.time_ns()}"
    with ring(arguments) as (hosts, options), tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        digest = hashlib.sha256(b"bench").hexdigest()
        (folder / "tokens.json").write_text(json.dumps([{"id": "b", "sha256": digest, "roles": ["read"]}]))
        store = CassandraStore(hosts, **options)
        for first in range(0, SECONDS, 4_800):
            rows = range(first, first + 4_800)
            store.write(
                Batch(
                    sensors=[sensor] * len(rows),
                    times_ms=[day_ms + row * 1_000 for row in rows],
                    layouts=[("pm25",)] * len(rows),
                    values=[(row % 9_973 / 100,) for row in rows],
                    received=time.time_ns() // 1_000,
                )
            )

        with process("serve", environment(hosts, options, folder)) as port:
            span = f"start={day_ms}&end={day_ms + DAY_MS}"
            url = f"http://127.0.0.1:{port}/v1/points?sensor={sensor}&metric=pm25&{span}"

            def get(form: str) -> bytes:
                request = urllib.request.Request(
                    f"{url}&format={form}", headers={"Authorization": "Token bench"}
                )
                with urllib.request.urlopen(request, timeout=120) as answer:
                    body: bytes = answer.read()
                    return body

            session = store._ring._connected()
            statement = session.prepare(
                "SELECT ts, numbers, texts, WRITETIME(numbers), WRITETIME(texts) FROM points "
                "WHERE sensor = ? AND day = ? AND ts >= ? AND ts < ?"
            )

            def raw() -> int:
                session.client_protocol_handler = ProtocolHandler
                try:
                    return len(list(session.execute(statement, day)))
                finally:
                    session.client_protocol_handler = packed

            day = (sensor, day_ms // DAY_MS, day_ms, day_ms + DAY_MS)
            packed = session.client_protocol_handler
            if len(json.loads(get("json"))["points"]) != SECONDS:
                raise SystemExit("the day is not there whole: this run says nothing")
            if len(list(csv.reader(get("csv").decode().splitlines()))) != SECONDS + 1:
                raise SystemExit("the day is not there whole as CSV: this run says nothing")
            contestants: dict[str, Callable[[], object]] = {
                "raw driver": raw,
                "the store's points": lambda: sum(
                    1 for _ in store.points(sensor, start_ms=day_ms, end_ms=day_ms + DAY_MS)
                ),
                "HTTP, JSON": lambda: get("json"),
                "HTTP, CSV": lambda: get("csv"),
            }
            took: dict[str, list[float]] = {}
            for _ in range(arguments.rounds):
                for name, work in contestants.items():
                    began = time.perf_counter()
                    work()
                    took.setdefault(name, []).append(time.perf_counter() - began)
        store.close()
    base = min(took["raw driver"])
    rows_ = [
        (name, f"{min(found):.2f}", rate(SECONDS / min(found)), f"{min(found) / base:.2f}")
        for name, found in took.items()
    ]
    print(table(("reader", "seconds", "points/s", "time to raw"), rows_))


if __name__ == "__main__":
    main()
