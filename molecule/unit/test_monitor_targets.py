"""Where Prometheus looks for what it is given."""

from __future__ import annotations

from typing import Any

import jinja2
import yaml
from repository import ROOT, load

ROLE = ROOT / "roles" / "monitor"
FACTS = {
    "ansible_managed": "",
    "inventory_hostname": "monitor1",
    "_monitor_local_address": "127.0.0.1",
    "_monitor_tls_directory": "/etc/fieldring/tls",
    "_monitor_token_file": "/etc/prometheus/fieldring_token",
}


def targets(**given: Any) -> dict[str, list[str]]:
    """Addresses by job, where the role gets `given` beside its defaults."""
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    text = (ROLE / "templates/etc/prometheus/prometheus.yml.j2").read_text()
    defaults = load(ROLE / "defaults" / "main.yml")
    rendered = yaml.safe_load(environment.from_string(text).render({**defaults, **FACTS, **given}))
    return {
        job["job_name"]: [target for entry in job["static_configs"] for target in entry["targets"]]
        for job in rendered["scrape_configs"]
    }


def test_an_ipv6_address_stands_in_brackets() -> None:
    """Its port would be one more group of it otherwise."""
    one = [{"name": "a", "address": "2001:db8::1"}]
    found = targets(
        monitor_node_targets=one,
        monitor_ring_targets=one,
        monitor_ingest_targets=one,
        monitor_gateway_targets=one,
    )
    assert ["[2001:db8::1]:9100"] == found["node"]
    assert ["[2001:db8::1]:9042"] == found["ring"]
    assert ["https://[2001:db8::1]:443/ready"] == found["ready"]
    assert ["[2001:db8::1]:8405"] == found["load_balancer"]
    assert ["[2001:db8::1]:9109"] == found["forwarder"]


def test_an_ingest_host_may_have_a_port_of_its_own() -> None:
    """For HTTPS alone; without one, that of all counts."""
    hosts = [{"name": "a", "address": "192.0.2.21"}, {"name": "b", "address": "192.0.2.22", "port": 8443}]
    found = targets(monitor_node_targets=hosts[:1], monitor_ingest_targets=hosts)
    for job in ("receive", "serve", "analyse"):
        assert ["192.0.2.21:443", "192.0.2.22:8443"] == found[job]
    assert ["https://192.0.2.21:443/ready", "https://192.0.2.22:8443/ready"] == found["ready"]
    assert ["192.0.2.21:8405", "192.0.2.22:8405"] == found["load_balancer"]
