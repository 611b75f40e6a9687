"""Day-2 operations on one real ring, in the order in which they stand here, with traffic all the time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import testinfra

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
EPHEMERAL = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))
from ring_traffic import RingTraffic  # type: ignore[import-not-found]  # noqa: E402

ADDRESSES = {f"fieldring-operations-{n}": f"172.31.92.1{n}" for n in (1, 2, 3)}
NODES = sorted(ADDRESSES)
FIRST, SECOND, THIRD = NODES
LOCK = EPHEMERAL / "ring" / "main.lock"
CONF = "/etc/cassandra/cassandra.yaml"

# The tests drive the whole ring, one after the other; one run of them is enough.
testinfra_hosts = [f"docker://{FIRST}"]
pytestmark = pytest.mark.timeout(1500)


def node(name: str) -> Any:
    """The host of that name."""
    return testinfra.get_host(f"docker://{name}")


def command(playbook: str, *arguments: str, **variables: Any) -> dict[str, Any]:
    """What subprocess needs to run a playbook as an operator does."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(EPHEMERAL / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(PROJECT / "roles"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
    }
    words = ["ansible-playbook", "--inventory", str(EPHEMERAL / "inventory")]
    words += ["--extra-vars", json.dumps(variables), *arguments]
    return {"args": [*words, str(PROJECT / "playbooks" / f"{playbook}.yml")], "env": environment}


def play(playbook: str, *arguments: str, **variables: Any) -> tuple[int, str]:
    """Exit status and all that was printed, on one line, of a playbook."""
    done = subprocess.run(
        **command(playbook, *arguments, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout)
    return done.returncode, re.sub(r"\s+", " ", done.stdout)


def pids() -> dict[str, int]:
    """Each daemon's pid, 0 where it does not run: who was restarted, and who was not."""
    return {
        name: int(node(name).check_output("systemctl show cassandra --property=MainPID --value"))
        for name in NODES
    }


def kill(name: str) -> None:
    """End the daemon as a crash does, and keep systemd from starting it again."""
    node(name).check_output("systemctl kill --signal=KILL cassandra && systemctl stop cassandra")


def nothing_changed(said: str) -> bool:
    """No host of the recap has a change."""
    return re.findall(r"changed=(\d+)", said) == ["0"] * len(re.findall(r"changed=\d+", said))


@pytest.fixture(scope="module")
def traffic() -> RingTraffic:
    """One ledger for all operations."""
    return RingTraffic(
        contacts=list(ADDRESSES.values()),
        ca=EPHEMERAL / "ca" / "ca.pem",
        user="fieldring_ingest",
        password="molecule-ingest-1",
        keyspace="fieldring",
        ledger=EPHEMERAL / "ledger",
    )


@contextmanager
def under_traffic(traffic: RingTraffic, operation: str, *, planned: bool = True) -> Iterator[None]:
    """What is planned fails no request and reads nothing wrong; all of it is printed."""
    begun = time.monotonic()
    with traffic:
        yield
    print("\n" + traffic.line(operation, time.monotonic() - begun))
    with (EPHEMERAL / "operations.txt").open("a") as report:
        report.write(traffic.line(operation, time.monotonic() - begun) + "\n")
    assert traffic.counts["acknowledged"] > 0
    assert traffic.counts["wrong"] == 0, traffic.counts
    if planned:
        assert traffic.counts["failed_writes"] + traffic.counts["failed_reads"] == 0, traffic.counts


def test_upgrade_tells_first_and_changes_nothing_in_check_mode() -> None:
    """--check names the nodes and both versions; daemons and versions stay."""
    before = pids()
    status, said = play("upgrade_cassandra", "--check", cassandra_node_version="5.0.9")
    assert status == 0
    assert f"1. {FIRST}: 5.0.8 -> 5.0.9" in said
    assert before == pids()
    assert node(FIRST).file("/opt/cassandra").linked_to == "/opt/apache-cassandra-5.0.8"
    assert not LOCK.exists()


def test_upgrade_under_traffic(traffic: RingTraffic) -> None:
    """5.0.8 to 5.0.9 node by node; it is the rolling restart of all nodes as well."""
    before = pids()
    with under_traffic(traffic, "upgrade_cassandra, 3 nodes"):
        status, said = play("upgrade_cassandra", cassandra_node_version="5.0.9")
    assert status == 0
    assert "changed forward to 5.0.9" in said
    after = pids()
    assert all(after[name] not in (0, before[name]) for name in NODES)
    for name in NODES:
        assert "ReleaseVersion: 5.0.9" in node(name).check_output("nodetool version")
        assert "before-5.0.9-from-5.0.8" in node(name).check_output("nodetool listsnapshots")
    assert not LOCK.exists()


def test_upgrade_again_changes_nothing() -> None:
    """The second beat."""
    before = pids()
    status, said = play("upgrade_cassandra", cassandra_node_version="5.0.9")
    assert status == 0
    assert "nothing: every node runs the version that is wanted" in said
    assert nothing_changed(said)
    assert before == pids()


def test_way_back_and_forward_again(traffic: RingTraffic) -> None:
    """To the version that ran before, on what the newer one has written; then the upgrade once more."""
    with under_traffic(traffic, "upgrade_cassandra, 3 nodes back"):
        status, said = play("upgrade_cassandra", cassandra_node_version="5.0.8")
    assert status == 0
    assert "changed back to 5.0.8" in said
    for name in NODES:
        assert "ReleaseVersion: 5.0.8" in node(name).check_output("nodetool version")
        assert node(name).file("/opt/cassandra").linked_to == "/opt/apache-cassandra-5.0.8"
    with under_traffic(traffic, "upgrade_cassandra, 3 nodes once more"):
        status, said = play("upgrade_cassandra", cassandra_node_version="5.0.9")
    assert status == 0
    for name in NODES:
        assert "ReleaseVersion: 5.0.9" in node(name).check_output("nodetool version")


def test_no_way_to_another_series_or_behind_what_is_tested() -> None:
    """CN-224 and CN-225: refused before anything is touched."""
    before = pids()
    status, said = play("upgrade_cassandra", cassandra_node_version="5.1.0")
    assert status != 0
    assert "CN-224" in said
    status, said = play("upgrade_cassandra", cassandra_node_version="5.0.2")
    assert status != 0
    assert "CN-225" in said
    assert before == pids()


def test_run_that_leaves_nodes_out_is_refused() -> None:
    """CN-123: --limit hides how the others see the ring; one that hits no node is an error."""
    status, said = play("restart_cassandra", "--limit", FIRST)
    assert status != 0
    assert "CN-123" in said
    status, said = play("start_cassandra_after_outage", "--limit", "no-such-host")
    assert status != 0


def test_locked_ring_is_refused() -> None:
    """CN-219 names who, since when, and how to take the lock over; nothing is touched."""
    before = pids()
    theirs = {"owner": "mara", "host": "another-controller", "pid": 1, "started": "1"}
    theirs |= {"operation": "repair_cassandra", "since": time.time() - 60, "until": time.time() + 3600}
    LOCK.write_text(json.dumps(theirs))
    try:
        status, said = play("restart_cassandra", cassandra_node_version="5.0.9", restart_cassandra_all=True)
        assert status != 0
        assert "CN-219" in said
        assert "locked by mara on another-controller for repair_cassandra" in said
        assert "cassandra_node_lock_take_over=true" in said
        assert json.loads(LOCK.read_text())["owner"] == "mara"
    finally:
        LOCK.unlink()
    assert before == pids()


def test_gate_names_all_that_stands_against_it(host: Any) -> None:
    """CN-217, CN-218, CN-222 at once: a keyspace with two copies, a wrong clock, a full disk."""
    before = pids()
    for name in NODES:
        # What the controller asks for the time; the kernel's clock belongs to this whole machine.
        ahead = 30 if name == THIRD else 0
        script = f"#!/bin/sh\nexec /bin/date --date='{ahead} seconds' \"$@\"\n"
        node(name).check_output("printf %s > /usr/local/bin/date && chmod 755 /usr/local/bin/date", script)
    options = "{'class': 'NetworkTopologyStrategy', 'dc1': 2}"
    create = f"CREATE KEYSPACE IF NOT EXISTS notes WITH replication = {options}"
    as_superuser(create)
    try:
        status, said = play(
            "restart_cassandra",
            cassandra_node_version="5.0.9",
            restart_cassandra_nodes=[FIRST],
            cassandra_node_commitlog_free_min_mib=99_999_999,
        )
    finally:
        as_superuser("DROP KEYSPACE IF EXISTS notes")
        for name in NODES:
            node(name).check_output("rm /usr/local/bin/date")
    assert status != 0
    assert "keyspace notes has 2 copies in dc1" in said
    assert f"the clock of {THIRD} is at least" in said
    for identifier in ("CN-217", "CN-218", "CN-222"):
        assert f"{identifier}: " in said, identifier
    assert before == pids()
    assert not LOCK.exists(), "a refused run gives the lock back"


def as_superuser(statement: str, times: int = 1) -> None:
    """A statement over CQL, on the first node with Debian's driver."""
    program = """
import ssl, sys
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import Cluster
address, statement, times = sys.argv[1:]
cluster = Cluster([address], auth_provider=PlainTextAuthProvider("fieldring_admin", "molecule-superuser-1"),
                  ssl_context=ssl.create_default_context(cafile="/etc/fieldring/tls/ca.pem"),
                  ssl_options={"server_hostname": address}, connect_timeout=30)
session = cluster.connect()
for number in range(int(times)):
    session.execute(statement.replace("NUMBER", str(number)), timeout=60)
cluster.shutdown()
"""
    node(FIRST).check_output("python3 -c %s %s %s %s", program, ADDRESSES[FIRST], statement, str(times))


@pytest.mark.parametrize(
    ("harm", "mend", "reasons"),
    [
        pytest.param(
            "systemctl kill --signal=STOP cassandra",
            "systemctl kill --signal=CONT cassandra",
            # CN-209 for the first ten seconds or so, then the others call it down.
            (
                f"CN-204: {THIRD}: it hangs",
                f"CN-209: the heartbeat of {THIRD} stands still|CN-208: {THIRD} is called down",
            ),
            id="hangs",
        ),
        pytest.param(
            "nft 'add table inet harm; add chain inet harm in { type filter hook input priority 0; }; "
            "add rule inet harm in tcp dport 7199 reject'",
            "nft delete table inet harm",
            (f"CN-204: {THIRD}: cassandra.service runs, but its JMX takes no connection",),
            id="has a dead JMX",
        ),
        pytest.param(
            "nodetool disablegossip",
            "nodetool enablegossip",
            (f"CN-208: {THIRD} is called down by {FIRST}, {SECOND}",),
            id="says nothing to the others",
        ),
        pytest.param(
            "nodetool disablebinary",
            "nodetool enablebinary",
            (
                f"CN-215: port 9042 of {THIRD} (for clients) takes no connection",
                f"CN-216: a query through {THIRD}",
            ),
            id="takes no clients",
        ),
    ],
)
def test_node_that_only_seems_to_be_well_shuts_the_gate(
    harm: str, mend: str, reasons: tuple[str, ...]
) -> None:
    """Its service is active all the time; it goes on afterwards, and nobody was touched."""
    before = pids()

    def stop_it() -> None:
        # Seconds before the gate looks, while the others still call it up.
        while not LOCK.exists():
            time.sleep(0.1)
        node(THIRD).check_output(harm)

    if "STOP" in harm:
        threading.Thread(target=stop_it, daemon=True).start()
    else:
        node(THIRD).check_output(harm)
    try:
        status, said = play(
            "restart_cassandra",
            cassandra_node_version="5.0.9",
            restart_cassandra_nodes=[FIRST],
            cassandra_node_gate_call_seconds=30,
            cassandra_node_gate_patience_seconds=5,
        )
    finally:
        node(THIRD).check_output(mend)
    assert status != 0
    for reason in reasons:
        assert any(each in said for each in reason.split("|")), reason
    assert before == pids()
    wait_until(agreed)


def refused_for(identifier: str, reason: str) -> None:
    """A restart of the first node is refused with that reason among others, and nobody is touched."""
    before = pids()
    status, said = play(
        "restart_cassandra",
        cassandra_node_version="5.0.9",
        cassandra_node_gate_patience_seconds=5,
        restart_cassandra_nodes=[FIRST],
    )
    assert status != 0
    assert re.search(f"{identifier}: [^:]*{reason}", said), said[-3000:]
    assert before == pids()


def agreed() -> bool:
    """Every node is called up and normal by every other, with one schema."""
    whole = all(node(name).run("nodetool status").stdout.count("UN ") == len(NODES) for name in NODES)
    described = node(FIRST).run("nodetool describecluster").stdout
    return whole and len(re.findall(r"^\s+[0-9a-f-]{36}: \[", described, re.MULTILINE)) == 1


def wait_until(condition: Callable[[], bool], seconds: float = 180) -> None:
    """Poll, and fail with what the first node sees."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, node(FIRST).run("nodetool status").stdout
        time.sleep(2)


def test_nodes_of_two_racks_are_not_touched_at_once() -> None:
    """CN-201: no playbook asks for it, and a role's own user is refused as well."""
    before = pids()
    book = EPHEMERAL / "two_racks.yml"
    role = {"name": "cassandra_node", "tasks_from": "restart"}
    asked = {"cassandra_node_gate_mode": "touch", "cassandra_node_gate_subjects": [FIRST, SECOND]}
    tasks = [{"name": "Restart two racks", "ansible.builtin.include_role": role, "vars": asked}]
    book.write_text(
        json.dumps([{"name": "Two racks", "hosts": "cassandra", "gather_facts": False, "tasks": tasks}])
    )
    status, said = play(str(book.with_suffix("")), cassandra_node_version="5.0.9")
    assert status != 0
    assert f"CN-201: {FIRST}, {SECOND} stand in 2 racks (dc1/rack1, dc1/rack2)" in said
    assert before == pids()


def test_two_schema_versions_shut_the_gate() -> None:
    """CN-210: a keyspace is made while one node hears nothing of it."""
    node(THIRD).check_output("nodetool disablegossip")
    try:
        wait_until(lambda: "DN " in node(FIRST).run("nodetool status").stdout)
        as_superuser(
            "CREATE KEYSPACE apart WITH replication = {'class': 'NetworkTopologyStrategy', 'dc1': 3}"
        )
        refused_for("CN-210", f"does not agree on its schema: {FIRST}, {SECOND} have")
    finally:
        node(THIRD).check_output("nodetool enablegossip")
        wait_until(agreed)


@pytest.fixture(scope="module")
def bulky() -> None:
    """Some MiB that cannot be compressed, in SSTables of every node, for what has to last a while."""
    as_superuser("CREATE TABLE IF NOT EXISTS apart.bulky (id int PRIMARY KEY, value blob)")
    as_superuser("TRUNCATE apart.bulky")
    value = os.urandom(16384).hex()
    as_superuser(f"INSERT INTO apart.bulky (id, value) VALUES (NUMBER, 0x{value})", times=1600)
    for name in NODES:
        node(name).check_output("nodetool flush apart")


@contextmanager
def going_on(name: str, command: str) -> Iterator[None]:
    """That command on a node for the time of a block, at whose end it is done."""
    begun = subprocess.Popen(["docker", "exec", name, "sh", "-c", command], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        begun.wait(timeout=300)


def slowly() -> None:
    """Streams take half a minute and more from now on."""
    for name in NODES:
        # Mib/s, for single partitions and for whole SSTables.
        node(name).check_output("nodetool setstreamthroughput 1 && nodetool setstreamthroughput -e 1")


def full_speed() -> None:
    """As it is by default."""
    for name in NODES:
        node(name).check_output("nodetool setstreamthroughput 24 && nodetool setstreamthroughput -e 24")


def test_streams_shut_the_gate(bulky: None) -> None:
    """CN-212: a node is rebuilt from the others meanwhile, slowly."""
    slowly()
    try:
        with going_on(THIRD, "nodetool rebuild --keyspace apart -- dc1"):
            refused_for("CN-212", "is streaming")
            full_speed()
    finally:
        full_speed()


def test_running_repair_shuts_the_gate(bulky: None) -> None:
    """CN-213: one that has to mend a node's copy, slowly."""
    slowly()
    # It misses what is written now, and nobody keeps it.
    for name in (FIRST, SECOND):
        node(name).check_output("nodetool disablehandoff")
    node(THIRD).check_output("nodetool disablegossip")
    wait_until(lambda: "DN " in node(FIRST).run("nodetool status").stdout)
    as_superuser(
        f"INSERT INTO apart.bulky (id, value) VALUES (NUMBER, 0x{os.urandom(16384).hex()})", times=1600
    )
    node(THIRD).check_output("nodetool enablegossip")
    wait_until(agreed)
    try:
        with going_on(SECOND, "nodetool repair --full apart"):
            refused_for("CN-213", f"a repair runs on {SECOND}")
            full_speed()
    finally:
        full_speed()
        for name in (FIRST, SECOND):
            node(name).check_output("nodetool enablehandoff")


def test_drained_node_shuts_the_gate_and_is_told_what_it_missed(traffic: RingTraffic) -> None:
    """CN-211, and after it was started anew CN-214 as long as others keep writes for it."""
    node(THIRD).check_output("nodetool drain")
    wait_until(lambda: "DN " in node(FIRST).run("nodetool status").stdout)
    before = pids()
    refused_for("CN-211", f"{THIRD} says that it is DRAINED")
    with under_traffic(traffic, "one node is drained"):
        time.sleep(15)
    for name in (FIRST, SECOND):
        node(name).check_output("nodetool pausehandoff")
    try:
        status, said = play(
            "restart_cassandra", cassandra_node_version="5.0.9", cassandra_node_gate_wait_seconds=10
        )
        assert status != 0
        assert f"1. start {THIRD}: it is drained" in said
        assert f"keeps writes for {THIRD} that it missed while it was down" in said
        assert "CN-214: " in said
    finally:
        for name in (FIRST, SECOND):
            node(name).check_output("nodetool resumehandoff")
    wait_until(agreed)
    status, said = play("restart_cassandra", cassandra_node_version="5.0.9")
    assert status == 0
    assert "The ring is whole." in said
    after = pids()
    assert after[THIRD] not in (0, before[THIRD])
    assert {**after, THIRD: 0} == {**before, THIRD: 0}


def test_node_that_does_not_drain_is_not_stopped() -> None:
    """CN-220: what it holds is not on disk yet; it runs on."""
    before = pids()
    path = "/usr/local/bin/nodetool"
    fails = f'#!/bin/sh\n[ "$1" = drain ] && {{ echo stuck >&2; exit 1; }}\nexec {path}.real "$@"\n'
    node(FIRST).check_output(f"mv {path} {path}.real && printf %s > {path} && chmod 755 {path}", fails)
    try:
        status, said = play(
            "restart_cassandra", cassandra_node_version="5.0.9", restart_cassandra_nodes=[FIRST]
        )
    finally:
        node(FIRST).check_output(f"mv {path}.real {path}")
    assert status != 0
    assert f"CN-220: {FIRST} did not drain" in said
    assert before == pids()


def test_node_killed_seconds_ago_shuts_the_gate() -> None:
    """The others still call it up; the gate knows better, and no other node is touched."""
    kill(THIRD)
    before = pids()
    status, said = play("restart_cassandra", cassandra_node_version="5.0.9", restart_cassandra_nodes=[FIRST])
    assert status != 0
    assert f"CN-204: {THIRD}: cassandra.service is not running" in said
    assert f"port 7000 of {THIRD} (for other nodes) takes no connection from {FIRST}, {SECOND}" in said
    assert before == pids()


def test_restart_starts_what_is_down_and_then_what_is_pending(traffic: RingTraffic) -> None:
    """The killed node first, then the one whose configuration waits; the third is left alone."""
    node(SECOND).check_output("sed -i 's/file_cache_size: 32MiB/file_cache_size: 33MiB/' %s", CONF)
    before = pids()
    with under_traffic(traffic, "restart_cassandra, 1 down and 1 pending"):
        status, said = play("restart_cassandra", cassandra_node_version="5.0.9")
    assert status == 0
    assert f"1. start {THIRD}: it is down" in said
    assert f"2. restart {SECOND}: cassandra.yaml: file_cache_size: 32MiB -> file_cache_size: 33MiB" in said
    after = pids()
    assert after[THIRD] != 0
    assert after[SECOND] != before[SECOND]
    assert after[FIRST] == before[FIRST]


def test_restart_again_changes_nothing() -> None:
    """The second beat."""
    before = pids()
    status, said = play("restart_cassandra", cassandra_node_version="5.0.9")
    assert status == 0
    assert "nothing: no configuration is pending and every node runs" in said
    assert nothing_changed(said)
    assert before == pids()


def test_start_after_an_outage(traffic: RingTraffic) -> None:
    """All daemons die at once under traffic; what was acknowledged up to then is there afterwards."""
    with under_traffic(traffic, "power cut", planned=False):
        time.sleep(3)
        for name in NODES:
            node(name).check_output("systemctl kill --signal=KILL cassandra")
        for name in NODES:
            node(name).check_output("systemctl stop cassandra")
        status, said = play(
            "restart_cassandra", cassandra_node_version="5.0.9", restart_cassandra_nodes=[FIRST]
        )
        assert status != 0
        assert "CN-221: 3 of 3 seeds are lost" in said
        status, said = play("start_cassandra_after_outage", "--check", cassandra_node_version="5.0.9")
        assert status == 0
        assert "would start: " + ", ".join(NODES) in said
        assert set(pids().values()) == {0}
        status, said = play("start_cassandra_after_outage", cassandra_node_version="5.0.9")
        assert status == 0
        assert "started: " + ", ".join(NODES) in said
        assert "The ring is whole." in said
    assert 0 not in pids().values()


def test_start_again_changes_nothing() -> None:
    """The second beat."""
    before = pids()
    status, said = play("start_cassandra_after_outage", cassandra_node_version="5.0.9")
    assert status == 0
    assert "nothing, every node runs" in said
    assert nothing_changed(said)
    assert before == pids()


def test_nothing_acknowledged_is_missing(traffic: RingTraffic) -> None:
    """Every number of the ledger, at LOCAL_QUORUM, after all of the above."""
    numbers = traffic.numbers()
    print(f"\nledger: {len(numbers)} acknowledged")
    assert len(numbers) > 100
    assert traffic.missing() == []
    print((EPHEMERAL / "operations.txt").read_text())


def test_forgotten_node_shuts_the_gate() -> None:
    """CN-205: the others were told that it is gone for good; started again it is one of them."""
    node(THIRD).check_output("systemctl stop cassandra")
    wait_until(lambda: "DN " in node(FIRST).run("nodetool status").stdout)
    node(FIRST).check_output("nodetool assassinate %s", ADDRESSES[THIRD])
    wait_until(lambda: ADDRESSES[THIRD] not in node(SECOND).run("nodetool status").stdout)
    refused_for("CN-205", f"{THIRD} .* is unknown to it")
    node(THIRD).check_output("systemctl start cassandra")
    wait_until(agreed)


def test_wiped_node_with_stolen_tokens_shuts_the_gate() -> None:
    """Back as UN under a new host ID with another's tokens, no error anywhere: the record knows better.

    It spoils the ring. First its empty disk is refused by the start after an outage.
    """
    record = json.loads((EPHEMERAL / "ring" / "main.json").read_text())
    node(THIRD).check_output("systemctl stop cassandra && find /var/lib/cassandra -mindepth 1 -delete")
    status, said = play("start_cassandra_after_outage", cassandra_node_version="5.0.9")
    assert status != 0
    assert f"CN-112: the data directory of {THIRD} is empty" in said
    stolen = ",".join(str(token) for token in record["nodes"][SECOND]["tokens"])
    node(THIRD).check_output(
        f"sed -i -e 's/seeds: .*/seeds: {ADDRESSES[THIRD]}/' {CONF} && "
        f"printf 'initial_token: \"{stolen}\"\\nauto_bootstrap: false\\n' >> {CONF} && "
        "systemctl start cassandra"
    )
    deadline = time.monotonic() + 300
    while node(FIRST).run("nodetool status").stdout.count("UN ") < 2 or not took_over():
        assert time.monotonic() < deadline, node(FIRST).run("nodetool ring").stdout
        time.sleep(2)
    before = pids()
    status, said = play("restart_cassandra", cassandra_node_version="5.0.9", restart_cassandra_nodes=[FIRST])
    assert status != 0
    assert f"{THIRD} has the host ID" in said
    assert (
        f"{SECOND} holds 0 tokens that are not the 4 on record; {THIRD} has taken some of them over" in said
    )
    assert before == pids()


def took_over() -> bool:
    """Whether the first node calls the third the owner of tokens again."""
    owners = re.findall(r"^(172\S+)", node(FIRST).run("nodetool ring").stdout, re.MULTILINE)
    return ADDRESSES[THIRD] in owners and ADDRESSES[SECOND] not in owners


def test_ring_whose_disks_are_all_empty_is_not_begun_anew() -> None:
    """CN-114: the record knows of data. Without it a new ring begins; CN-116 once that was another plan."""
    for name in NODES:
        node(name).check_output("systemctl stop cassandra && find /var/lib/cassandra -mindepth 1 -delete")
    status, said = play("deploy_cassandra", cassandra_node_version="5.0.9")
    assert status != 0
    assert "CN-114: " in said
    assert set(pids().values()) == {0}
    (EPHEMERAL / "ring" / "main.json").unlink()
    with (EPHEMERAL / "begun.log").open("w") as log:
        begun = subprocess.Popen(
            **command("deploy_cassandra", cassandra_node_version="5.0.9"), stdout=log, stderr=log
        )
        wait_until(lambda: begun.poll() is not None or pids()[FIRST] != 0, seconds=600)
        begun.kill()
        begun.wait()
    for name in NODES:
        kill(name)
    status, said = play("deploy_cassandra", cassandra_node_version="5.0.9", cassandra_node_num_tokens=8)
    assert status != 0
    assert "CN-116: " in said
    assert set(pids().values()) == {0}
