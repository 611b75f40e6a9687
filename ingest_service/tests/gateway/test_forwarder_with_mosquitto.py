"""The whole forwarder with the real broker: what a device was told is kept stays kept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from fieldring.spool import Queue
from fieldring.wire import block

MOSQUITTO = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto: apt-get install mosquitto"),
]

RUN = """
import logging, os, sys
from fieldring import gateway, settings
logging.basicConfig(level="INFO")
sys.exit(gateway.run(settings.load(os.environ)))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Site:
    """A broker and a forwarder as processes of their own, and a device."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mqtt_port, self.status_port = free_port(), free_port()
        self.upstream_url = "http://127.0.0.1:1"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        broker = directory / "broker"
        broker.mkdir()
        user = "user root\n" if os.geteuid() == 0 else ""
        (directory / "mosquitto.conf").write_text(
            f"{user}listener {self.mqtt_port} 127.0.0.1\nallow_anonymous true\n"
            f"persistence true\npersistence_location {broker}/\nautosave_interval 1\n"
            "autosave_on_changes true\nmax_queued_messages 0\nmax_inflight_messages 100\n"
        )
        (directory / "client_id").write_text("fieldring-forwarder-test\n")
        (directory / "token").write_text("a-secret-token\n")

    def start_broker(self) -> None:
        self._start("broker", [str(MOSQUITTO), "-c", str(self.directory / "mosquitto.conf")], {})

    def start_forwarder(self, **settings: object) -> None:
        environment = {
            "FIELDRING_GATEWAY_NAME": "gw",
            "FIELDRING_DEVICE_LISTENER": "mosquitto",
            "FIELDRING_LISTEN_PORT": self.status_port,
            "FIELDRING_MQTT_PORT": self.mqtt_port,
            "FIELDRING_MQTT_CLIENT_ID_FILE": self.directory / "client_id",
            "FIELDRING_UPSTREAM_URLS": self.upstream_url,
            "FIELDRING_UPSTREAM_TOKEN_FILE": self.directory / "token",
            "FIELDRING_UPSTREAM_RETRY_MAX_SECONDS": 1,
            "FIELDRING_SPOOL_DIR": self.directory / "spool",
            "FIELDRING_SPOOL_SEGMENT_BYTES": 1_048_576,
            "FIELDRING_DEAD_LETTER_DIR": self.directory / "dead",
            **{f"FIELDRING_{name.upper()}": value for name, value in settings.items()},
        }
        self._start("forwarder", [sys.executable, "-c", RUN], {k: str(v) for k, v in environment.items()})

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        log = (self.directory / f"{name}.log").open("ab")
        with log:
            self.processes[name] = subprocess.Popen(
                command, env=os.environ | environment, stdout=log, stderr=log, cwd=self.directory
            )

    def end(self, name: str, number: signal.Signals) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(20)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def wait_ready(self) -> None:
        end = time.monotonic() + 20
        while not self.ready():
            assert time.monotonic() < end, self.log("forwarder") + self.log("broker")
            time.sleep(0.05)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.rpartition(" ")[2])
        return 0.0

    def spooled(self) -> set[tuple[str, int, float]]:
        """Every point in the spool of a forwarder that has ended."""
        queue = Queue(self.directory / "spool" / "forwarder", segment_bytes=1_048_576)
        try:
            return points(record.payload for record in queue.read(1 << 30))
        finally:
            queue.close()


def points(blocks: Any) -> set[tuple[str, int, float]]:
    return {
        (row.sensor, row.time_ms, value)
        for data in blocks
        for row in block.decode(data).rows()
        for value in row.values
        if isinstance(value, float)
    }


class Device:
    """Publishes at QoS 1 and remembers what was acknowledged."""

    def __init__(self, port: int, sensor: str) -> None:
        self.sensor = sensor
        self.acknowledged: set[tuple[str, int, float]] = set()
        self._sent: dict[int, tuple[str, int, float]] = {}
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=sensor)
        self._client.max_inflight_messages_set(50)
        self._client.on_publish = self._on_publish
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _on_publish(self, _client: Client, _data: Any, mid: int, _reason: Any, _properties: Any) -> None:
        if mid in self._sent:
            self.acknowledged.add(self._sent[mid])

    def publish(self, number: int) -> None:
        text = f"no2,sensor={self.sensor} value={number} {number * 1_000_000}"
        info = self._client.publish(f"sensors/{self.sensor}/lp", text, qos=1)
        self._sent[info.mid] = (self.sensor, number, float(number))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.start_broker()
    yield site
    for process in site.processes.values():
        process.kill()
        process.wait(20)


@contextlib.contextmanager
def device(site: Site, sensor: str) -> Iterator[Device]:
    end = time.monotonic() + 10
    while True:
        try:
            one = Device(site.mqtt_port, sensor)
            break
        except OSError:
            assert time.monotonic() < end, site.log("broker")
            time.sleep(0.05)
    try:
        yield one
    finally:
        one.close()


def test_from_device_to_upstream(
    site: Site, start_upstream: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    """A message arrives upstream as a block; the token stands in no log."""
    upstream = start_upstream(204)
    site.upstream_url = upstream.url
    site.start_forwarder()
    site.wait_ready()
    with device(site, "a") as a:
        a.publish(1)
        eventually(lambda: upstream.requests)
    assert points(request.body for request in upstream.requests) == {("a", 1, 1.0)}
    eventually(lambda: site.metric("fieldring_forwarder_pending_blocks") == 0)
    assert site.metric("fieldring_forwarder_messages_acknowledged_total") == 1
    assert site.end("forwarder", signal.SIGTERM) == 0
    assert "a-secret-token" not in site.log("forwarder")


def test_message_for_another_sensor(site: Site, eventually: Callable[..., None]) -> None:
    """A payload that speaks for another sensor is dropped with a letter, what follows is taken."""
    site.start_forwarder()
    site.wait_ready()
    with device(site, "a") as a:
        a._client.publish("sensors/a/lp", "no2,sensor=b value=1 1000000", qos=1)
        a.publish(2)
        eventually(lambda: site.metric("fieldring_forwarder_messages_acknowledged_total") == 2)
    site.end("forwarder", signal.SIGTERM)
    (letter,) = [
        json.loads(line) for line in (site.directory / "dead/messages.jsonl").read_text().splitlines()
    ]
    assert (letter["reason"], letter["topic"]) == ("sensor", "sensors/a/lp")
    assert site.spooled() == {("a", 2, 2.0)}


def test_forwarder_killed_while_messages_come(site: Site, eventually: Callable[..., None]) -> None:
    """kill -9 of the forwarder, three times: every acknowledged message is in the spool afterwards."""
    site.start_forwarder()
    site.wait_ready()
    with device(site, "a") as a:
        for start in range(1, 1501, 500):
            for number in range(start, start + 500):
                a.publish(number)
            eventually(
                lambda start=start: site.metric("fieldring_forwarder_messages_acknowledged_total") > 50
            )
            site.end("forwarder", signal.SIGKILL)
            site.start_forwarder()
            site.wait_ready()
        eventually(lambda: len(a.acknowledged) == 1500)
    time.sleep(1.0)
    site.end("forwarder", signal.SIGTERM)
    assert a.acknowledged - site.spooled() == set()


def test_forwarder_away_while_broker_is_killed(site: Site, eventually: Callable[..., None]) -> None:
    """What the broker holds for the forwarder's session survives kill -9 of the broker."""
    site.start_forwarder()
    site.wait_ready()
    site.end("forwarder", signal.SIGKILL)
    with device(site, "a") as a:
        for number in range(1, 301):
            a.publish(number)
        eventually(lambda: len(a.acknowledged) == 300)
    # The broker's own window: it writes its database up to a second after the last change.
    time.sleep(2.5)
    site.end("broker", signal.SIGKILL)
    site.start_broker()
    site.start_forwarder()
    site.wait_ready()
    eventually(lambda: site.metric("fieldring_forwarder_messages_acknowledged_total") >= 300)
    site.end("forwarder", signal.SIGTERM)
    assert a.acknowledged - site.spooled() == set()


def test_full_spool_leaves_messages_with_the_broker(
    site: Site, start_upstream: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    """A spool without room loses nothing: the broker keeps the messages until there is room again."""
    site.start_forwarder(spool_segment_bytes=4_194_304, spool_max_bytes=8_388_608)
    site.wait_ready()
    text = "x" * 60_000
    with device(site, "a") as a:
        for number in range(1, 161):
            line = f'note,sensor=a text="{text}",value={number} {number * 1_000_000}'
            a._client.publish("sensors/a/lp", line, qos=1)
        eventually(lambda: site.metric("fieldring_forwarder_spool_refusals_total") > 0)
        upstream = start_upstream(204)
        site.end("forwarder", signal.SIGTERM)
        site.upstream_url = upstream.url
        site.start_forwarder(spool_segment_bytes=4_194_304, spool_max_bytes=8_388_608)
        eventually(lambda: len(points(r.body for r in upstream.requests)) == 160, seconds=40)
    assert {value for _, _, value in points(r.body for r in upstream.requests)} == set(
        map(float, range(1, 161))
    )


def test_broker_away_and_back(site: Site, eventually: Callable[..., None]) -> None:
    """The forwarder says that it is not ready without its broker, and comes back by itself."""
    site.start_forwarder()
    site.wait_ready()
    site.end("broker", signal.SIGTERM)
    eventually(lambda: not site.ready())
    site.start_broker()
    site.wait_ready()


def test_second_forwarder_is_refused(site: Site) -> None:
    """Two forwarders on one spool would take the session from each other: the second one ends."""
    site.start_forwarder()
    site.wait_ready()
    first = site.processes.pop("forwarder")
    try:
        site.start_forwarder()
        assert site.processes["forwarder"].wait(20) != 0
        assert "in use by another process" in site.log("forwarder")
    finally:
        first.kill()
        first.wait(20)
