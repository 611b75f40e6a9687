"""A ring of three that serves, refuses strangers, outlives a kill and is never restarted by the role."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import testinfra

ADDRESSES = {f"fieldring-cassandra-node-{n}": f"172.31.83.1{n}" for n in (1, 2, 3)}
NODES = sorted(ADDRESSES)
FIRST, SECOND, THIRD = NODES
INGEST = ("fieldring_ingest", "molecule-ingest-1")
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
EPHEMERAL = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])

# The tests drive the whole ring; one run of them is enough.
testinfra_hosts = [f"docker://{FIRST}"]

# Runs on a node with Debian's driver: prints the rows as JSON, or the name of what went wrong.
CLIENT = """
import json, ssl, sys
from cassandra import ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import Cluster, NoHostAvailable
from cassandra.policies import WhiteListRoundRobinPolicy
from cassandra.query import SimpleStatement
address, user, password, tls, statements = json.loads(sys.stdin.read())
context = ssl.create_default_context(cafile="/etc/fieldring/tls/ca.pem") if tls else None
cluster = Cluster([address], auth_provider=PlainTextAuthProvider(user, password), ssl_context=context,
                  ssl_options={"server_hostname": address} if tls else None, connect_timeout=5,
                  load_balancing_policy=WhiteListRoundRobinPolicy([address]))
try:
    session = cluster.connect()
    rows = []
    for text in statements:
        statement = SimpleStatement(text, consistency_level=ConsistencyLevel.QUORUM)
        rows += [list(row) for row in session.execute(statement, timeout=15)]
    print(json.dumps(rows, default=str))
except NoHostAvailable as error:
    print(json.dumps([type(cause).__name__ for cause in error.errors.values()]))
    sys.exit(3)
except Exception as error:
    print(json.dumps([type(error).__name__]))
    sys.exit(4)
"""


def node(name: str) -> Any:
    """The host of that name."""
    return testinfra.get_host(f"docker://{name}")


def cql(
    *statements: str, at: str = FIRST, login: tuple[str, str] = INGEST, tls: bool = True, on: str = FIRST
) -> tuple[int, list[Any]]:
    """Exit status and rows (or names of errors) of statements sent from `on` to the node `at`."""
    question = json.dumps([ADDRESSES[at], *login, tls, statements])
    done = subprocess.run(
        ["docker", "exec", "-i", on, "python3", "-c", CLIENT],
        input=question,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    assert lines, done.stderr
    return done.returncode, json.loads(lines[-1])


def up_and_normal(name: str) -> int:
    """How many nodes that one calls UN."""
    return len(re.findall(r"^UN ", node(name).run("nodetool status").stdout, re.MULTILINE))


def main_pid(name: str) -> int:
    """The daemon's pid, 0 when it is not running."""
    return int(node(name).check_output("systemctl show cassandra --property=MainPID --value"))


def wait(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll, and fail with `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.5)


def play(*arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run the role again as an operator would, with other variables."""
    command = [
        "ansible-playbook",
        "-i",
        str(EPHEMERAL / "inventory"),
        str(SCENARIO / "files/again.yml"),
        *arguments,
    ]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(EPHEMERAL / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(PROJECT / "roles"),
        "ANSIBLE_NOCOLOR": "1",
    }
    return subprocess.run(
        [*command, "--extra-vars", json.dumps(variables)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def told(done: subprocess.CompletedProcess[str]) -> str:
    """All that was printed, on one line: the console breaks sentences anywhere."""
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.mark.parametrize("name", NODES)
def test_ring_is_whole_from_every_node(name: str) -> None:
    """Every node calls all three up and normal."""
    assert up_and_normal(name) == 3


def test_record_says_who_holds_which_tokens(host: Any) -> None:
    """The controller's record has the host IDs that the ring has, and evenly spaced tokens."""
    record = json.loads((EPHEMERAL / "ring" / "main.json").read_text())
    status = host.check_output("nodetool status")
    assert set(NODES) == set(record["nodes"])
    for entry in record["nodes"].values():
        assert re.search(rf"UN\s+{re.escape(entry['address'])}\s.*{entry['host_id']}", status)
    tokens = sorted(token for entry in record["nodes"].values() for token in entry["tokens"])
    gaps = {after - before for before, after in itertools.pairwise(tokens)}
    assert len(tokens) == 12
    assert max(gaps) - min(gaps) <= 2


@pytest.mark.parametrize("name", NODES)
def test_no_key_of_the_first_start_is_left(name: str) -> None:
    """A restart must not find tokens in the configuration, and the marker is gone."""
    settings = node(name).file("/etc/cassandra/cassandra.yaml").content_string
    assert "initial_token" not in settings
    assert "auto_bootstrap" not in settings
    assert not node(name).file("/etc/cassandra/first_start.json").exists


@pytest.mark.parametrize("name", NODES)
def test_login_over_tls_with_the_sites_ca(name: str) -> None:
    """The service's account gets in at every node, which proves its name and address by the site's CA."""
    assert cql("SELECT cluster_name FROM system.local", at=name) == (0, [["molecule"]])


def test_plain_text_is_refused() -> None:
    """A client without TLS gets no session."""
    status, errors = cql("SELECT cluster_name FROM system.local", tls=False)
    assert status == 3, errors


def test_stranger_between_nodes_is_refused(host: Any) -> None:
    """Port 7000 asks for a certificate of the site: TLS without one ends in an alert, before any message."""
    stranger = """
import socket, ssl
context = ssl.create_default_context(cafile="/etc/fieldring/tls/ca.pem")
with socket.create_connection(("172.31.83.12", 7000), timeout=5) as plain:
    with context.wrap_socket(plain, server_hostname="172.31.83.12") as channel:
        channel.sendall(bytes.fromhex("ca552dfa") + bytes(64))
        print("read", channel.recv(16))
"""
    done = host.run("python3 -c %s", stranger)
    assert done.rc != 0
    assert "certificate required" in done.stderr.lower() or "bad certificate" in done.stderr.lower()


@pytest.mark.parametrize(
    "login", [("fieldring_ingest", "wrong-password"), ("cassandra", "cassandra"), ("nobody", "nobody")]
)
@pytest.mark.parametrize("name", NODES)
def test_wrong_login_is_refused(name: str, login: tuple[str, str]) -> None:
    """A wrong password and the default login are refused by every node."""
    assert cql("SELECT key FROM system.local", at=name, login=login) == (3, ["AuthenticationFailed"])


def test_accounts_are_on_three_replicas() -> None:
    """A login must not depend on one node."""
    status, rows = cql("SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = 'system_auth'")
    assert status == 0
    assert "NetworkTopologyStrategy" in rows[0][0]
    assert "'dc1': '3'" in rows[0][0]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM system_auth.roles",
        "DROP TABLE fieldring.readings",
        "CREATE ROLE thief WITH LOGIN = true",
    ],
)
def test_service_account_may_not(statement: str) -> None:
    """The service's account reads and writes in its keyspace and no more."""
    assert cql(statement) == (4, ["Unauthorized"])


def test_migrations_are_recorded() -> None:
    """The schema file is applied, comments and quoted semicolons included, and its name kept."""
    assert cql("SELECT name FROM fieldring.schema_migrations") == (0, [["001_readings.cql"]])
    assert cql(
        "SELECT comment FROM system_schema.tables WHERE keyspace_name = 'fieldring' AND table_name = 'notes'"
    ) == (
        0,
        [["quoted; too"]],
    )


@pytest.mark.parametrize("name", NODES)
def test_only_the_two_ports_are_open_to_others(name: str) -> None:
    """JMX, which knows no password here, listens on loopback only."""
    listeners = node(name).check_output("ss -Hltn").splitlines()
    outside = {
        line.split()[3]
        for line in listeners
        if not line.split()[3].startswith(("127.", "[::1]", "[::ffff:127."))
    }
    assert {f"{ADDRESSES[name]}:7000", f"{ADDRESSES[name]}:9042"} == {
        re.sub(r"\[::ffff:(.*)\]", r"\1", address) for address in outside if not address.endswith(":22")
    }


def test_daemon_runs_with_the_settings() -> None:
    """Asked of the daemon, not of its file; none of them is Cassandra's own default."""
    superuser = ("fieldring_admin", "molecule-superuser-1")
    wanted = {"max_hint_window": "24h", "max_hints_size_per_host": "4GiB", "hinted_handoff_throttle": "4MiB"}
    names = ", ".join(f"'{name}'" for name in wanted)
    status, rows = cql(
        f"SELECT name, value FROM system_views.settings WHERE name IN ({names})", login=superuser
    )
    assert (0, wanted) == (status, dict(rows))


def test_guardrail_refuses_a_simple_strategy() -> None:
    """For accounts that are no superuser: such a keyspace ignores data centres."""
    superuser = ("fieldring_admin", "molecule-superuser-1")
    cql(
        "CREATE ROLE IF NOT EXISTS maker WITH LOGIN = true AND PASSWORD = 'molecule-maker-1'",
        "GRANT CREATE ON ALL KEYSPACES TO maker",
        login=superuser,
    )
    options = "{'class': 'SimpleStrategy', 'replication_factor': 1}"
    status, said = cql(
        f"CREATE KEYSPACE simple WITH replication = {options}", login=("maker", "molecule-maker-1")
    )
    assert (4, ["InvalidRequest"]) == (status, said)
    cql("DROP ROLE maker", login=superuser)


def test_jmx_is_refused_from_another_host() -> None:
    """nodetool from another host gets no connection."""
    done = node(SECOND).run(f"nodetool -h {ADDRESSES[FIRST]} info")
    assert done.rc != 0
    assert "refused" in (done.stdout + done.stderr).lower()


def test_changed_setting_waits_for_a_restart() -> None:
    """On a joined ring a changed setting is rendered, noted and reported; no daemon is touched."""
    before = {name: main_pid(name) for name in NODES}
    tags = ("--tags", "cassandra_node_configure,cassandra_node_service,cassandra_node_verify")
    settings = {
        "commitlog_segment_size": "8MiB",
        "memtable_heap_space": "64MiB",
        "memtable_offheap_space": "64MiB",
    }
    changed = play(*tags, cassandra_node_settings={**settings, "file_cache_size": "48MiB"})
    assert changed.returncode == 0, told(changed)
    assert before == {name: main_pid(name) for name in NODES}
    assert "waiting for restart_cassandra" in told(changed)
    for name in NODES:
        assert (
            "file_cache_size: 32MiB -> file_cache_size: 48MiB"
            in node(name).file("/etc/cassandra/restart-pending").content_string
        )
    restored = play(*tags)
    assert restored.returncode == 0, told(restored)
    assert before == {name: main_pid(name) for name in NODES}
    assert not node(FIRST).file("/etc/cassandra/restart-pending").exists


def test_identity_of_a_joined_node_is_kept() -> None:
    """CN-111: cluster name and number of tokens are for life."""
    done = play(
        "--tags",
        "cassandra_node_preflight",
        cassandra_node_cluster_name="another",
        cassandra_node_num_tokens=8,
    )
    assert done.returncode != 0
    assert "CN-111" in told(done)
    assert "cluster_name: molecule -> another; num_tokens: 4 -> 8" in told(done)


def test_wrong_superuser_password_is_refused() -> None:
    """CN-119: and the password is in no line of the output."""
    done = play("--tags", "cassandra_node_verify", cassandra_node_superuser_password="not-the-password")
    assert done.returncode != 0
    assert "CN-119" in told(done)
    assert "not-the-password" not in told(done)


def test_node_that_is_not_the_one_on_record_is_refused() -> None:
    """CN-117: the record has another host ID than the node that answers."""
    path = EPHEMERAL / "ring" / "main.json"
    kept = path.read_text()
    record = json.loads(kept)
    record["nodes"][THIRD]["host_id"] = "00000000-0000-0000-0000-000000000000"
    path.write_text(json.dumps(record))
    try:
        done = play("--tags", "cassandra_node_verify")
    finally:
        path.write_text(kept)
    assert done.returncode != 0
    assert "CN-117" in told(done)


def test_edited_migration_is_refused(tmp_path: Path) -> None:
    """CN-118: a file that was applied is not edited afterwards."""
    edited = tmp_path / "001_readings.cql"
    edited.write_text("CREATE TABLE IF NOT EXISTS readings (sensor text PRIMARY KEY);")
    done = play(
        "--tags",
        "cassandra_node_verify",
        cassandra_node_schema=[{"keyspace": "fieldring", "file": str(edited)}],
    )
    assert done.returncode != 0
    assert "CN-118" in told(done)


def test_renewed_certificate_is_served_without_a_restart() -> None:
    """The handler reloads the leaf that site_ca renewed; the daemon goes on."""
    serial = "import ssl; print(ssl.get_server_certificate(('172.31.83.13', 9042)))"
    before, pid = node(FIRST).check_output("python3 -c %s", serial), main_pid(THIRD)
    # A missing leaf is issued anew, like one that is about to expire.
    node(THIRD).check_output("rm /etc/fieldring/tls/host.crt")
    done = play("--limit", THIRD, "--tags", "site_ca_preflight,site_ca_authority,site_ca_leaf")
    assert done.returncode == 0, told(done)
    wait(
        lambda: node(FIRST).check_output("python3 -c %s", serial) != before,
        seconds=10,
        what="a new leaf on 9042",
    )
    assert pid == main_pid(THIRD)


def test_quorum_outlives_a_killed_node_and_the_unit_comes_back() -> None:
    """kill -9 of one node: writes and reads at QUORUM go on at once, and systemd brings the node back."""
    pid = main_pid(THIRD)
    node(THIRD).check_output(f"kill -9 {pid}")
    for number in range(5):
        assert cql(
            f"INSERT INTO fieldring.readings (sensor, ts, value) VALUES ('kerbside', {number}, {number})",
            at=FIRST,
        ) == (0, [])
    assert not node(FIRST).addr(ADDRESSES[THIRD]).port(9042).is_reachable, (
        "the node is back before quorum was proven"
    )
    assert cql("SELECT value FROM fieldring.readings WHERE sensor = 'kerbside'", at=SECOND) == (
        0,
        [[float(number)] for number in range(5)],
    )
    wait(lambda: main_pid(THIRD) not in (0, pid), seconds=30, what="the unit starts again")
    wait(lambda: up_and_normal(FIRST) == 3 and up_and_normal(THIRD) == 3, seconds=120, what="three nodes UN")


def test_stopped_node_and_empty_disk_are_refused() -> None:
    """CN-115: a joined node that was stopped is not started. CN-112: nor is one whose disk is empty.

    Its files can be rendered meanwhile: that is the way back from a setting with which it does not start.
    """
    host = node(THIRD)
    conf = "/etc/cassandra/cassandra.yaml"
    host.check_output("systemctl stop cassandra")
    host.check_output("sed -i 's/^max_hint_window: .*/max_hint_window: nonsense/' %s", conf)
    try:
        stopped = play("--tags", "cassandra_node_preflight")
        rendered = play("--tags", "cassandra_node_configure")
        host.check_output("mv /var/lib/cassandra /var/lib/cassandra.aside")
        empty = play("--tags", "cassandra_node_preflight")
    finally:
        host.run(
            "test -d /var/lib/cassandra.aside && rm -rf /var/lib/cassandra && mv /var/lib/cassandra.aside "
            "/var/lib/cassandra"
        )
        host.run("systemctl start cassandra")
    assert stopped.returncode != 0
    assert "CN-115" in told(stopped)
    assert rendered.returncode == 0, told(rendered)[-3000:]
    assert "nonsense" not in host.file(conf).content_string
    assert empty.returncode != 0
    assert "CN-112" in told(empty)
    assert "replace_cassandra_node" in told(empty)
    wait(lambda: up_and_normal(FIRST) == 3, seconds=120, what="three nodes UN")
