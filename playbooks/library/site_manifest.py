#!/usr/bin/python
"""Ansible module: read and check a site manifest. The logic is in module_utils/site_manifest.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: site_manifest
short_description: Read and check the manifest of a new site
description: Fails with every problem of the file, each with its line and what to do. Changes nothing.
options:
  path:
    description: The manifest.
    type: path
    required: true
  known_addresses:
    description: Hosts of the running platform and their addresses.
    type: dict
    default: {}
  known_gateways:
    description: Gateways of the running platform and the list of sensors that each serves.
    type: dict
    default: {}
author: [Fieldring maintainers]
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.site_manifest import Known, check


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "known_addresses": {"type": "dict", "default": {}},
            "known_gateways": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        module.fail_json(msg=f"OS-101 cannot read the site manifest {path}: {error}")
    known = Known(
        addresses=module.params["known_addresses"],
        sensors={
            sensor: gateway
            for gateway, sensors in module.params["known_gateways"].items()
            for sensor in sensors or []
        },
    )
    manifest, problems = check(text, known=known)
    if problems:
        lines = [f"{path}:{problem.line}: {problem.message}" for problem in problems]
        module.fail_json(
            msg=f"OS-102 the site manifest has {len(lines)} problem(s), nothing was changed:\n"
            + "\n".join(lines),
            problems=lines,
        )
    module.exit_json(changed=False, manifest=manifest)


if __name__ == "__main__":
    main()
