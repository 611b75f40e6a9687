"""What the containers may and may not do, how they are replaced, and that a bad release goes back."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

Converge = Callable[..., subprocess.CompletedProcess[str]]
WRITER = "write-write-write-write-write-write-1"
READER = "read-read-read-read-read-read-read-1"
TOKENS = [
    {"id": "writer", "token": WRITER, "roles": ["write"]},
    {"id": "reader", "token": READER, "roles": ["read"]},
]
CONTAINERS = ("fieldring-receive-1", "fieldring-receive-2", "fieldring-serve", "fieldring-analyse")
ASK = """
import ssl, sys, urllib.request, urllib.error
url, token, body = sys.argv[1:4]
context = ssl.create_default_context(cafile="/etc/fieldring/tls/ca.pem") if url.startswith("https") else None
headers = {"Authorization": "Token " + token} if token else {}
request = urllib.request.Request(url, body.encode() or None, headers)
try:
    answer = urllib.request.urlopen(request, context=context, timeout=20)
    print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
except OSError as error:
    print(0, error)
"""

testinfra_hosts = ["fieldring-ingest-container-1"]
# A release replaces four containers one after another.
pytestmark = pytest.mark.timeout(600)


def ask(
    host: Host, path: str, *, token: str = "", body: str = "", to: str = "https://localhost"
) -> tuple[int, str]:
    answer = host.check_output("python3 -c %s %s %s %s", ASK, to + path, token, body)
    status, _, text = answer.partition(" ")
    return int(status), text


def inside(host: Host, program: str, *, container: str = "fieldring-serve") -> Any:
    return host.run("docker exec %s /opt/fieldring/bin/python -c %s", container, program)


def started(host: Host) -> dict[str, str]:
    """When each container was made: what was replaced differs."""
    names = " ".join(CONTAINERS)
    found = host.check_output(
        f"docker inspect -f '{{{{.Name}}}} {{{{.Id}}}} {{{{.State.StartedAt}}}}' {names}"
    )
    return dict(line.removeprefix("/").split(" ", 1) for line in found.splitlines())


def names(host: Host) -> set[str]:
    return set(host.check_output("docker ps -a --format '{{.Names}}'").split())


def wait_ready(host: Host) -> None:
    deadline = time.monotonic() + 30
    while any(
        ask(host, "/ready", to=f"http://127.0.0.1:{port}")[0] != 200 for port in (18081, 18082, 18091, 18092)
    ):
        assert time.monotonic() < deadline
        time.sleep(0.3)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_container_can_change_nothing(host: Host, container: str) -> None:
    """It is nobody in particular, has no capability, gains none, and its root cannot be written."""
    program = "import os; print(os.getuid()); print(open('/proc/self/status').read())"
    status = inside(host, program, container=container).stdout
    assert status.startswith("10001\n")
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Read-only file system" in inside(host, "open('/opt/x', 'w')", container=container).stderr
    assert (
        "Read-only file system" in inside(host, "open('/etc/fieldring/x', 'w')", container=container).stderr
    )


def test_a_container_cannot_take_the_hosts_memory(host: Host) -> None:
    """What asks for more than its limit is killed, and the service beside it goes on."""
    before = started(host)
    assert inside(host, "x = bytearray(700 << 20); print(len(x))").rc == 137
    assert started(host) == before


def test_containers_are_not_reached_from_outside(host: Host) -> None:
    """Only the load balancer, on the host itself, comes to them."""
    for port in (18081, 18082, 18091, 18092):
        assert ask(host, "/ready", to=f"http://127.0.0.1:{port}")[0] == 200
        connect = f"import socket; socket.create_connection(('172.31.84.11', {port}), 3)"
        assert "refused" in host.run("python3 -c %s", connect).stderr


def test_what_is_written_is_read_back(host: Host) -> None:
    """Through TLS and the load balancer into the store and out of it again."""
    now = int(time.time()) * 1000
    line = f"pm25,sensor=scenario value=7.5 {now}"
    assert ask(host, "/write?db=x&precision=ms", token=WRITER, body=line)[0] == 204
    status, text = ask(host, f"/v1/points?sensor=scenario&start={now}&end={now + 1}", token=READER)
    assert status == 200
    assert [point["value"] for point in json.loads(text)["points"]] == [7.5]


def test_a_wrong_token_is_refused(host: Host) -> None:
    """A request without a token, with another one, or without the role gets nothing."""
    assert ask(host, "/write?db=x", body="a b=1")[0] == 401
    assert ask(host, "/write?db=x", token="x" * 37, body="a b=1")[0] == 401
    assert ask(host, "/write?db=x", token=READER, body="a b=1")[0] == 403


def test_a_client_that_stops_within_its_body_is_let_go(host: Host) -> None:
    """Half a body holds a connection for no longer than body_timeout_seconds."""
    program = r"""
import socket, ssl, time
context = ssl.create_default_context(cafile="/etc/fieldring/tls/ca.pem")
connection = context.wrap_socket(socket.create_connection(("localhost", 443)), server_hostname="localhost")
connection.settimeout(30)
head = "POST /write?db=x HTTP/1.1\r\nHost: x\r\nAuthorization: Token WRITER\r\nContent-Length: 9\r\n\r\nabc"
connection.sendall(head.encode())
started = time.time()
print(connection.recv(99))
print(time.time() - started)
"""
    answer, waited = host.check_output("python3 -c %s", program.replace("WRITER", WRITER)).splitlines()
    assert " 204 " not in answer
    assert float(waited) < 15


def test_metrics_need_a_token_or_the_load_balancers_word(host: Host) -> None:
    """Nobody reads figures without either, and the containers of one host are told apart."""
    assert ask(host, "/metrics")[0] == 401
    for path in ("/metrics", "/metrics/serve", "/metrics/analyse"):
        assert ask(host, path, token=READER)[0] == 200


def test_no_secret_is_where_others_can_see_it(host: Host) -> None:
    """Hosts hold digests; neither Docker's view of the containers nor another user's eyes find more."""
    everything = host.check_output(
        "cat /etc/fieldring/ingest/tokens.json; docker inspect $(docker ps -q); ps axe"
    )
    assert hashlib.sha256(WRITER.encode()).hexdigest() in everything
    assert WRITER not in everything
    assert host.run("setpriv --reuid nobody --clear-groups cat /etc/fieldring/ingest/tokens.json").rc != 0
    assert host.run("setpriv --reuid nobody --clear-groups ls /etc/fieldring/ingest/secrets").rc != 0


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_container_comes_back_after_kill_9(host: Host, container: str) -> None:
    """Nobody has to log in after a process died."""
    host.check_output(f"kill -9 $(docker inspect -f '{{{{.State.Pid}}}}' {container})")
    time.sleep(0.5)
    wait_ready(host)


def test_what_a_container_says_is_in_the_journal(host: Host) -> None:
    """Its log survives it."""
    assert host.check_output("journalctl --no-pager --output cat CONTAINER_NAME=fieldring-receive-1")


def test_a_new_token_works_without_a_restart(host: Host, converge_again: Converge) -> None:
    """Tokens are read again by the running service; a withdrawn one stops working."""
    before = started(host)
    new = {"id": "late", "token": "n" * 40, "roles": ["write"]}
    result = converge_again(ingest_container_tokens=[*TOKENS, new])
    assert result.returncode == 0, result.stdout
    assert "n" * 40 not in result.stdout
    time.sleep(2)
    assert ask(host, "/write?db=x", token="n" * 40, body="late,sensor=late value=1")[0] == 204
    assert converge_again().returncode == 0
    time.sleep(2)
    assert ask(host, "/write?db=x", token="n" * 40, body="late,sensor=late value=1")[0] == 401
    assert started(host) == before


@pytest.fixture
def feed(host: Host) -> Iterator[Callable[[], list[int]]]:
    """Writes through the load balancer all the time; gives the answers' status codes."""
    program = ASK.replace("url, token, body = sys.argv[1:4]", "url, token, body, path = sys.argv[1:5]")
    head, _, tail = program.partition("try:\n")
    tail = "\n".join("    " + line for line in tail.replace("print(", "print(time.time(), ").splitlines())
    loop = f"import time, pathlib\n{head}while pathlib.Path(path).exists():\n    try:\n{tail}\n"
    loop += "    time.sleep(0.02)\n"
    host.check_output("touch /root/feeding")
    host.check_output(
        "systemd-run --unit=feed --property=StandardOutput=truncate:/root/feed.log"
        " python3 -uc %s %s %s %s %s",
        loop, "https://localhost/write?db=x", WRITER, "feed,sensor=feed value=1", "/root/feeding",
    )  # fmt: skip

    def stop() -> list[int]:
        host.check_output("rm -f /root/feeding; sleep 0.5")
        return [int(line.split()[1]) for line in host.check_output("cat /root/feed.log").splitlines()]

    yield stop
    host.run("rm -f /root/feeding; systemctl stop feed; systemctl reset-failed feed")


def test_a_release_costs_no_write(
    host: Host, converge_again: Converge, feed: Callable[[], list[int]]
) -> None:
    """Containers are replaced one at a time behind the load balancer while a client goes on writing."""
    before = started(host)
    result = converge_again(ingest_container_settings={"log_level": "info", "body_timeout_seconds": 3})
    assert result.returncode == 0, result.stdout
    answers = feed()
    after = started(host)
    assert all(after[name] != before[name] for name in CONTAINERS)
    assert set(CONTAINERS) == names(host)
    assert len(answers) > 20
    assert set(answers) == {204}


@pytest.fixture
def broken_image(host: Host) -> Iterator[Callable[[str], str]]:
    """Images of the running service whose program is another."""
    made = []

    def make(program: str) -> str:
        name = f"broken:{len(made)}"
        entry = json.dumps(["/usr/bin/python3", "-c", program])
        host.check_output("docker commit --change %s fieldring-serve %s", f"ENTRYPOINT {entry}", name)
        made.append(name)
        return name

    yield make
    for name in made:
        host.run("docker image rm %s", name)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import time; print('I sleep'); time.sleep(999)", "does not answer"),
        ("raise SystemExit('I cannot')", "I cannot"),
    ],
    ids=["never_ready", "stops_at_once"],
)
def test_a_release_that_is_never_ready_goes_back(
    host: Host,
    converge_again: Converge,
    broken_image: Callable[[str], str],
    feed: Callable[[], list[int]],
    program: str,
    words: str,
) -> None:
    """The play fails with the reason (IC-109), and the container before it takes requests again."""
    assert converge_again().returncode == 0
    before = started(host)
    result = converge_again(
        ingest_container_image_source="registry",
        ingest_container_image_name=broken_image(program),
        ingest_container_ready_timeout_seconds=5,
    )
    assert result.returncode != 0
    assert "IC-109: fieldring-receive-1" in result.stdout
    assert words in result.stdout
    assert "The container before it is back and ready" in result.stdout
    answers = feed()
    after = started(host)
    assert {name: when.split()[0] for name, when in after.items()} == {
        name: when.split()[0] for name, when in before.items()
    }
    assert {name for name in CONTAINERS if after[name] != before[name]} == {"fieldring-receive-1"}
    assert set(CONTAINERS) == names(host)
    assert set(answers) == {204}
    drained = host.check_output("python3 -c %s", STATUS)
    assert "receive,receive-1,UP" in drained


STATUS = """
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/haproxy/admin.sock")
s.sendall(b"show stat\\n")
rows = b"".join(iter(lambda: s.recv(65536), b"")).decode().splitlines()
print("\\n".join(",".join((r.split(",") + [""] * 20)[i] for i in (0, 1, 17)) for r in rows))
"""


def test_a_container_that_hangs_is_told_and_left(host: Host, converge_again: Converge) -> None:
    """With nothing to change, a run that cannot reach its aim does not call it done (IC-110)."""
    before = started(host)
    host.check_output("docker pause fieldring-serve")
    try:
        result = converge_again(ingest_container_ready_timeout_seconds=3)
    finally:
        host.check_output("docker unpause fieldring-serve")
    assert result.returncode != 0
    assert "IC-110: fieldring-serve" in result.stdout
    assert started(host) == before
    wait_ready(host)


def test_an_interrupted_replacement_is_finished(host: Host, converge_again: Converge) -> None:
    """A run that died between two steps left no container; the next one has them all again."""
    host.check_output("docker stop fieldring-serve && docker rename fieldring-serve fieldring-serve-previous")
    result = converge_again()
    assert result.returncode == 0, result.stdout
    assert "its last replacement was interrupted" in result.stdout
    assert set(CONTAINERS) == names(host)
    wait_ready(host)


def test_a_container_that_is_not_wanted_any_more_goes(host: Host, converge_again: Converge) -> None:
    """Fewer containers for writes are asked for; then two again."""
    assert converge_again(ingest_container_receive_count=1).returncode == 0
    assert "fieldring-receive-2" not in names(host)
    assert converge_again().returncode == 0
    assert set(CONTAINERS) == names(host)
    wait_ready(host)


@pytest.mark.parametrize(
    ("refusal", "words", "variables"),
    [
        ("IC-101", "at least one token", {"ingest_container_tokens": []}),
        (
            "IC-101",
            "short",
            {"ingest_container_tokens": [{"id": "short", "token": "abc", "roles": ["read"]}]},
        ),
        ("IC-102", "log_levle", {"ingest_container_settings": {"log_levle": "info"}}),
        ("IC-102", "variables of their own", {"ingest_container_settings": {"store": "sqlite"}}),
        ("IC-103", "ingest_container_cassandra_hosts", {"ingest_container_store": "cassandra"}),
        ("IC-104", "service_bundle", {"ingest_container_bundle_directory": "/nowhere"}),
        ("IC-104", "ingest_container_image_name is empty", {"ingest_container_image_source": "registry"}),
        (
            "IC-107",
            "/etc/nowhere.pem",
            {
                "ingest_container_store": "cassandra",
                "ingest_container_cassandra_hosts": ["192.0.2.1"],
                "ingest_container_cassandra_password": "secret",
                "ingest_container_cassandra_ca_file": "/etc/nowhere.pem",
            },
        ),
        (
            "IC-111",
            "[hasty]",
            {
                "ingest_container_tokens": [
                    {"id": "hasty", "token": "x" * 40, "roles": ["write"], "points_burst": 5}
                ]
            },
        ),
        ("IC-112", "[esp8266-*]", {"ingest_container_sensor_community_devices": ["esp8266-1", "esp8266-*"]}),
    ],
)
def test_bad_input_is_refused_before_anything_changes(
    host: Host, converge_again: Converge, refusal: str, words: str, variables: dict[str, Any]
) -> None:
    """The refusal has its ID and names what was found; neither files nor containers are touched."""
    state = "sha256sum /etc/fieldring/ingest/*.* /etc/fieldring/ingest/secrets/*"
    before = started(host), host.check_output(state)
    result = converge_again(**variables)
    assert result.returncode != 0
    assert refusal in result.stdout
    assert words in result.stdout
    assert (started(host), host.check_output(state)) == before


def test_a_damaged_archive_is_refused(host: Host, converge_again: Converge, tmp_path: Path) -> None:
    """An image that is not the one that was built never reaches the host (IC-108)."""
    (tmp_path / "fieldring-image.tar.gz").write_bytes(b"not the archive")
    manifest = {"image": "fieldring:other", "archive": "fieldring-image.tar.gz", "archive_sha256": "0" * 64}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    before = started(host)
    result = converge_again(ingest_container_bundle_directory=str(tmp_path))
    assert result.returncode != 0
    assert "IC-108" in result.stdout
    assert started(host) == before


def test_a_taken_port_is_refused(host: Host, converge_again: Converge) -> None:
    """Another program on a wanted port is named (IC-106)."""
    host.check_output("systemd-run --unit=taker python3 -m http.server --bind 127.0.0.1 18083")
    time.sleep(1)
    try:
        result = converge_again(ingest_container_receive_count=3)
    finally:
        host.check_output("systemctl stop taker")
    assert result.returncode != 0
    assert "IC-106" in result.stdout
    assert "port 18083 is taken by python3" in result.stdout
    assert set(CONTAINERS) == names(host)


def test_a_host_without_a_docker_engine_is_refused(host: Host, converge_again: Converge) -> None:
    """An engine that does not answer stops the play, not the containers (IC-105)."""
    host.check_output("systemctl stop docker.socket docker.service")
    try:
        result = converge_again()
        assert ask(host, "/ready", to="https://localhost")[0] == 200
    finally:
        host.check_output("systemctl start docker.socket docker.service")
    assert result.returncode != 0
    assert "IC-105" in result.stdout
    assert "Cannot connect to the Docker daemon" in result.stdout


def test_a_second_run_in_check_mode_says_what_would_be_replaced(host: Host, converge_again: Converge) -> None:
    """--check names the containers and their reasons, and touches none."""
    before = started(host)
    result = converge_again("--check", ingest_container_settings={"log_level": "warning"})
    assert result.returncode == 0, result.stdout
    assert "its image or settings changed" in result.stdout
    assert started(host) == before
