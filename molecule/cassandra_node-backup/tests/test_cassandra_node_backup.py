"""One ring, one after the other: backup, restore, repair, credentials, certificates, a support bundle.

The tests build on each other and run in the order of this file. Planned operations run under a writer and a
reader at LOCAL_QUORUM: no request may fail, and no acknowledged write may be missing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml

NODES = {f"fieldring-backup-ring{n}": f"172.31.96.1{n}" for n in (1, 2, 3)}
FIRST, SECOND, THIRD = NODES
OTHER = "fieldring-backup-other1"
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
EPHEMERAL = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
CA = EPHEMERAL / "state" / "ca"
# What the inventory says by now: tests that rotate something change it, as an operator edits the vault.
NOW: dict[str, Any] = {}
# Names of the backups that count.
MADE: list[str] = []
# The login of the service that the traffic stands for.
LOGIN = {"user": "fieldring_ingest", "password": "molecule-ingest-1"}

# A test is one or several runs of a playbook.
pytestmark = pytest.mark.timeout(1500)
# The tests drive the whole ring; one run of them is enough.
testinfra_hosts = [f"docker://{FIRST}"]

_spec = importlib.util.spec_from_file_location("ring_traffic", PROJECT / "molecule/shared/ring_traffic.py")
assert _spec is not None
assert _spec.loader is not None
ring_traffic = importlib.util.module_from_spec(_spec)
sys.modules["ring_traffic"] = ring_traffic
_spec.loader.exec_module(ring_traffic)

CLIENT = """
import json, ssl, sys
from cassandra import ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import Cluster
from cassandra.policies import WhiteListRoundRobinPolicy
from cassandra.query import SimpleStatement
address, user, password, statements = json.loads(sys.stdin.read())
cluster = Cluster([address], auth_provider=PlainTextAuthProvider(user, password), connect_timeout=20,
                  ssl_context=ssl.create_default_context(cafile="/etc/fieldring/tls/ca.pem"),
                  ssl_options={"server_hostname": address},
                  load_balancing_policy=WhiteListRoundRobinPolicy([address]))
session = cluster.connect()
rows = []
for text in statements:
    statement = SimpleStatement(text, consistency_level=ConsistencyLevel.QUORUM)
    rows += [list(row) for row in session.execute(statement, timeout=60)]
print(json.dumps(rows, default=str))
cluster.shutdown()
"""


def node(name: str) -> Any:
    """The host of that name."""
    return testinfra.get_host(f"docker://{name}")


def cql(
    *statements: str, at: str = FIRST, address: str = "", login: dict[str, str] | None = None
) -> list[Any]:
    """The rows of statements that the service's account, or another, sends to a node."""
    account = login or LOGIN
    question = json.dumps([address or NODES[at], account["user"], account["password"], statements])
    done = subprocess.run(
        ["docker", "exec", "-i", at, "python3", "-W", "ignore", "-c", CLIENT],
        input=question, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return list(json.loads(done.stdout.strip().splitlines()[-1]))


def play(playbook: str, *arguments: str, inventory: Path | None = None, **variables: Any) -> str:
    """All that an operator's run printed, on one line; the exit status stands before it."""
    command = ["ansible-playbook", "-i", str(inventory or EPHEMERAL / "inventory"), str(PROJECT / playbook)]
    done = subprocess.run(
        [*command, *arguments, "--extra-vars", json.dumps({**NOW, **variables})],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(EPHEMERAL / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(PROJECT / "roles"),
            "ANSIBLE_NOCOLOR": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return f"status {done.returncode} " + re.sub(r"\s+", " ", done.stdout + done.stderr)


def good(said: str) -> str:
    """What a run printed that had to succeed."""
    assert said.startswith("status 0 "), said[-6000:]
    return said


def refused(said: str, identifier: str) -> str:
    """What a run printed that had to refuse, with the refusal's ID."""
    assert not said.startswith("status 0 "), said[-3000:]
    assert f"{identifier}: " in said, said[-6000:]
    return said


def unchanged(said: str) -> None:
    """A second run of the same command changes nothing on any host."""
    good(said)
    assert re.findall(r"changed=(\d+)", said), said[-3000:]
    assert set(re.findall(r"changed=(\d+)", said)) == {"0"}, said[-6000:]


def traffic() -> Any:
    """A writer and a reader for the time of a `with` block; the ledger goes through all tests."""
    # The files of the CA that a client outside has by then.
    trust = EPHEMERAL / "client_ca.pem"
    names = ("ca.pem", "ca.next.pem", "ca.previous.pem")
    trust.write_text("".join((CA / name).read_text() for name in names if (CA / name).exists()))
    return ring_traffic.RingTraffic(
        contacts=list(NODES.values()), ca=trust, keyspace="fieldring", ledger=EPHEMERAL / "ledger", **LOGIN
    )


def judge(run: Any, operation: str, began: float) -> None:
    """Nothing failed and nothing acknowledged is missing."""
    print(run.line(operation, time.monotonic() - began))
    assert (0, 0, 0) == tuple(run.counts[key] for key in ("failed_writes", "failed_reads", "wrong")), (
        run.counts
    )
    assert run.counts["acknowledged"] > 0
    assert run.missing() == []


def backups(said: str) -> list[str]:
    """Names of the backups that a report calls kept."""
    return re.findall(r"\d{8}T\d{6}Z", said.split("kept: ")[-1].split('"')[0])


def test_backup_under_traffic() -> None:
    """A check run writes nothing; a run is a backup of all nodes, and the traffic does not notice."""
    assert "would back up" in good(play("playbooks/backup_cassandra.yml", "--check"))
    assert node(OTHER).run("ls /srv/backup").stdout == ""
    cql("INSERT INTO fieldring.windows (sensor, ts, value) VALUES ('kerbside', 1, 1.5)")
    began = time.monotonic()
    with traffic() as run:
        said = good(play("playbooks/backup_cassandra.yml"))
    judge(run, "backup", began)
    MADE.extend(backups(said))
    assert len(MADE) == 1
    for name in NODES:
        assert not node(name).file("/var/lib/cassandra/backup").exists
        assert "fieldring-backup" not in node(name).check_output("nodetool listsnapshots")


def test_failed_backup_is_none() -> None:
    """One node cannot write: the others' files are no backup, and the one before is still the latest."""
    node(THIRD).check_output("touch /var/lib/cassandra/backup")
    try:
        said = play("playbooks/backup_cassandra.yml")
    finally:
        node(THIRD).check_output("rm -f /var/lib/cassandra/backup")
    assert not said.startswith("status 0 ")
    said = refused(
        play("playbooks/restore_cassandra.yml", restore_cassandra_backup="20010101T000000Z"), "CN-142"
    )
    assert len(re.findall(r"\d{8}T\d{6}Z", said.split("There are: ")[1].split(".")[0])) == 1


def test_backup_without_a_place_is_refused() -> None:
    """CN-140: a path that is not absolute, and a short key."""
    said = play(
        "playbooks/backup_cassandra.yml",
        cassandra_node_backup_repository="backups",
        cassandra_node_backup_password="short",
    )
    assert "at least 16 characters" in refused(said, "CN-140")


def test_ring_that_is_not_whole_is_refused() -> None:
    """CN-141: a peer of the inventory that no node sees."""
    peers = [
        {"name": name, "address": address, "dc": "dc1", "rack": f"rack{number}"}
        for number, (name, address) in enumerate(NODES.items(), 1)
    ]
    peers[2]["address"] = "172.31.96.99"
    refused(play("playbooks/backup_cassandra.yml", cassandra_node_peers=peers), "CN-141")


def test_damaged_backup_is_refused_before_anything_changes() -> None:
    """CN-144: a pack of one node is damaged in the storage; the table keeps its rows."""
    pack = node(OTHER).check_output(f"ls -S /srv/backup/main/{SECOND}/data/*/* | head -1")
    node(OTHER).check_output(
        f"cp -p {pack} /root/pack && printf damage | dd of={pack} bs=1 seek=40 conv=notrunc status=none"
    )
    try:
        said = play(
            "playbooks/restore_cassandra.yml",
            restore_cassandra_backup="latest",
            restore_cassandra_confirm=MADE[-1],
        )
    finally:
        node(OTHER).check_output(f"cp -p /root/pack {pack}")
    refused(said, "CN-144")
    assert cql("SELECT value FROM fieldring.windows") == [[1.5]]


def test_restore_of_one_table_in_place() -> None:
    """Not without its name said twice; then the table is as it was, and the other table is not touched."""
    cql(
        "DELETE FROM fieldring.windows WHERE sensor = 'kerbside'",
        "INSERT INTO fieldring.windows (sensor, ts, value) VALUES ('rooftop', 2, 2.5)",
    )
    asked = {"restore_cassandra_backup": "latest", "restore_cassandra_tables": ["fieldring.windows"]}
    said = refused(play("playbooks/restore_cassandra.yml", **asked), "CN-147")
    assert f"restore_cassandra_confirm={MADE[-1]}" in said
    began = time.monotonic()
    with traffic() as run:
        good(play("playbooks/restore_cassandra.yml", **asked, restore_cassandra_confirm=MADE[-1]))
    judge(run, "restore of another table", began)
    assert cql("SELECT sensor, ts, value FROM fieldring.windows") == [["kerbside", 1, 1.5]]
    assert "truncated-" in node(FIRST).check_output("nodetool listsnapshots")


def test_restore_of_a_dropped_table_with_an_index() -> None:
    """CN-149 while a column is not what it was; without the table it is made anew, and its index answers."""
    admin = {"user": "fieldring_admin", "password": "molecule-superuser-1"}
    cql(
        "CREATE TABLE fieldring.places (sensor text PRIMARY KEY, room text, floor int, note text)",
        "ALTER TABLE fieldring.places DROP note",
        "CREATE INDEX places_room ON fieldring.places (room)",
        login=admin,
    )
    cql(
        "INSERT INTO fieldring.places (sensor, room, floor) VALUES ('kerbside', 'yard', 0)",
        "INSERT INTO fieldring.places (sensor, room, floor) VALUES ('indoor', 'hall', 1)",
    )
    MADE.append(backups(good(play("playbooks/backup_cassandra.yml")))[-1])
    asked = {
        "restore_cassandra_backup": MADE[-1],
        "restore_cassandra_tables": ["fieldring.places"],
        "restore_cassandra_confirm": MADE[-1],
    }
    cql("ALTER TABLE fieldring.places DROP floor", login=admin)
    said = refused(play("playbooks/restore_cassandra.yml", **asked), "CN-149")
    assert "floor is not there any more" in said
    cql("ALTER TABLE fieldring.places ADD floor int", login=admin)
    said = refused(play("playbooks/restore_cassandra.yml", **asked), "CN-149")
    assert "floor was dropped and made again" in said
    cql("DROP TABLE fieldring.places", login=admin)
    began = time.monotonic()
    with traffic() as run:
        good(play("playbooks/restore_cassandra.yml", **asked))
    judge(run, "restore of a dropped table", began)
    found = cql("SELECT sensor, room, floor FROM fieldring.places")
    assert sorted(found) == [["indoor", "hall", 1], ["kerbside", "yard", 0]]
    assert cql("SELECT sensor FROM fieldring.places WHERE room = 'yard'") == [["kerbside"]]
    indexes = "SELECT index_name FROM system_schema.indexes WHERE keyspace_name = 'fieldring'"
    assert cql(indexes) == [["places_room"]]
    for name in NODES:
        assert not node(name).file("/var/lib/cassandra/restore_begun.json").exists


S3_BUCKET = "/srv/s3/ring-backups/site/main"
S3_SECRET = "molecule-s3-secret-1"


def s3(repository: str = "s3:https://172.31.96.21:9000/ring-backups/site", **changes: str) -> dict[str, Any]:
    """A ring whose target is a private S3 storage. ID and region are words of its manifests, too."""
    keys = {"AWS_ACCESS_KEY_ID": "backup", "AWS_SECRET_ACCESS_KEY": S3_SECRET, "AWS_DEFAULT_REGION": "main"}
    return {
        "cassandra_node_backup_repository": repository,
        "cassandra_node_backup_environment": {**keys, **changes},
        "cassandra_node_backup_ca": (CA / "ca.pem").read_text(),
    }


@contextmanager
def processes_of(name: str) -> Iterator[set[str]]:
    """Command lines that were seen on a host meanwhile, as any user of it could."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            seen.update(node(name).run("ps axww -o args=").stdout.splitlines())

    watch = threading.Thread(target=look)
    watch.start()
    try:
        yield seen
    finally:
        over.set()
        watch.join()


@contextmanager
def harmed(folder: str, command: str) -> Iterator[None]:
    """The largest pack of a repository on the storage host, for a while not what it was."""
    pack = node(OTHER).check_output(f"ls -S {folder}/data/*/* | head -1")
    node(OTHER).check_output(f"cp -p {pack} /root/pack && {command.format(pack=pack)}")
    # What the server may remember of the file.
    time.sleep(3)
    try:
        yield
    finally:
        node(OTHER).check_output(f"cp -p /root/pack {pack}")
        time.sleep(3)


def test_s3_storage_that_cannot_be_used_is_refused() -> None:
    """CN-140, CN-153 to CN-155: nothing is written, no bucket made, and no secret told, however loud."""
    playbook = "playbooks/backup_cassandra.yml"
    said = refused(play(playbook, **{**s3(), "cassandra_node_backup_environment": {}}), "CN-140")
    assert "an S3 target needs AWS_ACCESS_KEY_ID" in said
    said = refused(play(playbook, "-vvv", **s3(AWS_SECRET_ACCESS_KEY="molecule-wrong-1")), "CN-153")
    assert "SignatureDoesNotMatch" in said
    said += refused(play(playbook, "--check", **s3(AWS_ACCESS_KEY_ID="nobody")), "CN-153")
    said += refused(play(playbook, **s3("s3:https://172.31.96.21:9000/mistyped/site")), "CN-154")
    said += refused(play(playbook, **{**s3(), "cassandra_node_backup_ca": ""}), "CN-155")
    assert "cassandra_node_backup_ca" in said
    for secret in (S3_SECRET, "molecule-wrong-1", "molecule-backup-key-1"):
        assert secret not in said
    assert node(OTHER).check_output("find /srv/s3 -mindepth 1") == "/srv/s3/ring-backups"


def test_backup_into_a_bucket() -> None:
    """A check run writes nothing; a second backup adds next to nothing; secrets are in no process list."""
    assert "would back up" in good(play("playbooks/backup_cassandra.yml", "--check", **s3()))
    assert node(OTHER).check_output("find /srv/s3 -type f") == ""
    began = time.monotonic()
    with processes_of(SECOND) as seen, traffic() as run:
        said = good(play("playbooks/backup_cassandra.yml", "-vvv", **s3()))
    judge(run, "backup into a bucket", began)
    assert any("restic" in line for line in seen)
    for secret in (S3_SECRET, "molecule-backup-key-1"):
        assert not any(secret in line for line in seen)
        assert secret not in said
    assert node(SECOND).check_output("find /tmp /root -name 'fieldring-backup-*'") == ""
    size = int(node(OTHER).check_output(f"du -sk {S3_BUCKET}").split()[0])
    second = backups(good(play("playbooks/backup_cassandra.yml", **s3())))
    assert len(second) == 2
    grown = int(node(OTHER).check_output(f"du -sk {S3_BUCKET}").split()[0]) - size
    print(f"bucket: {size} KiB, and {grown} KiB more after a second backup")
    assert grown < max(size // 2, 2048)


@pytest.mark.parametrize(
    "harm",
    ["printf damage | dd of={pack} bs=1 seek=40 conv=notrunc status=none", "rm {pack}"],
    ids=["damaged", "missing"],
)
def test_object_that_is_not_whole_is_refused(harm: str) -> None:
    """CN-144: the table keeps its rows."""
    said = play("playbooks/restore_cassandra.yml", restore_cassandra_backup="20010101T000000Z", **s3())
    name = re.findall(r"There are: (\d{8}T\d{6}Z)", refused(said, "CN-142"))[0]
    with harmed(f"{S3_BUCKET}/{SECOND}", harm):
        said = play(
            "playbooks/restore_cassandra.yml",
            restore_cassandra_backup=name,
            restore_cassandra_confirm=name,
            **s3(),
        )
    refused(said, "CN-144")
    assert cql("SELECT sensor FROM fieldring.windows") == [["kerbside"]]


def test_restore_of_one_table_from_a_bucket() -> None:
    """As it was, while the other table is written and read."""
    cql("INSERT INTO fieldring.windows (sensor, ts, value) VALUES ('rooftop', 2, 2.5)")
    asked = {"restore_cassandra_backup": "latest", "restore_cassandra_tables": ["fieldring.windows"], **s3()}
    said = refused(play("playbooks/restore_cassandra.yml", **asked), "CN-147")
    name = re.findall(r"restore_cassandra_confirm=(\d{8}T\d{6}Z)", said)[0]
    began = time.monotonic()
    with traffic() as run:
        good(play("playbooks/restore_cassandra.yml", **asked, restore_cassandra_confirm=name))
    judge(run, "restore of another table from a bucket", began)
    assert cql("SELECT sensor, ts, value FROM fieldring.windows") == [["kerbside", 1, 1.5]]


def test_backup_into_a_mounted_directory() -> None:
    """There and back; a node that has it not mounted is refused, and writes nothing beside (CN-152)."""
    target = {"cassandra_node_backup_repository": "/srv/backups"}
    for name in NODES:
        node(name).check_output("mkdir -p /srv/backups && mount --bind /srv/shared /srv/backups")
    try:
        made = backups(good(play("playbooks/backup_cassandra.yml", **target)))[-1]
        assert set(node(FIRST).check_output("ls /srv/shared/main").split()) == set(NODES)
        cql("INSERT INTO fieldring.windows (sensor, ts, value) VALUES ('rooftop', 2, 2.5)")
        good(
            play(
                "playbooks/restore_cassandra.yml",
                restore_cassandra_backup=made,
                restore_cassandra_confirm=made,
                restore_cassandra_tables=["fieldring.windows"],
                **target,
            )
        )
        assert cql("SELECT sensor, ts, value FROM fieldring.windows") == [["kerbside", 1, 1.5]]
        node(THIRD).check_output("umount /srv/backups")
        refused(play("playbooks/backup_cassandra.yml", **target), "CN-152")
        assert node(THIRD).check_output("ls -A /srv/backups") == ""
    finally:
        for name in NODES:
            node(name).run("umount /srv/backups")


def test_repair_now_and_by_the_week() -> None:
    """Each node repairs its ranges once; a second run has nothing to do, and each node has its own hour."""
    began = time.monotonic()
    with traffic() as run:
        said = good(play("playbooks/repair_cassandra.yml", repair_cassandra_older_than_hours=0))
    judge(run, "repair", began)
    for name in NODES:
        assert f"{name}: repaired fieldring in " in said
    unchanged(play("playbooks/repair_cassandra.yml"))
    times = set()
    for name in NODES:
        metric = node(name).file("/var/lib/prometheus/node-exporter/fieldring_repair.prom").content_string
        at = re.findall(r'fieldring_repair_last_success_seconds\{keyspace="fieldring"\} (\d+)', metric)
        assert time.time() - int(at[0]) < 3600
        times.add(node(name).check_output("systemctl show cassandra-repair.timer --property=TimersCalendar"))
        assert node(name).check_output("systemctl is-active cassandra-repair.timer") == "active"
    assert len(times) == 3


def test_own_repair_of_cassandra_needs_a_word() -> None:
    """CN-160 until the change of the schema is accepted, CN-161 until it is set up."""
    refused(play("playbooks/repair_cassandra.yml", cassandra_node_repair_method="auto"), "CN-160")
    refused(
        play(
            "playbooks/repair_cassandra.yml",
            cassandra_node_repair_method="auto",
            cassandra_node_repair_auto_schema_change_accepted=True,
        ),
        "CN-161",
    )


def account(number: int) -> dict[str, Any]:
    return {
        "name": f"fieldring_ingest_{number}",
        "password": f"molecule-ingest-{number}",
        "keyspaces": ["fieldring"],
    }


def test_credentials_are_rotated_without_a_failed_request() -> None:
    """The old account works until its last client is gone, then is dropped; a second run changes nothing."""
    playbook = "playbooks/rotate_credentials.yml"
    refused(play(playbook, vault_cassandra_superuser_password="not-the-password-1"), "CN-170")
    NOW.update(
        vault_cassandra_superuser_password="molecule-superuser-2",
        cassandra_node_superuser_previous="fieldring_admin",
        cassandra_node_superuser_previous_password="molecule-superuser-1",
        cassandra_node_retire_wait_seconds=5,
    )
    began = time.monotonic()
    with traffic() as run:
        wrong = {"name": "fieldring_ingest", "password": "molecule-ingest-9", "keyspaces": ["fieldring"]}
        said = refused(play(playbook, cassandra_node_accounts=[wrong]), "CN-171")
        refused(
            play(
                playbook,
                cassandra_node_accounts=[account(2)],
                cassandra_node_retired_accounts=["fieldring_ingest_2"],
            ),
            "CN-173",
        )
        NOW.update(cassandra_node_accounts=[account(2)], cassandra_node_retired_accounts=["fieldring_ingest"])
        said += refused(play(playbook), "CN-172")
    judge(run, "credentials, with the account before", began)
    LOGIN.update(user="fieldring_ingest_2", password="molecule-ingest-2")
    began = time.monotonic()
    with traffic() as run:
        said += good(play(playbook))
    judge(run, "credentials, with the account of now", began)
    for secret in ("molecule-superuser-1", "molecule-superuser-2", "molecule-ingest-1", "molecule-ingest-2"):
        assert secret not in said
    unchanged(play(playbook))


def test_leaves_are_renewed_without_a_failed_request() -> None:
    """Every node serves a new leaf; a second run of the day changes nothing."""
    serial = "import ssl; print(ssl.get_server_certificate(('172.31.96.12', 9042)))"
    before = node(FIRST).check_output("python3 -c %s", serial)
    began = time.monotonic()
    with traffic() as run:
        good(play("playbooks/rotate_certificates.yml", rotate_certificates_older_than_days=0))
    judge(run, "leaves", began)
    assert node(FIRST).check_output("python3 -c %s", serial) != before
    unchanged(play("playbooks/rotate_certificates.yml"))
    nobody = [{"name": "nobody", "address": NODES[FIRST], "port": 1}]
    refused(
        play(
            "playbooks/rotate_certificates.yml", site_ca_prove_endpoints=nobody, site_ca_prove_wait_seconds=0
        ),
        "CA-104",
    )


def test_ca_is_changed_without_a_failed_request() -> None:
    """Trust in both first, then CA-105 until clients outside have it, then leaves, then the old one goes."""
    asked = {"rotate_certificates_of": "ca", "rotate_certificates_older_than_days": 0}
    old = (CA / "ca.pem").read_text()
    began = time.monotonic()
    with traffic() as run:
        refused(play("playbooks/rotate_certificates.yml", **asked), "CA-105")
    judge(run, "CA, trust in both", began)
    for name in NODES:
        assert node(name).file("/etc/fieldring/tls/ca.pem").content_string.count("BEGIN CERTIFICATE") == 2
    began = time.monotonic()
    # The clients outside trust both now.
    with traffic() as run:
        good(
            play("playbooks/rotate_certificates.yml", **asked, rotate_certificates_clients_trust_new_ca=True)
        )
    judge(run, "CA, leaves of the new one", began)
    for name in NODES:
        trusted = node(name).file("/etc/fieldring/tls/ca.pem").content_string
        assert trusted == (CA / "ca.pem").read_text()
        assert old not in trusted
    unchanged(play("playbooks/rotate_certificates.yml", rotate_certificates_of="ca"))


def test_support_bundle_has_no_secret_of_the_inventory() -> None:
    """Logs, views and configuration of all hosts, and none of the secrets that the inventory holds."""
    good(play("playbooks/collect_support_bundle.yml"))
    archive = max((EPHEMERAL / "state" / "support").glob("*.tar.gz"))
    with tarfile.open(archive) as bundle:
        texts = {entry.name: bundle.extractfile(entry).read().decode() for entry in bundle if entry.isfile()}  # type: ignore[union-attr]
    names = "\n".join(texts)
    for wanted in (
        f"{FIRST}/ring/status.txt",
        f"{SECOND}/files/etc/cassandra/cassandra.yaml",
        f"{OTHER}/system/journal.txt",
    ):
        assert wanted in names
    assert "UN " in next(text for name, text in texts.items() if name.endswith(f"{FIRST}/ring/status.txt"))
    everything = "\n".join(texts.values())
    for secret in ("molecule-superuser", "molecule-ingest", "molecule-backup-key-1", "PRIVATE KEY"):
        assert secret not in everything


def test_backup_is_restored_into_a_ring_of_another_size(tmp_path: Path) -> None:
    """A ring of one gets every row of the three; a second time its tables are not empty, which is refused."""
    cql("INSERT INTO fieldring.windows (sensor, ts, value) VALUES ('park', 3, 3.5)")
    name = backups(good(play("playbooks/backup_cassandra.yml")))[-1]
    inventory = yaml.safe_load((SCENARIO / "files/other.yml").read_text())
    common = yaml.safe_load((SCENARIO / "molecule.yml").read_text())["provisioner"]["inventory"][
        "group_vars"
    ]["all"]
    inventory["all"]["vars"] = {**common, "ansible_connection": "community.docker.docker"}
    other = tmp_path / "other.yml"
    other.write_text(yaml.safe_dump(inventory))
    good(play("molecule/cassandra_node-backup/converge.yml", inventory=other))
    asked = {
        "restore_cassandra_backup": "latest",
        "restore_cassandra_from_ring": "main",
        "restore_cassandra_from_nodes": list(NODES),
    }
    good(play("playbooks/restore_cassandra.yml", inventory=other, **asked, restore_cassandra_confirm=name))
    found = cql("SELECT sensor, value FROM fieldring.windows", at=OTHER, address="172.31.96.21")
    assert sorted(found) == [["kerbside", 1.5], ["park", 3.5]]
    assert cql("SELECT count(*) FROM fieldring.ring_traffic", at=OTHER, address="172.31.96.21") == cql(
        "SELECT count(*) FROM fieldring.ring_traffic"
    )
    refused(
        play("playbooks/restore_cassandra.yml", inventory=other, **asked, restore_cassandra_confirm=name),
        "CN-148",
    )
