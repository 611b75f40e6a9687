"""Accounts, replication and schema of a ring over CQL: what is, what should be, and the statements between.

The functions above `Database` are pure. `Database` needs a session; nothing here prints a password.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

SYSTEM_KEYSPACES = ("system_auth", "system_distributed", "system_traces")
DEFAULT_ROLE = "cassandra"
GRANTED = frozenset(["SELECT", "MODIFY"])
STRATEGY = "NetworkTopologyStrategy"
# Of SimpleStrategy, as Cassandra itself makes system_distributed on a ring of any size.
OWN_FACTOR_MAX = 3


class CqlError(Exception):
    """What was asked for cannot or must not be done."""


def literal(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))


def identifier(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def split_statements(text: str) -> list[str]:
    """The statements of a migration: separated by `;`, comments left out, quotes respected."""
    pattern = re.compile(
        r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\$\$.*?\$\$|--[^\n]*|//[^\n]*|/\*.*?\*/|;|.", re.DOTALL
    )
    statements: list[str] = []
    current: list[str] = []
    for token in pattern.findall(text):
        if token == ";":
            statements.append("".join(current).strip())
            current = []
        elif not token.startswith(("--", "//", "/*")):
            current.append(token)
    statements.append("".join(current).strip())
    return [statement for statement in statements if statement]


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def replication_of(row: Any) -> dict[str, int] | None:
    """{datacentre: factor} of a row of system_schema.keyspaces; None for another strategy."""
    options = dict(row)
    if not options.pop("class", "").endswith(STRATEGY):
        return None
    return {datacenter: int(factor) for datacenter, factor in options.items()}


def factor_of(row: Any) -> int:
    """Copies of a row of another strategy, wherever they are; 0 where it names none."""
    return int(dict(row).get("replication_factor", 0))


def replication_clause(replication: dict[str, int]) -> str:
    parts = [f"'class': {literal(STRATEGY)}"]
    parts += [f"{literal(dc)}: {factor}" for dc, factor in sorted(replication.items())]
    return "{{{}}}".format(", ".join(parts))


def grant_statements(role: str, keyspaces: list[str], present: Mapping[str, Iterable[str]]) -> list[str]:
    """GRANT and REVOKE statements that lead from `present` ({resource: permissions}) to the wanted."""
    wanted = {f"data/{keyspace}": set(GRANTED) for keyspace in keyspaces}
    statements = []
    for resource in sorted(set(wanted) | set(present)):
        have, want = set(present.get(resource, ())), wanted.get(resource, set())
        parts = resource.split("/")
        if parts[0] != "data" or len(parts) != 2:
            continue
        where = f"KEYSPACE {identifier(parts[1])}"
        statements += [f"GRANT {p} ON {where} TO {identifier(role)}" for p in sorted(want - have)]
        statements += [f"REVOKE {p} ON {where} FROM {identifier(role)}" for p in sorted(have - want)]
    return statements


def pending_migrations(files: list[dict[str, str]], recorded: dict[str, str]) -> list[dict[str, str]]:
    """Those of `files` ([{name, content}], in order) that are not in `recorded` ({name: checksum})."""
    pending = []
    for migration in files:
        name = migration["name"]
        if name not in recorded:
            pending.append(migration)
        elif recorded[name] != checksum(migration["content"]):
            raise CqlError(
                f"CN-118: {name} was changed after it was applied (recorded {recorded[name][:12]}, now "
                f"{checksum(migration['content'])[:12]}). What a ring has applied stays as it is: restore "
                "the file and put the change into a new one."
            )
        elif pending:
            raise CqlError(
                f"CN-118: {name} is applied, but {pending[0]['name']}, which stands before it, is not. "
                "Migrations are applied in order: give the new file a name that sorts last."
            )
    return pending


def with_raised_copies(
    present: Mapping[str, dict[str, int] | None], wanted: Mapping[str, dict[str, int]]
) -> dict[str, dict[str, int]]:
    """`wanted`, but no less for a system keyspace than it has: no variable says it, a hand has raised it.

    A data centre that is not wanted at all stays out, for `refuse_fewer_copies` to judge.
    """
    raised = dict(wanted)
    for name in wanted.keys() & set(SYSTEM_KEYSPACES):
        found = present.get(name) or {}
        raised[name] = {dc: max(factor, found.get(dc, 0)) for dc, factor in wanted[name].items()}
    return raised


def refuse_fewer_copies(
    present: Mapping[str, dict[str, int] | None],
    wanted: Mapping[str, dict[str, int]],
    factors: Mapping[str, int],
) -> None:
    """Copies that are given up are gone for every read that they alone could have answered.

    `factors`: {keyspace: copies} of those that are not replicated per data centre.
    """
    fewer = [
        f"{name} in {datacenter}: {factor} -> {wanted[name].get(datacenter, 0)}"
        for name in sorted(wanted)
        for datacenter, factor in sorted((present.get(name) or {}).items())
        if wanted[name].get(datacenter, 0) < factor
    ]
    fewer += [
        f"{name} in all: {factors[name]} -> {sum(wanted[name].values())}"
        for name in sorted(wanted.keys() & factors.keys())
        if sum(wanted[name].values()) < factors[name]
        # A small ring has fewer nodes than that, each of which keeps its copy.
        and not (name in SYSTEM_KEYSPACES and factors[name] <= OWN_FACTOR_MAX)
    ]
    if fewer:
        raise CqlError(
            f"CN-125: fewer copies than the ring has now ({'; '.join(fewer)}). Nothing was altered. Restore "
            "the replication in the inventory; a data centre that goes for good is taken out by "
            "remove_datacenter, and one factor is lowered by hand after a full repair."
        )


class Database:
    """One login. `execute(statement, parameters)` gives rows; `changes` lists what was, or would be, done."""

    def __init__(self, execute: Callable[[str, Any], Any], check_mode: bool) -> None:
        self.execute = execute
        self.check_mode = check_mode
        self.changes: list[str] = []
        self.replication_changed: list[str] = []

    def change(self, what: str, statement: str) -> None:
        self.changes.append(what)
        if not self.check_mode:
            self.execute(statement, None)

    def roles(self) -> dict[str, tuple[bool, bool]]:
        rows = self.execute("SELECT role, can_login, is_superuser FROM system_auth.roles", None)
        return {row.role: (bool(row.can_login), bool(row.is_superuser)) for row in rows}

    def ensure_superuser(self, name: str, password: str) -> None:
        """Only when logged in as the default role, at a ring's first start."""
        options = f"WITH PASSWORD = {literal(password)} AND SUPERUSER = true AND LOGIN = true"
        verb = "ALTER" if name in self.roles() else "CREATE"
        self.change(f"superuser {name}", f"{verb} ROLE {identifier(name)} {options}")

    def disable_default_role(self) -> None:
        if self.roles().get(DEFAULT_ROLE, (False, False)) != (False, False):
            password = literal(secrets.token_urlsafe(32))
            options = f"WITH PASSWORD = {password} AND SUPERUSER = false AND LOGIN = false"
            self.change(f"default role {DEFAULT_ROLE} disabled", f"ALTER ROLE {DEFAULT_ROLE} {options}")

    def replications(self) -> dict[str, Any]:
        rows = self.execute("SELECT keyspace_name, replication FROM system_schema.keyspaces", None)
        return {row.keyspace_name: row.replication for row in rows}

    def keyspaces(self) -> dict[str, dict[str, int] | None]:
        return {name: replication_of(row) for name, row in self.replications().items()}

    def ensure_keyspaces(self, wanted: dict[str, dict[str, int]]) -> None:
        """`wanted`: {keyspace: {datacentre: factor}}."""
        found = self.replications()
        present = {name: replication_of(row) for name, row in found.items()}
        factors = {name: factor_of(found[name]) for name, copies in present.items() if copies is None}
        wanted = with_raised_copies(present, wanted)
        refuse_fewer_copies(present, wanted, factors)
        for name, replication in wanted.items():
            if name in present and present[name] == replication:
                continue
            verb = "ALTER" if name in present else "CREATE"
            if name in present:
                self.replication_changed.append(name)
            self.change(
                f"keyspace {name}: {replication}",
                f"{verb} KEYSPACE {identifier(name)} WITH replication = {replication_clause(replication)}",
            )

    def ensure_account(self, account: dict[str, Any], can_log_in: Callable[[str, str], bool]) -> None:
        name = account["name"]
        options = "WITH PASSWORD = {} AND SUPERUSER = false AND LOGIN = true".format(
            literal(account["password"])
        )
        present = self.roles().get(name)
        if present is None:
            self.change(f"account {name}", f"CREATE ROLE {identifier(name)} {options}")
        elif present != (True, False) or not can_log_in(name, account["password"]):
            self.change(f"account {name}: password or rights", f"ALTER ROLE {identifier(name)} {options}")
        rows = self.execute(
            "SELECT resource, permissions FROM system_auth.role_permissions WHERE role = %s", (name,)
        )
        granted = {row.resource: set(row.permissions) for row in rows}
        for statement in grant_statements(name, account["keyspaces"], granted):
            self.change(statement, statement)

    def migrate(self, keyspace: str, files: list[dict[str, str]], use: Callable[[str], Any]) -> None:
        """`use(keyspace)` sets the session's keyspace, so that a migration's names are unqualified."""
        if not files:
            return
        table = f"{identifier(keyspace)}.schema_migrations"
        exists = self.execute(
            "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s AND table_name = "
            "'schema_migrations'",
            (keyspace,),
        )
        recorded = {}
        if list(exists):
            recorded = {
                row.name: row.checksum for row in self.execute(f"SELECT name, checksum FROM {table}", None)
            }
        pending = pending_migrations(files, recorded)
        if not pending:
            return
        self.changes += ["migration {} on {}".format(migration["name"], keyspace) for migration in pending]
        if self.check_mode:
            return
        self.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (name text PRIMARY KEY, checksum text, applied_at "
            "timestamp)",
            None,
        )
        use(keyspace)
        for migration in pending:
            for statement in split_statements(migration["content"]):
                try:
                    self.execute(statement, None)
                except Exception as error:
                    raise CqlError(
                        "{}: {} (in: {})".format(migration["name"], error, statement[:200])
                    ) from error
            self.execute(
                f"INSERT INTO {table} (name, checksum, applied_at) VALUES (%s, %s, toTimestamp(now()))",
                (migration["name"], checksum(migration["content"])),
            )
