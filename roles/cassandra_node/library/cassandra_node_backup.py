#!/usr/bin/python
"""Entry only; the logic is in module_utils/cassandra_node_backup.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cassandra_node_backup
short_description: Backs one node of a ring up into its own restic repository, and brings files back
description:
  - I(action=list) returns the whole backups of the ring; it changes nothing.
  - I(action=view) returns the node's view of its ring; it changes nothing.
  - I(action=create) takes a snapshot, writes it to the repository and reads it back.
  - I(action=commit) writes the ring manifest, which makes the backup a whole one.
  - I(action=forget) takes away the backups of this node that are older than what is kept.
  - I(action=plan) judges a restore; it changes nothing.
  - I(action=fetch) brings files of one or more nodes back and compares every checksum.
  - I(action=import) lets the running node take the fetched files over.
  - I(action=stream) sends the fetched rows to the nodes that own them in this ring.
  - I(action=clear) takes away what an interrupted run has left.
options:
  action:
    description: What to do
    type: str
    choices: [list, view, create, commit, forget, plan, fetch, import, stream, clear]
    required: true
  repository: {description: The common repository, type: str, required: true}
  password: {description: Key of the repository, type: str, required: true}
  environment: {description: Credentials for the storage, type: dict, default: {}}
  ca: {description: PEM that the storage's certificate is checked with, type: str, default: ''}
  ssh_key: {description: Private key for an SSH target, type: str, default: ''}
  ssh_known_hosts: {description: Its host key, type: str, default: ''}
  ring: {description: Name of the ring that is backed up, type: str, required: true}
  node: {description: Name of this node, type: str, required: true}
  nodes: {description: Names of the nodes whose repositories are read, type: list, elements: str, default: []}
  name: {description: Name of the backup, type: str, default: ''}
  keyspaces: {description: Keyspaces; all but the system's when empty, type: list, elements: str, default: []}
  tables: {description: Tables to bring back, type: list, elements: str, default: []}
  manifest: {description: The ring manifest, type: dict, default: {}}
  keep: {description: 'How many backups stay: {last, daily, weekly}', type: dict, default: {}}
  whole: {description: Names of the backups that every node has, type: list, elements: str, default: []}
  question: {description: What action=plan judges, type: dict, default: {}}
  read_percent: {description: Share of the repository that is read back, type: int, default: 100}
  limit_kib: {description: Upload limit in KiB/s, type: int, default: 0}
  data_directory: {description: Where Cassandra keeps its data, type: path, required: true}
  nodetool: {description: Path of nodetool, type: path, required: true}
  address: {description: The node's address for the bulk loader, type: str, default: ''}
  conf_file: {description: Path of cassandra.yaml, type: path, default: ''}
  superuser: {description: The ring's superuser, type: str, default: ''}
  superuser_password: {description: Its password, type: str, default: ''}
author: Fieldring
"""
RETURN = r"""
backups: {description: Whole backups by name, returned: list, type: dict}
begun: {description: What this node has noted of a restore that did not end, returned: list, type: dict}
keyspaces: {description: Those that can be backed up, returned: view, type: list, elements: str}
view: {description: The node's view of its ring, returned: view, type: dict}
verdict: {description: What a restore would do, or its refusals by ID, returned: plan, type: dict}
node_manifest: {description: What the ring manifest says of this node, returned: create, type: dict}
summary: {description: Figures for the report, returned: always, type: dict}
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cassandra_node_backup import (
    SNAPSHOT,
    VERSION,
    BackupError,
    Repository,
    clear,
    damaged,
    files_below,
    held_by_all,
    incomplete,
    java_of,
    kept,
    link_snapshots,
    loader_arguments,
    location,
    no_room,
    nodetool,
    own_keyspaces,
    remembered,
    restore_verdict,
    sha256,
    ssh_words,
    whole_backups,
)
from ansible.module_utils.cassandra_node_s3 import ask_storage
from ansible.module_utils.cassandra_node_view import ViewError, ask

# Not secret, and often a word that a manifest holds too: Ansible would black it out there, and a restore
# would look for tables and nodes by the wrong names.
PUBLIC = ("AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE")


class Node:
    """One call of the module."""

    def __init__(self, params, options, ca_file):
        self.params = params
        self.options = options
        self.ca_file = ca_file
        self.environment = {key: str(value) for key, value in params["environment"].items()}
        self.data = Path(params["data_directory"])
        # Beside the data, on the same disk: hard links, and files that are moved rather than copied.
        self.staging = self.data / "backup"
        self.fetched = self.data / "restore"
        self.known_file = self.data / "backup_known.json"
        self.begun_file = self.data / "restore_begun.json"
        self.own = location(params["repository"], params["ring"], params["node"])

    def repository(self, node=None):
        url = location(self.params["repository"], self.params["ring"], node or self.params["node"])
        known = url in remembered(self.known_file, self.own)["repositories"]
        return Repository(
            url,
            password=self.params["password"],
            environment=self.environment,
            options=self.options,
            remembered_in=str(self.known_file) if known else "",
        )

    def judge_storage(self):
        """Before restic, which would make a bucket that is not there."""
        if self.own.startswith("s3:"):
            said = ask_storage(self.own, environment=self.environment, ca_file=self.ca_file)
            if said:
                raise BackupError(said)

    def list(self):
        """One damaged manifest must not hide the other backups; each node's repository has a copy of all."""
        self.judge_storage()
        manifests, held, warnings = [], {}, []
        # A check run does not install restic: what the storage has is then seen by the first real one.
        nodes = [*self.params["nodes"]] if shutil.which("restic") else []
        while nodes:
            node = nodes.pop(0)
            repository = self.repository(node)
            here, unreadable = [], {}
            try:
                if repository.exists():
                    here = repository.ring_manifests(unreadable)
            except BackupError as error:
                # That of a node which has left the ring must not stand in the way of those that are there.
                if node in self.params["nodes"]:
                    raise
                warnings.append(f"no backup that names {node} is counted: {error}")
            manifests += here
            held[node] = {manifest["backup"] for manifest in here} | set(unreadable)
            warnings += unreadable.values()
            named = {name for manifest in whole_backups(here).values() for name in manifest["nodes"]}
            nodes += sorted(named - set(held) - set(nodes))
        return {
            "backups": held_by_all(whole_backups(manifests), held),
            "begun": json.loads(self.begun_file.read_text()) if self.begun_file.exists() else {},
            "warnings": warnings,
            "changed": False,
        }

    def view(self):
        seen = ask(self.params["nodetool"])
        return {"view": seen, "keyspaces": own_keyspaces(seen["keyspaces"]), "changed": False}

    def create(self):
        clear(self.params["nodetool"], self.staging)
        repository = self.repository()
        self.judge_storage()
        repository.create()
        repository.run("unlock")
        try:
            memory = remembered(self.known_file, self.own)
            known = memory["files"]
            view = ask(self.params["nodetool"])
            wanted = self.params["keyspaces"] or own_keyspaces(view["keyspaces"])
            # One without a table has no folder.
            live = [keyspace for keyspace in wanted if (self.data / "data" / keyspace).is_dir()]
            if not live:
                raise BackupError("there is no keyspace to back up")
            nodetool(self.params["nodetool"], "snapshot", "-t", SNAPSHOT, "--", *live)
            self.staging.mkdir(mode=0o700)
            tables = link_snapshots(self.data / "data", self.staging)
            files = files_below(self.staging / "files", known)
            manifest = {
                "version": VERSION,
                "ring": self.params["ring"],
                "backup": self.params["name"],
                "node": self.params["node"],
                "host_id": view["host_id"],
                "tokens": view["tokens"],
                "cluster_name": view["cluster_name"],
                "cassandra": view["version"],
                "schema_version": view["schema_version"],
                "tables": tables,
                "files": files,
            }
            path = self.staging / "manifest.json"
            path.write_text(json.dumps(manifest, sort_keys=True))
            digest = sha256(path)
            schema = {
                table: (self.staging / "files" / table.replace(".", "/") / "schema.cql").read_text()
                for table in tables
            }
            saved = repository.save_folder(
                self.staging,
                node=self.params["node"],
                name=self.params["name"],
                limit_kib=self.params["limit_kib"],
            )
            # Read back: what the storage holds, and that the manifest in it is this one.
            repository.check(self.params["read_percent"])
            stored = json.loads(repository.run("dump", saved["snapshot_id"], str(path)))
            if stored != manifest:
                raise BackupError(
                    f"the manifest read back from {repository.url} is another than the one written"
                )
            fresh = {
                "repositories": sorted({*memory["repositories"], self.own}),
                "files": {name: known[name] for name in files},
            }
            self.known_file.write_text(json.dumps(fresh))
            self.known_file.chmod(0o600)
        finally:
            clear(self.params["nodetool"], self.staging)
        return {
            "changed": True,
            "node_manifest": {
                **{
                    key: manifest[key]
                    for key in ("host_id", "tokens", "cassandra", "schema_version", "tables")
                },
                "snapshot": saved["snapshot_id"],
                "manifest_sha256": digest,
                "bytes": sum(file["size"] for file in files.values()),
            },
            "schema": schema,
            "summary": {
                "files": len(files),
                "bytes": sum(file["size"] for file in files.values()),
                "bytes_added": saved["data_added"],
            },
        }

    def commit(self):
        # Once more: it was read before the snapshots, and the tables were described after them.
        now = ask(self.params["nodetool"])["schema_version"]
        if said := incomplete(self.params["manifest"], self.params["nodes"], schema_version=now):
            raise BackupError(said)
        repository = self.repository()
        if repository.ring_manifest(self.params["name"]) == self.params["manifest"]:
            return {"changed": False}
        repository.save_ring_manifest(self.params["manifest"], node=self.params["node"])
        return {"changed": True}

    def forget(self):
        repository = self.repository()
        keep = {key: int(value) for key, value in self.params["keep"].items()}
        own = whole_backups(repository.ring_manifests())
        whole = set(own) & set(self.params["whole"])
        # One whose manifest did not reach every node must take the place of none that is whole.
        names = kept(own, **keep) | kept(whole, **keep)
        gone = repository.forget_all_but(names)
        return {"changed": bool(gone), "summary": {"forgotten": gone, "kept": sorted(names & whole)}}

    def plan(self):
        return {"changed": False, "verdict": restore_verdict(self.params["question"])}

    def fetch(self):
        """Into restore/<node>/<keyspace>/<table>/, as Cassandra's tools tell the table by its folder.

        What is not whole there is not there at all.
        """
        shutil.rmtree(self.fetched, ignore_errors=True)
        nodes = {node: self.params["manifest"]["nodes"][node] for node in self.params["nodes"]}
        asked = {node: self.wanted(node, entry) for node, entry in nodes.items()}
        needed = sum(file["size"] for _, wanted in asked.values() for file in wanted.values())
        said = no_room(needed, shutil.disk_usage(self.data).free, what=", ".join(nodes), where=str(self.data))
        if said:
            raise BackupError(said)
        # Also on a node that has nothing to bring back, as some of a ring that has grown.
        self.fetched.mkdir(exist_ok=True)
        base = self.staging / "files"
        for node, entry in nodes.items():
            repository = self.repository(node)
            folders, wanted = asked[node]
            work = self.fetched / "work"
            work.mkdir(mode=0o700)
            if folders:
                try:
                    repository.restore(
                        entry["snapshot"], work, includes=[str(base / folder) for folder in folders]
                    )
                except BackupError as error:
                    raise unreadable(node, error) from error
            restored = work / str(base).lstrip("/")
            faults = damaged(wanted, files_below(restored) if restored.is_dir() else {})
            if faults:
                raise BackupError(
                    f"CN-144: of the files of {node} in {repository.url}: {'; '.join(faults[:5])}. Nothing "
                    "was changed. Take another backup."
                )
            for folder in folders:
                target = self.fetched / node / folder
                target.parent.mkdir(parents=True, exist_ok=True)
                (restored / folder).rename(target)
            shutil.rmtree(work)
        owner = self.data.stat()
        for path in (self.fetched, *self.fetched.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        count = sum(len(wanted) for _, wanted in asked.values())
        return {"changed": True, "summary": {"files": count, "bytes": needed}}

    def wanted(self, node, entry):
        """Of the tables that are asked for: their folders and files in the backup of a node."""
        repository = self.repository(node)
        try:
            text = repository.run("dump", entry["snapshot"], str(self.staging / "manifest.json"))
        except BackupError as error:
            raise unreadable(node, error) from error
        if hashlib.sha256(text.encode()).hexdigest() != entry["manifest_sha256"]:
            raise BackupError(
                f"CN-144: the manifest of {node} in {repository.url} is not the one that the ring's "
                "manifest names. Nothing was changed. Take another backup."
            )
        manifest = json.loads(text)
        folders = [table.replace(".", "/") for table in self.params["tables"] if table in manifest["tables"]]
        return folders, {
            path: file
            for path, file in manifest["files"].items()
            if any(path.startswith(f"{folder}/") for folder in folders)
        }

    def folders(self):
        """(keyspace, table, folder) of what was fetched and holds rows."""
        for table in self.params["tables"]:
            keyspace, name = table.split(".")
            for folder in sorted(self.fetched.glob(f"*/{keyspace}/{name}")):
                if any(path.name.endswith("-Data.db") for path in folder.iterdir()):
                    yield keyspace, name, folder

    def import_(self):
        """The node checks each SSTable and renames it into its place; a folder that is empty then is done."""
        done = []
        for keyspace, name, folder in self.folders():
            # Not by copying: the files are on the node's own disk. Those from before a cleanup hold rows that
            # the node does not own, for which it would take none of the folder, after the table was emptied.
            nodetool(self.params["nodetool"], "import", "--no-tokens", keyspace, name, str(folder))
            left = [path.name for path in folder.iterdir() if path.name.endswith("-Data.db")]
            if left:
                raise BackupError(
                    f"nodetool import left {', '.join(left[:3])} of {folder} behind: see system.log"
                )
            done.append(f"{keyspace}.{name}")
        shutil.rmtree(self.fetched, ignore_errors=True)
        return {"changed": bool(done), "summary": {"tables": sorted(set(done))}}

    def stream(self):
        """Every row to the nodes that own it in this ring, which may be of any size."""
        script = Path(self.params["nodetool"]).read_text()
        done = []
        for keyspace, name, folder in self.folders():
            arguments = self.fetched / "loader.args"
            arguments.touch(mode=0o600)
            arguments.write_text(
                loader_arguments(
                    script,
                    folder=str(folder),
                    address=self.params["address"],
                    conf=self.params["conf_file"],
                    user=self.params["superuser"],
                    password=self.params["superuser_password"],
                )
            )
            ran = subprocess.run(
                [java_of(script), f"@{arguments}"], capture_output=True, text=True, check=False
            )
            arguments.unlink()
            if ran.returncode:
                said = (ran.stdout + ran.stderr).replace(self.params["superuser_password"], "***").strip()
                raise BackupError(f"sstableloader of {folder}: {said[-600:]}")
            done.append(f"{keyspace}.{name}")
        shutil.rmtree(self.fetched, ignore_errors=True)
        return {"changed": bool(done), "summary": {"tables": sorted(set(done))}}

    def clear(self):
        present = self.staging.exists() or self.fetched.exists()
        clear(self.params["nodetool"], self.staging, self.fetched)
        return {"changed": present}


def unreadable(node, error):
    return BackupError(
        f"CN-144: the backup of {node} cannot be read ({error}). Nothing was changed. Take another backup."
    )


def main():
    module = AnsibleModule(
        argument_spec={
            "action": {
                "type": "str",
                "required": True,
                "choices": [
                    "list",
                    "view",
                    "create",
                    "commit",
                    "forget",
                    "plan",
                    "fetch",
                    "import",
                    "stream",
                    "clear",
                ],
            },
            "repository": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "environment": {"type": "dict", "default": {}, "no_log": True},
            "ca": {"type": "str", "default": ""},
            "ssh_key": {"type": "str", "default": "", "no_log": True},
            "ssh_known_hosts": {"type": "str", "default": ""},
            "ring": {"type": "str", "required": True},
            "node": {"type": "str", "required": True},
            "nodes": {"type": "list", "elements": "str", "default": []},
            "name": {"type": "str", "default": ""},
            "keyspaces": {"type": "list", "elements": "str", "default": []},
            "tables": {"type": "list", "elements": "str", "default": []},
            "manifest": {"type": "dict", "default": {}},
            "keep": {"type": "dict", "default": {}},
            "whole": {"type": "list", "elements": "str", "default": []},
            "question": {"type": "dict", "default": {}},
            "read_percent": {"type": "int", "default": 100},
            "limit_kib": {"type": "int", "default": 0},
            "data_directory": {"type": "path", "required": True},
            "nodetool": {"type": "path", "required": True},
            "address": {"type": "str", "default": ""},
            "conf_file": {"type": "path", "default": ""},
            "superuser": {"type": "str", "default": ""},
            "superuser_password": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    given = {key: str(value) for key, value in params["environment"].items()}
    public = {given[key] for key in PUBLIC if key in given}
    module.no_log_values -= public - {value for key, value in given.items() if key not in PUBLIC}
    if module.check_mode and params["action"] not in ("list", "view", "plan"):
        module.exit_json(changed=True, summary={}, skipped=True)
    if params["action"] not in ("list", "view") and not shutil.which("restic"):
        module.fail_json(
            msg="restic is not on this host yet, so no backup can be looked at: a run without --check "
            "installs it"
        )
    with tempfile.TemporaryDirectory(prefix="fieldring-backup-") as secrets:
        options = []
        if params["repository"].startswith("sftp:"):
            key, hosts = Path(secrets, "key"), Path(secrets, "known_hosts")
            for path, text in ((key, params["ssh_key"]), (hosts, params["ssh_known_hosts"])):
                path.touch(mode=0o600)
                path.write_text(text.rstrip("\n") + "\n")
            target = " ".join(ssh_words(params["repository"]))
            options = [
                "-o",
                f"sftp.command=ssh -i {key} -o UserKnownHostsFile={hosts} -o StrictHostKeyChecking=yes "
                f"-o BatchMode=yes -o ServerAliveInterval=30 {target} -s sftp",
            ]
        ca_file = ""
        if params["ca"]:
            authority = Path(secrets, "ca.pem")
            authority.write_text(params["ca"].rstrip("\n") + "\n")
            ca_file = str(authority)
            options += ["--cacert", ca_file]
        node = Node(params, options, ca_file)
        action = {"import": "import_"}.get(params["action"], params["action"])
        try:
            result = getattr(node, action)()
        except (BackupError, ViewError, OSError) as error:
            module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
