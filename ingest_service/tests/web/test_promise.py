"""What was acknowledged is what is read: resends in any grouping, corrections, series that look alike."""

from __future__ import annotations

import itertools
import json
import socket
from typing import Any

import cbor2
import httpx
import pytest
from receiving import Service, remote_write, wait_until

from fieldring.drain import Drain
from fieldring.web.openapi import document

T = 1_700_000_000_000
REMOTE = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"}


def write(service: Service, *lines: str) -> httpx.Response:
    return service.http.post("/write", params={"precision": "ms"}, content="\n".join(lines))


METRICS = ("no2", "o3", "pm10", "pm25")


@pytest.mark.parametrize(
    "groups",
    [
        [METRICS, METRICS],
        [METRICS, METRICS[:2]],
        [METRICS[:2], METRICS],
        [METRICS[:2], METRICS[2:], METRICS],
        [METRICS, *((metric,) for metric in METRICS)],
        [*((metric,) for metric in METRICS), tuple(reversed(METRICS))],
        [METRICS[:3], METRICS[1:]],
    ],
    ids=["same", "subset", "superset", "halves then whole", "one by one", "another order", "overlapping"],
)
@pytest.mark.parametrize("spooled", [False, True], ids=["stored", "spooled first"])
def test_resend(service: Service, groups: list[tuple[str, ...]], spooled: bool) -> None:
    """However fields are grouped when they are sent again, each key has the value that was accepted last."""
    expected: dict[str, float] = {}
    for number, group in enumerate(groups):
        service.store.up = not (spooled and number == 0)
        fields = {metric: number * 100.0 + METRICS.index(metric) for metric in group}
        expected |= fields
        answer = write(service, f"air,sensor=a {','.join(f'{k}={v}' for k, v in fields.items())} {T}")
        assert 204 == answer.status_code
    service.store.up = True
    Drain(service.queue, service.store).run_once()
    assert [(T, f"air_{metric}", expected[metric]) for metric in METRICS] == service.points("a")


@pytest.mark.parametrize("formats", list(itertools.permutations(["line", "json", "cbor", "remote"], 2)))
def test_correction_is_not_undone_by_an_older_spool(service: Service, formats: tuple[str, str]) -> None:
    """What waited in the spool since before the correction loses against it, whatever format each came in."""

    def send(form: str, value: float) -> int:
        record: dict[Any, Any] = {"n": "a/no2", "v": value, "t": T / 1000}
        match form:
            case "line":
                return write(service, f"no2,sensor=a value={value} {T}").status_code
            case "json":
                kind, body = "json", json.dumps([record]).encode()
            case "cbor":
                kind, body = "cbor", cbor2.dumps([{0: "a/no2", 2: value, 6: T / 1000}])
            case _:
                body = remote_write(({"__name__": "no2", "sensor": "a"}, value))
                return service.http.post("/api/v1/write", content=body, headers=REMOTE).status_code
        return service.http.post(
            "/api/v1/senml", content=body, headers={"Content-Type": f"application/senml+{kind}"}
        ).status_code

    wrong, right = formats
    service.store.up = False
    assert send(wrong, 1.0) in (202, 204)
    service.store.up = True
    # The store is tried again a moment after a failure; the correction must not be spooled, too.
    wait_until(lambda: write(service, f"m,sensor=b v=1 {T}").headers["fieldring-durability"] == "stored")
    assert 204 == send(right, 2.0)
    assert [(T, "no2", 2.0)] == service.points("a")
    assert service.queue.pending_records
    Drain(service.queue, service.store).run_once()
    assert 0 == service.queue.pending_records
    assert [(T, "no2", 2.0)] == service.points("a")


def test_last_line_of_a_request_wins_across_its_pieces(service: Service) -> None:
    """Also where the request is so large that it is stored in several pieces."""
    lines = [f"no2,sensor=a value=1 {T}", *(f"x,sensor=b value={n} {T + n}" for n in range(40_000))]
    answer = write(service, *lines, f"no2,sensor=a value=2 {T}")
    assert 204 == answer.status_code
    assert [(T, "no2", 2.0)] == service.points("a")


def test_telegrafs_cpus_are_series_of_their_own(service: Service) -> None:
    """Tags beside ``host`` tell series apart; none overwrites another."""
    lines = [f"cpu,host=a,cpu=cpu{n} usage_idle={90 + n},usage_user={n} {T}" for n in range(2)]
    answer = write(service, *lines)
    assert (204, None) == (answer.status_code, answer.headers.get("fieldring-collapsed"))
    assert {
        ("cpu_usage_idle{cpu=cpu0}", 90.0),
        ("cpu_usage_idle{cpu=cpu1}", 91.0),
        ("cpu_usage_user{cpu=cpu0}", 0.0),
        ("cpu_usage_user{cpu=cpu1}", 1.0),
    } == {(metric, value) for _, metric, value in service.points("a")}


def test_ambiguous_lines_are_refused_and_nothing_else(service: Service) -> None:
    """Two values for one key of which nobody can say which was meant; the third line is kept."""
    lines = [f"cpu,sensor=a,cpu=cpu{n} idle={n} {T}" for n in range(2)]
    answer = write(service, *lines, f"mem,sensor=a free=1 {T}")
    assert 400 == answer.status_code
    assert [1, 2] == [error["line"] for error in answer.json()["errors"]]
    assert all("ambiguous" in error["reason"] for error in answer.json()["errors"])
    assert [(T, "mem_free", 1.0)] == service.points("a")
    assert 2 == service.metric("fieldring_lines_refused_total", reason="ambiguous")


def test_slow_clients_are_acknowledged_too(service: Service) -> None:
    """A hundred bodies that come in bits, and a fast client in between: all are kept."""
    slow: list[socket.socket] = []
    bodies = [f"no2,sensor=slow value={n} {T + n}\n".encode() for n in range(100)]
    for body in bodies:
        client = socket.create_connection(("127.0.0.1", service.port), timeout=30)
        client.sendall(
            b"POST /write?precision=ms HTTP/1.1\r\nHost: x\r\nAuthorization: Token writer\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        slow.append(client)
    for start, stop in ((0, 7), (7, 20), (20, None)):
        for client, body in zip(slow, bodies, strict=True):
            client.sendall(body[start:stop])
        assert 204 == write(service, f"no2,sensor=fast value={start} {T + start}").status_code
    for client in slow:
        assert client.recv(4096).startswith(b"HTTP/1.1 204 ")
        client.close()
    assert [(T + n, "no2", float(n)) for n in range(100)] == service.points("slow")
    assert 3 == len(service.points("fast"))


WRITES = [
    (path, method)
    for path, item in document()["paths"].items()
    for method, operation in item.items()
    if "write" in operation["tags"]
]


@pytest.mark.parametrize(("path", "method"), [*WRITES, ("/metrics", "get")])
def test_wrong_token_and_wrong_role(shared: Service, path: str, method: str) -> None:
    """401 for a token that is not known, 403 for one without the role, on every way that wants one."""
    for headers in ({}, {"Authorization": "Token wrong"}, {"Authorization": "Basic eDp4"}):
        answer = httpx.request(method, shared.url + path, headers=headers)
        assert (401, "unauthorized") == (answer.status_code, answer.json()["code"])
    if path != "/query":
        token = "writer" if path == "/metrics" else "reader"
        answer = httpx.request(method, shared.url + path, headers={"Authorization": f"Token {token}"})
        assert (403, "forbidden") == (answer.status_code, answer.json()["code"])
