"""Who may read a host's metrics, what they say about its certificates, and what is refused."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

from testinfra.backend.base import CommandResult
from testinfra.host import Host

Converge = Callable[..., subprocess.CompletedProcess[str]]
ONE = ("--limit", "fieldring-node-metrics-1")
TLS = "/etc/fieldring/tls"
OTHER = "172.31.87.12"

testinfra_hosts = ["fieldring-node-metrics-1"]


def fetch(host: Host, address: str, *, client: bool = True) -> CommandResult:
    """/metrics of an address over TLS, checked against the site's CA, as one more host of the site."""
    loaded = f"context.load_cert_chain('{TLS}/host.crt', '{TLS}/host.key');" if client else ""
    code = (
        "import ssl, urllib.request;"
        f"context = ssl.create_default_context(cafile='{TLS}/ca.pem');{loaded}"
        f"print(urllib.request.urlopen('https://{address}:9100/metrics', context=context).read().decode())"
    )
    return host.run(f'python3 -c "{code}"')


def test_a_host_of_the_site_reads_the_metrics_of_another(host: Host) -> None:
    assert "node_memory_MemTotal_bytes" in fetch(host, OTHER).stdout


def test_who_has_no_certificate_of_the_site_is_refused(host: Host) -> None:
    result = fetch(host, OTHER, client=False)
    assert result.rc != 0
    assert re.search("alert (bad certificate|certificate required)", result.stderr)


def test_only_the_given_address_listens(host: Host) -> None:
    assert host.socket("tcp://172.31.87.11:9100").is_listening
    assert not host.socket("tcp://127.0.0.1:9100").is_listening


def test_the_expiry_of_leaf_and_ca_is_exported(host: Host) -> None:
    """The figure is that of the certificate which is served, to the second."""
    end = host.check_output(f'date -d "$(openssl x509 -noout -enddate -in {TLS}/host.crt | cut -d= -f2)" +%s')
    lines = dict(
        line.rsplit(" ", 1)
        for line in fetch(host, "172.31.87.11").stdout.splitlines()
        if line[:1] != "#" and line
    )
    assert float(end) == float(lines['fieldring_certificate_not_after_seconds{file="host.crt"}'])
    assert float(end) < float(lines['fieldring_certificate_not_after_seconds{file="ca.pem"}'])


def test_the_timer_exports_it_again(host: Host) -> None:
    host.check_output("systemctl is-active fieldring-certificate-metrics.timer")
    assert "fieldring-certificate" in host.check_output("systemctl list-timers --no-pager")


def test_a_damaged_certificate_fails_the_unit_and_keeps_the_file(host: Host) -> None:
    """The last figure stays, with its age, and nothing half-written is served."""
    name = "/var/lib/prometheus/node-exporter/fieldring_certificate.prom"
    before = host.check_output(f"cat {name}")
    host.check_output(f"cp -p {TLS}/host.crt /root/ && echo junk > {TLS}/host.crt")
    try:
        assert host.run("systemctl start fieldring-certificate-metrics.service").rc != 0
        assert host.check_output(f"cat {name}") == before
    finally:
        host.check_output(f"cp -p /root/host.crt {TLS}/host.crt")
        host.check_output("systemctl start fieldring-certificate-metrics.service")


def test_the_exporter_comes_back_when_it_is_killed(host: Host) -> None:
    host.check_output("systemctl kill --signal=KILL prometheus-node-exporter.service")
    host.check_output("for i in $(seq 100); do ss -Hltn | grep -q :9100 && exit 0; sleep 0.1; done; exit 1")


def test_nm_101_refuses_a_port_that_another_program_holds(host: Host, converge_again: Converge) -> None:
    """The near miss is in the run before: the exporter itself holds 9100 and is no reason to refuse."""
    before = host.check_output("cat /etc/default/prometheus-node-exporter")
    host.check_output("systemd-run --unit=squatter --collect python3 -m http.server 9200")
    try:
        host.check_output(
            "for i in $(seq 100); do ss -Hltn | grep -q :9200 && exit 0; sleep 0.1; done; exit 1"
        )
        run = converge_again(*ONE, node_metrics_port=9200)
    finally:
        host.check_output("systemctl stop squatter")
    assert run.returncode != 0
    assert "NM-101" in run.stdout
    assert "python3" in run.stdout
    assert host.check_output("cat /etc/default/prometheus-node-exporter") == before


def test_nm_102_refuses_a_host_without_a_certificate(host: Host, converge_again: Converge) -> None:
    host.check_output(f"mv {TLS}/host.pem {TLS}/host.pem.away")
    try:
        run = converge_again(*ONE)
    finally:
        host.check_output(f"mv {TLS}/host.pem.away {TLS}/host.pem")
    assert run.returncode != 0
    assert "NM-102" in run.stdout
