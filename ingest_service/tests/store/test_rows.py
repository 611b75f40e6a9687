"""Statements as we pack them against the driver's own binding of the same values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cassandra.cqltypes import DoubleType, Int32Type, LongType, MapType, UTF8Type
from cassandra.protocol import ColumnMetadata
from cassandra.query import UNSET_VALUE, BatchStatement, PreparedStatement
from hypothesis import given
from hypothesis import strategies as st

from fieldring.model import Batch, Row, Value
from fieldring.store._rows import PartitionWriter, shape_of

TYPES = {
    "sensor": UTF8Type,
    "day": Int32Type,
    "ts": LongType,
    "layout": LongType,
    "numbers": MapType.apply_parameters([UTF8Type, DoubleType]),
    "texts": MapType.apply_parameters([UTF8Type, UTF8Type]),
    "[timestamp]": LongType,
    "[ttl]": Int32Type,
}
INSERT = PreparedStatement(
    [ColumnMetadata("fieldring", "points", name, kind) for name, kind in TYPES.items()],
    b"query-id",
    [0, 1],
    "INSERT INTO points ...",
    "fieldring",
    4,
    None,
    None,
)
INSERT.is_idempotent = True
RECEIVED = 1_700_000_000_000_000

metrics = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"), max_size=8),
    min_size=1,
    max_size=5,
)


def batch_of(sensor: str, rows: list[tuple[int, dict[str, Value]]]) -> Batch:
    batch = Batch(received=RECEIVED)
    for time_ms, values in rows:
        batch.append(Row(sensor, time_ms, tuple(values), tuple(values.values())))
    return batch


def packed(batch: Batch, *, day: int, ttl_s: int) -> list[Any]:
    writer = PartitionWriter(INSERT, batch.sensors[0], day)
    return list(writer.statements([(batch, index, ttl_s) for index in range(len(batch))]))


def rows_of(statements: list[Any]) -> Iterator[list[Any]]:
    for statement in statements:
        if isinstance(statement, BatchStatement):
            for prepared, query_id, values in statement._statements_and_parameters:
                assert (prepared, query_id) == (True, b"query-id")
                yield list(values)
        else:
            yield list(statement.values)


@given(
    sensor=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    rows=st.lists(st.tuples(st.integers(-(2**50), 2**50), metrics), min_size=1, max_size=5),
    day=st.integers(-10_000, 100_000),
    ttl_s=st.integers(0, 630_720_000),
)
def test_values_and_routing_as_the_driver_binds_them(
    sensor: str, rows: list[tuple[int, dict[str, Value]]], day: int, ttl_s: int
) -> None:
    """Every column, byte by byte, in the order of the rows."""
    statements = packed(batch_of(sensor, rows), day=day, ttl_s=ttl_s)
    expected = []
    for time_ms, values in rows:
        names = tuple(values)
        shape = shape_of(names, tuple(isinstance(value, str) for value in values.values()))
        # The ring sorts frozen maps by key.
        numbers = {name: values[name] for name in sorted(values) if not isinstance(values[name], str)}
        texts = {name: values[name] for name in sorted(values) if isinstance(values[name], str)}
        bound = INSERT.bind(
            (sensor, day, time_ms, shape.key, numbers or UNSET_VALUE, texts or UNSET_VALUE, RECEIVED, ttl_s)
        )
        expected.append(bound)
    assert list(rows_of(statements)) == [bound.values for bound in expected]
    for statement in statements:
        assert statement.routing_key == expected[0].routing_key
        assert statement.keyspace == "fieldring"
        assert statement.is_idempotent


@pytest.mark.parametrize(("count", "statements"), [(1, 1), (2, 1), (100, 3)])
def test_batches_stay_below_the_rings_warning(count: int, statements: int) -> None:
    """5 KiB by the ring's own count of values."""
    batch = batch_of("s", [(number, {"a": 1.0, "b": 2.0}) for number in range(count)])
    made = packed(batch, day=1, ttl_s=0)
    assert len(made) == statements
    for statement in made:
        size = sum(len(value) for row in rows_of([statement]) for value in row if isinstance(value, bytes))
        assert size < 5 * 1024


def test_a_row_that_is_larger_goes_alone() -> None:
    """It cannot be made smaller."""
    batch = batch_of("s", [(1, {"a": 1.0}), (2, {"t": "x" * 10_000}), (3, {"a": 1.0})])
    made = packed(batch, day=1, ttl_s=0)
    assert [isinstance(statement, BatchStatement) for statement in made] == [False, False, False]
