"""Writing into a real ring: through HTTP against the raw driver with the same statements, and other layouts.

    python bench/ring.py
    python bench/ring.py --hosts 192.0.2.11 192.0.2.12 --username fieldring --password-file pw --ca ca.crt

Without --hosts it starts one node in Docker, as the store's tests do. All writes are new points at
LOCAL_QUORUM. "raw driver" are the very statements that the store makes, made beforehand, so that only the
driver and the ring are left; the other layouts are made and bound while writing, as any client must. acsylla
(ScyllaDB's C++ driver) writes the same rows in batches of the same number, bound by it as ours are by us.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cassandra.query import BatchStatement, BatchType

from fieldring.model import DAY_MS, Batch
from fieldring.store.cassandra import _INSERT_POINTS, CassandraStore
from fieldring.wire import line_protocol
from rings import add_arguments, environment, process, ring
from workload import rate, table

try:
    import acsylla
except ImportError:
    acsylla = None  # type: ignore[assignment]

SENSORS = 10
METRICS = 8
CONNECTIONS = 16


def bodies(name: str, *, points: int, requests: int, start_s: int) -> list[bytes]:
    """Lines of eight metrics, sensor by sensor a second after the other."""
    rows = points // METRICS
    made = []
    for request in range(requests):
        lines = []
        for row in range(request * rows, (request + 1) * rows):
            fields = ",".join(f"f{m}={row % 97}.{m}5" for m in range(METRICS))
            sensor, time_s = row % SENSORS, start_s + row // SENSORS
            lines.append(f"air,sensor={name}{sensor} {fields} {time_s}000000000\n")
        made.append("".join(lines).encode())
    return made


def over_http(port: int, given: list[bytes]) -> float:
    """Seconds until all are acknowledged as stored.

    Requests are made beforehand, and of an answer only what says so is looked at: the client takes its
    processor time from the same two cores.
    """
    head = "POST /write?db=bench HTTP/1.1\r\nHost: bench\r\nAuthorization: Token bench\r\nContent-Length: "
    remaining = iter([f"{head}{len(body)}\r\n\r\n".encode() + body for body in given])
    lock = threading.Lock()
    failures: list[str] = []

    def send() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            while not failures:
                with lock:
                    request = next(remaining, None)
                if request is None:
                    break
                connection.sendall(request)
                answer = b""
                while not answer.endswith(b"\r\n\r\n"):
                    part = connection.recv(65_536)
                    answer += part
                    if not part or not answer.startswith(b"HTTP/1.1 204 "[: len(answer)]):
                        break
                if b"fieldring-durability: stored" not in answer.lower():
                    failures.append(repr(answer[:500]))

    threads = [threading.Thread(target=send) for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"a request was answered {failures[0]}: this run says nothing")
    return time.perf_counter() - began


class Layouts:
    """The tables that the chosen layout is compared with."""

    def __init__(self, store: CassandraStore, points: int, start_s: int) -> None:
        self._ring = store._ring
        self._points = points
        self._start_ms = start_s * 1_000
        session = self._ring._connected()
        for name, columns, key in (
            ("bench_metric", "metric text, value double", "ts, metric"),
            ("bench_map", "numbers frozen<map<text, double>>", "ts"),
            ("bench_blob", "data blob", "ts"),
        ):
            session.execute(
                f"CREATE TABLE IF NOT EXISTS {name} (sensor text, day int, ts bigint, {columns}, "
                f"PRIMARY KEY ((sensor, day), {key}))"
            )
        time.sleep(2)

    def _rows(self, run: str) -> Iterator[tuple[str, int, int]]:
        for row in range(self._points // METRICS):
            ts = self._start_ms + row // SENSORS * 1_000
            yield f"{run}{row % SENSORS}", ts // DAY_MS, ts

    def single_metrics(self, run: str) -> Iterator[Any]:
        insert = self._ring.prepare(
            "INSERT INTO bench_metric (sensor, day, ts, metric, value) VALUES (?, ?, ?, ?, ?)"
        )
        for place in self._rows(run):
            for metric in range(METRICS):
                yield insert.bind((*place, f"air_f{metric}", 1.5))

    def batched_metrics(self, run: str) -> Iterator[Any]:
        statements = self.single_metrics(run)
        for first in statements:
            yield _batch([first, *(next(statements) for _ in range(METRICS - 1))])

    def _maps(self, run: str) -> Iterator[Any]:
        insert = self._ring.prepare("INSERT INTO bench_map (sensor, day, ts, numbers) VALUES (?, ?, ?, ?)")
        entries = [f"air_f{m}".encode() for m in range(METRICS)]
        packed = struct.pack(">i", METRICS) + b"".join(
            struct.pack(">i", len(e)) + e + struct.pack(">id", 8, 1.5) for e in entries
        )
        for place in self._rows(run):
            yield insert.bind((*place, packed))

    single_maps = _maps

    def batched_maps(self, run: str) -> Iterator[Any]:
        by_sensor: dict[str, list[Any]] = {}
        for place, statement in zip(self._rows(run), self._maps(run), strict=True):
            members = by_sensor.setdefault(place[0], [])
            members.append(statement)
            if len(members) == 20:
                yield _batch(by_sensor.pop(place[0]))
        yield from map(_batch, by_sensor.values())

    def blobs(self, run: str) -> Iterator[Any]:
        insert = self._ring.prepare("INSERT INTO bench_blob (sensor, day, ts, data) VALUES (?, ?, ?, ?)")
        data = bytes(100 * 16)
        for number, place in enumerate(self._rows(run)):
            if number % (100 // METRICS) == 0:
                yield insert.bind((f"{place[0]}-{number}", *place[1:], data))


class Acsylla:
    """The points table through the other driver, on a loop of its own."""

    BATCH = 20
    IN_FLIGHT = 128

    def __init__(self, hosts: list[str], options: dict[str, Any]) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._connect(hosts, options))

    async def _connect(self, hosts: list[str], options: dict[str, Any]) -> None:
        ca_file = options["ca_file"]
        cluster = acsylla.create_cluster(
            hosts,
            port=options["port"],
            username=options["username"],
            password=options["password"],
            ssl_enabled=bool(ca_file),
            ssl_trusted_cert=Path(ca_file).read_text() if ca_file else None,
            consistency=acsylla.Consistency.LOCAL_QUORUM,
            protocol_version=4,
        )
        self._session = await cluster.create_session(keyspace=options["keyspace"])
        self._insert = await self._session.create_prepared(_INSERT_POINTS)

    def write(self, batches: list[Batch]) -> None:
        self._loop.run_until_complete(self._write(batches))

    async def _write(self, batches: list[Batch]) -> None:
        places = asyncio.Semaphore(self.IN_FLIGHT)

        async def send(made: Any) -> None:
            async with places:
                await self._session.execute_batch(made)

        under_way = []
        for batch in batches:
            partitions: dict[tuple[str, int], list[int]] = {}
            for index, (sensor, time_ms) in enumerate(zip(batch.sensors, batch.times_ms, strict=True)):
                partitions.setdefault((sensor, time_ms // DAY_MS), []).append(index)
            for (sensor, day), indexes in partitions.items():
                for first in range(0, len(indexes), self.BATCH):
                    made = acsylla.create_batch_unlogged()
                    for index in indexes[first : first + self.BATCH]:
                        values = dict(zip(batch.layouts[index], batch.values[index], strict=True))
                        made.add_statement(
                            self._insert.bind(
                                [sensor, day, batch.times_ms[index], 1, values, None, batch.received, 0]
                            )
                        )
                    under_way.append(asyncio.create_task(send(made)))
            await asyncio.sleep(0)
        await asyncio.gather(*under_way)

    def close(self) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()


def _batch(members: list[Any]) -> Any:
    batch = BatchStatement(batch_type=BatchType.UNLOGGED)
    for member in members:
        batch.add(member)
    batch.is_idempotent = True
    return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    add_arguments(parser)
    parser.add_argument("--points", type=int, default=200_000, help="points of one run")
    parser.add_argument("--request", type=int, default=1_000, help="points a request, in lines of eight")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turn; the best counts")
    parser.add_argument("--layout-points", type=int, default=40_000, help="points of one run of a layout")
    arguments = parser.parse_args()
    start_s = (int(time.time()) - 40 * 86_400) // 86_400 * 86_400
    requests = arguments.points // arguments.request
    results: dict[str, list[float]] = {}
    with ring(arguments) as (hosts, options), tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        digest = hashlib.sha256(b"bench").hexdigest()
        (folder / "tokens.json").write_text(json.dumps([{"id": "b", "sha256": digest, "roles": ["write"]}]))
        store = CassandraStore(hosts, **options)
        store.ping()
        other = Acsylla(hosts, options) if acsylla else None
        if other is None:
            print("acsylla is not here (pip install -r bench/requirements.txt): going on without it")
        layouts = Layouts(store, arguments.layout_points, start_s)

        def measure(name: str, points: int, work: Callable[[], object]) -> None:
            began = time.perf_counter()
            work()
            results.setdefault(name, []).append(points / (time.perf_counter() - began))

        with process("receive", environment(hosts, options, folder)) as port:
            over_http(port, bodies("warm", points=arguments.request, requests=40, start_s=start_s))
            for turn in range(arguments.rounds):
                given = bodies(f"r{turn}-", points=arguments.request, requests=requests, start_s=start_s)
                batches = [line_protocol.decode(b, now_ms=0).batch for b in given]
                for batch in batches:
                    batch.received = time.time_ns() // 1_000
                statements = [s for b in batches for s in store._point_statements([b], set())]
                measure(
                    "raw driver, the store's statements",
                    arguments.points,
                    lambda s=statements: store._ring.run(s),
                )
                measure("the store alone", arguments.points, lambda b=batches: store.write_many(b))
                if other is not None:
                    measure("acsylla, the same rows", arguments.points, lambda b=batches: other.write(b))
                given = bodies(f"h{turn}-", points=arguments.request, requests=requests, start_s=start_s)
                measure("through HTTP", arguments.points, lambda g=given: over_http(port, g))
                for name, make in (
                    ("row per time and metric, one a statement", layouts.single_metrics),
                    ("row per time and metric, 8 in a batch", layouts.batched_metrics),
                    ("row per time with a map of 8, one a statement", layouts.single_maps),
                    ("row per time with a map of 8, 20 in a batch", layouts.batched_maps),
                    ("blob of 100 points, one a statement", layouts.blobs),
                ):
                    run = f"l{turn}-{time.time_ns()}-"
                    measure(name, arguments.layout_points, lambda m=make, r=run: store._ring.run(m(r)))
        if other is not None:
            other.close()
        store.close()
    base = max(results["raw driver, the store's statements"])
    print(
        table(
            ("contestant", "points/s", "of the raw driver"),
            [(name, rate(max(found)), f"{max(found) / base:.0%}") for name, found in results.items()],
        )
    )


if __name__ == "__main__":
    main()
