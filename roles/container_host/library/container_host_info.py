#!/usr/bin/python
"""What a host has that speaks for or against running a Docker engine on it."""

from __future__ import annotations

import ipaddress
import json
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: container_host_info
short_description: What a host has that speaks for or against running a Docker engine on it
description: Reads only.
options:
  pool:
    description: Address pool meant for the engine's networks.
    type: str
    required: true
author: Fieldring
"""
DAEMON_JSON = Path("/etc/docker/daemon.json")


def overlapping_routes(pool, table):
    """Routes of the host, other than the engine's own, that reach into the pool."""
    found = []
    for line in table.splitlines():
        words = line.split()
        if not words or words[0] in ("default", "unreachable", "blackhole"):
            continue
        device = words[words.index("dev") + 1] if "dev" in words else ""
        if device.startswith(("docker", "br-", "veth")):
            continue
        if ipaddress.ip_network(words[0], strict=False).overlaps(pool):
            found.append(f"{words[0]} dev {device}")
    return found


def main():
    """Look and answer."""
    arguments = {"pool": {"type": "str", "required": True}}
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    docker = shutil.which("docker", path=path)
    real = str(Path(docker).resolve()) if docker else ""
    try:
        pool = ipaddress.ip_network(module.params["pool"])
    except ValueError as error:
        module.fail_json(msg=f"container_host_address_pool: {error}")
    directory = Path("/var/lib/docker")
    while not directory.is_dir():
        directory = directory.parent
    settings, problem = {}, ""
    try:
        settings = json.loads(DAEMON_JSON.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        problem = str(error)
    # No iproute2: a host so small has no routes of its own to protect.
    ip = shutil.which("ip", path=path)
    table = module.run_command([ip, "-4", "route"])[1] if ip else ""
    module.exit_json(
        changed=False,
        engine=shutil.which("dockerd", path=path) or "",
        imitation=real if "podman" in real else "",
        disk_free_mib=shutil.disk_usage(directory).free // (1 << 20),
        overlapping_routes=overlapping_routes(pool, table),
        daemon_settings=settings,
        daemon_settings_problem=problem,
    )


if __name__ == "__main__":
    main()
