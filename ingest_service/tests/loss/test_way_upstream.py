"""From devices through a gateway to an ingest host's store, while something on that way fails.

Both processes are real, and TLS is between them. Every acknowledged message has to be in the store with
its value in the end, and what failed must be told apart from a verdict: nothing goes to the dead letters.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forwarder_process import Gateway
from ledger import Ledger, Publisher, read
from tls_proxy import TlsProxy, make_authority

from fieldring.store.sqlite import SqliteStore
from processes import Process, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]

DEVICES = ("a", "b", "c")
LEDGER = Path(__file__).with_name("ledger.py")
NAME = "ingest.test"
RATE, SECONDS = 1_000, 6
SILENT_RESOLVER = "127.0.0.153"
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


class Way:
    """A gateway, an ingest host with its balancer, and what was acknowledged on the way in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("host", "gateway"):
            (directory / name).mkdir()
        self.receive = Process("receive", directory / "host", retention_days=36_500)
        self.tokens = directory / "host" / "tokens.json"
        self.known_tokens = json.loads(self.tokens.read_text())
        self.gateway = Gateway(directory / "gateway", devices=DEVICES)
        self.allow("a-secret-token")
        self.authority = make_authority(directory / "ours.pem", f"DNS:{NAME}", "IP:127.0.0.1")
        self.receive.start()
        self.proxy = TlsProxy(self.receive.port, self.authority)
        self.settings: dict[str, object] = {
            "upstream_urls": f"https://127.0.0.1:{self.proxy.port}",
            "upstream_ca_file": self.authority,
        }

    def allow(self, token: str) -> None:
        """The only token that the gateway's blocks are taken with."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        gateway = {"id": "gw", "sha256": digest, "roles": ["write"], "gateway": "gw"}
        new = self.tokens.with_suffix(".new")
        new.write_text(json.dumps([*self.known_tokens, gateway]))
        new.rename(self.tokens)

    def upstream_is(self, state: float) -> bool:
        lines = self.gateway.fetch("/metrics").splitlines()
        found = [line for line in lines if line.startswith("fieldring_forwarder_upstream_up{")]
        return [float(line.split()[-1]) for line in found] == [state]

    @contextmanager
    def feed(self) -> Iterator[None]:
        """Devices that publish during the block and until the time is over; checked against the store."""
        command = [sys.executable, str(LEDGER), str(self.gateway.ports["mqtt"])]
        command += [str(self.gateway.directory / "ca.pem"), str(self.directory / "ledger")]
        process = subprocess.Popen(
            [*command, ",".join(DEVICES), str(RATE), str(SECONDS)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            yield
            sent, acknowledged = process.communicate(timeout=120)[0].split()
        finally:
            process.kill()
            process.wait()
        assert sent == acknowledged
        wait_until(lambda: self.gateway.metric("pending_blocks") == 0, seconds=90)
        self.check(int(sent))

    def check(self, sent: int) -> None:
        acknowledged, stored = read(self.directory / "ledger"), self.stored()
        lost = acknowledged - stored
        print(f"sent {sent}, acknowledged {len(acknowledged)}, found {len(stored)}, lost {len(lost)}")
        assert len(acknowledged) == sent
        assert lost == set()
        assert self.gateway.dead_letters() == []
        assert not (self.gateway.directory / "dead" / "blocks.jsonl").exists()

    def stored(self) -> set[tuple[str, int]]:
        found = set()
        for path in (self.directory / "host").glob("*.sqlite"):
            store = SqliteStore(path)
            for device in DEVICES:
                points = store.points(device, start_ms=0, end_ms=2**50)
                found |= {(device, point.time_ms) for point in points if point.value == point.time_ms}
            store.close()
        return found

    def close(self) -> None:
        self.gateway.close()
        self.proxy.close()
        if self.receive.process is not None and self.receive.process.poll() is None:
            self.receive.stop(signal.SIGKILL)


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    made = Way(tmp_path)
    yield made
    made.close()


def test_certificate_of_another_authority(way: Way) -> None:
    """As after its authority was withdrawn, or with somebody in between: not one byte is told to it."""
    way.gateway.start(**way.settings)
    with way.feed():
        time.sleep(1)
        stranger = make_authority(way.directory / "stranger.pem", f"DNS:{NAME}", "IP:127.0.0.1")
        way.proxy.present(stranger)
        way.proxy.cut()
        wait_until(lambda: way.upstream_is(0))
        told = way.proxy.received
        time.sleep(3)
        assert way.proxy.received == told
        assert way.gateway.metric("pending_blocks") > 0
        assert "certificate verify failed" in way.gateway.log()
        way.proxy.present(way.authority)


def test_token_that_is_withdrawn(way: Way) -> None:
    """401 is no verdict on a block: it waits, and goes out with the new token without a restart."""
    way.gateway.start(**way.settings)
    with way.feed():
        time.sleep(1)
        way.allow("another-secret-token")
        wait_until(lambda: way.upstream_is(0))
        assert "answered 401" in way.gateway.log()
        time.sleep(2)
        (way.gateway.directory / "token").write_text("another-secret-token\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="names and resolvers of its own need a mount namespace")
def test_name_that_no_server_resolves(way: Way) -> None:
    """The resolver is silent for a while, as behind a dead link; devices notice nothing."""
    hosts, resolver = way.directory / "hosts", way.directory / "resolv.conf"
    known = f"127.0.0.1 localhost\n127.0.0.1 {NAME}\n"
    hosts.write_text(known)
    resolver.write_text(f"nameserver {SILENT_RESOLVER}\noptions timeout:1 attempts:1\n")
    mounts = 'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@"'
    way.gateway.before = ["unshare", "--mount", "sh", "-c", mounts, "sh", str(hosts), str(resolver)]
    if subprocess.run([*way.gateway.before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((SILENT_RESOLVER, 53))
        way.gateway.start(**{**way.settings, "upstream_urls": f"https://{NAME}:{way.proxy.port}"})
        with way.feed():
            wait_until(lambda: way.upstream_is(1))
            # The same file, as it is mounted.
            hosts.write_text("127.0.0.1 localhost\n")
            way.proxy.cut()
            wait_until(lambda: "gaierror" in way.gateway.log())
            assert silent.recv(512), "the resolver was asked"
            time.sleep(2)
            hosts.write_text(known)


@pytest.mark.skipif(FAKETIME is None, reason="needs faketime")
def test_clocks_that_jump(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day ahead, two days back, and right again, on the gateway and on the ingest host in turn."""
    clocks = {name: way.directory / f"clock-{name}" for name in ("host", "gateway")}
    for clock in clocks.values():
        clock.write_text("+0")
    faked = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    way.receive.stop()
    way.receive.environment |= {**faked, "FAKETIME_TIMESTAMP_FILE": str(clocks["host"])}
    way.receive.start()
    with monkeypatch.context() as environment:
        for name, value in {**faked, "FAKETIME_TIMESTAMP_FILE": str(clocks["gateway"])}.items():
            environment.setenv(name, value)
        way.gateway.start(**way.settings)

    def clock_of_host() -> float:
        # The Date of an answer, to the second.
        from email.utils import parsedate_to_datetime

        import httpx

        told = httpx.get(way.receive.url + "/ping").headers["date"]
        return parsedate_to_datetime(told).timestamp() - time.time()

    with way.feed():
        for offset in (86_400, -172_800, 0):
            for name, clock in clocks.items():
                clock.write_text(f"{offset:+d}")
                time.sleep(1)
                if name == "host":
                    wait_until(lambda offset=offset: abs(clock_of_host() - offset) < 60)  # type: ignore[misc]


def test_three_days_of_backlog(way: Way) -> None:
    """Readings of 72 h every ten seconds, then kill -9; what is measured now arrives before all that."""
    way.gateway.start(**{**way.settings, "upstream_urls": "https://127.0.0.1:1"})
    ledger = Ledger(way.directory / "ledger")
    begin = 1_000_000_000_000
    publishers = {
        name: Publisher(name, way.gateway.ports["mqtt"], ca=way.gateway.directory / "ca.pem", ledger=ledger)
        for name in DEVICES
    }
    expected: set[tuple[str, int]] = set()
    for hour in range(72):
        for name, publisher in publishers.items():
            times = [begin + hour * 3_600_000 + reading * 10_000 for reading in range(360)]
            expected |= {(name, t) for t in times}
            publisher.publish(
                times[0], "\n".join(f"no2,sensor={name} value={t} {t * 1_000_000}" for t in times)
            )
    wait_until(lambda: not any(publisher.waiting for publisher in publishers.values()), seconds=60)
    way.gateway.end(signal.SIGKILL)
    way.gateway.start(**{**way.settings, "upstream_backlog_bytes_per_second": 150_000})
    now = begin + 80 * 3_600_000
    publishers["a"].publish(now)
    seen_with: list[int] = []

    def arrived() -> bool:
        found = way.stored()
        if ("a", now) in found and not seen_with:
            seen_with.append(len(found & expected))
        return expected <= found

    wait_until(arrived, seconds=120)
    for publisher in publishers.values():
        wait_until(lambda one=publisher: not one.waiting)  # type: ignore[misc]
        publisher.close()
    ledger.close()
    print(f"readings of 72 h: {len(expected)}; the new one came with {seen_with[0]} of them")
    assert seen_with[0] < len(expected) / 2
    assert way.stored() >= expected | {("a", now)}
    assert way.gateway.dead_letters() == []


def test_an_upstream_that_takes_for_ever(way: Way) -> None:
    """It takes connections and says nothing (its process is stopped): the gateway goes to the other one."""
    # A store of its own: in a ring the two hosts do not wait for each other.
    other = Process(
        "receive",
        way.directory / "host",
        retention_days=36_500,
        sqlite_path=way.directory / "host" / "other.sqlite",
        spool_dir=way.directory / "host" / "other-spool",
    )
    way.allow("a-secret-token")
    other.start()
    second = TlsProxy(other.port, way.authority)
    urls = f"https://127.0.0.1:{way.proxy.port},https://127.0.0.1:{second.port}"
    way.gateway.start(**{**way.settings, "upstream_urls": urls, "upstream_timeout_seconds": 2})
    receive = way.receive.process
    assert receive is not None
    try:
        with way.feed():
            time.sleep(1)
            receive.send_signal(signal.SIGSTOP)
            before = second.received
            wait_until(lambda: second.received > before + 10_000)
            receive.send_signal(signal.SIGCONT)
    finally:
        receive.send_signal(signal.SIGCONT)
        second.close()
        other.stop(signal.SIGKILL)
