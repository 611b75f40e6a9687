#!/usr/bin/python
"""Entry only; the logic is in module_utils/cassandra_node_files.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cassandra_node_files
short_description: Writes a directory and its rendered files in one call
description:
  - Does what ansible.builtin.template does for each file, but for all of them in one connection.
  - A file is replaced as a whole, by a rename.
options:
  directory: {description: Created when it is missing, type: path, required: true}
  owner: {description: Owner of all, type: str, default: root}
  group: {description: Group of the directory, type: str, required: true}
  mode: {description: Mode of the directory, type: str, default: '0750'}
  files: {description: 'List of {path, content, group, mode}', type: list, elements: dict, required: true}
author: Fieldring
"""
RETURN = r"""
changed_paths: {description: What was (or would be) changed, returned: always, type: list, elements: str}
differences: {description: Lines that go and come, returned: always, type: list, elements: str}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cassandra_node_files import (
    changed_lines,
    difference,
    group_is_there,
    read,
    write,
)


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "required": True},
            "mode": {"type": "str", "default": "0750"},
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
        },
        supports_check_mode=True,
    )
    params = module.params
    changed_paths, diffs, lines = [], [], []

    def set_attributes(path, group, mode):
        # The first check run comes before the user and its group were made.
        if module.check_mode and not group_is_there(group):
            return False
        wanted = module.load_file_common_arguments(
            {"path": path, "owner": params["owner"], "group": group, "mode": mode}
        )
        return module.set_fs_attributes_if_different(wanted, False)

    missing = read(params["directory"]) is None
    if missing and not module.check_mode:
        write(params["directory"], None)
    absent = missing and module.check_mode
    # Not after an `or`: a directory made just now needs its group and mode as well.
    if absent or set_attributes(params["directory"], params["group"], params["mode"]) or missing:
        changed_paths.append(params["directory"])
    for file in params["files"]:
        before = read(file["path"])
        if before != file["content"]:
            diffs.append(difference(file["path"], before or "", file["content"]))
            lines += changed_lines(file["path"], before or "", file["content"])
            if not module.check_mode:
                write(file["path"], file["content"])
        new = before is None and module.check_mode
        if new or set_attributes(file["path"], file["group"], file["mode"]) or before != file["content"]:
            changed_paths.append(file["path"])
    module.exit_json(changed=bool(changed_paths), changed_paths=changed_paths, differences=lines, diff=diffs)


if __name__ == "__main__":
    main()
