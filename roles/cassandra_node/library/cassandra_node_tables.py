#!/usr/bin/python
"""Entry only; the logic is in module_utils/cassandra_node_tables.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cassandra_node_tables
short_description: Describes, makes and empties tables of a ring, for restoring a backup
description:
  - Runs on a node and asks that node only, over TLS.
options:
  address: {description: The node's address, type: str, required: true}
  port: {description: Port for CQL, type: int, default: 9042}
  ca: {description: Path of the CA's certificate, type: path, required: true}
  superuser: {description: Own superuser, type: str, required: true}
  superuser_password: {description: Its password, type: str, required: true}
  action: {description: What to do, type: str, choices: [describe, create, truncate], required: true}
  tables: {description: Names as keyspace.table, type: list, elements: str, default: []}
  schema: {description: Statements of tables by name, type: dict, default: {}}
author: Fieldring
"""
RETURN = r"""
columns: {description: Columns by table, returned: describe, type: dict}
dropped: {description: When columns were dropped by table and column, returned: describe, type: dict}
keyspaces: {description: All keyspaces, returned: describe, type: list, elements: str}
not_empty: {description: Which of I(tables) hold a row, returned: describe, type: list, elements: str}
changes: {description: What was done, returned: always, type: list, elements: str}
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.cassandra_node_session import (
    DRIVER,
    DRIVER_ERRORS,
    LoginRefusedError,
    connect,
)
from ansible.module_utils.cassandra_node_tables import Tables

# A TRUNCATE waits for a snapshot on every node.
REQUEST_SECONDS = 120


def main():
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "default": 9042},
            "ca": {"type": "path", "required": True},
            "superuser": {"type": "str", "required": True},
            "superuser_password": {"type": "str", "required": True, "no_log": True},
            "action": {"type": "str", "required": True, "choices": ["describe", "create", "truncate"]},
            "tables": {"type": "list", "elements": "str", "default": []},
            "schema": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    if not DRIVER:
        module.fail_json(msg=missing_required_lib("cassandra-driver (Debian: python3-cassandra)"))
    params = module.params
    result = {}
    try:
        cluster, session = connect(
            address=params["address"],
            port=params["port"],
            ca=params["ca"],
            user=params["superuser"],
            password=params["superuser_password"],
        )
        try:
            tables = Tables(
                lambda statement, values: session.execute(statement, values, timeout=REQUEST_SECONDS),
                module.check_mode,
            )
            present = tables.columns()
            if params["action"] == "describe":
                result = {
                    "columns": present,
                    "dropped": tables.dropped(),
                    "keyspaces": tables.keyspaces(),
                    "not_empty": tables.not_empty([t for t in params["tables"] if t in present]),
                }
            elif params["action"] == "create":
                tables.create(params["schema"])
            else:
                tables.truncate([t for t in params["tables"] if t in present])
        finally:
            cluster.shutdown()
    except (*DRIVER_ERRORS, LoginRefusedError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(tables.changes), changes=tables.changes, **result)


if __name__ == "__main__":
    main()
