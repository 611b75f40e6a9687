"""A second data centre of two nodes is added to a ring of three, and removed again, under traffic.

The tests go on from each other's ring, in the order in which they stand here.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "molecule/shared"))
from ring_under_test import RingUnderTest, node, status, wait  # type: ignore[import-not-found]

ADDRESSES = {f"fieldring-datacenter-{n}": f"172.31.94.1{n}" for n in (1, 2, 3, 4, 5)}
FIRST, SECOND, THIRD, FOURTH, FIFTH = sorted(ADDRESSES)
RING = RingUnderTest(ADDRESSES, contacts=[ADDRESSES[FIRST], ADDRESSES[THIRD]])
# The tests drive the whole ring; one run of them is enough.
testinfra_hosts = [f"docker://{FIRST}"]

ALL = (FIRST, SECOND, THIRD, FOURTH, FIFTH)
OLD = (FIRST, SECOND, THIRD)
NEW = (FOURTH, FIFTH)
COPIES = [{"name": "fieldring", "replication": {"dc1": 3, "dc2": 2}}]
ADD = {"members": ALL, "cassandra_node_subject": "dc2", "cassandra_node_keyspaces": COPIES}
# Those of Cassandra's own that add_datacenter has copied there.
SYSTEM_KEYSPACES = ("system_auth", "system_distributed", "system_traces")
REMOVE = {"members": ALL, "cassandra_node_subject": "dc2"}


def pid(name: str) -> int:
    """Of the daemon of that host."""
    return int(node(name).check_output("systemctl show cassandra --property=MainPID --value"))


def copies_in(keyspace: str) -> set[str]:
    """The addresses that have copies of it."""
    told = node(FIRST).check_output(f"nodetool describering {keyspace}")
    return set(re.findall(r"172\.31\.94\.\d+", told))


def test_check_tells_what_would_be_added() -> None:
    """--check names the steps and touches nothing."""
    done = RING.play("add_datacenter.yml", "--check", **ADD).succeeded()
    for name in NEW:
        assert f"would be done: {name} joins dc2" in done.told
        assert not node(name).file("/etc/cassandra").exists
    assert set(OLD) == set(RING.record())


def test_more_copies_than_nodes() -> None:
    """CN-314, before a host is touched."""
    wanted = [{"name": "fieldring", "replication": {"dc1": 3, "dc2": 3}}]
    RING.play("add_datacenter.yml", **{**ADD, "cassandra_node_keyspaces": wanted}).refused("CN-314")
    assert not node(FOURTH).file("/etc/cassandra").exists


def test_data_centre_is_added_after_an_interrupted_run() -> None:
    """The first run is killed when the new nodes have joined and hold nothing; the second goes on."""
    with RING.traffic("add a data centre of two nodes, interrupted once"):
        with RING.interrupted("add_datacenter.yml", **ADD) as runs:
            wait(
                lambda: runs() and status(FIRST) == RING.whole(ALL),
                seconds=600,
                what="the new nodes are up and normal",
            )
        assert node(FOURTH).file("/etc/cassandra/joining.json").exists
        added = RING.play("add_datacenter.yml", **ADD).succeeded()
    assert "dc2 has 2 nodes" in added.told
    assert set(ALL) == set(RING.record())
    for name in (FIRST, FOURTH):
        assert status(name) == RING.whole(ALL)
    for keyspace in ("fieldring", "system_auth"):
        assert {ADDRESSES[name] for name in NEW} <= copies_in(keyspace)
    for name in NEW:
        host = node(name)
        assert not host.file("/etc/cassandra/joining.json").exists
        assert not host.file("/etc/systemd/system/cassandra.service.d/rebuild.conf").exists
        assert "auto_bootstrap" not in host.file("/etc/cassandra/cassandra.yaml").content_string
    tokens = [token for member in RING.record().values() for token in member["tokens"]]
    assert len(tokens) == len(set(tokens))


def test_clients_of_the_new_data_centre_read_everything_there() -> None:
    """LOCAL_QUORUM in dc2: also what was written before it was there, and its own writes."""
    clients = RING.clients([ADDRESSES[name] for name in NEW], dc="dc2")
    before = len(clients.numbers())
    assert before > 100
    assert clients.missing() == []
    with clients:
        wait(lambda: len(clients.numbers()) > before + 20, seconds=60, what="writes are acknowledged in dc2")
    assert clients.counts["failed_writes"] + clients.counts["failed_reads"] == 0
    assert RING.clients(RING.contacts).missing() == []


def test_adding_again_changes_nothing() -> None:
    """It is there already."""
    done = RING.play("add_datacenter.yml", **ADD).succeeded()
    assert done.changed() == 0, done.output[-4000:]
    assert "dc2 is there already" in done.told


def test_partitioned_data_centre_shuts_the_gate() -> None:
    """CN-208: the nodes of each side run, serve their own clients, and call those of the other down."""
    for name in NEW:
        rules = " ".join(
            f"add chain inet cut {hook} {{ type filter hook {hook} priority 0; }}; "
            f"add rule inet cut {hook} ip {way} {{ {', '.join(ADDRESSES[old] for old in OLD)} }} drop;"
            for hook, way in (("input", "saddr"), ("output", "daddr"))
        )
        node(name).check_output(f"nft 'add table inet cut; {rules}'")
    try:
        for one, others in ((FIRST, NEW), (FOURTH, OLD)):
            wait(
                lambda one=one, others=others: all(status(one)[ADDRESSES[n]] == "DN" for n in others),  # type: ignore[misc]
                seconds=120,
                what=f"{one} calls the other side down",
            )
        said = RING.play("restart_cassandra.yml", members=ALL, restart_cassandra_nodes=[FIRST])
        said.refused("CN-208")
        assert f"{FOURTH} is called down by {FIRST}, {SECOND}, {THIRD}" in said.told
        assert f"{FIRST} is called down by {FOURTH}, {FIFTH}" in said.told
    finally:
        for name in NEW:
            node(name).check_output("nft delete table inet cut")
    for name in (FIRST, FOURTH):
        wait(lambda name=name: status(name) == RING.whole(ALL), seconds=120, what="it is whole again")  # type: ignore[misc]


def test_rack_is_restarted_at_once() -> None:
    """CN-217: both copies of dc2 stand in one rack. Where its users accept that, the rack goes at once."""
    rack: dict[str, Any] = {
        "members": ALL,
        "cassandra_node_keyspaces": COPIES,
        "restart_cassandra_nodes": list(NEW),
        "restart_cassandra_by": "rack",
    }
    before = {name: pid(name) for name in ALL}
    done = RING.play("restart_cassandra.yml", **rack).refused("CN-217")
    assert f"1. restart {FOURTH}, {FIFTH}: " in done.told
    assert "keyspace fieldring has 2 copies in dc2" in done.told
    assert before == {name: pid(name) for name in ALL}
    with RING.traffic("restart a rack of two nodes, clients in the other data centre"):
        RING.play(
            "restart_cassandra.yml",
            **rack,
            cassandra_node_gate_unavailable_keyspaces=["fieldring", *SYSTEM_KEYSPACES],
        ).succeeded()
    after = {name: pid(name) for name in ALL}
    assert [name for name in ALL if before[name] != after[name]] == list(NEW)
    assert status(FIRST) == RING.whole(ALL)


def test_clients_that_live_there_keep_it() -> None:
    """CN-312: an ingest host of the inventory has it for its own."""
    RING.play("remove_datacenter.yml", clients="dc2", **REMOVE).refused("CN-312")


def test_check_tells_what_would_be_removed() -> None:
    """--check names the steps and leaves the ring as it is."""
    done = RING.play("remove_datacenter.yml", "--check", **REMOVE).succeeded()
    for name in NEW:
        assert f"would be done: {name} hands over its data and leaves" in done.told
    assert status(FIRST) == RING.whole(ALL)
    assert {ADDRESSES[name] for name in NEW} <= copies_in("fieldring")


def test_data_centre_is_removed() -> None:
    """What was acknowledged in either data centre is in the one that is left."""
    with RING.traffic("remove a data centre of two nodes"):
        done = RING.play("remove_datacenter.yml", **REMOVE).succeeded()
    assert f"Take {FOURTH}, {FIFTH} out of the inventory's group" in done.told
    assert set(OLD) == set(RING.record())
    assert status(FIRST) == RING.whole(OLD)
    for keyspace in ("fieldring", "system_auth"):
        assert not {ADDRESSES[name] for name in NEW} & copies_in(keyspace)
    for name in NEW:
        assert node(name).run("systemctl is-active cassandra").stdout.strip() == "inactive"
        assert node(name).run("systemctl is-enabled cassandra").stdout.strip() == "disabled"


def test_removing_again_changes_nothing() -> None:
    """With its hosts still in the inventory, and without them."""
    for members in (ALL, OLD):
        done = RING.play("remove_datacenter.yml", members=members, cassandra_node_subject="dc2").succeeded()
        assert done.changed() == 0, done.output[-4000:]
        assert "nothing to remove" in done.told
