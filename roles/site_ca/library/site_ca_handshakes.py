#!/usr/bin/python
"""Module entry: new TLS handshakes with listeners, and who signed what they present."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: site_ca_handshakes
short_description: See by new handshakes whether listeners present, and accept, leaves of a CA
description:
  - TLS 1.2, in which a handshake ends only after the listener has judged the client's certificate.
options:
  endpoints: {type: list, elements: dict, required: true, description: 'Name, address, port, optional.'}
  directory: {type: path, required: true, description: Directory of the host's files.}
  trust: {type: str, required: true, description: The only CA certificates that count.}
  leaf: {type: str, default: '', description: Log in with this leaf; empty for the present one.}
  wait_seconds: {type: int, default: 30, description: Patience for a listener that has just been reloaded.}
author: [Fieldring]
"""
RETURN = r"""
faults: {type: list, returned: always, description: What did not hold; empty when all is well.}
proven: {type: list, returned: always, description: Names of the listeners that were asked.}
"""


def shake(endpoint, *, directory, trust, leaf):
    """None, or what went wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=trust)
    with tempfile.NamedTemporaryFile("w", prefix="fieldring-leaf-") as file:
        certificate = os.path.join(directory, "host.crt")  # noqa: PTH118
        if leaf:
            file.write(leaf)
            file.flush()
            certificate = file.name
        context.load_cert_chain(certificate, os.path.join(directory, "host.key"))  # noqa: PTH118
    try:
        address = (endpoint["address"], int(endpoint["port"]))
        with (
            socket.create_connection(address, timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=endpoint["address"]) as channel,
            contextlib.suppress(OSError),
        ):
            channel.unwrap()
    except ConnectionRefusedError as error:
        return "" if endpoint.get("optional") else str(error)
    except OSError as error:
        return str(error)
    return None


def main():
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "dict", "required": True},
            "directory": {"type": "path", "required": True},
            "trust": {"type": "str", "required": True},
            "leaf": {"type": "str", "default": ""},
            "wait_seconds": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    params = module.params
    how = {"directory": params["directory"], "trust": params["trust"], "leaf": params["leaf"]}
    deadline = time.monotonic() + params["wait_seconds"]
    faults, proven = [], []
    for endpoint in params["endpoints"]:
        while True:
            said = shake(endpoint, **how)
            if not said or time.monotonic() > deadline:
                break
            time.sleep(1)
        if said is None:
            proven.append(endpoint["name"])
        elif said:
            faults.append(f"{endpoint['name']} ({endpoint['address']}:{endpoint['port']}): {said}")
    module.exit_json(changed=False, faults=faults, proven=proven)


if __name__ == "__main__":
    main()
