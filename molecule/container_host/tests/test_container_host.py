"""What a container gets on such a host, and which hosts are refused."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host

Converge = Callable[..., subprocess.CompletedProcess[str]]

testinfra_hosts = ["fieldring-container-host-1"]


@pytest.fixture(scope="module")
def image(host: Host) -> str:
    """A real image without any registry: the host's own Python interpreter and its libraries."""
    host.check_output(
        "cd / && tar -c bin lib lib64 usr/lib64 usr/bin/python3* usr/lib/python3.11"
        " usr/lib/x86_64-linux-gnu/l*.so* | docker import - probe:1"
    )
    return "probe:1"


@pytest.fixture
def container(host: Host, image: str) -> Iterator[str]:
    host.check_output(
        f"docker run --detach --name probe --publish 127.0.0.1:18000:8000 --restart unless-stopped {image}"
        ' python3 -u -c \'import http.server as h; print("the probe speaks");'
        ' h.HTTPServer(("", 8000), h.SimpleHTTPRequestHandler).serve_forever()\''
    )
    yield "probe"
    host.run("docker rm --force probe")


def test_a_container_has_an_address_of_the_pool(host: Host, container: str) -> None:
    """Networks come from the fixed pool, the default bridge included."""
    address = host.check_output(f"docker inspect -f '{{{{.NetworkSettings.IPAddress}}}}' {container}")
    assert address.startswith("10.213.0.")
    host.check_output("docker network create other")
    subnet = host.check_output("docker network inspect -f '{{(index .IPAM.Config 0).Subnet}}' other")
    host.check_output("docker network rm other")
    assert subnet.startswith("10.213.")
    assert subnet.endswith("/24")


def test_what_a_container_says_is_in_the_journal(host: Host, container: str) -> None:
    """The host's log limits hold for containers, and the log outlives them."""
    host.check_output(f"docker rm --force {container}")
    found = host.check_output("journalctl --no-pager --output cat CONTAINER_NAME=probe")
    assert "the probe speaks" in found


def test_a_published_port_answers_while_the_engine_is_away(host: Host, container: str) -> None:
    """An update of the engine is no outage for clients of what runs on it."""
    connect = "for i in 1 2 3 4 5; do python3 -c 'import urllib.request as u;"
    connect += (
        ' print(u.urlopen("http://127.0.0.1:18000", timeout=5).status)\' && exit; sleep 1; done; exit 1'
    )
    assert host.check_output(connect) == "200", container
    host.check_output("systemctl stop docker.socket docker.service")
    try:
        assert host.check_output(connect) == "200"
    finally:
        host.check_output("systemctl start docker.socket docker.service")


def test_containers_go_on_while_the_engine_restarts(host: Host, container: str) -> None:
    """An update of the engine does not restart what runs on it."""
    started = host.check_output(f"docker inspect -f '{{{{.State.StartedAt}}}}' {container}")
    host.check_output("systemctl restart docker")
    assert host.check_output(f"docker inspect -f '{{{{.State.StartedAt}}}}' {container}") == started
    assert host.check_output(f"docker inspect -f '{{{{.State.Status}}}}' {container}") == "running"


@pytest.fixture(autouse=True)
def fresh_start_limit(host: Host) -> None:
    """These tests start the engine more often than systemd lets a sane host."""
    host.run("systemctl reset-failed docker.service docker.socket")


def test_the_engine_comes_back_after_kill_9(host: Host) -> None:
    """Nobody has to log in after the engine died."""
    before = host.check_output("systemctl show -p MainPID --value docker")
    host.check_output(f"kill -9 {before}")
    for _ in range(50):
        if host.run("docker info").rc == 0:
            break
        time.sleep(0.3)
    assert host.check_output("systemctl show -p MainPID --value docker") not in {before, "0"}


def test_settings_of_the_site_are_added(host: Host) -> None:
    """container_host_daemon_settings reach the engine beside the role's own."""
    settings = json.loads(host.check_output("cat /etc/docker/daemon.json"))
    assert settings["max-concurrent-downloads"] == 2
    assert settings["live-restore"] is True


def test_an_engine_that_is_there_keeps_its_own_settings(host: Host, converge_again: Converge) -> None:
    """What somebody else set on the host stays; nothing is installed over it."""
    host.check_output(
        'python3 -c \'import json; p = "/etc/docker/daemon.json"; s = json.load(open(p));'
        ' s["shutdown-timeout"] = 17; json.dump(s, open(p, "w"))\''
    )
    result = converge_again()
    assert result.returncode == 0, result.stdout
    assert json.loads(host.check_output("cat /etc/docker/daemon.json"))["shutdown-timeout"] == 17


def test_another_operating_system_is_refused(host: Host, converge_again: Converge) -> None:
    """Debian 11 stops before anything changes (CH-101)."""
    host.check_output("mkdir /root/os && mv /etc/os-release /etc/debian_version /root/os/")
    host.check_output("sed 's/^VERSION_ID=.*/VERSION_ID=\"11\"/' /usr/lib/os-release > /etc/os-release")
    host.check_output("echo 11.9 > /etc/debian_version")
    try:
        result = converge_again("--flush-cache")
    finally:
        host.check_output("mv /root/os/os-release /root/os/debian_version /etc/ && rmdir /root/os")
    assert result.returncode != 0
    assert "CH-101" in result.stdout


def test_an_address_pool_in_use_is_refused(host: Host, converge_again: Converge) -> None:
    """A pool that covers the host's own network stops before anything changes (CH-103)."""
    before = host.check_output("sha256sum /etc/docker/daemon.json")
    result = converge_again(container_host_address_pool="172.31.0.0/16")
    assert result.returncode != 0
    assert "CH-103" in result.stdout
    assert host.check_output("sha256sum /etc/docker/daemon.json") == before


def test_unreadable_settings_are_refused_and_kept(host: Host, converge_again: Converge) -> None:
    """Somebody's half-edited file is shown to them, not overwritten (CH-104)."""
    host.check_output("cp /etc/docker/daemon.json /root/ && echo '{\"debug\": tru' > /etc/docker/daemon.json")
    try:
        result = converge_again()
        assert host.check_output("cat /etc/docker/daemon.json") == '{"debug": tru'
    finally:
        host.check_output("mv /root/daemon.json /etc/docker/daemon.json")
    assert result.returncode != 0
    assert "CH-104" in result.stdout


def test_a_full_disk_is_refused_before_anything_is_installed(host: Host, converge_again: Converge) -> None:
    """Without an engine, too little room stops the role at once (CH-102)."""
    host.check_output("mv /usr/sbin/dockerd /root/dockerd")
    try:
        result = converge_again(container_host_disk_free_min_mib=1 << 40)
    finally:
        host.check_output("mv /root/dockerd /usr/sbin/dockerd")
    assert result.returncode != 0
    assert "CH-102" in result.stdout
