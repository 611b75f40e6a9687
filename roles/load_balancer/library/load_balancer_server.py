#!/usr/bin/python
"""Drain a server of the running HAProxy, or make it ready again, through the admin socket."""

from __future__ import annotations

import csv
import socket
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: load_balancer_server
short_description: Drain a server of the running HAProxy, or make it ready again
description:
  - Acts on the server in every backend that has it.
  - Where no HAProxy runs, or it does not know the server, there is nothing to do.
options:
  socket:
    description: Admin socket.
    type: path
    required: true
  name:
    description: Name of the server.
    type: str
    required: true
  state:
    description: What it should be.
    type: str
    choices: [drained, ready]
    required: true
  wait_seconds:
    description: How long to wait for its last request, or for its health check to pass.
    type: int
    default: 20
author: Fieldring
"""


def ask(path, command):
    """One command, its whole answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(path)
        connection.sendall(command.encode() + b"\n")
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


def servers(table, name):
    """Rows of ``show stat`` for a server, by backend."""
    rows = csv.DictReader(table.removeprefix("# ").splitlines())
    return {row["pxname"]: row for row in rows if row["svname"] == name}


def kept_out(table, name):
    """Backends in which an operator keeps new requests from a server, by ``show servers state``.

    The status of ``show stat`` does not tell: of a drained server whose health check fails it says DOWN.
    """
    _, head, *lines = table.splitlines()
    columns = head.removeprefix("# ").split()
    rows = [dict(zip(columns, line.split(), strict=False)) for line in lines if line]
    # srv_admin_state: 1 is forced maintenance, 8 a forced drain.
    return {row["be_name"] for row in rows if row["srv_name"] == name and int(row["srv_admin_state"]) & 9}


def main():
    """Set and wait."""
    arguments = {
        "socket": {"type": "path", "required": True},
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["drained", "ready"], "required": True},
        "wait_seconds": {"type": "int", "default": 20},
    }
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
    path, name = module.params["socket"], module.params["name"]
    drained = module.params["state"] == "drained"

    def rows():
        return servers(ask(path, "show stat"), name)

    try:
        found = rows()
    except (FileNotFoundError, ConnectionRefusedError):
        module.exit_json(changed=False, msg="no HAProxy runs here")
    if not found:
        module.exit_json(changed=False, msg=f"HAProxy knows no server {name}")
    out = kept_out(ask(path, "show servers state"), name)
    wrong = [backend for backend in found if (backend in out) != drained]
    if module.check_mode:
        module.exit_json(changed=bool(wrong))
    for backend in wrong:
        answer = ask(path, f"set server {backend}/{name} state {'drain' if drained else 'ready'}").strip()
        if answer:
            module.fail_json(msg=f"HAProxy on {backend}/{name}: {answer}")
    deadline = time.monotonic() + module.params["wait_seconds"]
    while True:
        found = rows()
        if drained:
            left = sum(int(row["scur"]) for row in found.values())
            if not left or time.monotonic() > deadline:
                module.exit_json(changed=bool(wrong), requests_left=left)
        else:
            waiting = {
                backend: row
                for backend, row in found.items()
                if not row["status"].startswith(("UP", "no check"))
            }
            if not waiting:
                module.exit_json(changed=bool(wrong))
            if time.monotonic() > deadline:
                told = "; ".join(f"{b}: {r['status']}, {r['last_chk']}" for b, r in waiting.items())
                module.fail_json(msg=f"HAProxy does not see {name} as ready: {told}")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
