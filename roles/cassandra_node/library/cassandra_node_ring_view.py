#!/usr/bin/python
"""Entry only; the logic is in module_utils/cassandra_node_ring_view.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cassandra_node_ring_view
short_description: Tells how a node sees its ring, for the gate of all day-2 operations
description:
  - One dump of JMX on the node itself, two samples of heartbeats, a try of every port, one login.
  - Reads only. Never fails for what is wrong with the node or the ring; that is in the view's C(error).
  - The action of the same name, on the controller, adds how far the host's clock is off.
options:
  unit: {description: Name of the systemd unit, type: str, default: cassandra.service}
  jmx_port: {description: Port of JMX on loopback, type: int, default: 7199}
  nodetool: {description: Path of nodetool, type: path, required: true}
  peers: {description: Addresses of all expected nodes, type: list, elements: str, required: true}
  ports: {description: Ports that are tried on each, type: list, elements: int, default: [7000, 9042]}
  address: {description: The node's own address, type: str, required: true}
  port: {description: Port for CQL, type: int, default: 9042}
  ca: {description: Path of the CA's certificate, type: path, required: true}
  superuser: {description: Account for the query, type: str, required: true}
  superuser_password: {description: Its password, type: str, required: true}
  sample_seconds: {description: Time between two samples of the heartbeats, type: float, default: 3.5}
  call_seconds: {description: Deadline of each call, type: float, default: 60}
  commitlog_directory: {description: Where the commit log is, type: path, required: true}
  hints_directory: {description: Where hints are kept, type: path, required: true}
  conf_directory: {description: Where the configuration is, type: path, required: true}
  started_directory: {description: What the daemon was started with, type: path, required: true}
  files: {description: 'Names of configuration files, or paths', type: list, elements: str, required: true}
  round: {description: Handed back in the view; tells it from an older one, type: str, default: ''}
author: Fieldring
"""
RETURN = r"""
view: {description: The node's view, returned: always, type: dict}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cassandra_node_ring_view import look


def main():
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "default": "cassandra.service"},
            "jmx_port": {"type": "int", "default": 7199},
            "nodetool": {"type": "path", "required": True},
            "peers": {"type": "list", "elements": "str", "required": True},
            "ports": {"type": "list", "elements": "int", "default": [7000, 9042]},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "default": 9042},
            "ca": {"type": "path", "required": True},
            "superuser": {"type": "str", "required": True},
            "superuser_password": {"type": "str", "required": True, "no_log": True},
            "sample_seconds": {"type": "float", "default": 3.5},
            "call_seconds": {"type": "float", "default": 60},
            "commitlog_directory": {"type": "path", "required": True},
            "hints_directory": {"type": "path", "required": True},
            "conf_directory": {"type": "path", "required": True},
            "started_directory": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "str", "required": True},
            "round": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = dict(module.params)
    params["login"] = {
        "address": params["address"],
        "port": params["port"],
        "ca": params["ca"],
        "user": params["superuser"],
        "password": params["superuser_password"],
    }
    module.exit_json(changed=False, view=look(params))


if __name__ == "__main__":
    main()
