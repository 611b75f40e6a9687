"""Tables over CQL, for restoring: what they are, making what is missing, emptying what is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from ansible.module_utils.cassandra_node_backup import SYSTEM_KEYSPACES, repeatable, without_id
from ansible.module_utils.cassandra_node_cql import identifier, split_statements


class Tables:
    """`execute(statement, parameters)` gives rows; `changes` lists what was, or would be, done."""

    def __init__(self, execute: Callable[..., Any], check_mode: bool) -> None:
        self.execute = execute
        self.check_mode = check_mode
        self.changes: list[str] = []

    def columns(self) -> dict[str, dict[str, list[str]]]:
        """{keyspace.table: {column: [type, kind]}} of every keyspace but the system's."""
        found: dict[str, dict[str, list[str]]] = {}
        rows = self.execute(
            "SELECT keyspace_name, table_name, column_name, type, kind FROM system_schema.columns", None
        )
        for row in rows:
            if row.keyspace_name not in SYSTEM_KEYSPACES:
                table = found.setdefault(f"{row.keyspace_name}.{row.table_name}", {})
                table[row.column_name] = [row.type, row.kind]
        return found

    def dropped(self) -> dict[str, dict[str, str]]:
        """{keyspace.table: {column: when it was dropped}}, spelt as the names of backups."""
        found: dict[str, dict[str, str]] = {}
        # As a number: columns of Cassandra's own tables were dropped at a time that is no date.
        rows = self.execute(
            "SELECT keyspace_name, table_name, column_name, toUnixTimestamp(dropped_time) AS dropped_ms "
            "FROM system_schema.dropped_columns",
            None,
        )
        for row in rows:
            if row.keyspace_name not in SYSTEM_KEYSPACES:
                table = found.setdefault(f"{row.keyspace_name}.{row.table_name}", {})
                at = datetime.fromtimestamp(row.dropped_ms / 1000, UTC)
                table[row.column_name] = at.strftime("%Y%m%dT%H%M%SZ")
        return found

    def keyspaces(self) -> list[str]:
        return [
            row.keyspace_name
            for row in self.execute("SELECT keyspace_name FROM system_schema.keyspaces", None)
        ]

    def not_empty(self, tables: Iterable[str]) -> list[str]:
        return [
            table for table in tables if list(self.execute(f"SELECT * FROM {quoted(table)} LIMIT 1", None))
        ]

    def create(self, schema: dict[str, str]) -> None:
        """One that is there already was left by a run that ended in the middle of its statements."""
        for table in sorted(schema):
            self.changes.append(f"table {table} made")
            if not self.check_mode:
                for statement in split_statements(schema[table]):
                    self.execute(repeatable(without_id(statement)), None)

    def truncate(self, tables: Iterable[str]) -> None:
        for table in tables:
            self.changes.append(f"table {table} emptied (a snapshot of it was kept)")
            if not self.check_mode:
                self.execute(f"TRUNCATE {quoted(table)}", None)


def quoted(table: str) -> str:
    return ".".join(identifier(part) for part in table.split("."))
