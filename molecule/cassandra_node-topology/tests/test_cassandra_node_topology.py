"""A node is added, another one's disk is lost and replaced, and the added one leaves, under traffic.

Then machines are lost: one is replaced at a new address, one under a new name, one is removed as dead.

The tests go on from each other's ring, in the order in which they stand here.
"""

from __future__ import annotations

import os
import re
import ssl
import sys
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "molecule/shared"))
from ring_under_test import RingUnderTest, kill, lose, node, status, wait  # type: ignore[import-not-found]

ADDRESSES = {f"fieldring-topology-{n}": f"172.31.93.1{n}" for n in range(1, 7)}
FIRST, SECOND, THIRD, SPARE, FIFTH, SIXTH = sorted(ADDRESSES)
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


def test_deployment_does_not_let_a_new_host_join() -> None:
    """CN-113: it has to stream its share."""
    RING.play("deploy_cassandra.yml", members=ALL).refused("CN-113")
    assert node(SPARE).run("systemctl is-active cassandra").stdout.strip() == "inactive"
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
        kill(SPARE)
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
        kill(SECOND)
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
        # On record, and it fails in its repair: what it holds by then stays.
        with RING.interrupted("replace_cassandra_node.yml", **subject) as runs:
            wait(
                lambda: runs() and '"joined": true' in host.run("cat /etc/cassandra/joining.json").stdout,
                seconds=600,
                what="it is on record",
            )
        host.check_output("touch /var/lib/cassandra/data/witness")
        kill(SECOND)
        RING.play("replace_cassandra_node.yml", **subject).succeeded()
        assert host.file("/var/lib/cassandra/data/witness").exists
        host.check_output("rm /var/lib/cassandra/data/witness")
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


def cut_when_it_leaves(name: str, other: str) -> None:
    """Once a node hands over its data, every connection between it and another one is reset for seconds."""
    wait(lambda: status(FIRST)[ADDRESSES[name]] == "UL", seconds=300, what="it leaves")
    wait(lambda: "Sending" in node(name).check_output("nodetool netstats"), seconds=120, what="it streams")
    # One way only: a reset of the other way would be dropped by this rule.
    rule = f"add rule inet cut input ip saddr {ADDRESSES[other]} ip protocol tcp reject with tcp reset"
    chain = "add chain inet cut input { type filter hook input priority 0; }"
    node(name).check_output(f"nft 'add table inet cut; {chain}; {rule}'")
    time.sleep(5)
    node(name).check_output("nft delete table inet cut")


def test_node_whose_leaving_fails_is_told_again() -> None:
    """CN-315: it is neither in nor out, and says so; the same command goes on."""
    subject = {"members": ALL, "cassandra_node_subject": SPARE}
    # Some MiB that cannot be compressed, beside what the traffic writes.
    insert = "INSERT INTO fieldring.ring_traffic (id, value) VALUES (%d, '%s')"
    RING.cql(*(insert % (-n, b64encode(os.urandom(16384)).decode()) for n in range(1, 1001)))
    # Mib/s, for single partitions and for whole SSTables.
    slow, fast = (f"nodetool setstreamthroughput {n} && nodetool setstreamthroughput -e {n}" for n in (1, 24))
    node(SPARE).check_output(f"nodetool flush && {slow}")
    with RING.traffic("remove a node, whose streams break once"):
        with ThreadPoolExecutor(1) as beside:
            cut = beside.submit(cut_when_it_leaves, SPARE, SECOND)
            said = RING.play("remove_cassandra_node.yml", **subject).refused("CN-315").told
            cut.result()
        assert "DECOMMISSION_FAILED" in said
        assert set(ALL) == set(RING.record())
        node(SPARE).check_output(fast)
        done = RING.play("remove_cassandra_node.yml", **subject).succeeded()
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


def rest(members: tuple[str, ...], hosts: tuple[str, ...], gone: dict[str, Any]) -> None:
    """The record and every host have those members whole, and the host ID of the one that is gone nowhere."""
    assert set(members) == set(RING.record())
    assert gone["host_id"] not in [entry["host_id"] for entry in RING.record().values()]
    for host in hosts:
        assert RING.whole(members) == status(host)
        known = node(host).check_output("nodetool sjk mxdump -q org.apache.cassandra.db:type=StorageService")
        assert "EndpointToHostId" in known
        assert gone["host_id"] not in known


def joined(host: str) -> None:
    """Nothing of the start as a replacement is left on that host."""
    for left in ("/etc/systemd/system/cassandra.service.d/replace.conf", "/etc/cassandra/joining.json"):
        assert not node(host).file(left).exists
    assert node(host).run("systemctl is-enabled cassandra").stdout.strip() == "enabled"


def test_lost_machine_is_replaced_at_a_new_address() -> None:
    """Another machine carries its name. The first run is killed and its daemon with it; the next cleans.

    Until the others forget that daemon, every write waits for it beside the two nodes that are left.
    """
    before = RING.record()[SECOND]
    subject: dict[str, Any] = {"members": THREE, "cassandra_node_subject": SECOND}
    RING.host_vars[SECOND] = {"ansible_host": FIFTH, "host_address": ADDRESSES[FIFTH]}
    # The machine at the address on record lives.
    RING.play("replace_cassandra_node.yml", **subject).refused("CN-307")
    with RING.traffic("a lost machine, and kill -9 of the one that replaces it", writes_refused=True):
        lose(SECOND)
        # Another address or host ID on record than in the ring: whose place would it be?
        with RING.record_that_says(SECOND, address="172.31.93.99"):
            told = RING.play("replace_cassandra_node.yml", **subject).refused("CN-207").told
            assert f"{before['address']} is in the ring" in told
        with RING.record_that_says(SECOND, host_id="00000000-0000-0000-0000-000000000000"):
            RING.play("replace_cassandra_node.yml", **subject).refused("CN-206")
        assert not node(FIFTH).file("/var/lib/cassandra/data").exists
        log = "cat /var/log/cassandra/system.log"
        with RING.interrupted("replace_cassandra_node.yml", **subject) as runs:
            wait(
                lambda: runs() and "pending range setup" in node(FIFTH).run(log).stdout,
                seconds=600,
                what="the node begins to join",
            )
        kill(FIFTH)
        assert before == RING.record()[SECOND]
        wait(lambda: ADDRESSES[FIFTH] not in status(FIRST), seconds=180, what="the others forget it")
    with RING.traffic("replace a lost machine at a new address"):
        done = RING.play("replace_cassandra_node.yml", **subject).succeeded()
    assert "what is left of the interrupted replacement" in done.told
    RING.addresses[SECOND] = ADDRESSES[FIFTH]
    after = RING.record()[SECOND]
    assert ADDRESSES[FIFTH] == after["address"]
    assert sorted(before["tokens"]) == sorted(after["tokens"])
    rest(THREE, (FIRST, FIFTH, THIRD), gone=before)
    joined(FIFTH)


def test_replaced_node_is_not_replaced_again() -> None:
    """CN-307: it lives, at its new address."""
    done = RING.play("replace_cassandra_node.yml", members=THREE, cassandra_node_subject=SECOND)
    assert done.refused("CN-307").changed() == 0


def test_lost_machine_is_replaced_under_a_new_name() -> None:
    """The inventory names the new host in the place of the old one; the record follows."""
    before = RING.record()[THIRD]
    RING.contacts = [RING.addresses[FIRST], RING.addresses[SECOND]]
    members = (FIRST, SECOND, SIXTH)
    subject: dict[str, Any] = {
        "members": members,
        "cassandra_node_subject": THIRD,
        "cassandra_node_replacement": SIXTH,
    }
    told = RING.play("replace_cassandra_node.yml", **subject).refused("CN-306").told
    assert "restore rack" in told
    RING.host_vars[SIXTH] = {"cassandra_node_rack": before["rack"]}
    RING.play("replace_cassandra_node.yml", **subject).refused("CN-307")
    RING.play("replace_cassandra_node.yml", **{**subject, "cassandra_node_replacement": FIRST}).refused(
        "CN-306"
    )
    with RING.traffic("replace a lost machine under a new name, interrupted once"):
        lose(THIRD)
        done = RING.play("replace_cassandra_node.yml", "--check", **subject).succeeded()
        assert f"would be done: {SIXTH} takes the place of the node that was {before['address']}" in done.told
        with RING.interrupted("replace_cassandra_node.yml", **subject) as runs:
            wait(lambda: runs() and SIXTH in RING.record(), seconds=600, what="it is on record")
        # On record, but not repaired yet.
        assert node(SIXTH).file("/etc/cassandra/joining.json").exists
        done = RING.play("replace_cassandra_node.yml", **subject).succeeded()
    assert f"Take {THIRD} out of the inventory" in done.told
    assert sorted(before["tokens"]) == sorted(RING.record()[SIXTH]["tokens"])
    rest(members, (FIRST, FIFTH, SIXTH), gone=before)
    joined(SIXTH)


def test_replacing_under_a_new_name_again_changes_nothing() -> None:
    """The old name is off the record, the new one on it."""
    done = RING.play(
        "replace_cassandra_node.yml",
        members=(FIRST, SECOND, SIXTH),
        cassandra_node_subject=THIRD,
        cassandra_node_replacement=SIXTH,
    ).succeeded()
    assert done.changed() == 0, done.output[-4000:]
    assert "nothing to replace" in done.told


def test_node_that_left_comes_back_as_a_new_one() -> None:
    """Its data and its configuration were taken away."""
    members = (FIRST, SECOND, SIXTH, SPARE)
    RING.play("add_cassandra_node.yml", members=members).refused("CN-305")
    node(SPARE).check_output("find /var/lib/cassandra /etc/cassandra -mindepth 1 -delete")
    RING.play("add_cassandra_node.yml", members=members).succeeded()
    assert RING.whole(members) == status(FIRST)


def test_living_node_is_not_removed_as_dead() -> None:
    """CN-307: Ansible does not reach it, or the inventory has forgotten it, but the others call it up."""
    RING.host_vars[SPARE] = {"ansible_host": "nowhere"}
    for members in ((FIRST, SECOND, SIXTH, SPARE), (FIRST, SECOND, SIXTH)):
        RING.play("remove_cassandra_node.yml", members=members, cassandra_node_subject=SPARE).refused(
            "CN-307"
        )
    del RING.host_vars[SPARE]


def test_certificates_are_renewed_while_a_machine_is_lost() -> None:
    """It is declared absent, and left out of the run; without that word the run is refused."""
    served = RING.addresses[SECOND], 9042
    before = ssl.get_server_certificate(served)
    asked: dict[str, Any] = {
        "members": (FIRST, SECOND, SIXTH, SPARE),
        "rotate_certificates_older_than_days": 0,
    }
    lose(SPARE)
    wait(lambda: status(FIRST)[ADDRESSES[SPARE]] == "DN", seconds=60, what="the others call it down")
    without = ("--limit", f"all:!{SPARE}")
    RING.play("rotate_certificates.yml", *without, **asked).refused("CN-123")
    assert before == ssl.get_server_certificate(served)
    with RING.traffic("renew leaves while a machine is lost"):
        RING.play(
            "rotate_certificates.yml", *without, **asked, cassandra_node_absent_hosts=[SPARE]
        ).succeeded()
    assert before != ssl.get_server_certificate(served)


def test_lost_machine_is_removed() -> None:
    """removenode. The first run is killed meanwhile; the second has the machine out of its inventory."""
    before = RING.record()[SPARE]
    left = (FIRST, SECOND, SIXTH)
    with RING.traffic("remove a lost machine, interrupted once"):
        with RING.record_that_says(SPARE, host_id="00000000-0000-0000-0000-000000000000"):
            told = RING.play("remove_cassandra_node.yml", members=left, cassandra_node_subject=SPARE)
            assert "CN-202" not in told.refused("CN-206").told
        with RING.interrupted(
            "remove_cassandra_node.yml", members=(*left, SPARE), cassandra_node_subject=SPARE
        ) as runs:
            wait(
                lambda: runs() and status(FIRST).get(ADDRESSES[SPARE]) != "DN",
                seconds=300,
                what="it is being removed",
            )
        RING.play("remove_cassandra_node.yml", members=left, cassandra_node_subject=SPARE).succeeded()
    rest(left, (FIRST, FIFTH, SIXTH), gone=before)


@pytest.mark.parametrize("known", [True, False], ids=["still in the inventory", "taken out"])
def test_removing_a_lost_machine_again_changes_nothing(known: bool) -> None:
    """Nothing to remove, though the machine is not reached."""
    members = (FIRST, SECOND, SIXTH, SPARE) if known else (FIRST, SECOND, SIXTH)
    done = RING.play("remove_cassandra_node.yml", members=members, cassandra_node_subject=SPARE).succeeded()
    assert done.changed() == 0, done.output[-4000:]
    assert "nothing to remove" in done.told
