#!/usr/bin/python
"""Entry only; the logic is in module_utils/cassandra_node_view.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cassandra_node_status
short_description: Reads a running node's view of its ring and keeps the note of what waits for a restart
description:
  - Waits until the node serves CQL and sees every expected peer, then returns its view.
  - Compares the configuration with what the daemon was started with and writes or removes the note.
  - Starts, stops and restarts nothing.
options:
  address: {description: The node's own address, type: str, required: true}
  port: {description: Port for CQL, type: int, default: 9042}
  expected: {description: Addresses that must be up, type: list, elements: str, required: true}
  expected_required: {description: Whether a peer that is down is an error, type: bool, default: false}
  wait_seconds: {description: Patience, type: int, default: 120}
  nodetool: {description: Path of nodetool, type: path, required: true}
  conf_directory: {description: Where the configuration is, type: path, required: true}
  started_directory: {description: What the daemon was started with, type: path, required: true}
  files: {description: 'Names of configuration files, or paths', type: list, elements: str, required: true}
  version: {description: Version that is wanted, type: str, required: true}
  note: {description: Path of the note, type: path, required: true}
author: Fieldring
"""
RETURN = r"""
view: {description: The node's view, returned: always, type: dict}
faults: {description: Why the ring is not whole in this view, returned: always, type: list, elements: str}
pending: {description: What waits for a restart, returned: always, type: list, elements: str}
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cassandra_node_host import unit_state
from ansible.module_utils.cassandra_node_view import (
    ViewError,
    wait_for_port,
    wait_for_view,
    waiting_changes,
)


def main():
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "default": 9042},
            "expected": {"type": "list", "elements": "str", "required": True},
            "expected_required": {"type": "bool", "default": False},
            "wait_seconds": {"type": "int", "default": 120},
            "nodetool": {"type": "path", "required": True},
            "conf_directory": {"type": "path", "required": True},
            "started_directory": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "str", "required": True},
            "version": {"type": "str", "required": True},
            "note": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    deadline = time.monotonic() + params["wait_seconds"]
    try:
        wait_for_port(
            params["address"], params["port"], deadline, lambda: not unit_state("cassandra.service")[0]
        )
        expected = params["expected"] if params["expected_required"] else [params["address"]]
        view, faults = wait_for_view(params["nodetool"], expected, deadline)
    except ViewError as error:
        module.fail_json(msg=str(error))
    if faults and params["expected_required"]:
        module.fail_json(
            msg=f"after {params['wait_seconds']} s: {'; '.join(faults)}", view=view, faults=faults
        )

    pending = waiting_changes(params["started_directory"], params["conf_directory"], params["files"])
    if view["version"] != params["version"]:
        pending.append(
            "version: {} runs, {} is wanted (upgrade_cassandra, docs/runbook/upgrade_cassandra.md)".format(
                view["version"], params["version"]
            )
        )
    text = "".join(line + "\n" for line in pending)
    note = Path(params["note"])
    before = note.read_text(encoding="utf-8") if note.is_file() else ""
    if before != text and not module.check_mode:
        if text:
            note.write_text(text, encoding="utf-8")
        else:
            note.unlink()
    module.exit_json(
        changed=before != text,
        diff={
            "before": before,
            "after": text,
            "before_header": params["note"],
            "after_header": params["note"],
        },
        view=view,
        faults=faults,
        pending=pending,
    )


if __name__ == "__main__":
    main()
