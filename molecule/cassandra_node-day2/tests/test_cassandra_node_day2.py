"""One ring through what `make test-full` does on four: each operation once, under traffic, no interruption.

The tests go on from each other's ring, in the order in which they stand here. Interruptions, refusals and the
rest of each chain are in the role's other scenarios.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "molecule/shared"))
from ring_under_test import RingUnderTest, kill, lose, node, status, wait  # type: ignore[import-not-found]

ADDRESSES = {f"fieldring-day2-{n}": f"172.31.97.1{n}" for n in (1, 2, 3, 4, 5)}
FIRST, SECOND, THIRD, SPARE, ELSEWHERE = sorted(ADDRESSES)
RING = RingUnderTest(ADDRESSES, contacts=[ADDRESSES[FIRST], ADDRESSES[SECOND]])
# The tests drive the whole ring; one run of them is enough.
testinfra_hosts = [f"docker://{FIRST}"]
# One may be several runs of a playbook, beside other scenarios.
pytestmark = pytest.mark.timeout(900)

THREE = (FIRST, SECOND, THIRD)
FOUR = (*THREE, SPARE)
TWO_CENTRES = (*THREE, ELSEWHERE)


def test_every_node_is_upgraded() -> None:
    """5.0.8 to 5.0.9, one after the other; a second run changes nothing, and another series is refused."""
    RING.variables["cassandra_node_version"] = "5.0.9"
    with RING.traffic("upgrade, 3 nodes"):
        done = RING.play("upgrade_cassandra.yml", members=THREE).succeeded()
    assert "changed forward to 5.0.9" in done.told
    for name in THREE:
        assert "ReleaseVersion: 5.0.9" in node(name).check_output("nodetool version")
    assert RING.play("upgrade_cassandra.yml", members=THREE).succeeded().changed() == 0
    RING.play("upgrade_cassandra.yml", members=THREE, cassandra_node_version="5.1.0").refused("CN-224")


def test_backup_and_one_table_of_it_back() -> None:
    """The restored table is as it was: what was deleted is back, what came later is not there."""
    insert = "INSERT INTO fieldring.windows (sensor, ts, value) VALUES ('%s', 1, %s)"
    RING.cql(insert % ("kerbside", 1.5))
    with RING.traffic("back up"):
        said = RING.play("backup_cassandra.yml", members=THREE).succeeded().told
    name = re.findall(r"\d{8}T\d{6}Z", said.split("kept: ")[-1])[0]
    RING.cql("DELETE FROM fieldring.windows WHERE sensor = 'kerbside'")
    RING.cql(insert % ("rooftop", 2.5))
    asked = {"restore_cassandra_backup": name, "restore_cassandra_tables": ["fieldring.windows"]}
    RING.play("restore_cassandra.yml", members=THREE, **asked).refused("CN-147")
    with RING.traffic("restore another table"):
        RING.play("restore_cassandra.yml", members=THREE, **asked, restore_cassandra_confirm=name).succeeded()
    assert RING.cql("SELECT sensor, ts, value FROM fieldring.windows") == [("kerbside", 1, 1.5)]


def test_host_that_is_gone_shuts_the_gate() -> None:
    """CN-203: not even Ansible reaches it, and the run says so."""
    lose(THIRD)
    try:
        done = RING.play("restart_cassandra.yml", members=THREE, restart_cassandra_nodes=[FIRST])
    finally:
        subprocess.run(["docker", "start", THIRD], check=True, capture_output=True)
    done.refused("CN-203")
    assert f"CN-203: {THIRD}" in done.told


def test_killed_node_shuts_the_gate_and_the_restart_opens_it() -> None:
    """CN-204 while it is down; then it is started, and the node whose configuration waits is restarted."""
    wait(lambda: status(FIRST) == RING.whole(THREE), seconds=180, what="the host is back, and its node")
    kill(THIRD)
    conf = "/etc/cassandra/cassandra.yaml"
    node(SECOND).check_output("sed -i 's/file_cache_size: 32MiB/file_cache_size: 33MiB/' %s", conf)
    RING.play("restart_cassandra.yml", members=THREE, restart_cassandra_nodes=[FIRST]).refused("CN-204")
    with RING.traffic("restart, 1 down and 1 pending"):
        done = RING.play("restart_cassandra.yml", members=THREE).succeeded()
    assert f"1. start {THIRD}: it is down" in done.told
    assert f"2. restart {SECOND}: cassandra.yaml: file_cache_size" in done.told
    assert "The ring is whole." in done.told


def test_node_joins() -> None:
    """It is on record, and everybody sees it; a second run changes nothing."""
    with RING.traffic("add a node"):
        RING.play("add_cassandra_node.yml", members=FOUR).succeeded()
    for name in (FIRST, SPARE):
        assert status(name) == RING.whole(FOUR)
    assert set(FOUR) == set(RING.record())
    assert RING.play("add_cassandra_node.yml", members=FOUR).succeeded().changed() == 0


def test_node_without_its_disk_is_replaced() -> None:
    """kill -9, and the disk is gone: it comes back with its tokens."""
    before = RING.record()[SPARE]
    with RING.traffic("replace after kill -9 and a lost disk"):
        kill(SPARE)
        node(SPARE).check_output("find /var/lib/cassandra -mindepth 1 -delete")
        wait(
            lambda: all(status(name)[ADDRESSES[SPARE]] == "DN" for name in THREE),
            seconds=90,
            what="the others call it down",
        )
        done = RING.play("replace_cassandra_node.yml", members=FOUR, cassandra_node_subject=SPARE)
        if done.returncode:
            # A start that failed is said with its reason; the playbook goes on where it stopped.
            done.refused("CN-315")
            print(
                node(SPARE)
                .run("grep -hE -A4 'ERROR|Exception' /var/log/cassandra/system.log | tail -60")
                .stdout
            )
            done = RING.play("replace_cassandra_node.yml", members=FOUR, cassandra_node_subject=SPARE)
        done.succeeded()
    assert sorted(RING.record()[SPARE]["tokens"]) == sorted(before["tokens"])
    assert status(FIRST) == RING.whole(FOUR)


def test_node_leaves() -> None:
    """It hands over, and is off the record; with three left the next is refused."""
    with RING.traffic("remove a node"):
        RING.play("remove_cassandra_node.yml", members=FOUR, cassandra_node_subject=SPARE).succeeded()
    assert status(FIRST) == RING.whole(THREE)
    assert set(THREE) == set(RING.record())
    RING.play("remove_cassandra_node.yml", members=THREE, cassandra_node_subject=THIRD).refused("CN-308")


def test_leaves_are_renewed() -> None:
    """A node serves another certificate than before, and no request fails."""
    before = ssl.get_server_certificate((ADDRESSES[SECOND], 9042))
    with RING.traffic("renew leaves"):
        RING.play("rotate_certificates.yml", members=THREE, rotate_certificates_older_than_days=0).succeeded()
    assert ssl.get_server_certificate((ADDRESSES[SECOND], 9042)) != before


def test_credentials_are_rotated() -> None:
    """Superuser and account; the old account goes when its last client has gone, and no secret is printed."""
    account = {"name": "fieldring_ingest_2", "password": "molecule-ingest-2", "keyspaces": ["fieldring"]}
    RING.variables |= {
        "vault_cassandra_superuser_password": "molecule-superuser-2",
        "cassandra_node_superuser_previous": "fieldring_admin",
        "cassandra_node_superuser_previous_password": "molecule-superuser-1",
        "cassandra_node_accounts": [account],
        "cassandra_node_retired_accounts": ["fieldring_ingest"],
        "cassandra_node_retire_wait_seconds": 5,
    }
    with RING.traffic("rotate credentials, with the account before"):
        said = RING.play("rotate_credentials.yml", members=THREE).refused("CN-172").output
    RING.login = {"user": "fieldring_ingest_2", "password": "molecule-ingest-2"}
    with RING.traffic("rotate credentials, with the account of now"):
        said += RING.play("rotate_credentials.yml", members=THREE).succeeded().output
    assert not re.search(r"molecule-(superuser|ingest)-\d", said)


def test_data_centre_comes_and_goes() -> None:
    """Its node has every row that was written before it was there; afterwards nobody names it."""
    copies = [{"name": "fieldring", "replication": {"dc1": 3, "dc2": 1}}]
    subject = {"members": TWO_CENTRES, "cassandra_node_subject": "dc2"}
    with RING.traffic("add a data centre of one node"):
        RING.play("add_datacenter.yml", **subject, cassandra_node_keyspaces=copies).succeeded()
    assert status(FIRST) == RING.whole(TWO_CENTRES)
    assert RING.clients([ADDRESSES[ELSEWHERE]], dc="dc2").missing() == []
    with RING.traffic("remove a data centre of one node"):
        RING.play("remove_datacenter.yml", **subject).succeeded()
    wait(lambda: status(FIRST) == RING.whole(THREE), seconds=60, what="three nodes UN")
    assert ADDRESSES[ELSEWHERE] not in node(FIRST).check_output("nodetool describering system_auth")
    done = RING.play("remove_datacenter.yml", **subject).succeeded()
    assert done.changed() == 0, done.output[-4000:]


def test_power_cut_of_all() -> None:
    """Every daemon dies at once under traffic; what was acknowledged up to then is there afterwards."""
    cut = RING.clients(RING.contacts)
    with cut:
        time.sleep(3)
        for name in THREE:
            node(name).check_output("systemctl kill --signal=KILL cassandra")
        for name in THREE:
            node(name).check_output("systemctl stop cassandra")
        done = RING.play("start_cassandra_after_outage.yml", members=THREE).succeeded()
    assert "started: " + ", ".join(THREE) in done.told
    assert "The ring is whole." in done.told
    assert cut.counts["acknowledged"] > 0
    assert cut.counts["wrong"] == 0, cut.counts["errors"]
    assert cut.missing() == []
    print(f"power cut of all, {len(cut.numbers())} acknowledged, none missing", flush=True)


def test_repair_and_a_support_bundle() -> None:
    """Every range once, and again nothing; an archive of what support asks for, without a secret."""
    with RING.traffic("repair"):
        done = RING.play("repair_cassandra.yml", members=THREE, repair_cassandra_older_than_hours=0)
    assert f"{FIRST}: repaired fieldring in " in done.succeeded().told
    assert RING.play("repair_cassandra.yml", members=THREE).succeeded().changed() == 0
    RING.play("collect_support_bundle.yml", members=THREE).succeeded()
    archive = max((RING.ephemeral / "support").glob("*.tar.gz"))
    with tarfile.open(archive) as bundle:
        texts = {e.name: bundle.extractfile(e).read().decode() for e in bundle if e.isfile()}  # type: ignore[union-attr]
    assert any(name.endswith(f"{SECOND}/files/etc/cassandra/cassandra.yaml") for name in texts)
    assert not re.search(r"molecule-(superuser|ingest)-\d|PRIVATE KEY", "".join(texts.values()))
