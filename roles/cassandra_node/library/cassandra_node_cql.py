#!/usr/bin/python
"""The connection only; what is done over it is in module_utils/cassandra_node_cql.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cassandra_node_cql
short_description: Sets up accounts, replication and schema of a ring over CQL
description:
  - Own superuser, the default role disabled, replication, keyspaces, accounts with grants, migrations.
  - Runs on a node and asks that node only, over TLS.
options:
  address: {description: The node's address, type: str, required: true}
  port: {description: Port for CQL, type: int, default: 9042}
  ca: {description: Path of the CA's certificate, type: path, required: true}
  superuser: {description: Own superuser, type: str, required: true}
  superuser_password: {description: Its password, type: str, required: true}
  first_start: {description: Whether the default login may be used, type: bool, default: false}
  system_replication: {description: Copies of the system keyspaces by data centre, type: dict, required: true}
  keyspaces: {description: 'List of {name, replication}', type: list, elements: dict, default: []}
  accounts: {description: 'List of {name, password, keyspaces}', type: list, elements: dict, default: []}
  migrations:
    description: List of {keyspace, name, content}, in order
    type: list
    elements: dict
    default: []
  wait_seconds: {description: Patience until the first login works, type: int, default: 60}
author: Fieldring
"""
RETURN = r"""
changes: {description: What was done, returned: always, type: list, elements: str}
replication_changed: {description: Keyspaces to be repaired now, returned: always, type: list, elements: str}
"""

import time

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.cassandra_node_cql import SYSTEM_KEYSPACES, CqlError, Database
from ansible.module_utils.cassandra_node_session import (
    DRIVER,
    DRIVER_ERRORS,
    LoginRefusedError,
)
from ansible.module_utils.cassandra_node_session import connect as connect_to


def connect(params, user, password):
    """(cluster, session) to this node alone."""
    return connect_to(
        address=params["address"], port=params["port"], ca=params["ca"], user=user, password=password
    )


def first_login(params):
    """A session of the own superuser, and what had to be done for it."""
    deadline = time.monotonic() + params["wait_seconds"]
    while True:
        try:
            return (*connect(params, params["superuser"], params["superuser_password"]), [])
        except LoginRefusedError as refused:
            if not params["first_start"]:
                raise CqlError(
                    f"CN-119: the ring refuses the login of {params['superuser']}. Either its password is "
                    "another (set cassandra_node_superuser_password to the right one), or too few replicas "
                    f"of system_auth answer, which looks the same: see nodetool status. ({refused})"
                ) from refused
        try:
            cluster, session = connect(params, "cassandra", "cassandra")
        except LoginRefusedError as refused:
            # The default role appears some seconds after the first start.
            if time.monotonic() > deadline:
                raise CqlError(
                    f"CN-119: neither {params['superuser']} nor the default role can log in after "
                    f"{params['wait_seconds']} s: see journalctl -u cassandra on every node"
                ) from refused
            time.sleep(0.5)
            continue
        database = Database(session.execute, params["check_mode"])
        database.ensure_superuser(params["superuser"], params["superuser_password"])
        if params["check_mode"]:
            return cluster, session, database.changes
        cluster.shutdown()
        return (*connect(params, params["superuser"], params["superuser_password"]), database.changes)


def run(params):
    clusters = []

    def can_log_in(name, password):
        try:
            clusters.append(connect(params, name, password)[0])
        except LoginRefusedError:
            return False
        return True

    try:
        cluster, session, changes = first_login(params)
        clusters.append(cluster)
        database = Database(session.execute, params["check_mode"])
        database.changes += changes
        database.disable_default_role()
        wanted = dict.fromkeys(SYSTEM_KEYSPACES, params["system_replication"])
        wanted.update({keyspace["name"]: keyspace["replication"] for keyspace in params["keyspaces"]})
        database.ensure_keyspaces(
            {name: {dc: int(rf) for dc, rf in value.items()} for name, value in wanted.items()}
        )
        for account in params["accounts"]:
            database.ensure_account(account, can_log_in)
        for keyspace in dict.fromkeys(migration["keyspace"] for migration in params["migrations"]):
            files = [migration for migration in params["migrations"] if migration["keyspace"] == keyspace]
            database.migrate(keyspace, files, session.set_keyspace)
        return database
    finally:
        for cluster in clusters:
            cluster.shutdown()


def main():
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "default": 9042},
            "ca": {"type": "path", "required": True},
            "superuser": {"type": "str", "required": True},
            "superuser_password": {"type": "str", "required": True, "no_log": True},
            "first_start": {"type": "bool", "default": False},
            "system_replication": {"type": "dict", "required": True},
            "keyspaces": {"type": "list", "elements": "dict", "default": []},
            "accounts": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "password": {"type": "str", "required": True, "no_log": True},
                    "keyspaces": {"type": "list", "elements": "str", "default": []},
                },
            },
            "migrations": {"type": "list", "elements": "dict", "default": []},
            "wait_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    if not DRIVER:
        module.fail_json(msg=missing_required_lib("cassandra-driver (Debian: python3-cassandra)"))
    try:
        database = run(dict(module.params, check_mode=module.check_mode))
    except (CqlError, *DRIVER_ERRORS) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(database.changes),
        changes=database.changes,
        replication_changed=database.replication_changed,
    )


if __name__ == "__main__":
    main()
