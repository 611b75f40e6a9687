"""What the playbooks say of the inventory to the roles."""

from __future__ import annotations

from typing import Any

from jinja2.nativetypes import NativeEnvironment
from repository import ROOT, load

TOKENS = {
    "vault_write_token": "w",
    "vault_read_token": "r",
    "vault_review_token": "v",
    "vault_monitor_token": "m",
    "vault_gateway_tokens": {"quay": "q", "closed": "c"},
}


def value(file: str, name: str, **facts: Any) -> Any:
    """What playbooks/vars/`file` gives `name` where `facts` hold."""
    environment = NativeEnvironment()
    environment.filters["combine"] = lambda one, other: {**one, **other}
    environment.filters["difference"] = lambda one, other: [name for name in one if name not in other]
    return environment.from_string(load(ROOT / "playbooks" / "vars" / file)[name]).render(facts)


def test_only_gateways_of_the_inventory_have_tokens() -> None:
    """The token of a site that was closed opens nothing, though it is in the vault; nor does its old one."""
    previous = {"vault_previous_tokens": {"write": "w0", "quay": "q0", "closed": "c0"}}
    found = value(
        "ingest.yml", "ingest_container_tokens", groups={"gateways": ["quay"]}, **TOKENS, **previous
    )
    assert {
        "writer": "w", "reader": "r", "reviewer": "v", "monitor": "m",
        "quay": "q", "write-previous": "w0", "quay-previous": "q0",
    } == {entry["id"]: entry["token"] for entry in found}  # fmt: skip
    assert {"quay"} == {entry["gateway"] for entry in found if "gateway" in entry}


def test_a_site_without_gateways_has_tokens_for_people() -> None:
    """An inventory may have no such group."""
    found = value("ingest.yml", "ingest_container_tokens", groups={}, **TOKENS)
    assert ["writer", "reader", "reviewer", "monitor"] == [entry["id"] for entry in found]


def test_ingest_hosts_are_reached_by_their_own_port_and_any_address() -> None:
    """An IPv6 address stands in brackets; 443 needs no word, but for such an address."""
    hostvars = {
        "a": {"host_address": "192.0.2.21"},
        "b": {"host_address": "192.0.2.22", "load_balancer_port": 8443},
        "c": {"host_address": "2001:db8::21"},
    }
    found = value(
        "gateways.yml", "sensor_gateway_upstream_urls", groups={"ingest": list(hostvars)}, hostvars=hostvars
    )
    assert ["https://192.0.2.21", "https://192.0.2.22:8443", "https://[2001:db8::21]:443"] == found


def test_a_ring_node_that_is_declared_absent_is_not_asked_for_its_certificate() -> None:
    """It would not answer, and the rotation would stop as if it did not trust."""
    hostvars = {name: {"host_address": f"192.0.2.1{n}"} for n, name in enumerate(("a", "b"), 1)}
    facts = {"groups": {"cassandra": ["a", "b"]}, "hostvars": hostvars, "inventory_hostname": "a"}
    facts |= {"host_address": "192.0.2.11"}
    found = value("certificates.yml", "site_ca_prove_endpoints", **facts)
    assert ["a for nodes", "a for clients", "b for nodes", "b for clients"] == [e["name"] for e in found[:4]]
    found = value("certificates.yml", "site_ca_prove_endpoints", **facts, cassandra_node_absent_hosts=["b"])
    assert ["a for nodes", "a for clients", "node exporter"] == [entry["name"] for entry in found]
