#!/usr/bin/python
"""Thin entry: reads the file, lets ``mosquitto_password_file`` decide, writes atomically."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mosquitto_passwords
short_description: Keeps mosquitto's password file
description:
  - Makes the file hold exactly the given accounts. An account whose password still verifies keeps its line,
    so a second run changes nothing. Neither passwords nor hashes appear in the result or in a diff.
options:
  path:
    description: The password file.
    type: path
    required: true
  accounts:
    description: Password of each account, by its name.
    type: dict
    required: true
extends_documentation_fragment: [files]
author: Fieldring
"""

EXAMPLES = r"""
- name: Write the accounts
  mosquitto_passwords:
    path: /etc/mosquitto/passwords
    accounts: {kerbside: "{{ vault_device_passwords.kerbside }}"}
"""

RETURN = r"""
accounts_changed:
  description: Names whose line was added, replaced or removed.
  returned: always
  type: list
  elements: str
"""

import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mosquitto_password_file import updated


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "accounts": {"type": "dict", "required": True, "no_log": True},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    path = module.params["path"]
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    new, names = updated(text, {str(name): str(word) for name, word in module.params["accounts"].items()})
    changed = new != text or not Path(path).exists()
    if changed and not module.check_mode:
        descriptor, temporary = tempfile.mkstemp(dir=module.tmpdir)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(new)
        module.atomic_move(temporary, path)
    if Path(path).exists():
        attributes = module.load_file_common_arguments(module.params)
        changed = module.set_fs_attributes_if_different(attributes, changed)
    module.exit_json(changed=changed, accounts_changed=names)


if __name__ == "__main__":
    main()
