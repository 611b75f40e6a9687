"""Messages a second through a gateway, and the memory it takes, against mosquitto with mosquitto_sub.

Both in one run on this machine, with the same messages at QoS 1 over loopback:

- forwarder: its own listener; a message counts when its PUBACK is here, so when it is fsynced in the spool;
- mosquitto: a message counts when mosquitto_sub has written it to a file (neither fsyncs);

Messages a second on the wall also tell how long the disk and other work on this machine let both wait; those
of a second of processor time, with the load's own beside them, are what the forwarder itself costs.

Usage: python bench/forward.py [--messages 20000] [--connections 8] [--tls]
Needs the service installed (make .venv/.test-ready) and Debian's mosquitto and mosquitto-clients.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "ingest_service" / "tests" / "gateway"))

from forwarder_process import Gateway

_WINDOW = 100
_TARGET_MESSAGES, _TARGET_MIB = 5_000, 64


def _text(value: str) -> bytes:
    return len(value).to_bytes(2, "big") + value.encode()


def _packet(head: int, body: bytes) -> bytes:
    length, size = b"", len(body)
    while True:
        size, low = size >> 7, size & 127
        length += bytes((low | 128 if size else low,))
        if not size:
            return bytes((head,)) + length + body


async def _device(port: int, name: str, count: int, context: ssl.SSLContext | None) -> None:
    """One connection that keeps a window of messages in flight until all are acknowledged."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="127.0.0.1" if context else None
    )
    login = _text(f"{name}-bench") + _text(name) + _text(f"password of {name}")
    writer.write(_packet(0x10, b"\0\4MQTT\4\xc2\0\0" + login))
    answer = await reader.readexactly(4)
    if answer[3]:
        raise SystemExit(f"{name}: login refused with {answer[3]}")
    topic = _text(f"sensors/{name}/lp")
    sent = acknowledged = 0
    while acknowledged < count:
        batch = []
        while sent < count and sent - acknowledged < _WINDOW:
            sent += 1
            time_ns = 1_600_000_000_000_000_000 + sent * 1_000_000
            payload = f"air,sensor={name} no2={sent % 100}.5,o3={sent % 80},pm25=12.25 {time_ns}"
            mid = (sent % 65_535) + 1
            batch.append(_packet(0x32, topic + mid.to_bytes(2, "big") + payload.encode()))
        writer.write(b"".join(batch))
        acknowledged += len(await reader.readexactly(4)) // 4
        while len(reader._buffer) >= 4:  # type: ignore[attr-defined]
            acknowledged += len(await reader.readexactly(len(reader._buffer) // 4 * 4)) // 4  # type: ignore[attr-defined]
    writer.close()


async def _load(
    port: int, names: list[str], messages: int, context: ssl.SSLContext | None
) -> tuple[float, float]:
    """Seconds on the wall, and of this process's own processor time."""
    began, spent = time.perf_counter(), time.process_time()
    await asyncio.gather(*(_device(port, name, messages // len(names), context) for name in names))
    return time.perf_counter() - began, time.process_time() - spent


def _peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forwarder(
    directory: Path, names: list[str], messages: int, *, tls: bool
) -> tuple[float, float, float, float]:
    """Messages a second until acknowledged, µs of CPU for each, peak memory in MiB; the load's own µs."""
    gateway = Gateway(directory, devices=tuple(names), tls=tls)
    try:
        gateway.start(spool_segment_bytes=8_388_608)
        assert gateway.process is not None
        context = gateway.context() if tls else None
        asyncio.run(_load(gateway.ports["mqtt"], names, min(messages, 2_000), context))
        before = _cpu_s(gateway.process.pid)
        seconds, load_s = asyncio.run(_load(gateway.ports["mqtt"], names, messages, context))
        cpu_us = (_cpu_s(gateway.process.pid) - before) / messages * 1e6
        return messages / seconds, cpu_us, _peak_mib(gateway.process.pid), load_s / messages * 1e6
    finally:
        gateway.close()


def mosquitto(directory: Path, names: list[str], messages: int) -> tuple[float, float, float]:
    """Messages a second until they are in the file, µs of CPU for each, peak memory; both programs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = "user root\n" if os.geteuid() == 0 else ""
    (directory / "mosquitto.conf").write_text(
        f"{user}listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n"
        "max_inflight_messages 500\nset_tcp_nodelay true\n"
    )
    program = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None or shutil.which("mosquitto_sub") is None:
        raise SystemExit("needs mosquitto and mosquitto_sub: apt-get install mosquitto mosquitto-clients")
    target = directory / "messages"
    with target.open("wb") as file:
        broker = subprocess.Popen(
            [program, "-c", str(directory / "mosquitto.conf")], stderr=subprocess.DEVNULL
        )
        subscriber = None
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.05)
            subscriber = subprocess.Popen(
                [
                    "mosquitto_sub",
                    "-h",
                    "127.0.0.1",
                    "-p",
                    str(port),
                    "-q",
                    "1",
                    "-t",
                    "sensors/#",
                    "-c",
                    "-i",
                    "s",
                ],
                stdout=file,
            )
            time.sleep(1)
            began = time.perf_counter()
            asyncio.run(_load(port, names, messages, None))
            lines = 0
            with target.open("rb") as written:
                while lines < messages:
                    part = written.read()
                    lines += part.count(b"\n")
                    if not part:
                        if time.perf_counter() - began > 120:
                            print(f"mosquitto_sub has {lines} of {messages} after 120 s", file=sys.stderr)
                            break
                        time.sleep(0.01)
            seconds = time.perf_counter() - began
            pids = (broker.pid, subscriber.pid)
            cpu_us = sum(map(_cpu_s, pids)) / messages * 1e6
            return lines / seconds, cpu_us, sum(map(_peak_mib, pids))
        finally:
            for process in (subscriber, broker):
                if process is not None:
                    process.kill()
                    process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--tls", action="store_true", help="devices of the forwarder connect over TLS")
    options = parser.parse_args()
    names = [f"device{number}" for number in range(options.connections)]
    messages = options.messages // len(names) * len(names)
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        ours, our_us, our_mib, load_us = forwarder(directory, names, messages, tls=options.tls)
        theirs, their_us, their_mib = mosquitto(directory, names, messages)
    print("| gateway | messages/s | messages/core-second | µs of CPU a message | peak MiB |")
    print("|---|---|---|---|---|")
    print(
        f"| forwarder{' (TLS)' if options.tls else ''}, fsynced before PUBACK "
        f"| {ours:,.0f} | {1e6 / our_us:,.0f} | {our_us:.0f} | {our_mib:.0f} |"
    )
    print(
        "| mosquitto + mosquitto_sub to a file, nothing fsynced "
        f"| {theirs:,.0f} | {1e6 / their_us:,.0f} | {their_us:.0f} | {their_mib:.0f} |"
    )
    print(f"the load itself took {load_us:.0f} µs of CPU a message")
    print(f"ratio {ours / theirs:.2f}; target {_TARGET_MESSAGES:,} messages/s within {_TARGET_MIB} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
