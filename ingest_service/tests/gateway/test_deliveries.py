"""A message that comes again is known only where it cannot be another one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fieldring.gateway import deliveries, mqtt_server
from fieldring.gateway.deliveries import Deliveries
from fieldring.gateway.inbox import Message

REPOSITORY = Path(__file__).parents[3]


def sent(text: str, *, client: str = "c") -> list[Message]:
    """Messages of one client, in words: id, content, ``D`` for DUP, ``@`` and seconds.

    ``|`` begins a new connection. Without a time each comes a millisecond after the one before.
    """
    messages: list[Message] = []
    connection, now_us = 1, 1_000_000
    for word in text.split():
        if word == "|":
            connection += 1
            continue
        found = re.fullmatch(r"(\d+)([a-z]+)(D?)(?:@(\d+))?", word)
        assert found is not None
        mid, payload, dup, at = found.groups()
        now_us = int(at) * 1_000_000 if at else now_us + 1000
        messages.append(
            Message(
                "t", payload.encode(), int(mid), bool(dup), client, arrived_us=now_us, connection=connection
            )
        )
    return messages


def known(text: str, *, together: bool = False) -> str:
    """The words that are known, each message a group of its own unless ``together``."""
    memory = Deliveries()
    messages = sent(text)
    groups = [messages] if together else [[message] for message in messages]
    verdicts = []
    for group in groups:
        verdicts += memory.check(group)
        memory.settle()
    words = [word for word in text.split() if word != "|"]
    return " ".join(word for word, again in zip(words, verdicts, strict=True) if again)


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "in one group"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5x | 5xD", "5xD"),
        ("5x 6y 7z | 5xD 6yD 7zD 8a", "5xD 6yD 7zD"),
        ("5x 6y 7z | 6yD 7zD 8aD 9b", "6yD 7zD"),
        ("5x 6y | 5xD | 5xD 6yD 7z", "5xD 5xD 6yD"),
        ("5x 6y | 5xD 6yD 7z | 6yD 7zD", "5xD 6yD 6yD 7zD"),
        ("5x 5xD 6y", "5xD"),
        ("65535x 1y | 65535xD 1yD", "65535xD 1yD"),
        ("5x@10 6y@60 | 6yD@100", "6yD@100"),
        ("5x@9 6y@9 | 5xD@80 6yD@80 7z@80 | 5xD@81 6yD@81 7zD@81", "5xD@80 6yD@80 5xD@81 6yD@81 7zD@81"),
    ],
    ids=[
        "the last", "all in flight", "the end of what was sent, then one that was lost", "cut again half-way",
        "cut again after something new", "on the same connection", "over the end of the ids", "a slow device",
        "long after, and cut again",
    ],
)  # fmt: skip
def test_comes_again(text: str, expected: str, *, together: bool) -> None:
    """What was acknowledged into a dead connection is not new."""
    assert known(text, together=together) == expected


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "in one group"])
@pytest.mark.parametrize(
    "text",
    [
        "5x | 5x",
        "5x | 5yD",
        "5x | 6xD",
        "5x | 6y 5xD",
        "5x | 6y | 5xD",
        "5x | 6yD 5xD",
        "5x@10 6y@13 | 5xD@20",
        "1x 1x | 1xD",
        "1x | 1x | 1xD",
        "1x 2x 1x | 2xD",
        " ".join(f"{mid}x" for mid in range(5, 107)) + " | 5xD",
    ],
    ids=[
        "not marked", "another content", "another id", "after something new",
        "on the connection after one with something new", "after one that was lost",
        "acknowledged while its connection lived", "a client with one id", "one id, one connection",
        "a client with few ids", "more than can be in flight",
    ],
)  # fmt: skip
def test_may_be_another_message(text: str, *, together: bool) -> None:
    """An id was free again, and the first sending under it lost: what comes with DUP is taken."""
    assert known(text, together=together) == ""


def test_order_of_what_comes_again() -> None:
    """After one that another was left out before, or that comes out of turn, all are taken."""
    assert known("5x 6y 7z | 5xD 7zD") == "5xD"
    assert known("5x 6y 7z | 6yD 5xD 7zD") == "6yD"
    assert known("5x 6y 7z | 5xD 8a 6yD") == "5xD"


def test_doubt_ends() -> None:
    """A device that began its ids anew is believed again after as many messages as can be in flight."""
    later = " ".join(f"{mid}x" for mid in range(2, 102))
    assert known(f"1x | 1x {later} | 101xD") == "101xD"


def test_group_that_was_not_kept() -> None:
    """What was not acknowledged is new when it comes again."""
    memory = Deliveries()
    first, again = sent("5x | 5xD")
    memory.check([first])
    assert memory.check([again]) == [False]
    memory.settle()
    assert memory.check([again]) == [True]


def test_without_an_id() -> None:
    """QoS 0 has none."""
    memory = Deliveries()
    message = Message("t", b"x", 0, client="c")
    assert memory.check([message, message]) == [False, False]


def test_room_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients that were silent longest are forgotten, and nothing is mistaken for theirs."""
    monkeypatch.setattr(deliveries, "_CLIENTS", 2)
    monkeypatch.setattr(deliveries, "_REMEMBERED", 3)
    memory = Deliveries()
    for client in "abc":
        memory.check(sent("5x 6x", client=client))
        memory.settle()
    assert len(memory._clients) == 2
    assert len(memory._taken) == 3
    assert memory.check(sent("| 5xD", client="a")) == [False]
    assert memory.check(sent("| 6xD", client="b")) == [True]
    assert memory.check(sent("| 5xD 6xD", client="c")) == [True, True]


def test_client_that_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its messages are counted anew, and what is still remembered of it is none of these."""
    monkeypatch.setattr(deliveries, "_CLIENTS", 1)
    memory = Deliveries()
    for client, text in (("a", "5x 6x"), ("b", "1x"), ("a", "| 1y 2y")):
        memory.check(sent(text, client=client))
        memory.settle()
    assert memory.check(sent("| | 6xD", client="a")) == [False]


def test_clients_do_not_mix() -> None:
    """Ids are each client's own."""
    memory = Deliveries()
    memory.check(sent("5x", client="a"))
    memory.settle()
    assert memory.check(sent("| 5xD", client="b")) == [False]


def test_in_flight_is_what_the_listeners_allow() -> None:
    """Of the forwarder's own, and of mosquitto as the role configures it."""
    assert deliveries._IN_FLIGHT == mqtt_server.IN_FLIGHT
    template = REPOSITORY / "roles/sensor_gateway/templates/etc/mosquitto/mosquitto.conf.j2"
    assert f"max_inflight_messages {deliveries._BROKER_IN_FLIGHT}\n" in template.read_text()
