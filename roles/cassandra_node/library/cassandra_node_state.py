#!/usr/bin/python
"""Entry only; the logic is in module_utils/cassandra_node_host.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cassandra_node_state
short_description: Tells what a host is before Cassandra is set up on it
description:
  - System, memory, data directory, configured identity, certificates, ports and which peers answer.
  - Reads only.
options:
  unit: {description: Name of the systemd unit, type: str, default: cassandra.service}
  data_directory: {description: Where Cassandra keeps its data, type: str, required: true}
  conf_directory: {description: Where its configuration is, type: str, required: true}
  home_parent: {description: Folder in which archives are unpacked, type: str, default: /opt}
  tls_directory: {description: Where the host's certificate is, type: str, required: true}
  ports: {description: Ports that must be free or Cassandra's own, type: list, elements: int, required: true}
  peer_ports: {description: Ports that are tried on each peer, type: list, elements: int, required: true}
  peers:
    description: Addresses of the peers; tried where this host's data directory is empty
    type: list
    elements: str
    required: true
  probe_always: {description: Try them in any case, type: bool, default: false}
  timeout_seconds: {description: Patience for each connection, type: float, default: 1.5}
author: Fieldring
"""
RETURN = r"""
state: {description: What was found, returned: always, type: dict}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cassandra_node_host import Host, observe


def main():
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "default": "cassandra.service"},
            "data_directory": {"type": "str", "required": True},
            "conf_directory": {"type": "str", "required": True},
            "home_parent": {"type": "str", "default": "/opt"},
            "tls_directory": {"type": "str", "required": True},
            "ports": {"type": "list", "elements": "int", "required": True},
            "peer_ports": {"type": "list", "elements": "int", "required": True},
            "peers": {"type": "list", "elements": "str", "required": True},
            "probe_always": {"type": "bool", "default": False},
            "timeout_seconds": {"type": "float", "default": 1.5},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, state=observe(Host(), module.params))


if __name__ == "__main__":
    main()
