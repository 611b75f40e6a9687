"""What is judged of backups without a host: which stay, whether one fits, what a restore would do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/cassandra_node/module_utils"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/cassandra_node/files/repair"))
import cassandra_node_backup as backup  # type: ignore[import-not-found]
import cassandra_node_cql  # type: ignore[import-not-found]
import cassandra_repair as repair  # type: ignore[import-not-found]

# The names that they have on a host.
sys.modules["ansible.module_utils.cassandra_node_backup"] = backup
sys.modules["ansible.module_utils.cassandra_node_cql"] = cassandra_node_cql
import cassandra_node_tables as tables  # type: ignore[import-not-found]  # noqa: E402

NAME = "20261101T010000Z"
NODES = {
    "ring1": {"host_id": "a", "tokens": [1, 2], "schema_version": "x"},
    "ring2": {"host_id": "b", "tokens": [3, 4], "schema_version": "x"},
}
COLUMNS = {"fieldring.points": {"sensor": ["text", "partition_key"], "value": ["double", "regular"]}}
MANIFEST = {"version": 1, "backup": NAME, "nodes": NODES, "columns": COLUMNS, "schema": {}}


def verdict(**changes: Any) -> dict[str, Any]:
    """Of a restore of everything into the ring that the backup was taken of."""
    question = {
        "backups": {NAME: MANIFEST},
        "name": NAME,
        "ring": "main",
        "from_ring": "main",
        "wanted": [],
        "nodes": NODES,
        "columns": COLUMNS,
        "dropped": {},
        "keyspaces": ["fieldring"],
        "confirm": NAME,
        "begun": [{}, {}],
    }
    return dict(backup.restore_verdict({**question, **changes}))


def test_restore_into_the_same_ring() -> None:
    """Each node brings its own files back."""
    found = verdict()
    assert {} == found["refusals"]
    assert {"ring1": ["ring1"], "ring2": ["ring2"]} == found["sources"]
    assert found["in_place"]


MOVED = {**NODES, "ring2": {"host_id": "b", "tokens": [3, 5]}}
REPLACED = {**NODES, "ring2": {"host_id": "z", "tokens": [3, 4]}}
GROWN = {**NODES, "ring3": {"host_id": "c", "tokens": [6]}}


@pytest.mark.parametrize(
    ("identifier", "changes", "says"),
    [
        ("CN-142", {"name": "20200101T000000Z"}, NAME),
        ("CN-142", {"name": "latest", "backups": {}}, "There are: none"),
        ("CN-143", {"wanted": ["fieldring.nothing"]}, "fieldring.points"),
        ("CN-145", {"nodes": MOVED}, "ring2 holds other tokens"),
        ("CN-145", {"nodes": REPLACED}, "ring2 was host ID b and is z"),
        ("CN-145", {"nodes": GROWN}, "ring3 is new"),
        ("CN-145", {"nodes": {"ring1": NODES["ring1"]}}, "ring2 is gone"),
        ("CN-147", {"confirm": ""}, f"restore_cassandra_confirm={NAME}"),
        (
            "CN-149",
            {"columns": {"fieldring.points": {**COLUMNS["fieldring.points"], "value": ["text", "regular"]}}},
            "value was double regular",
        ),
        (
            "CN-149",
            {"columns": {"fieldring.points": {"sensor": ["text", "partition_key"]}}},
            "value is not there any more",
        ),
        (
            "CN-149",
            {"dropped": {"fieldring.points": {"value": "20261101T010001Z"}}},
            "value was dropped and made again",
        ),
        ("CN-150", {"keyspaces": []}, "fieldring"),
    ],
)
def test_restore_is_refused(identifier: str, changes: dict[str, Any], says: str) -> None:
    """Each with its ID and what was found."""
    found = verdict(**changes)["refusals"]
    assert [identifier] == list(found)
    assert says in found[identifier]


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": {"fieldring.points": {**COLUMNS["fieldring.points"], "unit": ["text", "regular"]}}},
        {"dropped": {"fieldring.points": {"value": "20261031T235959Z"}}},
        {"dropped": {"fieldring.points": {"unit": "20261101T010001Z"}}},
        {"columns": {}, "dropped": {"fieldring.points": {"value": "20261101T010001Z"}}},
    ],
    ids=["added", "dropped before", "dropped, and not in the backup", "table that is made"],
)
def test_columns_that_hide_nothing_of_a_backup(changes: dict[str, Any]) -> None:
    """The near misses of CN-149."""
    assert {} == verdict(**changes)["refusals"]


def test_keyspace_that_only_begins_like_the_systems_is_backed_up() -> None:
    """It was left out of every backup, and of what is known of columns."""
    live = ["system", "system_auth", "system_distributed", "system_schema", "system_traces", "system_views"]
    live += ["system_virtual_schema", "system_cluster_metadata"]
    assert ["fieldring", "system_metrics"] == backup.own_keyspaces([*live, "system_metrics", "fieldring"])
    rows = [
        SimpleNamespace(keyspace_name=name, table_name="t", column_name="c", type="int", kind="regular")
        for name in ("system_auth", "system_metrics")
    ]
    found = tables.Tables(lambda statement, values: rows, False).columns()
    assert {"system_metrics.t": {"c": ["int", "regular"]}} == found


def test_dropped_columns_are_told_by_table() -> None:
    """With their time as backups have it, so that the two can be compared."""
    rows = [
        SimpleNamespace(keyspace_name=keyspace, table_name="points", column_name="value", dropped_ms=at)
        # Cassandra's own tables have some of the end of time.
        for keyspace, at in (("system_distributed", 9223372036854775), ("fieldring", 1793494801500))
    ]
    found = tables.Tables(lambda statement, values: rows, False).dropped()
    assert {"fieldring.points": {"value": "20261101T010001Z"}} == found


def test_restore_after_a_change_of_the_ring_is_streamed() -> None:
    """Said so, a backup of two nodes goes into three: each of its nodes' files are read by one."""
    found = verdict(nodes=GROWN, stream=True)
    assert {} == found["refusals"]
    assert not found["in_place"]
    assert {"ring1": ["ring1"], "ring2": ["ring2"], "ring3": []} == found["sources"]


BEGUN = {
    "backup": NAME,
    "ring": "main",
    "tables": ["fieldring.points"],
    "in_place": False,
    "missing": ["fieldring.points"],
}


@pytest.mark.parametrize(
    ("begun", "repeated"),
    [
        ({}, False),
        (BEGUN, True),
        ({**BEGUN, "backup": "20261031T010000Z"}, False),
        ({**BEGUN, "ring": "older"}, False),
        ({**BEGUN, "tables": ["fieldring.points", "fieldring.windows"]}, False),
        ({**BEGUN, "in_place": True}, False),
    ],
)
def test_streamed_restore_that_was_interrupted_is_known(begun: dict[str, Any], repeated: bool) -> None:
    """Its first tables hold rows by then, so that the same command was refused; any other still is."""
    found = verdict(ring="other", columns={} if begun == {} else COLUMNS, begun=[{}, begun])
    assert repeated == found["repeated"]


def test_table_that_an_interrupted_restore_has_begun_is_made_to_the_end() -> None:
    """It was there by then, and stayed without its indexes."""
    begun = {**BEGUN, "in_place": True}
    found = verdict(begun=[begun])
    assert ["fieldring.points"] == found["missing"]
    assert begun == found["note"]
    assert [] == verdict()["missing"]
    dropped = {"fieldring.points": {"value": "20261101T010001Z"}}
    assert ["CN-149"] == list(verdict(begun=[begun], dropped=dropped)["refusals"])


SCHEMA = """
CREATE TABLE IF NOT EXISTS fieldring.points (sensor text PRIMARY KEY, value double, unit text)
    WITH ID = 10f59790-e91d-11f1-9219-f1f33716e438;
ALTER TABLE fieldring.points DROP unit USING TIMESTAMP 1793494800000000;
ALTER TABLE fieldring.points ADD unit text;
CREATE INDEX IF NOT EXISTS points_unit ON fieldring.points (unit);
"""


def test_statements_of_a_table_may_be_executed_twice() -> None:
    """A restore that is repeated does not know which of them were."""
    done: list[str] = []
    tables.Tables(lambda statement, values: done.append(" ".join(statement.split())), False).create(
        {"fieldring.points": SCHEMA}
    )
    assert done == [
        "CREATE TABLE IF NOT EXISTS fieldring.points (sensor text PRIMARY KEY, value double, unit text)",
        "ALTER TABLE fieldring.points DROP IF EXISTS unit USING TIMESTAMP 1793494800000000",
        "ALTER TABLE fieldring.points ADD IF NOT EXISTS unit text",
        "CREATE INDEX IF NOT EXISTS points_unit ON fieldring.points (unit)",
    ]
    assert done == [backup.repeatable(statement) for statement in done]


def test_restore_into_another_ring_knows_what_is_missing() -> None:
    """A ring of one reads all nodes' files, and makes the table."""
    found = verdict(ring="other", nodes={"lone": {"host_id": "q", "tokens": [9]}}, columns={})
    assert {"lone": ["ring1", "ring2"]} == found["sources"]
    assert ["fieldring.points"] == found["missing"]


def test_latest_is_the_newest_whole_backup() -> None:
    """A manifest of another format is none."""
    manifests = [MANIFEST, {**MANIFEST, "backup": "20261102T010000Z", "version": 2}]
    assert [NAME] == list(backup.whole_backups(manifests))


def incomplete(manifest: dict[str, Any], *more: str, schema_version: str = "x") -> str:
    """Of a ring of ring1, ring2 and `more`."""
    return str(backup.incomplete(manifest, ["ring1", "ring2", *more], schema_version=schema_version))


def test_part_of_a_ring_is_no_backup() -> None:
    """CN-151: a node is missing, or the schema changed while it ran."""
    assert "" == incomplete(MANIFEST)
    assert "CN-151: ring3 wrote no files" in incomplete(MANIFEST, "ring3")
    changed = {**MANIFEST, "nodes": {**NODES, "ring2": {**NODES["ring2"], "schema_version": "y"}}}
    assert "2 versions" in incomplete(changed)


def test_table_that_nobody_described_is_in_no_backup() -> None:
    """CN-151: one made after the tables were described could not be restored, and nothing said so."""
    made = {**MANIFEST, "schema": {"fieldring.points": "CREATE", "fieldring.new": "CREATE"}}
    assert "the columns of fieldring.new are not known" in incomplete(made)


def test_schema_that_changed_after_every_node_had_read_it() -> None:
    """CN-151: all nodes agree, on a version that is not the one the tables were described in."""
    assert "2 versions" in incomplete(MANIFEST, schema_version="y")


def test_room_is_asked_for_before_anything_is_fetched() -> None:
    """CN-146, with a tenth to spare."""
    assert "" == backup.no_room(100 << 20, 110 << 20, what="ring1", where="/var")
    assert "CN-146" in backup.no_room(100 << 20, 109 << 20, what="ring1", where="/var")


def test_kept_backups_thin_out_with_age() -> None:
    """The last ones, then one a day, then one a week: the newest of each."""
    names = [f"202611{day:02}T{hour:02}0000Z" for day in range(1, 29) for hour in (1, 13)]
    found = sorted(backup.kept(names, last=2, daily=3, weekly=2))
    assert [
        "20261122T130000Z",
        "20261126T130000Z",
        "20261127T130000Z",
        "20261128T010000Z",
        "20261128T130000Z",
    ] == found


FILES = {"a": {"size": 1, "sha256": "x"}, "b": {"size": 2, "sha256": "y"}}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"a": FILES["a"]}, ["b is missing"]),
        ({**FILES, "c": FILES["a"]}, ["c is in no manifest"]),
        ({**FILES, "b": {"size": 2, "sha256": "z"}}, ["b has another checksum"]),
        ({**FILES, "b": {"size": 1, "sha256": "z"}}, ["b has another size"]),
        (FILES, []),
    ],
)
def test_files_are_compared_with_the_manifest(found: dict[str, Any], says: list[str]) -> None:
    """Whatever differs is named."""
    assert says == backup.damaged(FILES, found)


def test_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    """An SSTable is told by inode, size and time; a changed one is read."""
    (tmp_path / "one").write_text("1")
    known: dict[str, Any] = {}
    first = backup.files_below(tmp_path, known)
    known["one"][2] = "from before"
    assert "from before" == backup.files_below(tmp_path, known)["one"]["sha256"]
    (tmp_path / "two").write_text("1")
    (tmp_path / "two").rename(tmp_path / "one")
    assert first == backup.files_below(tmp_path, known)


def test_schema_of_a_snapshot_loses_its_id() -> None:
    """A table that is made again gets an ID of its own."""
    own = "ID = 10f59790-e91d-11f1-9219-f1f33716e438 AND"
    statement = f"CREATE TABLE a.b (c int PRIMARY KEY) WITH {own} gc_grace_seconds = 5"
    assert "CREATE TABLE a.b (c int PRIMARY KEY) WITH gc_grace_seconds = 5" == " ".join(
        backup.without_id(statement).split()
    )


def repository(folder: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int, **more: Any) -> Any:
    """A repository whose restic says `said` of its configuration and ends with `code`; it notes all calls."""
    program = folder / "restic"
    (folder / "said").write_text(said)
    program.write_text(
        f'#!/bin/sh\necho "$*" >> {folder}/asked\ncase "$*" in\n'
        f"  *'cat config') cat {folder}/said >&2; exit {code} ;;\nesac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return backup.Repository("/srv/backup/main/ring1", password="x", environment={}, options=[], **more)


def made(folder: Path) -> bool:
    """Whether restic was told to make a repository."""
    return any(line.endswith(" init") for line in (folder / "asked").read_text().splitlines())


WHERE = "\nIs there a repository at the following location?\n/srv/backup/main/ring1\n"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (f"Fatal: unable to open config file: stat /srv/x/config: no such file or directory{WHERE}", 1),
        (f"Fatal: unable to open config file: Lstat: file does not exist{WHERE}", 1),
        (f"Fatal: unable to open config file: Stat: The specified key does not exist.{WHERE}", 1),
        ("Fatal: repository does not exist: unable to open config file", 10),
    ],
)
def test_a_repository_is_made_where_there_is_none(
    said: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As restic 0.14 says it of a path, over SSH and of S3, and 0.17 by its exit code."""
    assert repository(tmp_path, monkeypatch, said, code).create()
    assert made(tmp_path)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (f"Fatal: unable to open config file: Stat: Access Denied.{WHERE}", 1),
        (f"Fatal: unable to open config file: Stat: The specified bucket does not exist{WHERE}", 1),
        (f"Fatal: unable to open config file: stat /srv/x/config: permission denied{WHERE}", 1),
        ("subprocess ssh: no such file or directory\nFatal: unable to start the sftp session: EOF\n", 1),
        ("Fatal: wrong password or no key found", 1),
        ("Fatal: unable to open repository: dial tcp: lookup storage: host does not exist", 1),
    ],
)
def test_storage_that_fails_is_no_empty_storage(
    said: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error with restic's words, and nothing is made."""
    with pytest.raises(backup.BackupError, match="restic cat on /srv/backup/main/ring1") as refused:
        repository(tmp_path, monkeypatch, said, code).create()
    assert said.strip().splitlines()[0] in str(refused.value)
    assert not made(tmp_path)


def test_storage_that_does_not_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what restic said until then; it would go on asking."""
    silent = repository(tmp_path, monkeypatch, "", 0)
    (tmp_path / "restic").write_text("#!/bin/sh\necho 'retrying' >&2\nexec sleep 60\n")
    monkeypatch.setattr(backup, "ANSWER_SECONDS", 1)
    with pytest.raises(backup.BackupError, match=r"no answer within 1 s\. retrying"):
        silent.exists()


def test_a_damaged_manifest_hides_no_other_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who restores is told of it; who lets old backups go must not take it for one that is gone."""
    storage = repository(tmp_path, monkeypatch, "", 0)
    names = {"a1": NAME, "b2": "20261102T010000Z"}
    listed = json.dumps([{"id": i, "tags": ["ring", name]} for i, name in names.items()])
    (tmp_path / "restic").write_text(
        f"#!/bin/sh\ncase \"$*\" in\n*snapshots*) echo '{listed}' ;;\n"
        f"*'dump a1'*) echo 'Fatal: ciphertext verification failed' >&2; exit 1 ;;\n"
        f'*) echo \'{{"backup": "20261102T010000Z"}}\' ;;\nesac\n'
    )
    unreadable: dict[str, str] = {}
    assert [{"backup": "20261102T010000Z"}] == storage.ring_manifests(unreadable)
    assert [NAME] == list(unreadable)
    assert f"the ring manifest of {NAME} cannot be read there" in unreadable[NAME]
    with pytest.raises(backup.BackupError, match="ciphertext"):
        storage.ring_manifests()


def test_a_repository_that_vanished_is_not_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CN-152: most likely it is not mounted. The file that remembers it is named, for who means it."""
    said = f"Fatal: unable to open config file: stat /srv/x/config: no such file or directory{WHERE}"
    missing = repository(tmp_path, monkeypatch, said, 1, remembered_in="/data/backup_known.json")
    for ask in (missing.exists, missing.create):
        with pytest.raises(backup.BackupError, match=r"CN-152: .* remove /data/backup_known\.json"):
            ask()
    assert not made(tmp_path)


def test_a_node_remembers_where_it_wrote(tmp_path: Path) -> None:
    """The file of a node that did not name the place yet was written after a backup to the present one."""
    path = tmp_path / "backup_known.json"
    assert {"repositories": [], "files": {}} == backup.remembered(path, "/here")
    path.write_text(json.dumps({"ks/t/a-Data.db": [1, 2, "x"]}))
    assert {"repositories": ["/here"], "files": {"ks/t/a-Data.db": [1, 2, "x"]}} == backup.remembered(
        path, "/here"
    )
    path.write_text(json.dumps({"repositories": ["/there"], "files": {}}))
    assert {"repositories": ["/there"], "files": {}} == backup.remembered(path, "/here")


SCRIPT = """#!/bin/sh
exec /usr/bin/java -XX:+UseSerialGC -Xmx128M \\
  --add-exports java.base/x=ALL-UNNAMED \\
  -cp "/opt/c/conf:/opt/c/lib/*" \\
  org.apache.cassandra.tools.NodeTool -p 7199 "$@"
"""


def test_loader_runs_as_nodetool_does_and_hides_the_password() -> None:
    """Java reads everything from a file, so that the list of processes shows its name only."""
    text = backup.loader_arguments(
        SCRIPT, folder="/x/ks/t", address="192.0.2.1", conf="/etc/c.yaml", user="u", password='p"w\\'
    )
    words = [line[1:-1] for line in text.splitlines()]
    assert "-Xmx128M" not in words
    assert words.index(backup.LOADER) > words.index("/opt/c/conf:/opt/c/lib/*")
    assert 'p\\"w\\\\' in words
    assert "-p" not in words
    assert "/usr/bin/java" == backup.java_of(SCRIPT)


STATE = {"success": {"fieldring": 1000}, "since": {"fieldring": 10, "system_auth": 500}}


def test_repair_leaves_out_what_was_repaired_since() -> None:
    """An interrupted run goes on with the keyspaces that it had not reached."""
    assert ["system_auth"] == repair.due(STATE, ["fieldring", "system_auth"], now=1100, older_than=200)
    assert ["fieldring", "system_auth"] == repair.due(
        STATE, ["fieldring", "system_auth"], now=1100, older_than=0
    )


def test_repair_waits_while_a_replica_is_away() -> None:
    """A node that is down, joining or leaving, or a mode other than NORMAL."""
    bean = dict.fromkeys(("UnreachableNodes", "JoiningNodes", "LeavingNodes", "MovingNodes"), "[]")
    assert [] == repair.hindrances({**bean, "OperationMode": "NORMAL"})
    found = repair.hindrances({**bean, "OperationMode": "JOINING", "UnreachableNodes": "[192.0.2.1]"})
    assert ["the node's mode is JOINING", "192.0.2.1 down"] == found


def test_repair_metric_counts_from_the_schedule_until_the_first_success(tmp_path: Path) -> None:
    """And a keyspace that was dropped is forgotten."""
    text = repair.exported(STATE)
    assert 'fieldring_repair_last_success_seconds{keyspace="fieldring"} 1000\n' in text
    assert 'fieldring_repair_last_success_seconds{keyspace="system_auth"} 500\n' in text
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    keeper = repair.Keeper(tmp_path, tmp_path)
    keeper.know(["fieldring"], 2000)
    keeper.save()
    assert "system_auth" not in (tmp_path / "fieldring_repair.prom").read_text()
