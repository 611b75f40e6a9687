"""A host reached as real ones are: over SSH, unprivileged, with sudo and its key checked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from testinfra.host import Host

EPHEMERAL = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
TLS = "/etc/fieldring/tls"


def ping(*arguments: str) -> subprocess.CompletedProcess[str]:
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    return subprocess.run(
        ["ansible", "all", "--inventory", inventory, "--module-name", "ping", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_user_of_the_connection_is_unprivileged(host: Host) -> None:
    """Root comes from sudo alone: without it the key cannot be read."""
    assert host.check_output("id -un") == "root"
    assert host.run(f"cat {TLS}/host.key").rc == 0
    run = ping("--module-name", "command", "--args", f"cat {TLS}/host.key", "-e", "ansible_become=false")
    assert run.returncode != 0
    assert "Permission denied" in run.stdout


def test_the_roles_did_their_work_over_ssh(host: Host) -> None:
    assert host.run(f"openssl verify -CAfile {TLS}/ca.pem {TLS}/host.crt").rc == 0
    assert host.run("chronyc -n tracking").rc == 0


def test_a_host_with_another_key_is_refused() -> None:
    """Somebody else at the host's address gets no connection, and so no secret."""
    assert ping().returncode == 0
    public = (EPHEMERAL / "operator_key.pub").read_text(encoding="ascii").split()
    impostor = EPHEMERAL / "known_hosts_impostor"
    impostor.write_text(f"172.31.90.11 {public[0]} {public[1]}\n", encoding="ascii")
    arguments = f"-o UserKnownHostsFile={impostor} -o StrictHostKeyChecking=yes -o ControlPath=none"
    run = ping("-e", f"ansible_ssh_common_args='{arguments}'")
    assert run.returncode != 0
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in run.stdout


def test_an_unknown_host_is_refused() -> None:
    arguments = "-o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes -o ControlPath=none"
    run = ping("-e", f"ansible_ssh_common_args='{arguments}'")
    assert run.returncode != 0
    assert "Host key verification failed" in run.stdout
