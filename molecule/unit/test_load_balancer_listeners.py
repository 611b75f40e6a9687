"""Where HAProxy listens."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from repository import ROOT, load

ROLE = ROOT / "roles" / "load_balancer"
FACTS = {
    "ansible_managed": "",
    "inventory_hostname": "ingest1",
    "load_balancer_receive_servers": [{"name": "receive-1", "port": 18081}],
    "load_balancer_serve_servers": [{"name": "serve", "port": 18091}],
}


def configuration(**given: Any) -> str:
    """haproxy.cfg where the role gets `given` beside its defaults."""
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    text = (ROLE / "templates/etc/haproxy/haproxy.cfg.j2").read_text()
    known = {**load(ROLE / "defaults" / "main.yml"), **load(ROLE / "vars" / "main.yml"), **FACTS, **given}
    return environment.from_string(text).render(known)


def listeners(**given: Any) -> list[str]:
    """Address, and v6only where it stands, of each bind."""
    lines = [line.split() for line in configuration(**given).splitlines() if line.startswith("    bind ")]
    return [" ".join(words[1:3] if "v6only" in words else words[1:2]) for words in lines]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [":443", "127.0.0.1:8405"]),
        ({"load_balancer_metrics_address": "192.0.2.21"}, [":443", "127.0.0.1:8405", "192.0.2.21:8405"]),
        ({"load_balancer_metrics_address": "127.0.0.1"}, [":443", "127.0.0.1:8405"]),
        (
            {"load_balancer_metrics_address": "2001:db8::21", "load_balancer_ipv6_enabled": True},
            [":443", "[::]:443 v6only", "127.0.0.1:8405", "[2001:db8::21]:8405"],
        ),
    ],
)
def test_it_listens_where_it_is_told(given: dict[str, Any], expected: list[str]) -> None:
    """Metrics need no login, so they are not on all addresses; IPv6 is asked for where it is known to be."""
    assert expected == listeners(**given)


def test_a_peer_is_reached_over_ipv6() -> None:
    """In brackets, as everywhere."""
    text = configuration(load_balancer_peers=[{"name": "ingest2", "address": "2001:db8::22"}])
    assert "server peer-ingest2 [2001:db8::22]:443 check backup" in text
