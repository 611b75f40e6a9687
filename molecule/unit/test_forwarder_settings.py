"""The forwarder's settings file names every setting that concerns a gateway, and no other."""

from __future__ import annotations

import re

from repository import ROOT

TEMPLATE = ROOT / "roles/sensor_gateway/templates/etc/fieldring/forwarder.env.j2"
GATEWAY = ("gateway_", "device_", "mqtt_", "upstream_", "dead_letter_")


def table() -> set[str]:
    """Names in the service's own table."""
    text = (ROOT / "ingest_service/src/fieldring/settings.py").read_text(encoding="utf-8")
    return set(re.findall(r"^    (\w+): [^=]+ = _setting\(", text, re.MULTILINE))


def rendered() -> set[str]:
    """Names in the template."""
    names = re.findall(r"^FIELDRING_(\w+)=", TEMPLATE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.lower() for name in names}


def test_every_setting_of_a_gateway_is_rendered() -> None:
    """A setting added to the forwarder is not forgotten by the role."""
    of_gateway = {name for name in table() if name.startswith(GATEWAY)}
    assert sorted(of_gateway - rendered()) == []


def test_every_rendered_setting_exists() -> None:
    """A misspelt name would silently leave the default."""
    assert sorted(rendered() - table()) == []


def test_no_secret_is_rendered() -> None:
    """Secrets are in files of their own, which only the forwarder reads."""
    text = TEMPLATE.read_text(encoding="utf-8")
    assert "sensor_gateway_forwarder_password" not in text
    assert "sensor_gateway_upstream_token" not in text
