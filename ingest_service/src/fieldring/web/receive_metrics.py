"""What ``receive`` tells Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from fieldring.accept import SPOOLED, STORED
from fieldring.web.probes import Metrics

__all__ = ["ReceiveMetrics"]


class ReceiveMetrics(Metrics):
    """Counters of one ``receive`` process."""

    def __init__(self) -> None:
        super().__init__()
        self.points = Counter(
            "fieldring_points", "Points acknowledged, by durability", ["durability"], registry=self.registry
        )
        self.refused = Counter(
            "fieldring_lines_refused",
            "Lines or records refused, by reason",
            ["reason"],
            registry=self.registry,
        )
        self.collapsed = Counter(
            "fieldring_points_collapsed",
            "Points that a later line of a request replaced",
            registry=self.registry,
        )
        self.left_out = Counter(
            "fieldring_points_left_out",
            "Values that are no measurement (stale markers, NaN, infinities, native histograms), by reason",
            ["reason"],
            registry=self.registry,
        )
        self.gateway_seq = Gauge(
            "fieldring_gateway_last_sequence", "Last block of a gateway", ["gateway"], registry=self.registry
        )
        self.points_by = {durability: self.points.labels(durability) for durability in (STORED, SPOOLED)}
        for reason in ("malformed", "ambiguous", "retention", "forbidden"):
            self.refused.labels(reason)
        for reason in ("stale", "nan", "infinite", "histogram", "not_finite"):
            self.left_out.labels(reason)
