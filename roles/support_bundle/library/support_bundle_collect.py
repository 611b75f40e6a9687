#!/usr/bin/python
"""Module entry: what a host can tell, without its secrets."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.support_bundle_redaction import redacted

DOCUMENTATION = r"""
module: support_bundle_collect
short_description: Collect logs, configuration without secrets, and what commands print
description: Writes one archive and changes nothing else; secrets are taken out on the host.
options:
  commands: {type: dict, required: true, description: Commands by name in the archive.}
  files: {type: list, elements: str, required: true, description: Patterns of files.}
  secrets: {type: list, elements: str, required: true, description: What is taken out.}
  part_max_kib: {type: int, required: true, description: 'Of each part, the last so many KiB.'}
  path: {type: path, required: true, description: Where the archive is put.}
author: [Fieldring]
"""
RETURN = r"""
parts: {type: list, returned: always, description: What is in it.}
"""
COMMAND_SECONDS = 60


def printed(command):
    """What a command says; how it failed is part of it. None where it does not exist."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=COMMAND_SECONDS, check=False
        )
    except FileNotFoundError:
        return None
    except (subprocess.TimeoutExpired, OSError) as error:
        return f"{' '.join(command)}: {error}\n".encode()
    return done.stdout + (f"(exit status {done.returncode})\n".encode() if done.returncode else b"")


def tail(path, limit):
    with path.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - limit))
        return stream.read()


def main():
    module = AnsibleModule(
        argument_spec={
            "commands": {"type": "dict", "required": True},
            "files": {"type": "list", "elements": "str", "required": True},
            "secrets": {"type": "list", "elements": "str", "required": True, "no_log": True},
            "part_max_kib": {"type": "int", "required": True},
            "path": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    params, limit = module.params, module.params["part_max_kib"] * 1024
    parts = {}
    for name, command in params["commands"].items():
        said = printed(command)
        if said is not None:
            parts[name] = said[-limit:]
    for pattern in params["files"]:
        for path in sorted(Path("/").glob(pattern.lstrip("/"))):
            if path.is_file():
                parts[f"files{path}"] = tail(path, limit)
    if not module.check_mode:
        descriptor = os.open(params["path"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name, content in parts.items():
                text = redacted(content.decode("utf-8", "replace"), params["secrets"]).encode()
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(text), 0o600
                archive.addfile(entry, io.BytesIO(text))
    module.exit_json(changed=False, parts=sorted(parts))


if __name__ == "__main__":
    main()
