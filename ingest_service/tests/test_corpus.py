"""Recorded requests of real clients (``corpus/``), sent again to a real ``receive`` process."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fieldring.model import Row
from fieldring.store.sqlite import SqliteStore
from fieldring.wire import line_protocol, senml
from processes import Process

CORPUS = Path(__file__).parent / "corpus"
T = 1_700_000_000_000
Found = dict[tuple[str, str], list[tuple[int, float | str]]]

NOTE = 'a "quoted" \\ text\nof two lines'
INFLUX_V2: Found = {
    ("st 1", "air, outside_no2"): [(T + 123, 1.5)],
    ("st 1", "air, outside_count"): [(T + 123, 7.0)],
    ("st 1", "air, outside_ok"): [(T + 123, 1.0)],
    ("st 1", "air, outside_note"): [(T + 123, NOTE)],
    # Telegraf's shape: three series, not one that is overwritten twice.
    **{("h1", f"cpu_idle{{cpu=cpu{n}}}"): [(T, n / 3)] for n in range(3)},
}
INFLUX_V1: Found = {
    ("ä,b", "no2"): [(T, 3.5)],
    ("ä,b", "no2_n"): [(T, 1.0)],
    ("b", "no2_text"): [(T, 'x "y"')],
    ("b", "no2_ok"): [(T, 0.0)],
    ("c", "raw"): [(T, 1.0)],
}
INFLUX_IMPORT: Found = {("imported", "no2"): [(T + n * 1000, n / 4) for n in range(40)]}


def sent_again(process: Process, request: bytes) -> bytes:
    """The head of the answer to a recorded request."""
    with socket.create_connection(("127.0.0.1", process.port), timeout=30) as client:
        client.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            part = client.recv(65_536)
            assert part, answer
            answer += part
    return answer


@pytest.fixture(scope="module")
def receive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    # Whatever a machine's clock says, a recording is neither too old nor too new.
    process = Process("receive", tmp_path_factory.mktemp("corpus"), future_limit_seconds=3_000_000_000)
    process.start()
    yield process
    process.stop()


def stored(process: Process) -> Found:
    store = SqliteStore(process.directory / "store.sqlite")
    found: Found = {}
    for info in store.sensors():
        for point in store.points(info.sensor, start_ms=0, end_ms=2**50):
            found.setdefault((info.sensor, point.metric), []).append((point.time_ms, point.value))
    store.close()
    return found


def counter(process: Process, name: str, **labels: str) -> float:
    text = httpx.get(process.url + "/metrics", headers={"Authorization": "Token read"}).text
    wanted = ",".join(f'{k}="{v}"' for k, v in labels.items())
    return sum(float(v) for v in re.findall(rf"^{name}{{{wanted}}} (\S+)$", text, re.MULTILINE))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("client", "statuses", "expected"),
    [
        ("influxdb-client-1.50", [204] * 6, INFLUX_V2),
        ("influxdb-5.3.2", [204, 200, 204, 204] * 2, INFLUX_V1),
        ("influx-import", [204, 204, 200, 204], INFLUX_IMPORT),
    ],
)
def test_influxdb_clients(receive: Process, client: str, statuses: list[int], expected: Found) -> None:
    """Each request is answered as the client wants it, and every value is there."""
    files = sorted(CORPUS.glob(f"{client}-[0-9]*.http"))
    heads = [sent_again(receive, file.read_bytes()) for file in files]
    assert statuses == [int(head.split()[1]) for head in heads]
    found = stored(receive)
    assert expected == {key: found.get(key) for key in expected}


@pytest.mark.integration
@pytest.mark.parametrize(("client", "requests"), [("prometheus-2.42", 4), ("vmagent-1.79", 3)])
def test_remote_write(receive: Process, client: str, requests: int) -> None:
    """Values are stored under the names of their labels; what is no measurement is counted."""
    before = [
        counter(receive, "fieldring_points_left_out_total", reason=r) for r in ("nan", "infinite", "stale")
    ]
    files = sorted(CORPUS.glob(f"{client}-[0-9]*.http"))
    assert requests == len(files)
    for file in files:
        head = sent_again(receive, file.read_bytes())
        assert b"204" == head.split()[1], head
    after = [
        counter(receive, "fieldring_points_left_out_total", reason=r) for r in ("nan", "infinite", "stale")
    ]
    assert all(a > b for a, b in zip(after, before, strict=True))
    found = stored(receive)
    for sensor, metric, value in (
        ("st1", "no2_ppb", 12.5),
        ("h1", "no2_ppb{channel=0,job=recorded}", 1.0),
        ("h1", "no2_ppb{channel=1,job=recorded}", 2.0),
        ('fans,job=recorded,unit=é"\\\\', "fans", 3.0),
        ("latency_seconds_bucket,job=recorded,le=+Inf", "latency_seconds_bucket", 5.0),
    ):
        assert {value} == {v for _, v in found[sensor, metric]}, (sensor, metric)
    up = next(
        points for (sensor, metric), points in found.items() if metric == "up" and "instance=" in sensor
    )
    assert {1.0, 0.0} == {value for _, value in up}


def published(session: bytes) -> Iterator[tuple[str, bytes]]:
    """Topic and payload of every PUBLISH of an MQTT 3.1.1 session."""
    position = 0
    while position < len(session):
        kind, position = session[position], position + 1
        length = shift = 0
        while True:
            byte, position = session[position], position + 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        packet, position = session[position : position + length], position + length
        if kind >> 4 == 3:
            topic = int.from_bytes(packet[:2], "big")
            yield packet[2 : 2 + topic].decode(), packet[topic + 4 :]


def test_paho() -> None:
    """What a publisher sent means the same in each of its formats."""
    messages = list(published((CORPUS / "paho.mqtt").read_bytes()))
    assert ["sensors/st1/senml", "sensors/st1/senml", "sensors/st1/lp"] == [topic for topic, _ in messages]
    json, cbor, lines = (payload for _, payload in messages)
    found = [
        senml.decode(json, now_ms=T),
        senml.decode(cbor, content_type=senml.CBOR, now_ms=T),
        line_protocol.decode(lines, now_ms=T),
    ]
    no2, pm10 = Row("st1", T, ("no2",), (12.5,)), Row("st1", T - 1000, ("pm10",), (3.0,))
    assert [[no2, pm10], [no2, pm10], [no2]] == [list(decoded.batch.rows()) for decoded in found]
