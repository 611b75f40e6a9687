"""What playbooks refuse before any host is reached."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository import PLAYBOOKS, ROOT, load

SHARED = ROOT / "playbooks" / "shared"
HOSTS = {
    "cassandra": {"hosts": {"ring1": {}, "ring2": {}}},
    "ingest": {"hosts": {"ingest1": {}}},
    "gateways": {"hosts": {"gateway1": {}}},
    "monitor": {"hosts": {"monitor1": {}}},
}


def run(folder: Path, playbook: str, *arguments: str, **variables: Any) -> str:
    """All that a run printed on one line, its exit status before it; `variables` are those of all hosts."""
    inventory = folder / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"all": {"vars": variables, "children": HOSTS}}))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), str(ROOT / "playbooks" / playbook), *arguments],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return f"status {done.returncode} " + " ".join((done.stdout + done.stderr).split())


@pytest.mark.playbook
@pytest.mark.parametrize("playbook", ["site.yml", "plan_site.yml"])
def test_root_on_the_controller_is_refused(playbook: str, tmp_path: Path) -> None:
    """CO-101: the CA and the ring's record would be root's."""
    said = run(tmp_path, playbook, ansible_become=True)
    assert not said.startswith("status 0 ")
    assert "CO-101: ansible_become is true for localhost" in said


@pytest.mark.playbook
def test_root_on_the_hosts_alone_is_no_reason(tmp_path: Path) -> None:
    """The near miss: set for the inventory's own hosts, it does not reach localhost."""
    become = "{{ inventory_hostname != 'localhost' }}"
    said = run(tmp_path, "plan_site.yml", ansible_become=become)
    assert "CO-101:" not in said
    assert "OS-100 no manifest given" in said


@pytest.mark.playbook
@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        pytest.param(None, "OS-101 cannot read the site manifest", id="not there"),
        pytest.param("site: harbour\n", "OS-102 the site manifest has", id="not whole"),
    ],
)
def test_a_site_is_opened_by_a_good_manifest_only(manifest: str | None, reason: str, tmp_path: Path) -> None:
    """Nothing is added to the inventory."""
    path = tmp_path / "harbour.yml"
    if manifest is not None:
        path.write_text(manifest)
    known = {"host_address": "192.0.2.1", "site_devices": {}}
    said = run(tmp_path, "plan_site.yml", "-e", f"onboard_site_manifest={path}", **known)
    assert not said.startswith("status 0 ")
    assert reason in said
    assert not (tmp_path / "sites").exists()


@pytest.mark.playbook
@pytest.mark.parametrize(
    ("playbook", "other"),
    [
        ("deploy_cassandra.yml", "ingest1"),
        ("deploy_ingest.yml", "ring1"),
        ("deploy_gateways.yml", "ring1"),
        ("deploy_monitoring.yml", "ring1"),
    ],
)
def test_a_limit_that_leaves_nothing_to_do_is_refused(playbook: str, other: str, tmp_path: Path) -> None:
    """CO-102: it would end well."""
    said = run(tmp_path, playbook, "--limit", other)
    assert not said.startswith("status 0 ")
    assert "CO-102: this playbook is for the hosts of the group" in said


@pytest.mark.playbook
def test_the_whole_site_may_be_limited_to_one_part(tmp_path: Path) -> None:
    """The near miss: the first refusal is a later one, of a part that is there."""
    said = run(tmp_path, "site.yml", "--limit", "ring1:ring2", "-e", '{"cassandra_node_schema": []}')
    assert "CO-102:" not in said
    assert "CN-122:" in said


@pytest.mark.playbook
def test_a_rotation_of_certificates_covers_the_whole_site(tmp_path: Path) -> None:
    """CA-106: a gateway that is left out would be cut off; a ring node that is declared absent may be."""
    absent = {"cassandra_node_absent_hosts": ["ring2", "gateway1"]}
    said = run(tmp_path, "rotate_certificates.yml", "--limit", "all:!gateway1:!ring2", **absent)
    assert not said.startswith("status 0 ")
    assert "CA-106: this run leaves out gateway1." in said


def _first(playbook: Path) -> Path | None:
    imported = load(playbook)[0].get("ansible.builtin.import_playbook")
    return (playbook.parent / imported).resolve() if imported else None


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: path.name)
def test_every_playbook_that_writes_on_the_controller_asks_first(playbook: Path) -> None:
    """verify_site.yml alone writes nothing there."""
    found: Path | None = playbook
    while found not in (None, SHARED / "controller.yml"):
        found = _first(found)
    assert (found is not None) == (playbook.name != "verify_site.yml")
