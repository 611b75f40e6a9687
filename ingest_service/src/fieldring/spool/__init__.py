"""A durable queue of bytes on local disk.

This room knows no points, no network and no settings: records are opaque bytes. FORMAT.md beside
this file is the on-disk format and what a start does with damage.
"""

from __future__ import annotations

from fieldring.spool.endurance import Endurance
from fieldring.spool.inspection import inspect, render
from fieldring.spool.lanes import Lanes, Portion
from fieldring.spool.queue import Queue, Record
from fieldring.spool.workers import adopt_orphans, open_worker

__all__ = [
    "Endurance",
    "Lanes",
    "Portion",
    "Queue",
    "Record",
    "adopt_orphans",
    "inspect",
    "open_worker",
    "render",
]
