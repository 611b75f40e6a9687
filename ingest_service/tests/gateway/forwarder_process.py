"""A forwarder as a process of its own with its own listeners, and what tests of it share."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from fieldring.spool import Queue
from fieldring.wire import block

Point = tuple[str, int, float]

RUN = """
import logging, os, sys
from fieldring import gateway, settings
logging.basicConfig(level="INFO")
sys.exit(gateway.run(settings.load(os.environ)))
"""


def account(name: str, password: str, *, iterations: int = 101) -> str:
    """A line of the password file."""
    salt = os.urandom(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations, 64)
    return f"{name}:$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


def make_certificate(path: Path, name: str = "gateway") -> None:
    """A key and a certificate that signs itself, in one file, put in its place at once."""
    temporary = path.with_suffix(".new")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", f"{temporary}", "-out", f"{temporary}.crt",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    certificate = Path(f"{temporary}.crt").read_text()
    (path.parent / "ca.pem").write_text(certificate)
    temporary.write_text(temporary.read_text() + certificate)
    temporary.rename(path)


def points(blocks: Any) -> set[Point]:
    return {
        (row.sensor, row.time_ms, value)
        for data in blocks
        for row in block.decode(data).rows()
        for value in row.values
        if isinstance(value, float)
    }


class Gateway:
    """Its ports are chosen by the kernel and read from the log, so that tests never meet on one."""

    def __init__(
        self, directory: Path, *, devices: tuple[str, ...] = ("a", "b", "c"), tls: bool = True
    ) -> None:
        self.directory = directory
        self.upstream_url = "http://127.0.0.1:1"
        self.process: subprocess.Popen[bytes] | None = None
        self.ports: dict[str, int] = {}
        self.tls = tls
        self.before: list[str] = []
        """A program and its arguments that start the forwarder."""
        (directory / "token").write_text("a-secret-token\n")
        self.set_passwords({name: f"password of {name}" for name in devices})
        if tls:
            make_certificate(directory / "host.pem")

    def set_passwords(self, passwords: dict[str, str]) -> None:
        path = self.directory / "passwords"
        text = "".join(account(name, password) for name, password in passwords.items())
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").rename(path)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.directory / "ca.pem"))

    def start(self, **settings: object) -> None:
        environment = {
            "FIELDRING_GATEWAY_NAME": "gw",
            "FIELDRING_LISTEN_PORT": 0,
            "FIELDRING_DEVICE_MQTT_HOST": "127.0.0.1",
            "FIELDRING_DEVICE_HTTP_HOST": "127.0.0.1",
            # Chosen once, so that clients find a restarted forwarder again.
            "FIELDRING_DEVICE_MQTT_PORT": self.ports.get("mqtt", -1),
            "FIELDRING_DEVICE_HTTP_PORT": self.ports.get("http", -1),
            "FIELDRING_DEVICE_CERTIFICATE_FILE": self.directory / "host.pem" if self.tls else "",
            "FIELDRING_DEVICE_PASSWORDS_FILE": self.directory / "passwords",
            "FIELDRING_UPSTREAM_URLS": self.upstream_url,
            "FIELDRING_UPSTREAM_TOKEN_FILE": self.directory / "token",
            "FIELDRING_UPSTREAM_RETRY_MAX_SECONDS": 1,
            "FIELDRING_SPOOL_DIR": self.directory / "spool",
            "FIELDRING_SPOOL_SEGMENT_BYTES": 1_048_576,
            "FIELDRING_DEAD_LETTER_DIR": self.directory / "dead",
            **{f"FIELDRING_{name.upper()}": value for name, value in settings.items()},
        }
        offset = len(self.log())
        with (self.directory / "forwarder.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.before, sys.executable, "-c", RUN],
                env=os.environ | {name: str(value) for name, value in environment.items()},
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )
        end = time.monotonic() + 60
        while "ready for devices" not in (text := self.log()[offset:]):
            assert self.process.poll() is None, text
            assert time.monotonic() < end, text
            time.sleep(0.02)
        for line in text.splitlines():
            if "devices may connect to" in line:
                address, kind = line.rsplit(" ", 2)[1:]
                self.ports[kind.strip("()")] = int(address.rpartition(":")[2])
            if "status on" in line:
                self.ports["status"] = int(line.rpartition(":")[2])

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(number)
        return process.wait(30)

    def log(self) -> str:
        path = self.directory / "forwarder.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def fetch(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['status']}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def metric(self, name: str) -> float:
        for line in self.fetch("/metrics").splitlines():
            if line.startswith(f"fieldring_forwarder_{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def spooled(self) -> set[Point]:
        """Every point in the spool of a forwarder that has ended."""
        queue = Queue(self.directory / "spool" / "forwarder", segment_bytes=1_048_576)
        try:
            return points(record.payload for record in queue.read(1 << 30))
        finally:
            queue.close()

    def dead_letters(self) -> list[dict[str, Any]]:
        path = self.directory / "dead" / "messages.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
