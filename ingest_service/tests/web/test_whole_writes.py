"""A write that comes with one read takes a shorter way inside, and must not be answered otherwise."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from receiving import TOKENS, Service, wait_until

from fieldring.wire import block

T = 1_700_000_000_000
LINE = b"no2,sensor=%s value=1 %d"


def request(
    body: bytes,
    *,
    path: bytes = b"/write?precision=ms",
    method: bytes = b"POST",
    version: bytes = b"1.1",
    **headers: bytes,
) -> bytes:
    fields = {b"Host": b"x", b"Authorization": b"Token writer", b"Content-Length": b"%d" % len(body)}
    fields |= {name.replace("_", "-").encode(): value for name, value in headers.items()}
    head = b"".join(name + b": " + value + b"\r\n" for name, value in fields.items() if value)
    return method + b" " + path + b" HTTP/" + version + b"\r\n" + head + b"\r\n" + body


@contextmanager
def connected(service: Service) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


def read_answer(client: socket.socket) -> tuple[int, dict[bytes, bytes], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(4096)
        assert piece, "the connection ended before an answer"
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
    while len(body) < int(headers.get(b"content-length", b"0")):
        body += client.recv(4096)
    return int(status.split()[1]), headers, body


@pytest.fixture
def taken(shared: Service, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the writes to the shared service that took the short way."""
    paths: list[str] = []
    usual = shared.receive.write_whole

    def noted(path: str, *rest: object) -> None:
        paths.append(path)
        usual(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(shared.receive, "write_whole", noted)
    return paths


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(LINE % (b"a", T)), 204),
        (request(LINE % (b"a", T), path=b"/api/v2/write?precision=ms&bucket=b"), 204),
        (request(b""), 204),
        (request(b"no2,sensor=a value=1 %d\njunk" % T), 400),
        (request(b"junk"), 400),
        (request(LINE % (b"a", 1)), 400),
        (request(b"x", path=b"/write?precision=fortnight"), 400),
        (request(LINE % (b"a", T), Authorization=b"Token wrong"), 401),
        (request(LINE % (b"a", T), Authorization=b""), 401),
        (request(LINE % (b"a", T), path=b"/write?precision=ms&u=x&p=writer", Authorization=b""), 204),
        (request(LINE % (b"a", T), Authorization=b"Token reader"), 403),
        (request(LINE % (b"south", T), Authorization=b"Token limited"), 403),
    ],
)  # fmt: skip
@pytest.mark.parametrize("up", [True, False])
def test_answered_as_one_that_comes_in_pieces(
    shared: Service, taken: list[str], sent: bytes, status: int, up: bool
) -> None:
    """Status, headers and body are those of the long way."""
    shared.store.up = up
    shared.receive._acceptor.store_answered()
    answers = []
    with connected(shared) as client:
        for pieces in ([sent], [sent[:-1], sent[-1:]]):
            for piece in pieces:
                client.sendall(piece)
                if piece is not pieces[-1]:
                    time.sleep(0.1)
            answers.append(read_answer(client))
    shared.store.up = True
    shared.receive._acceptor.store_answered()
    for _, headers, _ in answers:
        headers.pop(b"date")
        # A refusal that comes before the body ends the connection; here there is no body to come.
        headers.pop(b"connection", None)
    assert answers[0] == answers[1]
    assert answers[0][0] == (202 if status == 204 and b"v2" in sent and not up else status)
    if not sent.endswith(b"\r\n\r\n"):
        # Two where the pieces of the second were read at once.
        assert 1 <= len(taken) <= 2
    assert shared.metric("fieldring_request_bytes") == 0
    assert shared.metric("fieldring_requests_under_way") == 0
    assert shared.metric("fieldring_commits_under_way") == 0


@pytest.mark.parametrize(
    "sent",
    [
        request(b"", method=b"GET", path=b"/ping"),
        request(LINE % (b"a", T), Content_Encoding=b"identity"),
        request(LINE % (b"a", T), version=b"1.0"),
        request(b"", method=b"GET"),
        request(b"#" * 65_537),
        request(LINE % (b"a", T), path=b"/wr%69te?precision=ms"),
        request(b"3\r\n#no\r\n0\r\n\r\n", Content_Length=b"", Transfer_Encoding=b"chunked"),
    ],
)  # fmt: skip
def test_what_is_more_than_its_body_goes_the_long_way(shared: Service, taken: list[str], sent: bytes) -> None:
    """And is answered there."""
    with connected(shared) as client:
        client.sendall(sent)
        assert read_answer(client)[0]
    assert taken == []


def test_requests_sent_without_waiting_are_answered_in_their_order(service: Service) -> None:
    """Pipelined: good, refused, a probe, good, each with its own answer."""
    wanted = [
        (request(LINE % (b"first", T)), 204),
        (request(b"junk"), 400),
        (request(b"", method=b"GET", path=b"/health"), 200),
        (request(LINE % (b"last", T)), 204),
        (request(b"", method=b"GET", path=b"/nowhere"), 404),
    ]
    service.store.gate.clear()
    with connected(service) as client:
        client.sendall(b"".join(sent for sent, _ in wanted))
        time.sleep(0.2)
        service.store.gate.set()
        data = b""
        while data.count(b"HTTP/1.1 ") < len(wanted):
            piece = client.recv(4096)
            assert piece, data
            data += piece
    statuses = [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [status for _, status in wanted]
    assert service.points("first")
    assert service.points("last")


def test_who_asks_for_the_connection_to_end_sees_it_end(shared: Service, taken: list[str]) -> None:
    """The answer says so too."""
    with connected(shared) as client:
        client.sendall(request(LINE % (b"a", T), Connection=b"close"))
        status, headers, _ = read_answer(client)
        assert (status, headers[b"connection"]) == (204, b"close")
        assert client.recv(1) == b""
    assert taken == ["/write"]


def test_who_leaves_before_the_answer_holds_nothing(service: Service) -> None:
    """Its write goes on, and its places are given back."""
    service.store.gate.clear()
    with connected(service) as client:
        client.sendall(request(LINE % (b"gone", T)))
        wait_until(lambda: service.metric("fieldring_commits_under_way") == 1)
    service.store.gate.set()
    wait_until(lambda: service.metric("fieldring_commits_under_way") == 0)
    wait_until(lambda: bool(service.points("gone")))
    assert service.metric("fieldring_requests_under_way") == 0


def test_bounded_places_and_memory(start: Callable[..., Service]) -> None:
    """What does not fit is answered 503 at once, and what it had taken is given back."""
    service = start(receive_threads=1, receive_queue_max=1)
    service.store.gate.clear()
    clients = [socket.create_connection(("127.0.0.1", service.port), timeout=10) for _ in range(4)]
    for number, client in enumerate(clients):
        client.sendall(request(LINE % (b"s%d" % number, T)))
    wait_until(lambda: service.metric("fieldring_http_requests_total", route="/write", status="503") == 2)
    service.store.gate.set()
    answers = [read_answer(client) for client in clients]
    assert sorted(status for status, _, _ in answers) == [204, 204, 503, 503]
    assert all(b"retry-after" in headers for status, headers, _ in answers if status == 503)
    for client in clients:
        client.close()
    assert service.metric("fieldring_requests_under_way") == 0
    assert service.metric("fieldring_request_bytes") == 0


def test_one_that_breaks_off_is_no_write(service: Service) -> None:
    """Junk where the next request should begin ends the connection after the answer that is due."""
    with connected(service) as client:
        client.sendall(request(LINE % (b"kept", T)))
        assert read_answer(client)[0] == 204
        client.sendall(b"\0\0\0\r\n\r\n")
        status, _, body = read_answer(client)
        assert status == 400
        assert set(json.loads(body)) == {"code", "message", "error", "errors"}
        assert client.recv(1) == b""
    assert service.points("kept")


@pytest.mark.parametrize("cut", [0, 100])
def test_a_head_without_end_is_refused(shared: Service, taken: list[str], cut: int) -> None:
    """431 in the one shape; a body of the same length is none."""
    with connected(shared) as client:
        client.sendall(request(b"#" * 60_000))
        assert read_answer(client)[0] == 204
        long = request(LINE % (b"a", T), Long=b"x" * 20_000)
        client.sendall(long[:cut])
        time.sleep(0.05)
        client.sendall(long[cut:])
        status, _, body = read_answer(client)
    assert status == 431
    assert set(json.loads(body)) == {"code", "message", "error", "errors"}
    assert taken == ["/write"]


@pytest.mark.parametrize("count", [1, 2])
def test_junk_behind_requests_takes_nobodys_answer(service: Service, count: int) -> None:
    """They were kept, and are told so; then the connection ends."""
    with connected(service) as client:
        client.sendall(b"".join(request(LINE % (b"a", T + n)) for n in range(count)) + b"\0\0\0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65_536), b""))
    assert answer.count(b"HTTP/1.1 204 ") == count
    assert answer.count(b"HTTP/1.1 ") == count
    assert len(service.points("a")) == count


@pytest.mark.parametrize("encoding", [b"", b"identity"])
def test_who_sends_no_more_is_answered_all_the_same(service: Service, encoding: bytes) -> None:
    """A client may close its side behind the request; one that does so within it has gone."""
    service.store.gate.clear()
    with connected(service) as client, connected(service) as gone:
        client.sendall(request(LINE % (b"a", T), Content_Encoding=encoding))
        gone.sendall(request(LINE % (b"b", T), Content_Encoding=encoding)[:-1])
        for each in (client, gone):
            each.shutdown(socket.SHUT_WR)
        assert gone.recv(1) == b""
        service.store.gate.set()
        assert read_answer(client)[0] == 204
        assert client.recv(1) == b""
    assert service.points("a") == [(T, "no2", 1.0)]
    wait_until(lambda: service.metric("fieldring_requests_under_way") == 0)


def test_a_defect_is_answered_500(shared: Service, taken: list[str]) -> None:
    """Without its inside, and the next request is served."""
    shared.store.defect = True
    with connected(shared) as client:
        client.sendall(request(LINE % (b"a", T)))
        status, _, body = read_answer(client)
        assert (status, b"secret" in body) == (500, False)
        shared.store.defect = False
        client.sendall(request(LINE % (b"a", T)))
        assert read_answer(client)[0] == 204
    assert taken == ["/write", "/write"]


def test_what_is_acknowledged_while_the_store_comes_and_goes_is_kept(service: Service) -> None:
    """Stored, spooled, or spooled by the request that tried the store again: each answer's point is there."""
    acknowledged: list[int] = []

    def send(client: socket.socket, first: int) -> None:
        for time_ms in range(first, first + 150):
            client.sendall(request(LINE % (b"a", time_ms)))
            assert read_answer(client)[0] == 204
            acknowledged.append(time_ms)

    clients = [socket.create_connection(("127.0.0.1", service.port), timeout=30) for _ in range(4)]
    threads = [threading.Thread(target=send, args=(c, T + 1_000 * n)) for n, c in enumerate(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        service.store.up = not service.store.up
        time.sleep(0.3)
    for client in clients:
        client.close()
    spooled = [block.decode(record.payload) for record in service.queue.read(1 << 20)]
    kept = [point[0] for point in service.points("a")] + [t for batch in spooled for t in batch.times_ms]
    assert len(acknowledged) == 600
    assert set(acknowledged) <= set(kept)
    assert service.metric("fieldring_points_total", durability="spooled") == sum(map(len, spooled)) > 0
    assert service.metric("fieldring_requests_under_way") == 0


def test_the_write_that_tries_the_store_again_is_kept(service: Service) -> None:
    """It goes alone, and was decoded before."""
    service.store.up = False
    with connected(service) as client:
        for number in range(3):
            client.sendall(request(LINE % (b"a", T + number)))
            assert read_answer(client)[1][b"fieldring-durability"] == b"spooled"
            wait_until(lambda: service.receive._acceptor.probe_due)
    spooled = [block.decode(record.payload) for record in service.queue.read(1 << 20)]
    assert [batch.times_ms for batch in spooled] == [[T], [T + 1], [T + 2]]


def test_a_head_that_was_seen_before_is_not_parsed(shared: Service, taken: list[str]) -> None:
    """And each of its requests means what it says: body, parameters and token."""
    heads = [
        {"path": b"/write?precision=ms"},
        {"path": b"/write?precision=s"},
        {"path": b"/api/v2/write?precision=ms"},
        {"path": b"/write?precision=ms", "Authorization": b"Token limited"},
        {"path": b"/write?precision=ms", "Authorization": b"Token wrong"},
    ]
    found: list[list[tuple[int, dict[bytes, bytes], bytes]]] = []
    with connected(shared) as client:
        for turn in range(3):
            found.append([])
            for head in heads:
                client.sendall(request(b"no2,sensor=seen%d value=1 1700000000" % turn, **head))
                found[-1].append(read_answer(client))
    assert [answer[0] for answer in found[0]] == [400, 204, 400, 403, 401]
    statuses = [[answer[0] for answer in answers] for answers in found]
    assert statuses[0] == statuses[1] == statuses[2]
    assert [len(shared.points(f"seen{turn}")) for turn in range(3)] == [1, 1, 1]
    assert len(taken) == 15


@pytest.mark.parametrize("cut", [1, 20, 60, -30, -1])
def test_a_head_that_was_seen_before_may_come_in_pieces(shared: Service, cut: int) -> None:
    """What the parser has begun it also ends, and the next request may be quick again."""
    sent = request(LINE % (b"cut%d" % cut, T))
    with connected(shared) as client:
        for pieces in (
            [sent],
            [sent[:cut], sent[cut:]],
            [sent],
            [sent, sent],
            [sent + sent[:cut], sent[cut:]],
        ):
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.03)
            answers = b""
            while answers.count(b"\r\n\r\n") < b"".join(pieces).count(b"POST "):
                answers += client.recv(4096)
            assert answers.count(b"HTTP/1.1 204") == answers.count(b"HTTP/1.1 ")
    assert len(shared.points(f"cut{cut}")) == 1


def test_a_token_that_is_withdrawn_is_refused_though_its_head_was_seen(start: Callable[..., Service]) -> None:
    """Heads are remembered, who may write is not."""
    service = start()
    sent = request(LINE % (b"a", T))
    with connected(service) as client:
        client.sendall(sent)
        assert read_answer(client)[0] == 204
        path = service.receive.tokens._path
        path.write_text(json.dumps([e for e in json.loads(path.read_text()) if e["id"] != "writer"]))
        time.sleep(0.4)
        client.sendall(sent)
        assert read_answer(client)[0] == 401
    assert len(TOKENS) > 1


def test_a_connection_at_rest_is_closed_after_its_time(start: Callable[..., Service]) -> None:
    """Counted from its last answer, with one timer for all of them."""
    service = start()
    service._server.config.timeout_keep_alive = 1  # type: ignore[assignment]
    with connected(service) as client:
        began = time.monotonic()
        for _ in range(4):
            client.sendall(request(LINE % (b"a", T)))
            assert read_answer(client)[0] == 204
            time.sleep(0.4)
        last = time.monotonic()
        assert last - began > 1.5
        assert client.recv(1) == b""
        assert 0.3 < time.monotonic() - last < 5
