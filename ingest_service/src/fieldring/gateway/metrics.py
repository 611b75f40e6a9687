"""What the forwarder counts, in a registry of its own so that tests can have several."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

__all__ = ["Metrics"]

_PREFIX = "fieldring_forwarder"


class Metrics:
    """All series of one forwarder."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{_PREFIX}_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{_PREFIX}_{name}", text, labels, registry=registry)

        self.received = counter("messages_received", "Messages from devices, redelivered ones too")
        self.acknowledged = counter("messages_acknowledged", "Messages acknowledged to devices or the broker")
        self.redelivered = counter("messages_redelivered", "Messages that were in the spool already")
        self.retained = counter("messages_retained", "Retained copies, left out")
        self.spooled_points = counter("points_spooled", "Points made durable in the spool")
        self.spooled_blocks = counter("blocks_spooled", "Blocks made durable in the spool")
        self.spool_refusals = counter(
            "spool_refusals", "Groups of messages left with those who sent them: no room"
        )
        self.sent_blocks = counter("blocks_sent", "Blocks that an upstream has acknowledged")
        self.dead_letters = counter("dead_letters", "What could not be taken", "reason")
        self.dead_letters_lost = counter("dead_letters_not_kept", "Dead letters only counted: no room")
        self.answers = counter("upstream_answers", "Answers of each upstream", "upstream", "answer")
        self.pending_bytes = gauge("pending_bytes", "Bytes in the spool not sent yet")
        self.max_bytes = gauge("spool_max_bytes", "Room in the spool")
        self.pending_blocks = gauge("pending_blocks", "Blocks in the spool not sent yet")
        self.hours_left = gauge(
            "spool_hours_left", "How long the spool's room lasts if nothing is sent; +Inf while nothing comes"
        )
        self.oldest_age = gauge("spool_oldest_age_seconds", "Age of the oldest block that is not sent")
        self.dropped_blocks = gauge("spool_dropped_blocks", "Blocks dropped by the full-disk policy")
        self.backlog_blocks = gauge(
            "backlog_blocks", "Blocks from before the last outage or start, sent after what comes in now"
        )
        self.broker_dropped = gauge(
            "broker_messages_dropped", "Messages that the broker has dropped since its start"
        )
        self.device_connections = gauge("device_connections", "Devices that are connected over MQTT")
        self.device_logins = counter("device_logins", "Logins of devices over MQTT")
        self.device_refused = counter(
            "device_refusals", "Connections and subscriptions of devices that were refused", "reason"
        )
        self.http_answers = counter("http_answers", "Answers to devices over HTTP", "status")
        self.mqtt_up = gauge("mqtt_up", "1 while subscribed at the broker")
        self.upstream_up = gauge("upstream_up", "1 if the last try went well", "upstream")
