"""A site manifest is refused by line before anything changes."""

from __future__ import annotations

import re
import string
import sys

import pytest
from repository import ROOT, load

sys.path.insert(0, str(ROOT / "playbooks" / "module_utils"))

from site_manifest import FORWARDER, SENSOR, Known, Problem, check

GOOD = """\
site: harbour
timezone: Europe/Oslo
gateway:
  name: harbour-gateway
  address: 192.0.2.31
sensors:
  - id: harbour-no2
  - id: harbour-pm
"""
KNOWN = Known(
    addresses={"ring1": "192.0.2.11", "park-gateway": "192.0.2.30", "harbour-gateway": "192.0.2.31"},
    sensors={"park-no2": "park-gateway", "harbour-no2": "harbour-gateway"},
)


def test_the_skeleton_is_a_good_manifest() -> None:
    """What people copy works as it is."""
    manifest, problems = check((ROOT / "templates" / "site" / "manifest.yml").read_text(), known=Known())
    assert problems == []
    assert manifest is not None
    assert manifest["gateway"]["name"] == "harbour-gateway"


def test_the_same_site_again_is_accepted() -> None:
    """Onboarding can be repeated."""
    assert check(GOOD, known=KNOWN)[1] == []


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("site: harbour", "site: Harbour 1", 1, "lower case"),
        ("site: harbour", "sight: harbour", 1, "sight is not known"),
        ("timezone: Europe/Oslo", "timezone: Oslo", 2, "tz database"),
        ("timezone: Europe/Oslo", "timezone: 1", 2, "must be a text"),
        ("  name: harbour-gateway", "  name: ring1", 4, "host of the inventory already"),
        ("  address: 192.0.2.31", "  address: 192.0.2", 5, "IPv4 or IPv6"),
        ("  address: 192.0.2.31", "  address: 192.0.2.11", 5, "belongs to ring1"),
        ("  - id: harbour-pm", "  - id: harbour-no2", 8, "stands on line 7"),
        ("  - id: harbour-pm", "  - id: park-no2", 8, "sensor of park-gateway"),
        ("  - id: harbour-pm", "  - id: a/+", 8, "not / + # :"),
        ("  - id: harbour-pm", "  - id: urn:dev:1", 8, "not / + # :"),
        ("  - id: harbour-pm", "  - id: fieldring-forwarder", 8, "forwarder's own account"),
        ("  - id: harbour-pm", "  - harbour-pm", 8, "must be a mapping"),
        ("  - id: harbour-pm", "  - id: harbour-pm\n    unit: x", 9, "unit is not known"),
        ("site: harbour", "site: [", 3, "not YAML"),
    ],
)
def test_a_problem_names_its_line_and_what_to_do(old: str, new: str, line: int, words: str) -> None:
    """An editor jumps to the line, the text says the remedy."""
    manifest, problems = check(GOOD.replace(old, new), known=KNOWN)
    assert manifest is None
    assert [problem for problem in problems if problem.line == line and words in problem.message], problems


def test_no_name_passes_that_the_gateway_refuses() -> None:
    """SG-103 would stop the run after the site was added to the inventory."""
    role = load(ROOT / "roles" / "sensor_gateway" / "vars" / "main.yml")
    names = [f"a{character}1" for character in string.printable]
    taken = [name for name in names if SENSOR.fullmatch(name)]
    assert "a-1" in taken
    assert [name for name in taken if not re.match(role["_sensor_gateway_device_pattern"], name)] == []
    assert role["_sensor_gateway_account"] == FORWARDER


def test_all_problems_are_told_at_once_in_line_order() -> None:
    """Nobody mends a file error by error."""
    _, problems = check(GOOD.replace("Europe/Oslo", "Nowhere").replace("192.0.2.31", "x"), known=Known())
    assert [2, 5] == [problem.line for problem in problems]
    assert problems == sorted(problems)
    assert all(isinstance(problem, Problem) for problem in problems)


def test_a_missing_key_is_named_with_its_meaning() -> None:
    """What is not there has no line of its own: the mapping's is given."""
    _, problems = check(GOOD.replace("  address: 192.0.2.31\n", ""), known=Known())
    assert "gateway.address is missing" in problems[0].message


def test_an_empty_file_is_refused() -> None:
    """An empty manifest is no site."""
    assert check("", known=Known())[1][0].line == 1
