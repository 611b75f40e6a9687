"""The whole platform: real data in and back, and what it promises while parts of it are killed.

The tests run in this order on one lab; each leaves it whole.
"""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from platform_under_test import (
    ROOT,
    STATE,
    Ledger,
    Platform,
    Writer,
    broken_link,
    docker,
    missing,
    on_host,
    playbook,
    publish,
    until,
)

HOSTS = ["ring1", "ring2", "ring3", "ingest1", "ingest2", "gateway1", "monitor1"]


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform() as one:
        yield one


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def nodes_up() -> int:
    """How many nodes ring1 calls up and normal."""
    return on_host("ring1", "/opt/cassandra/bin/nodetool status", check=False).count("UN ")


def kill_9(*containers: str) -> None:
    """Kill the processes of containers on ingest1, as the kernel's memory killer would."""
    for container in containers:
        on_host("ingest1", f"kill -9 $(docker inspect -f '{{{{.State.Pid}}}}' {container})")


def alert_states(platform: Platform, name: str) -> set[str]:
    answer = httpx.get(platform.environment["FIELDRING_PROMETHEUS_URL"] + "/api/v1/alerts", timeout=10)
    return {
        alert["state"] for alert in answer.json()["data"]["alerts"] if alert["labels"]["alertname"] == name
    }


def test_three_years_of_real_data_come_back_equal() -> None:
    """MQTT through the gateway, HTTPS with InfluxDB's client; the feed exits with 1 for a missing value."""
    fed = subprocess.run(
        [sys.executable, "lab/feed.py", "--endpoints", str(STATE / "endpoints.env")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    print(fed.stdout)
    assert fed.returncode == 0, fed.stdout + fed.stderr


def test_a_point_is_readable_at_once_through_the_other_ingest_host(platform: Platform) -> None:
    """204 promises any ingest host of the data centre."""
    now = int(time.time() * 1000)
    assert platform.write(f"pm25,sensor=cross value=12.25 {now}").status_code == 204
    with Platform(host=2) as other:
        assert 12.25 in other.values("cross").values()


def test_a_body_that_is_refused_early_holds_up_nobody_behind_the_balancer(platform: Platform) -> None:
    """The balancer reused the connection with the rest of the body: the next request got 504."""
    for number in range(8):
        assert platform.write("#" * 50_000_000).status_code == 413
        began = time.monotonic()
        assert platform.write(f"pm25,sensor=behind value={number}").status_code == 204
        assert time.monotonic() - began < 30


def test_a_spike_is_flagged_with_the_tests_that_say_so(platform: Platform) -> None:
    """A temperature beyond the sensor's range is kept as it is and flagged 4 within seconds."""
    now = int(time.time() * 1000) // 1000 * 1000
    lines = [
        f"temperature,sensor=flagged value={value} {now - 60_000 * age}"
        for age, value in enumerate([20.0, 20.4, 999.0, 20.2, 20.1])
    ]
    assert platform.write("\n".join(lines)).status_code == 204

    def flagged() -> bool:
        points = platform.get("/v1/points", sensor="flagged").json()["points"]
        bad = [point for point in points if point["value"] == 999.0]
        return bool(bad) and bad[0]["flag"] == 4 and "gross_range" in bad[0]["tests"]

    until(flagged, seconds=40, what="the spike is flagged 4 by gross_range")


def test_the_ring_speaks_tls_of_the_sites_ca_and_refuses_the_default_login() -> None:
    """No default credentials after the first run, no plain text on 9042."""
    probe = """
import ssl, sys
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import Cluster, NoHostAvailable
context = ssl.create_default_context(cafile="/etc/fieldring/tls/ca.pem")
address = sys.argv[1]
def attempt(**words):
    try:
        login = PlainTextAuthProvider("cassandra", "cassandra")
        Cluster([address], auth_provider=login, connect_timeout=5, **words).connect()
    except NoHostAvailable as error:
        return str(error)
    return "connected"
print("TLS", attempt(ssl_context=context, ssl_options={"server_hostname": address}))
print("PLAIN", attempt())
"""
    address = on_host("ring1", "hostname -I").split()[0]
    result = subprocess.run(
        ["docker", "exec", "-i", "fieldring-site-ring2", "python3", "-W", "ignore", "-", address],
        input=probe,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "TLS" in result.stdout, result.stderr
    assert "connected" not in result.stdout
    assert (
        "AuthenticationFailed" in result.stdout
        or "Bad credentials" in result.stdout
        or "username" in result.stdout
    )


def test_plain_http_is_not_spoken() -> None:
    """A token never crosses a wire in clear text."""
    with Platform() as platform, pytest.raises(httpx.HTTPError):
        httpx.get(
            str(platform.client.base_url).replace("https", "http") + "/ping", timeout=5
        ).raise_for_status()


def test_a_wrong_token_and_junk_lines_lose_nothing_else(platform: Platform) -> None:
    """401 keeps nothing; 400 names the line and keeps the others."""
    now = int(time.time() * 1000)
    sensor = f"junk-{now}"
    refused = platform.client.post(
        "/write", content=f"a,sensor={sensor} value=1 {now}", headers={"Authorization": "Token wrong"}
    )
    assert refused.status_code == 401
    good = f"good,sensor={sensor} value"
    answer = platform.write(f"{good}=1 {now}\nbad,sensor={sensor} value= {now}\n{good}=3 {now + 1}")
    assert answer.status_code == 400
    assert [error["line"] for error in answer.json()["errors"]] == [2]
    assert sorted(platform.values(sensor).values()) == [1.0, 3.0]


def test_a_hundred_megabytes_are_refused_before_they_are_read(platform: Platform) -> None:
    """413 by the declared length; the service answers others meanwhile."""

    def body() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1_048_576

    try:
        answer = platform.client.post(
            "/api/v2/write",
            content=body(),
            headers={
                "Authorization": f"Token {platform.environment['FIELDRING_WRITE_TOKEN']}",
                "Content-Length": str(100 * 1_048_576),
            },
            timeout=60,
        )
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the connection was closed under the body, which refuses it as well
    assert platform.get("/ping").status_code == 204


def test_another_devices_topic_is_refused(platform: Platform) -> None:
    """The broker's ACL: a device speaks under its own name only."""
    device = platform.environment["FIELDRING_MQTT_USER"]
    publish("sensors/somebody-else/lp", ["stolen,sensor=somebody-else value=1"])
    own = publish(f"sensors/{device}/lp", [f"own,sensor={device} value=7"])
    assert own.returncode == 0, own.stderr
    until(
        lambda: 7.0 in platform.values(device).values(),
        seconds=30,
        what="the device's own point arrives",
    )
    assert platform.values("somebody-else") == {}


def test_writes_and_reads_go_on_without_a_ring_node_and_the_alert_fires_and_clears(
    platform: Platform, ledger: Ledger
) -> None:
    """One of three nodes is killed: nothing acknowledged is missing, RingNodeDown tells."""
    writer = Writer("one-node-down", ledger)
    writer.start()
    try:
        time.sleep(3)
        docker("kill", "fieldring-site-ring3")
        until(
            lambda: "firing" in alert_states(platform, "RingNodeDown"), seconds=120, what="RingNodeDown fires"
        )
        before = len(ledger.acknowledged)
        time.sleep(5)
        assert len(ledger.acknowledged) > before, "no write was acknowledged with one node down"
        assert platform.values("one-node-down")
    finally:
        docker("start", "fieldring-site-ring3")
        writer.stop()
    until(lambda: nodes_up() == 3, seconds=180, what="three nodes up and normal")
    until(lambda: not alert_states(platform, "RingNodeDown"), seconds=120, what="RingNodeDown clears")
    until(
        lambda: not missing(ledger, platform.values("one-node-down")),
        seconds=60,
        what="every acknowledged point",
    )
    print(ledger.summary(), f"longest request {writer.longest_s:.1f} s")
    assert ledger.acknowledged


def test_kill_9_of_the_ingest_containers_loses_nothing_acknowledged(
    platform: Platform, ledger: Ledger
) -> None:
    """The processes of `receive` and `analyse` are killed under a feed and come back by themselves."""
    writer = Writer("killed-ingest", ledger)
    writer.start()
    try:
        for _ in range(3):
            time.sleep(4)
            kill_9("fieldring-receive-1", "fieldring-analyse")
            until(lambda: platform.client.get("/ready").status_code == 200, seconds=60, what="ready again")
        time.sleep(2)
    finally:
        writer.stop()
    until(
        lambda: not missing(ledger, platform.values("killed-ingest")),
        seconds=60,
        what="every acknowledged point",
    )
    print(ledger.summary(), f"longest request {writer.longest_s:.1f} s")
    assert len(ledger.acknowledged) > 100


def test_without_a_quorum_writes_are_spooled_and_arrive_later(platform: Platform, ledger: Ledger) -> None:
    """Two of three nodes are away: what is acknowledged lies in the spool, through a kill -9 as well."""
    writer = Writer("no-quorum", ledger)
    docker("kill", "fieldring-site-ring2", "fieldring-site-ring3")
    try:
        writer.start()
        until(lambda: ledger.spooled > 50, seconds=120, what="points are acknowledged as spooled")
        kill_9("fieldring-receive-1")
        before = ledger.spooled
        until(
            lambda: ledger.spooled > before, seconds=90, what="a restarted receive spools on without a ring"
        )
    finally:
        writer.stop()
        docker("start", "fieldring-site-ring2", "fieldring-site-ring3")
    until(lambda: nodes_up() == 3, seconds=240, what="three nodes up and normal")
    until(
        lambda: not missing(ledger, platform.values("no-quorum")),
        seconds=180,
        what="every spooled point is stored",
    )
    print(ledger.summary(), f"longest request {writer.longest_s:.1f} s")


def test_a_lossy_line_to_the_ring_loses_nothing_acknowledged(platform: Platform, ledger: Ledger) -> None:
    """Every fifth packet between an ingest host and all ring nodes is lost, then all of them for a while."""
    writer = Writer("lossy", ledger)
    writer.start()
    try:
        with broken_link("ingest1", "ring1", "ring2", "ring3", percent=20):
            time.sleep(20)
        with broken_link("ingest1", "ring1", "ring2", "ring3"):
            until(lambda: ledger.spooled > 0, seconds=60, what="without a line, points are spooled")
        before = len(ledger.acknowledged)
        until(
            lambda: len(ledger.acknowledged) > before, seconds=60, what="the line is back, and so are answers"
        )
    finally:
        writer.stop()
    until(lambda: not missing(ledger, platform.values("lossy")), seconds=120, what="every acknowledged point")
    print(ledger.summary(), f"longest request {writer.longest_s:.1f} s")


def test_a_gateway_killed_while_the_ingest_hosts_are_away_delivers_later(platform: Platform) -> None:
    """Acknowledged messages survive kill -9 of broker and forwarder and the absence of every upstream."""
    sensor = platform.environment["FIELDRING_MQTT_USER"]
    with broken_link("gateway1", "ingest1", "ingest2"):
        base = int(time.time() * 1000) - 10_000
        times = [(base + number) * 1_000_000 for number in range(100)]
        sent = publish(
            f"sensors/{sensor}/lp",
            [f"gw,sensor={sensor} value={number} {t}" for number, t in enumerate(times)],
        )
        assert sent.returncode == 0, sent.stderr
        time.sleep(2)
        on_host("gateway1", "pkill -9 -x mosquitto; pkill -9 -f 'fieldring forward'", check=False)

    def arrived() -> int:
        return len([1 for (_, metric), _ in platform.values(sensor).items() if metric == "gw"])

    # A third of all packets: TCP gets through, requests time out and are sent again.
    with broken_link("gateway1", "ingest1", "ingest2", percent=33):
        time.sleep(10)
    until(lambda: arrived() == 100, seconds=120, what="all 100 acknowledged messages arrive")


def test_a_new_site_is_onboarded_from_one_manifest_and_accepted_end_to_end(
    tmp_path: Path, platform: Platform
) -> None:
    """A second gateway is provisioned beside the running one, which is not touched."""
    network = on_host("gateway1", "hostname -I").split()[0].rsplit(".", 1)[0]
    manifest = tmp_path / "harbour.yml"
    manifest.write_text(
        "site: harbour\ntimezone: Europe/Oslo\n"
        f"gateway:\n  name: fieldring-gateway2\n  address: {network}.32\n"
        "sensors:\n  - id: harbour-no2\n"
    )
    sites = STATE / "sites"
    words = [
        "-i",
        str(sites),
        "-e",
        f"onboard_site_manifest={manifest}",
        "-e",
        f"onboard_site_directory={sites}",
    ]
    sites.mkdir(exist_ok=True)
    (sites / "empty.yml").write_text("---\nall: {}\n")
    running_since = on_host(
        "gateway1", "systemctl show -p ActiveEnterTimestamp fieldring-forwarder mosquitto"
    )
    broken = tmp_path / "broken.yml"
    broken.write_text(manifest.read_text().replace("harbour-no2", "kerbside"))
    refused = playbook("playbooks/onboard_site.yml", "-e", f"onboard_site_manifest={broken}")
    assert refused.returncode != 0
    assert "broken.yml:7" in refused.stdout
    planned = playbook("playbooks/onboard_site.yml", *words, "--tags", "onboard_site_plan")
    assert planned.returncode == 0, planned.stdout[-3000:]
    assert list(sites.glob("harbour*")) == []
    rolled_out = playbook("lab/onboard_site.yml", *words)
    assert rolled_out.returncode == 0, rolled_out.stdout[-6000:]
    assert running_since == on_host(
        "gateway1", "systemctl show -p ActiveEnterTimestamp fieldring-forwarder mosquitto"
    )
    assert "accepted" in rolled_out.stdout


def test_the_health_of_everything_is_asked_without_changing_anything() -> None:
    """verify_site.yml passes on a whole platform."""
    verified = playbook("playbooks/verify_site.yml")
    assert verified.returncode == 0, verified.stdout[-5000:]
    assert " changed=0 " in verified.stdout
    assert not [
        line for line in verified.stdout.splitlines() if "changed=" in line and "changed=0" not in line
    ]


def test_a_stopped_forwarder_fails_the_health_check_and_the_acceptance() -> None:
    """A check that cannot fail is none: verify_site.yml names the service, SG-202 refuses the gateway."""
    on_host("gateway1", "systemctl stop fieldring-forwarder")
    try:
        verified = playbook("playbooks/verify_site.yml")
        assert verified.returncode != 0
        assert "fieldring-forwarder" in verified.stdout
        refused = playbook("molecule/site/accept.yml")
        assert refused.returncode != 0
        assert "SG-202" in refused.stdout
    finally:
        on_host("gateway1", "systemctl start fieldring-forwarder")


def test_the_lab_fits_into_eight_gibibytes() -> None:
    """All hosts together, containers in containers included."""
    # By process: what docker stats tells of a host that runs systemd depends on the engine's cgroup driver.
    total = 0
    for host in HOSTS:
        sizes = on_host(host, "cat /proc/[0-9]*/status 2>/dev/null | grep ^VmRSS", check=False)
        total += sum(int(line.split()[1]) * 1024 for line in sizes.splitlines())
    assert total > 2**30, "a lab that takes less was not measured"
    print(f"{total / 2**30:.2f} GiB")
    assert total < 8 * 2**30


def test_certificates_hold_for_this_machines_address() -> None:
    """What is published on 127.0.0.1 is checked against the site's CA there."""
    context = ssl.create_default_context(cafile=str(STATE / "ca.pem"))
    assert context.check_hostname
    with httpx.Client(verify=context) as client:
        assert client.get(Platform().environment["FIELDRING_URL"] + "/ping").status_code == 204
