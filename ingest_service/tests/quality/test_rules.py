"""Rules: what is accepted, what is refused and how it is said, and when a file is read again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fieldring.errors import ConfigurationError
from fieldring.quality import CHECKS, RulesFile, parse


def doc(test: str = "gross_range", *, metric: str = "no2", **arguments: Any) -> str:
    return json.dumps({"version": "1", "metrics": {metric: {test: arguments}}})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"metrics": {}}', "version"),
        ('{"version": true, "metrics": {}}', "version"),
        ('{"version": "1"}', "metrics"),
        ('{"version": "1", "metrics": {}, "metric": {}}', "'metric'"),
        ('{"version": "1", "metrics": {"no2": []}}', "metric 'no2'"),
        (doc("grossrange", fail_span=[0, 1]), "metric 'no2', test 'grossrange': no such test"),
        (doc(), "argument 'fail_span' is missing"),
        (doc(fail_span=[0, 1], span=[1, 2]), "no such argument 'span'"),
        (doc(fail_span=[1, 0]), "lower number first"),
        (doc(fail_span=[0]), "two numbers"),
        (doc(fail_span=[0, "1"]), "argument 'fail_span': is [0, '1']"),
        (doc(fail_span=[0, True]), "finite number"),
        (doc(fail_span=[0, 1], suspect_span=[0, 2]), "suspect_span must lie within fail_span"),
        (doc("spike"), "needs suspect_threshold, fail_threshold or both"),
        (doc("spike", suspect_threshold=2, fail_threshold=1), "must not be below suspect_threshold"),
        (doc("spike", suspect_threshold=-1), "greater than 0"),
        (doc("spike", suspect_threshold=1, method="mean"), "average or differential"),
        (doc("rate_of_change", threshold=None), "is None"),
        (doc("flat_line", suspect_threshold=10, fail_threshold=5), "must not be below suspect_threshold"),
        (doc("flat_line", suspect_threshold=1, fail_threshold=5, tolerance=-1), "must not be negative"),
        ('{"version": "1", "metrics": {"no2": {"spike": {"suspect_threshold": 1e999}}}}', "JSON"),
    ],
)
def test_wrong_rules_are_refused_by_name(text: str, named: str) -> None:
    """Metric, test, argument, the value found and what it must be."""
    with pytest.raises(ConfigurationError) as refusal:
        parse(text, source="rules file x")
    assert named in str(refusal.value)
    assert str(refusal.value).startswith("rules file x")


@pytest.mark.parametrize(
    ("metric", "found"),
    [
        ("no2", "no2"),
        ("airquality_no2", "no2"),
        ("a_b_no2", "no2"),
        ("no2{host=a,port=b_no}", "no2"),
        ("air_no2{host=a}", "no2"),
        ("indoor_no2", "indoor_no2"),
        ("house_indoor_no2", "indoor_no2"),
        ("house_indoor_no2_raw", None),
        ("bg_no2", None),
        ("sno2", None),
        ("no2_", None),
        ("NO2", None),
        ("", None),
        ("{", None),
        ("{}", None),
    ],
)
def test_which_rules_a_metric_follows(metric: str, found: str | None) -> None:
    """The exact name, else without what distinguishes series, else the longest part after a ``_``."""
    spans = {"no2": [0, 1], "indoor_no2": [0, 2]}
    metrics: dict[str, Any] = {name: {"gross_range": {"fail_span": span}} for name, span in spans.items()}
    metrics["bg_no2"] = {}
    rules = parse(json.dumps({"version": 1, "metrics": metrics}), source="test")
    checks = rules.for_metric(metric)
    assert ([tuple(map(float, spans[found]))] if found else []) == [c.arguments["fail_span"] for c in checks]
    assert checks is rules.for_metric(metric)


def test_the_shipped_rules_use_every_test() -> None:
    """They are valid, and judge the metrics that the design names by all tests."""
    rules = RulesFile().current()
    for metric in ("pm1", "pm25", "pm10", "o3", "no2", "co", "temperature", "humidity"):
        assert set(CHECKS) == {check.check.name for check in rules.for_metric(metric)}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_changed_file_is_in_force_without_a_restart(tmp_path: Path) -> None:
    """Also when it was replaced by renaming within the same second."""
    path, clock = tmp_path / "rules.json", Clock()
    path.write_text(doc(fail_span=[0, 1]))
    rules = RulesFile(str(path), monotonic=clock)
    assert (0.0, 1.0) == rules.current().for_metric("no2")[0].arguments["fail_span"]
    stamp = path.stat().st_mtime_ns
    (tmp_path / "new").write_text(doc(fail_span=[0, 2]))
    os.utime(tmp_path / "new", ns=(stamp, stamp))
    (tmp_path / "new").replace(path)
    clock.now += 2
    assert (0.0, 2.0) == rules.current().for_metric("no2")[0].arguments["fail_span"]


@pytest.mark.parametrize("damage", ["broken", "gone"])
def test_a_file_that_becomes_wrong_leaves_the_last_good_rules(tmp_path: Path, damage: str) -> None:
    """And says why, until it is mended."""
    path, clock = tmp_path / "rules.json", Clock()
    path.write_text(doc(fail_span=[0, 1]))
    rules = RulesFile(str(path), monotonic=clock)
    good = rules.current()
    if damage == "gone":
        path.unlink()
    else:
        path.write_text("{")
    clock.now += 2
    assert good is rules.current()
    assert str(path) in rules.error
    path.write_text(doc(fail_span=[0, 3]))
    clock.now += 2
    assert (0.0, 3.0) == rules.current().for_metric("no2")[0].arguments["fail_span"]
    assert "" == rules.error


def test_a_wrong_file_at_the_start_is_refused(tmp_path: Path) -> None:
    """Missing counts as wrong."""
    with pytest.raises(ConfigurationError, match="FIELDRING_RULES_FILE"):
        RulesFile(str(tmp_path / "nope"))
