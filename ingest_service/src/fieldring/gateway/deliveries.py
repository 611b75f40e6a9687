"""Which messages come again, so that one without a time does not become two points.

A client that lost its connection sends again, with DUP, what was not acknowledged to it. Acknowledgements
leave in the order of the messages, so it lacks those from some message on: what comes again of what was
taken here is the end of what the client had sent, in the same order, and before anything new.

DUP, id and content alone do not tell: an id that is free again may be given to the next reading, and where
the first sending of that one was lost with the connection it comes with DUP as well. So whatever does not fit
is taken for new, as a point too many is better than one lost.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fieldring.gateway.inbox import Message

__all__ = ["Deliveries"]

_IN_FLIGHT = 100
"""As many messages as a device may have in flight: ``mqtt_server.IN_FLIGHT``."""

_BROKER_IN_FLIGHT = 500
"""mosquitto's ``max_inflight_messages``, as the role sets it."""

_LOST_WITHIN_US = 2_000_000
"""An acknowledgement has arrived if its connection still brings something new after this long."""

_REMEMBERED = 20_000
_CLIENTS = 10_000


class _Client:
    """What one client has sent, numbered in its order."""

    __slots__ = (
        "again", "began", "connection", "doubted_until", "last", "mark", "mark_us", "oldest", "window",
    )  # fmt: skip

    def __init__(self, *, connection: float, last: int, window: int) -> None:
        self.window = window
        self.connection = connection
        self.last = self.began = last
        """``began`` is the last before this connection."""
        self.oldest = last + 1
        """All before were acknowledged."""
        self.again = 0
        """The last of those that came again on this connection."""
        self.mark = self.mark_us = 0
        """One of the messages of this connection, and when it came."""
        self.doubted_until = 0

    def connect(self, connection: float) -> None:
        self.connection = connection
        self.began, self.again = self.last, 0
        self.mark = self.mark_us = 0

    def recent(self, number: int) -> bool:
        return self.last - number < self.window

    def expects(self, number: int) -> bool:
        """Whether the message of this number may come again now."""
        if number > self.began or self.oldest <= number <= self.again:
            # It came on this connection, on which no message since can have been lost.
            return True
        if self.last > self.began or self.last < self.doubted_until:
            return False
        if self.again:
            fits = number == self.again + 1
        else:
            fits = number >= self.oldest
            self.oldest = number if fits else self.oldest
        if fits:
            self.again = number
        return fits

    def add(self, arrived_us: int) -> int:
        """The number of one more message."""
        if self.last == self.began and self.again != self.began:
            # Whatever it lacks comes before what is new.
            self.oldest = self.began + 1
        self.last += 1
        if arrived_us - self.mark_us > _LOST_WITHIN_US:
            self.oldest = max(self.oldest, self.mark + 1)
            self.mark, self.mark_us = self.last, arrived_us
        return self.last

    def doubt(self) -> None:
        """It gives an id to two messages that are near each other, so it may do so unseen."""
        self.doubted_until = self.last + self.window


class Deliveries:
    """Of all clients, in bounded room. For one group of messages at a time: ``check``, then ``settle``."""

    def __init__(self) -> None:
        self._taken: OrderedDict[tuple[str, int], tuple[int, int]] = OrderedDict()
        """Client and id → digest and number."""
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._new: dict[tuple[str, int], tuple[int, int]] = {}
        self._changed: dict[str, _Client] = {}
        self._count = 0

    def check(self, messages: Sequence[Message]) -> list[bool]:
        """Whether each was taken already; of a group that is not ``settle``d nothing is remembered."""
        self._new, self._changed = {}, {}
        return [bool(message.mid) and self._known(message) for message in messages]

    def settle(self) -> None:
        """The group of the last ``check`` is durable."""
        taken, clients = self._taken, self._clients
        for key, entry in self._new.items():
            taken[key] = entry
            taken.move_to_end(key)
        for name, client in self._changed.items():
            clients[name] = client
            clients.move_to_end(name)
        self._count += len(self._new)
        while len(taken) > _REMEMBERED:
            taken.popitem(last=False)
        while len(clients) > _CLIENTS:
            clients.popitem(last=False)
        self._new, self._changed = {}, {}

    def _known(self, message: Message) -> bool:
        key = (message.client, message.mid)
        client = self._changed.get(message.client)
        if client is None:
            client = self._changed[message.client] = self._client(message)
        if client.connection != message.connection:
            client.connect(message.connection)
        digest = _digest(message.payload)
        entry = self._new.get(key) or self._taken.get(key)
        if entry is None or not client.recent(entry[1]):
            self._new[key] = (digest, client.add(message.arrived_us))
            return False
        if message.dup and entry[0] == digest and client.expects(entry[1]):
            return True
        self._new[key] = (digest, client.add(message.arrived_us))
        client.doubt()
        return False

    def _client(self, message: Message) -> _Client:
        known = self._clients.get(message.client)
        if known is not None:
            return copy(known)
        window = _IN_FLIGHT if message.client else _BROKER_IN_FLIGHT
        # Above all numbers so far, so that ids of a client that was forgotten meanwhile do not count.
        return _Client(connection=message.connection, last=self._count, window=window)


def _digest(payload: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(payload, digest_size=8, person=b"fieldring").digest(), "little")
