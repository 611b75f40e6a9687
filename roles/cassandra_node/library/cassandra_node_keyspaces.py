#!/usr/bin/python
"""Entry only; the statements are in module_utils/cassandra_node_cql.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cassandra_node_keyspaces
short_description: Reads how the keyspaces of a ring are replicated, and alters those that are named
description:
  - Runs on a node and asks that node only, over TLS. Creates and drops nothing.
options:
  address: {description: The node's address, type: str, required: true}
  port: {description: Port for CQL, type: int, default: 9042}
  ca: {description: Path of the CA's certificate, type: path, required: true}
  superuser: {description: Own superuser, type: str, required: true}
  superuser_password: {description: Its password, type: str, required: true}
  replication:
    description: Keyspaces that are to be altered, each with its copies by data centre
    type: dict
    default: {}
author: Fieldring
"""
RETURN = r"""
keyspaces:
  description: Copies by data centre of every keyspace that is not local; null where the strategy is another
  returned: always
  type: dict
changes: {description: What was (or would be) altered, returned: always, type: list, elements: str}
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.cassandra_node_cql import CqlError, Database, identifier, replication_clause
from ansible.module_utils.cassandra_node_session import (
    DRIVER,
    DRIVER_ERRORS,
    LoginRefusedError,
    connect,
)

# Every node has these for itself.
LOCAL_KEYSPACES = ("system", "system_schema")


def main():
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "default": 9042},
            "ca": {"type": "path", "required": True},
            "superuser": {"type": "str", "required": True},
            "superuser_password": {"type": "str", "required": True, "no_log": True},
            "replication": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    if not DRIVER:
        module.fail_json(msg=missing_required_lib("cassandra-driver (Debian: python3-cassandra)"))
    params = module.params
    cluster = None
    try:
        cluster, session = connect(
            address=params["address"],
            port=params["port"],
            ca=params["ca"],
            user=params["superuser"],
            password=params["superuser_password"],
        )
        database = Database(session.execute, module.check_mode)
        keyspaces = {
            name: value for name, value in database.keyspaces().items() if name not in LOCAL_KEYSPACES
        }
        if unknown := sorted(set(params["replication"]) - set(keyspaces)):
            raise CqlError("no such keyspace: {}".format(", ".join(unknown)))
        for name, value in params["replication"].items():
            # Fewer copies as well: the playbook that asks for it has repaired them first.
            wanted = {dc: int(copies) for dc, copies in value.items()}
            if keyspaces[name] != wanted:
                database.change(
                    f"keyspace {name}: {wanted}",
                    f"ALTER KEYSPACE {identifier(name)} WITH replication = {replication_clause(wanted)}",
                )
    except LoginRefusedError as refused:
        module.fail_json(
            msg=f"CN-119: the ring refuses the login of {params['superuser']}: another password, or too few "
            f"replicas of system_auth answer, which looks the same. ({refused})"
        )
    except (CqlError, *DRIVER_ERRORS) as error:
        module.fail_json(msg=str(error))
    finally:
        if cluster is not None:
            cluster.shutdown()
    module.exit_json(changed=bool(database.changes), keyspaces=keyspaces, changes=database.changes)


if __name__ == "__main__":
    main()
