"""The power goes while data come in: what was acknowledged is on the disk, not merely with the kernel.

kill -9 leaves what a process wrote with the kernel, which writes it out in the end. Here ext4 is shut down
without its journal being flushed, so that everything that nobody has fsynced is gone, as after a power cut.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from forwarder_process import Gateway
from ledger import read

from fieldring.store.sqlite import SqliteStore
from processes import Process, free_port

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk of its own needs root"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]

# EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH, of the kernel's fs/ext4/ext4.h.
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
T = 1_700_000_000_000
LEDGER = Path(__file__).with_name("ledger.py")


class Disk:
    """An ext4 file system on a file, mounted at ``path``."""

    def __init__(self, directory: Path) -> None:
        self._image = directory / "disk.img"
        self.path = directory / "disk"
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(96 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", str(self._image)], check=True)

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.path)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)

    def cut_power(self) -> None:
        """Nothing is written from here on. A file that nobody fsynced shows that this is no clean end."""
        (self.path / "not-fsynced").write_bytes(b"lost" * 1_000)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def restore_power(self) -> None:
        self.unmount()
        self.mount()
        control = self.path / "not-fsynced"
        assert not control.exists() or control.read_bytes() != b"lost" * 1_000, "the cut lost nothing"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    try:
        disk.mount()
    except subprocess.CalledProcessError:
        pytest.skip("this root may not mount")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.path)], capture_output=True, check=False)


class Writers:
    """Four clients that write numbers until one is not acknowledged."""

    def __init__(self, url: str) -> None:
        self.acknowledged: set[tuple[str, int]] = set()
        self.refusals: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(url, f"s{n}")) for n in range(4)]
        for thread in self._threads:
            thread.start()

    def _run(self, url: str, sensor: str) -> None:
        with httpx.Client(base_url=url, headers={"Authorization": "Token write"}, timeout=20) as http:
            for number in itertools.count():
                body = f"m,sensor={sensor} value={number} {T + number}"
                try:
                    answer = http.post("/api/v2/write?precision=ms", content=body)
                except httpx.HTTPError as error:
                    self.refusals.append(type(error).__name__)
                    return
                if answer.status_code not in (202, 204):
                    self.refusals.append(str(answer.status_code))
                    return
                self.acknowledged.add((sensor, number))

    def join(self) -> None:
        for thread in self._threads:
            thread.join(40)
            assert not thread.is_alive()


def stored(path: Path) -> set[tuple[str, int]]:
    """(sensor, number) of all points with their right value."""
    store = SqliteStore(path)
    found = {
        (point.sensor, int(point.value))
        for sensor in ("s0", "s1", "s2", "s3")
        for point in store.points(sensor, start_ms=0, end_ms=2**50)
        if point.value == point.time_ms - T
    }
    store.close()
    return found


def test_gateway_loses_no_acknowledged_message(tmp_path: Path, disk: Disk) -> None:
    """2,000 messages a second over MQTT when the disk goes."""
    devices = ("a", "b", "c")
    gateway = Gateway(tmp_path, devices=devices)
    ledger = tmp_path / "ledger"
    publisher: subprocess.Popen[str] | None = None
    try:
        gateway.start(spool_dir=disk.path)
        command = [
            sys.executable,
            str(LEDGER),
            str(gateway.ports["mqtt"]),
            str(tmp_path / "ca.pem"),
            str(ledger),
        ]
        publisher = subprocess.Popen(
            [*command, ",".join(devices), "2000", "30"], stdout=subprocess.PIPE, text=True
        )
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "connected\n"
        time.sleep(3)
        disk.cut_power()
        time.sleep(1)
        publisher.kill()
        publisher.wait()
        gateway.end(signal.SIGKILL)
        disk.restore_power()
        (tmp_path / "spool").symlink_to(disk.path)
        found = {(sensor, time_ms) for sensor, time_ms, value in gateway.spooled() if value == time_ms}
        acknowledged = read(ledger)
        print(f"acknowledged {len(acknowledged)}, found {len(found)}, lost {len(acknowledged - found)}")
        assert len(acknowledged) > 100
        assert acknowledged - found == set()
    finally:
        if publisher is not None:
            publisher.kill()
            publisher.wait()
        gateway.close()


def acknowledged_until_the_cut(receive: Process, disk: Disk) -> Writers:
    """Write, cut the power, see that nothing is acknowledged any more, and bring the disk back."""
    receive.start()
    try:
        writers = Writers(receive.url)
        time.sleep(3)
        disk.cut_power()
        writers.join()
    finally:
        receive.stop(signal.SIGKILL)
    disk.restore_power()
    assert len(writers.refusals) == 4, "a dead disk was acknowledged"
    assert len(writers.acknowledged) > 20
    return writers


def judge(writers: Writers, found: set[tuple[str, int]]) -> None:
    """Print the figures; nothing acknowledged is missing."""
    lost = writers.acknowledged - found
    print(f"acknowledged {len(writers.acknowledged)}, found {len(found)}, lost {len(lost)}")
    assert lost == set()


def test_embedded_store_loses_no_acknowledged_point(tmp_path: Path, disk: Disk) -> None:
    """204 of ``receive`` with SQLite."""
    path = disk.path / "store.sqlite"
    receive = Process("receive", tmp_path, sqlite_path=path, spool_dir=disk.path / "spool")
    judge(acknowledged_until_the_cut(receive, disk), stored(path))


def test_spool_of_an_ingest_host_loses_no_acknowledged_point(tmp_path: Path, disk: Disk) -> None:
    """202 of ``receive`` while the ring is away; ``drain`` finds all of it afterwards."""
    (tmp_path / "password").write_text("any")
    receive = Process(
        "receive",
        tmp_path,
        spool_dir=disk.path / "spool",
        store="cassandra",
        cassandra_hosts="127.0.0.1",
        cassandra_port=free_port(),
        cassandra_username="fieldring_ingest",
        cassandra_password_file=tmp_path / "password",
    )
    writers = acknowledged_until_the_cut(receive, disk)
    environment = {**receive.environment, "FIELDRING_STORE": "sqlite"}
    command = [sys.executable, "-m", "fieldring", "drain"]
    subprocess.run(command, env=environment, check=True, timeout=60, cwd=tmp_path)
    judge(writers, stored(tmp_path / "store.sqlite"))
