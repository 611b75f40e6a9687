"""Quality checks: pure functions of arrays that return flags of equal shape, and the rules that bind them.

This room does no network or store I/O, knows no clock and never changes a value; it only reads its
rules file. Checks and arguments carry the names of ioos_qc's ``qartod`` module, flags those of QARTOD.
"""

from fieldring.quality.checks import aggregate, flat_line, gross_range, rate_of_change, spike
from fieldring.quality.judge import Bad, judge
from fieldring.quality.rules import CHECKS, NEIGHBOUR_REACH_S, BoundCheck, Check, Rules, RulesFile, parse

__all__ = [
    "CHECKS",
    "NEIGHBOUR_REACH_S",
    "Bad",
    "BoundCheck",
    "Check",
    "Rules",
    "RulesFile",
    "aggregate",
    "flat_line",
    "gross_range",
    "judge",
    "parse",
    "rate_of_change",
    "spike",
]
