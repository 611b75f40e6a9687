#!/usr/bin/python
"""What a host has of the service's containers, and what would stand in their way."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import urllib.request
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ingest_container_info
short_description: What a host has of the service's containers, and what would stand in their way
description: Reads only.
options:
  image:
    description: Image that is wanted.
    type: str
    required: true
  ports:
    description: Ports of 127.0.0.1 that are wanted.
    type: list
    elements: int
    required: true
  ca_file:
    description: File that must be there; empty asks for none.
    type: str
    default: ""
author: Fieldring
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def containers(inspected):
    """Name → whether it runs, and the fingerprint that it was made with, of ``docker inspect``."""
    return {
        entry["Name"].lstrip("/"): {
            "running": entry["State"]["Running"] and not entry["State"].get("Restarting", False),
            "fingerprint": (entry["Config"]["Labels"] or {}).get("fieldring.container", ""),
            "image": entry["Config"]["Image"],
        }
        for entry in inspected
    }


def taken_ports(listeners, wanted):
    """Wanted ports that another program than Docker listens on, with that program's name.

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
        programs = set(re.findall(r'\("([^"]+)"', words[5] if len(words) > 5 else ""))
        if not programs & {"docker-proxy", "dockerd"}:
            taken[port] = ", ".join(sorted(programs)) or "an unknown program"
    return taken


def is_ready(port):
    """Whether the container behind a port says that it can work now."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as response:
            return response.status == 200
    except (OSError, ValueError):
        return False


def main():
    """Look and answer."""
    arguments = {
        "image": {"type": "str", "required": True},
        "ports": {"type": "list", "elements": "int", "required": True},
        "ca_file": {"type": "str", "default": ""},
    }
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
    docker = shutil.which("docker", path=PATH)
    problem, found, image_present = "", {}, False
    if not docker:
        problem = "there is no docker command"
    else:
        label = "label=fieldring.role=ingest"
        code, names, error = module.run_command([docker, "ps", "--all", "--quiet", "--filter", label])
        if code != 0:
            problem = error.strip()
        else:
            image_present = module.run_command([docker, "image", "inspect", module.params["image"]])[0] == 0
            if names.split():
                found = containers(json.loads(module.run_command([docker, "inspect", *names.split()])[1]))
    ss = shutil.which("ss", path=PATH)
    listeners = module.run_command([ss, "-Hltnp"])[1] if ss else ""
    ca_file = module.params["ca_file"]
    module.exit_json(
        changed=False,
        docker_problem=problem,
        image_present=image_present,
        containers=found,
        taken_ports=taken_ports(listeners, set(module.params["ports"])),
        ready_ports=[port for port in module.params["ports"] if found and is_ready(port)],
        ca_present=not ca_file or Path(ca_file).is_file(),
        ca_sha256=hashlib.sha256(Path(ca_file).read_bytes()).hexdigest() if Path(ca_file).is_file() else "",
        directories_present=Path("/etc/fieldring/ingest/secrets").is_dir(),
        load_balancer_present=Path("/run/haproxy/admin.sock").is_socket(),
    )


if __name__ == "__main__":
    main()
