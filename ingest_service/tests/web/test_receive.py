"""``receive`` over real HTTP: every answer of the contract, and clients that misbehave."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import cbor2
import cramjam
import httpx
import pytest
from influxdb_client import InfluxDBClient, Point, WritePrecision
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.rest import ApiException
from receiving import Service, remote_write, wait_until

from fieldring.model import Batch, Row
from fieldring.wire import block

T = 1_700_000_000_000
WRITES = ["/write", "/api/v2/write"]
ALL_WRITES = [
    *WRITES, "/api/v1/senml", "/api/v1/senml+cbor", "/api/v1/block", "/v1/push-sensor-data/", "/api/v1/write"
]  # fmt: skip
_numbers = itertools.count()


def line(sensor: str = "a", value: float = 1.0, time_ms: int = T) -> str:
    return f"no2,sensor={sensor} value={value} {time_ms}"


REMOTE = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"}


def written(path: str, sensor: str) -> tuple[str, dict[str, str], bytes]:
    """Path, headers and body that write 1.0 to the metric no2 of a sensor."""
    if path == "/api/v1/senml":
        record: dict[Any, Any] = {"n": f"{sensor}/no2", "v": 1.0, "t": T / 1000}
        return path, {"Content-Type": "application/senml+json"}, json.dumps([record]).encode()
    if path == "/api/v1/senml+cbor":
        record = {0: f"{sensor}/no2", 2: 1.0, 6: T / 1000}
        return "/api/v1/senml", {"Content-Type": "application/senml+cbor"}, cbor2.dumps([record])
    if path == "/api/v1/block":
        batch = Batch()
        batch.append(Row(sensor, T, ("no2",), (1.0,)))
        return path, {}, block.encode(batch)
    if path == "/v1/push-sensor-data/":
        body = {"sensordatavalues": [{"value_type": "no2", "value": "1.00"}]}
        return path, {"X-Sensor": sensor}, json.dumps(body).encode()
    if path == "/api/v1/write":
        return path, REMOTE, remote_write(({"__name__": "no2", "sensor": sensor}, 1.0))
    return path, {}, line(sensor).encode()


def post(service: Service, path: str, body: str | bytes, **options: Any) -> httpx.Response:
    return service.http.post(path, params={"precision": "ms"}, content=body, **options)


# -- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WRITES)
def test_stored(service: Service, path: str) -> None:
    """204 means that the points can be read."""
    answer = post(service, path, line() + "\n" + line("b", 2.5))
    assert (204, b"", "stored") == (
        answer.status_code,
        answer.content,
        answer.headers["fieldring-durability"],
    )
    assert [(T, "no2", 1.0)] == service.points("a")
    assert [(T, "no2", 2.5)] == service.points("b")
    assert 2 == service.metric("fieldring_points_total", durability="stored")
    assert 1 == service.metric("fieldring_http_requests_total", route=path, status="204")


@pytest.mark.parametrize(
    ("path", "status"), [("/write", 204), ("/api/v2/write", 202), ("/api/v1/senml", 202)]
)
def test_spooled(service: Service, path: str, status: int) -> None:
    """While the store is away the answer says that the spool has it; v1 clients get their 204."""
    service.store.up = False
    body = line()
    if "senml" in path:
        body = json.dumps([{"n": "a/no2", "v": 1, "t": T / 1000}])
    answer = post(service, path, body, headers={"Content-Type": "application/senml+json"})
    assert (status, "spooled") == (answer.status_code, answer.headers["fieldring-durability"])
    assert [] == service.points("a")
    [record] = service.queue.read(1_000_000)
    assert [Row("a", T, ("no2",), (1.0,))] == list(block.decode(record.payload).rows())
    assert 1 == service.metric("fieldring_points_total", durability="spooled")


@pytest.mark.parametrize("path", WRITES)
def test_some_lines_refused(service: Service, path: str) -> None:
    """400 names each refused line with its reason; all others are stored."""
    answer = post(
        service, path, f"# comment\n{line()}\nno2,sensor=a value=nan 5\n\n{line(time_ms=1)}\n{line('b')}"
    )
    assert (400, "stored") == (answer.status_code, answer.headers["fieldring-durability"])
    body = answer.json()
    assert "invalid" == body["code"]
    assert body["message"] == body["error"]
    assert [3, 5] == [error["line"] for error in body["errors"]]
    assert "retention" in body["errors"][1]["reason"]
    assert [(T, "no2", 1.0)] == service.points("a") == service.points("b")
    assert 1 == service.metric("fieldring_lines_refused_total", reason="malformed")
    assert 1 == service.metric("fieldring_lines_refused_total", reason="retention")


def test_some_lines_refused_and_the_rest_spooled(service: Service) -> None:
    """The durability header tells what became of the good lines."""
    service.store.up = False
    answer = post(service, "/write", f"junk\n{line()}")
    assert (400, "spooled") == (answer.status_code, answer.headers["fieldring-durability"])
    assert 1 == service.queue.pending_records


def test_all_lines_refused(service: Service) -> None:
    """Nothing is promised where nothing was kept."""
    answer = post(service, "/api/v2/write", "junk")
    assert 400 == answer.status_code
    assert "fieldring-durability" not in answer.headers


def test_collapsed(service: Service) -> None:
    """The last line wins, and the answer counts what it replaced."""
    answer = post(service, "/api/v2/write", "\n".join(line(value=v) for v in (1, 2, 3)))
    assert (204, "2") == (answer.status_code, answer.headers["fieldring-collapsed"])
    assert [(T, "no2", 3.0)] == service.points("a")


def test_large_body_in_pieces(service: Service) -> None:
    """Lines are counted and the last one wins across the pieces in which a large body is taken."""
    body = [line(f"s{n % 7}", n, T + n * 1000) for n in range(60_000)]
    body[10] = 'm,sensor=t v="a text\nof two lines" 1700000000000'
    body[49_999] = "junk"
    body.append(line("s0", -1, T))
    answer = post(service, "/write", "\n".join(body))
    assert 400 == answer.status_code
    assert [50_001] == [error["line"] for error in answer.json()["errors"]]
    assert 59_998 == sum(len(service.points(f"s{n}")) for n in range(7))
    assert [(T, "m_v", "a text\nof two lines")] == service.points("t")
    assert (T, "no2", -1.0) == service.points("s0")[0]


def test_no_promise(service: Service) -> None:
    """With the store away and the spool full, 503 says when to come back, and readiness fails."""
    service.store.up = False
    bulk = "\n".join(line(f"sensor-{n}", n, T + n) for n in range(2_000))
    answers = [post(service, "/api/v2/write", bulk) for _ in range(20)]
    assert {202, 503} == {answer.status_code for answer in answers}
    refused = answers[-1]
    assert (503, "unavailable") == (refused.status_code, refused.json()["code"])
    assert int(refused.headers["retry-after"]) >= 1
    assert 503 == service.http.get("/ready").status_code
    assert 503 == service.http.get("/health").status_code


def test_ready_while_spooling(service: Service) -> None:
    """A host that spools can still promise."""
    assert {"status": "ready", "durability": "stored"} == service.http.get("/ready").json()
    service.store.up = False
    post(service, "/write", line())
    answer = service.http.get("/ready")
    assert (200, {"status": "ready", "durability": "spooled"}) == (answer.status_code, answer.json())


def test_defect_is_answered_without_its_inside(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """500 in the one shape; the log has the trace, and the service goes on."""
    service.store.defect = True
    answer = post(service, "/write", line())
    assert (500, "internal") == (answer.status_code, answer.json()["code"])
    assert "secret inside" not in answer.text
    assert "secret inside" in caplog.text
    service.store.defect = False
    assert 204 == post(service, "/write", line()).status_code


def test_empty_body(shared: Service) -> None:
    """Nothing to keep is no error."""
    assert 204 == post(shared, "/api/v2/write", "").status_code
    assert 204 == post(shared, "/write", "# only a comment\n").status_code


# -- who may ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({"Authorization": "Token writer"}, {}, 204),
        ({"Authorization": "Bearer writer"}, {}, 204),
        ({"Authorization": "Basic " + base64.b64encode(b"any:writer").decode()}, {}, 204),
        ({}, {"u": "any", "p": "writer"}, 204),
        ({}, {}, 401),
        ({"Authorization": "Token wrong"}, {}, 401),
        ({}, {"u": "writer", "p": "wrong"}, 401),
        ({"Authorization": "Token reader"}, {}, 403),
    ],
)
@pytest.mark.parametrize("path", ALL_WRITES)
def test_token(
    shared: Service, path: str, headers: dict[str, str], query: dict[str, str], status: int
) -> None:
    """Every form of the token opens every way of writing; others get 401 or 403 and keep nothing."""
    sensor = f"sensor-{next(_numbers)}"
    path, more, body = written(path, sensor)
    answer = httpx.post(
        shared.url + path, params={"precision": "ms", **query}, content=body, headers={**more, **headers}
    )
    assert status == answer.status_code
    kept = [(metric, value) for _, metric, value in shared.points(sensor)]
    assert ([("no2", 1.0)] if status == 204 else []) == kept
    if status == 401:
        assert "unauthorized" == answer.json()["code"]
        assert "www-authenticate" in answer.headers


def test_tokens_are_not_logged(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Not even where a request fails at the most talkative level."""
    caplog.set_level(logging.DEBUG)
    for path in ("/write", "/nowhere", "/query"):
        httpx.post(f"{service.url}{path}?u=someone&p=top-secret", content="x")
        httpx.post(f"{service.url}{path}", content="x", headers={"Authorization": "Token top-secret"})
    assert "refused" in caplog.text
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("fieldring", "uvicorn"))]
    assert ours
    assert not [message for message in ours if "top-secret" in message]


def test_token_limited_to_sensors(service: Service) -> None:
    """Lines of other sensors are refused by line; where none is left the answer is 403."""
    limited = {"Authorization": "Token limited"}
    assert 204 == post(service, "/write", line("north-1") + "\n" + line("hut"), headers=limited).status_code
    mixed = post(service, "/write", line("south") + "\n" + line("north-2"), headers=limited)
    assert (400, [1]) == (mixed.status_code, [error["line"] for error in mixed.json()["errors"]])
    assert "'south'" in mixed.json()["errors"][0]["reason"]
    none = post(service, "/api/v2/write", line("south") + "\n" + line("hut2"), headers=limited)
    assert (403, "forbidden") == (none.status_code, none.json()["code"])
    assert [] == service.points("south")
    assert 1 == len(service.points("north-2"))


def test_block_of_sensors_that_the_gateway_may_not_send(service: Service) -> None:
    """Its rows are named: a 403 was sent again for ever, and held up everything behind it."""
    batch = Batch(received=T * 1000)
    for sensor in ("south-1", "south-2"):
        batch.append(Row(sensor, T, ("no2",), (1.0,)))
    headers = {"Authorization": "Token north gate", "Content-Type": block.CONTENT_TYPE}
    source = {"Fieldring-Source": "gateway2;epoch=5;seq=1;count=1"}
    answer = service.http.post("/api/v1/block", content=block.encode(batch), headers=headers | source)
    assert (400, [1, 2]) == (answer.status_code, [error["line"] for error in answer.json()["errors"]])
    assert "'south-1'" in answer.json()["errors"][0]["reason"]
    assert [1] == [run.last for run in service.store.arrivals("gateway2")]
    others = {"Fieldring-Source": "gateway1;epoch=5;seq=1;count=1"}
    answer = service.http.post("/api/v1/block", content=block.encode(batch), headers=headers | others)
    assert 403 == answer.status_code


def test_block_of_a_gateway(service: Service) -> None:
    """A block keeps its time of acceptance; a stranger's source header is refused."""
    batch = Batch(received=T * 1000, attributes={"a": {"room": "1"}})
    batch.append(Row("a", T, ("no2", "note"), (1.0, "ok")))
    headers = {"Authorization": "Token gate", "Content-Type": block.CONTENT_TYPE}
    source = {"Fieldring-Source": "gateway1;epoch=5;seq=17;count=1"}
    answer = service.http.post("/api/v1/block", content=gzip.compress(block.encode(batch)),
                               headers={**headers, **source, "Content-Encoding": "gzip"})  # fmt: skip
    assert 204 == answer.status_code
    assert [T * 1000] == [
        p.received for p in service.store.points("a", start_ms=0, end_ms=2**50, metrics=["no2"])
    ]
    assert 17 == service.metric("fieldring_gateway_last_sequence", gateway="gateway1")
    for wrong in (
        {"Fieldring-Source": "gateway2;epoch=5;seq=17;count=1"},
        {**source, "Authorization": "Token writer"},
    ):
        assert (
            403 == service.http.post("/api/v1/block", content=b"", headers={**headers, **wrong}).status_code
        )
    for text in ("gateway1", "gateway1;epoch=x;seq=1;count=1"):
        assert 400 == service.http.post(
            "/api/v1/block", content=b"", headers={**headers, "Fieldring-Source": text}
        ).status_code  # fmt: skip


@pytest.mark.parametrize("body", [b"", b"junk", b"FRB\x01junk"])
def test_junk_block(shared: Service, body: bytes) -> None:
    """A damaged block is the sender's error."""
    answer = shared.http.post("/api/v1/block", content=body)
    assert (400, "invalid") == (answer.status_code, answer.json()["code"])


# -- sensor.community and remote write ---------------------------------------------------------


PUSH = b'{"sensordatavalues":[{"value_type":"P1","value":"8.50"},{"value_type":"P2","value":"nan"}]}'


def test_push_of_a_device(service: Service) -> None:
    """Stored under the device and its pin at the time of receipt; spooled while the store is away."""
    headers = {"X-Sensor": "esp8266-1", "X-Pin": "1"}
    before = time.time() * 1000
    answer = service.http.post("/v1/push-sensor-data/", content=PUSH, headers=headers)
    assert (204, "stored") == (answer.status_code, answer.headers["fieldring-durability"])
    [(time_ms, metric, value)] = service.points("esp8266-1-1")
    assert ("P1", 8.5) == (metric, value)
    assert before - 1 <= time_ms <= time.time() * 1000
    assert 1 == service.metric("fieldring_points_left_out_total", reason="not_finite")
    service.store.up = False
    answer = service.http.post("/v1/push-sensor-data/", content=PUSH, headers=headers)
    assert (202, "spooled") == (answer.status_code, answer.headers["fieldring-durability"])


def test_devices_without_credentials(start: Callable[..., Service]) -> None:
    """Only those on the list, only as themselves, and not with a wrong token either."""
    service = start(sensor_community_devices=("esp8266-1",))

    def push(device: str, **headers: str) -> int:
        headers = {"X-Sensor": device, **headers}
        return httpx.post(service.url + "/v1/push-sensor-data/", content=PUSH, headers=headers).status_code

    assert 204 == push("esp8266-1")
    assert 204 == push("esp8266-1", **{"X-Pin": "3"})
    assert [401, 401, 401, 401] == [push(d) for d in ("esp8266-2", "esp8266-11", "", "*")]
    assert 401 == push("esp8266-1", Authorization="Token wrong")
    assert 401 == httpx.post(service.url + "/write", content=line("esp8266-1")).status_code
    assert [1, 1] == [len(service.points(sensor)) for sensor in ("esp8266-1", "esp8266-1-3")]


def test_a_device_without_credentials_has_a_quota(start: Callable[..., Service]) -> None:
    """Anybody on the network may claim to be it: what it may write is bounded."""
    service = start(sensor_community_devices=("a",))
    values = [{"value_type": f"v{n}", "value": "1"} for n in range(900)]
    body = json.dumps({"sensordatavalues": values})
    answers = [
        httpx.post(service.url + "/v1/push-sensor-data/", content=body, headers={"X-Sensor": "a"})
        for _ in range(3)
    ]
    assert [204, 204, 429] == [answer.status_code for answer in answers]


def test_remote_write(service: Service) -> None:
    """Stored under the names that the labels give; what is no measurement is counted."""
    body = remote_write(
        ({"__name__": "no2", "sensor": "a"}, 1.5),
        ({"__name__": "cpu", "host": "h", "core": "0"}, 2.0),
        ({"__name__": "up", "job": "j"}, float("nan")),
    )
    answer = service.http.post("/api/v1/write", content=body, headers=REMOTE)
    assert (204, "stored") == (answer.status_code, answer.headers["fieldring-durability"])
    assert [(T, "no2", 1.5)] == service.points("a")
    assert [(T, "cpu{core=0}", 2.0)] == service.points("h")
    assert 1 == service.metric("fieldring_points_left_out_total", reason="nan")
    service.store.up = False
    assert 202 == service.http.post("/api/v1/write", content=body, headers=REMOTE).status_code


def test_remote_write_of_which_a_series_is_refused(service: Service) -> None:
    """400, which Prometheus does not send again: the rest is stored."""
    body = remote_write(({"sensor": "a"}, 1.0), ({"__name__": "no2", "sensor": "a"}, 1.5))
    answer = service.http.post("/api/v1/write", content=body, headers=REMOTE)
    assert (400, [1]) == (answer.status_code, [error["line"] for error in answer.json()["errors"]])
    assert [(T, "no2", 1.5)] == service.points("a")


# -- quotas ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"), [*((path, 429) for path in ALL_WRITES[:-1]), ("/api/v1/write", 503)]
)
def test_quota(service: Service, path: str, status: int) -> None:
    """A token that has used up its quota is told when to come back, and others are not touched.

    Prometheus throws away what is answered 429, so remote write answers 503.
    """
    headers = {"Authorization": "Token slow"}
    bulk = "\n".join(line(f"s{n}") for n in range(30))
    assert 204 == post(service, "/write", bulk, headers=headers).status_code
    path, more, body = written(path, "late")
    answer = post(service, path, body, headers={**more, **headers})
    assert status == answer.status_code
    assert 1 <= int(answer.headers["retry-after"]) <= 20
    assert "1 points/s" in answer.json()["message"]
    assert [] == service.points("late")
    assert 204 == post(service, path, body, headers=more).status_code
    assert 1 == len(service.points("late"))


# -- bodies ----------------------------------------------------------------------------------


def test_gzip(service: Service) -> None:
    """A gzipped body counts as what it holds."""
    answer = post(service, "/write", gzip.compress(line().encode()), headers={"Content-Encoding": "gzip"})
    assert 204 == answer.status_code
    assert 1 == len(service.points("a"))


@pytest.mark.parametrize(
    ("precision", "stamp"),
    [("", T * 1_000_000), ("n", T * 1_000_000 + 999_999), ("ns", T * 1_000_000), ("u", T * 1_000),
     ("us", T * 1_000 + 999), ("%C2%B5", T * 1_000), ("ms", T), ("s", T // 1_000),
     ("m", T // 60_000), ("h", T // 3_600_000)],
)  # fmt: skip
@pytest.mark.parametrize("path", WRITES)
def test_precision(shared: Service, path: str, precision: str, stamp: int) -> None:
    """Each unit of both versions, finer than a millisecond truncated; the percent sign is a µ."""
    sensor = f"sensor-{next(_numbers)}"
    answer = shared.http.post(f"{path}?precision={precision}", content=f"no2,sensor={sensor} value=1 {stamp}")
    assert 204 == answer.status_code
    unit_ms = {"m": 60_000, "h": 3_600_000}.get(precision, 1)
    assert [(T // unit_ms * unit_ms, "no2", 1.0)] == shared.points(sensor)


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/write", {"Content-Encoding": "gzip"}, b"not gzip", 400),
        ("/write", {"Content-Encoding": "br"}, b"", 415),
        ("/api/v1/senml", {"Content-Type": "application/senml+cbor"}, b"", 400),
        ("/api/v1/senml", {"Content-Type": "application/cbor"}, b"", 415),
        ("/api/v1/senml", {"Content-Type": "application/senml+json"}, b"{", 400),
        ("/write?precision=d", {}, b"", 400),
        ("/api/v1/write", {}, b"", 415),
        ("/api/v1/write", {"Content-Type": "application/x-protobuf"}, b"", 415),
        ("/api/v1/write", {**REMOTE, "Content-Encoding": "gzip"}, gzip.compress(b"", mtime=0), 415),
        (
            "/api/v1/write",
            {**REMOTE, "Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request"},
            b"",
            415,
        ),
        ("/api/v1/write", REMOTE, b"junk", 400),
        ("/api/v1/write", REMOTE, b"\xff\xff\xff\xff\x0f", 413),
        ("/api/v1/write", REMOTE, bytes(cramjam.snappy.compress_raw(b"junk")), 400),
        ("/v1/push-sensor-data/", {}, b"{}", 400),
        ("/v1/push-sensor-data/", {"X-Sensor": "a"}, b"{}", 400),
        ("/v1/push-sensor-data/", {"X-Sensor": "a", "X-PIN": "?"}, b'{"sensordatavalues":[]}', 400),
        ("/nowhere", {}, b"", 404),
        ("/ping", {}, b"", 405),
        ("/write?" + "a=1&" * 200, {}, b"", 400),
    ],
)
def test_refused(shared: Service, path: str, headers: dict[str, str], body: bytes, status: int) -> None:
    """Each has its status and the one shape."""
    answer = shared.http.post(path, headers=headers, content=body)
    assert status == answer.status_code
    assert {"code", "message", "error", "errors"} == set(answer.json())


def test_too_large_as_announced(start: Callable[..., Service]) -> None:
    """A body over the limit is refused before it is sent."""
    service = start(body_max_bytes=10_000)
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(
            b"POST /write HTTP/1.1\r\nHost: x\r\nAuthorization: Token writer\r\n"
            b"Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /write HTTP/1.1\r\nAuthorization: Token writer\r\nContent-Length: 100000000\r\n", b"413"),
        (b"POST /write HTTP/1.1\r\nAuthorization: Token wrong\r\nContent-Length: 9000\r\n", b"401"),
        (b"POST /nowhere HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", b"404"),
    ],
)
def test_an_answer_before_the_body_ends_the_connection(
    start: Callable[..., Service], head: bytes, status: bytes
) -> None:
    """A balancer that kept it for another request waited behind the rest of the body."""
    service = start(body_max_bytes=10_000)
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(head + b"Host: x\r\n\r\n")
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 " + status + b" ")
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_a_refusal_of_what_came_whole_keeps_the_connection(service: Service) -> None:
    """Nothing is on its way any more."""
    answer = service.http.post("/write", content=b"junk")
    assert (400, None) == (answer.status_code, answer.headers.get("Connection"))


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_a_body_behind_an_upgrade_is_refused(service: Service, protocol: str) -> None:
    """The HTTP parser passes it over: it was answered 204 and not stored."""
    body = line("upgraded").encode()
    head = "POST /write?precision=ms HTTP/1.1\r\nHost: x\r\nAuthorization: Token writer\r\n"
    head += f"Connection: Upgrade\r\nUpgrade: {protocol}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(head.encode() + body)
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert [] == service.points("upgraded")


def test_a_token_is_asked_for_before_anything_else(service: Service) -> None:
    """Who may not write is not told what else is wrong."""
    answer = httpx.post(service.url + "/write?precision=fortnight", content=b"x")
    assert 401 == answer.status_code


def test_too_large_as_sent(start: Callable[..., Service]) -> None:
    """Without a length the limit holds on what comes."""
    service = start(body_max_bytes=10_000)
    answer = service.http.post("/write", content=iter([b"#" * 6_000, b"#" * 6_000]))
    assert 413 == answer.status_code
    assert 0 == service.metric("fieldring_request_bytes")


def test_bomb(start: Callable[..., Service]) -> None:
    """What unpacks beyond the limit is refused, and what it held is given back."""
    service = start(body_unpacked_max_bytes=1_000_000)
    bomb = gzip.compress(b"#" * 50_000_000)
    answer = service.http.post("/write", content=bomb, headers={"Content-Encoding": "gzip"})
    assert 413 == answer.status_code
    assert 0 == service.metric("fieldring_request_bytes")


def test_budget(start: Callable[..., Service]) -> None:
    """When others hold the budget the answer is 503 with a time to come back, and later it works."""
    service = start(body_budget_bytes=300_000)
    assert 413 == post(service, "/write", "#" * 50_000).status_code
    service.store.gate.clear()
    body = "\n".join(line(f"s{n}") for n in range(200))
    waiting = threading.Thread(target=post, args=(service, "/write", body))
    waiting.start()
    wait_until(lambda: service.metric("fieldring_request_bytes") > 150_000)
    answer = post(service, "/write", body)
    assert (503, "1") == (answer.status_code, answer.headers["retry-after"])
    service.store.gate.set()
    waiting.join()
    assert 204 == post(service, "/write", body).status_code


def test_commit_queue_is_bounded(start: Callable[..., Service]) -> None:
    """While the store hangs, so many wait as may, and the next is refused with a time to come back."""
    service = start(receive_threads=2, receive_queue_max=3)
    service.store.gate.clear()
    answers: list[int] = []
    waiting = [
        threading.Thread(
            target=lambda n=n: answers.append(post(service, "/write", line(f"s{n}")).status_code)
        )
        for n in range(5)
    ]
    for thread in waiting:
        thread.start()
    wait_until(lambda: service.metric("fieldring_commits_under_way") == 5)
    refused = post(service, "/write", line("late"))
    assert (503, "1") == (refused.status_code, refused.headers["retry-after"])
    service.store.gate.set()
    for thread in waiting:
        thread.join()
    assert [204] * 5 == answers
    assert 204 == post(service, "/write", line("late")).status_code
    assert 0 == service.metric("fieldring_commits_under_way")


def test_requests_are_bounded(start: Callable[..., Service]) -> None:
    """Bodies that do not come take places, too; when they go, the places are free again."""
    service = start(receive_requests_max=10)
    stalled = [half_sent(service) for _ in range(10)]
    wait_until(lambda: service.metric("fieldring_requests_under_way") == 10)
    refused = post(service, "/write", line())
    assert (503, "1") == (refused.status_code, refused.headers["retry-after"])
    for client in stalled:
        client.close()
    wait_until(lambda: service.metric("fieldring_requests_under_way") == 0)
    assert 204 == post(service, "/write", line()).status_code


def test_junk_is_counted_beyond_what_is_listed(service: Service) -> None:
    """Ten thousand refused lines are named, and all of them counted."""
    answer = post(service, "/write", "x\n" * 25_000 + line())
    assert (400, 10_000) == (answer.status_code, len(answer.json()["errors"]))
    assert "25000 lines were refused (the first 10000 are listed)" in answer.json()["message"]
    assert 25_000 == service.metric("fieldring_lines_refused_total", reason="malformed")
    assert 1 == len(service.points("a"))


# -- clients that misbehave ------------------------------------------------------------------


def half_sent(service: Service) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    client.sendall(
        b"POST /write HTTP/1.1\r\nHost: x\r\nAuthorization: Token writer\r\n"
        b"Content-Length: 1000\r\n\r\nno2,sen"
    )
    return client


def test_half_sent_bodies_block_nobody(service: Service) -> None:
    """Many more stalled clients than threads, and a write still takes its usual time."""
    stalled = [half_sent(service) for _ in range(100)]
    started = time.monotonic()
    assert 204 == post(service, "/write", line()).status_code
    assert time.monotonic() - started < 2
    for client in stalled:
        client.close()
    wait_until(lambda: service.metric("fieldring_http_requests_total", route="/write", status="499") == 100)
    assert 0 == service.metric("fieldring_request_bytes")


def test_stalled_body_ends(start: Callable[..., Service]) -> None:
    """A body that does not go on is answered 408 and the connection closed."""
    service = start(body_timeout_seconds=1)
    with half_sent(service) as client:
        answer = b""
        while part := client.recv(4096):
            answer += part
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_client_that_leaves_is_no_error(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is kept, nothing logged as a failure."""
    half_sent(service).close()
    wait_until(lambda: service.metric("fieldring_http_requests_total", route="/write", status="499") == 1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_store_that_hangs_blocks_no_probe(service: Service) -> None:
    """With every commit thread waiting for the ring, the probes still answer."""
    service.store.gate.clear()
    waiting = [threading.Thread(target=post, args=(service, "/write", line(f"s{n}"))) for n in range(8)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: service.metric("fieldring_request_bytes") > 0)
    assert 200 == service.http.get("/ready", timeout=3).status_code
    assert 204 == service.http.get("/ping", timeout=3).status_code
    service.store.gate.set()
    for thread in waiting:
        thread.join()
    assert all(service.points(f"s{n}") for n in range(8))


# -- probes and first questions --------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_ping(shared: Service, method: str) -> None:
    """No token; version header; no body."""
    answer = httpx.request(method, shared.url + "/ping")
    assert (204, b"") == (answer.status_code, answer.content)
    assert answer.headers["x-influxdb-version"].startswith("1.8")


def test_health(shared: Service) -> None:
    """InfluxDB v2's shape, without a token."""
    answer = httpx.get(shared.url + "/health")
    assert 200 == answer.status_code
    assert ("fieldring", "pass") == (answer.json()["name"], answer.json()["status"])


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_without_a_body(shared: Service, path: str) -> None:
    """Uptime checkers send HEAD."""
    answer = httpx.head(shared.url + path)
    assert (200, b"") == (answer.status_code, answer.content)


def test_metrics_need_a_token(service: Service) -> None:
    """A read token opens them; none and a write token do not."""
    post(service, "/write", line())
    assert 401 == httpx.get(service.url + "/metrics").status_code
    assert 403 == service.http.get("/metrics").status_code
    answer = httpx.get(service.url + "/metrics", headers={"Authorization": "Bearer reader"})
    assert 200 == answer.status_code
    assert 'fieldring_points_total{durability="stored"} 1.0' in answer.text
    assert "fieldring_http_request_seconds_bucket" in answer.text


def test_metrics_for_the_monitors_certificate(start: Callable[..., Service]) -> None:
    """The load balancer's word for a client certificate opens them, another word does not."""
    service = start(metrics_trusted_header="X-Fieldring-Client: monitor")
    assert 200 == httpx.get(service.url + "/metrics", headers={"X-Fieldring-Client": "monitor"}).status_code
    assert 401 == httpx.get(service.url + "/metrics", headers={"X-Fieldring-Client": "other"}).status_code
    assert 401 == httpx.get(service.url + "/metrics", headers={"X-Fieldring-Client": ""}).status_code


@pytest.mark.parametrize(
    "statement",
    [
        "show databases",
        "SHOW DATABASES;",
        'CREATE DATABASE "x"',
        'CREATE DATABASE "my air \\"db\\""',
        "create database x WITH DURATION 1d",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "form"])
def test_query(shared: Service, method: str, statement: str) -> None:
    """What v1 clients ask before they write is answered in v1's shape."""
    if method == "form":
        answer = shared.http.post("/query", data={"q": statement})
    else:
        answer = shared.http.request(method, "/query", params={"q": statement})
    assert (200, 0) == (answer.status_code, answer.json()["results"][0]["statement_id"])
    if "show" in statement.lower():
        assert [["fieldring"]] == answer.json()["results"][0]["series"][0]["values"]


def test_other_queries(shared: Service) -> None:
    """Nothing else is answered, and nothing at all without a token."""
    assert 400 == shared.http.get("/query", params={"q": "select * from x"}).status_code
    assert 401 == httpx.get(shared.url + "/query", params={"q": "show databases"}).status_code


# -- a client that users have ----------------------------------------------------------------


def test_influxdb_client(service: Service) -> None:
    """The InfluxDB v2 client pings, checks health and writes each kind of value."""
    with InfluxDBClient(url=service.url, token="writer", org="any", enable_gzip=True) as client:
        assert client.ping()
        with pytest.deprecated_call():
            assert "pass" == client.health().status
        write = client.write_api(write_options=SYNCHRONOUS)
        point = (
            Point("air").tag("sensor", "st 1").tag("room", "a,b").field("no2", 1.5).field("count", 7)
            .field("ok", True).field("note", 'a "quoted" \\ text\nof two lines').time(T, WritePrecision.MS)
        )  # fmt: skip
        write.write("bucket", "any", point)
        record = {"measurement": "no2", "tags": {"sensor": "st2"}, "fields": {"value": 3}, "time": T}
        write.write("bucket", "any", [record], write_precision=WritePrecision.MS)
    assert {
        (T, "air_no2", 1.5),
        (T, "air_count", 7.0),
        (T, "air_ok", 1.0),
        (T, "air_note", 'a "quoted" \\ text\nof two lines'),
    } == set(service.points("st 1"))
    assert {"room": "a,b"} == service.store.sensor("st 1").attributes  # type: ignore[union-attr]
    assert [(T, "no2", 3.0)] == service.points("st2")


def test_influxdb_client_sees_refusals(service: Service) -> None:
    """A refused line and a wrong token come back as the client's own errors, with our reason."""
    with InfluxDBClient(url=service.url, token="writer", org="any") as client:
        write = client.write_api(write_options=SYNCHRONOUS)
        with pytest.raises(ApiException, match="retention") as refused:
            write.write("bucket", "any", "no2,sensor=a value=1 1")
        assert 400 == refused.value.status
    with InfluxDBClient(url=service.url, token="wrong", org="any") as client:
        with pytest.raises(ApiException) as unknown:
            client.write_api(write_options=SYNCHRONOUS).write("bucket", "any", line())
        assert 401 == unknown.value.status


# -- together --------------------------------------------------------------------------------


def at_once(service: Service, bodies: list[str]) -> list[httpx.Response]:
    """Answers to requests that are all under way before the first is answered."""
    answers: dict[int, httpx.Response] = {}

    def send(number: int) -> None:
        answers[number] = post(service, "/api/v2/write", bodies[number])

    threads = [threading.Thread(target=send, args=(n,)) for n in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [answers[n] for n in range(len(bodies))]


@pytest.mark.parametrize("up", [True, False])
def test_many_at_once_each_get_their_own_answer(service: Service, up: bool) -> None:
    """Requests that are committed together share the wait, never a verdict."""
    service.store.up = up
    bodies = [
        line(f"m{n}", n) if n % 3 else f"{line(f'm{n}', n)}\nno2,sensor=m{n} value=x 5" for n in range(60)
    ]
    answers = at_once(service, bodies)
    good = 204 if up else 202
    assert [good if n % 3 else 400 for n in range(60)] == [answer.status_code for answer in answers]
    assert {"stored" if up else "spooled"} == {answer.headers["fieldring-durability"] for answer in answers}
    assert [2] * 20 == [a.json()["errors"][0]["line"] for a in answers if a.status_code == 400]
    if up:
        assert [[(T, "no2", float(n))] for n in range(60)] == [service.points(f"m{n}") for n in range(60)]
    else:
        records = [block.decode(r.payload) for r in service.queue.read(1 << 20)]
        assert {f"m{n}" for n in range(60)} == {sensor for batch in records for sensor in batch.sensors}
        assert len(records) == len({batch.received for batch in records})
    assert 60 == service.metric("fieldring_points_total", durability="stored" if up else "spooled")


def test_full_spool_refuses_those_that_do_not_fit(service: Service) -> None:
    """Who was promised is in the spool, everybody else got 503; nothing in between."""
    service.store.up = False
    bodies = ["".join(f"{line(f'f{n}', i, T + i)}\n" for i in range(900)) for n in range(60)]
    answers = at_once(service, bodies)
    promised = {n for n, answer in enumerate(answers) if answer.status_code == 202}
    assert {202, 503} == {answer.status_code for answer in answers}
    kept = [block.decode(r.payload) for r in service.queue.read(1 << 30)]
    assert {f"f{n}" for n in promised} == {sensor for batch in kept for sensor in batch.sensors}
