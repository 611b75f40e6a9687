#!/usr/bin/python
"""Module entry: the files of the CA on the controller, one step of a change at a time."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: site_ca_change
short_description: Let the next CA sign, or take the previous one out of the trust
description:
  - Every step may be interrupted and repeated. Runs on the controller.
options:
  directory: {type: path, required: true, description: Directory of the CA.}
  step: {type: str, choices: [switch, end], required: true, description: What to do.}
author: [Fieldring]
"""
RETURN = r"""
state: {type: str, returned: always, description: What is there afterwards.}
"""


def put(source: Path, target: Path, mode: int) -> None:
    """A copy that is there as a whole or not at all."""
    new = target.with_name(target.name + ".new")
    new.touch(mode=mode)
    new.write_bytes(source.read_bytes())
    new.chmod(mode)
    os.replace(new, target)  # noqa: PTH105 same idiom as in other modules


def state_of(directory: Path) -> str:
    """stable, prepared (hosts are to trust the next), switching (interrupted) or switched."""
    following, previous = (directory / f"ca.{which}.pem" for which in ("next", "previous"))
    if following.is_file():
        return "switching" if previous.is_file() else "prepared"
    return "switched" if previous.is_file() else "stable"


def switch(directory: Path) -> None:
    """The next CA becomes the signing one. ca.next.pem goes last: while it is there, this is done again."""
    ca, following, previous = directory / "ca.pem", directory / "ca.next.pem", directory / "ca.previous.pem"
    if not previous.is_file() or ca.read_bytes() not in (previous.read_bytes(), following.read_bytes()):
        put(directory / "ca.key", directory / "ca.previous.key", 0o600)
        put(ca, previous, 0o644)
    put(directory / "ca.next.key", directory / "ca.key", 0o600)
    put(following, ca, 0o644)
    following.unlink()
    (directory / "ca.next.key").unlink(missing_ok=True)


def end(directory: Path) -> None:
    """The previous CA is kept aside, for whoever has to look at old data, but nobody trusts it any more."""
    aside = directory / "retired" / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside.mkdir(parents=True, mode=0o700)
    for name in ("ca.previous.key", "ca.previous.pem"):
        if (directory / name).is_file():
            (directory / name).rename(aside / name)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "step": {"type": "str", "required": True, "choices": ["switch", "end"]},
        },
        supports_check_mode=True,
    )
    directory, step = Path(module.params["directory"]), module.params["step"]
    state = state_of(directory)
    wanted = {"switch": ("prepared", "switching"), "end": ("switched",)}[step]
    todo = state in wanted
    if todo and not module.check_mode:
        {"switch": switch, "end": end}[step](directory)
    module.exit_json(changed=todo, state=state_of(directory))


if __name__ == "__main__":
    main()
