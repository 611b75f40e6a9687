"""How a ring comes to another version of Cassandra, and whether there is a way back. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Formats of SSTables that each series reads; the one it writes is the last of each kind. Only series that
# the role runs and tests.
READS = {"5.0": {"big": ["ma", "mb", "mc", "md", "me", "na", "nb", "oa"], "bti": ["da"]}}
# Before this one the archives are neither pinned nor tested here.
OLDEST = "5.0.8"


def parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split(".") if part.isdigit())


def series(version: str) -> str:
    return ".".join(version.split(".")[:2])


def upgrade_plan(
    peers: Sequence[Mapping[str, Any]], *, views: Mapping[str, Mapping[str, Any] | None], wanted: str
) -> dict[str, Any]:
    """{direction, steps, versions, refusals: {ID: text}} to bring every node of `peers` to `wanted`.

    A node that is down comes first (a run was interrupted between drain and start, or it has to be
    brought back anyway); nodes that run `wanted` already are left alone.
    """
    order = sorted(peers, key=lambda peer: (str(peer["dc"]), str(peer["rack"]), str(peer["name"])))
    found = {str(peer["name"]): views.get(str(peer["name"])) or {} for peer in order}
    versions = {name: str(view.get("version") or "") for name, view in found.items()}
    running = [version for version in versions.values() if version]
    steps = [
        {
            "mode": "repairing",
            "subjects": [name],
            "why": "it is drained"
            if view["kind"] == "drained"
            else "it is down, so no snapshot of it is taken",
        }
        for name, view in found.items()
        if view.get("kind") in ("stopped", "drained")
    ]
    down = [step["subjects"][0] for step in steps]
    steps += [
        {"mode": "touch", "subjects": [name], "why": f"{version} -> {wanted}"}
        for name, version in versions.items()
        if version and version != wanted and name not in down
    ]
    back = any(parts(version) > parts(wanted) for version in running)
    refusals: dict[str, str] = {}
    if series(wanted) not in READS:
        refusals["CN-224"] = (
            f"{wanted} is not of the series {', '.join(READS)}, the only one that this role runs and tests. "
            "Set cassandra_node_version to one of it."
        )
    elif any(series(version) != series(wanted) for version in running):
        refusals["CN-224"] = (
            f"the ring runs {', '.join(sorted(set(running)))}: a step to {wanted} changes the series, which "
            "this role does not do in place. Restore a backup into a new ring of that version."
        )
    if back and "CN-224" not in refusals:
        reasons = []
        if parts(wanted) < parts(OLDEST):
            reasons.append(f"{wanted} is older than {OLDEST}, before which nothing is tested here")
        unreadable = sorted(
            {
                written
                for view in found.values()
                for node in (view.get("nodes") or {}).values()
                for written in node.get("sstables") or []
                if not readable(written, wanted)
            }
        )
        if unreadable:
            reasons.append(
                f"{wanted} cannot read SSTables of the format {', '.join(unreadable)} that are on disk"
            )
        if reasons:
            refusals["CN-225"] = (
                f"there is no way back to {wanted}: {'; '.join(reasons)}. Go forward again (set "
                "cassandra_node_version to what runs), or restore a backup into a new ring."
            )
    return {
        "direction": "back" if back else "forward",
        "steps": [] if refusals else steps,
        "versions": versions,
        "refusals": refusals,
    }


def readable(written: str, version: str) -> bool:
    """Whether that version reads SSTables of a format such as `bti-da`."""
    kind, _, letters = written.rpartition("-")
    return letters in READS.get(series(version), {}).get(kind or "big", [])


def outdated(view: Mapping[str, Any], address: str, selected: str) -> list[str]:
    """Formats among a node's SSTables other than the one that it writes: these are to be rewritten."""
    writes = READS.get(series(str(view.get("version", ""))), {}).get(selected, [""])[-1]
    present = (view.get("nodes") or {}).get(address, {}).get("sstables") or []
    return [written for written in present if written not in (f"{selected}-{writes}", writes)]


class FilterModule:
    """The entry for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"cassandra_node_upgrade_plan": upgrade_plan, "cassandra_node_outdated_sstables": outdated}
