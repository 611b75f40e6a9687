"""Whether a ring may be touched now, judged from what every node of it says.

Pure functions: no clock, no files, no network. `verdict` takes the view that each node gave
(module cassandra_node_ring_view), the controller's record and what is meant to be done, and gives the
reasons that stand against it. A reason has an ID; docs/refusals.md has a line for each.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MODES = ("touch", "return", "repairing", "report")
# Clocks further apart than this order writes wrongly: the last write wins by its time stamp.
CLOCKS_APART_SECONDS = 1.0
# Reasons that a busy ring gets over by itself.
PASSING = frozenset(["CN-209", "CN-210", "CN-211", "CN-212", "CN-213", "CN-214", "CN-216"])
PORTS = {7000: "other nodes", 9042: "clients"}

REPLACE = "replace_cassandra_node"
AFTER_OUTAGE = "start_cassandra_after_outage"


def normal_address(text: Any) -> str:
    """One spelling per address: `/10.0.0.1`, `10.0.0.1`; `2001:db8::1`, `[2001:db8:0:0:0:0:0:1]`."""
    bare = str(text).rsplit("/", 1)[-1].strip("[]").split("%", 1)[0]
    try:
        return ipaddress.ip_address(bare).compressed
    except ValueError:
        return bare


def plain(key: str, value: Any) -> str:
    """What two of a node's values are compared by: of an address, not how it is spelled."""
    return normal_address(value) if key == "address" else str(value)


class Reasons:
    """What stands against it, in the order in which it was found, each said once."""

    def __init__(self) -> None:
        self.found: list[dict[str, str]] = []

    def add(self, identifier: str, text: str) -> None:
        reason = {"id": identifier, "text": text}
        if reason not in self.found:
            self.found.append(reason)


# --- quorum -----------------------------------------------------------------------------------------


def replicas(
    nodes: Sequence[Mapping[str, Any]], factor: int, *, racks_matter: bool = True
) -> list[tuple[int, list[str]]]:
    """[(end of range, names of its replicas)] for `factor` copies among `nodes` of one data centre.

    NetworkTopologyStrategy's walk: clockwise from the range, a new rack at once, a rack that was met
    before only as often as there are more copies than racks. Without racks: the next distinct nodes.
    """
    ring = sorted((int(token), node) for node in nodes for token in node["tokens"])
    wanted = min(factor, len(nodes))
    repeats = factor - len({node["rack"] for node in nodes}) if racks_matter else len(nodes)
    placed = []
    for start, (end, _) in enumerate(ring):
        chosen: list[str] = []
        racks: set[Any] = set()
        left = repeats
        for step in range(len(ring)):
            if len(chosen) == wanted:
                break
            node = ring[(start + step) % len(ring)][1]
            if node["name"] in chosen:
                continue
            if racks_matter and node["rack"] in racks:
                if left <= 0:
                    continue
                left -= 1
            racks.add(node["rack"])
            chosen.append(node["name"])
        placed.append((end, chosen))
    return placed


def _factors(replication: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    """(short name of the strategy, {data centre: copies}); the data centre is "" where none is named."""
    strategy = str(replication.get("class", "")).rsplit(".", 1)[-1]
    copies = {str(k): int(str(v).split("/")[0]) for k, v in replication.items() if k != "class"}
    if strategy == "SimpleStrategy":
        copies = {"": copies.get("replication_factor", 0)}
    return strategy, copies


def quorum_lost(
    keyspaces: Mapping[str, Mapping[str, Any]],
    nodes: Sequence[Mapping[str, Any]],
    lost: Iterable[str],
    missing: Iterable[str] = (),
) -> list[str]:
    """A sentence per keyspace and data centre of which a range of `lost` has no LOCAL_QUORUM without them.

    `missing` are down already: no copy of theirs counts, and what they alone leave short is not said.
    The data centre of a SimpleStrategy is the whole ring, as its replicas are.
    """
    taken = set(lost)
    gone = taken | set(missing)
    sentences = []
    for keyspace in sorted(keyspaces):
        strategy, copies = _factors(keyspaces[keyspace])
        if strategy in ("LocalStrategy", "MetaStrategy", ""):
            continue
        for datacenter, factor in sorted(copies.items()):
            members = [node for node in nodes if datacenter in ("", node["dc"])]
            touched = sorted(node["name"] for node in members if node["name"] in taken)
            if not touched or factor == 0:
                continue
            need = factor // 2 + 1
            short = [
                (end, sorted(set(chosen) & gone), len(set(chosen) - gone))
                for end, chosen in replicas(members, factor, racks_matter=datacenter != "")
                if len(set(chosen) - gone) < need and set(chosen) & taken
            ]
            if short:
                end, without, left = short[0]
                sentences.append(
                    f"keyspace {keyspace} has {factor} copies in {datacenter or 'the ring'}; without "
                    f"{', '.join(without)} {left} would be left, and LOCAL_QUORUM needs {need} "
                    f"({len(short)} ranges, the first ends at token {end})"
                )
    return sentences


# --- the verdict ------------------------------------------------------------------------------------


def verdict(
    peers: Sequence[Mapping[str, Any]],
    *,
    views: Mapping[str, Mapping[str, Any] | None],
    record: Mapping[str, Any],
    mode: str,
    subjects: Sequence[str] = (),
    absent: Sequence[str] = (),
    last_touched: Sequence[str] | str = (),
    unavailable_keyspaces: Sequence[str] = (),
    commitlog_free_min_mib: int = 0,
    seeds: Sequence[str] = (),
) -> dict[str, Any]:
    """{green, passing, reasons: [{id, text}]} for the ring of `peers`, those declared absent left out.

    A node on record that is `absent` is not asked and may be down; its copies are missing all the same.
    `views` maps a peer's name to its view, None where it was not reached. `passing` says that nothing
    stands against it but what a ring gets over by itself, so that waiting is worth while.
    """
    if mode not in MODES:
        raise ValueError(f"the gate's mode is one of {', '.join(MODES)}, not {mode!r}")
    reasons = Reasons()
    by_name = {str(peer["name"]): peer for peer in peers}
    touched = [last_touched] if isinstance(last_touched, str) and last_touched else list(last_touched or ())
    if mode == "touch" and not touched:
        # Whom an interrupted run has touched last nobody knows any more.
        touched = sorted(by_name)
    _judge_subjects(reasons, by_name, mode=mode, subjects=subjects)
    _judge_record(reasons, by_name, record, absent)
    missing = set(record.get("nodes") or {}) & set(absent) - set(by_name)
    nodes = [
        {**entry, **by_name.get(name, {}), "name": name}
        for name, entry in sorted((record.get("nodes") or {}).items())
        if name in by_name or name in missing
    ]
    excused = set(subjects) if mode == "repairing" else set()
    speaking = _judge_answers(reasons, by_name, views, excused)
    _judge_identities(reasons, nodes, by_name, speaking, excused | missing)
    _judge_liveness(reasons, by_name, speaking, excused)
    _judge_seeds(reasons, by_name, views, speaking, seeds)
    _judge_schema(reasons, speaking)
    _judge_work(reasons, by_name, speaking, excused)
    _judge_hints(reasons, nodes, speaking, touched)
    _judge_clocks(reasons, views)
    _judge_disks(reasons, by_name, views, commitlog_free_min_mib)
    _judge_quorum(
        reasons,
        nodes,
        speaking,
        mode=mode,
        subjects=subjects,
        missing=missing,
        unavailable_keyspaces=unavailable_keyspaces,
    )
    found = reasons.found
    return {
        "green": not found,
        "passing": bool(found) and all(reason["id"] in PASSING for reason in found),
        "reasons": found,
    }


def _judge_subjects(
    reasons: Reasons, by_name: Mapping[str, Mapping[str, Any]], *, mode: str, subjects: Sequence[str]
) -> None:
    unknown = sorted(set(subjects) - set(by_name))
    if unknown:
        reasons.add(
            "CN-201",
            f"{', '.join(unknown)} is not a node of this ring ({', '.join(sorted(by_name))}), or was "
            "declared absent. Name a host of the inventory as it stands there.",
        )
    racks = sorted({f"{by_name[name]['dc']}/{by_name[name]['rack']}" for name in subjects if name in by_name})
    if len(racks) > 1 and mode in ("touch", "repairing"):
        reasons.add(
            "CN-201",
            f"{', '.join(sorted(subjects))} stand in {len(racks)} racks ({', '.join(racks)}). At most one "
            "rack may be down at a time: name nodes of one rack.",
        )
    if mode in ("touch", "repairing") and not subjects:
        reasons.add("CN-201", f"the gate was asked in mode {mode} for no node. Name the nodes.")


def _judge_record(
    reasons: Reasons,
    by_name: Mapping[str, Mapping[str, Any]],
    record: Mapping[str, Any],
    absent: Sequence[str],
) -> None:
    recorded = record.get("nodes") or {}
    if not recorded:
        reasons.add(
            "CN-202",
            "the controller has no record of who holds which tokens, so a lost disk could not be told from "
            "a healthy node. Restore it from the site's state, or run deploy_cassandra, which writes it "
            "while every node is up.",
        )
        return
    missing = sorted(set(by_name) - set(recorded))
    if missing:
        reasons.add(
            "CN-202",
            f"the record does not know {', '.join(missing)}, which the inventory names. A host that has not "
            "joined yet is added by add_cassandra_node; else restore the record.",
        )
    extra = sorted(set(recorded) - set(by_name) - set(absent))
    if extra:
        reasons.add(
            "CN-202",
            f"the record knows {', '.join(extra)}, which the inventory does not name. Put the host back "
            "into the inventory, let another one take its place (replace_cassandra_node), or remove it from "
            "the ring by remove_cassandra_node.",
        )
    for name in sorted(set(by_name) & set(recorded)):
        wrong = [
            f"{key} {recorded[name][key]} is recorded and {by_name[name][key]} in the inventory"
            for key in ("address", "dc", "rack")
            if plain(key, recorded[name].get(key)) != plain(key, by_name[name].get(key))
        ]
        if wrong:
            reasons.add(
                "CN-202", f"{name}: {'; '.join(wrong)}. A node keeps these for life: correct the inventory."
            )


def _judge_answers(
    reasons: Reasons,
    by_name: Mapping[str, Mapping[str, Any]],
    views: Mapping[str, Mapping[str, Any] | None],
    excused: set[str],
) -> dict[str, Mapping[str, Any]]:
    """{name: view} of the nodes whose view counts."""
    speaking = {}
    for name in sorted(by_name):
        view = views.get(name)
        if name in excused:
            continue
        if view is None:
            reasons.add(
                "CN-203",
                f"{name} ({by_name[name]['address']}) was not reached in this run. A ring is touched only "
                "while every node says how it sees the others: bring the host back, run without --limit, or "
                "declare it absent in cassandra_node_absent_hosts, after it was removed or while it is lost.",
            )
        elif view.get("error"):
            reasons.add("CN-204", f"{name}: {view['error']}")
        else:
            speaking[name] = view
    return speaking


def _who(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _judge_identities(
    reasons: Reasons,
    nodes: Sequence[Mapping[str, Any]],
    by_name: Mapping[str, Mapping[str, Any]],
    speaking: Mapping[str, Mapping[str, Any]],
    excused: set[str],
) -> None:
    """Every node's view of every node against the record."""
    said: dict[tuple[str, str], set[str]] = {}

    def say(identifier: str, text: str, observer: str) -> None:
        said.setdefault((identifier, text), set()).add(observer)

    owner_on_record = {int(token): node["name"] for node in nodes for token in node["tokens"]}
    name_of = {normal_address(node["address"]): node["name"] for node in nodes}
    name_of.update({normal_address(peer["address"]): name for name, peer in by_name.items()})
    for observer, view in sorted(speaking.items()):
        seen = {normal_address(address): entry for address, entry in view["nodes"].items()}
        for node in nodes:
            name, address = node["name"], normal_address(node["address"])
            entry = seen.get(address)
            if entry is None or (not entry["tokens"] and not entry["host_id"]):
                if name not in excused:
                    say(
                        "CN-205",
                        f"{name} ({address}) is unknown to it. It may have been removed, or the two have "
                        "never met: see nodetool status on both.",
                        observer,
                    )
                continue
            if entry["host_id"] and entry["host_id"] != node["host_id"]:
                say(
                    "CN-206",
                    f"{name} has the host ID {entry['host_id']} and {node['host_id']} on record: it has "
                    f"lost its data and came up empty, or was replaced by hand. Stop it, then run {REPLACE}.",
                    observer,
                )
            mine = {int(token) for token in node["tokens"]}
            if set(entry["tokens"]) != mine:
                taken = {
                    str(name_of.get(other, other))
                    for other, theirs in seen.items()
                    if other != address and mine & set(theirs["tokens"])
                }
                say(
                    "CN-206",
                    f"{name} holds {len(entry['tokens'])} tokens that are not the {len(mine)} on record"
                    + (f"; {_who(taken)} has taken some of them over. Stop that node" if taken else "")
                    + ". Compare nodetool ring on every node with the record before anything else.",
                    observer,
                )
            for key in ("dc", "rack"):
                if entry.get(key) and str(entry[key]) != str(node[key]):
                    say("CN-206", f"{name} says {key} {entry[key]}, and the record {node[key]}.", observer)
        for address, entry in sorted(seen.items()):
            if address in name_of or not (entry["tokens"] or entry["host_id"]):
                continue
            stolen = _who({owner_on_record[t] for t in entry["tokens"] if t in owner_on_record})
            say(
                "CN-207",
                f"{address} is in the ring and not in the inventory's expected nodes"
                + (f"; it holds tokens of {stolen}" if stolen else "")
                + ". Put it into the inventory, or take it out of the ring by remove_cassandra_node.",
                observer,
            )
    for (identifier, text), observers in said.items():
        reasons.add(identifier, f"as {_who(observers)} sees it, {text}")


def _judge_liveness(
    reasons: Reasons,
    by_name: Mapping[str, Mapping[str, Any]],
    speaking: Mapping[str, Mapping[str, Any]],
    excused: set[str],
) -> None:
    for name in sorted(set(by_name) - excused):
        address = normal_address(by_name[name]["address"])
        down, still = set(), set()
        for observer, view in speaking.items():
            if address in {normal_address(a) for a in view["unreachable"]}:
                down.add(observer)
            elif address not in {normal_address(a) for a in view["live"]}:
                continue
            elif not _advances(view, address):
                still.add(observer)
        if down:
            reasons.add(
                "CN-208",
                f"{name} is called down by {_who(down)}. Look at it (systemctl status cassandra, its "
                "journal) and at the network between them.",
            )
        if still:
            reasons.add(
                "CN-209",
                f"the heartbeat of {name} stands still as {_who(still)} sees it, though it is still called "
                "up: it was killed or cut off within the last seconds, or hangs. Look at that host.",
            )
    for name in sorted(set(by_name) - excused):
        address = normal_address(by_name[name]["address"])
        for port, whom in PORTS.items():
            silent = {
                observer
                for observer, view in speaking.items()
                if port not in {normal_address(a): p for a, p in view["answering"].items()}.get(address, [])
            }
            if silent:
                reasons.add(
                    "CN-215",
                    f"port {port} of {name} (for {whom}) takes no connection from {_who(silent)}. See "
                    "whether cassandra runs there, and the firewalls between.",
                )
    for name, view in sorted(speaking.items()):
        if view["cql_check"].get("error"):
            reasons.add(
                "CN-216",
                f"a query through {name} fails ({view['cql_check']['error']}). A refused login can also "
                "mean that too few replicas of system_auth answer.",
            )


def _judge_seeds(
    reasons: Reasons,
    by_name: Mapping[str, Mapping[str, Any]],
    views: Mapping[str, Mapping[str, Any] | None],
    speaking: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[str],
) -> None:
    """Also where one of the two is what is to be repaired: the other is needed for it."""
    wanted = {normal_address(address) for address in seeds}
    lost = []
    for name in sorted(by_name):
        address = normal_address(by_name[name]["address"])
        view = views.get(name)
        down = any(
            address in {normal_address(a) for a in other["unreachable"]} for other in speaking.values()
        )
        if address in wanted and (view is None or view.get("error") or down):
            lost.append(name)
    if len(lost) >= 2:
        reasons.add(
            "CN-221",
            f"{len(lost)} of {len(wanted)} seeds are lost ({_who(lost)}). A node that starts now may find "
            f"nobody to join. Bring them back first: {AFTER_OUTAGE}.",
        )


def _advances(view: Mapping[str, Any], address: str) -> bool:
    """Whether the generation or the version of that node's heartbeat grew between the two samples."""
    first, second = (
        {normal_address(a): tuple(beat) for a, beat in sample.items()} for sample in view["heartbeats"]
    )
    return address in first and address in second and second[address] > first[address]


def _judge_schema(reasons: Reasons, speaking: Mapping[str, Mapping[str, Any]]) -> None:
    versions: dict[str, set[str]] = {}
    for name, view in speaking.items():
        versions.setdefault(view["schema_version"], set()).add(name)
    if len(versions) > 1:
        held = "; ".join(
            f"{_who(names)} {'has' if len(names) == 1 else 'have'} {version[:8]}"
            for version, names in sorted(versions.items(), key=lambda item: sorted(item[1]))
        )
        reasons.add(
            "CN-210",
            f"the ring does not agree on its schema: {held}. It settles by itself within a minute, as a "
            "rule; else see nodetool describecluster, and nodetool reloadlocalschema on the smaller part.",
        )


def _judge_work(
    reasons: Reasons,
    by_name: Mapping[str, Mapping[str, Any]],
    speaking: Mapping[str, Mapping[str, Any]],
    excused: set[str],
) -> None:
    name_of = {normal_address(peer["address"]): name for name, peer in by_name.items()}
    for doing in ("joining", "leaving", "moving"):
        seen: dict[str, set[str]] = {}
        for observer, view in speaking.items():
            for address in view[doing]:
                seen.setdefault(normal_address(address), set()).add(observer)
        for address, observers in sorted(seen.items()):
            if name_of.get(address) not in excused:
                reasons.add(
                    "CN-211",
                    f"{name_of.get(address, address)} is {doing}, as {_who(observers)} sees it. Wait until "
                    "it is done (nodetool netstats), or finish what was begun.",
                )
    for name, view in sorted(speaking.items()):
        if view["mode"] != "NORMAL":
            reasons.add(
                "CN-211",
                f"{name} says that it is {view['mode']}, not NORMAL. Wait until it is done; a node that is "
                "DRAINING or DRAINED stays so: restart_cassandra starts it anew; so does one that is "
                "DECOMMISSION_FAILED: remove_cassandra_node, run again, lets it leave.",
            )
        if view["streams"]:
            reasons.add(
                "CN-212",
                f"{name} is streaming ({'; '.join(view['streams'])}). Wait until it is done: nodetool "
                "netstats.",
            )
        if view["repairs"]:
            reasons.add(
                "CN-213",
                f"a repair runs on {name} ({'; '.join(view['repairs'])}). Wait until it is done; how one "
                "that hangs is ended stands in docs/refusals.md.",
            )


def _judge_hints(
    reasons: Reasons,
    nodes: Sequence[Mapping[str, Any]],
    speaking: Mapping[str, Mapping[str, Any]],
    touched: Sequence[str],
) -> None:
    host_ids = {node["name"]: node["host_id"] for node in nodes}
    for name in sorted(set(touched) & set(host_ids)):
        holders = {
            observer
            for observer, view in speaking.items()
            if observer != name and host_ids[name] in view["hints"]
        }
        if holders:
            reasons.add(
                "CN-214",
                f"{_who(holders)} still keeps writes for {name} that it missed while it was down. Until "
                "they are handed over it lacks them: wait; they are the files in /var/lib/cassandra/hints "
                "there. Where they stay, see that node's log, and docs/refusals.md.",
            )


def _judge_clocks(reasons: Reasons, views: Mapping[str, Mapping[str, Any] | None]) -> None:
    """By how far each clock is certainly ahead of the controller's, at the least and at the most.

    A node that is down is judged as well: started with a wrong clock it would write wrongly.
    """
    known = {
        name: (
            view["clock"]["offset"] - view["clock"]["within"],
            view["clock"]["offset"] + view["clock"]["within"],
        )
        for name, view in views.items()
        if view and view.get("clock")
    }
    if len(known) < 2:
        return
    slow = min(known, key=lambda name: known[name][1])
    fast = max(known, key=lambda name: known[name][0])
    apart = known[fast][0] - known[slow][1]
    if apart > CLOCKS_APART_SECONDS:
        reasons.add(
            "CN-218",
            f"the clock of {fast} is at least {apart:.1f} s ahead of that of {slow}. The last write wins by "
            "its time stamp, so a later one can lose: see chronyc tracking on both.",
        )


def _judge_disks(
    reasons: Reasons,
    by_name: Mapping[str, Mapping[str, Any]],
    views: Mapping[str, Mapping[str, Any] | None],
    free_min_mib: int,
) -> None:
    for name in sorted(by_name):
        free = (views.get(name) or {}).get("commitlog_free_mib")
        if free is not None and free < free_min_mib:
            reasons.add(
                "CN-222",
                f"the disk of {name}'s commit log has {free} MiB left, less than {free_min_mib}. A node "
                "whose commit log is full stops itself, and draining or starting it writes. Make room "
                "(nodetool clearsnapshot), or lower cassandra_node_commitlog_free_min_mib.",
            )


def _judge_quorum(
    reasons: Reasons,
    nodes: Sequence[Mapping[str, Any]],
    speaking: Mapping[str, Mapping[str, Any]],
    *,
    mode: str,
    subjects: Sequence[str],
    missing: set[str],
    unavailable_keyspaces: Sequence[str],
) -> None:
    if mode not in ("touch", "repairing") or not nodes or not speaking:
        return
    lost = set(subjects)
    if mode == "repairing" and not missing:
        # What is down already is not taken away by working on it. Beside one that is absent it is: of what
        # two of three copies have, the one that is left need not know.
        addresses = {node["name"]: normal_address(node["address"]) for node in nodes}
        lost = {
            name
            for name in lost & set(addresses)
            if any(addresses[name] in {normal_address(a) for a in view["live"]} for view in speaking.values())
        }
    keyspaces: Mapping[str, Any] | None = next(
        (
            view["cql_check"]["keyspaces"]
            for _, view in sorted(speaking.items())
            if view["cql_check"].get("keyspaces")
        ),
        None,
    )
    if keyspaces is None:
        reasons.add(
            "CN-217",
            "no node tells how its keyspaces are replicated, so it cannot be known whether LOCAL_QUORUM "
            "survives. See why a query fails.",
        )
        return
    judged = {name: value for name, value in keyspaces.items() if name not in set(unavailable_keyspaces)}
    for sentence in quorum_lost(judged, nodes, lost, missing):
        reasons.add(
            "CN-217",
            f"{sentence}. Replicate it on more nodes and repair it; or, where its users accept to be "
            "without it meanwhile, name it in cassandra_node_gate_unavailable_keyspaces.",
        )


def summary(reasons: Sequence[Mapping[str, str]]) -> str:
    """The reasons as one text, for an error message."""
    return "\n".join(f"{reason['id']}: {reason['text']}" for reason in reasons)


class FilterModule:
    """The entry for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "cassandra_node_gate": verdict,
            "cassandra_node_gate_summary": summary,
            "cassandra_node_normal_address": normal_address,
        }
