"""Plays on this machine alone, for what only Ansible itself can show of a task file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from repository import ROOT


def run(folder: Path, playbook: Path, *arguments: str, **variables: Any) -> tuple[int, str]:
    """Exit status and all that was printed, on one line; the one host is this machine, unchanged."""
    host = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "ansible_become": "{{ inventory_hostname == 'nobody' }}",
        "host_address": "127.0.0.1",
        "cassandra_node_dc": "dc1",
        "cassandra_node_rack": "rack1",
        "site_state_directory": str(folder),
        "vault_cassandra_superuser_password": "unused-here-1",
        **variables,
    }
    groups: dict[str, Any] = {name: {"hosts": {}} for name in ("ingest", "gateways", "monitor")}
    groups["cassandra"] = {"hosts": {"ring1": host}}
    (folder / "hosts.yml").write_text(json.dumps({"all": {"children": groups}}))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(folder / "hosts.yml"), str(playbook), *arguments],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


def verb(folder: Path, name: str) -> Path:
    """A playbook of one task file of the role."""
    play = {
        "hosts": "cassandra",
        "gather_facts": False,
        "vars": {
            "cassandra_node_record_directory": str(folder / "ring"),
            "cassandra_node_lock_operation": "restart_cassandra",
        },
        "tasks": [{"include_role": {"name": "cassandra_node", "tasks_from": name}}],
    }
    path = folder / f"{name}.yml"
    path.write_text(json.dumps([play]))
    return path
