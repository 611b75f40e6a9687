"""More than a process can take: huge bodies, bombs, three times what the store takes, refused logins."""

from __future__ import annotations

import gzip
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fieldring.store.sqlite import SqliteStore
from processes import Process, wait_until

T = 1_700_000_000_000
HERE = Path(__file__).parent

pytestmark = pytest.mark.integration


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def make(**settings: Any) -> Process:
        made.append(Process("receive", tmp_path, **settings))
        made[-1].start()
        return made[-1]

    yield make
    for process in made:
        if process.process is not None and process.process.poll() is None:
            process.process.kill()
            process.process.wait(10)


def sent(process: Process, *, head: str, parts: Iterator[bytes]) -> bytes:
    """The answer to a request that is sent for as long as the service listens."""
    with socket.create_connection(("127.0.0.1", process.port), timeout=30) as client:
        client.sendall(
            b"POST /write HTTP/1.1\r\nHost: x\r\nAuthorization: Token write\r\n" + head.encode() + b"\r\n"
        )
        try:
            for part in parts:
                client.sendall(part)
        except OSError:
            pass
        answer = b""
        try:
            while part := client.recv(4096):
                answer += part
                if b"\r\n\r\n" in answer:
                    break
        except OSError:
            pass
        return answer


def test_a_hundred_mebibytes_and_a_bomb(start: Callable[..., Process]) -> None:
    """413, whether the length is told, found out on the way or hidden by gzip; memory stays where it was."""
    process = start(body_max_bytes=8 * 2**20, body_unpacked_max_bytes=32 * 2**20)
    before = process.memory_mib
    mebibyte = b"#" * 2**20
    told = sent(process, head=f"Content-Length: {100 * 2**20}\r\n", parts=(mebibyte for _ in range(100)))
    assert told.startswith(b"HTTP/1.1 413 "), told
    chunk = b"100000\r\n" + mebibyte + b"\r\n"
    found_out = sent(process, head="Transfer-Encoding: chunked\r\n", parts=(chunk for _ in range(100)))
    # The service may close while we still send; then there is nothing left to read.
    assert found_out == b"" or found_out.startswith(b"HTTP/1.1 413 "), found_out
    bomb = gzip.compress(b"#" * (200 * 2**20), 1)
    hidden = sent(
        process,
        head=f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n",
        parts=iter([bomb]),
    )
    assert hidden.startswith(b"HTTP/1.1 413 "), hidden
    assert process.memory_mib < before + 96
    answer = httpx.post(
        process.url + "/write", content="m,sensor=a v=1", headers={"Authorization": "Token write"}
    )
    assert 204 == answer.status_code


class Client(threading.Thread):
    """Writes as fast as it is let until so many points are acknowledged, and remembers which."""

    def __init__(self, url: str, number: int, *, points: int) -> None:
        super().__init__()
        self.url, self.sensor, self.points = url, f"s{number}", points
        self.deadline = time.monotonic() + 90
        self.acknowledged: list[int] = []
        self.seconds: list[float] = []
        self.refused = 0
        self.others: list[httpx.Response] = []

    def run(self) -> None:
        with httpx.Client(timeout=60, verify=False, headers={"Authorization": "Token write"}) as http:
            number = 0
            while number < self.points and time.monotonic() < self.deadline:
                began = time.monotonic()
                answer = http.post(
                    f"{self.url}/api/v2/write?precision=ms",
                    content=f"m,sensor={self.sensor} v={number} {T + number}",
                )
                if answer.status_code in (202, 204):
                    self.acknowledged.append(number)
                    self.seconds.append(time.monotonic() - began)
                    number += 1
                elif answer.status_code in (429, 503) and int(answer.headers["retry-after"]) >= 1:
                    self.refused += 1
                    time.sleep(0.05)
                else:
                    self.others.append(answer)


def test_three_times_what_the_store_takes(
    start: Callable[..., Process], capsys: pytest.CaptureFixture[str]
) -> None:
    """Refusals are visible, memory is flat, what was acknowledged is there, and it ends with the load."""
    process = start(
        script=HERE / "delaying_receive.py", test_delay_ms=10, receive_threads=4, receive_queue_max=8
    )
    # Twelve may be under way at once, and 36 want to.
    clients = [Client(process.url, n, points=6) for n in range(36)]
    for client in clients:
        client.start()
    wait_until(lambda: sum(len(client.acknowledged) for client in clients) > 50, seconds=60)
    early = process.memory_mib
    for client in clients:
        client.join(100)
    late = process.memory_mib
    assert not [client.others for client in clients if client.others]
    refused = sum(client.refused for client in clients)
    seconds = sorted(s for client in clients for s in client.seconds)
    p99 = seconds[int(len(seconds) * 0.99)]
    with capsys.disabled():
        print(
            f"\noverload: {len(seconds)} acknowledged, {refused} refused, p99 {p99 * 1000:.0f} ms, "
            f"{early} MiB, then {late} MiB"
        )
    assert refused > 0
    assert 36 * 6 == len(seconds)
    assert late < early + 48
    answer = httpx.post(
        process.url + "/write", content="m,sensor=a v=1", headers={"Authorization": "Token write"}
    )
    assert (204, "stored") == (answer.status_code, answer.headers["fieldring-durability"])
    assert 0 == process.stop()
    store = SqliteStore(process.directory / "store.sqlite")
    for client in clients:
        found = {int(p.value) for p in store.points(client.sensor, start_ms=0, end_ms=2**50)}
        assert set() == set(client.acknowledged) - found
    store.close()


class HalfDeadRing(threading.Thread):
    """Speaks enough CQL (v4) to refuse every login, as a node does that lacks the replicas of system_auth."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.logins = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._speak, args=(connection,), daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _speak(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while len(head := stream.read(9)) == 9:
                version, _, stream_id, opcode, length = struct.unpack(">BBhBI", head)
                stream.read(length)
                if version > 4:
                    answer, body = 0, _error(0x000A, "Invalid or unsupported protocol version")
                elif opcode == 5:
                    answer, body = 6, SUPPORTED
                elif opcode == 1:
                    answer, body = 3, _string("org.apache.cassandra.auth.PasswordAuthenticator")
                else:
                    self.logins += opcode == 15
                    answer, body = (
                        0,
                        _error(0x0100, "Provided username fieldring and/or password are incorrect"),
                    )
                connection.sendall(struct.pack(">BBhBI", 0x84, 0, stream_id, answer, len(body)) + body)


def _string(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode()


def _error(code: int, text: str) -> bytes:
    return struct.pack(">i", code) + _string(text)


SUPPORTED = (
    struct.pack(">H", 2)
    + (_string("CQL_VERSION") + struct.pack(">H", 1) + _string("3.4.7"))
    + (_string("COMPRESSION") + struct.pack(">H", 0))
)


def test_login_refused_by_a_half_dead_ring(start: Callable[..., Process], tmp_path: Path) -> None:
    """It starts, is ready, spools with 202 in every format, and goes on trying to log in."""
    ring = HalfDeadRing()
    ring.start()
    (tmp_path / "password").write_text("any")
    process = start(
        store="cassandra",
        cassandra_hosts="127.0.0.1",
        cassandra_port=ring.port,
        cassandra_username="fieldring",
        cassandra_password_file=tmp_path / "password",
    )
    for number in range(20):
        answer = httpx.post(
            process.url + "/api/v2/write?precision=ms",
            content=f"m,sensor=a value={number} {T + number}",
            headers={"Authorization": "Token write"},
            timeout=30,
        )
        assert (202, "spooled") == (answer.status_code, answer.headers["fieldring-durability"])
    assert "spooled" == httpx.get(process.url + "/ready").json()["durability"]
    deadline = time.monotonic() + 90
    while ring.logins < 3:
        assert time.monotonic() < deadline, process.log
        time.sleep(0.1)
    assert process.process is not None
    assert process.process.poll() is None
    assert 0 == process.stop()
    ring.close()
