"""Records what real clients send: ``python record.py [CLIENT ...]``, from an activated ``.venv``.

A listener on loopback answers as InfluxDB, Prometheus' receivers or a broker would and writes every
request, byte for byte, to ``<client>-<number>.http`` (``.mqtt`` for a broker's session) beside this file.
``influx``, ``prometheus`` and ``vmagent`` must be on PATH; README.md says where they come from.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
TOKEN = "writer"
T_S = 1_700_000_000

EXPOSITION = """\
# TYPE no2_ppb gauge
no2_ppb{sensor="st1",room="a b"} 12.5
no2_ppb{host="h1",channel="0"} 1
no2_ppb{host="h1",channel="1"} 2
fans{unit="é\\"\\\\"} 3
broken NaN
open_circuit +Inf
latency_seconds_bucket{le="0.1"} 4
latency_seconds_bucket{le="+Inf"} 5
latency_seconds_sum 0.75
latency_seconds_count 5
"""

ANSWERS = [
    (rb"(GET|HEAD) /ping", b"HTTP/1.1 204 No Content\r\nX-Influxdb-Version: 1.8.10\r\n\r\n"),
    (rb"GET /health", b'{"name":"influxdb","message":"ready","status":"pass","version":"1.8.10"}'),
    (rb"\w+ /query", b'{"results":[{"statement_id":0,"series":[{"columns":["name"],"values":[["lab"]]}]}]}'),
    (rb"POST ", b"HTTP/1.1 204 No Content\r\n\r\n"),
]


class Recorder:
    """A listener that keeps every request of one client."""

    def __init__(self, client: str) -> None:
        self.client, self.count = client, 0
        for old in HERE.glob(f"{client}-[0-9]*.http"):
            old.unlink()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._requests, args=(connection,), daemon=True).start()

    def _requests(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while request := _request(stream):
                with self._lock:
                    self.count += 1
                    (HERE / f"{self.client}-{self.count}.http").write_bytes(request)
                answer = next((a for p, a in ANSWERS if re.match(p, request)), ANSWERS[-1][1])
                if answer.startswith(b"{"):
                    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                    answer = head % len(answer) + answer
                connection.sendall(answer)

    def wait_for(self, count: int, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.count < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.client}: {self.count} of {count} requests came")
            time.sleep(0.1)

    def close(self) -> None:
        self._listener.close()


def _request(stream) -> bytes:  # type: ignore[no-untyped-def]
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return b""
        head += line
    body = b""
    if length := re.search(rb"(?i)content-length: *(\d+)", head):
        body = stream.read(int(length[1]))
    elif re.search(rb"(?i)transfer-encoding: *chunked", head):
        while not body.endswith(b"0\r\n\r\n"):
            body += stream.readline()
    return head + body


def influxdb_client(port: int) -> None:
    from influxdb_client import InfluxDBClient, Point, WritePrecision
    from influxdb_client.client.write_api import SYNCHRONOUS

    for gzip in (False, True):
        with InfluxDBClient(f"http://127.0.0.1:{port}", TOKEN, org="any", enable_gzip=gzip) as client:
            client.ping()
            write = client.write_api(write_options=SYNCHRONOUS)
            point = (
                Point("air, outside")
                .tag("sensor", "st 1")
                .tag("room", "a=b,c")
                .field("no2", 1.5)
                .field("count", 7)
                .field("ok", True)
                .field("note", 'a "quoted" \\ text\nof two lines')
                .time(T_S * 10**9 + 123_456_789)
            )
            write.write("lab", "any", point)
            write.write(
                "lab",
                "any",
                [
                    {
                        "measurement": "cpu",
                        "tags": {"host": "h1", "cpu": f"cpu{n}"},
                        "fields": {"idle": n / 3},
                        "time": T_S,
                    }
                    for n in range(3)
                ],
                write_precision=WritePrecision.S,
            )


def influxdb_v1(port: int) -> None:
    from influxdb import InfluxDBClient

    for gzip in (False, True):
        client = InfluxDBClient("127.0.0.1", port, "anyone", TOKEN, "lab", gzip=gzip)
        client.ping()
        client.create_database("lab")
        client.write_points(
            [
                {
                    "measurement": "no2",
                    "tags": {"sensor": "ä,b"},
                    "fields": {"value": 3.5, "n": 1},
                    "time": T_S,
                },
                {
                    "measurement": "no2",
                    "tags": {"sensor": "b"},
                    "fields": {"text": 'x "y"', "ok": False},
                    "time": T_S,
                },
            ],
            time_precision="s",
            tags={"site": "lab"},
        )
        client.write_points([f"raw,sensor=c value=1 {T_S}000"], time_precision="ms", protocol="line")
        client.close()


def influx_import(port: int) -> None:
    lines = "\n".join(f"no2,sensor=imported value={n / 4} {T_S + n}000000000" for n in range(40))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "import.txt"
        path.write_text(
            "# DDL\nCREATE DATABASE lab\n\n# DML\n# CONTEXT-DATABASE: lab\n\n" + lines + "\n",
            encoding="utf-8",
        )
        subprocess.run(
            [
                "influx",
                "-import",
                f"-path={path}",
                "-host=127.0.0.1",
                f"-port={port}",
                "-username=anyone",
                f"-password={TOKEN}",
            ],
            check=True,
            timeout=60,
            stdout=subprocess.DEVNULL,
        )


@contextlib.contextmanager
def scraped() -> Iterator[tuple[int, Callable[[], None]]]:
    """A target for Prometheus and vmagent, and a way to take it away, which makes stale markers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(EXPOSITION.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    yield server.server_address[1], stop
    with contextlib.suppress(OSError):
        stop()


SCRAPE = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: recorded
    static_configs: [{{targets: ["127.0.0.1:{target}"]}}]
    metric_relabel_configs: [{{regex: "^(instance)$", action: labeldrop}}]
"""


@contextlib.contextmanager
def running(command: list[str], directory: str) -> Iterator[None]:
    with subprocess.Popen(command, cwd=directory, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def prometheus(port: int, recorder: Recorder) -> None:
    with scraped() as (target, stop), tempfile.TemporaryDirectory() as directory:
        config = SCRAPE.format(target=target) + (
            f'remote_write: [{{url: "http://127.0.0.1:{port}/api/v1/write", '
            f"authorization: {{credentials: {TOKEN}}}}}]\n"
        )
        (Path(directory) / "prometheus.yml").write_text(config)
        with running(
            [
                "prometheus",
                "--config.file=prometheus.yml",
                "--web.listen-address=127.0.0.1:0",
                "--storage.tsdb.path=data",
            ],
            directory,
        ):
            recorder.wait_for(2)
            stop()
            recorder.wait_for(recorder.count + 2)


def vmagent(port: int, recorder: Recorder) -> None:
    with scraped() as (target, stop), tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "scrape.yml").write_text(SCRAPE.format(target=target))
        with running(
            [
                "vmagent",
                "-promscrape.config=scrape.yml",
                f"-remoteWrite.url=http://127.0.0.1:{port}/api/v1/write",
                f"-remoteWrite.bearerToken={TOKEN}",
                "-remoteWrite.tmpDataPath=data",
                "-httpListenAddr=127.0.0.1:0",
                "-remoteWrite.flushInterval=1s",
                "-remoteWrite.queues=1",
            ],
            directory,
        ):
            recorder.wait_for(2)
            stop()
            recorder.wait_for(recorder.count + 1)


def paho() -> None:
    """A broker's side of one session: CONNACK and PUBACK are all that a publisher waits for."""
    import cbor2
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    listener = socket.create_server(("127.0.0.1", 0))
    received = bytearray()

    def broker() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            while head := stream.read(1):
                length, shift, packet = 0, 0, bytearray(head)
                while True:
                    packet += stream.read(1)
                    length |= (packet[-1] & 127) << shift
                    shift += 7
                    if packet[-1] < 128:
                        break
                packet += stream.read(length)
                received.extend(packet)
                if head[0] >> 4 == 1:
                    connection.sendall(b"\x20\x02\x00\x00")
                elif head[0] >> 4 == 3:
                    size = len(packet) - length
                    topic = int.from_bytes(packet[size : size + 2], "big")
                    connection.sendall(b"\x40\x02" + packet[size + 2 + topic : size + 4 + topic])

    thread = threading.Thread(target=broker)
    thread.start()
    client = Client(CallbackAPIVersion.VERSION2, client_id="st1")
    client.username_pw_set("st1", TOKEN)
    client.connect("127.0.0.1", listener.getsockname()[1])
    client.loop_start()
    cbor = cbor2.dumps([{-2: "st1/", -3: T_S, 0: "no2", 1: "ppb", 2: 12.5}, {0: "pm10", 2: 3, 6: -1}])
    for topic, payload in (
        (
            "sensors/st1/senml",
            f'[{{"bn":"st1/","bt":{T_S},"n":"no2","u":"ppb","v":12.5}},{{"n":"pm10","v":3,"t":-1}}]',
        ),
        ("sensors/st1/senml", cbor),
        ("sensors/st1/lp", f"no2,sensor=st1 value=12.5 {T_S}000000000"),
    ):
        client.publish(topic, payload, qos=1).wait_for_publish(20)
    client.disconnect()
    client.loop_stop()
    thread.join(20)
    listener.close()
    (HERE / "paho.mqtt").write_bytes(received)


def main(wanted: list[str]) -> None:
    http_clients: dict[str, Callable[[int, Recorder], None]] = {
        "influxdb-client-1.50": lambda port, _: influxdb_client(port),
        "influxdb-5.3.2": lambda port, _: influxdb_v1(port),
        "influx-import": lambda port, _: influx_import(port),
        "prometheus-2.42": prometheus,
        "vmagent-1.79": vmagent,
    }
    for name, run in http_clients.items():
        if wanted and name not in wanted:
            continue
        if (program := name.split("-")[0]) in ("influx", "prometheus", "vmagent") and not shutil.which(
            program
        ):
            sys.exit(f"{program} is not on PATH")
        recorder = Recorder(name)
        run(recorder.port, recorder)
        recorder.close()
        print(f"{name}: {recorder.count} requests")
    if not wanted or "paho" in wanted:
        paho()
        print("paho: one session")


if __name__ == "__main__":
    main(sys.argv[1:])
