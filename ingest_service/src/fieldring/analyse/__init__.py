"""Judging what arrived: marks in, flags out.

This room decides what has to be judged again and when; the checks themselves are in ``quality``.
It never changes a value, and it may be run twice at once: leases only keep work from being doubled.
"""

from fieldring.analyse.metrics import Metrics
from fieldring.analyse.timeline import Timelines
from fieldring.analyse.worker import Worker

__all__ = ["Metrics", "Timelines", "Worker"]
