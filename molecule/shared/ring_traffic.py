"""A writer and a reader at LOCAL_QUORUM that go on while a ring is operated on, and a ledger of what was
acknowledged.

`RingTraffic(...)` runs it in a process of its own for the time of a `with` block. A value is written into
the ledger, fsynced, when the ring has acknowledged it; the reader looks for values of the ledger while it
all goes on; `missing()` looks for every one of them at the end. A request that fails is tried again for
some seconds, as every client of a ring does (`retried`), and counts as failed when that does not help.

Run as a program it is that process: `ring_traffic.py CONFIGURATION.json`, ended by SIGTERM.
"""

from __future__ import annotations

import json
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

TABLE = "ring_traffic"
PERSISTENCE_S = 30.0
TIMEOUT_S = 20.0


def connect(configuration: dict[str, Any]) -> tuple[Any, Any]:
    """(cluster, session), token-aware as the service is."""
    from cassandra import AuthenticationFailed, ConsistencyLevel
    from cassandra.auth import PlainTextAuthProvider
    from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
    from cassandra.connection import ConnectionException
    from cassandra.io.libevreactor import LibevConnection
    from cassandra.policies import ConstantReconnectionPolicy, DCAwareRoundRobinPolicy, TokenAwarePolicy

    class Connection(LibevConnection):  # type: ignore[misc]
        """A login that a restarting node refuses is no reason to give the node up."""

        def defunct(self, exc: BaseException) -> Any:
            if isinstance(exc, AuthenticationFailed):
                exc = ConnectionException(str(exc), self.endpoint)
            return super().defunct(exc)

    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(configuration["dc"])),
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,
        request_timeout=TIMEOUT_S,
    )
    cluster = Cluster(
        configuration["contacts"],
        auth_provider=PlainTextAuthProvider(configuration["user"], configuration["password"]),
        ssl_context=ssl.create_default_context(cafile=configuration["ca"]),
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        connection_class=Connection,
        connect_timeout=15,
        reconnection_policy=ConstantReconnectionPolicy(1.0, max_attempts=None),
    )
    # The certificates are checked against the CA; their names are those of hosts, and hosts come and go here.
    cluster.ssl_context.check_hostname = False
    return cluster, cluster.connect()


def insist(call: Callable[[], Any]) -> tuple[Any, int, str]:
    """(result, failed attempts, the last error or "")."""
    failures, deadline = 0, time.monotonic() + PERSISTENCE_S
    while True:
        try:
            return call(), failures, ""
        except Exception as error:  # noqa: BLE001 (whatever the driver raises is a failed request)
            failures += 1
            said = f"{type(error).__name__}: {error}"
            print(time.strftime("%H:%M:%S", time.gmtime()), said[:300], file=sys.stderr, flush=True)
            if time.monotonic() > deadline:
                return None, failures, said
            time.sleep(0.2)


class Traffic:
    """The two threads and what they count."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self.configuration = configuration
        self.ended = threading.Event()
        self.counts = dict.fromkeys(
            ("written", "acknowledged", "read", "wrong", "retried", "failed_writes", "failed_reads"), 0
        )
        self.errors: list[str] = []
        self.acknowledged: list[int] = []
        self.cluster, self.session = connect(configuration)
        table = f"{configuration['keyspace']}.{TABLE}"
        self.insert = self.session.prepare(f"INSERT INTO {table} (id, value) VALUES (?, ?)")
        self.select = self.session.prepare(f"SELECT value FROM {table} WHERE id = ?")
        self.insert.is_idempotent = self.select.is_idempotent = True

    def write(self) -> None:
        number = self.configuration["first"]
        descriptor = os.open(self.configuration["ledger"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        while not self.ended.is_set():
            number += 1
            self.counts["written"] += 1
            row = (number, value_of(number))
            _, retried, error = insist(lambda row=row: self.session.execute(self.insert, row))  # type: ignore[misc]
            self.counts["retried"] += retried
            if error:
                self.counts["failed_writes"] += 1
                self.errors.append(error)
            else:
                os.write(descriptor, f"{number}\n".encode())
                os.fsync(descriptor)
                self.counts["acknowledged"] += 1
                self.acknowledged.append(number)
            self.ended.wait(self.configuration["pause_s"])

    def read(self) -> None:
        chance = random.Random(1)
        while not self.ended.is_set():
            if self.acknowledged:
                # Mostly what is new, which a node that was just down has missed.
                newest = self.acknowledged[-50:]
                number = chance.choice(newest if chance.random() < 0.7 else self.acknowledged)
                self.counts["read"] += 1
                rows, retried, error = insist(
                    lambda number=number: list(self.session.execute(self.select, (number,)))  # type: ignore[misc]
                )
                self.counts["retried"] += retried
                if error:
                    self.counts["failed_reads"] += 1
                    self.errors.append(error)
                elif [row.value for row in rows] != [value_of(number)]:
                    self.counts["wrong"] += 1
                    self.errors.append(f"{number}: read {rows}")
            self.ended.wait(self.configuration["pause_s"])

    def go_on(self, work: Callable[[], None]) -> None:
        """A thread that ends before it is told to is a failure, not silence."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 (such as a disk that the ledger cannot be written to)
            self.counts["wrong"] += 1
            self.errors.append(f"{work.__name__} ended: {type(error).__name__}: {error}")

    def run(self) -> dict[str, Any]:
        threads = [threading.Thread(target=self.go_on, args=(work,)) for work in (self.write, self.read)]
        for thread in threads:
            thread.start()
        print("running", flush=True)
        self.ended.wait()
        for thread in threads:
            thread.join()
        self.cluster.shutdown()
        return {**self.counts, "errors": self.errors[-10:]}


def value_of(number: int) -> str:
    """What is written under a number."""
    return f"value-{number * 7919 % 1_000_003}"


class RingTraffic:
    """Traffic on a ring for the time of a `with` block; afterwards its counts are in `counts`.

    `ledger` is kept over several blocks, so that the next one goes on after it.
    """

    def __init__(
        self,
        *,
        contacts: Sequence[str],
        ca: Path,
        user: str,
        password: str,
        keyspace: str,
        ledger: Path,
        dc: str = "dc1",
        pause_s: float = 0.05,
    ) -> None:
        self.ledger = ledger
        self.log = ledger.with_suffix(".log")
        self.configuration: dict[str, Any] = {
            "contacts": list(contacts),
            "ca": str(ca),
            "user": user,
            "password": password,
            "keyspace": keyspace,
            "ledger": str(ledger),
            "dc": dc,
            "pause_s": pause_s,
        }
        self.counts: dict[str, Any] = {}
        self._process: subprocess.Popen[str] | None = None

    def numbers(self) -> list[int]:
        """What was acknowledged so far; a torn last line was not yet."""
        if not self.ledger.exists():
            return []
        text = self.ledger.read_text(encoding="utf-8")
        return [int(line) for line in text[: text.rfind("\n") + 1].split()]

    def __enter__(self) -> RingTraffic:
        # Numbers of a failed write are not used again.
        self.configuration["first"] = max([0, *self.numbers()]) + 1000
        path = self.ledger.with_suffix(".json")
        path.write_text(json.dumps(self.configuration), encoding="utf-8")
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(path)], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        assert said == "running", f"the traffic did not start: {self.log.read_text()[-2000:]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        out, _ = self._process.communicate(timeout=3 * PERSISTENCE_S)
        self.counts = json.loads(out.strip().splitlines()[-1])

    def missing(self) -> list[int]:
        """Acknowledged values that the ring does not give back at LOCAL_QUORUM."""
        cluster, session = connect(self.configuration)
        try:
            select = session.prepare(
                f"SELECT value FROM {self.configuration['keyspace']}.{TABLE} WHERE id = ?"
            )
            select.is_idempotent = True
            gone = []
            for number in self.numbers():
                rows, _, error = insist(lambda number=number: list(session.execute(select, (number,))))  # type: ignore[misc]
                assert not error, error
                if [row.value for row in rows] != [value_of(number)]:
                    gone.append(number)
            return gone
        finally:
            cluster.shutdown()

    def line(self, operation: str, seconds: float) -> str:
        """One line for the log: operation, seconds, requests, what failed."""
        counts = self.counts
        return (
            f"{operation}: {seconds:.0f} s, {counts['written'] + counts['read']} requests, "
            f"{counts['failed_writes'] + counts['failed_reads']} failed ({counts['retried']} tried again), "
            f"{counts['acknowledged']} writes acknowledged, {counts['wrong']} wrong reads"
        )


def main() -> int:
    traffic = Traffic(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    signal.signal(signal.SIGTERM, lambda *_: traffic.ended.set())
    print(json.dumps(traffic.run()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
