"""One ring through what `make test-full` does on four: each operation once, under traffic, no interruption.

The tests go on from each other's ring, in the order in which they stand here. Interruptions, refusals and the
rest of each chain are in the role's other scenarios.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
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
        RING.play("replace_cassandra_node.yml", members=FOUR, cassandra_node_subject=SPARE).succeeded()
    assert sorted(RING.record()[SPARE]["tokens"]) == sorted(before["tokens"])
    assert status(FIRST) == RING.whole(FOUR)


def test_node_leaves() -> None:
    """It hands over, and is off the record; with three left the next is refused."""
    with RING.traffic("remove a node"):
        RING.play("remove_cassandra_node.yml", members=FOUR, cassandra_node_subject=SPARE).succeeded()
    assert status(FIRST) == RING.whole(THREE)
    assert set(THREE) == set(RING.record())
    RING.play("remove_cassandra_node.yml", members=THREE, cassandra_node_subject=THIRD).refused("CN-308")


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
