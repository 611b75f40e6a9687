"""What the scenarios that change a ring's members share.

Its playbooks on an inventory that says who is in the ring, the record, what each node sees, and traffic.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import testinfra

sys.path.insert(0, str(Path(__file__).parent))
from ring_traffic import RingTraffic, connect  # type: ignore[import-not-found]

PROJECT = Path(__file__).parents[2]


class Done:
    """The end of a playbook: its exit status, and what it printed on one line."""

    def __init__(self, returncode: int, output: str) -> None:
        self.returncode = returncode
        self.output = output
        # The console breaks sentences anywhere.
        self.told = re.sub(r"\s+", " ", output)

    def succeeded(self) -> Done:
        """Itself, or a failure with all that was printed."""
        assert self.returncode == 0, self.output[-6000:]
        return self

    def refused(self, identifier: str) -> Done:
        """Itself, or a failure where it was not refused with that ID."""
        assert self.returncode != 0, self.output[-3000:]
        assert f"{identifier}:" in self.told, self.output[-3000:]
        return self

    def changed(self) -> int:
        """How many tasks changed something, over all hosts."""
        return sum(int(count) for count in re.findall(r"changed=(\d+)", self.output))


def node(name: str) -> Any:
    """The host of that name."""
    return testinfra.get_host(f"docker://{name}")


def status(name: str) -> dict[str, str]:
    """{address: letters} as that node sees the ring."""
    return {
        address: letters
        for letters, address in re.findall(
            r"^([UD?][NLJM])\s+(\S+)", node(name).check_output("nodetool status"), re.MULTILINE
        )
    }


def kill(name: str) -> None:
    """End the daemon of that host as a crash does, and keep systemd from starting it again."""
    node(name).check_output("systemctl kill --signal=KILL cassandra; systemctl stop cassandra")


def lose(name: str) -> None:
    """The machine of that name is gone from one moment to the next, for good."""
    subprocess.run(["docker", "kill", name], check=True, stdout=subprocess.DEVNULL)


def wait(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll, and fail with `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.5)


class RingUnderTest:
    """One scenario's ring: {name: address}, the contacts of the traffic, and its account."""

    def __init__(self, addresses: dict[str, str], *, contacts: list[str]) -> None:
        self.addresses = addresses
        self.contacts = contacts
        # {name: variables} that a host of the inventory has of its own.
        self.host_vars: dict[str, dict[str, str]] = {}
        # What the inventory says by now: tests change it as an operator edits the vault.
        self.variables: dict[str, Any] = {}
        self.login = {"user": "fieldring_ingest", "password": "molecule-ingest-1"}
        self.ephemeral = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])

    def record(self) -> dict[str, Any]:
        """The controller's record: {name: node}."""
        return json.loads((self.ephemeral / "ring/main.json").read_text())["nodes"]  # type: ignore[no-any-return]

    @contextmanager
    def record_that_says(self, name: str, **changed: Any) -> Iterator[None]:
        """The record with something else about a node, for the time of a block."""
        path = self.ephemeral / "ring/main.json"
        kept = path.read_text()
        record = json.loads(kept)
        record["nodes"][name].update(changed)
        path.write_text(json.dumps(record))
        try:
            yield
        finally:
            path.write_text(kept)

    def whole(self, members: tuple[str, ...]) -> dict[str, str]:
        """What a node's status is when those and nobody else are in the ring."""
        return {self.addresses[name]: "UN" for name in members}

    def command(
        self, playbook: str, *arguments: str, members: tuple[str, ...], clients: str = "", **variables: Any
    ) -> dict[str, Any]:
        """What subprocess needs to run that playbook on an inventory whose ring is `members`.

        `clients`: the data centre that an ingest host of the inventory has for its own.
        """
        # Of Molecule's inventory the variables only: which hosts are in the ring is said anew each time.
        inventory = self.ephemeral / "known"
        inventory.mkdir(exist_ok=True)
        for folder in ("group_vars", "host_vars"):
            known = self.ephemeral / "inventory" / folder
            if known.exists() and not (inventory / folder).exists():
                (inventory / folder).symlink_to(known)
        hosts = {"cassandra": {"hosts": {name: self.host_vars.get(name, {}) for name in members}}}
        # Groups of the inventory contract that a ring alone has no hosts for.
        hosts |= {group: {"hosts": {}} for group in ("ingest", "gateways", "monitor")}
        if clients:
            client = {"ingest_container_cassandra_local_dc": clients}
            hosts["ingest"] = {"hosts": {"client": client}}
        (inventory / "members.yml").write_text(json.dumps({"all": {"children": hosts}}))
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(self.ephemeral / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(PROJECT / "roles"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
        }
        return {
            "args": [
                "ansible-playbook",
                "--inventory",
                str(inventory / "members.yml"),
                "--extra-vars",
                json.dumps({**self.variables, **variables}),
                *arguments,
                str(PROJECT / "playbooks" / playbook),
            ],
            "env": environment,
            "stderr": subprocess.STDOUT,
            "text": True,
        }

    @contextmanager
    def interrupted(
        self, playbook: str, *arguments: str, members: tuple[str, ...], **variables: Any
    ) -> Iterator[Callable[[], bool]]:
        """That playbook for the time of a block, at whose end it is killed; gives whether it still runs."""
        output = self.ephemeral / "interrupted.log"
        with output.open("w") as log:
            command = self.command(playbook, *arguments, members=members, **variables)
            begun = subprocess.Popen(**command, stdout=log)

            def runs() -> bool:
                assert begun.poll() is None, output.read_text()[-6000:]
                return True

            try:
                yield runs
            finally:
                begun.kill()
                begun.wait()

    def play(
        self, playbook: str, *arguments: str, members: tuple[str, ...], clients: str = "", **variables: Any
    ) -> Done:
        """Run that playbook to its end."""
        began = time.monotonic()
        command = self.command(playbook, *arguments, members=members, clients=clients, **variables)
        done = subprocess.run(**command, stdout=subprocess.PIPE, check=False)
        print(f"{playbook} {variables or ''}: {time.monotonic() - began:.0f} s", flush=True)
        return Done(done.returncode, done.stdout)

    def clients(self, contacts: list[str], *, dc: str = "dc1") -> RingTraffic:
        """A writer and a reader that have a data centre for their own; one ledger for all of them."""
        return RingTraffic(
            contacts=contacts,
            ca=self.ephemeral / "ca/ca.pem",
            **self.login,
            keyspace="fieldring",
            ledger=self.ephemeral / "ledger",
            dc=dc,
        )

    def cql(self, *statements: str) -> list[tuple[Any, ...]]:
        """The rows of the last of statements that the service's account sends at LOCAL_QUORUM."""
        cluster, session = connect(self.clients(self.contacts).configuration)
        try:
            rows = [[tuple(row) for row in session.execute(statement)] for statement in statements]
            return rows[-1]
        finally:
            cluster.shutdown()

    @contextmanager
    def traffic(self, operation: str, *, writes_refused: bool = False) -> Iterator[RingTraffic]:
        """A writer and a reader at LOCAL_QUORUM; afterwards nothing acknowledged is missing, none failed.

        `writes_refused`: where more fails than the ring bears, writes may have been refused, visibly.
        """
        ring = self.clients(self.contacts)
        began = time.monotonic()
        with ring:
            yield ring
        line = ring.line(operation, time.monotonic() - began)
        missing = ring.missing()
        print(f"{line}, {len(missing)} of {len(ring.numbers())} acknowledged missing", flush=True)
        assert missing == []
        assert ring.counts["acknowledged"] > 0
        assert ring.counts["read"] > 0
        assert ring.counts["wrong"] == 0, ring.counts["errors"]
        assert ring.counts["failed_reads"] == 0, ring.counts["errors"]
        assert writes_refused or ring.counts["failed_writes"] == 0, ring.counts["errors"]
