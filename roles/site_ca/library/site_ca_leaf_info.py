#!/usr/bin/python
"""Module entry: reads the host's TLS directory and says what must be done about it."""

from __future__ import annotations

import datetime as dt
import grp
import os
import stat

from ansible.module_utils import site_ca_leaf
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: site_ca_leaf_info
short_description: Judge the certificate files of a host
description: Read-only. Says why the files in a TLS directory must be made again, if they must.
options:
  directory: {type: path, required: true, description: Directory of the four files.}
  group: {type: str, required: true, description: Group that may read the key.}
  ca: {type: str, required: true, description: The CA's certificate, empty when there is none yet.}
  trust: {type: str, required: true, description: All CA certificates that hosts trust now, in this order.}
  names: {type: list, elements: str, required: true, description: Names and addresses of the leaf.}
  renew_before_days: {type: int, required: true, description: Fewer days left than this are a reason.}
  renew_older_than_days: {type: int, default: -1, description: 'Days since issue, -1 for any.'}
author: [Fieldring]
"""
RETURN = r"""
reasons: {type: list, returned: always, description: What is wrong; empty when all is well.}
usable_leaf: {type: str, returned: always, description: The present leaf when it can stay, else empty.}
subject_alt_names: {type: list, returned: always, description: Names with their types.}
ca_days_left: {type: int, returned: always, description: Days left of the CA, null without one.}
"""

FILES = {"ca.pem": 0o644, "host.crt": 0o644, "host.key": 0o640, "host.pem": 0o640}


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 same idiom as in other modules
            return stream.read()
    except FileNotFoundError:
        return b""


def file_reasons(directory: str, *, group: str) -> list[str]:
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        return [f"the group {group} does not exist"]
    reasons = []
    for name, mode in FILES.items():
        path = os.path.join(directory, name)  # noqa: PTH118
        if not os.path.exists(path):  # noqa: PTH110
            reasons.append(f"{path} does not exist")
            continue
        found = os.stat(path)  # noqa: PTH116
        want_gid = gid if mode == 0o640 else 0
        held = (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
        if held != (mode, 0, want_gid):
            reasons.append(
                f"{path} has mode {held[0]:04o}, owner {held[1]}, group {held[2]}; "
                f"wanted are {mode:04o}, 0, {want_gid}"
            )
    return reasons


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "group": {"type": "str", "required": True},
            "ca": {"type": "str", "required": True},
            "trust": {"type": "str", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "renew_before_days": {"type": "int", "required": True},
            "renew_older_than_days": {"type": "int", "default": -1},
        },
        supports_check_mode=True,
    )
    directory, names = module.params["directory"], module.params["names"]
    result = {
        "changed": False,
        "reasons": [],
        "usable_leaf": "",
        "subject_alt_names": [],
        "ca_days_left": None,
    }
    result["subject_alt_names"] = site_ca_leaf.typed_names(names)
    if not site_ca_leaf.HAS_CRYPTOGRAPHY:
        result["reasons"] = ["python3-cryptography is not installed yet"]
        module.exit_json(**result)

    now = dt.datetime.now(dt.timezone.utc)  # noqa: UP017
    ca = module.params["ca"].encode()
    held = {name: read(os.path.join(directory, name)) for name in FILES}  # noqa: PTH118
    try:
        result["ca_days_left"] = site_ca_leaf.ca_days_left(ca, now=now)
    except ValueError as error:
        module.fail_json(msg=f"The site's CA certificate on the controller cannot be read: {error}")
    reasons = site_ca_leaf.leaf_reasons(
        held["host.crt"],
        key_pem=held["host.key"],
        ca_pem=ca,
        names=names,
        renew_before_days=module.params["renew_before_days"],
        renew_older_than_days=module.params["renew_older_than_days"],
        now=now,
    )
    if not reasons:
        result["usable_leaf"] = held["host.crt"].decode()
    reasons += file_reasons(directory, group=module.params["group"])
    if held["ca.pem"] != module.params["trust"].encode():
        reasons.append(f"{directory}/ca.pem is not what the site's hosts trust")
    # The CA that signed, and no other that is trusted: Java takes no chain with a stranger in it.
    if held["host.pem"] != held["host.key"] + held["host.crt"] + ca:
        reasons.append(f"{directory}/host.pem is not key, certificate and CA in this order")
    result["reasons"] = reasons
    module.exit_json(**result)


if __name__ == "__main__":
    main()
