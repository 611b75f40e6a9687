"""Writes that come together are decoded as one body where nobody could tell; each is answered as alone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receiving import Service

from fieldring.model import Batch
from fieldring.web.probes import Answer
from fieldring.wire import block

T = 1_700_000_000_000


async def _write(service: Service, bodies: Sequence[bytes], *, token: str, precision: str) -> list[Answer]:
    answers: dict[int, Answer] = {}
    for place, body in enumerate(bodies):
        service.receive.write_whole(
            "/write",
            b"precision=" + precision.encode(),
            {b"authorization": b"Token " + token.encode()},
            body,
            lambda answer, place=place: answers.__setitem__(place, answer),  # type: ignore[misc]
            asyncio.get_running_loop(),
        )
    async with asyncio.timeout(20):
        while len(answers) < len(bodies):
            await asyncio.sleep(0.001)
    return [answers[place] for place in range(len(bodies))]


def together(service: Service, *bodies: bytes, token: str = "writer", precision: str = "ms") -> list[Answer]:
    """Write them in one turn of the event loop."""
    return asyncio.run(_write(service, bodies, token=token, precision=precision))


def one_by_one(
    service: Service, *bodies: bytes, token: str = "writer", precision: str = "ms"
) -> list[Answer]:
    return [together(service, body, token=token, precision=precision)[0] for body in bodies]


def spooled(service: Service) -> list[Batch]:
    return [block.decode(record.payload) for record in service.queue.read(1 << 20)]


def found(service: Service) -> list[tuple[str, int, str, float | str]]:
    """Every point that is stored, and then every one that the drain would store, merged as it would."""
    service.store.up = True
    for batch in spooled(service):
        service.store.write(batch)
    return [
        (info.sensor, *point) for info in service.store.sensors() for point in service.points(info.sensor)
    ]


def line(sensor: str, value: float, time_ms: int = T, rest: str = "") -> bytes:
    return f"no2,sensor={sensor}{rest} value={value:g} {time_ms}".encode()


@pytest.mark.parametrize("width", [1, 40])
def test_they_are_one_record_of_the_spool(service: Service, width: int) -> None:
    """Few rows as lists, many as arrays; a first body teaches the names."""
    service.store.up = False
    one_by_one(service, line("a", 0, T - 1))
    bodies = [
        b"\n".join(line("a", n * 100 + i, T + n * 100 + i) for i in range(width)) + b"\n" * (n % 2)
        for n in range(16)
    ]
    answers = together(service, *bodies)
    assert {(answer.status, answer.headers) for answer in answers} == {
        (204, ((b"fieldring-durability", b"spooled"),))
    }
    assert [len(batch) for batch in spooled(service)] == [1, 16 * width]
    assert len(found(service)) == 1 + 16 * width
    assert service.metric("fieldring_points_total", durability="spooled") == 1 + 16 * width
    assert service.metric("fieldring_request_bytes") == 0


def test_who_sends_junk_is_decoded_one_by_one_for_a_while(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is slow to decode is not decoded twice each time; others go on together."""
    asked: list[int] = []
    usual = service.receive._commits._as_one

    def noted(works: list[Any], body: bytes) -> Batch | None:
        asked.append(len(works))
        return usual(works, body)

    monkeypatch.setattr(service.receive._commits, "_as_one", noted)
    for _ in range(3):
        assert [a.status for a in together(service, line("a", 1), b"no2,sensor=a value=x 1")] == [204, 400]
    assert asked == [2]
    assert [a.status for a in together(service, line("hut", 1), line("hut", 2, T + 1), token="limited")] == [
        204,
        204,
    ]
    assert asked == [2, 2]
    service.receive._commits._apart.clear()
    together(service, line("a", 1), line("b", 1))
    assert asked == [2, 2, 2]


def test_the_last_of_them_wins_a_key(service: Service) -> None:
    """None is told that it was replaced: it was not, when it was sent."""
    answers = together(service, line("a", 1), line("a", 2), line("a", 3))
    assert [(answer.status, answer.body) for answer in answers] == [(204, b"")] * 3
    assert not any(name == b"fieldring-collapsed" for answer in answers for name, _ in answer.headers)
    assert service.points("a") == [(T, "no2", 3.0)]


@pytest.mark.parametrize(
    "odd",
    [
        b"junk",
        b"",
        b"# a comment",
        b"\n\n",
        line("a", 1) + b'\nno2,sensor=q note="never closed 5',
        line("past", 1, -(10**15)),
        line("a", 1, rest=",room=2") + b"\n" + line("a", 2, rest=",room=3"),
        b"no2,sensor=q value=1",
        b"no2,sensor=q value=1 %d\r\n" % T,
        b"no2,sensor=q value=1 %d\\" % T,
        b"no2,sensor=\xff value=1 5",
        b"x" * 65_000,
    ],
)
@pytest.mark.parametrize("up", [True, False])
def test_one_of_another_kind_is_answered_as_alone(
    service: Service, tmp_path_factory: pytest.TempPathFactory, odd: bytes, up: bool
) -> None:
    """And costs its neighbours nothing."""
    alone = Service(tmp_path_factory.mktemp("alone"))
    try:
        bodies = [line("x", 1), odd, line("y", 2), b'" 7\n' + line("z", 3)]
        for each in (service, alone):
            each.store.up = up
            one_by_one(each, line("a", 0, T - 1))
        mine, theirs = together(service, *bodies), one_by_one(alone, *bodies)
        for answers in (mine, theirs):
            # While the store is away, the first goes alone and finds out.
            assert [answer.status for answer in answers][::2] == [204, 204]
        assert [(a.status, a.headers, a.body) for a in mine] == [
            (a.status, a.headers, a.body) for a in theirs
        ]
        # What has no time has that of its arrival.
        kept = [
            [point for point in found(each) if not (odd.endswith(b"=1") and point[0] == "q")]
            for each in (service, alone)
        ]
        assert kept[0] == kept[1]
    finally:
        alone.close()


def test_as_many_as_can_be_are_all_answered(service: Service) -> None:
    """As long as a piece together, and longer with the line ends that joining puts between them."""
    bodies = []
    for n in range(64):
        rows = b"\n".join(line("a", i, T + n * 1_000 + i) for i in range(200))
        first = line(
            "b", 1, T + n, ",pad=" + "x" * (8_192 - len(rows) - 1 - len(line("b", 1, T + n, ",pad=")))
        )
        bodies.append(first + b"\n" + rows)
    assert {8_192} == set(map(len, bodies))
    assert {answer.status for answer in together(service, *bodies)} == {204}
    service.store.up = False
    # The spool of these tests has no room for all.
    assert {answer.status for answer in together(service, *bodies)} <= {204, 503}
    assert service.metric("fieldring_request_bytes") == 0
    assert service.metric("fieldring_commits_under_way") == 0


def test_a_defect_leaves_nobody_without_an_answer(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in a commit, and the next writes are taken."""

    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    for up in (True, False):
        service.store.up = up
        one_by_one(service, line("a", 0, T - 1))
        with monkeypatch.context() as patch:
            patch.setattr(service.receive._commits, "_record", broken)
            answers = together(service, line("a", 1), line("a", 2, T + 1))
            assert {answer.status for answer in answers} == {500}
        assert [answer.status for answer in together(service, line("a", 3), line("b", 4))] == [204, 204]
    assert service.metric("fieldring_requests_under_way") == 0


def test_each_change_of_an_attribute_is_recorded(service: Service) -> None:
    """Also where both came in one turn; the same attribute twice is no change."""
    one_by_one(service, line("a", 0, T - 1, ",site=old"), line("a", 0, T - 2, ",site=new"))
    together(service, line("b", 1, T, ",site=old"), line("b", 2, T + 1, ",site=new"))
    changes = [(name, value) for _, name, value in service.store.attribute_changes("b")]
    assert changes == [("site", "old"), ("site", "new")]


def test_what_has_no_time_has_that_of_its_own_arrival(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the request it is stored with, nor that of the thread which decodes it."""
    ticks = itertools.count(T, 100)
    monkeypatch.setattr(service.receive._acceptor, "now_ms", lambda: next(ticks))
    together(service, b"no2,sensor=a value=1", b"no2,sensor=b value=2", b"no2,sensor=c value=3")
    times = [service.points(sensor)[0][0] for sensor in "abc"]
    assert [time_ms - times[0] for time_ms in times] == [0, 100, 200]


def test_sensors_that_are_not_the_tokens_own(service: Service) -> None:
    answers = together(service, line("north-1", 1), line("south", 2), line("hut", 3), token="limited")
    assert [answer.status for answer in answers] == [204, 403, 204]
    assert [service.points(name) != [] for name in ("north-1", "south", "hut")] == [True, False, True]


def test_what_the_store_chokes_on_is_asked_for_again_one_by_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = service.store.write_many

    def choke(batches: Sequence[Batch]) -> None:
        if any("poison" in batch.sensors for batch in batches):
            raise RuntimeError("cannot")
        usual(batches)

    monkeypatch.setattr(service.store, "write_many", choke)
    answers = together(service, line("a", 1), line("poison", 2), line("b", 3))
    assert [answer.status for answer in answers] == [204, 500, 204]
    assert service.points("a") == [(T, "no2", 1.0)]
    assert service.points("b") == [(T, "no2", 3.0)]


def test_a_full_spool_refuses_them_together(service: Service) -> None:
    """503 for each, and none of them is in the spool."""
    service.store.up = False
    filler = [b"\n".join(line(f"f{n}", i, T + i) for i in range(900)) for n in range(60)]
    assert {answer.status for answer in one_by_one(service, *filler)} == {204, 503}
    before = sum(map(len, spooled(service)))
    answers = together(service, *filler[:8])
    kept = sum(map(len, spooled(service))) - before
    assert kept == 900 * [answer.status for answer in answers].count(204)
    assert 503 in [answer.status for answer in answers]


def test_quota_is_charged_by_the_request(service: Service) -> None:
    """A token may go into debt by one request, not by all that come with it."""
    bodies = [b"\n".join(line("a", i, T + 100 * n + i) for i in range(15)) for n in range(8)]
    answers = together(service, *bodies, token="slow")
    assert [answer.status for answer in answers] == [204, 204] + [429] * 6


_LINES = st.builds(
    lambda sensor, metric, tag, fields, when: f"{metric},sensor={sensor}{tag} {fields}{when}".encode(),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["no2", "pm"]),
    st.sampled_from(["", ",room=1", ",room=2"]),
    st.sampled_from(
        ["value=1", "value=2,other=3", "other=4", "value=-0", 'text="x\ny"', "value=x", 'text="']
    ),
    st.sampled_from([f" {T}", f" {T + 1}", f" {T + 2}", " soon"]),
)
_BODIES = st.lists(
    st.lists(_LINES, max_size=3).map(b"\n".join)
    | st.lists(_LINES, min_size=20, max_size=40).map(lambda lines: b"\n".join(lines) + b"\n"),
    min_size=2,
    max_size=6,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    services = Service(tmp_path_factory.mktemp("joined")), Service(tmp_path_factory.mktemp("alone"))
    yield services
    for service in services:
        service.close()


@given(bodies=_BODIES)
def test_any_bodies_are_answered_as_alone(pair: tuple[Service, Service], bodies: list[bytes]) -> None:
    """And leave the same behind."""
    joined, alone = pair
    example = f"sensor={next(_examples)}".encode()
    bodies = [body.replace(b"sensor=", example) for body in bodies]
    # An example that could not be joined must not keep the next one from being tried.
    joined.receive._commits._apart.clear()
    mine, theirs = together(joined, *bodies), one_by_one(alone, *bodies)
    assert [(a.status, a.headers, a.body) for a in mine] == [(a.status, a.headers, a.body) for a in theirs]
    for sensor in {info.sensor for service in pair for info in service.store.sensors()}:
        if sensor.startswith(example[7:].decode()):
            assert joined.points(sensor) == alone.points(sensor)
            known = [service.store.sensor(sensor) for service in pair]
            assert known[0] == known[1]
            changes = [[c[1:] for c in service.store.attribute_changes(sensor)] for service in pair]
            assert changes[0] == changes[1]


_examples = (f"e{n}-" for n in itertools.count())
