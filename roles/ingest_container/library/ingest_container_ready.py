#!/usr/bin/python
"""Wait until a container is ready, and say why where it is not."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ingest_container_ready
short_description: Wait until a container is ready, and say why where it is not
description:
  - Ready is a container that answers 200. One that has stopped, or stops again and again, is not
    waited for.
options:
  name:
    description: Name of the container.
    type: str
    required: true
  url:
    description: What to ask.
    type: str
    required: true
  timeout_seconds:
    description: How long to wait.
    type: int
    default: 60
  prefix:
    description: What the message begins with where it is not ready.
    type: str
    default: ""
author: Fieldring
"""
RESTARTS_MAX = 2


def answer(url):
    """Status and the start of the body, or why there is none."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        return error.code, f"{url} answers {error.code}: {error.read(300).decode(errors='replace')}"
    except (OSError, ValueError) as error:
        return 0, f"{url} does not answer ({error})"


def main():
    """Ask until there is a verdict."""
    arguments = {
        "name": {"type": "str", "required": True},
        "url": {"type": "str", "required": True},
        "timeout_seconds": {"type": "int", "default": 60},
        "prefix": {"type": "str", "default": ""},
    }
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
    name, deadline = module.params["name"], time.monotonic() + module.params["timeout_seconds"]

    def fail(reason):
        logs = module.run_command(["docker", "logs", "--tail", "15", name])
        said = (logs[1] + logs[2]).strip() or "nothing"
        module.fail_json(
            ready=False, msg=f"{module.params['prefix']} {reason}. Its last words: {said}".strip()
        )

    while True:
        code, text, error = module.run_command(["docker", "container", "inspect", name])
        if code != 0:
            module.fail_json(ready=False, msg=error.strip())
        (found,) = json.loads(text)
        state, restarts = found["State"], found["RestartCount"]
        if restarts > RESTARTS_MAX or (not state["Running"] and not state.get("Restarting")):
            fail(f"it stopped with exit code {state['ExitCode']}, {restarts} restarts")
        status, problem = answer(module.params["url"])
        if status == 200 and not state.get("Restarting"):
            module.exit_json(changed=False, ready=True)
        if time.monotonic() > deadline:
            fail(f"after {module.params['timeout_seconds']} s {problem}")
        time.sleep(0.3)


if __name__ == "__main__":
    main()
