"""Backups of one node: its files with their checksums in a restic repository of its own, and the way back.

A backup of a ring is whole when a ring manifest names it in the repository of each of its nodes: that is
written last, after the files of every node were read back from there. What a run that failed has left is no
backup, and is removed by those that are whole.

The functions above `Repository` are pure.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

VERSION = 1
SNAPSHOT = "fieldring-backup"
NODETOOL = "org.apache.cassandra.tools.NodeTool"
LOADER = "org.apache.cassandra.tools.BulkLoader"
NAME = re.compile(r"^[0-9]{8}T[0-9]{6}Z$")
BLOCK = 1 << 20
# Of Cassandra 5.0, and of 5.1. A user's own may begin with the same word.
SYSTEM_KEYSPACES = frozenset(
    [
        "system",
        "system_auth",
        "system_cluster_metadata",
        "system_distributed",
        "system_schema",
        "system_traces",
        "system_views",
        "system_virtual_schema",
    ]
)
# Storage that does not answer is an error soon: restic itself asks again for a quarter of an hour.
ANSWER_SECONDS = 120
# Exit code of restic 0.17 and later; the words of those before, for a path, SSH and S3. What it adds to every
# such failure ("Is there a repository at ...?") says nothing.
NO_REPOSITORY = 10
ABSENT = re.compile(
    r"unable to open config file: (?:stat .*: no such file or directory|Lstat: file does not exist"
    r"|Stat: The specified key does not exist\.?)$",
    re.MULTILINE,
)


class BackupError(Exception):
    """What was asked for cannot or must not be done."""


class ResticError(BackupError):
    """What restic said when it failed, and its exit code."""

    def __init__(self, message: str, *, code: int, said: str) -> None:
        super().__init__(message)
        self.code = code
        self.said = said


def own_keyspaces(live: Iterable[str]) -> list[str]:
    """Every keyspace but the system's, whose accounts, grants and replication come from the inventory."""
    return sorted(set(live) - SYSTEM_KEYSPACES)


def table_of(directory: str) -> str:
    """`readings` of `readings-0a1b...`, the directory of a table."""
    return re.sub(r"-[0-9a-f]{32}$", "", directory)


def topology_changes(node_manifests: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Why a backup of `node_manifests` ({node: {host_id, tokens, ...}}) does not fit the ring of now."""
    changes = [f"{name} is gone" for name in sorted(set(node_manifests) - set(now))]
    changes += [f"{name} is new" for name in sorted(set(now) - set(node_manifests))]
    for name in sorted(set(now) & set(node_manifests)):
        then, is_now = node_manifests[name], now[name]
        if sorted(then["tokens"]) != sorted(is_now["tokens"]):
            changes.append(f"{name} holds other tokens")
        if then["host_id"] != is_now["host_id"]:
            changes.append(f"{name} was host ID {then['host_id']} and is {is_now['host_id']}")
    return changes


def whole_backups(manifests: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{name: ring manifest}, oldest first; a manifest of another format is left out."""
    found = {m["backup"]: m for m in manifests if m.get("version") == VERSION and NAME.match(m["backup"])}
    return dict(sorted(found.items()))


def held_by_all(backups: dict[str, dict[str, Any]], held: dict[str, set[str]]) -> dict[str, dict[str, Any]]:
    """Those of `backups` whose manifest is in the repository of every node they name ({node: names}).

    A node without it lets go of that backup's files when the next one is whole.
    """
    return {
        name: manifest
        for name, manifest in backups.items()
        if all(name in held.get(node, set()) for node in manifest["nodes"])
    }


def kept(names: Iterable[str], *, last: int, daily: int, weekly: int) -> set[str]:
    """Which backups stay: the last ones, and the newest of each of the last days and weeks that have one."""
    newest_first = sorted(names, reverse=True)
    keep = set(newest_first[:last])
    for count, period in ((daily, _day), (weekly, _week)):
        seen: list[Any] = []
        for name in newest_first:
            if len(seen) < count and period(name) not in seen:
                seen.append(period(name))
                keep.add(name)
    return keep


def _day(name: str) -> str:
    return name[:8]


def _week(name: str) -> tuple[int, int]:
    from datetime import date

    return date(int(name[:4]), int(name[4:6]), int(name[6:8])).isocalendar()[:2]


def chosen_tables(available: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The tables to restore: `keyspace.table` or a `keyspace`; all of the backup where none is named."""
    names = sorted(available)
    asked = list(wanted)
    unknown = [
        want for want in asked if want not in names and not any(n.startswith(f"{want}.") for n in names)
    ]
    if unknown:
        raise BackupError(
            f"CN-143: the backup has no {', '.join(unknown)}. It has: {', '.join(names) or 'no table'}."
        )
    return [n for n in names if not asked or n in asked or n.split(".")[0] in asked]


def column_conflicts(
    then: dict[str, list[str]], now: dict[str, list[str]], *, dropped: dict[str, str], since: str
) -> list[str]:
    """Columns of one table ({column: [type, kind]}) whose type or place in the key has changed, or gone.

    `dropped` is {column: when}, spelt as the names of backups. What was written to a column before it was
    dropped stays hidden, also when there is one of that name again.
    """
    conflicts = []
    for column in sorted(then):
        if column not in now:
            conflicts.append(f"{column} is not there any more")
        elif then[column] != now[column]:
            conflicts.append(f"{column} was {' '.join(then[column])} and is {' '.join(now[column])}")
        elif dropped.get(column, "") >= since:
            conflicts.append(f"{column} was dropped and made again")
    return conflicts


def restore_verdict(question: dict[str, Any]) -> dict[str, Any]:
    """What a restore would do, or its refusals by ID.

    `question`: backups ({name: ring manifest}), name (or `latest`), ring (this one), from_ring, wanted
    (tables), nodes ({name: {host_id, tokens}} of now), columns, dropped and keyspaces (of now), confirm,
    begun (what the nodes have noted of restores that did not end).
    """
    refusals: dict[str, str] = {}
    verdict: dict[str, Any] = {"refusals": refusals, "tables": [], "missing": [], "sources": {}}
    backups, name = question["backups"], question["name"]
    if name == "latest" and backups:
        name = max(backups)
    if name not in backups:
        refusals["CN-142"] = (
            f"no whole backup {name or '(none was named)'} of the ring {question['from_ring']}. There "
            f"are: {', '.join(sorted(backups, reverse=True)[:10]) or 'none'}. A run that failed is none. "
            "Name one with -e restore_cassandra_backup=NAME (or latest)."
        )
        return verdict
    manifest = backups[name]
    in_place = question["ring"] == question["from_ring"] and not question.get("stream")
    verdict.update(name=name, manifest=manifest, in_place=in_place)
    try:
        verdict["tables"] = chosen_tables(manifest["columns"], question["wanted"])
    except BackupError as error:
        refusals["CN-143"] = str(error).removeprefix("CN-143: ")
        return verdict
    note = {
        "backup": name,
        "ring": question["from_ring"],
        "tables": verdict["tables"],
        "in_place": in_place,
    }
    begun = [held for held in question["begun"] if note.items() <= held.items()]
    made = {table for held in begun for table in held["missing"]}
    now = question["nodes"]
    changes = topology_changes(manifest["nodes"], now)
    if in_place and changes:
        refusals["CN-145"] = (
            f"the ring has changed since {name}: {'; '.join(changes)}. A node's files would hold rows that "
            "it does not own now, and miss rows that it does. Restore it as another ring's: add "
            "-e restore_cassandra_stream=true, which sends every row to the nodes that own it today."
        )
    keyspaces = {table.split(".")[0] for table in verdict["tables"]}
    gone = sorted(keyspaces - set(question["keyspaces"]))
    if gone:
        refusals["CN-150"] = (
            f"this ring has no keyspace {', '.join(gone)}. Its replication is the inventory's to say: add it "
            "to cassandra_node_keyspaces, run playbooks/deploy_cassandra.yml, then restore."
        )
    # Also those that an interrupted run may have made without their indexes.
    verdict["missing"] = sorted((set(verdict["tables"]) - set(question["columns"])) | made)
    verdict.update(note={**note, "missing": verdict["missing"]}, repeated=bool(begun))
    conflicts = [
        f"{table}: {conflict}"
        for table in verdict["tables"]
        if table in question["columns"]
        for conflict in column_conflicts(
            manifest["columns"][table],
            question["columns"][table],
            dropped=question["dropped"].get(table, {}),
            since=name,
        )
    ]
    if conflicts:
        refusals["CN-149"] = (
            f"tables have changed since {name}: {'; '.join(conflicts)}. The files would be read wrongly or "
            "in part. Drop such a table first (its snapshot stays), and it is made as it was then, without "
            "what was added to it since; or restore into another ring, and copy from there what is wanted."
        )
    if question["confirm"] != name:
        refusals["CN-147"] = (
            f"restoring replaces what {', '.join(verdict['tables'])} hold now by what they held at {name}. "
            f"If that is what you want, add -e restore_cassandra_confirm={name}; --check shows the plan."
        )
    nodes = sorted(now)
    if in_place:
        verdict["sources"] = {node: [node] for node in nodes}
    else:
        sources = sorted(manifest["nodes"])
        verdict["sources"] = {node: sources[i :: len(nodes)] for i, node in enumerate(nodes)}
    return verdict


def without_id(statement: str) -> str:
    """The statement of a snapshot's schema.cql, free of the ID that the table had: a new one gets its own."""
    return re.sub(
        r"\bWITH\s+ID\s*=\s*[0-9a-fA-F-]{36}\s*(AND\b)?", lambda m: "WITH" if m.group(1) else "", statement
    )


def repeatable(statement: str) -> str:
    """A statement of schema.cql that may have been executed already; those that create say so themselves."""
    return re.sub(
        r"^(ALTER\s+TABLE\s+\S+\s+)(DROP|ADD)\s+(?!IF\b)",
        lambda m: f"{m[1]}{m[2]} IF {'EXISTS' if m[2] == 'DROP' else 'NOT EXISTS'} ",
        statement,
    )


def incomplete(manifest: dict[str, Any], expected: list[str], *, schema_version: str) -> str:
    """Why this is no backup of the whole ring, whose schema now is of that version; "" when it is one."""
    missing = sorted(set(expected) - set(manifest["nodes"]))
    versions = {schema_version, *(entry["schema_version"] for entry in manifest["nodes"].values())}
    unknown = sorted(set(manifest["schema"]) - set(manifest["columns"]))
    if not missing and not unknown and len(versions) == 1:
        return ""
    found = [f"{', '.join(missing)} wrote no files"] if missing else []
    found += [f"the schema changed meanwhile ({len(versions)} versions)"] if len(versions) > 1 else []
    found += [f"the columns of {', '.join(unknown)} are not known"] if unknown else []
    return (
        f"CN-151: {'; '.join(found)}. This is no backup, and the ones before it stay. Run it again when "
        "every node is up and nobody changes the schema."
    )


def no_room(needed: int, free: int, *, what: str, where: str) -> str:
    """Why the files cannot be brought back; "" when they can."""
    if free * 10 >= needed * 11:
        return ""
    return (
        f"CN-146: what is wanted of the backup of {what} needs {needed >> 20} MiB and a tenth on the disk of "
        f"{where}, {free >> 20} MiB are free. Nothing was changed. Free some room, or restore table by table."
    )


def damaged(files: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> list[str]:
    """What differs between the manifest's files ({path: {size, sha256}}) and those that are there."""
    faults = [f"{path} is missing" for path in sorted(set(files) - set(found))]
    faults += [f"{path} is in no manifest" for path in sorted(set(found) - set(files))]
    for path in sorted(set(files) & set(found)):
        if files[path] != found[path]:
            faults.append(
                f"{path} has another {'size' if files[path]['size'] != found[path]['size'] else 'checksum'}"
            )
    return faults


def location(repository: str, ring: str, node: str) -> str:
    """The node's own repository below the common one."""
    return f"{repository.rstrip('/')}/{ring}/{node}"


def ssh_words(repository: str) -> list[str]:
    """Whom ssh is to reach for sftp:user@host:/path or sftp://user@[2001:db8::5]:22//path."""
    if not repository.startswith("sftp://"):
        return [repository.removeprefix("sftp:").split(":")[0]]
    url = urlsplit(repository)
    return [*(["-p", str(url.port)] if url.port else []), "-l", url.username or "", url.hostname or ""]


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def remembered(path: Path, url: str) -> dict[str, Any]:
    """What a node keeps between its backups: where it wrote them, and what it knows of files."""
    if not path.is_file():
        return {"repositories": [], "files": {}}
    held = json.loads(path.read_text())
    # Before it named them, it was written after a backup only.
    return held if "repositories" in held else {"repositories": [url], "files": held}


def files_below(folder: Path, known: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """{relative path: {size, sha256}}.

    `known` spares reading what was read before: {path: [inode, mtime, sha256]}.
    An SSTable is never changed after it was written, so inode, size and time tell it.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat, name = path.stat(), str(path.relative_to(folder))
        before = (known or {}).get(name)
        same = before is not None and before[:2] == [stat.st_ino, stat.st_mtime_ns]
        digest = before[2] if same and before is not None else sha256(path)
        found[name] = {"size": stat.st_size, "sha256": digest}
        if known is not None:
            known[name] = [stat.st_ino, stat.st_mtime_ns, digest]
    return found


def link_snapshots(data: Path, staging: Path) -> list[str]:
    """Hard links of the snapshot's files as staging/files/<keyspace>/<table>/..., and the tables' names.

    The paths are the same in every backup, so that restic reads only what is new.
    """
    tables = []
    for snapshot in sorted(data.glob(f"*/*/snapshots/{SNAPSHOT}")):
        keyspace, table = snapshot.parts[-4], table_of(snapshot.parts[-3])
        target = staging / "files" / keyspace / table
        target.mkdir(parents=True, exist_ok=True)
        for path in snapshot.iterdir():
            # Secondary indexes are folders; they are built anew when the rows are imported.
            if path.is_file() and path.name != "manifest.json":
                os.link(path, target / path.name)
        tables.append(f"{keyspace}.{table}")
    return tables


class Repository:
    """One restic repository. Secrets go by the environment of the process, never by its arguments.

    `remembered_in` is the file that says so where this node has written to it before, else "".
    """

    def __init__(
        self,
        url: str,
        *,
        password: str,
        environment: dict[str, str],
        options: list[str],
        remembered_in: str = "",
    ) -> None:
        self.url = url
        self.remembered_in = remembered_in
        self.options = options
        self.environment = {
            **os.environ,
            **environment,
            "RESTIC_PASSWORD": password,
            "RESTIC_REPOSITORY": url,
        }

    def run(self, *arguments: str, input_text: str | None = None, timeout: int | None = None) -> str:
        """What restic prints.

        Raises:
            ResticError: it failed, with its exit code and words.
            BackupError: it gave no answer within `timeout` seconds.
        """
        try:
            done = subprocess.run(
                [
                    "restic",
                    "--quiet",
                    "--cache-dir",
                    "/var/cache/fieldring-backup",
                    *self.options,
                    *arguments,
                ],
                env=self.environment,
                input=input_text,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            said = (error.stderr or b"").decode(errors="replace").strip()
            raise BackupError(
                f"restic {arguments[0]} on {self.url}: no answer within {timeout} s. {said[-600:]}"
            ) from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            message = f"restic {arguments[0]} on {self.url}: {' | '.join(said.splitlines()[-4:])[-600:]}"
            raise ResticError(message, code=done.returncode, said=said)
        return done.stdout

    def exists(self) -> bool:
        """Only restic's own word for it means that there is none: storage that fails is an error."""
        try:
            self.run("cat", "config", timeout=ANSWER_SECONDS)
        except ResticError as error:
            if error.code != NO_REPOSITORY and not ABSENT.search(error.said):
                raise
            if self.remembered_in:
                raise BackupError(
                    f"CN-152: there is no repository at {self.url}, but this node has written backups there. "
                    "Is the storage mounted, and the right one? Nothing was changed. If those backups were "
                    f"given up on purpose, remove {self.remembered_in} on the node: then a new one is made."
                ) from error
            return False
        return True

    def create(self) -> bool:
        """Whether there was none and one was made."""
        if self.exists():
            return False
        self.run("init")
        return True

    def snapshots(self, tag: str) -> list[dict[str, Any]]:
        """restic's own description of each snapshot with these tags (`a,b`: with both), oldest first."""
        return json.loads(self.run("--no-lock", "snapshots", "--json", "--tag", tag) or "[]") or []

    def save_folder(self, folder: Path, *, node: str, name: str, limit_kib: int) -> dict[str, Any]:
        """restic's summary of what it has written, at `limit_kib` KiB/s at most (0: no limit)."""
        limit = ["--limit-upload", str(limit_kib)] if limit_kib else []
        printed = self.run(
            "backup", str(folder), "--host", node, "--tag", f"node,{name}", "--ignore-ctime", "--json", *limit
        )
        lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
        return next(line for line in lines if line.get("message_type") == "summary")

    def save_ring_manifest(self, manifest: dict[str, Any], *, node: str) -> None:
        """Write it, and read it back: it is what makes a backup a whole one."""
        name = manifest["backup"]
        text = json.dumps(manifest, sort_keys=True)
        self.run(
            "backup", "--stdin", "--stdin-filename", "ring.json", "--host", node, "--tag", f"ring,{name}",
            input_text=text,
        )  # fmt: skip
        if self.ring_manifest(name) != manifest:
            raise BackupError(f"the ring manifest of {name} read back from {self.url} is another")

    def ring_manifest(self, name: str) -> dict[str, Any] | None:
        """That of a backup; None where this repository has none of that name."""
        found = self.snapshots(f"ring,{name}")
        if not found:
            return None
        return dict(json.loads(self.run("--no-lock", "dump", str(found[-1]["id"]), "/ring.json")))

    def ring_manifests(self, unreadable: dict[str, str] | None = None) -> list[dict[str, Any]]:
        """All of them; `unreadable` takes those that would be an error else: {name: what is to be said}."""
        found = {next(t for t in s["tags"] if t != "ring"): s["id"] for s in self.snapshots("ring")}
        manifests = []
        for name, identifier in found.items():
            try:
                manifests.append(dict(json.loads(self.run("--no-lock", "dump", identifier, "/ring.json"))))
            except ResticError as error:
                if unreadable is None:
                    raise
                unreadable[name] = f"the ring manifest of {name} cannot be read there: {error}"
        return manifests

    def check(self, percent: int) -> None:
        """Packs are there and hold what their names, which are checksums, say."""
        self.run(
            "check",
            *(["--read-data"] if percent >= 100 else [f"--read-data-subset={percent}%"] if percent else []),
        )

    def forget_all_but(self, names: set[str]) -> list[str]:
        """Take away every snapshot of every other name; the names."""
        gone: dict[str, list[str]] = {}
        for snapshot in self.snapshots("node") + self.snapshots("ring"):
            name = next((t for t in snapshot["tags"] or [] if NAME.match(t)), "")
            if name and name not in names:
                gone.setdefault(name, []).append(snapshot["id"])
        if gone:
            self.run("forget", "--prune", *sorted(i for ids in gone.values() for i in ids))
        return sorted(gone)

    def restore(self, snapshot: str, target: Path, *, includes: list[str]) -> None:
        """Bring those paths of a snapshot back below `target`."""
        arguments = [part for path in includes for part in ("--include", path)]
        self.run("restore", snapshot, "--target", str(target), *arguments)


def nodetool(command: str, *arguments: str) -> str:
    """What it prints; BackupError with its words where it fails."""
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackupError(f"nodetool {arguments[0]}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


def loader_arguments(
    nodetool_script: str, *, folder: str, address: str, conf: str, user: str, password: str
) -> str:
    """A file of arguments for java that runs the bulk loader, from how the node's own nodetool is run.

    A file, because a password must not stand in the list of processes.
    """
    command = nodetool_script[nodetool_script.index("exec ") :].replace("\\\n", " ")
    words = shlex.split(command)[2:]
    options = words[: words.index(NODETOOL)]
    heap = [word for word in options if not word.startswith("-Xmx")] + ["-Xmx512M"]
    classpath = heap.index("-cp")
    heap[classpath:classpath] = [f"-Dcassandra.config=file://{conf}"]
    arguments = [
        *heap,
        LOADER,
        "-d",
        address,
        "-f",
        conf,
        "-u",
        user,
        "-pw",
        password,
        "--no-progress",
        folder,
    ]
    return "".join('"{}"\n'.format(a.replace("\\", "\\\\").replace('"', '\\"')) for a in arguments)


def java_of(nodetool_script: str) -> str:
    return shlex.split(nodetool_script[nodetool_script.index("exec ") :].splitlines()[0].rstrip("\\"))[1]


def clear(command: str, *folders: Path) -> None:
    """What an interrupted run has left: the snapshot and the links to it."""
    nodetool(command, "clearsnapshot", "-t", SNAPSHOT)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
