#!/usr/bin/python
"""Module entry: one archive of all hosts' parts, searched for secrets once more."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.support_bundle_redaction import leaks

DOCUMENTATION = r"""
module: support_bundle_pack
short_description: Put the parts of all hosts into one archive on the controller
options:
  path: {type: path, required: true, description: The archive.}
  parts: {type: path, required: true, description: Directory with an archive for each host.}
  secrets: {type: list, elements: str, required: true, description: What must not be in it.}
author: [Fieldring]
"""
RETURN = r"""
files: {type: int, returned: always, description: How many files are in it.}
leaking: {type: list, returned: always, description: Files with a secret; the archive was not written then.}
"""


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "parts": {"type": "path", "required": True},
            "secrets": {"type": "list", "elements": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    path, count, leaking = Path(module.params["path"]), 0, []
    whole = io.BytesIO()
    top = path.name.removesuffix(".tar.gz")
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for file in sorted(Path(module.params["parts"]).glob("*.tar.gz")):
            host = file.name.removesuffix(".tar.gz")
            with tarfile.open(file, mode="r:gz") as part:
                for entry in part.getmembers():
                    stream = part.extractfile(entry)
                    content = stream.read() if stream else b""
                    if leaks(content.decode("utf-8", "replace"), module.params["secrets"]):
                        leaking.append(f"{host}/{entry.name}")
                    entry.name = f"{top}/{host}/{entry.name}"
                    archive.addfile(entry, io.BytesIO(content))
                    count += 1
    if not leaking and not module.check_mode:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(path.name + ".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(whole.getvalue())
        new.rename(path)
    module.exit_json(changed=not leaking, files=count, leaking=leaking)


if __name__ == "__main__":
    main()
