"""Every setting of the service that concerns ingest hosts can be set by the role, under its own name."""

from __future__ import annotations

import re

from repository import ROOT, load

VARIABLES = load(ROOT / "roles" / "ingest_container" / "vars" / "main.yml")
OWN = set(VARIABLES["_ingest_container_own_settings"])
FURTHER = set(VARIABLES["_ingest_container_further_settings"])
GATEWAY = ("gateway_", "device_", "mqtt_", "upstream_", "dead_letter_")


def table() -> set[str]:
    """Names in the service's own table."""
    text = (ROOT / "ingest_service" / "src" / "fieldring" / "settings.py").read_text(encoding="utf-8")
    return set(re.findall(r"^    (\w+): [^=]+ = _setting\(", text, re.MULTILINE))


def test_the_role_knows_every_setting_and_no_other() -> None:
    """A setting added to the service is not forgotten here; one taken away is refused by IC-102."""
    of_ingest = {name for name in table() if not name.startswith(GATEWAY)}
    assert sorted(of_ingest) == sorted(OWN | FURTHER)


def test_a_setting_has_one_way_to_be_set() -> None:
    """What has a variable of its own is refused among the further settings."""
    assert sorted(OWN & FURTHER) == []
