"""A real single Cassandra node in a container of its own: TLS, logins and group commit log as on a ring."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import RoundRobinPolicy
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fieldring.store import _ring

REPOSITORY = Path(__file__).parents[3]
ARCHIVE = REPOSITORY / ".cache/cassandra/apache-cassandra-5.0.9-bin.tar.gz"
ASSEMBLE = REPOSITORY / "roles/cassandra_node/files/archive/assemble.sh"
MIGRATIONS = REPOSITORY / "ingest_service/src/fieldring/store/migrations"
IMAGE = "fieldring-host:lab"
USER, PASSWORD = "cassandra", "cassandra"  # the node's own first account; it lives for one test run

_CONFIGURATION = """
cluster_name: store-tests
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
num_tokens: 4
endpoint_snitch: GossipingPropertyFileSnitch
storage_compatibility_mode: NONE
commitlog_sync: group
commitlog_sync_group_window: 10ms
commitlog_segment_size: 8MiB
disk_failure_policy: stop
commit_failure_policy: stop
listen_address: 127.0.0.1
rpc_address: 0.0.0.0
broadcast_rpc_address: 127.0.0.1
native_transport_port: 9042
data_file_directories: [/cassandra/data]
commitlog_directory: /cassandra/commitlog
hints_directory: /cassandra/hints
saved_caches_directory: /cassandra/saved_caches
authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{seeds: "127.0.0.1"}]
memtable_heap_space: 64MiB
memtable_offheap_space: 64MiB
file_cache_size: 32MiB
concurrent_writes: 32
client_encryption_options:
  enabled: true
  optional: false
  ssl_context_factory: {class_name: org.apache.cassandra.security.PEMBasedSslContextFactory}
  keystore: /etc/cassandra/host.pem
  truststore: /etc/cassandra/ca.pem
"""
_EXPORTS = [
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/java.lang.ref",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.management/com.sun.jmx.remote.security",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "jdk.unsupported/sun.misc",
]
_OPENS = [
    "java.lang.module",
    "jdk.internal.loader",
    "jdk.internal.ref",
    "jdk.internal.reflect",
    "jdk.internal.math",
    "jdk.internal.module",
    "jdk.internal.util.jar",
    "sun.nio.ch",
    "java.io",
    "java.lang.reflect",
    "java.lang",
    "java.util",
    "java.nio",
]
_JAVA = [
    "-Xms384M", "-Xmx384M", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:MaxDirectMemorySize=256M",
    "-XX:+ExitOnOutOfMemoryError",
    "-Dcassandra.ring_delay_ms=1000", "-Dcassandra.skip_wait_for_gossip_to_settle=0",
    "-Dcassandra.superuser_setup_delay_ms=0", "-Dcassandra.config=file:///etc/cassandra/cassandra.yaml",
    "-Dcassandra.storagedir=/cassandra", "-javaagent:/opt/apache-cassandra-5.0.9/lib/jamm-0.4.0.jar",
    "-Djdk.attach.allowAttachSelf=true", "-Dio.netty.tryReflectionSetAccessible=true",
    *(f"--add-exports={name}=ALL-UNNAMED" for name in _EXPORTS),
    *(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _OPENS),
    "--add-opens=jdk.management/com.sun.management.internal=ALL-UNNAMED",
]  # fmt: skip


@dataclass
class Node:
    """A running node. ``options`` are what a CassandraStore needs to reach it."""

    container: str
    port: int
    ca_file: str

    def options(self, keyspace: str) -> dict[str, Any]:
        return {
            "port": self.port,
            "local_dc": "dc1",
            "keyspace": keyspace,
            "username": USER,
            "password": PASSWORD,
            "ca_file": self.ca_file,
        }

    def docker(self, *arguments: str) -> str:
        return _docker(*arguments)

    @contextlib.contextmanager
    def session(self) -> Iterator[Any]:
        cluster = Cluster(
            ["127.0.0.1"],
            port=self.port,
            auth_provider=PlainTextAuthProvider(USER, PASSWORD),
            ssl_context=_ring._tls_context(self.ca_file),
            protocol_version=4,
            connection_class=_ring._Connection,
            execution_profiles={
                EXEC_PROFILE_DEFAULT: ExecutionProfile(
                    load_balancing_policy=RoundRobinPolicy(), request_timeout=60
                )
            },
        )
        try:
            yield cluster.connect()
        finally:
            cluster.shutdown()

    def make_keyspace(self) -> str:
        """A new keyspace with the schema as the migrations have it."""
        keyspace = f"t{uuid.uuid4().hex[:10]}"
        with self.session() as session:
            session.execute(
                f"CREATE KEYSPACE {keyspace} "
                "WITH replication = {'class': 'NetworkTopologyStrategy', 'dc1': 1}"
            )
            session.set_keyspace(keyspace)
            for path in sorted(MIGRATIONS.glob("[0-9][0-9][0-9]_*.cql")):
                lines = [li for li in path.read_text().splitlines() if not li.lstrip().startswith("--")]
                for statement in "\n".join(lines).split(";"):
                    if statement.strip():
                        session.execute(statement)
        return keyspace


@contextlib.contextmanager
def running_node(directory: Path) -> Iterator[Node]:
    """Start a node, wait for CQL, remove its container however the tests end."""
    # As the role does it; nothing is fetched where the archive is there already.
    made = subprocess.run([ASSEMBLE, "5.0.9", ARCHIVE], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.fail(f"Cassandra's archive could not be assembled: {made.stderr.strip()}")
    _make_certificates(directory)
    (directory / "cassandra.yaml").write_text(_CONFIGURATION)
    (directory / "cassandra-rackdc.properties").write_text("dc=dc1\nrack=rack1\n")
    (directory / "logback.xml").write_text(
        '<configuration><appender name="out" class="ch.qos.logback.core.ConsoleAppender"><encoder>'
        "<pattern>%-5level %msg%n</pattern></encoder></appender>"
        '<root level="WARN"><appender-ref ref="out"/></root></configuration>'
    )
    (directory / "start").write_text(
        "set -e\ntar -C /opt -xzf /archive.tar.gz\n"
        "exec java " + " ".join(_JAVA) + " -cp '/etc/cassandra:/opt/apache-cassandra-5.0.9/lib/*' "
        "org.apache.cassandra.service.CassandraDaemon\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:  # one that stays the same over a restart
        port = probe.getsockname()[1]
    name = f"fieldring-store-tests-{uuid.uuid4().hex[:8]}"
    _docker(
        "run", "-d", "--name", name, "--label", "fieldring.test=store", "-p", f"127.0.0.1:{port}:9042",
        "-v", f"{directory}:/etc/cassandra:ro", "-v", f"{ARCHIVE}:/archive.tar.gz:ro", "--memory", "2g",
        IMAGE, "/bin/sh", "/etc/cassandra/start",
    )  # fmt: skip
    try:
        node = Node(name, port, str(directory / "ca.pem"))
        wait_until_up(node)
        yield node
    finally:
        _docker("rm", "-f", "-v", name)


def wait_until_up(node: Node, *, timeout_s: float = 110) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with node.session() as session:
                session.execute("SELECT release_version FROM system.local")
            return
        except Exception as error:  # noqa: BLE001 - whatever a starting node answers
            if time.monotonic() > deadline:
                log = subprocess.run(
                    ["docker", "logs", "--tail", "40", node.container], capture_output=True, text=True
                )
                pytest.fail(f"the node did not come up: {error}\n{log.stdout}{log.stderr}")
            time.sleep(1)


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"docker {' '.join(arguments[:2])}: {done.stderr.strip()}")
    return done.stdout.strip()


def _make_certificates(directory: Path) -> None:
    """A CA and a leaf for 127.0.0.1; and a second CA that did not sign it."""
    now = datetime.datetime.now(datetime.UTC)

    def build(name: str, issuer: str, key: Any, signer: Any, *, is_ca: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if not is_ca:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(signer, hashes.SHA256())

    def pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)

    ca_key, leaf_key, other_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    ca = build("store tests CA", "store tests CA", ca_key, ca_key, is_ca=True)
    leaf = build("store tests node", "store tests CA", leaf_key, ca_key, is_ca=False)
    private = leaf_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "ca.pem").write_bytes(pem(ca))
    (directory / "host.pem").write_bytes(private + pem(leaf) + pem(ca))
    (directory / "other_ca.pem").write_bytes(
        pem(build("other CA", "other CA", other_key, other_key, is_ca=True))
    )
