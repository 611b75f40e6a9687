"""A node is added, another one's disk is lost and replaced, and the added one leaves, under traffic.

The tests go on from each other's ring, in the order in which they stand here.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "molecule/shared"))
from ring_under_test import RingUnderTest, node, status, wait  # type: ignore[import-not-found]

ADDRESSES = {f"fieldring-topology-{n}": f"172.31.93.1{n}" for n in (1, 2, 3, 4)}
FIRST, SECOND, THIRD, SPARE = sorted(ADDRESSES)
RING = RingUnderTest(ADDRESSES, contacts=[ADDRESSES[FIRST], ADDRESSES[THIRD]])
# The tests drive the whole ring; one run of them is enough.
testinfra_hosts = [f"docker://{FIRST}"]

ALL = (FIRST, SECOND, THIRD, SPARE)
THREE = (FIRST, SECOND, THIRD)


def test_check_tells_what_would_be_added() -> None:
    """--check names the step and touches nothing."""
    done = RING.play("add_cassandra_node.yml", "--check", members=ALL).succeeded()
    assert f"would be done: {SPARE} joins" in done.told
    assert not node(SPARE).file("/etc/cassandra").exists
    assert set(THREE) == set(RING.record())


def test_node_joins_after_an_interrupted_attempt() -> None:
    """The first run is killed, and its daemon with it; the second cleans, joins and cleans up the others."""
    host = node(SPARE)
    with RING.traffic("add a node, interrupted once"):
        with RING.interrupted("add_cassandra_node.yml", members=ALL) as runs:
            # The others know by then that it joins.
            wait(
                lambda: (
                    runs() and "pending range setup" in host.run("cat /var/log/cassandra/system.log").stdout
                ),
                seconds=600,
                what="the node begins to join",
            )
        host.check_output("systemctl kill --signal=KILL cassandra; systemctl stop cassandra")
        assert set(THREE) == set(RING.record())
        other = RING.play("replace_cassandra_node.yml", members=ALL, cassandra_node_subject=SECOND)
        assert "add_cassandra_node of" in other.refused("CN-303").told, (
            "the next run says that one did not end"
        )
        added = RING.play("add_cassandra_node.yml", members=ALL).succeeded()
    assert f"what is left of the interrupted join of {SPARE} is removed" in added.told
    everybody = RING.whole(ALL)
    for name in (FIRST, SPARE):
        assert status(name) == everybody
    assert set(ALL) == set(RING.record())
    # It was no seed while it joined, has no tokens in its configuration, and nothing is left open.
    started = host.file("/run/cassandra/started/cassandra.yaml").content_string
    assert ADDRESSES[SPARE] not in re.findall(r"seeds: (.*)", started)[0]
    assert "initial_token" not in started
    assert "auto_bootstrap" not in started
    assert not host.file("/etc/cassandra/joining.json").exists
    for name in THREE:
        assert not node(name).file("/etc/cassandra/cleanup-pending").exists


def test_adding_again_changes_nothing() -> None:
    """Every host is on record."""
    done = RING.play("add_cassandra_node.yml", members=ALL).succeeded()
    assert done.changed() == 0, done.output[-4000:]
    assert "nothing to add" in done.told


def test_running_node_is_not_replaced() -> None:
    """CN-307: it still answers."""
    RING.play("replace_cassandra_node.yml", members=ALL, cassandra_node_subject=SECOND).refused("CN-307")


def test_killed_node_with_a_lost_disk_is_replaced() -> None:
    """kill -9 and an empty disk: nobody else leaves meanwhile; it gets its tokens back."""
    host = node(SECOND)
    before = RING.record()[SECOND]
    with RING.traffic("replace after kill -9 and a lost disk"):
        host.check_output("systemctl kill --signal=KILL cassandra; systemctl stop cassandra")
        host.check_output("find /var/lib/cassandra -mindepth 1 -delete")
        # The gate: two nodes would be down.
        told = RING.play("remove_cassandra_node.yml", members=ALL, cassandra_node_subject=SPARE)
        assert told.returncode != 0
        assert "The gate is closed" in told.told
        assert set(ALL) == set(RING.record())
        # Impatience: the run ends, the node goes on joining, and the next run waits for it.
        subject = {"members": ALL, "cassandra_node_subject": SECOND}
        RING.play("replace_cassandra_node.yml", **subject, cassandra_node_join_wait_seconds=1).refused(
            "CN-315"
        )
        with RING.record_that_says(SECOND, tokens=[1, 2, 3, 4]):
            RING.play("replace_cassandra_node.yml", **subject).refused("CN-317")
        RING.play("replace_cassandra_node.yml", **subject).succeeded()
    assert sorted(RING.record()[SECOND]["tokens"]) == sorted(before["tokens"])
    assert status(FIRST) == RING.whole(ALL)
    assert not host.file("/etc/systemd/system/cassandra.service.d/replace.conf").exists
    assert not host.file("/etc/cassandra/joining.json").exists
    seeds = re.findall(r"seeds: (.*)", host.file("/run/cassandra/started/cassandra.yaml").content_string)
    assert ADDRESSES[SECOND] not in seeds[0]


def test_stopped_node_is_not_removed_as_dead() -> None:
    """CN-309: its disk is there, it can hand over its own data."""
    host = node(SPARE)
    host.check_output("systemctl stop cassandra")
    wait(lambda: status(FIRST)[ADDRESSES[SPARE]] == "DN", seconds=60, what="the others call it down")
    try:
        RING.play("remove_cassandra_node.yml", members=ALL, cassandra_node_subject=SPARE).refused("CN-309")
    finally:
        host.check_output("systemctl start cassandra")
    wait(lambda: status(FIRST)[ADDRESSES[SPARE]] == "UN", seconds=180, what="it is back")


def test_node_hands_over_and_leaves() -> None:
    """It is off the record, stopped, and does not come back at the next boot."""
    with RING.traffic("remove a node"):
        done = RING.play("remove_cassandra_node.yml", members=ALL, cassandra_node_subject=SPARE).succeeded()
    assert f"Take {SPARE} out of the inventory's group now" in done.told
    assert set(THREE) == set(RING.record())
    assert status(FIRST) == RING.whole(THREE)
    assert node(SPARE).run("systemctl is-active cassandra").stdout.strip() == "inactive"
    assert node(SPARE).run("systemctl is-enabled cassandra").stdout.strip() == "disabled"


@pytest.mark.parametrize("members", [ALL, THREE], ids=["still in the inventory", "taken out"])
def test_removing_again_changes_nothing(members: tuple[str, ...]) -> None:
    """Nothing to remove."""
    done = RING.play("remove_cassandra_node.yml", members=members, cassandra_node_subject=SPARE).succeeded()
    assert done.changed() == 0, done.output[-4000:]
    assert "nothing to remove" in done.told


def test_no_fewer_nodes_than_copies() -> None:
    """CN-308: three copies need three nodes."""
    done = RING.play("remove_cassandra_node.yml", members=THREE, cassandra_node_subject=THIRD).refused(
        "CN-308"
    )
    assert "fieldring keeps 3 copies in dc1" in done.told
