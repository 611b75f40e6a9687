"""The reading API, over the embedded store; what concerns gunicorn, over a real one."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import httpx
import pytest
from flask.testing import FlaskClient
from serving import NAMES, T0, Serving, judge, put, write_tokens

from fieldring.http.tokens import TokenBook
from fieldring.model import HOUR_MS, Flag
from fieldring.settings import Settings
from fieldring.store.sqlite import SqliteStore
from fieldring.web.serve import create_app

READER = {"Authorization": "Token reader"}
ERROR_KEYS = {"code", "message", "error", "errors"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store.sqlite", retention_days=10_950)
    yield store
    store.close()


@pytest.fixture
def client(tmp_path: Path, store: SqliteStore) -> FlaskClient:
    write_tokens(tmp_path / "tokens.json")
    app = create_app(
        store=store,
        tokens=TokenBook(tmp_path / "tokens.json"),
        settings=Settings(site="valley", metrics_trusted_header="X-Monitor: s3cret"),
    )
    return app.test_client()


def get(client: FlaskClient, path: str, *, token: str = "reader", **query: str) -> tuple[int, str]:
    path += ("?" + urlencode(query)) if query else ""
    answer = client.get(path, headers={"Authorization": f"Token {token}"})
    return answer.status_code, answer.text


def body(client: FlaskClient, path: str, **query: str) -> dict[str, object]:
    status, text = get(client, path, **query)
    assert status == 200, text
    found: dict[str, object] = json.loads(text)
    return found


# -- points --------------------------------------------------------------------------------------


def test_points_carry_value_flag_and_tests_in_every_format(client: FlaskClient, store: SqliteStore) -> None:
    """The same rows as JSON, NDJSON and CSV."""
    put(store, "hut", {T0: {"no2": 1.5}, T0 + 60_000: {"no2": 900.0}, T0 + HOUR_MS: {"no2": 2.0}})
    judge(store, "hut", "no2", T0, m1=(Flag.FAIL, "gross_range"))
    hut = {"sensor": "hut", "metric": "no2"}
    rows = [
        {"time": "2023-11-14T22:00:00.000Z", **hut, "value": 1.5, "flag": 1, "tests": []},
        {"time": "2023-11-14T22:01:00.000Z", **hut, "value": 900.0, "flag": 4, "tests": ["gross_range"]},
        {"time": "2023-11-14T23:00:00.000Z", **hut, "value": 2.0, "flag": 2, "tests": []},
    ]
    assert {"points": rows, "next": None} == body(client, "/v1/points", sensor="hut")
    lines = get(client, "/v1/points", sensor="hut", format="ndjson")[1].splitlines()
    assert [*rows, {"count": 3, "next": None}] == [json.loads(line) for line in lines]
    table = list(csv.reader(io.StringIO(get(client, "/v1/points", sensor="hut", format="csv")[1])))
    assert ["time", "sensor", "metric", "value", "flag", "tests"] == table[0]
    assert ["2023-11-14T22:01:00.000Z", "hut", "no2", "900.0", "4", "gross_range"] == table[2]


def test_no_points_are_an_empty_answer_in_every_format(client: FlaskClient) -> None:
    """A sensor that sent nothing is no error."""
    assert {"points": [], "next": None} == body(client, "/v1/points", sensor="nobody")
    assert '{"count":0,"next":null}\n' == get(client, "/v1/points", sensor="nobody", format="ndjson")[1]
    assert (
        "time,sensor,metric,value,flag,tests\n" == get(client, "/v1/points", sensor="nobody", format="csv")[1]
    )


@pytest.mark.parametrize("form", ["json", "ndjson", "csv"])
def test_every_double_comes_back_as_it_was(client: FlaskClient, store: SqliteStore, form: str) -> None:
    """Random bit patterns survive writing out and reading in."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    values = [0.1, 1e16, 5e-324, 1.7976931348623157e308, -0.0, 123456789.123456789, 2.0**53]
    while len(values) < 500:
        (value,) = struct.unpack("<d", rng.randbytes(8))
        if math.isfinite(value):
            values.append(value)
    put(store, "hut", {T0 + i: {"x": v} for i, v in enumerate(values)})
    text = get(client, "/v1/points", sensor="hut", format=form)[1]
    if form == "json":
        found = [row["value"] for row in json.loads(text)["points"]]
    elif form == "ndjson":
        found = [json.loads(line)["value"] for line in text.splitlines()[:-1]]
    else:
        found = [float(row["value"]) for row in csv.DictReader(io.StringIO(text))]
    assert [struct.pack("<d", v) for v in values] == [struct.pack("<d", v) for v in found]


def test_texts_are_told_from_numbers_in_csv(client: FlaskClient, store: SqliteStore) -> None:
    """A text is always quoted, whatever it holds."""
    put(store, 'a,"b', {T0: {"x": "1.5"}, T0 + 1: {"x": 'say "hi",\nthere'}, T0 + 2: {"x": 1.5}})
    text = get(client, "/v1/points", sensor='a,"b', format="csv")[1]
    assert ',"1.5",2,\n' in text
    assert ",1.5,2,\n" in text
    rows = list(csv.reader(io.StringIO(text)))
    assert ['a,"b', 'say "hi",\nthere'] == [rows[2][1], rows[2][3]]


def test_range_metric_and_flags_choose(client: FlaskClient, store: SqliteStore) -> None:
    """Start included, end excluded, in both forms of time."""
    put(store, "hut", {T0 + i * 60_000: {"no2": float(i), "o3": 0.0} for i in range(4)})
    judge(store, "hut", "no2", T0, m1=(Flag.FAIL, "spike"), m2=(Flag.SUSPECT, "spike"))

    def values(**query: str) -> list[float]:
        return [p["value"] for p in body(client, "/v1/points", sensor="hut", metric="no2", **query)["points"]]  # type: ignore[index, attr-defined]

    assert [1.0, 2.0] == values(start=str(T0 + 60_000), end="2023-11-14T22:03:00Z")
    assert [2.0, 3.0] == values(start="2023-11-14T23:02:00+01:00")
    assert [1.0, 2.0] == values(flags="3,4")
    assert [] == values(flags="9")


def test_pages(client: FlaskClient, store: SqliteStore) -> None:
    """The cursor goes on where the page ended; every format tells of it in a header."""
    put(store, "hut", {T0 + i: {"a": 1.0, "b": 2.0} for i in range(5)})
    found: list[object] = []
    query = {"sensor": "hut", "limit": "3"}
    for _ in range(10):
        part = body(client, "/v1/points", **query)
        found += part["points"]  # type: ignore[arg-type]
        if part["next"] is None:
            break
        query["cursor"] = str(part["next"])
    assert body(client, "/v1/points", sensor="hut")["points"] == found
    answer = client.get("/v1/points?sensor=hut&limit=3&format=csv", headers=READER)
    assert answer.headers["Fieldring-Next"] == body(client, "/v1/points", sensor="hut", limit="3")["next"]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({}, "sensor"),
        ({"sensor": "hut", "start": "yesterday"}, "start"),
        ({"sensor": "hut", "end": "2024-02-30"}, "end"),
        ({"sensor": "hut", "start": "2", "end": "1"}, "start"),
        ({"sensor": "hut", "flags": "5"}, "flags"),
        ({"sensor": "hut", "flags": "a"}, "flags"),
        ({"sensor": "hut", "limit": "0"}, "limit"),
        ({"sensor": "hut", "limit": "100001"}, "limit"),
        ({"sensor": "hut", "limit": "-1"}, "limit"),
        ({"sensor": "hut", "limit": "²"}, "limit"),
        ({"sensor": "hut", "format": "xml"}, "format"),
        ({"sensor": "hut", "format": "parquet"}, "parquet"),
        ({"sensor": "hut", "limit": "1", "cursor": "abc"}, "cursor"),
        ({"sensor": "hut", "cursor": "abc"}, "limit"),
        ({"sensor": "hut", "metrics": "no2"}, "metrics"),
    ],
)
def test_wrong_parameters_are_named(client: FlaskClient, query: dict[str, str], named: str) -> None:
    """400 in the one shape; the message says which parameter and what it may be."""
    status, text = get(client, "/v1/points", **query)
    error = json.loads(text)
    assert (400, "invalid", ERROR_KEYS) == (status, error["code"], set(error))
    assert named in error["message"]


def test_a_parameter_given_twice_is_refused(client: FlaskClient) -> None:
    """Which of them would count?"""
    status, text = get(client, "/v1/points?sensor=a&sensor=b")
    assert (400, True) == (status, "more than once" in text)


# -- who may see what ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/points?sensor=hut", "/v1/sensors", "/v1/sensors/hut", "/v1/rules", "/metrics"]
)
def test_without_a_reading_token_nothing_is_told(client: FlaskClient, path: str) -> None:
    """401 without a known token, 403 without the role."""
    for headers, expected in (
        ({}, 401),
        ({"Authorization": "Token nope"}, 401),
        ({"Authorization": "Token writer"}, 403),
    ):
        answer = client.get(path, headers=headers)
        assert (expected, ERROR_KEYS) == (answer.status_code, set(answer.get_json()))


@pytest.mark.parametrize("header", ["Bearer reader", "Token reader", "Basic dTpyZWFkZXI="])
def test_ways_to_send_a_token(client: FlaskClient, header: str) -> None:
    """As InfluxDB's clients of both versions do."""
    assert client.get("/v1/sensors", headers={"Authorization": header}).status_code == 200


def test_a_limited_token_sees_its_sensors_only(client: FlaskClient, store: SqliteStore) -> None:
    """Not the others' points, names or existence."""
    for sensor in ("hut", "north-1", "south-1"):
        put(store, sensor, {T0: {"x": 1.0}})
    status, text = get(client, "/v1/sensors", token="limited")
    assert (200, ["hut", "north-1"]) == (status, [s["sensor"] for s in json.loads(text)["sensors"]])
    assert get(client, "/v1/points", token="limited", sensor="north-1")[0] == 200
    for path in (
        "/v1/points?sensor=south-1",
        "/v1/points?sensor=nobody",
        "/v1/sensors/south-1",
        "/v1/sensors/nobody",
    ):
        assert get(client, path, token="limited")[0] == 403


# -- sensors, rules, the document ----------------------------------------------------------------


def test_sensors(client: FlaskClient, store: SqliteStore) -> None:
    """Attributes, metrics, first and last time; the site is the sensor's own or the service's."""
    put(store, "hut", {T0: {"no2": 1.0}, T0 + 5: {"o3": 1.0}}, attributes={"floor": "2"})
    put(store, "far", {T0: {"no2": 1.0}}, attributes={"site": "hill"})
    hut = {
        "sensor": "hut",
        "site": "valley",
        "attributes": {"floor": "2"},
        "metrics": ["no2", "o3"],
        "first": "2023-11-14T22:00:00.000Z",
        "last": "2023-11-14T22:00:00.005Z",
    }
    found = body(client, "/v1/sensors")["sensors"]
    assert [("far", "hill"), ("hut", "valley")] == [(s["sensor"], s["site"]) for s in found]  # type: ignore[attr-defined]
    assert hut == body(client, "/v1/sensors/hut")
    table = list(csv.reader(io.StringIO(get(client, "/v1/sensors", format="csv")[1])))
    assert ["sensor", "site", "metrics", "first", "last", "attributes"] == table[0]
    assert ["hut", "valley", "no2;o3", hut["first"], hut["last"], '{"floor":"2"}'] == table[2]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (".", "..")])
def test_any_name_is_found_by_its_path(client: FlaskClient, store: SqliteStore, name: str) -> None:
    """Slashes, percent signs, markup: percent-encoded, all go through."""
    put(store, name, {T0: {"x": 1.0}})
    assert name == body(client, "/v1/sensors/" + quote(name, safe=""))["sensor"]
    assert body(client, "/v1/points", sensor=name)["points"]


def test_unknown_sensor(client: FlaskClient) -> None:
    """404 in the one shape."""
    status, text = get(client, "/v1/sensors/nobody")
    assert (404, ERROR_KEYS) == (status, set(json.loads(text)))


def test_rules(client: FlaskClient) -> None:
    """The shipped ones cover what the design promises."""
    rules = body(client, "/v1/rules")
    promised = {"pm1", "pm25", "pm10", "o3", "no2", "co", "temperature", "humidity"}
    assert promised <= set(rules["metrics"])  # type: ignore[call-overload]
    assert rules["version"]


def test_the_document_names_every_route(client: FlaskClient) -> None:
    """Whatever /v1 answers is described, and nothing is described that is not there."""
    document = client.get("/openapi.json").get_json()
    rules = {re.sub(r"<anything:(\w+)>", r"{\1}", str(r)) for r in client.application.url_map.iter_rules()}
    described = {
        path for path, verbs in document["paths"].items() if path.startswith("/v1") and "get" in verbs
    }
    assert {r for r in rules if r.startswith("/v1/")} == described


def test_errors_of_the_framework_have_the_one_shape_too(client: FlaskClient) -> None:
    """Unknown path, wrong method."""
    assert (404, ERROR_KEYS) == ((a := client.get("/nope")).status_code, set(a.get_json()))
    answer = client.delete("/v1/points", headers=READER)
    assert (405, ERROR_KEYS) == (answer.status_code, set(answer.get_json()))


def test_an_unavailable_store_is_503_with_a_time_to_retry(
    tmp_path: Path, client: FlaskClient, store: SqliteStore
) -> None:
    """Said before the first byte of an answer; /health says it too, /ready does not."""
    store.close()
    answer = client.get("/v1/points?sensor=hut", headers=READER)
    assert (503, True) == (answer.status_code, "Retry-After" in answer.headers)
    assert "fail" == client.get("/health").get_json()["status"]
    assert client.get("/ready").status_code == 200


@pytest.mark.parametrize("text", ["", "X-Monitor", "X-Monitor:", "X-Monitor: ", ": s3cret"])
def test_half_a_trusted_header_opens_nothing(tmp_path: Path, store: SqliteStore, text: str) -> None:
    """A name without a value was matched by every request that does not send it."""
    write_tokens(tmp_path / "tokens.json")
    app = create_app(
        store=store,
        tokens=TokenBook(tmp_path / "tokens.json"),
        settings=Settings(site="valley", metrics_trusted_header=text),
    )
    for headers in ({}, {"X-Monitor": ""}, {"X-Monitor": "s3cret"}):
        assert app.test_client().get("/metrics", headers=headers).status_code == 401


def test_metrics_take_a_token_or_the_monitors_header(client: FlaskClient) -> None:
    """The load balancer sets the header for the monitor's client certificate."""
    client.get("/v1/points?sensor=x", headers=READER)
    for headers in (READER, {"X-Monitor": "s3cret"}):
        answer = client.get("/metrics", headers=headers)
        assert 'fieldring_http_requests_total{route="/v1/points",status="200"} 1.0' in answer.text
    assert client.get("/metrics", headers={"X-Monitor": "other"}).status_code == 401


def test_answers_carry_the_security_headers(client: FlaskClient) -> None:
    """No foreign content, no guessing of types, no copies kept."""
    headers = client.get("/v1/sensors", headers=READER).headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert ("nosniff", "no-store") == (headers["X-Content-Type-Options"], headers["Cache-Control"])


# -- under gunicorn ------------------------------------------------------------------------------


@pytest.fixture
def serving(tmp_path: Path, store: SqliteStore) -> Iterator[Serving]:
    made = Serving(tmp_path)
    yield made
    made.close()


def test_a_long_stream_arrives_whole_and_sigterm_ends_cleanly(serving: Serving, store: SqliteStore) -> None:
    """All formats, over days, more than one chunk."""
    put(store, "hut", {T0 + i * HOUR_MS: {"x": i / 7} for i in range(5000)})
    for form, count in (
        ("json", lambda t: len(json.loads(t)["points"])),
        ("csv", lambda t: t.count("\n") - 1),
    ):
        assert 5000 == count(serving.http.get("/v1/points", params={"sensor": "hut", "format": form}).text)
    lines = serving.http.get("/v1/points", params={"sensor": "hut", "format": "ndjson"}).text.splitlines()
    assert {"count": 5000, "next": None} == json.loads(lines[-1])
    assert 0 == serving.close()


@pytest.mark.parametrize("form", ["json", "ndjson", "csv"])
def test_a_stream_that_fails_half_way_is_an_error_for_the_client(
    tmp_path: Path, store: SqliteStore, form: str
) -> None:
    """The connection breaks; nothing that looks whole was sent."""
    put(store, "hut", {T0 + i: {"x": float(i)} for i in range(5000)})
    serving = Serving(tmp_path, script=Path(__file__).with_name("faulty_serve.py"), test_fail_after="3500")
    try:
        received: list[bytes] = []

        def read() -> None:
            with serving.http.stream("GET", f"/v1/points?sensor=hut&format={form}") as answer:
                assert answer.status_code == 200
                received.extend(answer.iter_bytes())

        with pytest.raises(httpx.RemoteProtocolError):
            read()
        assert b"".join(received).count(b"hut") == 3000
        assert b'"next"' not in b"".join(received)
        assert serving.http.get("/v1/sensors").status_code == 200
    finally:
        serving.close()


def test_what_fails_before_the_first_part_has_a_proper_status(tmp_path: Path, store: SqliteStore) -> None:
    """503 and not a broken 200."""
    put(store, "hut", {T0 + i: {"x": float(i)} for i in range(10)})
    serving = Serving(tmp_path, script=Path(__file__).with_name("faulty_serve.py"), test_fail_after="5")
    try:
        answer = serving.http.get("/v1/points?sensor=hut")
        assert (503, ERROR_KEYS) == (answer.status_code, set(answer.json()))
    finally:
        serving.close()


def test_a_slow_reader_does_not_hold_up_others(serving: Serving, store: SqliteStore) -> None:
    """Threads: a client that stops reading takes one of them."""
    put(store, "hut", {T0 + i: {"x": float(i)} for i in range(50_000)})
    with serving.http.stream("GET", "/v1/points?sensor=hut") as answer:
        assert answer.status_code == 200
        began = time.monotonic()
        assert serving.http.get("/v1/sensors").status_code == 200
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"junk\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/7.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nLong: " + b"x" * 9_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: br\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: the-unexpected\r\nContent-Length: 1\r\n\r\n", 417),
    ],
)  # fmt: skip
def test_what_is_no_http_is_answered_in_the_one_shape(serving: Serving, sent: bytes, status: int) -> None:
    """And ends the connection."""
    with socket.create_connection(("127.0.0.1", serving.port), timeout=10) as client:
        client.sendall(sent)
        answer = b"".join(iter(lambda: client.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"HTTP/1.1 {status} ".encode() == head[:13]
    assert b"application/json" in head
    assert ERROR_KEYS == set(json.loads(body))
