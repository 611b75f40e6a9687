"""The lab of this scenario as its users see it, and what is needed to hurt it: ledger, writer, docker."""

from __future__ import annotations

import csv
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[3]
STATE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "state"
LAB = os.environ["FIELDRING_LAB"]
# What lab/transport.sh sets.
MITOGEN = ("ANSIBLE_STRATEGY", "ANSIBLE_STRATEGY_PLUGINS", "FIELDRING_LAB_CONNECTION")


def endpoints() -> dict[str, str]:
    """KEY=VALUE of the lab's endpoints.env."""
    lines = (STATE / "endpoints.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def docker(*words: str, check: bool = True) -> str:
    """Output of the docker client on this machine."""
    result = subprocess.run(["docker", *words], capture_output=True, text=True, check=False, timeout=120)
    assert not check or result.returncode == 0, f"docker {' '.join(words)}: {result.stderr}"
    return result.stdout.strip()


def on_host(host: str, command: str, *, check: bool = True) -> str:
    """Output of a shell command on a host of the lab, by its short name (ring1, ingest1, ...)."""
    return docker("exec", f"{LAB}-{host}", "sh", "-c", command, check=check)


@contextmanager
def broken_link(host: str, *peers: str, percent: int = 100) -> Iterator[None]:
    """Drop packets between ``host`` (its containers too) and ``peers`` without a word, as a bad line does."""
    addresses = ", ".join(on_host(peer, "hostname -I").split()[0] for peer in peers)
    lost = "drop" if percent == 100 else f"numgen random mod 100 < {percent} drop"
    chains = "".join(
        f" chain {hook} {{ type filter hook {hook} priority -10;"
        f" ip saddr {{ {addresses} }} {lost}; ip daddr {{ {addresses} }} {lost}; }}\n"
        for hook in ("input", "output", "forward")
    )
    on_host(host, f"nft -f - <<END\ntable inet broken_link {{\n{chains}}}\nEND")
    try:
        yield
    finally:
        on_host(host, "nft delete table inet broken_link")


def playbook(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run one of our playbooks on this lab, as an operator does: by Ansible's own connections."""
    environment = {key: value for key, value in os.environ.items() if key not in MITOGEN}
    return subprocess.run(
        ["ansible-playbook", "-i", "inventories/lab", name, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={
            **environment,
            "FIELDRING_STATE_DIRECTORY": str(STATE),
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_FORCE_COLOR": "0",
        },
    )


def until(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """Wait for ``condition`` to be true, at most ``seconds``; an unreachable peer counts as not yet."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = condition()
            if last:
                return last
        except (httpx.HTTPError, OSError, AssertionError) as error:
            last = error
        time.sleep(1)
    raise AssertionError(f"not within {seconds} s: {what} (last: {last!r})")


def publish(topic: str, messages: list[str]) -> subprocess.CompletedProcess[str]:
    """Publish with mosquitto's own client as the lab's device, one message a line, at QoS 1."""
    environment = endpoints()
    command = ["mosquitto_pub", "--cafile", str(STATE / "ca.pem"), "-q", "1", "-t", topic, "-l"]
    command += ["-h", environment["FIELDRING_MQTT_HOST"], "-p", environment["FIELDRING_MQTT_PORT"]]
    command += ["-u", environment["FIELDRING_MQTT_USER"], "-P", environment["FIELDRING_MQTT_PASSWORD"]]
    return subprocess.run(
        command, input="\n".join(messages), capture_output=True, text=True, check=False, timeout=60
    )


class Platform:
    """HTTPS to one ingest host with the lab's tokens."""

    def __init__(self, *, host: int = 1) -> None:
        self.environment = endpoints()
        context = ssl.create_default_context(cafile=str(STATE / "ca.pem"))
        url = self.environment["FIELDRING_URL" if host == 1 else "FIELDRING_URL_2"]
        self.client = httpx.Client(base_url=url, verify=context, timeout=15)

    def __enter__(self) -> Platform:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def write(self, body: str, *, token: str = "FIELDRING_WRITE_TOKEN") -> httpx.Response:
        """Line protocol with times in ms, as a v2 client sends it."""
        return self.client.post(
            "/api/v2/write",
            params={"org": "o", "bucket": "b", "precision": "ms"},
            content=body,
            headers={"Authorization": f"Token {self.environment[token]}"},
        )

    def get(self, path: str, **parameters: str) -> httpx.Response:
        """A read with the lab's read token."""
        headers = {"Authorization": f"Bearer {self.environment['FIELDRING_READ_TOKEN']}"}
        return self.client.get(path, params=parameters, headers=headers, timeout=60)

    def values(self, sensor: str) -> dict[tuple[str, str], float]:
        """(time, metric) → value of everything stored of ``sensor``."""
        answer = self.get("/v1/points", sensor=sensor, format="csv", start="2001-01-01T00:00:00Z")
        assert answer.status_code in (200, 404), answer.text
        if answer.status_code == 404:
            return {}
        return {
            (row["time"], row["metric"]): float(row["value"])
            for row in csv.DictReader(answer.text.splitlines())
        }


@dataclass
class Ledger:
    """What was acknowledged; every line is fsynced before it counts."""

    path: Path
    acknowledged: dict[int, float] = field(default_factory=dict)
    refused: int = 0
    spooled: int = 0

    def summary(self) -> str:
        """One line for the log of the test."""
        return (
            f"acknowledged {len(self.acknowledged)} points, {self.spooled} of them spooled,"
            f" {self.refused} failed requests,"
        )

    def record(self, values: dict[int, float], *, spooled: bool) -> None:
        with self.path.open("a") as file:
            file.writelines(f"{time_ms} {value!r}\n" for time_ms, value in values.items())
            file.flush()
            os.fsync(file.fileno())
        self.acknowledged.update(values)
        self.spooled += spooled * len(values)


class Writer(threading.Thread):
    """Writes small requests one by one until it is stopped; only acknowledged points enter the ledger."""

    PAUSE_S = 0.05
    MOST_REQUESTS = 3_000

    def __init__(self, sensor: str, ledger: Ledger, *, host: int = 1) -> None:
        super().__init__(daemon=True)
        self.sensor, self.ledger, self.host = sensor, ledger, host
        self._stop_asked = threading.Event()
        self.longest_s = 0.0

    def run(self) -> None:
        base = int(time.time() * 1000) - 3_600_000
        with Platform(host=self.host) as platform:
            for number in range(self.MOST_REQUESTS):
                if self._stop_asked.is_set():
                    return
                values = {base + number * 10 + offset: number + offset / 10 for offset in range(5)}
                body = "\n".join(
                    f"ledger,sensor={self.sensor} value={value!r} {t}" for t, value in values.items()
                )
                started = time.monotonic()
                try:
                    answer = platform.write(body)
                except httpx.HTTPError:
                    self.ledger.refused += 1
                    time.sleep(0.3)
                    continue
                finally:
                    self.longest_s = max(self.longest_s, time.monotonic() - started)
                if answer.status_code in (202, 204):
                    self.ledger.record(
                        values, spooled=answer.headers.get("Fieldring-Durability") == "spooled"
                    )
                else:
                    self.ledger.refused += 1
                    time.sleep(0.3)
                time.sleep(self.PAUSE_S)

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(timeout=30)
        assert not self.is_alive()


def missing(ledger: Ledger, stored: dict[tuple[str, str], float]) -> list[int]:
    """Acknowledged times that are not stored with their exact value."""
    by_ms = {_epoch_ms(moment): value for (moment, _), value in stored.items()}
    return [time_ms for time_ms, value in ledger.acknowledged.items() if by_ms.get(time_ms) != value]


def _epoch_ms(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)
