#!/usr/bin/python
"""The order of steps only; statements come from module_utils/cassandra_node_cql.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cassandra_node_accounts
short_description: Changes the ring's superuser, and lets go of accounts that nobody uses any more
description:
  - I(action=superuser) logs in as the superuser of now, else as the one before, and makes the one of now.
  - I(action=look) proves the login at this node and returns who is connected to it.
  - I(action=drop) removes accounts.
  - Runs on a node and asks that node only, over TLS.
options:
  action: {description: What to do, type: str, choices: [superuser, look, drop], required: true}
  address: {description: The node's address, type: str, required: true}
  port: {description: Port for CQL, type: int, default: 9042}
  ca: {description: Path of the CA's certificate, type: path, required: true}
  superuser: {description: Own superuser, type: str, required: true}
  superuser_password: {description: Its password, type: str, required: true}
  previous: {description: Superuser before, type: str, default: ''}
  previous_password: {description: Its password, type: str, default: ''}
  accounts: {description: 'Accounts, for action=look', type: list, elements: dict, default: []}
  leaving:
    description: Accounts whose last clients are waited for, for action=look
    type: list
    elements: str
    default: []
  leaving_seconds: {description: For how long, type: int, default: 0}
  names: {description: Accounts to drop, type: list, elements: str, default: []}
  wait_seconds: {description: Patience until a new password holds, type: int, default: 60}
author: Fieldring
"""
RETURN = r"""
changes: {description: What was done, returned: always, type: list, elements: str}
clients: {description: Addresses by account, returned: look, type: dict}
roles: {description: Names of all roles, returned: look, type: list, elements: str}
refused: {description: Which of I(accounts) cannot log in, returned: look, type: list, elements: str}
"""

import time

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.cassandra_node_cql import CqlError, Database, identifier, literal
from ansible.module_utils.cassandra_node_session import (
    DRIVER,
    DRIVER_ERRORS,
    LoginRefusedError,
    connect,
)


class Accounts:
    """One call of the module; `close` ends its sessions."""

    def __init__(self, params, check_mode):
        self.params = params
        self.check_mode = check_mode
        self.clusters = []

    def login(self, user, password):
        cluster, session = connect(
            address=self.params["address"],
            port=self.params["port"],
            ca=self.params["ca"],
            user=user,
            password=password,
        )
        self.clusters.append(cluster)
        return session

    def own(self, wait_seconds=0):
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                return self.login(self.params["superuser"], self.params["superuser_password"])
            except LoginRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def close(self):
        for cluster in self.clusters:
            cluster.shutdown()

    def superuser(self):
        name = self.params["superuser"]
        try:
            self.own()
            return {"changes": []}
        except LoginRefusedError as refused:
            if not self.params["previous"]:
                raise CqlError(f"CN-170: {self.refusal(refused)}") from refused
        try:
            session = self.login(self.params["previous"], self.params["previous_password"])
        except LoginRefusedError as refused:
            raise CqlError(f"CN-170: {self.refusal(refused)}") from refused
        database = Database(session.execute, self.check_mode)
        if name == self.params["previous"]:
            # Nobody may touch the own superuser status, not even by saying the same again.
            new = literal(self.params["superuser_password"])
            database.change(f"password of {name}", f"ALTER ROLE {identifier(name)} WITH PASSWORD = {new}")
        else:
            database.ensure_superuser(name, self.params["superuser_password"])
        if not self.check_mode:
            self.own(self.params["wait_seconds"])
        return {"changes": database.changes}

    def refusal(self, refused):
        return (
            f"the ring refuses the login of {self.params['superuser']} and of the superuser before "
            f"({self.params['previous'] or 'none is named'}). Set cassandra_node_superuser_previous and "
            "cassandra_node_superuser_previous_password to the pair that works now; when too few replicas of "
            f"system_auth answer it looks the same: see nodetool status. ({refused})"
        )

    def look(self):
        # In a check run the superuser of now may not be there yet.
        try:
            session = self.own(0 if self.check_mode else self.params["wait_seconds"])
        except LoginRefusedError:
            if not (self.check_mode and self.params["previous"]):
                raise
            session = self.login(self.params["previous"], self.params["previous_password"])
        deadline = time.monotonic() + self.params["leaving_seconds"]
        while True:
            clients = {}
            for row in session.execute("SELECT username, address FROM system_views.clients"):
                clients.setdefault(row.username, set()).add(str(row.address))
            if not set(clients) & set(self.params["leaving"]) or time.monotonic() > deadline:
                break
            time.sleep(1)
        roles = [row.role for row in session.execute("SELECT role FROM system_auth.roles")]
        refused = []
        for account in self.params["accounts"]:
            if account["name"] in roles:
                try:
                    self.login(account["name"], account["password"])
                except LoginRefusedError:
                    refused.append(account["name"])
        found = {name: sorted(addresses) for name, addresses in clients.items() if name}
        return {"changes": [], "clients": found, "roles": sorted(roles), "refused": refused}

    def drop(self):
        session = self.own()
        present = {row.role for row in session.execute("SELECT role FROM system_auth.roles")}
        gone = [name for name in self.params["names"] if name in present]
        if not self.check_mode:
            for name in gone:
                session.execute(f"DROP ROLE {identifier(name)}")
        return {"changes": [f"account {name} dropped" for name in gone]}


def main():
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "required": True, "choices": ["superuser", "look", "drop"]},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "default": 9042},
            "ca": {"type": "path", "required": True},
            "superuser": {"type": "str", "required": True},
            "superuser_password": {"type": "str", "required": True, "no_log": True},
            "previous": {"type": "str", "default": ""},
            "previous_password": {"type": "str", "default": "", "no_log": True},
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
            "leaving": {"type": "list", "elements": "str", "default": []},
            "leaving_seconds": {"type": "int", "default": 0},
            "names": {"type": "list", "elements": "str", "default": []},
            "wait_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    if not DRIVER:
        module.fail_json(msg=missing_required_lib("cassandra-driver (Debian: python3-cassandra)"))
    accounts = Accounts(module.params, module.check_mode)
    try:
        result = getattr(accounts, module.params["action"])()
    except (CqlError, *DRIVER_ERRORS, LoginRefusedError) as error:
        module.fail_json(msg=str(error))
    finally:
        accounts.close()
    module.exit_json(changed=bool(result["changes"]), **result)


if __name__ == "__main__":
    main()
