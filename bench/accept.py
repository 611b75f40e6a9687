"""Durable accept over HTTP, server on one core, load on another: ours against influxd and victoria-metrics.

    python bench/accept.py

Ours is the real `fieldring receive` whose ring cannot be reached, so that every request is decoded, checked,
and fsynced in the spool before its answer. The others are Debian's packages with their defaults, started here
on loopback under the same pinning: influxd fsyncs its log before it answers, victoria-metrics answers first.
The load is wrk with bodies made beforehand; a run counts only if every answer was 2xx, and for ours if the
service counted as many points as were acknowledged.

Points a second are what a machine of its own gives. Points per second of the server's processor time are what
is left of that figure where others use the machine too: on a quiet one the two agree, as the core is busy.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workload import bodies, rate, table

CONNECTIONS = 16
TOKEN = "bench"

_SCRIPT = """
local bodies, place = {}, 0
function init(args)
  local headers = {["Authorization"] = "Token bench", ["Host"] = "bench"}
  for name in io.lines(args[1]) do
    local file = io.open(name, "rb")
    bodies[#bodies + 1] = wrk.format("POST", args[2], headers, file:read("*a"))
    file:close()
  end
end
function request()
  place = place % #bodies + 1
  return bodies[place]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"requests": %d, "us": %d, "p99_us": %d, "bad": %d}\\n', summary.requests,
    summary.duration, latency:percentile(99), e.status + e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True)
class Server:
    name: str
    command: list[str]
    environment: dict[str, str]
    port: int
    path: str
    ready: str


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def ours(folder: Path) -> Server:
    port = free_port()
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    (folder / "tokens.json").write_text(
        json.dumps([{"id": "b", "sha256": digest, "roles": ["write", "read"]}])
    )
    settings = {
        "store": "cassandra",
        "cassandra_hosts": "127.0.0.1",
        "cassandra_port": free_port(),  # nobody listens there
        "spool_dir": folder / "spool",
        "spool_max_bytes": 1 << 32,
        "tokens_file": folder / "tokens.json",
        "listen_port": port,
        "log_level": "error",
    }
    environment = {f"FIELDRING_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "fieldring", "receive"]
    return Server("fieldring receive", command, environment, port, "/write?db=bench", "/ping")


def influxdb(folder: Path) -> Server:
    port = free_port()
    environment = {
        "INFLUXDB_REPORTING_DISABLED": "true",
        "INFLUXDB_BIND_ADDRESS": f"127.0.0.1:{free_port()}",
        "INFLUXDB_HTTP_BIND_ADDRESS": f"127.0.0.1:{port}",
        "INFLUXDB_HTTP_LOG_ENABLED": "false",
        "INFLUXDB_META_DIR": str(folder / "meta"),
        "INFLUXDB_DATA_DIR": str(folder / "data"),
        "INFLUXDB_DATA_WAL_DIR": str(folder / "wal"),
        "INFLUXDB_MONITOR_STORE_ENABLED": "false",
    }
    return Server("InfluxDB", ["influxd"], environment, port, "/write?db=bench", "/ping")


def victoria(folder: Path) -> Server:
    port = free_port()
    program = next(name for name in VICTORIA if shutil.which(name))
    command = [program, f"-httpListenAddr=127.0.0.1:{port}", f"-storageDataPath={folder / 'vm'}"]
    return Server("VictoriaMetrics", command, {}, port, "/write?db=bench", "/health")


VICTORIA = ("victoria-metrics", "victoria-metrics-prod")


def missing() -> dict[str, str]:
    """Contestants that cannot run here, and why."""
    found = {}
    if not shutil.which("influxd"):
        found["InfluxDB"] = "influxd is not installed (Debian: influxdb)"
    if not any(map(shutil.which, VICTORIA)):
        found["VictoriaMetrics"] = "victoria-metrics is not installed (Debian: victoria-metrics)"
    return found


def ask(url: str, *, data: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, data=data, headers={"Authorization": f"Token {TOKEN}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        body: bytes = answer.read()
        return body


@contextlib.contextmanager
def running(server: Server, folder: Path, core: int) -> Iterator[int]:
    """The server's process id, while it runs."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *server.command],
            env={**os.environ, "GOMAXPROCS": "1", **server.environment},
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                ask(f"http://127.0.0.1:{server.port}{server.ready}")
                break
            except (OSError, urllib.error.URLError):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{server.name} does not start:\n{(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.1)
        if server.name == "InfluxDB":
            ask(f"http://127.0.0.1:{server.port}/query?q=CREATE+DATABASE+bench", data=b"")
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def load(server: Server, script: Path, listing: Path, *, core: int, seconds: float) -> dict[str, int]:
    command = [
        "taskset",
        "-c",
        str(core),
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{seconds:g}s",
        "--timeout",
        "20s",
    ]
    command += ["-s", str(script), f"http://127.0.0.1:{server.port}", "--", str(listing), server.path]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(result.stdout.strip().splitlines()[-1])
    if found["bad"]:
        sys.exit(f"{server.name}: {found['bad']} answers were not 2xx, so this run says nothing")
    return found


def processor_seconds(process: int) -> float:
    """Processor time that it has taken until now."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def counted(server: Server) -> float:
    """Points that our service says it has spooled."""
    for line in ask(f"http://127.0.0.1:{server.port}/metrics").decode().splitlines():
        if line.startswith('fieldring_points_total{durability="spooled"}'):
            return float(line.split()[-1])
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--points", type=int, nargs="+", default=[1, 100, 1000], help="points a request")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turn; the best counts")
    parser.add_argument("--only", nargs="+", default=[], help="names of contestants")
    parser.add_argument("--directory", help="where the servers keep their data (default: the temporary one)")
    arguments = parser.parse_args()
    if not shutil.which("wrk") or not shutil.which("taskset"):
        sys.exit("wrk and taskset are needed (Debian: wrk, util-linux)")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one for the server, one for the load")
    absent = missing()
    for name, reason in absent.items():
        print(f"{name}: {reason}; going on without it")
    makers = {"fieldring receive": ours, "InfluxDB": influxdb, "VictoriaMetrics": victoria}
    chosen = {
        name: make
        for name, make in makers.items()
        if name not in absent and (not arguments.only or name in arguments.only)
    }
    rows = []
    with tempfile.TemporaryDirectory(prefix="fieldring-bench-", dir=arguments.directory) as place:
        root = Path(place)
        (root / "load.lua").write_text(_SCRIPT)
        start_s = int(time.time()) - 86_400
        for points in arguments.points:
            listing = root / f"bodies-{points}"
            names = []
            for number, body in enumerate(bodies(points, count=max(50, 2_000 // points), start_s=start_s)):
                names.append(root / f"body-{points}-{number}")
                names[-1].write_bytes(body)
            listing.write_text("".join(f"{name}\n" for name in names))
            results: dict[str, list[tuple[float, float, float]]] = {}
            for turn in range(arguments.rounds):
                for name, make in chosen.items():
                    folder = root / f"{name.split()[0]}-{points}-{turn}"
                    folder.mkdir()
                    server = make(folder)
                    with running(server, folder, cores[0]) as process:
                        load(server, root / "load.lua", listing, core=cores[1], seconds=1)
                        before = counted(server) if make is ours else 0.0
                        spent = processor_seconds(process)
                        found = load(
                            server, root / "load.lua", listing, core=cores[1], seconds=arguments.seconds
                        )
                        spent = max(processor_seconds(process) - spent, 0.01)
                        if make is ours and counted(server) - before < found["requests"] * points:
                            sys.exit("the service counted fewer points than were acknowledged")
                    sent = found["requests"] * points
                    results.setdefault(name, []).append(
                        (sent / found["us"] * 1e6, sent / spent, found["p99_us"] / 1000)
                    )
                    shutil.rmtree(folder)
            best = {
                name: [f(column) for f, column in zip((max, max, min), zip(*runs, strict=True), strict=True)]
                for name, runs in results.items()
            }
            own = best.get("fieldring receive", [0.0, 0.0, 0.0])
            for name, (per_second, per_core_second, p99_ms) in best.items():
                ratios = (f"{own[0] / per_second:.2f}", f"{own[1] / per_core_second:.2f}")
                rows.append(
                    (
                        str(points),
                        name,
                        rate(per_second),
                        ratios[0],
                        rate(per_core_second),
                        ratios[1],
                        f"{p99_ms:.1f}",
                    )
                )
    head = ("points/request", "server", "points/s", "ours/this", "points/core-second", "ours/this", "p99 ms")
    print(table(head, rows))


if __name__ == "__main__":
    main()
