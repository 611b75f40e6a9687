"""The analyser over a real Cassandra node: what the embedded store cannot show."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "store"))
from fieldring.analyse import Worker
from fieldring.model import HOUR_MS, Batch, Flag, Row
from fieldring.quality import RulesFile
from fieldring.query import PointsQuery, stream
from fieldring.store.cassandra import CassandraStore
from ring import Node, running_node

pytestmark = [pytest.mark.cassandra, pytest.mark.timeout(300)]

SHARDS = 2
T0 = 1_000_000_000_000 // HOUR_MS * HOUR_MS


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("node")) as made:
        yield made


@pytest.fixture
def store(node: Node) -> Iterator[CassandraStore]:
    options = node.options(node.make_keyspace())
    made = CassandraStore(["127.0.0.1"], mark_shards=SHARDS, retention_days=10_950, **options)
    yield made
    made.close()


@pytest.fixture
def worker(store: CassandraStore) -> Iterator[Worker]:
    """Running, as ``fieldring analyse`` runs it."""
    worker = Worker(store, RulesFile(), owner="a", shards=SHARDS, interval_s=0.5, mark_ttl_s=3600)
    thread = threading.Thread(target=worker.run)
    thread.start()
    yield worker
    worker.stop()
    thread.join(30)
    assert not thread.is_alive()


def put(store: CassandraStore, sensor: str, points: dict[int, float]) -> None:
    batch = Batch(received=time.time_ns() // 1000)
    for time_ms, value in points.items():
        batch.append(Row(sensor, time_ms, ("no2",), (value,)))
    store.write(batch)


def wait_for(store: CassandraStore, sensor: str, time_ms: int, flag: Flag, *, seconds: float) -> float:
    began = time.monotonic()
    query = PointsQuery(sensor=sensor, start_ms=time_ms, end_ms=time_ms + 1)
    while [flag] != (found := [point.flag for point in stream(store, query)]):
        assert time.monotonic() - began < seconds, found
        time.sleep(0.1)
    return time.monotonic() - began


def test_flags_follow_the_points_within_seconds(store: CassandraStore, worker: Worker) -> None:
    """New points, a point after them that makes a spike, and a correction that takes it away."""
    put(store, "a", {T0: 10.0, T0 + 60_000: 300.0})
    wait_for(store, "a", T0, Flag.GOOD, seconds=15)
    put(store, "a", {T0 + 120_000: 10.0})
    wait_for(store, "a", T0 + 60_000, Flag.FAIL, seconds=15)
    put(store, "a", {T0 + 60_000: 11.0})
    wait_for(store, "a", T0 + 60_000, Flag.GOOD, seconds=15)


def test_live_points_do_not_wait_for_an_import(store: CassandraStore, worker: Worker) -> None:
    """A year of hours is being judged meanwhile, and all of them are in the end."""
    year = {T0 + i * HOUR_MS: 10.0 + i % 5 for i in range(8760)}
    put(store, "import", year)
    put(store, "live", {T0: 5000.0})
    wait_for(store, "live", T0, Flag.FAIL, seconds=20)
    began = time.monotonic()
    query = PointsQuery(sensor="import", flags=frozenset({Flag.NOT_EVALUATED}))
    while left := sum(1 for _ in stream(store, query)):
        assert time.monotonic() - began < 200, left
        time.sleep(1)
    print(f"8760 hours judged in {time.monotonic() - began:.1f} s")


def test_a_second_analyser_takes_over(store: CassandraStore) -> None:
    """When the first one is gone, its leases run out; the cursor goes on where it was."""
    first = Worker(store, RulesFile(), owner="a", shards=SHARDS, mark_ttl_s=3600, lease_ttl_s=3)
    second = Worker(store, RulesFile(), owner="b", shards=SHARDS, mark_ttl_s=3600, lease_ttl_s=3)
    first.round()
    second.round()
    put(store, "a", {T0: 5000.0})
    second.round()
    assert [Flag.NOT_EVALUATED] == [p.flag for p in stream(store, PointsQuery(sensor="a"))]
    time.sleep(4)
    second.round()
    assert [Flag.FAIL] == [p.flag for p in stream(store, PointsQuery(sensor="a"))]
