"""Who may start, and who is refused: verdicts of the role cassandra_node, one situation each."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/cassandra_node/filter_plugins"))
from cassandra_node_plan import plan, plan_tokens, seeds  # type: ignore[import-not-found]

PEERS = [{"name": f"ring{n}", "address": f"192.0.2.1{n}", "dc": "dc1", "rack": f"rack{n}"} for n in (1, 2, 3)]
TOKENS = plan_tokens(PEERS, 4)


def state(data: str = "empty", **other: Any) -> dict[str, Any]:
    """What cassandra_node_state returns on a host of which nothing else is said."""
    nothing = dict.fromkeys(
        ["cluster_name", "num_tokens", "partitioner", "endpoint_snitch", "address", "dc", "rack"]
    )
    return {
        "data": data,
        "configured": nothing,
        "first_start": None,
        "listening": [],
        "answering": {},
        "active": data == "used",
        "installed": [],
        **other,
    }


def record(*names: str) -> dict[str, Any]:
    """The controller's record, in which those have joined."""
    return {
        "cluster_name": "lab",
        "nodes": {
            p["name"]: {**p, "host_id": p["name"], "tokens": TOKENS[p["name"]]}
            for p in PEERS
            if p["name"] in names
        },
    }


def judge(name: str = "ring1", **arguments: Any) -> dict[str, Any]:
    """The verdict for a node of three, all of them empty unless said otherwise."""
    peer = next((p for p in PEERS if p["name"] == name), PEERS[0])
    wanted = {
        "cluster_name": "lab",
        "num_tokens": 4,
        "partitioner": "Murmur3",
        "endpoint_snitch": "GPFS",
        "data_file_directories": "/var/lib/cassandra/data",
        "commitlog_directory": "/var/lib/cassandra/commitlog",
        "seeds_per_dc": 3,
        "record_file": "state/ring/main.json",
        **{key: peer[key] for key in ("address", "dc", "rack")},
        **arguments.pop("wanted", {}),
    }
    arguments = {"states": {p["name"]: state() for p in PEERS}, "record": {}, **arguments}
    return plan(arguments.pop("peers", PEERS), name=name, wanted=wanted, **arguments)  # type: ignore[no-any-return]


def refused(verdict: dict[str, Any]) -> list[str]:
    """The IDs; a refusal never comes with leave to start."""
    assert not (verdict["refusals"] and verdict["first_start"])
    return sorted(verdict["refusals"])


class TestTokens:
    """Evenly spaced, unique over all data centres, neighbours in different racks."""

    @pytest.mark.parametrize("count", [1, 3, 5, 12])
    def test_spacing_is_even(self, count: int) -> None:
        """The widest and the narrowest range differ by rounding only."""
        peers = [
            {"name": f"n{n:02}", "address": str(n), "dc": "dc1", "rack": f"r{n % 3}"} for n in range(count)
        ]
        tokens = sorted(token for node in plan_tokens(peers, 16).values() for token in node)
        gaps = [after - before for before, after in itertools.pairwise(tokens)]
        assert count * 16 == len(tokens)
        assert max(gaps) - min(gaps) <= 2
        assert min(tokens) > -(2**63)
        assert max(tokens) < 2**63

    def test_two_datacentres_share_no_token(self) -> None:
        """Equal layouts in two data centres would collide without a shift."""
        peers = PEERS + [
            {**p, "name": f"{p['name']}b", "address": f"{p['address']}0", "dc": "dc2"} for p in PEERS
        ]
        tokens = [token for node in plan_tokens(peers, 4).values() for token in node]
        assert len(tokens) == len(set(tokens)) == 24

    def test_neighbours_stand_in_different_racks(self) -> None:
        """Two nodes of one rack are not next to each other while another rack has a node left."""
        peers = [
            {"name": f"n{n}", "address": str(n), "dc": "dc1", "rack": "a" if n < 2 else "b"} for n in range(4)
        ]
        tokens = plan_tokens(peers, 1)
        order = sorted(tokens, key=lambda name: tokens[name][0])
        racks = ["a" if name in ("n0", "n1") else "b" for name in order]
        assert racks == ["a", "b", "a", "b"]

    def test_order_of_the_inventory_does_not_matter(self) -> None:
        """A resumed first start must come to the same lists."""
        assert TOKENS == plan_tokens(PEERS[::-1], 4)

    def test_seeds_come_from_different_racks(self) -> None:
        """Two per data centre, not both in the first rack."""
        peers = [
            {"name": f"n{n}", "address": f"a{n}", "dc": "dc1", "rack": "x" if n < 3 else "y"}
            for n in range(4)
        ]
        assert seeds(peers, 2) == ["a0", "a3"]


class TestFirstStart:
    """All nodes start together only when nothing of a ring is there yet."""

    def test_all_empty_and_silent(self) -> None:
        """The one situation in which tokens are handed out."""
        verdict = judge()
        assert refused(verdict) == []
        assert verdict["first_start"]
        assert verdict["tokens"] == TOKENS["ring1"]

    def test_interrupted_start_goes_on(self) -> None:
        """One node already runs with the same plan, and nothing is on record."""
        begun = {"plan": TOKENS}
        states = {
            "ring1": state(first_start=begun),
            "ring2": state("used", first_start=begun, listening=[7000, 9042]),
            "ring3": state(first_start=begun),
        }
        assert judge("ring1", states=states)["first_start"]
        assert judge("ring2", states=states)["first_start"]

    def test_peer_was_not_visited(self) -> None:
        """CN-110: --limit must not start a part of a ring, even if the peer's port answers."""
        states = {"ring1": state(), "ring2": state(), "ring3": None}
        assert refused(judge(states=states)) == ["CN-110"]
        assert refused(judge(states=states, answering={"192.0.2.13": [7000]})) == ["CN-110"]

    @pytest.mark.parametrize("port", [7000, 9042])
    def test_peer_answers(self, port: int) -> None:
        """CN-112: an empty directory beside an open port is not a new ring."""
        states = {p["name"]: state() for p in PEERS}
        states["ring1"]["answering"] = {"192.0.2.12": [port]}
        assert refused(judge(states=states)) == ["CN-112"]

    def test_another_plan_was_begun(self) -> None:
        """CN-116: other peers or tokens than those with which some node may already have started."""
        states = {p["name"]: state(first_start={"plan": plan_tokens(PEERS, 8)}) for p in PEERS}
        assert refused(judge(states=states)) == ["CN-116"]


class TestJoined:
    """A ring that has joined is served, or refused for what is missing."""

    ALL = record("ring1", "ring2", "ring3")

    def test_healthy(self) -> None:
        """Nothing to start."""
        verdict = judge(states={p["name"]: state("used") for p in PEERS}, record=self.ALL)
        assert refused(verdict) == []
        assert verdict["joined"]
        assert not verdict["first_start"]

    def test_record_was_lost(self) -> None:
        """Nodes with data and no marker have joined, record or not."""
        verdict = judge(states={p["name"]: state("used") for p in PEERS})
        assert verdict["joined"]
        assert not verdict["first_start"]

    @pytest.mark.parametrize("kept", [record("ring1", "ring2", "ring3"), {}])
    def test_one_empty_disk(self, kept: dict[str, Any]) -> None:
        """CN-112 names the playbook, with the record and without."""
        states = {"ring1": state(), "ring2": state("used"), "ring3": state("used")}
        verdict = judge(states=states, record=kept)
        assert refused(verdict) == ["CN-112"]
        assert "replace_cassandra_node" in verdict["refusals"]["CN-112"]

    def test_one_empty_disk_under_limit(self) -> None:
        """CN-112 also when only the wiped node is visited and the others answer."""
        states = {
            "ring1": state(answering={"192.0.2.12": [7000], "192.0.2.13": [9042]}),
            "ring2": None,
            "ring3": None,
        }
        assert refused(judge(states=states, record=self.ALL)) == ["CN-112"]

    def test_new_node(self) -> None:
        """CN-113: a host that is not on record joins by its own playbook."""
        states = {"ring1": state(), "ring2": state("used"), "ring3": state("used")}
        verdict = judge(states=states, record=record("ring2", "ring3"))
        assert refused(verdict) == ["CN-113"]
        assert "add_cassandra_node" in verdict["refusals"]["CN-113"]

    def test_every_disk_is_empty(self) -> None:
        """CN-114: a record and no data anywhere is a wrong inventory or a lost mount, not a new ring."""
        verdict = judge(record=self.ALL)
        assert refused(verdict) == ["CN-114"]
        assert "state/ring/main.json" in verdict["refusals"]["CN-114"]

    def test_stopped(self) -> None:
        """CN-115: what stopped it is not known here."""
        states = {p["name"]: state("used", active=p["name"] != "ring1") for p in PEERS}
        verdict = judge(states=states, record=self.ALL)
        assert verdict["stopped"].startswith(
            "ring1 has joined its ring but cassandra.service is not running."
        )
        assert (refused(verdict), verdict["joined"]) == ([], True)
        assert judge("ring2", states=states, record=self.ALL)["stopped"] == ""

    @pytest.mark.parametrize("active", [True, False])
    def test_data_of_a_node_that_has_left(self, active: bool) -> None:
        """CN-129: it holds another node's tokens, and would be told to start, or taken for a member."""
        states = {p["name"]: state("used", active=active) for p in PEERS}
        assert refused(judge(states=states, record=record("ring2", "ring3"))) == ["CN-129"]

    def test_node_whose_first_start_was_interrupted(self) -> None:
        """The near miss: others are on record already, and it goes on."""
        states = {p["name"]: state("used") for p in PEERS}
        states["ring1"] = state("used", first_start={"plan": TOKENS})
        verdict = judge(states=states, record=record("ring2", "ring3"))
        assert (refused(verdict), verdict["joined"], verdict["finish"]) == ([], True, True)

    def test_peer_is_silent(self) -> None:
        """CN-110, but a peer that answers needs no visit."""
        states = {"ring1": state("used"), "ring2": state("used"), "ring3": None}
        assert refused(judge(states=states, record=self.ALL)) == ["CN-110"]
        assert refused(judge(states=states, record=self.ALL, answering={"192.0.2.13": [7000]})) == []
        assert refused(judge(states=states, record=self.ALL, absent=["ring3"])) == []

    @pytest.mark.parametrize("kept", [record("ring1", "ring2", "ring3"), record("ring1", "ring2")])
    @pytest.mark.parametrize("data", ["used", "empty"])
    def test_host_that_is_declared_absent(self, kept: dict[str, Any], data: str) -> None:
        """Nothing is done on it, whether it stands in the record or not."""
        states = {"ring1": state("used"), "ring2": state("used"), "ring3": state(data)}
        verdict = judge("ring3", states=states, record=kept, absent=["ring3"])
        assert refused(verdict) == []
        assert (verdict["first_start"], verdict["joined"], verdict["join"], verdict["tokens"]) == (
            False,
            False,
            "",
            [],
        )

    def test_near_miss_of_an_address(self) -> None:
        """An answer of 192.0.2.130 is none of 192.0.2.13."""
        states = {"ring1": state("used"), "ring2": state("used"), "ring3": None}
        assert refused(judge(states=states, record=self.ALL, answering={"192.0.2.130": [7000]})) == ["CN-110"]

    @pytest.mark.parametrize(
        ("key", "value"), [("dc", "dc9"), ("rack", "rack9"), ("num_tokens", 16), ("address", "192.0.2.99")]
    )
    def test_identity_changed_against_the_record(self, key: str, value: Any) -> None:
        """CN-111, by the record alone."""
        states = {p["name"]: state("used") for p in PEERS}
        peers = [{**p, key: value} if p["name"] == "ring1" and key != "num_tokens" else p for p in PEERS]
        verdict = judge(states=states, record=self.ALL, wanted={key: value}, peers=peers)
        assert refused(verdict) == ["CN-111"]

    @pytest.mark.parametrize(
        "key",
        ["cluster_name", "partitioner", "endpoint_snitch", "data_file_directories", "commitlog_directory"],
    )
    def test_identity_changed_against_the_host(self, key: str) -> None:
        """CN-111, by the files on the host."""
        states = {p["name"]: state("used") for p in PEERS}
        states["ring1"]["configured"] = {**states["ring1"]["configured"], key: "as it was"}
        assert refused(judge(states=states)) == ["CN-111"]

    @pytest.mark.parametrize("kept", [record(*(p["name"] for p in PEERS)), {}], ids=["record", "host"])
    def test_address_in_another_spelling_is_none_changed(self, kept: dict[str, Any]) -> None:
        """Cassandra and people write one IPv6 address in several ways; CN-111 is for another address."""
        states = {p["name"]: state("used") for p in PEERS}
        states["ring1"]["configured"] = {**states["ring1"]["configured"], "address": "2001:db8:0::0011"}
        if kept:
            kept["nodes"]["ring1"]["address"] = "2001:db8:0::0011"
        for address, expected in (("2001:db8::11", []), ("2001:db8::12", ["CN-111"])):
            peers = [{**PEERS[0], "address": address}, *PEERS[1:]]
            verdict = judge(states=states, record=kept, peers=peers, wanted={"address": address})
            assert expected == refused(verdict)

    def test_marker_is_left_over(self) -> None:
        """A run that stopped after the record was written finishes, without starting anything."""
        states = {p["name"]: state("used", first_start={"plan": TOKENS}) for p in PEERS}
        verdict = judge(states=states, record=self.ALL)
        assert refused(verdict) == []
        assert (verdict["joined"], verdict["finish"], verdict["first_start"]) == (True, True, False)


class TestPeers:
    """CN-103: the list contradicts itself or the host."""

    @pytest.mark.parametrize(
        ("peers", "words"),
        [
            (PEERS[1:], "ring1 itself is missing"),
            ([*PEERS, PEERS[1]], "ring2 is there twice"),
            ([*PEERS, {**PEERS[0], "name": "ring4"}], "192.0.2.11 is there twice"),
            ([{**PEERS[0], "rack": "rack7"}, *PEERS[1:]], "with rack rack7, but its own rack is rack1"),
        ],
    )
    def test_wrong_list(self, peers: list[dict[str, Any]], words: str) -> None:
        """The sentence says which entry."""
        verdict = judge(peers=peers)
        assert refused(verdict) == ["CN-103"]
        assert words in verdict["refusals"]["CN-103"]

    def test_spelling_makes_no_other_address(self) -> None:
        """Two spellings of one IPv6 address are that address: no contradiction, and twice is twice."""
        peers = [{**PEERS[0], "address": "2001:db8:0::0011"}, *PEERS[1:]]
        assert refused(judge(peers=peers, wanted={"address": "2001:db8::11"})) == []
        twice = judge(
            peers=[*peers, {**PEERS[0], "name": "ring4", "address": "2001:db8::11"}],
            wanted={"address": "2001:db8::11"},
        )
        assert "2001:db8::11 is there twice" in twice["refusals"]["CN-103"]
