"""May the ring be touched? Verdicts of the gate of the role cassandra_node, one situation each.

The views are captured from rings of the lab (fixtures/ring_views) or are such a capture with the one
thing changed that the situation is named for.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

ROLE = Path(__file__).resolve().parents[2] / "roles/cassandra_node"
FIXTURES = Path(__file__).parent / "fixtures/ring_views"
sys.path.insert(0, str(ROLE / "filter_plugins"))
from cassandra_node_gate import (  # type: ignore[import-not-found]  # noqa: E402
    normal_address,
    quorum_lost,
    replicas,
    summary,
    verdict,
)
from cassandra_node_steps import (  # type: ignore[import-not-found]  # noqa: E402
    outage_plan,
    restart_steps,
    status_faults,
)
from cassandra_node_upgrade import outdated, upgrade_plan  # type: ignore[import-not-found]  # noqa: E402

sys.path.insert(0, str(ROLE / "action_plugins"))
import cassandra_node_lock as lock  # type: ignore[import-not-found]  # noqa: E402


def module_util(name: str) -> types.ModuleType:
    """A file of module_utils/, imported under the name that it has on a host."""
    full = f"ansible.module_utils.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, ROLE / "module_utils" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


module_util("cassandra_node_files")
module_util("cassandra_node_host")
module_util("cassandra_node_session")
module_util("cassandra_node_view")
ring_view = module_util("cassandra_node_ring_view")
DUMP = (FIXTURES / "mxdump_all_up.json").read_text(encoding="utf-8")
GOSSIP = (FIXTURES / "gossipinfo_all_up.txt").read_text(encoding="utf-8")
NODES = ("ring1", "ring2", "ring3")
KEYSPACES = {
    "system": {"class": "org.apache.cassandra.locator.LocalStrategy"},
    "system_auth": {"class": "org.apache.cassandra.locator.NetworkTopologyStrategy", "dc1": "3"},
    "fieldring": {"class": "NetworkTopologyStrategy", "dc1": "3"},
}


class Ring:
    """Three nodes as captured while all were up, and what a test changes of it."""

    def __init__(self) -> None:
        captured = ring_view.parse_view(DUMP, GOSSIP)
        addresses = sorted(captured["nodes"])
        self.peers = [
            {"name": name, "address": address, "dc": "dc1", "rack": captured["nodes"][address]["rack"]}
            for name, address in zip(NODES, addresses, strict=True)
        ]
        self.record: dict[str, Any] = {
            "nodes": {
                peer["name"]: {
                    **{key: peer[key] for key in ("address", "dc", "rack")},
                    "host_id": captured["nodes"][peer["address"]]["host_id"],
                    "tokens": captured["nodes"][peer["address"]]["tokens"],
                }
                for peer in self.peers
            }
        }
        self.views: dict[str, Any] = {}
        for name in NODES:
            view = copy.deepcopy(captured)
            first = view["heartbeats"][0]
            view["heartbeats"] = [first, {a: [g, beat + 4] for a, (g, beat) in first.items()}]
            view["answering"] = {address: [7000, 9042] for address in addresses}
            view["cql_check"] = {"error": "", "keyspaces": copy.deepcopy(KEYSPACES)}
            view["clock"] = {"offset": 0.0, "within": 0.05}
            view.update(error="", kind="", pending=[])
            self.views[name] = view

    def address(self, name: str) -> str:
        return str(next(peer["address"] for peer in self.peers if peer["name"] == name))

    def others(self, name: str) -> list[dict[str, Any]]:
        """The views of all other nodes."""
        return [view for other, view in self.views.items() if other != name and not view.get("error")]

    def kill(self, name: str, *, noticed: bool) -> None:
        """Its service is gone; the others have noticed, or still call it up."""
        self.views[name] = {"error": "cassandra.service is not running.", "kind": "stopped", "pending": []}
        for view in self.others(name):
            address = self.address(name)
            view["heartbeats"][1][address] = view["heartbeats"][0][address]
            view["answering"].pop(address)
            if noticed:
                view["live"].remove(address)
                view["unreachable"].append(address)

    def drain(self, name: str, mode: str = "DRAINED") -> None:
        """It runs and speaks, has told the others that it goes, and serves nobody."""
        address = self.address(name)
        for view in self.others(name):
            view["live"].remove(address)
            view["unreachable"].append(address)
            view["answering"].pop(address)
        self.views[name].update(mode=mode, kind="drained")
        self.views[name]["cql_check"] = {"error": "NoHostAvailable", "keyspaces": {}}

    def declare_absent(self, name: str) -> dict[str, Any]:
        """It is down and not asked; what the verdict is told of it."""
        self.kill(name, noticed=True)
        del self.views[name]
        self.peers = [peer for peer in self.peers if peer["name"] != name]
        return {"absent": [name]}

    def judge(self, mode: str = "touch", *subjects: str, **other: Any) -> dict[str, Any]:
        if not subjects and mode != "report":
            subjects = ("ring1",)
        return verdict(  # type: ignore[no-any-return]
            self.peers, views=self.views, record=self.record, mode=mode, subjects=list(subjects), **other
        )


@pytest.fixture
def ring() -> Ring:
    return Ring()


def ids(judged: dict[str, Any]) -> list[str]:
    """The reasons' IDs; a verdict with a reason is not green."""
    assert judged["green"] == (not judged["reasons"])
    return sorted({reason["id"] for reason in judged["reasons"]})


def told(judged: dict[str, Any]) -> str:
    return str(summary(judged["reasons"]))


class TestWhole:
    """Nothing stands against touching it."""

    @pytest.mark.parametrize("mode", ["touch", "return", "repairing", "report"])
    def test_all_up(self, ring: Ring, mode: str) -> None:
        """Every mode is green."""
        assert ids(ring.judge(mode)) == []

    def test_all_up_over_ipv6(self, ring: Ring) -> None:
        """Java writes addresses in full, an inventory in short."""
        long = {peer["address"]: f"2001:db8:0:0:0:0:0:{n}" for n, peer in enumerate(ring.peers, 1)}
        text = json.dumps(ring.views)
        for v4, v6 in long.items():
            text = text.replace(f'"{v4}"', f'"{v6}"')
        ring.views = json.loads(text)
        for n, peer in enumerate(ring.peers, 1):
            peer["address"] = f"2001:db8::{n}"
            ring.record["nodes"][peer["name"]]["address"] = f"2001:DB8::{n}"
        assert ids(ring.judge()) == []
        ring.views["ring1"]["unreachable"] = ["2001:db8:0:0:0:0:0:2"]
        assert ids(ring.judge()) == ["CN-208"]

    def test_ten_beside_one(self, ring: Ring) -> None:
        """10.0.0.1 is down, 10.0.0.10 is not: an address is never looked for inside another."""
        moved = {ring.address("ring1"): "10.0.0.1", ring.address("ring2"): "10.0.0.10"}
        text = json.dumps([ring.views, ring.peers, ring.record])
        for before, after in moved.items():
            text = text.replace(f'"{before}"', f'"{after}"')
        ring.views, ring.peers, ring.record = json.loads(text)
        assert ids(ring.judge("touch", "ring3")) == []
        ring.kill("ring1", noticed=True)
        said = told(ring.judge("touch", "ring3"))
        assert "ring1 is called down by ring2, ring3" in said
        assert "ring2 is called down" not in said
        ring.peers[0]["address"] = ring.record["nodes"]["ring1"]["address"] = "10.0.0.100"
        assert "CN-205" in ids(ring.judge("touch", "ring3"))


class TestDown:
    """A node that is not there, in all its disguises."""

    def test_one_down(self, ring: Ring) -> None:
        """Another is not touched while one is down."""
        ring.kill("ring2", noticed=True)
        judged = ring.judge("touch", "ring1")
        assert {"CN-204", "CN-208", "CN-215"} <= set(ids(judged))
        assert not judged["passing"]

    def test_killed_two_seconds_ago_and_still_called_up(self, ring: Ring) -> None:
        """Its heartbeat stands still, its ports are shut and it says nothing, though all call it UP."""
        ring.kill("ring2", noticed=False)
        judged = ring.judge("touch", "ring1")
        assert {"CN-204", "CN-209", "CN-215"} <= set(ids(judged))
        assert "heartbeat of ring2 stands still as ring1, ring3 sees it" in told(judged)

    def test_subject_is_down_and_to_be_repaired(self, ring: Ring) -> None:
        """What is to be repaired may be down; the same ring is shut for touching another."""
        ring.kill("ring2", noticed=True)
        assert ids(ring.judge("repairing", "ring2")) == []
        assert ids(ring.judge("repairing", "ring3")) != []
        ring.views["ring2"] = None
        assert ids(ring.judge("repairing", "ring2")) == []

    def test_drained_node_is_to_be_started_anew(self, ring: Ring) -> None:
        """No touch of it passes while the others call it down; it passes as what is to be repaired."""
        ring.drain("ring2")
        assert {"CN-208", "CN-211", "CN-215", "CN-216"} == set(ids(ring.judge("touch", "ring2")))
        assert ids(ring.judge("repairing", "ring2")) == []
        assert "CN-211" in ids(ring.judge("repairing", "ring3"))

    def test_second_node_down_while_one_is_repaired(self, ring: Ring) -> None:
        """Repairing one does not excuse another."""
        ring.kill("ring2", noticed=True)
        ring.kill("ring3", noticed=True)
        assert {"CN-204", "CN-208"} <= set(ids(ring.judge("repairing", "ring2")))

    def test_not_visited(self, ring: Ring) -> None:
        """--limit, or a host without SSH: it did not say how it sees the others."""
        ring.views["ring3"] = None
        judged = ring.judge()
        assert ids(judged) == ["CN-203"]
        assert "--limit" in told(judged)

    def test_jmx_is_dead(self, ring: Ring) -> None:
        """The others call it up; it cannot be asked."""
        ring.views["ring3"] = {"error": "its JMX takes no connection on 127.0.0.1:7199", "kind": "silent"}
        assert ids(ring.judge()) == ["CN-204"]

    def test_hung_node(self, ring: Ring) -> None:
        """It takes connections and answers nothing; its heartbeat stands still."""
        ring.views["ring3"] = {"error": "it hangs: JMX gave no answer within 60 s", "kind": "hung"}
        for view in ring.others("ring3"):
            address = ring.address("ring3")
            view["heartbeats"][1][address] = view["heartbeats"][0][address]
        assert ids(ring.judge()) == ["CN-204", "CN-209"]

    def test_restarted_between_the_samples(self, ring: Ring) -> None:
        """A new generation starts at a small version: that is an advance."""
        for view in ring.views.values():
            generation, _ = view["heartbeats"][0][ring.address("ring3")]
            view["heartbeats"][1][ring.address("ring3")] = [generation + 60, 2]
        assert ids(ring.judge()) == []

    def test_query_fails(self, ring: Ring) -> None:
        """All are up, and a login is refused: that counts, and may pass."""
        ring.views["ring2"]["cql_check"] = {"error": "login refused: Bad credentials", "keyspaces": {}}
        judged = ring.judge()
        assert ids(judged) == ["CN-216"]
        assert judged["passing"]

    def test_port_is_shut_from_one_side(self, ring: Ring) -> None:
        """A firewall between two nodes."""
        ring.views["ring1"]["answering"][ring.address("ring3")] = [9042]
        judged = ring.judge()
        assert ids(judged) == ["CN-215"]
        assert "port 7000 of ring3" in told(judged)

    def test_two_data_centres_with_one_partitioned(self, ring: Ring) -> None:
        """Each side calls the whole other side down; each side alone looks whole."""
        far = Ring()
        names = {name: f"far{n}" for n, name in enumerate(NODES, 1)}
        for peer in far.peers:
            entry = far.record["nodes"].pop(peer["name"])
            peer.update(name=names[peer["name"]], dc="dc2", address=peer["address"].replace("31.77", "31.78"))
            entry.update(dc="dc2", address=peer["address"], host_id="f" + entry["host_id"][1:])
            entry["tokens"] = [token + 100 for token in entry["tokens"]]
            far.record["nodes"][peer["name"]] = entry
        ring.peers += far.peers
        ring.record["nodes"].update(far.record["nodes"])
        everybody = {
            entry["address"]: {**entry, "schema_version": "", "version": ""}
            for entry in ring.record["nodes"].values()
        }
        here = {peer["address"] for peer in ring.peers if peer["dc"] == "dc1"}
        template = ring.views["ring1"]
        ring.views = {}
        for peer in ring.peers:
            mine = here if peer["dc"] == "dc1" else set(everybody) - here
            view = copy.deepcopy(template)
            view.update(
                nodes=copy.deepcopy(everybody),
                live=sorted(mine),
                unreachable=sorted(set(everybody) - mine),
                answering={address: [7000, 9042] for address in mine},
                heartbeats=[
                    {a: [1, 10] for a in everybody},
                    {a: [1, 14 if a in mine else 10] for a in everybody},
                ],
            )
            ring.views[peer["name"]] = view
        judged = ring.judge("touch", "ring1")
        assert {"CN-208", "CN-215"} == set(ids(judged))
        assert "far1 is called down by ring1, ring2, ring3" in told(judged)
        assert "ring1 is called down by far1, far2, far3" in told(judged)


class TestAbsent:
    """A node on record that was declared absent: down, and not unexpected."""

    @pytest.mark.parametrize("mode", ["return", "report"])
    def test_is_not_asked_and_may_be_down(self, ring: Ring, mode: str) -> None:
        """CN-202 and CN-207 without the declaration."""
        absent = ring.declare_absent("ring3")
        assert ids(ring.judge(mode, **absent)) == []
        assert ids(ring.judge(mode)) == ["CN-202", "CN-207"]

    def test_its_copies_are_missing(self, ring: Ring) -> None:
        """CN-217: with three copies the second of three nodes may not go."""
        absent = ring.declare_absent("ring3")
        judged = ring.judge("touch", "ring1", **absent)
        assert ids(judged) == ["CN-217"]
        assert "keyspace fieldring has 3 copies in dc1; without ring1, ring3 1 would be left" in told(judged)

    def test_one_that_is_down_beside_it_is_not_given_up(self, ring: Ring) -> None:
        """CN-217: two of three copies would be replaced from the third, which need not know all."""
        absent = ring.declare_absent("ring3")
        ring.kill("ring2", noticed=True)
        assert ids(ring.judge("repairing", "ring2", **absent)) == ["CN-217"]

    def test_it_is_no_subject(self, ring: Ring) -> None:
        """CN-201."""
        assert "CN-201" in ids(ring.judge("touch", "ring3", **ring.declare_absent("ring3")))

    def test_back_with_no_data(self, ring: Ring) -> None:
        """CN-206 all the same: another host ID is a danger whoever was told to be away."""
        address = ring.address("ring3")
        absent = ring.declare_absent("ring3")
        for view in ring.views.values():
            view["nodes"][address]["host_id"] = "11111111-2222-3333-4444-555555555555"
        assert ids(ring.judge("return", **absent)) == ["CN-206"]

    def test_tokens_of_it_are_stolen(self, ring: Ring) -> None:
        """CN-207 names it."""
        address = ring.address("ring3")
        absent = ring.declare_absent("ring3")
        for view in ring.views.values():
            taken = view["nodes"].pop(address)["tokens"]
            view["nodes"]["172.31.77.99"] = {
                "host_id": "not-on-record", "tokens": taken, "dc": "dc1", "rack": "rack3",
            }  # fmt: skip
        judged = ring.judge("return", **absent)
        assert ids(judged) == ["CN-207"]
        assert "it holds tokens of ring3" in told(judged)

    def test_removed_for_good(self, ring: Ring) -> None:
        """Off the record: the declaration changes nothing."""
        address = ring.address("ring3")
        absent = ring.declare_absent("ring3")
        del ring.record["nodes"]["ring3"]
        for view in ring.views.values():
            del view["nodes"][address]
            view["unreachable"].remove(address)
        judged = ring.judge("touch", "ring1", **absent)
        assert ids(judged) == ["CN-217"]
        assert "without ring1 1 would be left" in told(judged)
        for view in ring.views.values():
            view["cql_check"]["keyspaces"] = {}
        assert ids(ring.judge("return", **absent)) == []


class TestSeedsAndDisks:
    """What a starting node needs."""

    def test_two_seeds_lost(self, ring: Ring) -> None:
        """CN-221, also while one of the two is to be repaired; one alone is no reason of its own."""
        seeds = [ring.address("ring1"), ring.address("ring2")]
        ring.kill("ring1", noticed=True)
        assert ids(ring.judge("repairing", "ring1", seeds=seeds)) == []
        ring.kill("ring2", noticed=True)
        assert "CN-221" in ids(ring.judge("repairing", "ring1", seeds=seeds))
        assert "CN-221" not in ids(ring.judge("repairing", "ring1", seeds=seeds[:1]))

    def test_commit_log_on_a_full_disk(self, ring: Ring) -> None:
        """CN-222, of a node that is down as well: starting writes."""
        ring.kill("ring2", noticed=True)
        for name, view in ring.views.items():
            view["commitlog_free_mib"] = 40 if name == "ring2" else 4000
        judged = ring.judge("repairing", "ring2", commitlog_free_min_mib=512)
        assert ids(judged) == ["CN-222"]
        assert "ring2's commit log has 40 MiB left" in told(judged)


class TestOutage:
    """What start_cassandra_after_outage starts, and what it refuses to start."""

    def plan(self, ring: Ring, **other: Any) -> dict[str, Any]:
        states = {name: {"data": "used"} for name in NODES}
        reasons = ring.judge("report", absent=other.pop("absent", []))["reasons"]
        arguments = {"states": states, "reasons": reasons, "seeds": [ring.address("ring2")], **other}
        return outage_plan(ring.peers, views=ring.views, record=ring.record, **arguments)  # type: ignore[no-any-return]

    def test_all_down(self, ring: Ring) -> None:
        """Seeds first; that nobody answers is no reason against it."""
        for name in NODES:
            ring.kill(name, noticed=True)
        assert self.plan(ring) == {"seeds": ["ring2"], "others": ["ring1", "ring3"], "refusals": []}

    def test_interrupted(self, ring: Ring) -> None:
        """What runs already is left alone."""
        ring.kill("ring3", noticed=True)
        assert self.plan(ring) == {"seeds": [], "others": ["ring3"], "refusals": []}

    def test_some_are_drained(self, ring: Ring) -> None:
        """They serve as little as those that are down."""
        ring.drain("ring2")
        ring.drain("ring3", "DRAINING")
        assert self.plan(ring) == {"seeds": ["ring2"], "others": ["ring3"], "refusals": []}

    def test_one_disk_is_empty(self, ring: Ring) -> None:
        """CN-112: it would come up with no data."""
        ring.kill("ring3", noticed=True)
        states = {name: {"data": "empty" if name == "ring3" else "used"} for name in NODES}
        planned = self.plan(ring, states=states)
        assert [reason["id"] for reason in planned["refusals"]] == ["CN-112"]
        assert """-e '{"cassandra_node_absent_hosts": ["ring3"]}'""" in planned["refusals"][0]["text"]
        assert "ring3" not in planned["others"]

    def test_without_one_that_is_declared_absent(self, ring: Ring) -> None:
        """The way that CN-112 and CN-203 name: the others start."""
        for name in ("ring1", "ring2"):
            ring.kill(name, noticed=True)
        absent = ring.declare_absent("ring3")
        assert self.plan(ring, **absent) == {"seeds": ["ring2"], "others": ["ring1"], "refusals": []}

    def test_clock_is_wrong_after_the_cut(self, ring: Ring) -> None:
        """CN-218, of a node that is down: started so it would write wrongly."""
        ring.kill("ring3", noticed=True)
        for view in ring.views.values():
            view["clock"] = {"offset": 0.0, "within": 0.1}
        ring.views["ring3"]["clock"] = {"offset": -86400.0, "within": 0.1}
        assert [reason["id"] for reason in self.plan(ring)["refusals"]] == ["CN-218"]


class TestUpgrade:
    """Forward, back, and where neither is possible."""

    def plan(self, ring: Ring, wanted: str, **versions: str) -> dict[str, Any]:
        for name, version in versions.items():
            ring.views[name]["version"] = version
        return upgrade_plan(ring.peers, views=ring.views, wanted=wanted)  # type: ignore[no-any-return]

    def test_forward(self, ring: Ring) -> None:
        """What runs the wanted version already is left alone."""
        planned = self.plan(ring, "5.0.9", ring1="5.0.8", ring2="5.0.8", ring3="5.0.9")
        assert [step["subjects"] for step in planned["steps"]] == [["ring1"], ["ring2"]]
        assert (planned["direction"], planned["refusals"]) == ("forward", {})

    def test_interrupted_between_stop_and_start(self, ring: Ring) -> None:
        """The node that is down comes first."""
        ring.kill("ring2", noticed=True)
        planned = self.plan(ring, "5.0.9", ring1="5.0.8", ring3="5.0.9")
        assert [(step["mode"], step["subjects"]) for step in planned["steps"]] == [
            ("repairing", ["ring2"]),
            ("touch", ["ring1"]),
        ]
        assert planned["steps"][0]["why"] == "it is down, so no snapshot of it is taken"

    def test_interrupted_in_the_drain(self, ring: Ring) -> None:
        """Such a node is down, whatever version it runs, and is named once."""
        ring.drain("ring2")
        planned = self.plan(ring, "5.0.9", ring1="5.0.8", ring2="5.0.8", ring3="5.0.9")
        assert [(step["mode"], step["subjects"], step["why"]) for step in planned["steps"]] == [
            ("repairing", ["ring2"], "it is drained"),
            ("touch", ["ring1"], "5.0.8 -> 5.0.9"),
        ]

    def test_back(self, ring: Ring) -> None:
        """Within the series, while the older one reads what is on disk."""
        planned = self.plan(ring, "5.0.8", ring1="5.0.9", ring2="5.0.9", ring3="5.0.9")
        assert (planned["direction"], len(planned["steps"])) == ("back", 3)

    def test_no_way_back_from_a_newer_format(self, ring: Ring) -> None:
        """CN-225 names the format."""
        ring.views["ring1"]["nodes"][ring.address("ring2")]["sstables"] = ["bti-da", "bti-dz"]
        planned = self.plan(ring, "5.0.8", ring1="5.0.9", ring2="5.0.9", ring3="5.0.9")
        assert list(planned["refusals"]) == ["CN-225"]
        assert "bti-dz" in planned["refusals"]["CN-225"]
        assert planned["steps"] == []

    @pytest.mark.parametrize(
        ("wanted", "identifier"), [("5.1.0", "CN-224"), ("4.1.9", "CN-224"), ("5.0.2", "CN-225")]
    )
    def test_not_that_one(self, ring: Ring, wanted: str, identifier: str) -> None:
        """Another series, or older than what is tested."""
        assert list(self.plan(ring, wanted)["refusals"]) == [identifier]

    def test_numbers_are_compared_as_numbers(self, ring: Ring) -> None:
        """5.0.10 is newer than 5.0.9."""
        assert self.plan(ring, "5.0.10", ring1="5.0.9")["direction"] == "forward"

    def test_only_older_formats_are_rewritten(self, ring: Ring) -> None:
        """Where all are as this version writes them there is nothing to do."""
        view, address = ring.views["ring1"], ring.address("ring1")
        assert outdated(view, address, "bti") == []
        view["nodes"][address]["sstables"] = ["bti-da", "big-nb"]
        assert outdated(view, address, "bti") == ["big-nb"]


class TestLock:
    """CN-219: who is refused, and whose own interrupted run goes on."""

    MINE: ClassVar[dict[str, Any]] = {
        "owner": "ana", "host": "desk", "pid": 7, "started": "70",
        "operation": "restart_cassandra", "since": 0, "until": 100,
    }  # fmt: skip

    def judge(self, held: dict[str, Any] | None, *, running: bool = True, **other: Any) -> str:
        arguments = {"now": 50.0, "take_over": False, **other}
        return str(lock.refusal(held, self.MINE, running=running, **arguments))

    def test_free_or_mine(self) -> None:
        assert self.judge(None) == ""
        assert self.judge(self.MINE) == ""

    def test_held_by_another(self) -> None:
        """The sentence names who, since when and the way to take over."""
        said = self.judge({**self.MINE, "owner": "mara", "host": "lab", "pid": 9})
        assert said.startswith("CN-219")
        assert "mara on lab for restart_cassandra since 1970-01-01 00:00:00 UTC" in said
        assert "cassandra_node_lock_take_over=true" in said

    def test_longer_than_the_lock(self) -> None:
        """An operation of hours is not joined by a second one because its lock has run out meanwhile."""
        late = {"now": self.MINE["until"] + 1.0}
        assert self.judge({**self.MINE, "pid": 9}, **late).startswith("CN-219")
        assert self.judge({**self.MINE, "pid": 9}, running=False, **late) == ""
        assert self.judge({**self.MINE, "owner": "mara", "host": "elsewhere", "pid": 9}, **late) == ""

    def test_one_that_cannot_be_read(self, tmp_path: Path) -> None:
        """It is somebody's, until a person says otherwise."""
        file = tmp_path / "ring.lock"
        assert lock.read(file) is None
        file.write_text("{")
        said = self.judge(lock.read(file))
        assert said.startswith("CN-219")
        assert "cannot be read" in said
        assert self.judge(lock.read(file), take_over=True) == ""

    def test_my_other_run(self) -> None:
        """Still running: refused. Interrupted: goes on. A reused pid is another process."""
        other = {**self.MINE, "pid": 9}
        assert self.judge(other, running=True) != ""
        assert self.judge(other, running=False) == ""
        assert not lock.is_running({"pid": 2**22 + 5})
        assert lock.is_running({"pid": os.getpid(), "started": lock.process_start(os.getpid())})
        assert not lock.is_running({"pid": os.getpid(), "started": "1"})

    def test_expired_or_taken_over(self) -> None:
        other = {**self.MINE, "owner": "mara", "host": "lab"}
        assert self.judge(other, now=100.0) == ""
        assert self.judge(other, take_over=True) == ""


class TestIdentity:
    """What every node sees is compared with the record."""

    def test_node_that_others_see_and_it_does_not(self, ring: Ring) -> None:
        """ring3 is unknown to ring1 alone."""
        del ring.views["ring1"]["nodes"][ring.address("ring3")]
        judged = ring.judge("touch", "ring2")
        assert ids(judged) == ["CN-205"]
        assert "as ring1 sees it, ring3" in told(judged)

    def test_stolen_tokens(self, ring: Ring) -> None:
        """A node that started with another's tokens took its ranges over; it is named."""
        thief, victim = ring.address("ring1"), ring.address("ring2")
        for view in ring.views.values():
            view["nodes"][thief]["tokens"] = view["nodes"][victim]["tokens"]
            view["nodes"][victim]["tokens"] = []
        judged = ring.judge("touch", "ring3")
        assert ids(judged) == ["CN-206"]
        assert "ring1 has taken some of them over" in told(judged)

    def test_stolen_by_a_stranger(self, ring: Ring) -> None:
        """A host that no inventory names holds ring2's tokens."""
        for view in ring.views.values():
            taken = view["nodes"][ring.address("ring2")]["tokens"]
            view["nodes"][ring.address("ring2")]["tokens"] = taken[1:]
            view["nodes"]["172.31.77.99"] = {
                "host_id": "not-on-record", "tokens": taken[:1], "dc": "dc1", "rack": "rack1",
            }  # fmt: skip
        judged = ring.judge("touch", "ring3")
        assert ids(judged) == ["CN-206", "CN-207"]
        assert "it holds tokens of ring2" in told(judged)

    def test_wiped_seed_back_under_a_new_host_id(self, ring: Ring) -> None:
        """UP and NORMAL, the same tokens, and no data: the host ID tells."""
        for view in ring.views.values():
            view["nodes"][ring.address("ring1")]["host_id"] = "11111111-2222-3333-4444-555555555555"
        judged = ring.judge("touch", "ring2")
        assert ids(judged) == ["CN-206"]
        assert "replace_cassandra_node" in told(judged)

    def test_another_rack(self, ring: Ring) -> None:
        """Whatever moved it, replicas are not where they were."""
        ring.views["ring2"]["nodes"][ring.address("ring3")]["rack"] = "rack9"
        assert ids(ring.judge()) == ["CN-206"]

    def test_no_record(self, ring: Ring) -> None:
        """Without it a lost disk cannot be told from a healthy node."""
        ring.record = {}
        assert "CN-202" in ids(ring.judge())

    def test_inventory_and_record_differ(self, ring: Ring) -> None:
        """A host of the one that the other does not know, either way, and another address."""
        spare = ring.record["nodes"].pop("ring3")
        assert "CN-202" in ids(ring.judge())
        ring.record["nodes"]["ring3"] = {**spare, "address": "192.0.2.1"}
        assert "CN-202" in ids(ring.judge())
        ring.record["nodes"]["ring3"] = spare
        ring.record["nodes"]["ring4"] = spare
        assert "CN-202" in ids(ring.judge())


class TestBusy:
    """Somebody is at work already; most of it passes."""

    @pytest.mark.parametrize("doing", ["joining", "leaving", "moving"])
    def test_joining_leaving_moving(self, ring: Ring, doing: str) -> None:
        """One node's view is enough."""
        ring.views["ring2"][doing] = [ring.address("ring3")]
        judged = ring.judge()
        assert ids(judged) == ["CN-211"]
        assert f"ring3 is {doing}, as ring2 sees it" in told(judged)
        assert judged["passing"]

    def test_node_whose_leaving_failed_is_told_again(self, ring: Ring) -> None:
        """As what is to be repaired it passes, where the quorum survives without it; no touch of it does."""
        for view in ring.views.values():
            view["leaving"] = [ring.address("ring3")]
            view["cql_check"]["keyspaces"] = {"k": {"class": "NetworkTopologyStrategy", "dc1": "3"}}
        ring.views["ring3"]["mode"] = "DECOMMISSION_FAILED"
        assert ids(ring.judge("touch", "ring3")) == ["CN-211"]
        assert ids(ring.judge("repairing", "ring3")) == []
        for view in ring.views.values():
            view["cql_check"]["keyspaces"]["k"]["dc1"] = "2"
        assert ids(ring.judge("repairing", "ring3")) == ["CN-217"]

    def test_drained(self, ring: Ring) -> None:
        """The node itself says so."""
        ring.views["ring3"]["mode"] = "DRAINED"
        assert ids(ring.judge()) == ["CN-211"]

    def test_two_schema_versions(self, ring: Ring) -> None:
        """Who has which is said."""
        ring.views["ring3"]["schema_version"] = "deadbeef-0000-0000-0000-000000000000"
        judged = ring.judge()
        assert ids(judged) == ["CN-210"]
        assert "ring3 has deadbeef" in told(judged)

    def test_streaming(self, ring: Ring) -> None:
        ring.views["ring1"]["streams"] = ["Bootstrap"]
        assert ids(ring.judge("touch", "ring2")) == ["CN-212"]

    def test_repair_runs(self, ring: Ring) -> None:
        ring.views["ring1"]["repairs"] = ["ValidationExecutor: 2 tasks"]
        assert ids(ring.judge("touch", "ring2")) == ["CN-213"]

    def test_hints_for_the_node_touched_last(self, ring: Ring) -> None:
        """Those for another node do not matter."""
        ring.views["ring1"]["hints"] = [ring.record["nodes"]["ring2"]["host_id"]]
        assert ids(ring.judge("touch", "ring3", last_touched="ring1")) == []
        assert ids(ring.judge("touch", "ring3", last_touched="ring2")) == ["CN-214"]
        assert ids(ring.judge("touch", "ring3", last_touched=["ring1", "ring2"])) == ["CN-214"]

    def test_hints_for_a_node_that_an_interrupted_run_touched(self, ring: Ring) -> None:
        """The next run remembers nobody: those for any node count, but for one that is declared absent."""
        ring.views["ring2"]["hints"] = [ring.record["nodes"]["ring1"]["host_id"]]
        judged = ring.judge("touch", "ring2")
        assert ids(judged) == ["CN-214"]
        assert judged["passing"]
        assert ids(ring.judge("return")) == ids(ring.judge("repairing", "ring2")) == []
        ring.views["ring2"]["hints"] = [ring.record["nodes"]["ring3"]["host_id"]]
        assert "CN-214" not in ids(ring.judge("touch", "ring2", **ring.declare_absent("ring3")))

    def test_dead_node_beside_a_stream_does_not_pass(self, ring: Ring) -> None:
        """Waiting is worth while only where everything passes."""
        ring.views["ring1"]["streams"] = ["Bootstrap"]
        ring.kill("ring2", noticed=True)
        assert not ring.judge("touch", "ring3")["passing"]


class TestClocks:
    """Measured over the connection, so with a bound to the error."""

    def test_more_than_a_second_apart(self, ring: Ring) -> None:
        ring.views["ring2"]["clock"] = {"offset": 1.3, "within": 0.1}
        judged = ring.judge()
        assert ids(judged) == ["CN-218"]
        assert "ring2" in told(judged)

    def test_measured_badly(self, ring: Ring) -> None:
        """A slow connection proves nothing."""
        ring.views["ring2"]["clock"] = {"offset": 1.3, "within": 2.0}
        ring.views["ring3"]["clock"] = None
        assert ids(ring.judge()) == []


class TestQuorum:
    """For every range of every keyspace."""

    def test_two_copies(self, ring: Ring) -> None:
        """With two copies LOCAL_QUORUM needs both; its users may accept that."""
        for view in ring.views.values():
            view["cql_check"]["keyspaces"]["notes"] = {"class": "NetworkTopologyStrategy", "dc1": "2"}
        judged = ring.judge()
        assert ids(judged) == ["CN-217"]
        assert "keyspace notes has 2 copies in dc1" in told(judged)
        assert ids(ring.judge(unavailable_keyspaces=["notes"])) == []

    def test_system_auth_counts(self, ring: Ring) -> None:
        """A single copy of the accounts would refuse logins."""
        for view in ring.views.values():
            view["cql_check"]["keyspaces"]["system_auth"] = {
                "class": "org.apache.cassandra.locator.SimpleStrategy", "replication_factor": "1",
            }  # fmt: skip
        judged = ring.judge()
        assert ids(judged) == ["CN-217"]
        assert "system_auth" in told(judged)

    def test_returning_takes_nothing_away(self, ring: Ring) -> None:
        for view in ring.views.values():
            view["cql_check"]["keyspaces"]["notes"] = {"class": "NetworkTopologyStrategy", "dc1": "1"}
        assert ids(ring.judge("return")) == []

    def test_replication_is_not_known(self, ring: Ring) -> None:
        for view in ring.views.values():
            view["cql_check"] = {"error": "login refused", "keyspaces": {}}
        assert ids(ring.judge()) == ["CN-216", "CN-217"]

    def test_rack_at_a_time(self) -> None:
        """Six nodes in three racks, three copies: a whole rack may go, two nodes of two racks may not."""
        nodes = [
            {"name": f"n{n}", "dc": "dc1", "rack": f"r{n % 3}", "tokens": [n * 10, 100 + n * 10]}
            for n in range(6)
        ]
        keyspaces = {"k": {"class": "NetworkTopologyStrategy", "dc1": "3"}}
        assert quorum_lost(keyspaces, nodes, ["n0", "n3"]) == []
        assert quorum_lost(keyspaces, nodes, ["n0", "n1"]) != []

    def test_one_rack_for_all(self) -> None:
        """Where racks are not used two neighbours can hold the same range."""
        nodes = [{"name": f"n{n}", "dc": "dc1", "rack": "r", "tokens": [n * 10]} for n in range(6)]
        keyspaces = {"k": {"class": "NetworkTopologyStrategy", "dc1": "3"}}
        assert quorum_lost(keyspaces, nodes, ["n0"]) == []
        assert quorum_lost(keyspaces, nodes, ["n0", "n3"]) == []
        assert quorum_lost(keyspaces, nodes, ["n0", "n1"]) != []

    def test_other_data_centre_is_not_asked(self) -> None:
        """LOCAL_QUORUM of dc1 does not depend on dc2."""
        nodes = [
            {"name": f"{dc}-{n}", "dc": dc, "rack": f"r{n}", "tokens": [n * 10 + shift]}
            for shift, dc in enumerate(("dc1", "dc2"))
            for n in range(3)
        ]
        keyspaces = {"k": {"class": "NetworkTopologyStrategy", "dc1": "3", "dc2": "1"}}
        assert quorum_lost(keyspaces, nodes, ["dc1-0"]) == []
        assert "in dc2" in quorum_lost(keyspaces, nodes, ["dc2-0"])[0]

    def test_short_already(self) -> None:
        """What others are missing for is said only of ranges that lose one more copy."""
        nodes = [{"name": f"n{n}", "dc": "dc1", "rack": f"r{n}", "tokens": [n]} for n in range(4)]
        keyspaces = {"k": {"class": "NetworkTopologyStrategy", "dc1": "2"}}
        assert quorum_lost(keyspaces, nodes, [], ["n0"]) == []
        assert "(2 ranges" in quorum_lost(keyspaces, nodes, ["n2"], ["n0"])[0]
        assert "(3 ranges" in quorum_lost(keyspaces, nodes, ["n0", "n1"])[0]

    def test_more_copies_than_nodes(self) -> None:
        """Five copies on three nodes: a quorum of five is three."""
        nodes = [{"name": f"n{n}", "dc": "dc1", "rack": f"r{n}", "tokens": [n]} for n in range(3)]
        assert quorum_lost({"k": {"class": "NetworkTopologyStrategy", "dc1": "5"}}, nodes, ["n0"]) != []

    def test_placement_prefers_new_racks(self) -> None:
        """Two racks, three copies: the rack that was met may repeat once."""
        nodes = [
            {"name": f"n{n}", "dc": "dc1", "rack": rack, "tokens": [n * 10]} for n, rack in enumerate("aaab")
        ]
        assert replicas(nodes, 2)[0] == (0, ["n0", "n3"])
        assert replicas(nodes, 3)[0] == (0, ["n0", "n1", "n3"])


class TestSubjects:
    """CN-201: what may go down together."""

    def test_two_racks(self, ring: Ring) -> None:
        assert "CN-201" in ids(ring.judge("touch", "ring1", "ring2"))

    def test_unknown(self, ring: Ring) -> None:
        """A near miss of a name is no match."""
        judged = ring.judge("touch", "ring")
        assert ids(judged) == ["CN-201"]

    def test_nobody(self, ring: Ring) -> None:
        assert ids(verdict(ring.peers, views=ring.views, record=ring.record, mode="touch", subjects=[])) == [
            "CN-201"
        ]

    def test_mode_is_checked(self, ring: Ring) -> None:
        with pytest.raises(ValueError, match="touch, return, repairing, report"):
            ring.judge("look", "ring1")


class TestSteps:
    """What restart_cassandra does, and in which order."""

    def test_nothing_waits(self, ring: Ring) -> None:
        assert restart_steps(ring.peers, views=ring.views) == []

    def test_only_what_waits(self, ring: Ring) -> None:
        """Another version waits for an upgrade; a restart would not bring it."""
        ring.views["ring1"]["pending"] = ["version: 5.0.8 runs, 5.0.9 is wanted"]
        ring.views["ring3"]["pending"] = ["cassandra.yaml: a: 1 -> a: 2"]
        assert [step["subjects"] for step in restart_steps(ring.peers, views=ring.views)] == [["ring3"]]

    def test_what_is_down_comes_first(self, ring: Ring) -> None:
        """That is how a run that was interrupted between stop and start goes on."""
        ring.views["ring1"]["pending"] = ["cassandra.yaml: a: 1 -> a: 2"]
        ring.kill("ring3", noticed=True)
        assert [(step["mode"], step["subjects"]) for step in restart_steps(ring.peers, views=ring.views)] == [
            ("repairing", ["ring3"]),
            ("touch", ["ring1"]),
        ]

    @pytest.mark.parametrize("mode", ["DRAINING", "DRAINED"])
    def test_what_is_drained_is_down(self, ring: Ring, mode: str) -> None:
        """Interrupted in the drain, or CN-220: in mode touch the gate would never open for it."""
        ring.drain("ring3", mode)
        assert restart_steps(ring.peers, views=ring.views) == [
            {"mode": "repairing", "subjects": ["ring3"], "why": "it is drained"}
        ]

    def test_rack_that_was_left_drained(self, ring: Ring) -> None:
        """Interrupted rack by rack: one alone would be refused for the other."""
        for peer in ring.peers[:2]:
            peer["rack"] = ring.record["nodes"][peer["name"]]["rack"] = "rack1"
        for view in ring.views.values():
            view["nodes"][ring.address("ring2")]["rack"] = "rack1"
        ring.drain("ring1")
        ring.drain("ring2")
        steps = restart_steps(ring.peers, views=ring.views, by="rack")
        assert steps == [{"mode": "repairing", "subjects": ["ring1", "ring2"], "why": "they are drained"}]
        assert ids(ring.judge("repairing", "ring1")) != []
        assert ids(ring.judge("repairing", *steps[0]["subjects"])) == []

    def test_hung_node_only_by_name(self, ring: Ring) -> None:
        """Restarting what merely did not answer is for a person to decide."""
        ring.views["ring2"] = {"error": "it hangs", "kind": "hung"}
        assert restart_steps(ring.peers, views=ring.views) == []
        assert restart_steps(ring.peers, views=ring.views, names=["ring2"])[0]["mode"] == "repairing"

    def test_rack_at_a_time(self, ring: Ring) -> None:
        for peer in ring.peers[:2]:
            peer["rack"] = "rack1"
        steps = restart_steps(ring.peers, views=ring.views, everything=True, by="rack")
        assert [step["subjects"] for step in steps] == [["ring1", "ring2"], ["ring3"]]

    def test_unknown_name(self, ring: Ring) -> None:
        with pytest.raises(ValueError, match="ring9"):
            restart_steps(ring.peers, views=ring.views, names=["ring9"])


class TestStatus:
    """What verify_site judges: the lines of `nodetool status`."""

    PRINTED = """Datacenter: dc1
===============
Status=Up/Down
|/ State=Normal/Leaving/Joining/Moving
--  Address                Load        Tokens  Owns (effective)  Host ID  Rack
UN  2001:db8:0:0:0:0:0:1   161.21 KiB  4       100.0%            8a1b     rack1
UN  2001:db8:0:0:0:0:0:10  161.21 KiB  4       100.0%            8a1c     rack2
DN  10.0.0.3               ?           4       100.0%            8a1d     rack3

""".splitlines()
    PEERS: ClassVar[list[dict[str, str]]] = [
        {"name": "ring1", "address": "2001:0db8::1"},
        {"name": "ring10", "address": "2001:DB8::10"},
        {"name": "ring3", "address": "10.0.0.3"},
    ]

    def test_node_that_is_down(self) -> None:
        """The others are found in whatever spelling."""
        assert status_faults(self.PRINTED, self.PEERS) == ["ring3 (10.0.0.3) is DN"]

    def test_node_that_is_declared_absent(self) -> None:
        """Down, or gone already."""
        assert status_faults(self.PRINTED, self.PEERS, ["ring3"]) == []
        gone = [line for line in self.PRINTED if not line.startswith("DN")]
        assert status_faults(gone, self.PEERS, ["ring3"]) == []
        assert status_faults(gone, self.PEERS) == ["ring3 (10.0.0.3) is not there"]

    def test_node_that_is_not_expected(self) -> None:
        """Up and normal, and nobody's."""
        assert status_faults(self.PRINTED, self.PEERS[:2]) == ["10.0.0.3 is there and not in the inventory"]

    def test_nothing_was_printed(self) -> None:
        """Every node is missed."""
        assert len(status_faults([], self.PEERS)) == 3


class TestParsing:
    """What nodetool prints, as captured."""

    def test_dump_of_a_healthy_node(self) -> None:
        view = ring_view.parse_view(DUMP, GOSSIP)
        assert view["mode"] == "NORMAL"
        assert len(view["live"]) == len(view["nodes"]) == 3
        assert [len(entry["tokens"]) for entry in view["nodes"].values()] == [4, 4, 4]
        assert {entry["rack"] for entry in view["nodes"].values()} == {"rack1", "rack2", "rack3"}
        assert (view["streams"], view["repairs"], view["hints"]) == ([], [], [])
        assert set(view["heartbeats"][0]) == set(view["nodes"])

    @pytest.mark.parametrize("mode", ["DRAINING", "DRAINED"])
    def test_drained_node(self, mode: str) -> None:
        """It speaks, and is told from one that serves."""
        drained = DUMP.replace('"OperationMode": "NORMAL"', f'"OperationMode": "{mode}"')
        assert ring_view.parse_view(drained, GOSSIP)["kind"] == "drained"
        assert ring_view.parse_view(DUMP, GOSSIP)["kind"] == ""

    def test_nodetool_says_something_else(self) -> None:
        with pytest.raises(Exception, match="no beans"):
            ring_view.parse_view("nodetool: Failed to connect to '127.0.0.1:7199'", "")

    def test_hints(self) -> None:
        """Only the nodes that they are for."""
        host = "ce37c35b-9586-48d2-8c3d-9e4c0f2e4d95"
        text = f"[{{newest=1795642516, rack=rack1, host={host}, totalFiles=1, address=172.31.77.13}}]"
        assert ring_view.parse_hints(text) == [host]
        assert ring_view.parse_hints("[]") == []

    def test_hints_that_are_being_written(self, tmp_path: Path) -> None:
        """HintsService says nothing of them yet."""
        host = "2dac58a8-80c9-47eb-87de-368ebe0039a5"
        for name in (f"{host}-1795768891412-3.hints", f"{host}-1795768891412-3.crc32", "notes.hints"):
            (tmp_path / name).touch()
        assert ring_view.hinted_in(str(tmp_path)) == [host]
        assert ring_view.hinted_in(str(tmp_path / "not there")) == []

    def test_repairs_count_and_compactions_do_not(self) -> None:
        """A pool without tasks is none either, nor is a repair that is done, well or not."""
        pools = [("ValidationExecutor", 1), ("CompactionExecutor", 3), ("Repair-Task", 0), ("Repair#12", 2)]
        done = [("fieldring", "success", 3755, True), ("fieldring", "failure", 10046, True)]
        assert ring_view.repairs_of(done, pools) == ["Repair#12: 2 tasks", "ValidationExecutor: 1 tasks"]

    def test_repair_that_waits_for_its_replicas(self) -> None:
        """No pool of its coordinator has anything to do meanwhile."""
        repairs = [("fieldring", "prepare_start", 6070, False)]
        pools = [("Repair-Task", 0), ("ValidationExecutor", 0)]
        assert ring_view.repairs_of(repairs, pools) == ["fieldring, for 6 s, prepare_start"]

    @pytest.mark.parametrize(
        ("text", "normal"),
        [
            ("/10.0.0.1", "10.0.0.1"),
            ("ring1/10.0.0.1", "10.0.0.1"),
            ("2001:db8:0:0:0:0:0:1", "2001:db8::1"),
            ("[2001:DB8::1]", "2001:db8::1"),
        ],
    )
    def test_addresses(self, text: str, normal: str) -> None:
        """Host and controller spell alike."""
        assert normal_address(text) == normal
        assert ring_view.normal_address(text) == normal

    def test_heartbeats_are_sampled_again_until_patience_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A slow gossip round is waited for; a dead node is not for ever."""
        clock = [100.0]
        monkeypatch.setattr(ring_view.time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(ring_view.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
        samples = [{"a": [1, 5]}, {"a": [1, 5]}, {"a": [1, 6]}]
        arguments: dict[str, Any] = {"seconds": 3.5, "watched": {"a"}}
        first = {"a": [1, 5]}
        got = ring_view.second_sample(first, 100.0, sample=lambda: samples.pop(0), **arguments)
        assert got == {"a": [1, 6]}
        assert clock[0] >= 103.5
        begun = clock[0]
        got = ring_view.second_sample(first, begun, sample=lambda: dict(first), **arguments)
        assert got == first
        assert clock[0] - begun < 20
