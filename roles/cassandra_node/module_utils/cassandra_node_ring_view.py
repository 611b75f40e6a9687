"""How a node sees its ring, for the gate: parsed from one dump of its JMX beans, and how it is asked.

Everything above `look` is pure. A call that does not come back in time is a sentence in the view, never
a hang: the gate judges what is missing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.cassandra_node_host import probe_all, unit_state
from ansible.module_utils.cassandra_node_session import (
    DRIVER,
    DRIVER_ERRORS,
    LoginRefusedError,
    connect,
)
from ansible.module_utils.cassandra_node_view import (
    STORAGE_SERVICE,
    ViewError,
    normal_address,
    parse_list,
    parse_map,
    waiting_changes,
)

# All beans whose type has a capital S and no other key: StorageService, HintsService, StreamManager and some
# small ones, in one start of nodetool. Never FailureDetector or system_views.gossip_info: reading all of it
# makes the node look up the names of its peers, and from then on until its next restart it greets them by
# name in TLS, where they are certified by address.
BEANS = "org.apache.cassandra.*:type=*S*"
HINTS = "org.apache.cassandra.hints:type=HintsService"
STREAMS = "org.apache.cassandra.net:type=StreamManager"
# Work of a repair whose coordinator may be gone. While one waits for its replicas, no pool has any.
REPAIR_POOL = re.compile(r"(Repair-Task|Repair#\d+|ValidationExecutor)$")
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
HINTS_FILE = re.compile(rf"({UUID})-\d+-\d+\.hints$")
# Gossip carries a heartbeat to everybody within some seconds; well below the 17 s and more after which a
# dead node is called down, so that one that advances in between was alive.
HEARTBEAT_PATIENCE_SECONDS = 12
QUERY_KEYSPACES = "SELECT keyspace_name, replication FROM system_schema.keyspaces"
QUERY_REPAIRS = "SELECT keyspace_name, status, duration_millis, completed FROM system_views.repairs"
QUERY_POOLS = "SELECT name, active_tasks, pending_tasks FROM system_views.thread_pools"


class SilentNodeError(ViewError):  # type: ignore[misc]  # by Ansible's path of modules
    """Why a node says nothing: `stopped`, `silent` (no JMX) or `hung`; one that speaks may be `drained`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def beans_of(text: str) -> dict[str, dict[str, Any]]:
    """{name: attributes} in what `nodetool sjk mxdump` prints."""
    try:
        return {bean["name"]: bean for bean in json.loads(text[text.index("{") :])["beans"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ViewError(f"nodetool printed no beans: {text.strip()[:200] or '(nothing)'}") from error


def parse_endpoints(text: str) -> dict[str, dict[str, str]]:
    """{address: {application state: value}} in what `nodetool gossipinfo` prints."""
    endpoints: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        if not line.startswith(" "):
            current = endpoints.setdefault(normal_address(line.strip()), {})
            continue
        parts = line.strip().split(":", 2)
        if len(parts) >= 2:
            # generation:N and heartbeat:N; all others STATE:version:value.
            current[parts[0]] = parts[-1]
    return endpoints


def heartbeats_of(text: str) -> dict[str, list[int]]:
    """{address: [generation, version]}."""
    return {
        address: [int(states["generation"]), int(states["heartbeat"])]
        for address, states in parse_endpoints(text).items()
        if {"generation", "heartbeat"} <= set(states)
    }


def parse_hints(text: str) -> list[str]:
    """Host IDs for which hints are kept, in `[{host=..., totalFiles=...}, ...]`."""
    return sorted(set(re.findall(rf"(?:^|[{{, ])host=({UUID})", text)))


def parse_view(text: str, gossip: str) -> dict[str, Any]:
    """The view in the dump of the beans and in the output of gossipinfo."""
    beans = beans_of(text)
    if STORAGE_SERVICE not in beans:
        raise ViewError("nodetool printed no StorageService: is the node starting?")
    ring = beans[STORAGE_SERVICE]
    endpoints = parse_endpoints(gossip)
    nodes: dict[str, dict[str, Any]] = {}
    for address, host_id in parse_map(ring["EndpointToHostId"]).items():
        nodes[normal_address(address)] = {"host_id": host_id, "tokens": []}
    for token, owner in parse_map(ring["TokenToEndpointMap"]).items():
        entry = nodes.setdefault(normal_address(owner), {"host_id": "", "tokens": []})
        entry["tokens"].append(int(token))
    for address, entry in nodes.items():
        states = endpoints.get(address, {})
        entry["tokens"].sort()
        entry.update(
            dc=states.get("DC", ""),
            rack=states.get("RACK", ""),
            version=states.get("RELEASE_VERSION", ""),
            schema_version=states.get("SCHEMA", ""),
            sstables=sorted(filter(None, states.get("SSTABLE_VERSIONS", "").split(","))),
        )

    def addresses(attribute: str) -> list[str]:
        return sorted(normal_address(item) for item in parse_list(ring[attribute]))

    # A moving node is listed with its new token: 10.0.0.1=-123.
    moving = sorted(normal_address(item.split("=")[0]) for item in parse_list(ring["MovingNodes"]))
    return {
        "mode": ring["OperationMode"],
        # It says all the rest, and serves nobody until it is started anew.
        "kind": "drained" if ring["OperationMode"] in ("DRAINING", "DRAINED") else "",
        "version": ring["ReleaseVersion"],
        "host_id": ring["LocalHostId"],
        "tokens": sorted(int(token) for token in parse_list(ring["Tokens"])),
        "schema_version": ring["SchemaVersion"],
        "cql": bool(ring["NativeTransportRunning"]),
        "live": addresses("LiveNodes"),
        "unreachable": addresses("UnreachableNodes"),
        "joining": addresses("JoiningNodes"),
        "leaving": addresses("LeavingNodes"),
        "moving": moving,
        "nodes": nodes,
        "heartbeats": [heartbeats_of(gossip)],
        "streams": _streams(str(beans.get(STREAMS, {}).get("CurrentStreams", "[]"))),
        "hints": parse_hints(str(beans.get(HINTS, {}).get("PendingHints", "[]"))),
        "repairs": [],
    }


def hinted_in(directory: str) -> list[str]:
    """Host IDs for which files of hints lie there; [] where there is no such directory.

    HintsService counts a file only once it is closed, up to ten seconds after its node came back.
    """
    try:
        names = [path.name for path in Path(directory).iterdir()]
    except OSError:
        return []
    return sorted({match[1] for match in map(HINTS_FILE.match, names) if match})


def repairs_of(repairs: Iterable[tuple[str, str, int, bool]], pools: Iterable[tuple[str, int]]) -> list[str]:
    """What a repair has to do still.

    Of those that the node coordinates (keyspace, status, milliseconds, completed), and of its pools
    (name, tasks), validations for others included.
    """
    running = [
        f"{keyspace}, for {milliseconds // 1000} s, {status}"
        for keyspace, status, milliseconds, completed in repairs
        if not completed
    ]
    busy = [f"{name}: {tasks} tasks" for name, tasks in pools if tasks and REPAIR_POOL.match(name)]
    return sorted(running) + sorted(busy)


def _streams(text: str) -> list[str]:
    """What is streamed and why, as far as the dump tells: description=Bootstrap."""
    if text.strip() in ("", "[]"):
        return []
    told = re.findall(r"\bdescription=([^,}\]]+)", text)
    return sorted(set(told)) or ["a stream"]


def stands_still(first: dict[str, list[int]], second: dict[str, list[int]]) -> list[str]:
    """Addresses whose heartbeat did not advance between two samples."""
    return sorted(address for address in first if second.get(address, first[address]) <= first[address])


def call(nodetool: str, *arguments: str, seconds: float) -> str:
    try:
        done = subprocess.run(
            [nodetool, *arguments], capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise SilentNodeError(
            "hung",
            f"it hangs: cassandra.service runs, but JMX gave no answer within {seconds:g} s. See the host's "
            "load, disks and the node's gc.log; restart it once the other nodes are whole "
            "(restart_cassandra)",
        ) from error
    except OSError as error:
        raise ViewError(f"nodetool cannot be run: {error}") from error
    if done.returncode:
        raise ViewError(f"nodetool failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def check_service(unit: str, jmx_port: int) -> None:
    """The cheap questions first: a dead node needs no JVM to be told."""
    active, _ = unit_state(unit)
    if not active:
        raise SilentNodeError(
            "stopped",
            f"{unit} is not running. See journalctl -u {unit} for why it stopped; one stopped node is "
            "started by restart_cassandra, several by start_cassandra_after_outage",
        )
    try:
        with socket.create_connection(("127.0.0.1", jmx_port), timeout=5):
            pass
    except OSError as error:
        raise SilentNodeError(
            "silent",
            f"{unit} runs, but its JMX takes no connection on 127.0.0.1:{jmx_port} ({error}). It is still "
            "starting, or JMX is dead: see /var/log/cassandra/system.log",
        ) from error


class Asker:
    """One login at this node: how keyspaces are replicated, and whether a repair runs."""

    def __init__(self, login: dict[str, Any]) -> None:
        self.session: Any = None
        self.cluster: Any = None
        self.error = ""
        self.keyspaces: dict[str, dict[str, str]] = {}
        self.repairs: list[str] = []
        if not DRIVER:
            self.error = "Debian's python3-cassandra is not installed"
            return
        # A login may meet a coordinator that is busy: once more before it counts.
        for last in (False, True):
            try:
                self.cluster, self.session = connect(**login)
                rows = self.session.execute(QUERY_KEYSPACES)
                self.keyspaces = {row.keyspace_name: dict(row.replication) for row in rows}
                repairs = [tuple(row) for row in self.session.execute(QUERY_REPAIRS)]
                pools = self.session.execute(QUERY_POOLS)
                self.repairs = repairs_of(
                    repairs, ((row.name, row.active_tasks + row.pending_tasks) for row in pools)
                )
                self.error = ""
                return
            except LoginRefusedError as error:
                self.error = f"login refused: {error}"
            except DRIVER_ERRORS as error:
                self.error = f"{type(error).__name__}: {error}"
            if not last:
                time.sleep(1)

    def close(self) -> None:
        if self.cluster is not None:
            self.cluster.shutdown()


def second_sample(
    first: dict[str, list[int]],
    taken_at: float,
    *,
    seconds: float,
    sample: Callable[[], dict[str, list[int]]],
    watched: set[str],
) -> dict[str, list[int]]:
    """A sample at least `seconds` later; again until all that are watched advance, or patience ends."""
    while True:
        time.sleep(max(0.0, taken_at + seconds - time.monotonic()))
        second = sample()
        still = set(stands_still(first, second)) & watched
        if not still or time.monotonic() > taken_at + HEARTBEAT_PATIENCE_SECONDS:
            return second
        seconds = time.monotonic() - taken_at + 1


def free_mib(directory: str) -> int | None:
    """What a process without privileges may still write there; None where there is no such directory."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize // 2**20


def look(params: dict[str, Any]) -> dict[str, Any]:
    """The whole view. Never raises: what went wrong is its `error`."""
    view: dict[str, Any] = {"error": "", "kind": "", "round": params["round"], "pending": [], "answering": {}}
    view["pending"] = waiting_changes(params["started_directory"], params["conf_directory"], params["files"])
    view["commitlog_free_mib"] = free_mib(params["commitlog_directory"])

    def ring_the_bell(*_: Any) -> None:
        raise TimeoutError

    # Whatever hangs beyond its own deadline (a disk, a name service) ends here.
    signal.signal(signal.SIGALRM, ring_the_bell)
    signal.alarm(int(4 * params["call_seconds"] + 2 * HEARTBEAT_PATIENCE_SECONDS))
    try:
        _look(params, view)
    except SilentNodeError as error:
        view.update(error=str(error), kind=error.kind)
    except ViewError as error:
        view.update(error=str(error), kind="silent")
    except TimeoutError:
        view["error"] = "the host did not give its view in time. See its load and disks"
    except (KeyError, OSError, ValueError) as error:
        view["error"] = f"its view cannot be read ({type(error).__name__}: {error})"
    finally:
        signal.alarm(0)
    return view


def _look(params: dict[str, Any], view: dict[str, Any]) -> None:
    check_service(params["unit"], params["jmx_port"])
    nodetool, seconds = params["nodetool"], params["call_seconds"]
    gossip = call(nodetool, "gossipinfo", seconds=seconds)
    taken_at = time.monotonic()
    view.update(parse_view(call(nodetool, "sjk", "mxdump", "-q", BEANS, seconds=seconds), gossip))
    first = view["heartbeats"][0]
    asker = Asker(params["login"])
    try:
        view["answering"] = {
            normal_address(address): ports
            for address, ports in probe_all(params["peers"], params["ports"], 3.0).items()
        }
        second = second_sample(
            first,
            taken_at,
            seconds=params["sample_seconds"],
            sample=lambda: heartbeats_of(call(nodetool, "gossipinfo", seconds=seconds)),
            watched={normal_address(address) for address in params["peers"]} & set(view["live"]),
        )
    finally:
        asker.close()
    view["heartbeats"] = [first, second]
    # After the second sample: what was still in memory when the first was taken is on disk by now.
    view["hints"] = sorted({*view["hints"], *hinted_in(params["hints_directory"])})
    view["repairs"] = asker.repairs
    view["cql_check"] = {"error": asker.error, "keyspaces": asker.keyspaces}
