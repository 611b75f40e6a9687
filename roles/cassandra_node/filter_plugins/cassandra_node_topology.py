"""What a change of the ring's members has to do, or why it may not: one function per operation.

Pure functions: no clock, no files, no network. `record` is the controller's record of the ring, `states`
what cassandra_node_state returned on each host (None: not reached), `views` what each running node says of
the ring. docs/refusals.md has a section for each refusal.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
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
normal_address = _gate.normal_address

TOKEN_MIN = -(2**63)
TOKEN_SPAN = 2**64
SYSTEM_KEYSPACES = ("system_auth", "system_distributed", "system_traces")

Peer = dict[str, Any]
State = dict[str, Any]
Views = dict[str, dict[str, Any]]

PLAYBOOKS = {
    "bootstrap": "add_cassandra_node",
    "replace": "replace_cassandra_node",
    "datacenter": "add_datacenter",
}


def topology(
    peers: list[Peer],
    *,
    operation: str,
    record: dict[str, Any],
    states: dict[str, State | None],
    views: Views,
    absent: list[str] | None = None,
    subject: str = "",
    replacement: str = "",
    lost: bool = False,
    answering: list[str] | None = None,
    keyspaces: dict[str, dict[str, int] | None] | None = None,
    wanted_keyspaces: list[dict[str, Any]] | None = None,
    client_datacenters: list[str] | None = None,
    num_tokens: int = 16,
) -> dict[str, Any]:
    """{refusals: {id: sentence}, subjects: [{name, address, case, ...}], ...} of one operation.

    The subjects' addresses are spelled as in the views of cassandra_node_status: tasks compare them.
    """
    ring = Ring(peers, record=record, states=states, views=views, absent=absent or [])
    verdict: dict[str, Any] = {
        "refusals": {},
        "subjects": [],
        "turns": [],
        "replication": {},
        "system_replication": {},
        "note": "",
    }
    if not ring.recorded:
        verdict["refusals"]["CN-301"] = (
            "no node of this ring is on record. A ring is changed only after it was started: run "
            "playbooks/site.yml first; or, where the record was lost, bring it back from the site's state."
        )
        return verdict
    if operation == "add":
        _add(ring, verdict)
    elif operation == "replace":
        _replace(
            ring,
            verdict,
            subject=subject,
            name=replacement or subject,
            lost=lost,
            answering=answering or [],
        )
    elif operation == "remove":
        _remove(ring, verdict, subject=subject, lost=lost, keyspaces=keyspaces or {})
    elif operation == "add_datacenter":
        _add_datacenter(
            ring,
            verdict,
            datacenter=subject,
            keyspaces=keyspaces or {},
            wanted=wanted_keyspaces or [],
            num_tokens=num_tokens,
        )
    elif operation == "remove_datacenter":
        _remove_datacenter(
            ring,
            verdict,
            datacenter=subject,
            keyspaces=keyspaces or {},
            clients=client_datacenters or [],
        )
    else:
        raise ValueError(f"no such operation: {operation}")
    if verdict["refusals"]:
        verdict["subjects"] = []
    subjects = verdict["subjects"]
    # One at a time, but for the nodes of a new data centre: nothing is streamed when they join.
    together = operation == "add_datacenter" and subjects
    verdict["turns"] = [subjects] if together else [[subject] for subject in subjects]
    return verdict


class Ring:
    """What is known of the ring, asked by name.

    Addresses are compared in one spelling: inventory and record have what a person wrote.
    """

    def __init__(
        self,
        peers: list[Peer],
        *,
        record: dict[str, Any],
        states: dict[str, State | None],
        views: Views,
        absent: list[str],
    ) -> None:
        self.peers = {str(peer["name"]): peer for peer in peers}
        self.absent = absent
        self.expected = {name: peer for name, peer in self.peers.items() if name not in absent}
        self.recorded: dict[str, dict[str, Any]] = record.get("nodes", {})
        self.states = states
        self.views = views

    def under_way(self) -> dict[str, dict[str, Any]]:
        """{name: marker} of the hosts on which a join was begun and not finished."""
        found = {name: (state or {}).get("joining") for name, state in self.states.items()}
        return {name: marker for name, marker in found.items() if marker}

    def is_member(self, address: str) -> bool:
        """Whether some running node holds that address for the owner of tokens.

        Cassandra lists the tokens of a node that joins with them, until it is forgotten, also when it died.
        """
        return any(
            _among(address, view["tokens_of"]) and not _among(address, view["joining"])
            for view in self.views.values()
        )

    def is_up(self, address: str) -> bool:
        """Whether some other running node calls that address up."""
        return any(
            _among(address, view["live"])
            for name, view in self.views.items()
            if normal_address(self.peers.get(name, {}).get("address")) != normal_address(address)
        )

    def is_leaving(self, address: str) -> bool:
        """Whether some running node sees it leave, which stays so where its leaving has failed."""
        return any(_among(address, view["leaving"]) for view in self.views.values())

    def leaving(self, name: str, address: str) -> dict[str, bool]:
        """`leaving`: it was told to; `under_way`: it still does, which none but itself knows."""
        mode = self.mode(name)
        return {
            "leaving": self.is_leaving(address) or mode == "DECOMMISSION_FAILED",
            "under_way": mode == "LEAVING",
        }

    def mode(self, name: str) -> str:
        """What that node says of itself; "" where it does not run."""
        return str(self.views.get(name, {}).get("mode", ""))

    def in_datacenter(self, datacenter: str) -> list[str]:
        """The names on record that stand in it."""
        return sorted(name for name, node in self.recorded.items() if node["dc"] == datacenter)


def _among(address: str, addresses: Iterable[str]) -> bool:
    return normal_address(address) in {normal_address(other) for other in addresses}


def _refuse_to_finish(ring: Ring, verdict: dict[str, Any], name: str, address: str) -> bool:
    """What is finished is stopped: not a node that takes part, whatever the others say."""
    if ring.mode(name) != "NORMAL":
        return False
    verdict["refusals"]["CN-307"] = (
        f"no node knows {name} by the address {address}, but {name} says of itself that it is NORMAL. "
        "Stopped now, it would take its data along. Compare nodetool status on every node with the record "
        "before anything else."
    )
    return True


def _begun_otherwise(ring: Ring, verdict: dict[str, Any], how: str, among: list[str] | None = None) -> bool:
    others = {
        name: marker
        for name, marker in ring.under_way().items()
        if marker.get("how") != how or (among is not None and name not in among)
    }
    for name, marker in sorted(others.items()):
        playbook = PLAYBOOKS.get(str(marker.get("how")), str(marker.get("how")))
        place = f", in the place of {marker['predecessor']}," if marker.get("predecessor") else ""
        verdict["refusals"]["CN-303"] = (
            f"{playbook} was begun on {name}{place} and is not finished. One change at a time: run "
            f"{playbook} again for {name}; it goes on where it stopped."
        )
    return bool(others)


def _case_of_joining(ring: Ring, name: str, verdict: dict[str, Any]) -> str:
    """fresh, wait, clean, start or finish; a refusal where none fits."""
    state = ring.states.get(name)
    address = str(ring.peers[name]["address"])
    if state is None:
        verdict["refusals"]["CN-304"] = (
            f"{name} was not reached. It joins the ring by this run, so it must be: run without --limit and "
            "see that Ansible gets to it."
        )
        return ""
    marker = state.get("joining")
    if not marker:
        if state["active"]:
            verdict["refusals"]["CN-307"] = (
                f"cassandra.service runs on {name}, but no playbook began to let it join. See what that node "
                "is (nodetool status on it) and stop it before anything else."
            )
        elif state["data"] == "used":
            verdict["refusals"]["CN-305"] = (
                f"the data directory of {name} is not empty. A node that joins starts with an empty one, or "
                "old rows come back. Find out what the data is; move it away (mv /var/lib/cassandra "
                "/var/lib/cassandra.old) and run again."
            )
        return "fresh"
    if state["active"]:
        return "finish" if name in ring.recorded and marker.get("how") == "bootstrap" else "wait"
    # Once it is on record its data is the ring's, whatever the others see of it now.
    if marker.get("joined") and state["data"] == "used":
        return "start"
    # At the dead node's address it is the dead one that the others still hold for an owner of tokens.
    own = marker.get("how") != "replace" or (
        state["data"] == "used"
        and bool(marker.get("replaces"))
        and normal_address(marker["replaces"]) != normal_address(address)
    )
    return "start" if own and ring.is_member(address) else "clean"


def _add(ring: Ring, verdict: dict[str, Any]) -> None:
    new = [name for name in sorted(ring.expected) if name not in ring.recorded or name in ring.under_way()]
    if _begun_otherwise(ring, verdict, "bootstrap"):
        return
    datacenters = {node["dc"] for node in ring.recorded.values()}
    for name in new:
        datacenter = ring.expected[name]["dc"]
        if datacenter not in datacenters:
            verdict["refusals"]["CN-302"] = (
                f"{name} stands in {datacenter}, of which no node is on record. A data centre is added as a "
                "whole, without streaming at first: run add_datacenter with -e "
                f"cassandra_node_subject={datacenter}."
            )
            return
    # One that was begun goes first; never two at once.
    for name in sorted(new, key=lambda name: (name not in ring.under_way(), name)):
        case = _case_of_joining(ring, name, verdict)
        peer = ring.expected[name]
        verdict["subjects"].append(
            {
                "name": name,
                "address": normal_address(peer["address"]),
                "dc": peer["dc"],
                "case": case,
                "how": "bootstrap",
            }
        )
    if not new:
        verdict["note"] = "every node of the inventory is on record: nothing to add"


def _replace(
    ring: Ring, verdict: dict[str, Any], *, subject: str, name: str, lost: bool, answering: list[str]
) -> None:
    """The host `name` takes the place of the node that is on record as `subject`; mostly they are one."""
    other_name = name != subject
    marker = ring.under_way().get(name, {})
    begun = bool(marker)
    done = other_name and subject not in ring.recorded and name in ring.recorded
    if done and not begun and not ring.under_way():
        verdict["note"] = f"{subject} is not on record and {name} is: nothing to replace"
        return
    if not (done and begun) and not _known(ring, verdict, subject):
        return
    if _begun_otherwise(ring, verdict, "replace", [name]):
        return
    if begun and str(marker.get("predecessor", "")) != (subject if other_name else ""):
        verdict["refusals"]["CN-303"] = (
            f"{name} was begun in the place of {marker.get('predecessor') or name}, not of {subject}, and is "
            "not finished. One change at a time: finish that one, or empty /var/lib/cassandra and "
            f"/etc/cassandra on {name} while its Cassandra is stopped."
        )
        return
    if name not in ring.expected:
        verdict["refusals"]["CN-306"] = (
            f"{name} is not a host of this ring's inventory (or stands in cassandra_node_absent_hosts). Put "
            "the host that takes the dead node's place into the inventory, with its own address: under the "
            "dead node's name, or under a new one (-e cassandra_node_replacement=NEW_NAME). Then run again."
        )
        return
    if other_name and subject in ring.absent:
        verdict["refusals"]["CN-306"] = (
            f"{subject} stands in cassandra_node_absent_hosts. It is looked for in this run, to be sure that "
            "it is dead: take it out of that list and run again."
        )
        return
    if other_name and name in ring.recorded and not done:
        verdict["refusals"]["CN-306"] = (
            f"{name} is a node of this ring itself and cannot take the place of {subject}: name a host that "
            "is new."
        )
        return
    # After the record was written only the rest is left to do.
    old, peer, state = ring.recorded[name if done else subject], ring.expected[name], ring.states.get(name)
    before = normal_address(old["address"])
    moved = before != normal_address(peer["address"])
    for key in ("dc", "rack"):
        if str(old[key]) != str(peer[key]):
            verdict["refusals"]["CN-306"] = (
                f"{subject} stood in {key} {old[key]} and the inventory now says {peer[key]}"
                f"{f' of {name}' if other_name else ''}. A node is replaced where it stood: restore {key}."
            )
            return
    # What the others call it is not asked here: they need up to twenty seconds to see a dead node, and the
    # run waits for that before it starts anything.
    dead = ring.states.get(subject) if other_name and not done else None
    lives = not begun and state is not None and state["active"] and not moved and not other_name
    lives = lives or bool(dead and dead["active"])
    if lives or (_among(before, answering) and (moved or not begun)):
        verdict["refusals"]["CN-307"] = (
            f"the node to be replaced, {subject} ({before}), still answers, or another node calls it up. Two "
            "nodes with the same tokens lose data. If it is to go, stop it (systemctl disable --now "
            "cassandra), wait half a minute and run again; if it is well, there is nothing to replace."
        )
        return
    if dead and dead["data"] == "used" and not lost and not begun:
        verdict["refusals"]["CN-309"] = (
            f"{subject} is stopped, but its disk is there: started (systemctl start cassandra), it is back "
            "with all it has. If its data is really lost, add -e cassandra_node_subject_lost=true."
        )
        return
    case = _case_of_joining(ring, name, verdict)
    verdict["subjects"].append(
        {
            "name": name,
            "address": normal_address(peer["address"]),
            "dc": peer["dc"],
            "case": case,
            "how": "replace",
            "replaces": before,
            "tokens": old["tokens"],
            **({"predecessor": subject} if other_name else {}),
        }
    )


def _known(ring: Ring, verdict: dict[str, Any], subject: str) -> bool:
    if subject in ring.recorded:
        return True
    verdict["refusals"]["CN-306"] = (
        "no node was named" if not subject else f"{subject} is not on record"
    ) + f": say -e cassandra_node_subject=NAME, one of {', '.join(sorted(ring.recorded))}."
    return False


def below_replication(
    keyspaces: dict[str, dict[str, int] | None], datacenter: str, nodes_left: int
) -> list[str]:
    """Sentences on the keyspaces that would have fewer nodes than copies in that data centre."""
    found = []
    for name, replication in sorted(keyspaces.items()):
        copies = (replication or {}).get(datacenter, 0)
        if copies > nodes_left:
            found.append(f"{name} keeps {copies} copies in {datacenter}")
    return found


def _without_topology(keyspaces: dict[str, dict[str, int] | None], verdict: dict[str, Any]) -> bool:
    plain = sorted(name for name, replication in keyspaces.items() if replication is None)
    if plain:
        verdict["refusals"]["CN-313"] = (
            f"{', '.join(plain)} is not replicated per data centre. With another strategy a new node owns "
            "rows that it does not have, wherever it stands: ALTER KEYSPACE to NetworkTopologyStrategy, "
            "repair, and run again."
        )
    return bool(plain)


def _remove(
    ring: Ring,
    verdict: dict[str, Any],
    *,
    subject: str,
    lost: bool,
    keyspaces: dict[str, dict[str, int] | None],
) -> None:
    if subject and subject not in ring.recorded:
        address = str(ring.peers.get(subject, {}).get("address", ""))
        if not (address and ring.is_member(address)) and not ring.under_way().get(subject):
            verdict["note"] = f"{subject} is not on record and no node knows it: nothing to remove"
            return
    if not _known(ring, verdict, subject) or _begun_otherwise(ring, verdict, ""):
        return
    node = ring.recorded[subject]
    address, datacenter = normal_address(node["address"]), str(node["dc"])
    left = [name for name in ring.in_datacenter(datacenter) if name != subject]
    state = ring.states.get(subject)
    member = ring.is_member(address)
    runs = bool(state and state["active"])
    leaving = ring.leaving(subject, address)
    # What the others began to take over from a dead one is not undone by refusing the rest of it.
    if member and not leaving["under_way" if runs else "leaving"]:
        if not left:
            verdict["refusals"]["CN-310"] = (
                f"{subject} is the last node of {datacenter}. Its data centre goes as a whole: run "
                f"remove_datacenter with -e cassandra_node_subject={datacenter}."
            )
            return
        if _without_topology(keyspaces, verdict):
            return
        if short := below_replication(keyspaces, datacenter, len(left)):
            verdict["refusals"]["CN-308"] = (
                f"without {subject} {len(left)} node(s) are left in {datacenter}, but {'; '.join(short)}. "
                "Add a node first (add_cassandra_node), or lower the replication on purpose and repair."
            )
            return
    if member and not runs and ring.is_up(address):
        verdict["refusals"]["CN-307"] = (
            f"{subject} ({address}) was not reached by Ansible or its unit is stopped, but other nodes call "
            "it up. It is removed as dead only when it is: wait half a minute, or make it reachable."
        )
        return
    if member and not runs and not lost and state is not None and state["data"] == "used":
        verdict["refusals"]["CN-309"] = (
            f"{subject} is stopped, but its disk is there. Running, it hands over its own data; removed as "
            "dead, what only it holds is lost. Start it (systemctl start cassandra) and run again; if its "
            "data is really lost, add -e cassandra_node_subject_lost=true."
        )
        return
    case = "decommission" if runs and member else "removenode" if member else "finish"
    if case == "finish" and _refuse_to_finish(ring, verdict, subject, address):
        return
    verdict["subjects"].append(
        {
            "name": subject,
            "address": address,
            "dc": datacenter,
            "case": case,
            "host_id": node["host_id"],
            **leaving,
        }
    )


def spread_tokens(names: list[str], num_tokens: int, taken: list[int]) -> dict[str, list[int]]:
    """Evenly spaced tokens for the nodes of a new data centre, none of which is taken in the ring."""
    count = len(names) * num_tokens
    used = set(taken)
    shift = 0
    while True:
        tokens = {
            name: [
                TOKEN_MIN
                + TOKEN_SPAN // count // 2
                + shift
                + (turn * len(names) + position) * TOKEN_SPAN // count
                for turn in range(num_tokens)
            ]
            for position, name in enumerate(names)
        }
        if used.isdisjoint(token for node in tokens.values() for token in node):
            return tokens
        shift += 100


def _interleaved(peers: list[Peer]) -> list[str]:
    racks: dict[str, list[str]] = {}
    for peer in sorted(peers, key=lambda peer: str(peer["name"])):
        racks.setdefault(str(peer["rack"]), []).append(str(peer["name"]))
    order: list[str] = []
    while any(racks.values()):
        order.extend(racks[rack].pop(0) for rack in sorted(racks) if racks[rack])
    return order


def _add_datacenter(
    ring: Ring,
    verdict: dict[str, Any],
    *,
    datacenter: str,
    keyspaces: dict[str, dict[str, int] | None],
    wanted: list[dict[str, Any]],
    num_tokens: int,
) -> None:
    members = [peer for peer in ring.expected.values() if str(peer["dc"]) == datacenter]
    names = _interleaved(members)
    if not members:
        verdict["refusals"]["CN-311"] = (
            "no data centre was named"
            if not datacenter
            else f"no host of the inventory stands in {datacenter}"
        ) + ": put its hosts into the inventory and say -e cassandra_node_subject=DC."
        return
    if _begun_otherwise(ring, verdict, "datacenter", names):
        return
    under_way = [name for name in names if name in ring.under_way()]
    on_record = ring.in_datacenter(datacenter)
    if on_record and not under_way:
        if missing := [name for name in names if name not in on_record]:
            verdict["refusals"]["CN-302"] = (
                f"{datacenter} is there already ({', '.join(on_record)}): {', '.join(missing)} joins it by "
                "add_cassandra_node, which streams its share."
            )
            return
        verdict["note"] = f"{datacenter} is there already: nothing to add"
        return
    if _without_topology(keyspaces, verdict):
        return
    copies = {str(keyspace["name"]): int(keyspace["replication"].get(datacenter, 0)) for keyspace in wanted}
    if not any(copies.values()):
        verdict["refusals"]["CN-311"] = (
            f"no keyspace of cassandra_node_keyspaces has copies in {datacenter}, so it would hold nothing. "
            f"Say how many, for example {{name: fieldring, replication: {{..., {datacenter}: "
            f"{min(3, len(names))}}}}}, and run again."
        )
        return
    unknown = sorted(name for name, count in copies.items() if count and name not in keyspaces)
    # Where none was read there was no node to ask, which the gate says.
    if keyspaces and unknown:
        verdict["refusals"]["CN-311"] = (
            f"{', '.join(unknown)} of cassandra_node_keyspaces is to have copies in {datacenter}, but is not "
            f"in this ring yet. Take it out until {datacenter} is there, or create it first (playbooks/"
            f"deploy_cassandra.yml, with the inventory as it was before {datacenter}); then run again."
        )
        return
    if short := [f"{name} wants {count}" for name, count in sorted(copies.items()) if count > len(names)]:
        verdict["refusals"]["CN-314"] = (
            f"{datacenter} has {len(names)} node(s), but of copies there {'; '.join(short)}. Lower the "
            "number in cassandra_node_keyspaces, or add hosts."
        )
        return
    sources = sorted(
        {str(node["dc"]) for name, node in ring.recorded.items() if name not in names},
        key=lambda dc: (-len(ring.in_datacenter(dc)), dc),
    )
    taken = [
        int(token) for name, node in ring.recorded.items() if name not in names for token in node["tokens"]
    ]
    tokens = spread_tokens(names, num_tokens, taken)
    for name in names:
        marker = ring.under_way().get(name, {})
        if name in on_record and not marker:
            # Rebuilt by a run that did not come to its end.
            continue
        case = _case_of_joining(ring, name, verdict)
        verdict["subjects"].append(
            {
                "name": name,
                "address": normal_address(ring.expected[name]["address"]),
                "dc": datacenter,
                "case": case,
                "how": "datacenter",
                "tokens": [int(token) for token in marker.get("tokens") or tokens[name]],
            }
        )
    verdict["source"] = sources[0]
    verdict["system_replication"] = {
        name: {**(keyspaces.get(name) or {}), datacenter: min(3, len(names))}
        for name in SYSTEM_KEYSPACES
        if name in keyspaces
    }
    verdict["replication"] = {
        name: {**(keyspaces.get(name) or {}), datacenter: count} for name, count in copies.items() if count
    }


def _remove_datacenter(
    ring: Ring,
    verdict: dict[str, Any],
    *,
    datacenter: str,
    keyspaces: dict[str, dict[str, int] | None],
    clients: list[str],
) -> None:
    names = ring.in_datacenter(datacenter)
    others = sorted({str(node["dc"]) for node in ring.recorded.values()} - {datacenter})
    if not datacenter or (not names and not others):
        verdict["refusals"]["CN-311"] = "no data centre was named: say -e cassandra_node_subject=DC."
        return
    affected = {
        name: {dc: count for dc, count in replication.items() if dc != datacenter}
        for name, replication in keyspaces.items()
        if replication and datacenter in replication
    }
    # Its nodes may have left in a run that ended before the accounts were altered.
    if not names and not affected:
        verdict["note"] = f"no node of {datacenter} is on record: nothing to remove"
        return
    if not others:
        verdict["refusals"]["CN-311"] = (
            f"{datacenter} is the only data centre of this ring: without it there is no data."
        )
        return
    if _begun_otherwise(ring, verdict, ""):
        return
    if datacenter in clients:
        verdict["refusals"]["CN-312"] = (
            f"clients of the inventory have {datacenter} for their local data centre and would lose the "
            "ring. Point them to another one (ingest_container_cassandra_local_dc), deploy them "
            "(playbooks/deploy_ingest.yml), and run again."
        )
        return
    if _without_topology(keyspaces, verdict):
        return
    orphans = sorted(
        name
        for name, replication in keyspaces.items()
        if (replication or {}).get(datacenter) and set(replication or {}) == {datacenter}
    )
    if orphans:
        verdict["refusals"]["CN-308"] = (
            f"{', '.join(orphans)} has copies in {datacenter} only: its rows would be gone. ALTER "
            f"KEYSPACE to have copies in {' or '.join(others)}, rebuild there, and run again; or drop it."
        )
        return
    # One that has left and is stopped, and only stands in the record yet, is not dead.
    dead = [
        name
        for name in names
        if ring.is_member(str(ring.recorded[name]["address"]))
        and not (ring.states.get(name) or {}).get("active")
    ]
    if dead:
        verdict["refusals"]["CN-304"] = (
            f"{', '.join(dead)} was not reached or is not running. The nodes of a data centre leave by "
            "themselves: start them, or remove dead ones first (remove_cassandra_node)."
        )
        return
    verdict["replication"] = {k: v for k, v in affected.items() if k not in SYSTEM_KEYSPACES}
    verdict["system_replication"] = {k: v for k, v in affected.items() if k in SYSTEM_KEYSPACES}
    for name in names:
        node = ring.recorded[name]
        address = normal_address(node["address"])
        case = "decommission" if ring.is_member(address) else "finish"
        if case == "finish" and _refuse_to_finish(ring, verdict, name, address):
            return
        verdict["subjects"].append(
            {
                "name": name,
                "address": address,
                "dc": datacenter,
                "case": case,
                "host_id": node["host_id"],
                **ring.leaving(name, address),
            }
        )


def spokesman(views: Views, record: dict[str, Any], subject: str) -> str:
    """The node that speaks CQL for the ring: the first by name that runs, is on record and stays."""
    nodes = record.get("nodes", {})
    fit = [
        name
        for name, view in sorted(views.items())
        if name in nodes and view["mode"] == "NORMAL" and name != subject and nodes[name]["dc"] != subject
    ]
    return fit[0] if fit else ""


STEPS = {
    (
        "bootstrap",
        "fresh",
    ): "{name} joins and streams its share; then cleanup on the others of {dc}",
    ("bootstrap", "clean"): "what is left of the interrupted join of {name} is removed, and it joins anew",
    ("bootstrap", "start"): "{name} has joined but is stopped: it is started",
    ("bootstrap", "wait"): "{name} is joining: wait for it",
    ("bootstrap", "finish"): "{name} has joined: the rest is done",
    (
        "replace",
        "fresh",
    ): "{name} takes the place of the node that was {replaces}; then repair",
    ("replace", "clean"): "what is left of the interrupted replacement of {name} is removed; then as new",
    ("replace", "start"): "{name} has joined but is stopped: it is started; then repair",
    ("replace", "wait"): "{name} is taking the place of the node that was {replaces}: wait for it",
    (
        "datacenter",
        "fresh",
    ): "{name} joins {dc} without data and is rebuilt when keyspaces have copies there",
    (
        "datacenter",
        "clean",
    ): "what is left of the interrupted start of {name} is removed; it joins {dc} anew",
    ("datacenter", "start"): "{name} has joined but is stopped: it is started",
    ("datacenter", "wait"): "{name} has joined {dc}: what is not yet rebuilt is",
    ("", "decommission"): "{name} hands over its data and leaves",
    ("", "removenode"): "{name} is dead: the others take its ranges over from the copies that are left",
    ("", "finish"): "{name} has left: the record is put right",
}


def step(subject: dict[str, Any], *, check: bool = False) -> str:
    """One sentence on what is done with a subject."""
    text = STEPS[subject.get("how", ""), subject["case"]].format(**subject)
    return f"would be done: {text}" if check else text


def peers_on_record(peers: list[Peer], record: dict[str, Any]) -> list[Peer]:
    """The peers that are members now, where they are on record: what the gate judges in between."""
    nodes = record.get("nodes", {})
    return [{**peer, "address": nodes[peer["name"]]["address"]} for peer in peers if peer["name"] in nodes]


def peers_with_subject(peers: list[Peer], record: dict[str, Any], subject: str) -> list[Peer]:
    """The inventory's peers, and the dead node, a member still, that it may not name any more."""
    node = record.get("nodes", {}).get(subject)
    if not node or any(str(peer["name"]) == subject for peer in peers):
        return peers
    return [*peers, {"name": subject, **{key: node[key] for key in ("address", "dc", "rack")}}]


def marker(subject: dict[str, Any], *, joined: bool = False) -> dict[str, Any]:
    """What is kept on a host until its join is finished; `joined` as soon as it is on record."""
    names = ("how", "replaces", "tokens", "predecessor")
    kept: dict[str, Any] = {name: subject[name] for name in names if name in subject}
    return {**kept, "joined": True} if joined else kept


DEPLOY = (
    "Run playbooks/site.yml now: it brings the weekly repair, metrics and monitoring of {names}, and tells "
    "the ingest hosts the address."
)
AFTERWARDS = {
    "add": DEPLOY,
    "replace": DEPLOY,
    "remove": "Take {names} out of the inventory's group now: playbooks/site.yml refuses until then.",
    "add_datacenter": "Now clients may have {dcs} for their local data centre "
    "(ingest_container_cassandra_local_dc, then playbooks/deploy_ingest.yml). " + DEPLOY,
    "remove_datacenter": "Take {names} out of the inventory's group and {dcs} out of the replication in "
    "cassandra_node_keyspaces now: playbooks/site.yml refuses until then.",
}


def report(
    verdict: dict[str, Any],
    *,
    operation: str,
    record: dict[str, Any],
    pending: dict[str, list[str]],
    check: bool = False,
) -> list[str]:
    """What was done, the members now, what waits for a restart and what is left to the operator."""
    subjects = verdict["subjects"]
    names = ", ".join(subject["name"] for subject in subjects)
    lines = [f"{operation}: {names}" if subjects else f"{operation}: {verdict['note'] or 'nothing to do'}"]
    if check:
        lines.append("this was a check: nothing was done")
    nodes = record.get("nodes", {})
    for datacenter in sorted({node["dc"] for node in nodes.values()}):
        members = sorted(name for name, node in nodes.items() if node["dc"] == datacenter)
        lines.append(f"{datacenter} has {len(members)} nodes: {', '.join(members)}")
    for name, waiting in sorted(pending.items()):
        lines += [f"{name} waits for restart_cassandra: {line}" for line in waiting]
    if subjects and not check:
        dcs = ", ".join(sorted({str(subject["dc"]) for subject in subjects}))
        lines.append(AFTERWARDS[operation].format(names=names, dcs=dcs))
        lines += [
            f"Take {subject['predecessor']} out of the inventory now, if it still stands there "
            "(playbooks/site.yml refuses until then), and never start it again with its old disk."
            for subject in subjects
            if subject.get("predecessor")
        ]
    return lines


def record_with(
    record: dict[str, Any], peer: Peer, view: dict[str, Any], predecessor: str = ""
) -> dict[str, Any]:
    """The record after `peer` has joined with that view of itself, in the place of a predecessor."""
    node = {
        "host_id": view["host_id"],
        "tokens": view["tokens"],
        "dc": peer["dc"],
        "rack": peer["rack"],
        "address": peer["address"],
    }
    nodes = record_without(record, predecessor)["nodes"]
    return {**record, "nodes": {**nodes, str(peer["name"]): node}}


def record_without(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The record after the node of that name has left."""
    nodes = {key: node for key, node in record.get("nodes", {}).items() if key != name}
    return {**record, "nodes": nodes}


class FilterModule:
    """The entry for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "cassandra_node_topology": topology,
            "cassandra_node_spokesman": spokesman,
            "cassandra_node_marker": marker,
            "cassandra_node_peers_on_record": peers_on_record,
            "cassandra_node_peers_with_subject": peers_with_subject,
            "cassandra_node_report": report,
            "cassandra_node_step": step,
            "cassandra_node_record_with": record_with,
            "cassandra_node_record_without": record_without,
        }
