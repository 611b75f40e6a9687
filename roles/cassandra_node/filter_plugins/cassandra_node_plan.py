"""What may be done on one node of a ring, decided from what every host says of itself.

Pure functions: no clock, no files, no network. Every verdict that stops a run is a refusal with an
ID; docs/refusals.md has a section for each.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

# Ansible loads each filter by its path, so that one cannot import another by name.
_spec = importlib.util.spec_from_file_location(
    "cassandra_node_gate", Path(__file__).with_name("cassandra_node_gate.py")
)
assert _spec
assert _spec.loader
_gate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_gate)

TOKEN_MIN = -(2**63)
TOKEN_SPAN = 2**64
# Data centres share one ring of tokens: a small shift keeps their evenly spaced lists apart.
DATACENTER_SHIFT = 100

REPLACE = "playbooks/replace_cassandra_node.yml (docs/runbook/replace_cassandra_node.md)"
ADD = "playbooks/add_cassandra_node.yml (docs/runbook/add_cassandra_node.md)"
GATED = {"bootstrap": ADD, "replace": REPLACE, "datacenter": "playbooks/add_datacenter.yml"}
AFTER_OUTAGE = "start_cassandra_after_outage (docs/runbook/start_cassandra_after_outage.md)"


def interleave_racks(peers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Peers of one data centre so that neighbours on the ring stand in different racks."""
    racks: dict[str, list[dict[str, Any]]] = {}
    for peer in sorted(peers, key=lambda peer: str(peer["name"])):
        racks.setdefault(str(peer["rack"]), []).append(peer)
    order: list[dict[str, Any]] = []
    while any(racks.values()):
        order.extend(racks[rack].pop(0) for rack in sorted(racks) if racks[rack])
    return order


def plan_tokens(peers: list[dict[str, Any]], num_tokens: int) -> dict[str, list[int]]:
    """Evenly spaced tokens per node, unique over all data centres; the same input gives the same lists."""
    tokens: dict[str, list[int]] = {}
    for shift, datacenter in enumerate(sorted({str(peer["dc"]) for peer in peers})):
        nodes = interleave_racks([peer for peer in peers if str(peer["dc"]) == datacenter])
        count = len(nodes) * num_tokens
        half = TOKEN_SPAN // count // 2
        for position, node in enumerate(nodes):
            tokens[str(node["name"])] = [
                TOKEN_MIN
                + half
                + shift * DATACENTER_SHIFT
                + (turn * len(nodes) + position) * TOKEN_SPAN // count
                for turn in range(num_tokens)
            ]
    flat = [token for node in tokens.values() for token in node]
    if len(flat) != len(set(flat)):
        raise ValueError("two nodes would get the same token: change num_tokens or the number of nodes")
    return tokens


def seeds(peers: list[dict[str, Any]], per_datacenter: int) -> list[str]:
    """Addresses of the seeds: some per data centre, in different racks as far as there are racks."""
    chosen: list[str] = []
    for datacenter in sorted({str(peer["dc"]) for peer in peers}):
        nodes = interleave_racks([peer for peer in peers if str(peer["dc"]) == datacenter])
        chosen.extend(str(node["address"]) for node in nodes[:per_datacenter])
    return chosen


def plan(
    peers: list[dict[str, Any]],
    *,
    name: str,
    wanted: dict[str, Any],
    states: dict[str, dict[str, Any] | None],
    record: dict[str, Any],
    absent: list[str] | None = None,
    answering: dict[str, list[int]] | None = None,
    joining: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The verdict for the node `name`: what to do (first_start, joined, join) or the refusals, by ID.

    `states` maps each peer to what cassandra_node_state returned on it in this run, None where it did
    not run. `record` is the controller's record of the ring, empty where there is none. `joining`
    says how those hosts join that a gated playbook lets in. On a host that is `absent` nothing is done.
    `stopped` says why a node that has joined is not to be started here, though its files may be rendered.
    """
    absent, joining = absent or [], joining or {}
    expected = [peer for peer in peers if peer["name"] not in absent]
    recorded = record.get("nodes", {})
    # A node that joins is no seed: a seed does not stream, and comes up empty. Nor is a dead one.
    no_seeds = set(joining) | {host.get("predecessor") for host in joining.values()}
    members = [p for p in expected if (not recorded or p["name"] in recorded) and p["name"] not in no_seeds]
    mine = states.get(name)
    verdict: dict[str, Any] = {
        "refusals": {},
        "first_start": False,
        "joined": False,
        "finish": False,
        "stopped": "",
        "join": "",
        "tokens": [],
        "seeds": seeds(members or expected, int(wanted["seeds_per_dc"])),
    }
    refusals: dict[str, str] = verdict["refusals"]
    refusals.update(_refuse_peers(peers, name=name, wanted=wanted))
    if refusals or mine is None or name in absent:
        return verdict
    if name in joining:
        verdict["join"] = joining[name]["how"]
        verdict["tokens"] = joining[name].get("tokens", [])
        return verdict
    if mine.get("joining"):
        refusals["CN-316"] = (
            f"a change of the ring's members was begun on {name} and is not finished: {mine['joining']}. "
            f"Finish it first: run {GATED[mine['joining']['how']]} again, it goes on where it stopped."
        )
        return verdict
    tokens = plan_tokens(expected, int(wanted["num_tokens"]))
    verdict["tokens"] = tokens[name]
    mine = {**mine, "answering": {**mine["answering"], **(answering or {})}}
    begun = mine["first_start"]

    unreached = [
        f"{peer['name']} ({peer['address']})"
        for peer in expected
        if states.get(peer["name"]) is None and not _answers(mine, peer["address"])
    ]
    if unreached:
        refusals["CN-110"] = (
            f"not reached in this run and silent on 7000 and 9042: {', '.join(unreached)}. A ring is "
            "changed only "
            "while every peer is known. Bring the peer back, run without --limit, or declare it absent in "
            "cassandra_node_absent_hosts, after it was removed or while it is lost."
        )
        return verdict

    if begun and not record and begun.get("plan") != tokens:
        refusals["CN-116"] = (
            f"a first start was begun here with other peers or another num_tokens ({_names(begun)}; now "
            f"{', '.join(sorted(tokens))}). Restore the inventory it was begun with and run again; or, "
            "only while the "
            "ring holds no data, stop cassandra and empty /var/lib/cassandra and /etc/cassandra on every "
            "node of it."
        )
        return verdict

    if mine["data"] == "used" and recorded and name not in recorded and not begun:
        refusals["CN-129"] = (
            f"{name} has data, but the record of its ring ({wanted['record_file']}) does not know it: it was "
            "removed or replaced, and another node may hold its tokens. Never start it with this disk: take "
            "it out of the inventory, or empty its disk and let it join anew. If the record is the one that "
            "is wrong, restore it."
        )
        return verdict

    if mine["data"] == "used" and (record or not begun):
        return _plan_joined(verdict, name=name, wanted=wanted, mine=mine, recorded=recorded)

    if recorded:
        if all((states.get(peer["name"]) or {}).get("data") == "empty" for peer in expected):
            refusals["CN-114"] = (
                f"the controller's record says that {', '.join(sorted(recorded))} have joined, but the "
                "data directory "
                "of every host is empty. Is this the right inventory, are the disks mounted? If the ring "
                "was taken "
                f"down for good, remove its record ({wanted['record_file']}) and run again."
            )
        elif name in recorded:
            refusals["CN-112"] = _one_empty_disk(name, "it stands in the controller's record")
        else:
            refusals["CN-113"] = (
                f"{name} is new and its ring has already joined. A node joins a running ring one at a "
                "time, streaming "
                f"its share: run {ADD}."
            )
        return verdict

    # From here on there is no record: a new ring, or a first start that was interrupted.
    for peer in expected:
        state = states.get(peer["name"])
        if state is None:
            refusals["CN-110"] = (
                f"{peer['name']} was not reached in this run. A new ring is started only when every peer "
                "in the "
                "inventory was reached and has an empty data directory: run without --limit."
            )
            return verdict
        if state["data"] == "used" and not state["first_start"]:
            refusals["CN-112"] = _one_empty_disk(name, f"{peer['name']} has already joined a ring")
            return verdict
        silent = state["data"] == "empty" and not state["first_start"]
        if silent and (state["listening"] or _answers(mine, peer["address"])):
            refusals["CN-112"] = _one_empty_disk(name, f"{peer['name']} already answers on 7000 or 9042")
            return verdict
    verdict["first_start"] = True
    return verdict


def _plan_joined(
    verdict: dict[str, Any],
    *,
    name: str,
    wanted: dict[str, Any],
    mine: dict[str, Any],
    recorded: dict[str, Any],
) -> dict[str, Any]:
    verdict["joined"] = True
    verdict["finish"] = bool(mine["first_start"])
    joined_as = {key: value for key, value in mine["configured"].items() if value is not None}
    node = recorded.get(name)
    if node:
        joined_as.update(
            dc=node["dc"], rack=node["rack"], address=node["address"], num_tokens=len(node["tokens"])
        )
    changed = [
        f"{key}: {joined_as[key]} -> {wanted[key]}"
        for key in sorted(joined_as)
        if key in wanted and _gate.plain(key, joined_as[key]) != _gate.plain(key, wanted[key])
    ]
    if changed:
        verdict["refusals"]["CN-111"] = (
            f"{name} has joined its ring and the inventory now says otherwise ({'; '.join(changed)}). A "
            "node that has "
            "joined keeps these for life: restore the inventory, or remove the node from the ring and add "
            "it anew."
        )
    elif not mine["active"]:
        verdict["stopped"] = (
            f"{name} has joined its ring but cassandra.service is not running. This run does not start it, "
            "since what "
            "stopped it is not known: see journalctl -u cassandra, then start it (systemctl start "
            "cassandra; after an "
            f"outage of several nodes: {AFTER_OUTAGE})."
        )
    return verdict


def _refuse_peers(peers: list[dict[str, Any]], *, name: str, wanted: dict[str, Any]) -> dict[str, str]:
    names = [str(peer["name"]) for peer in peers]
    addresses = [_gate.plain("address", peer["address"]) for peer in peers]
    faults = [f"{value} is there twice" for value in sorted({v for v in names if names.count(v) > 1})]
    faults += [
        f"{value} is there twice" for value in sorted({v for v in addresses if addresses.count(v) > 1})
    ]
    me = next((peer for peer in peers if peer["name"] == name), None)
    if me is None:
        faults.append(f"{name} itself is missing from it")
    else:
        faults += [
            f"{name} stands in it with {key} {me[key]}, but its own {key} is {wanted[key]}"
            for key in ("address", "dc", "rack")
            if _gate.plain(key, me[key]) != _gate.plain(key, wanted[key])
        ]
    if not faults:
        return {}
    return {
        "CN-103": f"cassandra_node_peers is wrong: {'; '.join(faults)}. Correct the inventory of this ring."
    }


def _answers(state: dict[str, Any], address: str) -> bool:
    """Whether the host of `state` got a connection to 7000 or 9042 of that address."""
    return bool(state["answering"].get(str(address)))


def _names(begun: dict[str, Any]) -> str:
    return f"then {', '.join(sorted(begun.get('plan', {})))}"


def _one_empty_disk(name: str, reason: str) -> str:
    return (
        f"the data directory of {name} is empty, but {reason}. Started like this it would come up with no "
        "data under "
        f"a new host ID, or silently take over ranges. If its disk was lost, run {REPLACE}; if the disk is "
        "not "
        "mounted, mount it."
    )


class FilterModule:
    """The entry for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "cassandra_node_plan": plan,
            "cassandra_node_plan_tokens": plan_tokens,
            "cassandra_node_seeds": seeds,
        }
