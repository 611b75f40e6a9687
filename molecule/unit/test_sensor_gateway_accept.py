"""The synthetic reading that accepts a gateway gets its secrets by stdin."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from repository import ROOT, load

ROLE = ROOT / "roles" / "sensor_gateway"
GIVEN = {
    "device": "quay-no2",
    "password": "a-device-password",
    "address": "192.0.2.31",
    "port": 8883,
    "url": "https://192.0.2.21",
    "read_token": "a-read-token",
    "timeout_seconds": "5",
}
BROKER = """
class CallbackAPIVersion:
    VERSION2 = 2

class Client:
    def __init__(self, *_, **__): pass
    def username_pw_set(self, name, password): assert (name, password) == ("quay-no2", "a-device-password")
    def tls_set(self, ca_certs): pass
    def connect(self, address, port): assert (address, port) == ("192.0.2.31", 8883)
    def loop_start(self): pass
    def publish(self, topic, payload, qos): Client.sent = payload; return self
    def wait_for_publish(self, timeout): assert timeout == 5
    def is_published(self): return True
    def disconnect(self): pass
    def loop_stop(self): pass
"""
SERVICE = """
import json, types
import paho.mqtt.client as mqtt

class RequestFailed(Exception): pass

class Client:
    def __init__(self, url, *, token, **_): assert (url, token) == ("https://192.0.2.21", "a-read-token")
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def read(self, device, **_): return [types.SimpleNamespace(value=json.loads(mqtt.Client.sent)[0]["v"])]
"""


def test_it_reads_all_from_stdin(tmp_path: Path) -> None:
    """As the role runs it, between a broker and a service that know the secrets."""
    packages = dict.fromkeys(("paho/__init__.py", "paho/mqtt/__init__.py", "fieldring/__init__.py"), "")
    for name, text in {**packages, "paho/mqtt/client.py": BROKER, "fieldring/client.py": SERVICE}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    script = (ROLE / "files" / "synthetic_reading.py").read_text()
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(GIVEN),
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"acknowledged_s", "readable_s"} == set(json.loads(done.stdout))


def test_the_role_gives_what_it_reads() -> None:
    """Under the same names, and with no_log."""
    task = load(ROLE / "tasks" / "accept.yml")[0]
    assert set(GIVEN) == set(task["vars"]["__sensor_gateway_accept"])
    assert task["no_log"] is True
    assert "environment" not in task
