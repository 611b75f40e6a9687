#!/usr/bin/python
"""What a host has that speaks for or against running the load balancer on it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: load_balancer_info
short_description: What a host has that speaks for or against running the load balancer on it
description: Reads only.
options:
  ports:
    description: Ports that are wanted.
    type: list
    elements: int
    required: true
  certificate:
    description: File with key, leaf and CA.
    type: path
    required: true
author: Fieldring
"""


def taken_ports(listeners, wanted):
    """Wanted ports that another program than HAProxy listens on, with that program's name.

    Each line is one of ``ss -Hltnp``: state, queues, local address, peer, users.
    """
    taken = {}
    for line in listeners.splitlines():
        words = line.split(None, 5)
        if len(words) < 4:
            continue
        port = words[3].rpartition(":")[2]
        if not port.isdigit() or int(port) not in wanted:
            continue
        programs = re.findall(r'\("([^"]+)"', words[5] if len(words) > 5 else "")
        if "haproxy" not in programs:
            taken[port] = ", ".join(sorted(set(programs))) or "an unknown program"
    return taken


def main():
    """Look and answer."""
    arguments = {
        "ports": {"type": "list", "elements": "int", "required": True},
        "certificate": {"type": "path", "required": True},
    }
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    ss = shutil.which("ss", path=path)
    listeners = module.run_command([ss, "-Hltnp"])[1] if ss else ""
    module.exit_json(
        changed=False,
        installed=bool(shutil.which("haproxy", path=path)),
        certificate_present=Path(module.params["certificate"]).is_file(),
        taken_ports=taken_ports(listeners, set(module.params["ports"])),
    )


if __name__ == "__main__":
    main()
