"""Rows of a request that meet on one key although their senders meant different series."""

from __future__ import annotations

from collections.abc import Sequence

from fieldring.model import Batch
from fieldring.wire.names import Series

__all__ = ["clashes", "keep_attributes"]


def clashes(batch: Batch, owners: Sequence[Series]) -> dict[int, int]:
    """Rows with the sensor, time and a metric of a row whose attributes differ, each with such a row."""
    if not any(owner.attributes for owner in owners):
        return {}
    rows: dict[tuple[str, int], list[int]] = {}
    for index, place in enumerate(zip(batch.sensors, batch.times_ms, strict=True)):
        rows.setdefault(place, []).append(index)
    found: dict[int, int] = {}
    for meeting in rows.values():
        if len(meeting) < 2:
            continue
        by_metric: dict[str, list[int]] = {}
        for index in meeting:
            for metric in batch.layouts[index]:
                by_metric.setdefault(metric, []).append(index)
        for indexes in by_metric.values():
            first = indexes[0]
            other = next((i for i in indexes if owners[i].attributes != owners[first].attributes), None)
            if other is not None:
                found.update((i, other if i != other else first) for i in indexes)
    return found


def keep_attributes(batch: Batch, owners: Sequence[Series]) -> None:
    """Write the attributes of these series into the batch; the last one's win."""
    for series in reversed(dict.fromkeys(reversed(owners))):
        if series.attributes:
            batch.attributes.setdefault(series.sensor, {}).update(series.attributes)
