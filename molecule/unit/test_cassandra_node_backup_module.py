"""What a node makes of the repositories: which backups count and stay, and whether there is room for one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import filter_loader
from ansible.template import Templar, trust_as_template
from repository import ROOT, load, tasks

ROLE = ROOT / "roles" / "cassandra_node"
sys.path.insert(0, str(ROLE / "module_utils"))
import cassandra_node_backup as backup  # type: ignore[import-not-found]  # noqa: E402
import cassandra_node_files  # type: ignore[import-not-found]  # noqa: E402
import cassandra_node_s3  # type: ignore[import-not-found]  # noqa: E402

# The names that they have on a host.
sys.modules["ansible.module_utils.cassandra_node_backup"] = backup
sys.modules["ansible.module_utils.cassandra_node_files"] = cassandra_node_files
sys.modules["ansible.module_utils.cassandra_node_s3"] = cassandra_node_s3
import cassandra_node_view  # type: ignore[import-not-found]  # noqa: E402

sys.modules["ansible.module_utils.cassandra_node_view"] = cassandra_node_view
_spec = importlib.util.spec_from_file_location("backup_module", ROLE / "library" / "cassandra_node_backup.py")
assert _spec is not None
assert _spec.loader is not None
module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(module)

FIRST, SECOND, THIRD, FOURTH = (f"202611{day:02}T010000Z" for day in (1, 2, 3, 4))
MIB = 1 << 20


def ring_manifest(name: str, *nodes: str) -> dict[str, Any]:
    return {"version": 1, "backup": name, "nodes": {node: {} for node in nodes}}


class Storage:
    """Stands for restic: {node: {name: ring manifest, or None where it is damaged}}, and what it did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, held: dict[str, dict[str, Any]]) -> None:
        self.held = held
        self.dumped: dict[str, str] = {}
        self.failing: set[str] = set()
        self.forgotten: list[str] = []
        self.restored: list[str] = []

        def run(repository: Any, *arguments: str, **_: Any) -> str:
            return self.answer(repository.url.rsplit("/", 1)[-1], [a for a in arguments if a[:2] != "--"])

        monkeypatch.setattr(backup.Repository, "run", run)
        monkeypatch.setattr(backup.Repository, "restore", self.restore)
        monkeypatch.setattr(module, "ask", lambda nodetool: {"keyspaces": ["fieldring", "system"]})
        monkeypatch.setattr(module.shutil, "which", lambda program: program)

    def answer(self, node: str, words: list[str]) -> str:
        if words[0] == "cat":
            if node in self.failing:
                raise backup.ResticError("restic cat: wrong password", code=1, said="wrong password")
            if node not in self.held:
                raise backup.ResticError("restic cat: none", code=backup.NO_REPOSITORY, said="")
            return ""
        if words[0] == "snapshots":
            return json.dumps([{"id": n, "tags": [words[1], n]} for n in self.held[node]])
        if words[0] == "forget":
            self.forgotten += words[1:]
            return ""
        if words[2] == "/ring.json":
            if self.held[node][words[1]] is None:
                raise backup.ResticError("restic dump: ciphertext verification failed", code=1, said="")
            return json.dumps(self.held[node][words[1]])
        return self.dumped[node]

    def restore(self, snapshot: str, target: Path, *, includes: list[str]) -> None:
        self.restored.append(snapshot)
        for folder in includes:
            for name in ("schema.cql", "oa-1-big-Data.db"):
                path = target / folder.lstrip("/") / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(name)


def node(folder: Path, **params: Any) -> Any:
    """One call of the module on ring1."""
    given = {
        "repository": "/srv/backup",
        "password": "x",
        "environment": {},
        "ring": "main",
        "node": "ring1",
        "nodes": ["ring1", "ring2"],
        "data_directory": str(folder),
        "nodetool": "nodetool",
        "whole": [],
    }
    return module.Node({**given, **params}, [], "")


def test_backup_that_did_not_reach_every_repository_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ring2 prunes the files of what it does not know; ring1 offered it all the same, for a CN-144."""
    whole = ring_manifest(FIRST, "ring1", "ring2")
    half = ring_manifest(SECOND, "ring1", "ring2")
    Storage(monkeypatch, {"ring1": {FIRST: whole, SECOND: half}, "ring2": {FIRST: whole}})
    assert {FIRST: whole} == node(tmp_path).list()["backups"]


def test_manifest_that_cannot_be_read_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The near miss: the other copy is as good, the files are kept, and the damage is told."""
    whole = ring_manifest(FIRST, "ring1", "ring2")
    Storage(monkeypatch, {"ring1": {FIRST: whole}, "ring2": {FIRST: None}})
    found = node(tmp_path).list()
    assert {FIRST: whole} == found["backups"]
    assert len(found["warnings"]) == 1
    assert f"the ring manifest of {FIRST} cannot be read there" in found["warnings"][0]


def test_repository_of_a_node_that_has_left_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup of the time when it was there needs its files; where they are gone, the backup is none."""
    names = ("ring1", "ring2", "ring3")
    then, now = ring_manifest(FIRST, *names), ring_manifest(SECOND, "ring1", "ring2")
    both = {FIRST: then, SECOND: now}
    storage = Storage(monkeypatch, {"ring1": both, "ring2": both, "ring3": {FIRST: then}})
    assert both == node(tmp_path).list()["backups"]
    del storage.held["ring3"]
    assert {SECOND: now} == node(tmp_path).list()["backups"]


def test_repository_of_a_node_that_has_left_hinders_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose key is an older one; of a node that is there it is an error."""
    then, now = ring_manifest(FIRST, "ring1", "ring3"), ring_manifest(SECOND, "ring1")
    storage = Storage(monkeypatch, {"ring1": {FIRST: then, SECOND: now}, "ring3": {FIRST: then}})
    storage.failing = {"ring3"}
    found = node(tmp_path, nodes=["ring1"]).list()
    assert {SECOND: now} == found["backups"]
    assert "no backup that names ring3 is counted: restic cat: wrong password" in found["warnings"][0]
    with pytest.raises(backup.BackupError, match="wrong password"):
        node(tmp_path, nodes=["ring1", "ring3"]).list()


def test_backup_that_is_none_takes_no_whole_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two to be kept, the one before the half one is the second; ring2 keeps that one as well."""
    names = (FIRST, SECOND, THIRD, FOURTH)
    storage = Storage(monkeypatch, {"ring1": {name: ring_manifest(name, "ring1", "ring2") for name in names}})
    keep = {"last": 2, "daily": 0, "weekly": 0}
    found = node(tmp_path, keep=keep, whole=[FIRST, SECOND, FOURTH]).forget()
    assert [SECOND, FOURTH] == found["summary"]["kept"]
    assert {FIRST} == set(storage.forgotten)


def test_schema_is_read_again_before_a_backup_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CN-151, and no manifest is written; it was read before the snapshot only, so that nothing noticed."""
    Storage(monkeypatch, {"ring1": {}})
    entry = {"schema_version": "before"}
    manifest = {**ring_manifest(FIRST), "nodes": {"ring1": entry}, "schema": {}, "columns": {}}
    monkeypatch.setattr(module, "ask", lambda nodetool: {"schema_version": "after"})
    with pytest.raises(backup.BackupError, match="CN-151: the schema changed meanwhile"):
        node(tmp_path, nodes=["ring1"], name=FIRST, manifest=manifest).commit()


def test_tables_are_described_after_the_snapshots() -> None:
    """One that was made in between is in the snapshots; its columns have to be in the manifest, too."""
    order = [
        task.get("cassandra_node_backup", task.get("cassandra_node_tables", {})).get("action")
        for task in tasks(ROLE / "tasks" / "backup.yml")
    ]
    assert order.index("create") < order.index("describe") < order.index("commit")


def test_restore_that_did_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host was given before the first row was sent."""
    Storage(monkeypatch, {})
    assert {} == node(tmp_path).list()["begun"]
    note = Path(load(ROLE / "vars" / "main.yml")["__cassandra_node_restore_note"]).name
    (tmp_path / note).write_text(json.dumps({"backup": FIRST}))
    assert {"backup": FIRST} == node(tmp_path).list()["begun"]


def test_restore_is_noted_before_it_changes_anything_and_until_it_is_whole() -> None:
    """In between it may be interrupted anywhere."""
    names = [task["name"].removeprefix("Restore | ") for task in tasks(ROLE / "tasks" / "restore.yml")]
    assert names.index("Bring the files back and compare every checksum") + 1 == names.index(
        "Note what is begun"
    )
    assert names[-3:-1] == ["Fill the tables", "Take the note away"]


@pytest.mark.parametrize(
    ("not_empty", "repeated", "accepted"),
    [
        ([], False, True),
        (["fieldring.points"], False, False),
        (["fieldring.points"], True, True),
        (["fieldring.schema_migrations"], False, True),
    ],
)
def test_tables_with_rows_are_refused_unless_this_restore_sent_them(
    not_empty: list[str], repeated: bool, accepted: bool
) -> None:
    """CN-148."""
    task = next(t for t in tasks(ROLE / "tasks" / "restore.yml") if "CN-148" in t["name"])
    said = trust_as_template(task["ansible.builtin.assert"]["that"])
    known = {
        "__cassandra_node_restore": {"verdict": {"repeated": repeated}},
        "__cassandra_node_occupied": {"not_empty": not_empty},
    }
    assert accepted == Templar(loader=DataLoader(), variables=known).evaluate_conditional(said)


@pytest.mark.parametrize(
    ("wanted", "accepted"),
    [([], True), (["fieldring"], True), (["fieldring", "feildring"], False), (["system_auth"], False)],
)
def test_keyspace_that_is_named_is_backed_up_or_refused(
    wanted: list[str], accepted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CN-156; a mistyped one was left out without a word."""
    Storage(monkeypatch, {})
    task = next(t for t in tasks(ROLE / "tasks" / "backup.yml") if "CN-156" in t["name"])
    known = {
        "cassandra_node_backup_keyspaces": wanted,
        "__cassandra_node_seen": node(tmp_path).view(),
        **{name: trust_as_template(text) for name, text in task["vars"].items()},
    }
    templar = Templar(loader=DataLoader(), variables=known)
    that = trust_as_template(task["ansible.builtin.assert"]["that"])
    assert accepted == templar.evaluate_conditional(that)
    said = templar.template(trust_as_template(task["ansible.builtin.assert"]["fail_msg"]))
    assert "what can be backed up of this ring is: fieldring." in said


@pytest.mark.parametrize("file", ["verify", "restore"])
def test_repair_that_is_asked_for_leaves_nothing_out(file: str) -> None:
    """The playbook alone leaves out what was repaired before the change that the repair is for."""
    said = [str(task.get("ansible.builtin.debug")) for task in tasks(ROLE / "tasks" / f"{file}.yml")]
    asked = [text for text in said if "repair_cassandra.yml" in text]
    assert len(asked) == 1
    assert "playbooks/repair_cassandra.yml -e repair_cassandra_older_than_hours=0 " in asked[0]


@pytest.mark.parametrize("playbook", ["backup_cassandra", "restore_cassandra"])
def test_ring_is_looked_at_once_more_under_the_lock(playbook: str) -> None:
    """Until it was had a node may have been added, so that tokens were judged that are no more."""
    last = load(ROOT / "playbooks" / f"{playbook}.yml")[-1]
    block = next(task["block"] for task in last["tasks"] if "block" in task)
    order = [task["ansible.builtin.include_role"]["tasks_from"] for task in block]
    assert ["lock", "backup_ring", playbook.removesuffix("_cassandra")] == order


@pytest.mark.parametrize(
    ("mode", "live", "versions", "says"),
    [
        ("NORMAL", ["192.0.2.1", "192.0.2.10"], ["x", "x"], ""),
        ("JOINING", ["192.0.2.1", "192.0.2.10"], ["x", "x"], "ring1 is in mode JOINING. A backup"),
        ("NORMAL", ["192.0.2.10"], ["x", "x"], "ring1 does not see 192.0.2.1 as up. A backup"),
        ("NORMAL", ["192.0.2.1", "192.0.2.10"], ["x", "y"], "ring1 is in a ring of 2 schema versions."),
    ],
)
def test_ring_that_is_not_whole_is_told_by_what_is_wrong(
    mode: str, live: list[str], versions: list[str], says: str
) -> None:
    """CN-141: with a split schema it said that the node does not see nobody missing as up."""
    filter_loader.add_directory(str(ROLE / "filter_plugins"))
    task = next(t for t in tasks(ROLE / "tasks" / "backup_ring.yml") if "CN-141" in t["name"])
    views = [{"mode": mode, "live": live, "schema_version": version} for version in versions]
    names = {"ring1": "192.0.2.1", "ring2": "192.0.2.10"}
    known = {
        "inventory_hostname": "ring1",
        "hostvars": {
            name: {"__cassandra_node_seen": {"view": view}} for name, view in zip(names, views, strict=True)
        },
        "__cassandra_node_expected": [{"name": name, "address": names[name]} for name in names],
        "__cassandra_node_seen": {"view": views[0]},
        **{name: trust_as_template(text) for name, text in task["vars"].items()},
    }
    templar = Templar(loader=DataLoader(), variables=known)
    that = trust_as_template(task["ansible.builtin.assert"]["that"])
    assert (says == "") == templar.evaluate_conditional(that)
    said = templar.template(trust_as_template(task["ansible.builtin.assert"]["fail_msg"]))
    assert says in said


def test_node_is_told_which_backups_are_whole() -> None:
    """Those that were found before this one, and this one."""
    task = next(t for t in tasks(ROLE / "tasks" / "backup.yml") if "__cassandra_node_forgotten" in t.values())
    known = {"__cassandra_node_backups": {"backups": {FIRST: {}}}, "__cassandra_node_backup_name": SECOND}
    said = trust_as_template(task["cassandra_node_backup"]["whole"])
    assert [FIRST, SECOND] == Templar(loader=DataLoader(), variables=known).template(said)


SMALL, LARGE = "fieldring.windows", "fieldring.points"


def file_of(text: str, size: int | None = None) -> dict[str, Any]:
    return {"size": size or len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def fetching(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, nodes: list[str], free: int, tables: list[str]
) -> tuple[Storage, Any]:
    """A restore of `tables` from the backups of nodes that have a small and a large one each."""
    storage = Storage(monkeypatch, {})
    entries = {}
    for name in nodes:
        files = {
            path: file_of(Path(path).name)
            for table in (SMALL, LARGE)
            for path in (f"{table.replace('.', '/')}/{part}" for part in ("schema.cql", "oa-1-big-Data.db"))
        }
        files["fieldring/points/oa-1-big-Data.db"]["size"] = 100 * MIB
        text = json.dumps({"tables": [SMALL, LARGE], "files": files})
        storage.dumped[name] = text
        digest = hashlib.sha256(text.encode()).hexdigest()
        entries[name] = {"snapshot": f"of {name}", "manifest_sha256": digest, "bytes": 100 * MIB + 36}
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    return storage, node(folder, nodes=nodes, tables=tables, manifest={"nodes": entries})


def test_room_is_asked_for_the_tables_that_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked for the whole backup, so that a full node could not even get back a small table."""
    storage, call = fetching(tmp_path, monkeypatch, nodes=["ring1"], free=MIB, tables=[SMALL])
    assert {"files": 2, "bytes": 26} == call.fetch()["summary"]
    assert ["of ring1"] == storage.restored
    assert (tmp_path / "restore/ring1/fieldring/windows/oa-1-big-Data.db").is_file()
    assert not (tmp_path / "restore/ring1/fieldring/points").exists()


@pytest.mark.parametrize("nodes", [["ring1"], ["ring1", "ring3"]], ids=["one", "two"])
def test_room_that_is_missing_is_told_before_anything_is_brought_back(
    nodes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CN-146: what all the nodes' backups need that are streamed from here."""
    free = 110 * MIB * len(nodes) - MIB
    storage, call = fetching(tmp_path, monkeypatch, nodes=nodes, free=free, tables=[SMALL, LARGE])
    with pytest.raises(backup.BackupError, match=f"CN-146: .* needs {100 * len(nodes)} MiB"):
        call.fetch()
    assert [] == storage.restored
    assert not (tmp_path / "restore").exists()


def test_rows_that_a_cleanup_would_take_hinder_no_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node takes no file of a folder with tokens it does not own, and the table is empty by then."""
    asked = []

    def nodetool(command: str, *words: str) -> str:
        asked.append(words)
        (tmp_path / "restore/ring1/fieldring/windows/oa-1-big-Data.db").unlink()
        return ""

    _, call = fetching(tmp_path, monkeypatch, nodes=["ring1"], free=MIB, tables=[SMALL])
    monkeypatch.setattr(module, "nodetool", nodetool)
    call.fetch()
    assert {"tables": [SMALL]} == call.import_()["summary"]
    folder = str(tmp_path / "restore/ring1/fieldring/windows")
    assert [("import", "--no-tokens", "fieldring", "windows", folder)] == asked


def test_node_that_has_nothing_to_bring_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the third of a ring that a backup of two is streamed into: it failed for want of its folder."""
    _, call = fetching(tmp_path, monkeypatch, nodes=[], free=0, tables=[SMALL])
    assert {"files": 0, "bytes": 0} == call.fetch()["summary"]
