"""What is restarted or started, and in which order; what waits for it; what `nodetool status` says.

Pure functions: no clock, no files, no network. Whether a step may be done now is the gate's to say.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
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

# Kinds of views of nodes that serve nobody until they are started.
DOWN = ("stopped", "drained")


def restart_steps(
    peers: Sequence[Mapping[str, Any]],
    *,
    views: Mapping[str, Mapping[str, Any] | None],
    names: Sequence[str] = (),
    everything: bool = False,
    by: str = "node",
) -> list[dict[str, Any]]:
    """[{mode, subjects, why}], in order: what is down first, then one by one or a rack at a time.

    Without `names` and `everything` only nodes of which a changed configuration waits. A node that runs
    and says nothing is restarted only where it is named. One that was drained is down: the gate opens
    for no touch while it is, since the others call it so.
    """
    by_name = {str(peer["name"]): peer for peer in peers}
    unknown = sorted(set(names) - set(by_name))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not in this ring ({', '.join(sorted(by_name))})")
    if by not in ("node", "rack"):
        raise ValueError(f"restart by node or by rack, not by {by!r}")
    down, living = [], []
    for name in sorted(by_name, key=lambda name: (by_name[name]["dc"], by_name[name]["rack"], name)):
        view = views.get(name) or {}
        if names and name not in names:
            continue
        if view.get("kind") in DOWN or (name in names and view.get("error")):
            down.append(name)
        elif names or everything or pending_restart(view.get("pending") or []):
            living.append(name)

    def groups(among: list[str]) -> list[list[str]]:
        racks: dict[tuple[str, str], list[str]] = {}
        for name in among:
            racks.setdefault((str(by_name[name]["dc"]), str(by_name[name]["rack"])), []).append(name)
        return [[name] for name in among] if by == "node" else list(racks.values())

    steps = []
    for group in groups(down):
        kinds = {(views.get(name) or {}).get("kind") for name in group}
        why = "drained" if kinds == {"drained"} else "down"
        steps.append(
            {
                "mode": "repairing",
                "subjects": group,
                "why": f"{'it is' if len(group) == 1 else 'they are'} {why}",
            }
        )
    for group in groups(living):
        waiting = [
            line for name in group for line in pending_restart((views.get(name) or {}).get("pending") or [])
        ]
        why = "; ".join(dict.fromkeys(waiting)) or "as asked"
        steps.append({"mode": "touch", "subjects": group, "why": why})
    return steps


def outage_plan(
    peers: Sequence[Mapping[str, Any]],
    *,
    views: Mapping[str, Mapping[str, Any] | None],
    record: Mapping[str, Any],
    states: Mapping[str, Mapping[str, Any] | None],
    reasons: Sequence[Mapping[str, str]],
    seeds: Sequence[str],
) -> dict[str, Any]:
    """{seeds, others, refusals}: the nodes that are down, those that others look for first apart.

    `reasons` are the gate's. That nodes are down is what this is for; a ring whose record, clocks or
    disks are wrong would come up wrong. `seeds` are addresses.
    """
    refusals = [
        dict(reason) for reason in reasons if reason["id"] in ("CN-202", "CN-203", "CN-218", "CN-222")
    ]
    first = {normal_address(address) for address in seeds}
    down: dict[bool, list[str]] = {True: [], False: []}
    for peer in sorted(peers, key=lambda peer: str(peer["name"])):
        name = str(peer["name"])
        if (views.get(name) or {}).get("kind") not in DOWN:
            continue
        if name in (record.get("nodes") or {}) and (states.get(name) or {}).get("data") == "empty":
            refusals.append(
                {
                    "id": "CN-112",
                    "text": f"the data directory of {name} is empty, but it stands in the controller's "
                    "record. Started like this it would come up with no data, or silently take over "
                    f"ranges. If the disk is not mounted, mount it; if it was lost, declare {name} absent "
                    f"""for this run (-e '{{"cassandra_node_absent_hosts": ["{name}"]}}') and then run """
                    f"{_gate.REPLACE}.",
                }
            )
            continue
        down[normal_address(peer["address"]) in first].append(name)
    return {"seeds": down[True], "others": down[False], "refusals": refusals}


def status_faults(
    lines: Iterable[str], peers: Sequence[Mapping[str, Any]], absent: Sequence[str] = ()
) -> list[str]:
    """Why the ring that `nodetool status` prints is not that of `peers`, up and normal but for the absent."""
    matches = (re.match(r"([UD?][NLJM])\s+(\S+)", line) for line in lines)
    seen = {normal_address(match[2]): match[1] for match in matches if match}
    names = {normal_address(peer["address"]): str(peer["name"]) for peer in peers}
    faults = []
    for address, name in names.items():
        if seen.get(address) != "UN" and name not in absent:
            faults.append(f"{name} ({address}) is {seen.get(address, 'not there')}")
    strangers = sorted(set(seen) - set(names))
    return faults + [f"{address} is there and not in the inventory" for address in strangers]


def pending_restart(pending: Iterable[str]) -> list[str]:
    """What a restart would put into force: another version needs an upgrade instead."""
    return [line for line in pending if not re.match(r"version: ", line)]


class FilterModule:
    """The entry for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "cassandra_node_outage_plan": outage_plan,
            "cassandra_node_pending_restart": pending_restart,
            "cassandra_node_restart_steps": restart_steps,
            "cassandra_node_status_faults": status_faults,
        }
