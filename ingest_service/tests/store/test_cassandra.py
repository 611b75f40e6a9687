"""The ring's store against a real node: the contract, and what only a ring can do wrong."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract import DAY, OLD, SHARDS, StoreContract, batch, values

from fieldring.errors import ConfigurationError, StoreUnavailable
from fieldring.model import DAY_MS, Batch, Row
from fieldring.store.cassandra import CassandraStore
from ring import Node, running_node, wait_until_up

pytestmark = [pytest.mark.cassandra, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("node")) as made:
        yield made


@pytest.fixture(scope="module")
def keyspace(node: Node) -> str:
    return node.make_keyspace()


@pytest.fixture(scope="module")
def shared(node: Node, keyspace: str) -> Iterator[CassandraStore]:
    made = CassandraStore(["127.0.0.1"], mark_shards=SHARDS, retention_days=10_950, **node.options(keyspace))
    yield made
    made.close()


@pytest.fixture
def store(shared: CassandraStore) -> CassandraStore:
    return shared


class TestCassandraStore(StoreContract):
    pass


class TestRows:
    def test_write_timestamp_is_the_receipt_and_the_ttl_is_the_datas_own(
        self, node: Node, keyspace: str, sensor: str
    ) -> None:
        """A point of yesterday with 10 days of retention expires nine days from now, whenever it came."""
        now = int(time.time())
        store = CassandraStore(["127.0.0.1"], retention_days=10, **node.options(keyspace))
        yesterday = (now - 86_400) * 1000
        received = 1_234_567_890_123_456
        store.write(batch((sensor, yesterday, {"a": 1.0, "t": "x"}), received=received))
        store.close()
        with node.session() as session:
            row = session.execute(
                "SELECT WRITETIME(numbers), WRITETIME(texts), TTL(numbers), TTL(texts) "
                f"FROM {keyspace}.points WHERE sensor = %s AND day = %s",
                (sensor, yesterday // DAY_MS),
            ).one()
        assert (received, received) == (row[0], row[1])
        assert abs(9 * 86_400 - row[2]) < 60
        assert abs(9 * 86_400 - row[3]) < 60

    def test_retention_beyond_the_ttl_limit_writes_none(
        self, node: Node, keyspace: str, store: CassandraStore, sensor: str
    ) -> None:
        """Cassandra's TTL ends at 20 years: data of 2001 under 30 years of retention gets none."""
        store.write(batch((sensor, OLD, {"a": 1.0}), received=1))
        with node.session() as session:
            rows = list(
                session.execute(
                    f"SELECT TTL(numbers) FROM {keyspace}.points WHERE sensor = %s AND day = %s",
                    (sensor, OLD // DAY_MS),
                )
            )
        assert [None] == [row[0] for row in rows]

    def test_number_row_has_no_tombstone(
        self, node: Node, keyspace: str, store: CassandraStore, sensor: str
    ) -> None:
        """The map that a row does not have is unset, not null."""
        store.write(batch((sensor, DAY, {"a": 1.0}), received=1))
        with node.session() as session:
            trace_of = session.execute(
                f"SELECT texts, WRITETIME(texts) FROM {keyspace}.points WHERE sensor = %s AND day = %s",
                (sensor, DAY // DAY_MS),
                trace=True,
            )
            assert [(None, None)] == [tuple(row) for row in trace_of]
            events = [event.description for event in trace_of.get_query_trace(max_wait_sec=10).events]
        read = [text for text in events if text.startswith("Read ") and "tombstone" in text]
        assert read
        assert [] == [text for text in read if "0 tombstone" not in text]

    def test_overload_of_one_write_is_bounded_and_whole(self, node: Node, keyspace: str, sensor: str) -> None:
        """More statements than the window allows at once are all stored."""
        store = CassandraStore(["127.0.0.1"], in_flight=2, retention_days=10_950, **node.options(keyspace))
        store.write(batch(*((f"{sensor}-{n}", DAY, {"a": float(n)}) for n in range(300)), received=1))
        assert 300 == sum(len(values(store, f"{sensor}-{n}")) for n in range(300))
        store.close()


class TestRefusals:
    def test_wrong_password_is_unavailable_and_kept_trying(self, node: Node, keyspace: str) -> None:
        """A refused login looks like a ring without its auth replicas: unavailable, then it recovers."""
        account = f"u{uuid.uuid4().hex[:8]}"
        options = node.options(keyspace) | {"username": account, "password": "right"}
        store = CassandraStore(["127.0.0.1"], **options)
        with pytest.raises(StoreUnavailable, match=r"[Aa]uthentic|[Bb]ad credentials|incorrect"):
            store.ping()
        with pytest.raises(StoreUnavailable):
            store.ping()
        with node.session() as session:
            session.execute(
                f"CREATE ROLE {account} WITH LOGIN = true AND PASSWORD = 'right' AND SUPERUSER = true"
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                store.ping()
                break
            except StoreUnavailable:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        store.close()

    def test_certificate_of_another_ca_is_refused(self, node: Node, keyspace: str) -> None:
        """A node whose certificate this CA did not sign gets no credentials."""
        options = node.options(keyspace) | {"ca_file": str(Path(node.ca_file).with_name("other_ca.pem"))}
        store = CassandraStore(["127.0.0.1"], **options)
        with pytest.raises(StoreUnavailable, match=r"CERTIFICATE_VERIFY_FAILED|certificate"):
            store.ping()
        store.close()

    def test_certificate_for_another_address_is_refused(self, node: Node, keyspace: str) -> None:
        """The certificate must name the address that was dialled: here it names 127.0.0.1 only."""
        proxy = _Forwarder("127.0.0.2", node.port)
        options = node.options(keyspace) | {"port": proxy.port}
        store = CassandraStore(["127.0.0.2"], **options)
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.2.*(not valid|mismatch|CERTIFICATE)"):
            store.ping()
        store.close()
        proxy.close()

    def test_unreachable_ring_fails_fast_after_the_first_try(self) -> None:
        """No node listens: unavailable, and the next call does not wait again."""
        store = CassandraStore(["127.0.0.1"], port=1, request_timeout_s=3)
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            store.ping()
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.write(batch(("a", DAY, {"x": 1.0}), received=1))
        assert time.monotonic() - started < 0.5
        store.close()

    def test_missing_schema_is_unavailable_and_says_so(self, node: Node) -> None:
        """A keyspace that is not there yet is the ring's state, not the caller's fault."""
        store = CassandraStore(["127.0.0.1"], **node.options("not_there_yet"))
        with pytest.raises(StoreUnavailable, match="not_there_yet"):
            store.write(batch(("a", DAY, {"x": 1.0}), received=1))
        store.close()

    def test_unreadable_ca_names_the_setting(self) -> None:
        """A CA file that does not exist is the operator's fault and refused at once."""
        with pytest.raises(ConfigurationError, match="FIELDRING_CASSANDRA_CA_FILE"):
            CassandraStore(["127.0.0.1"], ca_file="/does/not/exist.pem")


class TestOutage:
    def test_paused_node_times_out_and_serves_again(self, node: Node, keyspace: str, sensor: str) -> None:
        """A hung peer costs the deadline, not for ever; afterwards the same store works again."""
        store = CassandraStore(
            ["127.0.0.1"], request_timeout_s=2, retention_days=10_950, **node.options(keyspace)
        )
        store.write(batch((sensor, DAY, {"a": 1.0}), received=1))
        node.docker("pause", node.container)
        try:
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                store.write(batch((sensor, DAY + 1, {"a": 2.0}), received=2))
            assert time.monotonic() - started < 10
        finally:
            node.docker("unpause", node.container)
        _eventually(lambda: store.write(batch((sensor, DAY + 1, {"a": 2.0}), received=2)))
        assert {(DAY, "a"): 1.0, (DAY + 1, "a"): 2.0} == values(store, sensor)
        store.close()

    def test_killed_node_is_unavailable_and_found_again_with_all_its_rows(
        self, node: Node, keyspace: str, sensor: str
    ) -> None:
        """kill -9: what was acknowledged is there after the restart, and the session comes back by itself."""
        store = CassandraStore(
            ["127.0.0.1"], request_timeout_s=3, retention_days=10_950, **node.options(keyspace)
        )
        acknowledged = 0
        stop = threading.Event()

        def feed() -> None:
            nonlocal acknowledged
            while not stop.is_set():
                try:
                    store.write(batch((sensor, DAY + acknowledged, {"a": float(acknowledged)}), received=1))
                except StoreUnavailable:
                    return
                acknowledged += 1

        feeder = threading.Thread(target=feed)
        feeder.start()
        time.sleep(2)
        node.docker("kill", "-s", "KILL", node.container)
        feeder.join(30)
        stop.set()
        assert acknowledged > 10
        with pytest.raises(StoreUnavailable):
            store.ping()
        node.docker("start", node.container)
        wait_until_up(node)
        _eventually(store.ping)
        found = values(store, sensor)
        assert {(DAY + n, "a"): float(n) for n in range(acknowledged)}.items() <= found.items()
        store.close()


def test_write_throughput_is_printed(
    node: Node, keyspace: str, store: CassandraStore, sensor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """100,000 points in batches of 1,000 rows: all stored and read back equal; the figures are printed."""
    layout = tuple(f"metric_{n}" for n in range(8))
    batches = []
    for number in range(13):
        made = Batch(received=number + 1)
        for n in range(1000):
            row = number * 1000 + n
            made.append(
                Row(
                    f"{sensor}-{row % 10}",
                    DAY + row // 10 * 1000,
                    layout,
                    tuple(row + m / 8 for m in range(8)),
                )
            )
        batches.append(made)
    points = sum(made.points for made in batches)
    _eventually(lambda: store.write(batches[0]))  # the node may just have been restarted
    started = time.perf_counter()
    for made in batches[1:]:
        store.write(made)
    written = (points - batches[0].points) / (time.perf_counter() - started)
    started = time.perf_counter()
    found = [list(store.points(f"{sensor}-{n}", start_ms=DAY, end_ms=DAY + DAY_MS)) for n in range(10)]
    read = sum(map(len, found)) / (time.perf_counter() - started)
    with capsys.disabled():
        print(f"\none node, one thread: written {written:,.0f} points/s, read {read:,.0f} points/s")
    assert points == sum(map(len, found)) == 104_000
    for n, own in enumerate(found):
        assert [
            (DAY + k * 1000, f"metric_{m}", k * 10 + n + m / 8) for k in range(1300) for m in range(8)
        ] == [(p.time_ms, p.metric, p.value) for p in own]


def _eventually(action: Any, *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            action()
            return
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


class _Forwarder:
    """A plain TCP forwarder on another address of this machine."""

    def __init__(self, host: str, target_port: int) -> None:
        self._target = target_port
        self._socket = socket.create_server((host, 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self._target))
            for source, sink in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    def close(self) -> None:
        self._socket.close()
