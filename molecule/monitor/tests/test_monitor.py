"""What the monitor sees, when it raises an alert and whom it tells, and what it refuses."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import testinfra
import yaml
from testinfra.host import Host

Converge = Callable[..., subprocess.CompletedProcess[str]]
ONE = ("--limit", "fieldring-monitor-1")
RULES_TEST = Path(__file__).parent / "fieldring.rules.test.yml"

# Waiting for alerts takes its time on a busy machine.
pytestmark = pytest.mark.timeout(400)

testinfra_hosts = ["fieldring-monitor-1"]


@pytest.fixture
def ring_node() -> Iterator[Host]:
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    host = testinfra.get_host("ansible://fieldring-monitor-2", ansible_inventory=inventory)
    yield host
    host.check_output("systemctl start cql-listener.service")


def prometheus(host: Host, call: str) -> dict[str, Any]:
    code = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"
    answer = json.loads(host.check_output("python3 -c %s %s", code, f"http://127.0.0.1:9090/api/v1/{call}"))
    return dict(answer["data"])


def query(host: Host, expression: str) -> dict[str, float]:
    """Value by instance."""
    rows = prometheus(host, f"query?{urlencode({'query': expression})}")["result"]
    return {row["metric"].get("instance", ""): float(row["value"][1]) for row in rows}


def wait_for(what: Callable[[], Any], *, seconds: float) -> float:
    """Seconds until it is true."""
    start = time.monotonic()
    while not what():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(1)
    return time.monotonic() - start


def told(host: Host, status: str, *, since: str) -> bool:
    journal = host.check_output(
        "journalctl --no-pager --output cat --unit alert-receiver.service --since @%s", since
    )
    return bool(re.search(f'"status":"{status}","labels":{{"alertname":"RingNodeDown"', journal))


def test_every_host_is_read_with_the_monitors_certificate(host: Host) -> None:
    """The exporters refuse everybody else (their own scenario shows it)."""
    wait_for(lambda: query(host, 'up{job="node"}') == {"monitor": 1, "ring1": 1}, seconds=90)
    left = query(host, 'fieldring_certificate_not_after_seconds{file="host.crt"} - time()')
    assert set(left) == {"monitor", "ring1"}
    assert min(left.values()) > 300 * 86400


def test_a_ring_node_that_goes_down_raises_an_alert_that_clears(host: Host, ring_node: Host) -> None:
    """Within 30 s Prometheus fires and the operators are told; both again when the node is back."""
    firing = 'ALERTS{alertname="RingNodeDown", alertstate="firing"}'
    wait_for(lambda: query(host, 'probe_success{job="ring"}') == {"ring1": 1}, seconds=90)
    wait_for(lambda: query(host, firing) == {}, seconds=90)
    since = host.check_output("date +%s")

    ring_node.check_output("systemctl stop cql-listener.service")
    wait_for(lambda: query(host, firing) == {"ring1": 1}, seconds=90)
    # By Prometheus's own clock, so that a busy machine's slow questions do not count.
    alerts = prometheus(host, "alerts")["alerts"]
    (alert,) = [each for each in alerts if each["labels"]["alertname"] == "RingNodeDown"]
    noticed = dt.datetime.fromisoformat(re.sub(r"\.\d+", "", alert["activeAt"])).timestamp() - int(since)
    held = 10
    assert noticed + held <= 30
    wait_for(lambda: told(host, "firing", since=since), seconds=60)

    ring_node.check_output("systemctl start cql-listener.service")
    wait_for(lambda: query(host, firing) == {}, seconds=60)
    wait_for(lambda: told(host, "resolved", since=since), seconds=120)


def test_a_port_that_is_open_but_speaks_no_tls_counts_as_down(host: Host, ring_node: Host) -> None:
    """The near miss: an accepted TCP connection is not an answer."""
    ring_node.check_output("systemctl stop cql-listener.service")
    ring_node.check_output("systemd-run --unit=plain --collect python3 -m http.server 9042")
    try:
        wait_for(lambda: query(host, 'probe_success{job="ring"}') == {"ring1": 0}, seconds=60)
    finally:
        ring_node.check_output("systemctl stop plain")


def test_every_alert_is_shown_firing_by_promtool(host: Host) -> None:
    rules = yaml.safe_load(host.check_output("cat /etc/prometheus/fieldring.rules.yml"))
    tests = yaml.safe_load(RULES_TEST.read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    fired = {
        case["alertname"] for test in tests["tests"] for case in test["alert_rule_test"] if case["exp_alerts"]
    }
    assert alerts == fired

    host.check_output(
        "printf %s %s > /root/fieldring.rules.test.yml", "%s", RULES_TEST.read_text(encoding="utf-8")
    )
    result = host.run("promtool test rules /root/fieldring.rules.test.yml")
    assert result.rc == 0, result.stdout + result.stderr


def test_a_change_of_a_rule_reloads_without_a_restart(host: Host, converge_again: Converge) -> None:
    pid = host.check_output("systemctl show -p MainPID --value prometheus.service")
    run = converge_again(*ONE, monitor_ring_node_down_seconds=15)
    assert run.returncode == 0, run.stdout
    wait_for(lambda: "duration: 15" in loaded_rules(host), seconds=30)
    assert host.check_output("systemctl show -p MainPID --value prometheus.service") == pid
    run = converge_again(*ONE)
    assert run.returncode == 0, run.stdout


def loaded_rules(host: Host) -> str:
    groups = prometheus(host, "rules")["groups"]
    return " ".join(f"duration: {rule['duration']}" for group in groups for rule in group["rules"])


def test_the_token_is_for_prometheus_only(host: Host) -> None:
    host.check_output("id stranger || useradd --system stranger")
    assert host.run("runuser -u stranger -- cat /etc/prometheus/fieldring_token").rc != 0
    assert (
        host.check_output("runuser -u prometheus -- cat /etc/prometheus/fieldring_token") == "scenario-token"
    )
    assert host.run("runuser -u stranger -- cat /etc/prometheus/alertmanager.yml").rc != 0


@pytest.mark.parametrize("unit", ["prometheus", "prometheus-alertmanager", "prometheus-blackbox-exporter"])
def test_comes_back_when_it_is_killed(host: Host, unit: str) -> None:
    host.check_output("systemctl kill --signal=KILL %s", unit)
    wait_for(lambda: host.run("systemctl is-active %s", unit).rc == 0, seconds=30)


def test_a_rule_that_is_no_promql_is_not_installed(host: Host, converge_again: Converge) -> None:
    before = host.check_output("cat /etc/prometheus/fieldring.rules.yml")
    run = converge_again(*ONE, monitor_disk_free_min_percent="15 )")
    assert run.returncode != 0
    assert host.check_output("cat /etc/prometheus/fieldring.rules.yml") == before


def test_mo_101_refuses_a_port_that_another_program_holds(host: Host, converge_again: Converge) -> None:
    """The near miss is every other run here: our own programs hold the ports."""
    before = host.check_output("cat /etc/default/prometheus")
    run = converge_again(*ONE, monitor_prometheus_port=9999)
    assert run.returncode != 0
    assert "MO-101" in run.stdout
    assert "python3" in run.stdout
    assert host.check_output("cat /etc/default/prometheus") == before


def test_mo_102_refuses_a_host_without_a_certificate(host: Host, converge_again: Converge) -> None:
    name = "/etc/fieldring/tls/host.pem"
    host.check_output(f"mv {name} {name}.away")
    try:
        run = converge_again(*ONE)
    finally:
        host.check_output(f"mv {name}.away {name}")
    assert run.returncode != 0
    assert "MO-102" in run.stdout


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([], "no host would be watched"),
        ([{"name": "a", "address": "192.0.2.1"}, {"name": "a", "address": "192.0.2.2"}], "names stand twice"),
    ],
)
def test_mo_103_refuses(converge_again: Converge, targets: list[dict[str, str]], words: str) -> None:
    run = converge_again(*ONE, monitor_node_targets=targets)
    assert run.returncode != 0
    assert "MO-103" in run.stdout
    assert words in run.stdout


def test_mo_104_refuses_mail_without_a_server(converge_again: Converge) -> None:
    run = converge_again(*ONE, monitor_alert_email_to="operators@example.org")
    assert run.returncode != 0
    assert "MO-104" in run.stdout


def test_a_target_without_an_address_is_refused_by_name(converge_again: Converge) -> None:
    run = converge_again(*ONE, monitor_ring_targets=[{"name": "ring1"}])
    assert run.returncode != 0
    assert "missing required arguments: address found in monitor_ring_targets" in run.stdout
