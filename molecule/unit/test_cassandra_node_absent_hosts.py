"""Hosts that are declared absent, and hosts that are gone without it, as the role's tasks see them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT, load

HERE = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
GONE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}


def played(
    folder: Path, play: dict[str, Any] | Path, hosts: dict[str, Any], **variables: Any
) -> tuple[int, str]:
    """Exit status and all that was printed, of a play or a playbook; `variables` beat the role's."""
    if isinstance(play, dict):
        (folder / "play.yml").write_text(json.dumps([play]))
    playbook = "play.yml" if isinstance(play, dict) else str(play)
    groups: dict[str, Any] = {name: {"hosts": {}} for name in ("ingest", "gateways")}
    groups["cassandra"] = {"hosts": {name: {} for name in hosts}}
    (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts, "children": groups}}))
    done = subprocess.run(
        ["ansible-playbook", "--check", "-i", "hosts.yml", "-e", json.dumps(variables), playbook],
        cwd=folder,
        env={
            **os.environ,
            "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.playbook
def test_absent_node_on_record_still_holds_copies(tmp_path: Path) -> None:
    """CN-124 and the copies of the accounts count it; one that was removed for good is none."""
    peers = [
        {"name": f"ring{n}", "address": f"192.0.2.1{n}", "dc": "dc1", "rack": f"rack{n}"}
        for n in (1, 2, 3, 4)
    ]
    nodes = {peer["name"]: {**peer, "host_id": peer["name"], "tokens": [1]} for peer in peers[:3]}
    (tmp_path / "main.json").write_text(json.dumps({"nodes": nodes}))
    told = "{{ [__cassandra_node_expected | map(attribute='name') | join(' '), "
    told += (
        "__cassandra_node_owners | map(attribute='name') | join(' '), __cassandra_node_system_replication] }}"
    )
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {
            "cassandra_node_record_directory": str(tmp_path),
            "cassandra_node_peers": peers,
            "cassandra_node_absent_hosts": ["ring3", "ring4"],
        },
        "tasks": [
            {"include_role": {"name": "cassandra_node", "tasks_from": "unlock", "public": True}},
            {"debug": {"msg": told}},
        ],
    }
    status, said = played(tmp_path, play, {"localhost": {}})
    assert status == 0, said
    assert '"ring1 ring2", "ring1 ring2 ring3", { "dc1": 3 }' in said


@pytest.mark.playbook
@pytest.mark.parametrize("tasks", ["gate", "plan_outage"])
def test_host_that_is_gone_is_named_as_a_reason(tmp_path: Path, tasks: str) -> None:
    """CN-203: it does not end the run without a word, though any error ends the play."""
    peers = [{"name": f"ring{n}", "address": f"127.0.0.{n}", "dc": "dc1", "rack": f"rack{n}"} for n in (1, 2)]
    play = {
        "hosts": "all",
        "gather_facts": False,
        "any_errors_fatal": True,
        "vars": {
            "cassandra_node_record_directory": str(tmp_path),
            "cassandra_node_peers": peers,
            "cassandra_node_address": "127.0.0.1",
            "cassandra_node_superuser_password": "unused-here-1",
            **({"cassandra_node_gate_mode": "touch"} if tasks == "gate" else {}),
            "cassandra_node_gate_subjects": ["ring1"],
            "cassandra_node_gate_patience_seconds": 0,
            "cassandra_node_gate_wait_seconds": 0,
        },
        "tasks": [{"include_role": {"name": "cassandra_node", "tasks_from": tasks}}],
    }
    status, said = played(tmp_path, play, {"ring1": HERE, "ring2": GONE})
    assert status != 0
    assert "CN-203: ring2" in said


@pytest.mark.playbook
@pytest.mark.parametrize(
    ("playbook", "refused"),
    [("backup_cassandra", "CN-140"), ("restore_cassandra", "CN-140"), ("rotate_credentials", "CN-173")],
)
def test_an_absent_host_takes_no_part(tmp_path: Path, playbook: str, refused: str) -> None:
    """The first node of the inventory would be asked for the whole ring; the refusal is the other's."""
    common = {
        "ansible_become": "{{ inventory_hostname == 'nobody' }}",
        "host_address": "127.0.0.1",
        "cassandra_node_dc": "dc1",
        "cassandra_node_rack": "rack1",
        "site_state_directory": str(tmp_path),
        "vault_cassandra_superuser_password": "unused-here-1",
        "cassandra_node_retired_accounts": ["fieldring_admin"],
    }
    hosts = {"ring1": {**GONE, **common}, "ring2": {**HERE, **common}}
    path = ROOT / "playbooks" / f"{playbook}.yml"
    status, said = played(tmp_path, path, hosts, cassandra_node_absent_hosts=["ring1"])
    assert status != 0
    assert f"{refused}: " in said
    assert "fatal: [ring2]" in said
    assert "fatal: [ring1]" not in said
    status, said = played(tmp_path, path, hosts, cassandra_node_absent_hosts=["ring1", "ring2"])
    assert status == 0, said
    assert "TASK [cassandra_node" not in said


@pytest.mark.parametrize("playbook", ["backup_cassandra", "restore_cassandra", "rotate_credentials"])
def test_absent_hosts_are_left_out_of_every_play(playbook: str) -> None:
    """Who left one play is back in the next."""
    plays = [
        play for play in load(ROOT / "playbooks" / f"{playbook}.yml") if play.get("hosts") == "cassandra"
    ]
    assert len(plays) == 2
    for play in plays:
        assert play["tasks"][0]["ansible.builtin.import_tasks"] == "shared/absent.yml", play["name"]
        assert play["gather_facts"] is False


def ring_of_two(folder: Path, tasks: list[dict[str, Any]], *, recorded: bool) -> dict[str, Any]:
    """A play of the role on ring1, from whose ring ring2 is declared absent."""
    peers = [{"name": f"ring{n}", "address": f"127.0.0.{n}", "dc": "dc1", "rack": f"rack{n}"} for n in (1, 2)]
    nodes = {peer["name"]: {**peer, "host_id": peer["name"], "tokens": [1]} for peer in peers}
    if not recorded:
        del nodes["ring2"]
    (folder / "main.json").write_text(json.dumps({"nodes": nodes}))
    return {
        "hosts": "ring1",
        "gather_facts": False,
        "any_errors_fatal": True,
        "vars": {
            "cassandra_node_record_directory": str(folder),
            "cassandra_node_peers": peers,
            "cassandra_node_absent_hosts": ["ring2"],
            "cassandra_node_address": "127.0.0.1",
            "cassandra_node_superuser_password": "unused-here-1",
        },
        "tasks": tasks,
    }


@pytest.mark.playbook
@pytest.mark.parametrize("absent", [["ring2"], []])
def test_a_backup_says_whom_it_is_not_of(tmp_path: Path, absent: list[str]) -> None:
    """Rows that the absent node alone has are not in it."""
    report = load(ROOT / "roles" / "cassandra_node" / "tasks" / "backup.yml")[-1]
    known = {"include_role": {"name": "cassandra_node", "tasks_from": "unlock", "public": True}}
    play = ring_of_two(tmp_path, [known, report], recorded=True)
    told = {"__cassandra_node_forgotten": {"summary": {"kept": ["20261101T010000Z"]}}}
    status, said = played(
        tmp_path, play, {"ring1": HERE, "ring2": HERE}, cassandra_node_absent_hosts=absent, **told
    )
    assert status == 0, said
    assert ("ring2 ? files" in said) == (not absent)
    assert ("kept: 20261101T010000Z; not of ring2, declared absent" in said) == bool(absent)


@pytest.mark.playbook
@pytest.mark.parametrize("in_the_ring", [True, False])
def test_a_restore_needs_every_node_that_the_ring_has(tmp_path: Path, in_the_ring: bool) -> None:
    """CN-141 for one that is away: its old rows would come back. One that was removed is none of them."""
    members = {"127.0.0.1": [1], **({"127.0.0.2": [2]} if in_the_ring else {})}
    restore = {
        "include_role": {"name": "cassandra_node", "tasks_from": "restore"},
        "vars": {"cassandra_node_restore_backup": "latest", "cassandra_node_backup_of_ring": "main"},
    }
    play = ring_of_two(tmp_path, [restore], recorded=in_the_ring)
    seen = {"view": {"tokens_of": members}}
    known = {"__cassandra_node_seen": seen, "__cassandra_node_backups": {"backups": {}}}
    status, said = played(tmp_path, play, {"ring1": HERE}, **known)
    # Without a database the near miss ends too, but later.
    assert status != 0
    assert in_the_ring == ("CN-141: the ring has 127.0.0.2" in said)
    assert in_the_ring == ("TASK [cassandra_node : Restore | Describe the tables" not in said)


@pytest.mark.playbook
@pytest.mark.parametrize("tasks", ["rotate_accounts", "retire_accounts"])
@pytest.mark.parametrize("recorded", [True, False])
def test_accounts_are_not_changed_behind_clients_of_an_absent_node(
    tmp_path: Path, tasks: str, recorded: bool
) -> None:
    """CN-174: it runs, so that clients may be connected. One that was removed has none of this ring."""
    with socket.create_server(("127.0.0.2", 0)) as listener:
        play = ring_of_two(
            tmp_path,
            [{"include_role": {"name": "cassandra_node", "tasks_from": tasks}}],
            recorded=recorded,
        )
        port = listener.getsockname()[1]
        status, said = played(tmp_path, play, {"ring1": HERE}, __cassandra_node_native_port=port)
    assert status != 0
    assert recorded == ("CN-174: ring2 is declared absent, but takes connections of clients" in said)
    assert recorded == ("TASK [cassandra_node : R" not in said.split("CN-174 Refuse", 1)[1])


@pytest.mark.playbook
def test_site_is_verified_without_a_host_that_is_declared_absent(tmp_path: Path) -> None:
    """By no play: its certificate and metrics are not asked for either."""
    playbook = ROOT / "playbooks/verify_site.yml"
    gone = {**GONE, "host_address": "192.0.2.13", "cassandra_node_dc": "dc1", "cassandra_node_rack": "rack1"}
    status, said = played(tmp_path, playbook, {"ring3": gone}, cassandra_node_absent_hosts=["ring3"])
    assert "UNREACHABLE" not in said
    assert status == 0, said
