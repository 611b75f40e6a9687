"""What the analyser tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["Metrics"]


class Metrics:
    """All instruments of one analyser, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rounds = Counter(
            "fieldring_analyse_rounds_total",
            "Rounds over all shards, by outcome",
            ["outcome"],
            registry=self.registry,
        )
        self.round_seconds = Histogram(
            "fieldring_analyse_round_seconds",
            "Time of one round",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self.hours = Counter(
            "fieldring_analyse_hours_judged_total", "Hours of one metric judged", registry=self.registry
        )
        self.flags = Counter(
            "fieldring_analyse_flags_total",
            "Points found not good, by flag, re-judged ones again",
            ["flag"],
            registry=self.registry,
        )
        self.errors = Counter(
            "fieldring_analyse_errors_total",
            "Times that hours of a sensor could not be judged for a fault of ours",
            registry=self.registry,
        )
        self.leases = Gauge(
            "fieldring_analyse_leases_held", "Shards that this analyser holds", registry=self.registry
        )
        self.lag = Gauge(
            "fieldring_analyse_lag_seconds",
            "Age of the oldest arrival minute not judged for good, by shard held",
            ["shard"],
            registry=self.registry,
        )
        self.rules = Gauge(
            "fieldring_analyse_rules_info",
            "1 for the version of the rules in force",
            ["version"],
            registry=self.registry,
        )
        self.rules_broken = Gauge(
            "fieldring_analyse_rules_file_broken",
            "1 while the rules file cannot be used and the last good rules stay in force",
            registry=self.registry,
        )
