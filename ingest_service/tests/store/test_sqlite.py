"""The embedded store: the contract, and what only a file can do wrong."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract import DAY, SHARDS, StoreContract, batch, values

from fieldring.errors import ConfigurationError, StoreUnavailable
from fieldring.model import DAY_MS
from fieldring.store.sqlite import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "store.sqlite", mark_shards=SHARDS, retention_days=10_950)
    yield made
    made.close()


class TestSqliteStore(StoreContract):
    pass


def test_written_points_are_there_after_reopening(tmp_path: Path) -> None:
    """What was written is committed: another process (here a second store) reads it at once."""
    first = SqliteStore(tmp_path / "s.sqlite")
    first.write(batch(("a", DAY, {"x": 1.0}), received=1))
    second = SqliteStore(tmp_path / "s.sqlite")
    assert {(DAY, "x"): 1.0} == values(second, "a")
    first.close()
    second.close()
    first.close()


def test_failed_write_leaves_nothing_and_is_marked_again(tmp_path: Path) -> None:
    """A database that another process locks is StoreUnavailable; the retry stores points and marks."""
    store = SqliteStore(tmp_path / "s.sqlite", mark_shards=1, clock=lambda: 600.0)
    store._writer.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        store.write(batch(("a", DAY, {"x": 1.0}), received=1))
    other.execute("ROLLBACK")
    other.close()
    assert {} == values(store, "a")
    store.write(batch(("a", DAY, {"x": 1.0}), received=1))
    assert {(DAY, "x"): 1.0} == values(store, "a")
    assert [("a", DAY)] == store.marks(0, 10)
    store.close()


def test_points_past_their_retention_are_deleted(tmp_path: Path) -> None:
    """Once an hour, as a TTL would: older points go, younger stay."""
    now = [DAY / 1000 + 86_400]
    store = SqliteStore(tmp_path / "s.sqlite", retention_days=10, clock=lambda: now[0])
    store.write(batch(("a", DAY, {"x": 1.0}), ("a", DAY + DAY_MS, {"x": 2.0}), received=1))
    now[0] += 10 * 86_400 - 3600
    store.write(batch(("b", DAY + 9 * DAY_MS, {"x": 1.0}), received=2))
    assert {(DAY + DAY_MS, "x"): 2.0} == values(store, "a", DAY, DAY + 3 * DAY_MS)
    store.close()


def test_unusable_file_names_the_setting(tmp_path: Path) -> None:
    """No directory, a file that is no database, a newer schema: each refused with the setting's name."""
    with pytest.raises(ConfigurationError, match="FIELDRING_SQLITE_PATH"):
        SqliteStore(tmp_path / "missing" / "s.sqlite")
    (tmp_path / "junk").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        SqliteStore(tmp_path / "junk")
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(ConfigurationError, match="schema 99"):
        SqliteStore(tmp_path / "newer")


def test_closed_store_is_unavailable(tmp_path: Path) -> None:
    """After close every call says so."""
    store = SqliteStore(tmp_path / "s.sqlite")
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.write(batch(("a", DAY, {"x": 1.0}), received=1))
    with pytest.raises(StoreUnavailable, match="closed"):
        store.ping()


def test_two_processes_may_create_the_file_at_once(tmp_path: Path) -> None:
    """Workers that start together on an empty path all get a working store."""
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def make() -> None:
        barrier.wait()
        try:
            SqliteStore(tmp_path / "s.sqlite").close()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failures
