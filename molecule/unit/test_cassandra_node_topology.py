"""What a change of the ring's members has to do, and what is refused: one situation each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from repository import ROOT, tasks

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/cassandra_node/filter_plugins"))
from cassandra_node_plan import plan  # type: ignore[import-not-found]
from cassandra_node_topology import (  # type: ignore[import-not-found]
    AFTERWARDS,
    marker,
    peers_on_record,
    peers_with_subject,
    record_with,
    record_without,
    report,
    spokesman,
    spread_tokens,
    step,
    topology,
)

KEYSPACES: dict[str, Any] = {"fieldring": {"dc1": 3}, "system_auth": {"dc1": 3}}


def peer(number: int, datacenter: str = "dc1") -> dict[str, Any]:
    """A host of the inventory: 10.0.0.1 and 10.0.0.10 are among them."""
    return {
        "name": f"ring{number}",
        "address": f"10.0.0.{number}",
        "dc": datacenter,
        "rack": f"rack{number % 3}",
    }


RING = [peer(n) for n in (1, 2, 3, 10)]
NEW = peer(4)


def state(data: str = "used", **other: Any) -> dict[str, Any]:
    """What cassandra_node_state returned on a host: one that runs, unless said otherwise."""
    return {"data": data, "active": data == "used", "joining": None, "answering": {}, **other}


BARE = state("empty")


def record(peers: list[dict[str, Any]]) -> dict[str, Any]:
    """The record in which those have joined."""
    nodes = {
        p["name"]: {**p, "host_id": f"id-{p['name']}", "tokens": [int(p["name"][4:]) * 1000]} for p in peers
    }
    return {"cluster_name": "lab", "ring": "main", "nodes": nodes}


def view(members: list[dict[str, Any]], *, down: tuple[str, ...] = (), **other: Any) -> dict[str, Any]:
    """How a running node sees those."""
    return {
        "mode": "NORMAL",
        "live": [p["address"] for p in members if p["name"] not in down],
        "tokens_of": {p["address"]: [1] for p in members},
        "joining": [],
        "leaving": [],
        **other,
    }


def judge(operation: str, **given: Any) -> dict[str, Any]:
    """The verdict on a ring of four that is well, unless said otherwise."""
    peers = given.pop("peers", RING)
    members = given.pop("members", RING)
    states = {p["name"]: state() if p in members else BARE for p in peers}
    states.update(given.pop("states", {}))
    views = given.pop("views", None)
    if views is None:
        up = [p for p in members if (states.get(p["name"]) or BARE)["active"]]
        down = tuple(p["name"] for p in members if p not in up)
        views = {p["name"]: view(members, down=down) for p in up}
    arguments = {"record": record(members), "keyspaces": KEYSPACES, "num_tokens": 4, **given}
    return topology(peers, operation=operation, states=states, views=views, **arguments)  # type: ignore[no-any-return]


def refused(verdict: dict[str, Any]) -> list[str]:
    """The IDs; a refusal comes with nothing to do."""
    assert not (verdict["refusals"] and (verdict["subjects"] or verdict["turns"]))
    return sorted(verdict["refusals"])


def cases(verdict: dict[str, Any]) -> dict[str, str]:
    """{name: case} of what is to be done."""
    assert verdict["refusals"] == {}
    return {subject["name"]: subject["case"] for subject in verdict["subjects"]}


@pytest.mark.parametrize("operation", ["add", "replace", "remove", "add_datacenter", "remove_datacenter"])
def test_ring_without_a_record_is_not_changed(operation: str) -> None:
    """CN-301: whatever is to be done, there is nothing to compare with."""
    assert refused(judge(operation, record={}, subject="ring1")) == ["CN-301"]


class TestAdd:
    """Hosts that are in the inventory and not on record."""

    def test_nothing_to_add(self) -> None:
        """A second run finds every host on record."""
        verdict = judge("add")
        assert cases(verdict) == {}
        assert "nothing to add" in verdict["note"]

    def test_bare_host_joins(self) -> None:
        """The plain case."""
        assert cases(judge("add", peers=[*RING, NEW])) == {"ring4": "fresh"}

    def test_several_join_one_after_the_other(self) -> None:
        """Never two at once; the one that was begun goes first."""
        verdict = judge(
            "add",
            peers=[*RING, NEW, peer(5)],
            states={"ring5": state(active=False, joining={"how": "bootstrap"})},
        )
        assert [[s["name"] for s in turn] for turn in verdict["turns"]] == [["ring5"], ["ring4"]]

    @pytest.mark.parametrize(
        ("condition", "members", "case"),
        [
            (state(joining={"how": "bootstrap"}), RING, "wait"),
            (state(active=False, joining={"how": "bootstrap"}), RING, "clean"),
            (state("empty", joining={"how": "bootstrap"}), RING, "clean"),
        ],
    )
    def test_interrupted_join(
        self, condition: dict[str, Any], members: list[dict[str, Any]], case: str
    ) -> None:
        """A daemon that still joins is waited for; what a dead one left is removed."""
        assert cases(judge("add", peers=[*RING, NEW], members=members, states={"ring4": condition})) == {
            "ring4": case
        }

    def test_joined_but_not_on_record_is_never_wiped(self) -> None:
        """Interrupted after the join and then stopped: the others hold it for an owner of tokens."""
        views = {p["name"]: view([*RING, NEW], down=("ring4",)) for p in RING}
        verdict = judge(
            "add",
            peers=[*RING, NEW],
            states={"ring4": state(active=False, joining={"how": "bootstrap"})},
            views=views,
        )
        assert cases(verdict) == {"ring4": "start"}

    def test_interrupted_and_not_forgotten_yet(self) -> None:
        """The others still hold the tokens that it was going to have; what it has streamed is not all."""
        seen = {p["name"]: view([*RING, NEW], down=("ring4",), joining=[NEW["address"]]) for p in RING}
        verdict = judge(
            "add",
            peers=[*RING, NEW],
            states={"ring4": state(active=False, joining={"how": "bootstrap"})},
            views=seen,
        )
        assert cases(verdict) == {"ring4": "clean"}

    def test_on_record_and_stopped_is_never_wiped(self) -> None:
        """Also where no running node tells that it is a member."""
        begun = state(active=False, joining={"how": "bootstrap", "joined": True})
        verdict = judge("add", peers=[*RING, NEW], record=record([*RING, NEW]), states={"ring4": begun})
        assert {"ring4": "start"} == cases(verdict)

    def test_on_record_and_not_finished(self) -> None:
        """Interrupted between the record and the end."""
        peers = [*RING, NEW]
        verdict = judge(
            "add", peers=peers, members=peers, states={"ring4": state(joining={"how": "bootstrap"})}
        )
        assert cases(verdict) == {"ring4": "finish"}

    def test_host_of_another_datacenter(self) -> None:
        """CN-302: a data centre is added as a whole."""
        verdict = judge("add", peers=[*RING, peer(4, "dc2")])
        assert refused(verdict) == ["CN-302"]
        assert "add_datacenter" in verdict["refusals"]["CN-302"]

    def test_other_change_under_way(self) -> None:
        """CN-303: a replacement that was begun comes first."""
        verdict = judge(
            "add", peers=[*RING, NEW], states={"ring2": state(joining={"how": "replace", "replaces": "x"})}
        )
        assert refused(verdict) == ["CN-303"]
        assert "replace_cassandra_node again for ring2" in verdict["refusals"]["CN-303"]

    def test_host_not_reached(self) -> None:
        """CN-304."""
        assert refused(judge("add", peers=[*RING, NEW], states={"ring4": None})) == ["CN-304"]

    def test_disk_with_foreign_data(self) -> None:
        """CN-305: old rows would come back."""
        assert refused(judge("add", peers=[*RING, NEW], states={"ring4": state(active=False)})) == ["CN-305"]

    def test_unknown_daemon(self) -> None:
        """CN-307: Cassandra runs there already, and nobody began it."""
        assert refused(judge("add", peers=[*RING, NEW], states={"ring4": state()})) == ["CN-307"]


class TestReplace:
    """The host of the dead node's name, with an empty disk."""

    def test_wiped_disk(self) -> None:
        """Same address; the others may still call it up for twenty seconds."""
        views = {p["name"]: view(RING) for p in RING if p["name"] != "ring2"}
        verdict = judge("replace", subject="ring2", states={"ring2": BARE}, views=views)
        assert cases(verdict) == {"ring2": "fresh"}
        assert verdict["subjects"][0]["replaces"] == "10.0.0.2"
        assert verdict["subjects"][0]["tokens"] == [2000]

    def test_new_address(self) -> None:
        """The inventory has another address for the name: the one on record is replaced."""
        moved = [*[p for p in RING if p["name"] != "ring2"], {**peer(2), "address": "10.0.0.99"}]
        verdict = judge("replace", subject="ring2", peers=moved, states={"ring2": BARE}, members=RING)
        assert cases(verdict) == {"ring2": "fresh"}
        assert verdict["subjects"][0]["replaces"] == "10.0.0.2"
        assert verdict["subjects"][0]["address"] == "10.0.0.99"

    @pytest.mark.parametrize(("active", "case"), [(True, "wait"), (False, "clean")])
    def test_interrupted_before_the_record(self, active: bool, case: str) -> None:
        """Resumed while its daemon runs, cleaned when it does not."""
        begun = state(active=active, joining={"how": "replace", "replaces": "10.0.0.2"})
        assert cases(judge("replace", subject="ring2", states={"ring2": begun})) == {"ring2": case}

    @pytest.mark.parametrize(
        ("condition", "case"),
        [(state(), "wait"), (state(active=False), "start"), (state("empty"), "clean")],
        ids=["runs", "stopped in the repair", "lost its disk"],
    )
    def test_interrupted_after_the_record(self, condition: dict[str, Any], case: str) -> None:
        """It holds what the dead one had; at the same address nothing but the marker tells the two apart."""
        begun = {**condition, "joining": {"how": "replace", "replaces": "10.0.0.2", "joined": True}}
        assert {"ring2": case} == cases(judge("replace", subject="ring2", states={"ring2": begun}))

    def test_interrupted_after_the_record_at_a_new_address(self) -> None:
        """At a new address and on record with it: what it replaced is still known from the marker."""
        moved = [*[p for p in RING if p["name"] != "ring2"], {**peer(2), "address": "10.0.0.99"}]
        begun = state(joining={"how": "replace", "replaces": "10.0.0.2"})
        verdict = judge("replace", subject="ring2", peers=moved, members=moved, states={"ring2": begun})
        assert cases(verdict) == {"ring2": "wait"}

    @pytest.mark.parametrize("subject", ["", "ring99", "ring"])
    def test_unknown_node(self, subject: str) -> None:
        """CN-306: names are whole, ring1 is not part of ring10."""
        assert refused(judge("replace", subject=subject)) == ["CN-306"]

    def test_host_of_that_name_is_declared_absent(self) -> None:
        """CN-306."""
        assert refused(judge("replace", subject="ring2", absent=["ring2"])) == ["CN-306"]

    def test_other_rack(self) -> None:
        """CN-306: it stands where the dead one stood."""
        moved = [*[p for p in RING if p["name"] != "ring2"], {**peer(2), "rack": "rack9"}]
        assert refused(judge("replace", subject="ring2", peers=moved, states={"ring2": BARE})) == ["CN-306"]

    def test_node_that_runs(self) -> None:
        """CN-307: nothing to replace."""
        assert refused(judge("replace", subject="ring2")) == ["CN-307"]

    def test_old_address_answers(self) -> None:
        """CN-307: the old machine is not dead, its name was only given to another."""
        moved = [*[p for p in RING if p["name"] != "ring2"], {**peer(2), "address": "10.0.0.99"}]
        verdict = judge(
            "replace", subject="ring2", peers=moved, states={"ring2": BARE}, answering=["10.0.0.2"]
        )
        assert refused(verdict) == ["CN-307"]

    def test_disk_that_is_not_empty(self) -> None:
        """CN-305: stopped only; its data may be all right."""
        assert refused(judge("replace", subject="ring2", states={"ring2": state(active=False)})) == ["CN-305"]

    def test_host_not_reached(self) -> None:
        """CN-304."""
        assert refused(judge("replace", subject="ring2", states={"ring2": None})) == ["CN-304"]

    def test_interrupted_at_a_new_address_and_stopped(self) -> None:
        """What the others know as a member has joined: it is started, not wiped, unless its disk is empty."""
        moved = [*[p for p in RING if p["name"] != "ring2"], {**peer(2), "address": "10.0.0.99"}]
        for data, case in (("used", "start"), ("empty", "clean")):
            begun = state(data, active=False, joining={"how": "replace", "replaces": "10.0.0.2"})
            verdict = judge("replace", subject="ring2", peers=moved, members=moved, states={"ring2": begun})
            assert {"ring2": case} == cases(verdict)
            assert "ring2" in step(verdict["subjects"][0])

    def test_join_of_another_is_under_way(self) -> None:
        """CN-303."""
        verdict = judge(
            "replace",
            subject="ring2",
            peers=[*RING, NEW],
            states={"ring2": BARE, "ring4": state(joining={"how": "bootstrap"})},
        )
        assert refused(verdict) == ["CN-303"]


class TestReplaceUnderAnotherName:
    """The dead node's machine is gone; the new one has its own name."""

    HOST: ClassVar[dict[str, Any]] = {**peer(4), "rack": peer(2)["rack"]}
    LEFT: ClassVar[list[dict[str, Any]]] = [p for p in RING if p["name"] != "ring2"]

    def judge(self, **given: Any) -> dict[str, Any]:
        """ring4 for ring2, which is dead and out of the inventory, unless said otherwise."""
        views = {p["name"]: view(RING, down=("ring2",)) for p in self.LEFT}
        arguments = {"peers": [*self.LEFT, self.HOST], "members": RING, "views": views, **given}
        return judge("replace", **{"subject": "ring2", "replacement": "ring4", **arguments})

    def test_bare_host(self) -> None:
        """It gets the dead one's tokens, and the marker says whose place it is."""
        verdict = self.judge()
        assert {"ring4": "fresh"} == cases(verdict)
        subject = verdict["subjects"][0]
        assert ("10.0.0.2", [2000], "10.0.0.4") == tuple(
            subject[k] for k in ("replaces", "tokens", "address")
        )
        assert "ring2" == marker(subject)["predecessor"]
        assert "predecessor" not in marker(
            judge("replace", subject="ring2", states={"ring2": BARE})["subjects"][0]
        )
        told = report(verdict, operation="replace", record=record(RING), pending={})[-1]
        assert "Take ring2 out of the inventory" in told

    @pytest.mark.parametrize(
        "dead", [None, BARE, state(active=False)], ids=["gone", "bare", "its disk is there"]
    )
    def test_dead_host_is_in_the_inventory(self, dead: dict[str, Any] | None) -> None:
        """CN-309 for one whose data may be all right, unless it is said to be lost."""
        given: dict[str, Any] = {"peers": [*RING, self.HOST], "states": {"ring2": dead, "ring4": BARE}}
        used = bool(dead) and dead["data"] == "used"  # type: ignore[index]
        assert (["CN-309"] if used else []) == refused(self.judge(**given))
        assert {"ring4": "fresh"} == cases(self.judge(**given, lost=True))

    def test_dead_host_runs_or_answers(self) -> None:
        """CN-307."""
        assert ["CN-307"] == refused(self.judge(answering=["10.0.0.2"]))
        assert ["CN-307"] == refused(self.judge(peers=[*RING, self.HOST], states={"ring2": state()}))

    def test_wrong_host(self) -> None:
        """CN-306: unknown, a member itself, in another rack, or the dead one is not looked for."""
        assert ["CN-306"] == refused(self.judge(peers=self.LEFT))
        assert ["CN-306"] == refused(self.judge(replacement="ring3"))
        assert ["CN-306"] == refused(self.judge(peers=[*self.LEFT, {**self.HOST, "rack": "rack9"}]))
        assert ["CN-306"] == refused(self.judge(peers=[*RING, self.HOST], absent=["ring2"]))

    def test_interrupted(self) -> None:
        """Resumed before and after the record was written; another one's place is another change (CN-303)."""
        begun = state(joining={"how": "replace", "replaces": "10.0.0.2", "predecessor": "ring2"})
        assert {"ring4": "wait"} == cases(self.judge(states={"ring4": begun}))
        after = record_with(record(RING), self.HOST, {"host_id": "new", "tokens": [2000]}, "ring2")
        assert {"ring4": "wait"} == cases(self.judge(states={"ring4": begun}, record=after))
        assert ["CN-303"] == refused(self.judge(states={"ring4": begun}, subject="ring3"))
        other = self.judge(states={"ring4": begun}, subject="ring3", replacement="")
        assert "in the place of ring2" in other["refusals"]["CN-303"]

    def test_again(self) -> None:
        """Its name is off the record, the new one on it."""
        members = [*self.LEFT, self.HOST]
        verdict = self.judge(record=record(members), states={"ring4": state()})
        assert {} == cases(verdict)
        assert "nothing to replace" in verdict["note"]


class TestRemove:
    """A node of four, three copies."""

    def test_running_node_hands_over(self) -> None:
        """decommission."""
        verdict = judge("remove", subject="ring10")
        assert cases(verdict) == {"ring10": "decommission"}
        assert not verdict["subjects"][0]["under_way"]

    def test_dead_host(self) -> None:
        """removenode: not reached, and down as the others see it."""
        verdict = judge("remove", subject="ring10", states={"ring10": None})
        assert cases(verdict) == {"ring10": "removenode"}
        assert verdict["subjects"][0]["host_id"] == "id-ring10"

    def test_host_with_an_empty_disk(self) -> None:
        """removenode: there is nothing left to hand over."""
        assert cases(judge("remove", subject="ring10", states={"ring10": BARE})) == {"ring10": "removenode"}

    def test_interrupted_decommission(self) -> None:
        """It goes on by itself and is waited for, even where the copies would now be refused."""
        views = {p["name"]: view(RING, leaving=["10.0.0.10"]) for p in RING}
        views["ring10"]["mode"] = "LEAVING"
        verdict = judge(
            "remove",
            subject="ring10",
            views=views,
            keyspaces={"fieldring": {"dc1": 4}},
        )
        assert cases(verdict) == {"ring10": "decommission"}
        assert verdict["subjects"][0]["under_way"]

    @pytest.mark.parametrize(
        ("mode", "seen"),
        [("DECOMMISSION_FAILED", True), ("NORMAL", True), ("DECOMMISSION_FAILED", False)],
        ids=["a stream failed", "its daemon was restarted", "Cassandra refused it"],
    )
    def test_failed_decommission(self, mode: str, seen: bool) -> None:
        """The others call it leaving for ever; nothing goes on, so it is told again, and judged again."""
        views = {p["name"]: view(RING, leaving=["10.0.0.10"] if seen else []) for p in RING}
        views["ring10"]["mode"] = mode
        verdict = judge("remove", subject="ring10", views=views)
        assert {"ring10": "decommission"} == cases(verdict)
        assert (True, False) == tuple(verdict["subjects"][0][key] for key in ("leaving", "under_way"))
        short = judge("remove", subject="ring10", views=views, keyspaces={"fieldring": {"dc1": 4}})
        assert ["CN-308"] == refused(short)

    def test_dead_node_that_was_leaving(self) -> None:
        """Interrupted in removenode, or dead while it handed over: no daemon of its own goes on with it."""
        views = {
            p["name"]: view(RING, down=("ring10",), leaving=["10.0.0.10"])
            for p in RING
            if p["name"] != "ring10"
        }
        verdict = judge("remove", subject="ring10", states={"ring10": None}, views=views)
        assert {"ring10": "removenode"} == cases(verdict)
        assert (True, False) == tuple(verdict["subjects"][0][key] for key in ("leaving", "under_way"))

    def test_left_but_still_on_record(self) -> None:
        """Interrupted before the record."""
        left = RING[:3]
        views = {p["name"]: view(left) for p in left}
        assert cases(judge("remove", subject="ring10", views=views)) == {"ring10": "finish"}

    def test_node_that_says_it_is_a_member_is_not_finished(self) -> None:
        """CN-307: the record has another address than the node; finishing would stop it with its data."""
        moved = record(RING)
        moved["nodes"]["ring10"]["address"] = "10.0.0.99"
        verdict = judge("remove", subject="ring10", record=moved)
        assert refused(verdict) == ["CN-307"]
        assert "ring10 says of itself that it is NORMAL" in verdict["refusals"]["CN-307"]

    def test_again(self) -> None:
        """A second run: gone from the record, unknown to all, though still in the inventory."""
        verdict = judge("remove", subject="ring10", members=RING[:3], states={"ring10": state(active=False)})
        assert cases(verdict) == {}
        assert "nothing to remove" in verdict["note"]

    def test_no_node_named(self) -> None:
        """CN-306."""
        assert refused(judge("remove")) == ["CN-306"]

    def test_fewer_nodes_than_copies(self) -> None:
        """CN-308: each keyspace is named."""
        verdict = judge("remove", subject="ring3", peers=RING[:3], members=RING[:3])
        assert refused(verdict) == ["CN-308"]
        assert "fieldring keeps 3 copies in dc1; system_auth keeps 3" in verdict["refusals"]["CN-308"]

    def test_stopped_node_with_its_disk(self) -> None:
        """CN-309: it should hand over its own data, unless that is said to be lost."""
        stopped = {"ring10": state(active=False)}
        assert refused(judge("remove", subject="ring10", states=stopped)) == ["CN-309"]
        assert cases(judge("remove", subject="ring10", states=stopped, lost=True)) == {"ring10": "removenode"}

    def test_host_not_reached_but_called_up(self) -> None:
        """CN-307: a dead Ansible connection is not a dead node."""
        views = {p["name"]: view(RING) for p in RING if p["name"] != "ring10"}
        assert refused(judge("remove", subject="ring10", states={"ring10": None}, views=views)) == ["CN-307"]

    def test_last_node_of_a_datacenter(self) -> None:
        """CN-310."""
        peers = [*RING, peer(4, "dc2")]
        assert refused(judge("remove", subject="ring4", peers=peers, members=peers)) == ["CN-310"]

    def test_keyspace_without_datacenters(self) -> None:
        """CN-313."""
        verdict = judge("remove", subject="ring10", keyspaces={**KEYSPACES, "legacy": None})
        assert refused(verdict) == ["CN-313"]
        assert "legacy" in verdict["refusals"]["CN-313"]

    def test_join_under_way(self) -> None:
        """CN-303."""
        verdict = judge(
            "remove",
            subject="ring10",
            peers=[*RING, NEW],
            states={"ring4": state(joining={"how": "bootstrap"})},
        )
        assert refused(verdict) == ["CN-303"]


def spelled(peers: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """The same over IPv6."""
    return [{**p, "address": prefix + p["name"][4:]} for p in peers]


class TestAddressesInAnotherSpelling:
    """Inventory and record have IPv6 as a person wrote it; views have one spelling."""

    def judge(self, operation: str, *, views: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
        """The verdict where the views alone are in canonical spelling."""
        members = given.pop("members", RING)
        silent = given.pop("silent", "")
        seen = spelled(members, "2001:db8::")
        if views is None:
            views = {p["name"]: view(seen) for p in seen if p["name"] != silent}
        written = spelled(members, "2001:0db8:0::")
        return judge(operation, **{"peers": written, "members": written, "views": views, **given})

    def test_running_node_hands_over(self) -> None:
        """Taken for gone it would be stopped with its data; the task waits for the views' spelling."""
        verdict = self.judge("remove", subject="ring10")
        assert cases(verdict) == {"ring10": "decommission"}
        assert verdict["subjects"][0]["address"] == "2001:db8::10"

    def test_leaving_node_is_known_for_one(self) -> None:
        """It is let through by the gate, and not held up by what it was told."""
        seen = view(spelled(RING, "2001:db8::"), leaving=["2001:db8::10"])
        verdict = self.judge("remove", subject="ring10", views={"ring1": seen})
        assert verdict["subjects"][0]["leaving"]

    def test_host_not_reached_but_called_up(self) -> None:
        """CN-307: a dead Ansible connection is not a dead node."""
        verdict = self.judge("remove", subject="ring10", states={"ring10": None}, silent="ring10")
        assert refused(verdict) == ["CN-307"]

    def test_joined_but_not_on_record_is_never_wiped(self) -> None:
        """`clean` would empty its disk."""
        stopped = {"ring10": state(active=False, joining={"how": "bootstrap"})}
        verdict = self.judge("add", record=record(RING[:3]), states=stopped, silent="ring10")
        assert cases(verdict) == {"ring10": "start"}

    def test_respelled_address_is_no_other_host(self) -> None:
        """CN-307: the node that is to be replaced lives."""
        running = {p["name"]: state() for p in RING}
        verdict = self.judge("replace", subject="ring2", peers=spelled(RING, "2001:db8::"), states=running)
        assert refused(verdict) == ["CN-307"]
        assert "still answers" in verdict["refusals"]["CN-307"]

    def test_replaced_address_is_the_one_that_the_task_waits_for(self) -> None:
        """The join begins only when no view has it for live."""
        verdict = self.judge("replace", subject="ring2", states={"ring2": BARE}, silent="ring2")
        assert verdict["subjects"][0]["replaces"] == "2001:db8::2"

    def test_datacenter_hands_over(self) -> None:
        """Each of its nodes."""
        both = {"fieldring": {"dc1": 3, "dc2": 2}}
        verdict = self.judge("remove_datacenter", subject="dc2", members=[*RING, *SOUTH], keyspaces=both)
        assert cases(verdict) == {"ring21": "decommission", "ring22": "decommission"}


SOUTH = [peer(n, "dc2") for n in (21, 22)]
WANTED = [{"name": "fieldring", "replication": {"dc1": 3, "dc2": 2}}]


class TestAddDatacenter:
    """Two hosts of dc2 beside four of dc1."""

    def test_bare_hosts_join_together(self) -> None:
        """Tokens of their own, copies as the inventory says, accounts on all, data from dc1."""
        verdict = judge("add_datacenter", subject="dc2", peers=[*RING, *SOUTH], wanted_keyspaces=WANTED)
        assert cases(verdict) == {"ring21": "fresh", "ring22": "fresh"}
        assert len(verdict["turns"]) == 1
        assert verdict["source"] == "dc1"
        assert verdict["replication"] == {"fieldring": {"dc1": 3, "dc2": 2}}
        assert verdict["system_replication"] == {"system_auth": {"dc1": 3, "dc2": 2}}
        tokens = [token for subject in verdict["subjects"] for token in subject["tokens"]]
        assert len(set(tokens)) == 8

    def test_resumed_with_the_same_tokens(self) -> None:
        """Those of the marker; a node that is rebuilt already is left alone."""
        peers = [*RING, *SOUTH]
        begun = {"ring22": state(joining={"how": "datacenter", "tokens": [5, 6]})}
        verdict = judge(
            "add_datacenter", subject="dc2", peers=peers, members=peers, states=begun, wanted_keyspaces=WANTED
        )
        assert cases(verdict) == {"ring22": "wait"}
        assert verdict["subjects"][0]["tokens"] == [5, 6]

    def test_on_record_and_stopped_is_never_wiped(self) -> None:
        """Interrupted in the rebuild; no running node tells that it is a member."""
        peers = [*RING, *SOUTH]
        begun = state(active=False, joining={"how": "datacenter", "tokens": [5, 6], "joined": True})
        verdict = judge(
            "add_datacenter",
            subject="dc2",
            peers=peers,
            record=record(peers),
            states={"ring22": begun},
            wanted_keyspaces=WANTED,
        )
        assert {"ring22": "start"} == cases(verdict)

    def test_again(self) -> None:
        """A second run."""
        peers = [*RING, *SOUTH]
        verdict = judge("add_datacenter", subject="dc2", peers=peers, members=peers, wanted_keyspaces=WANTED)
        assert cases(verdict) == {}
        assert "nothing to add" in verdict["note"]

    def test_node_for_a_datacenter_that_is_there(self) -> None:
        """CN-302: that is add_cassandra_node."""
        verdict = judge(
            "add_datacenter",
            subject="dc2",
            peers=[*RING, *SOUTH],
            members=[*RING, SOUTH[0]],
            wanted_keyspaces=WANTED,
        )
        assert refused(verdict) == ["CN-302"]

    @pytest.mark.parametrize("subject", ["", "dc9"])
    def test_unknown_datacenter(self, subject: str) -> None:
        """CN-311."""
        assert refused(judge("add_datacenter", subject=subject, wanted_keyspaces=WANTED)) == ["CN-311"]

    def test_no_copies_there(self) -> None:
        """CN-311: the inventory's keyspaces do not name it."""
        verdict = judge(
            "add_datacenter",
            subject="dc2",
            peers=[*RING, *SOUTH],
            wanted_keyspaces=[{"name": "fieldring", "replication": {"dc1": 3}}],
        )
        assert refused(verdict) == ["CN-311"]

    def test_keyspace_that_is_not_there_yet(self) -> None:
        """CN-311: before a node has joined, after which it can neither be altered nor deployed."""
        new = {"name": "notes", "replication": {"dc1": 3, "dc2": 1}}
        given: dict[str, Any] = {"subject": "dc2", "peers": [*RING, *SOUTH]}
        verdict = judge("add_datacenter", wanted_keyspaces=[*WANTED, new], **given)
        assert refused(verdict) == ["CN-311"]
        assert "notes of cassandra_node_keyspaces" in verdict["refusals"]["CN-311"]
        elsewhere = {"name": "notes", "replication": {"dc1": 3}}
        assert not refused(judge("add_datacenter", wanted_keyspaces=[*WANTED, elsewhere], **given))

    def test_more_copies_than_nodes(self) -> None:
        """CN-314."""
        verdict = judge(
            "add_datacenter",
            subject="dc2",
            peers=[*RING, *SOUTH],
            wanted_keyspaces=[{"name": "fieldring", "replication": {"dc1": 3, "dc2": 3}}],
        )
        assert refused(verdict) == ["CN-314"]

    def test_keyspace_without_datacenters(self) -> None:
        """CN-313: the new nodes would own rows that they do not have."""
        verdict = judge(
            "add_datacenter",
            subject="dc2",
            peers=[*RING, *SOUTH],
            wanted_keyspaces=WANTED,
            keyspaces={**KEYSPACES, "legacy": None},
        )
        assert refused(verdict) == ["CN-313"]

    def test_tokens_avoid_those_that_are_taken(self) -> None:
        """The same even spacing is already in the ring."""
        first = spread_tokens(["a", "b"], 4, [])
        taken = [token for node in first.values() for token in node]
        second = spread_tokens(["c", "d"], 4, taken)
        assert set(taken).isdisjoint(token for node in second.values() for token in node)


class TestRemoveDatacenter:
    """dc2 of a ring over two."""

    def judge(self, **given: Any) -> dict[str, Any]:
        """dc1 and dc2 are well, unless said otherwise."""
        both = {"fieldring": {"dc1": 3, "dc2": 2}, "system_auth": {"dc1": 3, "dc2": 2}}
        peers = [*RING, *SOUTH]
        return judge(
            "remove_datacenter",
            **{"subject": "dc2", "peers": peers, "members": peers, "keyspaces": both, **given},
        )

    def test_nodes_leave_one_after_the_other(self) -> None:
        """Copies of data are given up first, those of the accounts after the nodes."""
        verdict = self.judge()
        assert cases(verdict) == {"ring21": "decommission", "ring22": "decommission"}
        assert len(verdict["turns"]) == 2
        assert verdict["replication"] == {"fieldring": {"dc1": 3}}
        assert verdict["system_replication"] == {"system_auth": {"dc1": 3}}

    def test_failed_decommission(self) -> None:
        """The node that failed is told again; the one that is at it is waited for."""
        members = [*RING, *SOUTH]
        views = {p["name"]: view(members, leaving=["10.0.0.21", "10.0.0.22"]) for p in members}
        views["ring21"]["mode"], views["ring22"]["mode"] = "DECOMMISSION_FAILED", "LEAVING"
        verdict = self.judge(views=views)
        assert [False, True] == [subject["under_way"] for subject in verdict["subjects"]]

    def test_again(self) -> None:
        """A second run."""
        verdict = self.judge(members=RING, keyspaces=KEYSPACES)
        assert cases(verdict) == {}
        assert "nothing to remove" in verdict["note"]

    def test_accounts_are_left_of_an_interrupted_run(self) -> None:
        """Its nodes are off the record; the copies of the accounts are still to be given up."""
        verdict = self.judge(members=RING, keyspaces={**KEYSPACES, "system_auth": {"dc1": 3, "dc2": 2}})
        assert cases(verdict) == {}
        assert verdict["replication"] == {}
        assert verdict["system_replication"] == {"system_auth": {"dc1": 3}}

    @pytest.mark.parametrize("left", [state(active=False), None])
    def test_interrupted_between_the_stop_and_the_record(self, left: dict[str, Any] | None) -> None:
        """The node that has left is no dead one: the record is put right, and the other one leaves."""
        still = [*RING, SOUTH[1]]
        verdict = self.judge(
            keyspaces=KEYSPACES, states={"ring21": left}, views={p["name"]: view(still) for p in still}
        )
        assert cases(verdict) == {"ring21": "finish", "ring22": "decommission"}
        assert verdict["replication"] == {}

    def test_clients_are_there(self) -> None:
        """CN-312."""
        assert refused(self.judge(client_datacenters=["dc1", "dc2"])) == ["CN-312"]

    @pytest.mark.parametrize("subject", ["", "dc1"])
    def test_only_datacenter(self, subject: str) -> None:
        """CN-311: none named, or the only one."""
        assert refused(judge("remove_datacenter", subject=subject)) == ["CN-311"]

    def test_keyspace_that_lives_there_only(self) -> None:
        """CN-308."""
        assert refused(self.judge(keyspaces={"mine": {"dc2": 2}})) == ["CN-308"]

    @pytest.mark.parametrize("dead", [state(active=False), None])
    def test_dead_node_there(self, dead: dict[str, Any] | None) -> None:
        """CN-304."""
        assert refused(self.judge(states={"ring21": dead})) == ["CN-304"]

    def test_node_that_says_it_is_a_member_is_not_finished(self) -> None:
        """CN-307: the record has another address than the node."""
        moved = record([*RING, *SOUTH])
        moved["nodes"]["ring21"]["address"] = "10.0.0.99"
        assert refused(self.judge(record=moved)) == ["CN-307"]

    def test_keyspace_without_datacenters(self) -> None:
        """CN-313."""
        assert refused(self.judge(keyspaces={"legacy": None})) == ["CN-313"]


class TestPlanOfANodeThatJoins:
    """The role's own plan, told that a playbook lets the host in."""

    wanted: dict[str, Any] = {  # noqa: RUF012
        "num_tokens": 4,
        "seeds_per_dc": 3,
        "record_file": "main.json",
        "cluster_name": "lab",
        "partitioner": "Murmur3",
        "endpoint_snitch": "GPFS",
    }

    def plan(self, name: str, **given: Any) -> dict[str, Any]:
        """The plan of that host of four plus a new one."""
        peers = [*RING, NEW]
        me = next(p for p in peers if p["name"] == name)
        rest = {"first_start": None, "listening": [], "configured": {}, "installed": []}
        states = {p["name"]: {**(state() if p in RING else BARE), **rest} for p in peers}
        states[name].update(given.get("mine", {}))
        return plan(  # type: ignore[no-any-return]
            peers,
            name=name,
            wanted={**self.wanted, **{key: me[key] for key in ("address", "dc", "rack")}},
            states=states,
            record=record(RING),
            joining=given.get("joining"),
        )

    def test_new_host_is_let_in_and_is_no_seed(self) -> None:
        """CN-113 is for those that nobody lets in."""
        alone, let_in = self.plan("ring4"), self.plan("ring4", joining={"ring4": {"how": "bootstrap"}})
        assert sorted(alone["refusals"]) == ["CN-113"]
        assert let_in["refusals"] == {}
        assert let_in["join"] == "bootstrap"
        assert not let_in["first_start"]
        assert NEW["address"] not in let_in["seeds"]
        assert len(let_in["seeds"]) == 3

    def test_replaced_seed_is_none_for_itself(self) -> None:
        """A seed would come up empty instead of streaming."""
        verdict = self.plan("ring1", joining={"ring1": {"how": "replace"}}, mine={"data": "empty"})
        assert "10.0.0.1" not in verdict["seeds"]

    def test_node_whose_place_is_taken_is_no_seed(self) -> None:
        """The inventory may name both for a while."""
        joining = {"ring4": {"how": "replace", "predecessor": "ring1"}}
        assert {"10.0.0.1", NEW["address"]}.isdisjoint(self.plan("ring4", joining=joining)["seeds"])

    def test_tokens_of_a_new_datacenter(self) -> None:
        """They are the playbook's."""
        assert self.plan("ring4", joining={"ring4": {"how": "datacenter", "tokens": [7]}})["tokens"] == [7]

    def test_unfinished_change_is_refused(self) -> None:
        """CN-316: site.yml leaves a host alone on which a change was begun."""
        begun = {"joining": {"how": "bootstrap"}}
        assert sorted(self.plan("ring4", mine=begun)["refusals"]) == ["CN-316"]


def test_marker_says_that_the_node_is_on_record_before_the_long_part() -> None:
    """A run that is interrupted in the repair is to find it; a start of such a node does not take it away."""
    steps = list(tasks(ROOT / "roles/cassandra_node/tasks/join_members.yml"))
    names = [str(task["name"]).removeprefix("Join | ") for task in steps]
    noted = names.index("Note that the node is on record")
    assert names.index("Record the node on the controller") < noted
    assert noted < names.index("Fetch what the copies that are left have and this one lacks")
    assert marker({"how": "replace"}, joined=True) == {"how": "replace", "joined": True}
    begin = next(
        task
        for task in tasks(ROOT / "roles/cassandra_node/tasks/join_start.yml")
        if str(task["name"]) == "Join | Note what is begun"
    )
    assert begin["when"] == "__cassandra_node_mine.case != 'start'"


def test_record_follows() -> None:
    """A node that joined is added, one that left is taken out, nobody else is touched."""
    before = record(RING)
    joined = record_with(before, NEW, {"host_id": "new", "tokens": [4]})
    assert joined["nodes"]["ring4"] == {
        "host_id": "new",
        "tokens": [4],
        **{key: NEW[key] for key in ("dc", "rack", "address")},
    }
    assert record_without(joined, "ring4") == before
    instead = record_with(before, NEW, {"host_id": "new", "tokens": [4]}, "ring2")
    assert {"ring1", "ring3", "ring4", "ring10"} == set(instead["nodes"])
    assert peers_on_record([*RING, NEW], before) == RING


def test_dead_node_is_a_member_though_the_inventory_has_forgotten_it() -> None:
    """The gate is told of the one that is replaced or removed, and of nobody else."""
    left = [p for p in RING if p["name"] != "ring2"]
    assert [*left, peer(2)] == peers_with_subject(left, record(RING), "ring2")
    assert left == peers_with_subject(left, record(left), "ring2")
    assert RING == peers_with_subject(RING, record(RING), "ring2")


def test_spokesman_stays() -> None:
    """The node that is asked by CQL is neither the subject nor in the data centre that goes."""
    views = {p["name"]: view(RING) for p in [*SOUTH, *RING]}
    views["ring10"]["mode"] = "JOINING"
    both = record([*RING, *SOUTH])
    assert spokesman(views, both, "ring1") == "ring2"
    assert spokesman(views, both, "dc1") == "ring21"
    assert spokesman({}, both, "") == ""


def test_every_step_can_be_told() -> None:
    """And --check says that it would be done."""
    verdict = judge("add", peers=[*RING, NEW])
    assert step(verdict["subjects"][0]).startswith("ring4 joins")
    assert step(verdict["subjects"][0], check=True).startswith("would be done: ring4 joins")
    told = report(
        verdict,
        operation="add",
        record=record([*RING, NEW]),
        pending={"ring1": ["cassandra.yaml: seeds"]},
    )
    assert told[0] == "add: ring4"
    assert "dc1 has 5 nodes: ring1, ring10, ring2, ring3, ring4" in told
    assert "ring1 waits for restart_cassandra: cassandra.yaml: seeds" in told


@pytest.mark.parametrize("operation", sorted(AFTERWARDS))
def test_what_is_left_to_the_operator_is_told(operation: str) -> None:
    """Where a host is new, site.yml still has to bring what its ring does not need; not after a check."""
    subject = {"name": "ring4", "dc": "dc1", "address": "10.0.0.4"}
    verdict = {"subjects": [subject], "note": ""}
    arguments: dict[str, Any] = {"operation": operation, "record": record(RING), "pending": {}}
    told = report(verdict, **arguments)[-1]
    assert "playbooks/site.yml" in told
    assert ("weekly repair, metrics and monitoring of ring4" in told) == ("remove" not in operation)
    assert told not in report(verdict, **arguments, check=True)
