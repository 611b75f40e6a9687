"""Where requests go, what of them is believed, and how containers are taken out and put back."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

Converge = Callable[..., subprocess.CompletedProcess[str]]
TLS = "/etc/fieldring/tls"
OTHER = "fieldring-load-balancer-2"
ONE = ("--limit", "fieldring-load-balancer-1")

CONNECT = """
import socket, ssl, subprocess, time
context = ssl.create_default_context(cafile="/etc/fieldring/tls/ca.pem")
connection = context.wrap_socket(socket.create_connection(("localhost", 443)), server_hostname="localhost")
connection.settimeout(20)
"""

testinfra_hosts = ["fieldring-load-balancer-1"]


@pytest.fixture
def other() -> Host:
    return testinfra.get_host(f"ansible://{OTHER}", ansible_inventory=os.environ["MOLECULE_INVENTORY_FILE"])


def curl(host: Host, path: str, *options: str, to: str = "localhost") -> str:
    # Debian's base has no curl: Python is there, and speaks for itself about TLS.
    return str(host.check_output(f"python3 /root/ask.py https://{to}{path} {' '.join(options)}"))


@pytest.fixture(autouse=True, scope="module")
def asking(host: Host) -> None:
    """A small HTTPS client that trusts the site's CA alone, on both hosts."""
    program = """
import json, ssl, sys, urllib.request, urllib.error
url, *options = sys.argv[1:]
context = ssl.create_default_context(cafile="/etc/fieldring/tls/ca.pem")
headers, data = {}, None
for option in options:
    name, _, value = option.partition("=")
    if name == "cert":
        context.load_cert_chain("/etc/fieldring/tls/host.pem")
    elif name == "size":
        data = b"x" * int(value)
    else:
        headers[name] = value
try:
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, context=context, timeout=60) as answer:
        print(answer.status, answer.read().decode(), flush=True)
except urllib.error.HTTPError as error:
    print(error.code, error.headers.get("Retry-After"), error.read().decode())
"""
    for name in ("fieldring-load-balancer-1", OTHER):
        subprocess.run(
            ["docker", "exec", "-i", name, "tee", "/root/ask.py"],
            input=program,
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )


def ask(host: Host, path: str, *options: str, to: str = "localhost") -> tuple[int, Any]:
    status, _, body = curl(host, path, *options, to=to).partition(" ")
    return int(status), json.loads(body) if body.startswith("{") else body


def state(host: Host, server: str, *, backend: str = "receive") -> str:
    table = host.check_output(
        'python3 -c \'import socket; s = socket.socket(socket.AF_UNIX); s.connect("/run/haproxy/admin.sock");'
        ' s.sendall(b"show stat\\n"); print(b"".join(iter(lambda: s.recv(65536), b"")).decode())\''
    )
    (row,) = [line.split(",") for line in table.splitlines() if line.startswith(f"{backend},{server},")]
    return row[17]


@pytest.mark.parametrize(
    ("path", "server"),
    [
        ("/write?db=x", "receive"), ("/api/v2/write?bucket=b", "receive"), ("/api/v1/senml", "receive"),
        ("/v1/push-sensor-data/", "receive"), ("/api/v1/write", "receive"), ("/api/v1/block", "receive"),
        ("/query?q=show+databases", "receive"), ("/ping", "receive"), ("/health", "receive"),
        ("/ready", "receive"), ("/metrics", "receive"), ("/", "serve"),
        ("/v1/points?sensor=s", "serve"), ("/openapi.json", "serve"),
        ("/writer", "serve"), ("/metrics/serve", "serve"), ("/metrics/analyse", "analyse"),
    ],
)  # fmt: skip
def test_paths_lead_to_their_container(host: Host, path: str, server: str) -> None:
    """Writes and probes go to receive, everything else to serve; metrics of all three are told apart."""
    status, answer = ask(host, path)
    assert status == 200
    assert answer["server"].startswith(server)
    assert answer["path"] == ("/metrics" if path.startswith("/metrics") else path)


def test_the_certificate_is_of_the_sites_ca(host: Host) -> None:
    """A client that trusts only the site's CA is content; one that does not know it is not."""
    trusted = "openssl s_client -connect localhost:443 -verify_return_error -CAfile"
    assert host.run(f"echo | {trusted} {TLS}/ca.pem -verify_hostname fieldring-load-balancer-1").rc == 0
    assert host.run(f"echo | {trusted} /etc/ssl/certs/ca-certificates.crt").rc != 0


@pytest.mark.parametrize("old", ["-tls1_1", "-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA256"])
def test_old_tls_is_refused(host: Host, old: str) -> None:
    """Neither old versions nor ciphers without authenticated encryption get a handshake."""
    assert host.run("echo | openssl s_client -connect localhost:443 -tls1_2").rc == 0
    assert host.run(f"echo | openssl s_client -connect localhost:443 {old}").rc != 0


def test_a_client_cannot_say_who_it_is(host: Host) -> None:
    """Headers that only the balancer may set are taken from outside requests."""
    forged = ("Fieldring-Metrics=allowed", "X-Forwarded-For=192.0.2.7", "X-Forwarded-Proto=gopher")
    _, answer = ask(host, "/metrics", *forged)
    assert "fieldring-metrics" not in answer["headers"]
    assert answer["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert answer["headers"]["x-forwarded-proto"] == "https"


def test_only_the_monitors_certificate_is_passed_on_and_only_for_metrics(host: Host, other: Host) -> None:
    """The name of the certificate opens /metrics; another host's certificate and other paths get nothing."""
    _, answer = ask(other, "/metrics", "cert=1", to="fieldring-load-balancer-1")
    assert answer["headers"]["fieldring-metrics"] == "allowed"
    _, answer = ask(other, "/metrics/serve", "cert=1", to="fieldring-load-balancer-1")
    assert answer["headers"]["fieldring-metrics"] == "allowed"
    _, answer = ask(other, "/v1/points", "cert=1", to="fieldring-load-balancer-1")
    assert "fieldring-metrics" not in answer["headers"]
    _, answer = ask(host, "/metrics", "cert=1")
    assert "fieldring-metrics" not in answer["headers"]


def test_a_large_body_goes_through(host: Host) -> None:
    """Limits of size are the service's business."""
    assert ask(host, "/write", f"size={100 << 20}")[1]["size"] == 100 << 20


def test_a_client_that_stops_within_its_head_is_let_go(host: Host) -> None:
    """Half a head does not hold a connection for long; half a body is the service's business."""
    program = rf"""{CONNECT}
connection.sendall(b"POST /write HTTP/1.1\r\nHost: x\r\n")
started = time.time()
print(connection.recv(99).partition(bytes([13]))[0])
print(time.time() - started)
"""
    answer, waited = host.check_output("python3 -c %s", program).splitlines()
    assert "408" in answer
    assert float(waited) < 10


def wait_for(host: Host, server: str, expected: str, *, backend: str = "receive") -> None:
    deadline = time.monotonic() + 15
    while not (found := state(host, server, backend=backend)).startswith(expected):
        assert time.monotonic() < deadline, f"{backend}/{server} is {found}, not {expected}"
        time.sleep(0.2)


@pytest.fixture
def verb(host: Host) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs a verb of the role as a playbook does."""
    play = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "verb.yml"

    def run(name: str, **variables: object) -> subprocess.CompletedProcess[str]:
        include = {"name": "load_balancer", "tasks_from": name}
        task = {"name": name, "ansible.builtin.include_role": include, "vars": variables}
        play.write_text(
            json.dumps([{"hosts": "fieldring-load-balancer-1", "gather_facts": False, "tasks": [task]}])
        )
        command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(play)]
        plain = os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
        return subprocess.run(command, env=plain, capture_output=True, text=True, timeout=120, check=False)

    yield run
    run("ready", load_balancer_server="receive-1")


def test_a_drained_container_gets_nothing_until_it_is_ready(
    host: Host, verb: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """drain and ready act at once, and doing either twice changes nothing."""
    assert "changed=1" in verb("drain", load_balancer_server="receive-1").stdout
    assert {ask(host, "/ping")[1]["server"] for _ in range(6)} == {"receive-2"}
    assert "changed=0" in verb("drain", load_balancer_server="receive-1").stdout
    assert "changed=1" in verb("ready", load_balancer_server="receive-1").stdout
    assert {ask(host, "/ping")[1]["server"] for _ in range(6)} == {"receive-1", "receive-2"}
    assert "changed=0" in verb("ready", load_balancer_server="receive-1").stdout


def test_a_drained_container_is_ready_again_though_it_was_down(
    host: Host, verb: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """As in a release: HAProxy has not noticed yet that the new one answers when it is to get requests."""
    verb("drain", load_balancer_server="receive-1")
    host.check_output("systemctl stop echo@receive-1:18081")
    try:
        wait_for(host, "receive-1", "DOWN")
        with ThreadPoolExecutor(1) as beside:
            told = beside.submit(
                verb, "ready", load_balancer_server="receive-1", load_balancer_wait_seconds=30
            )
            time.sleep(8)
            host.check_output("systemctl start echo@receive-1:18081")
            assert "changed=1" in told.result().stdout
    finally:
        host.check_output("systemctl start echo@receive-1:18081")
        wait_for(host, "receive-1", "UP")
    assert {ask(host, "/ping")[1]["server"] for _ in range(6)} == {"receive-1", "receive-2"}


def test_ready_fails_for_a_container_that_is_not(
    host: Host, verb: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A dead container is not called ready, and the reason is HAProxy's own."""
    host.check_output("systemctl stop echo@receive-1:18081")
    try:
        wait_for(host, "receive-1", "DOWN")
        result = verb("ready", load_balancer_server="receive-1", load_balancer_wait_seconds=1)
    finally:
        host.check_output("systemctl start echo@receive-1:18081")
        wait_for(host, "receive-1", "UP")
    assert result.returncode != 0
    assert "does not see receive-1 as ready" in result.stdout + result.stderr


def test_a_peer_takes_over_and_requests_do_not_run_in_a_circle(host: Host, other: Host) -> None:
    """Without a container of its own a host passes requests on, once; without any it answers 503 as JSON."""
    host.check_output("systemctl stop echo@receive-1:18081 echo@receive-2:18082")
    try:
        wait_for(host, "receive-1", "DOWN")
        wait_for(host, "receive-2", "DOWN")
        status, answer = ask(host, "/write", "size=3")
        assert status == 200
        # The peer saw this host, not the client, as the one who asks.
        assert answer["headers"]["x-forwarded-for"] == "172.31.85.11"
        status, answer = ask(host, "/metrics")
        assert status == 503
        other.check_output("systemctl stop echo@receive-1:18081 echo@receive-2:18082")
        wait_for(host, f"peer-{OTHER}", "DOWN")
        status, answer = ask(host, "/write", "size=3")
        assert status == 503
        assert answer.startswith('1 {"code":"unavailable"')
        assert set(json.loads(answer.removeprefix("1 "))) == {"code", "message", "error", "errors"}
    finally:
        for one in (host, other):
            one.check_output("systemctl start echo@receive-1:18081 echo@receive-2:18082")
        wait_for(host, "receive-1", "UP")
        wait_for(host, f"peer-{OTHER}", "UP")


def test_a_token_in_the_query_is_not_logged(host: Host) -> None:
    """v1 clients put their password there; the log has the path alone."""
    ask(host, "/write?u=device&p=very-secret-token")
    time.sleep(0.5)
    log = host.check_output("journalctl --no-pager -u haproxy -t haproxy --since=-2min --output cat")
    assert "/write" in log
    assert "very-secret-token" not in log


def test_its_own_metrics_are_there(host: Host) -> None:
    """The monitor reads the balancer's own figures."""
    text = host.check_output(
        "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8405/metrics\").read().decode())'"
    )
    assert 'haproxy_server_status{proxy="receive",server="receive-1",state="UP"} 1' in text


def test_a_reload_keeps_open_requests(host: Host) -> None:
    """A changed configuration drops nobody."""
    before = host.check_output("systemctl show -p MainPID --value haproxy")
    program = rf"""{CONNECT}
connection.sendall(b"POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
subprocess.run(["systemctl", "reload", "haproxy"], check=True)
time.sleep(0.5)
connection.sendall(b"def")
print(connection.recv(15))
"""
    assert "200" in host.check_output("python3 -c %s", program)
    assert host.check_output("systemctl show -p MainPID --value haproxy") == before


def test_a_reload_ends_no_idle_connection(host: Host) -> None:
    """What a client sends on a connection that it kept is answered, and told that it was the last."""
    program = """
import http.client, ssl, subprocess, time
context = ssl.create_default_context(cafile="/etc/fieldring/tls/ca.pem")
connection = http.client.HTTPSConnection("localhost", context=context, timeout=20)
def ask():
    connection.request("GET", "/ping")
    answer = connection.getresponse()
    answer.read()
    print(answer.status, answer.headers["Connection"])
ask()
# Not opened again where it was closed.
connection.auto_open = 0
subprocess.run(["systemctl", "reload", "haproxy"], check=True)
time.sleep(2)
ask()
"""
    assert host.check_output("python3 -c %s", program).split("\n") == ["200 None", "200 close"]


def test_it_comes_back_after_kill_9(host: Host) -> None:
    """Nobody has to log in after HAProxy died."""
    host.check_output("kill -9 $(systemctl show -p MainPID --value haproxy)")
    deadline = time.monotonic() + 15
    while host.run("python3 /root/ask.py https://localhost/ping").rc != 0:
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_a_new_certificate_is_served_at_once(host: Host, converge_again: Converge) -> None:
    """The topic of the role site_ca reloads HAProxy: the next handshake shows the new leaf."""
    shown = "echo | openssl s_client -connect localhost:443 2>/dev/null | openssl x509 -noout -serial"
    before = host.check_output(shown)
    play = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "renew.yml"
    roles = [{"role": "site_ca"}, {"role": "load_balancer"}]
    play.write_text(json.dumps([{"hosts": "fieldring-load-balancer-1", "roles": roles}]))
    host.check_output(f"rm {TLS}/host.crt")
    subprocess.run(["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(play)], check=True,
                   capture_output=True, timeout=120)  # fmt: skip
    after = host.check_output(shown)
    assert after != before
    assert after == host.check_output(f"openssl x509 -in {TLS}/host.crt -noout -serial")


def test_a_taken_port_is_refused(host: Host, converge_again: Converge) -> None:
    """Another program on the wanted port is named before anything changes (LB-102)."""
    before = host.check_output("sha256sum /etc/haproxy/haproxy.cfg")
    result = converge_again(*ONE, load_balancer_port=18091)
    assert result.returncode != 0
    assert "LB-102" in result.stdout
    assert "port 18091 is taken by python3" in result.stdout
    assert host.check_output("sha256sum /etc/haproxy/haproxy.cfg") == before


def test_a_missing_certificate_is_refused(host: Host, converge_again: Converge) -> None:
    """Without a certificate nothing is changed (LB-103)."""
    result = converge_again(*ONE, load_balancer_certificate_file="/etc/nowhere.pem")
    assert result.returncode != 0
    assert "LB-103" in result.stdout


def test_a_wrong_configuration_never_replaces_a_right_one(host: Host, converge_again: Converge) -> None:
    """HAProxy itself judges the file before it is installed, and goes on with the one it has."""
    before = host.check_output("sha256sum /etc/haproxy/haproxy.cfg")
    result = converge_again(*ONE, load_balancer_check_path="/a b c")
    assert result.returncode != 0
    assert "failed to validate" in result.stdout
    assert host.check_output("sha256sum /etc/haproxy/haproxy.cfg") == before
    assert ask(host, "/ping")[0] == 200


def test_another_operating_system_is_refused(host: Host, converge_again: Converge) -> None:
    """Debian 11 stops before anything changes (LB-101)."""
    host.check_output("mkdir /root/os && mv /etc/os-release /etc/debian_version /root/os/")
    host.check_output("sed 's/^VERSION_ID=.*/VERSION_ID=\"11\"/' /usr/lib/os-release > /etc/os-release")
    host.check_output("echo 11.9 > /etc/debian_version")
    try:
        result = converge_again(*ONE, "--flush-cache")
    finally:
        host.check_output("mv /root/os/os-release /root/os/debian_version /etc/ && rmdir /root/os")
    assert result.returncode != 0
    assert "LB-101" in result.stdout
