"""HTTP of devices on the LAN: an answer only after the fdatasync, one's own sensor only."""

from __future__ import annotations

import base64
import contextlib
import gzip
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from forwarder_process import Gateway

from fieldring.gateway.http_in import presented_login

pytestmark = [
    pytest.mark.integration,  # a forwarder in a process of its own
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]

LOGIN = ("a", "password of a")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for all that leaves it as it was."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway"))
    gateway.start()
    yield gateway
    gateway.close()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    yield gateway
    gateway.close()


def client(gateway: Gateway, **options: Any) -> httpx.Client:
    return httpx.Client(
        base_url=f"https://127.0.0.1:{gateway.ports['http']}",
        verify=gateway.context(),
        timeout=30,
        trust_env=False,
        **({"auth": LOGIN} | options),
    )


def test_answered_is_spooled(gateway: Gateway) -> None:
    """kill -9 right after the answers: every point of every format is in the spool."""
    gateway.start()
    with client(gateway) as http:
        lines = "\n".join(f"no2,sensor=a value={n} {n}" for n in range(1, 6))
        answers = [
            http.post("/write?db=x&precision=ms", content=lines),
            http.post("/api/v2/write?precision=ms", content=gzip.compress(b"no2,sensor=a value=6 6"),
                      headers={"Content-Encoding": "gzip"}),
            http.post("/api/v1/senml", content=b'[{"bn":"a/","t":1600000000,"n":"no2","v":7}]',
                      headers={"Content-Type": "application/senml+json"}),
        ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [204, 202, 202]
    assert {answer.headers["Fieldring-Durability"] for answer in answers} == {"spooled"}
    gateway.end(signal.SIGKILL)
    expected = {("a", n, float(n)) for n in range(1, 7)} | {("a", 1_600_000_000_000, 7.0)}
    assert gateway.spooled() == expected


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"Authorization": "Token a:password of a"}, ""),
        ({"Authorization": "Bearer a:password of a"}, ""),
        ({"Authorization": "Basic " + base64.b64encode(b"a:password of a").decode()}, ""),
        ({}, "&u=a&p=password+of+a"),
    ],
    ids=["Token", "Bearer", "Basic", "u and p"],
)
def test_ways_to_log_in(shared: Gateway, headers: dict[str, str], query: str) -> None:
    """Those of the ingest hosts, with name and password."""
    with client(shared, auth=None) as http:
        answer = http.post(f"/write?precision=ms{query}", content="no2,sensor=a value=1 1", headers=headers)
    assert answer.status_code == 204, answer.text


@pytest.mark.parametrize(
    ("path", "options", "status", "text"),
    [
        ("/write", {"auth": None}, 401, "no login"),
        ("/write", {"auth": ("a", "wrong")}, 401, "wrong password or unknown device"),
        ("/write", {"auth": ("nobody", "password of a")}, 401, "wrong password or unknown device"),
        ("/write", {"content": "no2,sensor=b value=1 1"}, 403, "may not write sensor 'b'"),
        ("/write", {"content": "no2,sensor=aa value=1 1"}, 403, "may not write sensor 'aa'"),
        ("/write", {"content": "junk"}, 400, "line 1"),
        ("/write?precision=fortnight", {}, 400, "precision"),
        ("/write", {"headers": {"Content-Encoding": "br"}}, 415, "content encoding"),
        ("/write", {"content": b"junk", "headers": {"Content-Encoding": "gzip"}}, 400, "gzip"),
        ("/write", {"content": b"#" * 4_200_000}, 413, "larger than"),
        ("/api/v1/senml", {"headers": {"Content-Type": "text/plain"}}, 415, "senml"),
        ("/api/v1/senml", {"content": b"{", "headers": {"Content-Type": "application/senml+json"}}, 400, ""),
        ("/api/v1/block", {}, 404, "is not here"),
    ],
)
def test_refused(shared: Gateway, path: str, options: dict[str, Any], status: int, text: str) -> None:
    """Nothing is kept, and the one error shape says why."""
    before = shared.metric("points_spooled_total")
    login = {"auth": options["auth"]} if "auth" in options else {}
    request = {"content": "no2,sensor=a value=1 1"} | {k: v for k, v in options.items() if k != "auth"}
    with client(shared, **login) as http:
        answer = http.post(path, **request)
    assert answer.status_code == status, answer.text
    assert text in answer.json()["message"]
    assert shared.metric("points_spooled_total") == before


def test_an_answer_before_the_body_ends_the_connection(shared: Gateway) -> None:
    """A proxy of the site that kept it for another request would wait behind the rest of the body."""
    head = b"POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 4200000\r\n"
    head += b"Authorization: Token a:password of a\r\n\r\n"
    address = ("127.0.0.1", shared.ports["http"])
    with (
        socket.create_connection(address, timeout=10) as plain,
        shared.context().wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(head)
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_a_body_behind_an_upgrade_is_refused(shared: Gateway) -> None:
    """The HTTP parser passes it over: an answer of 204 would have promised what was never read."""
    headers = {"Connection": "Upgrade", "Upgrade": "h2c"}
    with client(shared) as http:
        answer = http.post("/write?precision=ms", content=b"no2,sensor=a value=1 1", headers=headers)
    assert answer.status_code == 400


def test_good_lines_of_a_bad_body_are_kept(shared: Gateway) -> None:
    """400 names the lines that were refused; the others are spooled."""
    before = shared.metric("points_spooled_total")
    with client(shared) as http:
        answer = http.post("/write?precision=ms", content="no2,sensor=a value=1 1\nx\nno2,sensor=b value=1 1")
    assert answer.status_code == 400
    assert [error["line"] for error in answer.json()["errors"]] == [2, 3]
    assert answer.headers["Fieldring-Durability"] == "spooled"
    assert shared.metric("points_spooled_total") == before + 1


def test_probes_and_methods(shared: Gateway) -> None:
    """What clients ask first needs no login; other methods are refused by name."""
    with client(shared, auth=None) as http:
        assert http.get("/ping").status_code == 204
        assert http.get("/ready").json() == {"status": "ready"}
        answer = http.get("/write")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


def test_full_spool(gateway: Gateway) -> None:
    """503 with Retry-After, and nothing of it is promised."""
    gateway.start(spool_segment_bytes=1_048_576, spool_max_bytes=2_097_152)
    with client(gateway) as http:
        statuses = []
        for number in range(1, 40):
            line = f'note,sensor=a text="{"x" * 60_000}",value={number} {number}'
            answer = http.post("/write?precision=ms", content=line)
            statuses.append(answer.status_code)
            if answer.status_code != 204:
                break
    assert statuses[-1] == 503
    assert int(answer.headers["Retry-After"]) > 0
    gateway.end(signal.SIGKILL)
    kept = {(sensor, t) for sensor, t, value in gateway.spooled() if value == t}
    assert kept == {("a", number) for number in range(1, len(statuses))}


def test_half_sent_requests_block_nobody(shared: Gateway) -> None:
    """Fifty connections that stand half-way cost a fast one nothing."""
    head = "POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
    with contextlib.ExitStack() as stack:
        for number in range(50):
            connection = stack.enter_context(
                shared.context().wrap_socket(
                    socket.create_connection(("127.0.0.1", shared.ports["http"]), timeout=20),
                    server_hostname="127.0.0.1",
                )
            )
            login = base64.b64encode(b"a:password of a").decode()
            end = f"Authorization: Basic {login}\r\n\r\nno2," if number % 2 else ""
            connection.sendall((head + end).encode())
        with client(shared) as http:
            assert http.post("/write?precision=ms", content="no2,sensor=a value=1 1").status_code == 204


def test_clock_that_is_believed_after_a_while(gateway: Gateway, eventually: Callable[..., None]) -> None:
    """Until then 503; here the while is over at the first look."""
    gateway.start(gateway_clock_trust="kernel", gateway_clock_wait_seconds=0)
    with client(gateway) as http:
        # Believed after the first look, as this host runs for longer than no time at all.
        eventually(
            lambda: http.post("/write?precision=ms", content="no2,sensor=a value=1 1").status_code == 204
        )
    assert "believed" in gateway.fetch("/")


@pytest.mark.parametrize(
    ("authorization", "query", "expected"),
    [
        ("Basic !!", {}, None),
        ("Basic " + base64.b64encode(b"\xff:x").decode(), {}, None),
        ("Basic " + base64.b64encode(b"a:b:c").decode(), {}, ("a", b"b:c")),
        ("Token x", {}, None),
        ("", {}, None),
        ("Digest a:b", {"u": "a", "p": "b"}, None),
        ("", {"u": "a", "p": "b:c"}, ("a", b"b:c")),
    ],
)
def test_presented_login(authorization: str, query: dict[str, str], expected: object) -> None:
    """Only whole names and passwords count."""
    assert presented_login(authorization, query) == expected
