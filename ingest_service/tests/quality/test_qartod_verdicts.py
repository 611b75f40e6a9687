"""Verdicts of ioos_qc 3.0.0 on random series with gaps, spikes and flat stretches, recorded in
``qartod_verdicts.json``: ours are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldring.quality import CHECKS

CASES = json.loads((Path(__file__).parent / "qartod_verdicts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_same_verdicts_as_ioos_qc(case: dict[str, Any]) -> None:
    """Every check flags every value as ioos_qc does."""
    values = np.array([np.nan if v is None else v for v in case["values"]])
    times = np.array(case["times_ms"], dtype=np.int64)
    for check in case["checks"]:
        flags = CHECKS[check["test"]].run(values, times, check["arguments"])
        assert check["flags"] == flags.tolist(), check


def test_the_record_holds_every_flag_of_every_check() -> None:
    """The record is not one of series that are all good."""
    seen: dict[str, set[int]] = {name: set() for name in CHECKS}
    for case in CASES:
        for check in case["checks"]:
            seen[check["test"]] |= set(check["flags"])
    assert {name: {1, 3, 4, 9} for name in CHECKS} == {name: flags - {2} for name, flags in seen.items()}
