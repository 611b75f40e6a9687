"""What a host says of itself before anything is changed on it: system, disks, ports, peers.

Reads only. Everything that touches the machine's files goes through `Host`, so that tests can show it
a tree of files.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
TLS_FILES = ("ca.pem", "host.pem")


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def parse_assignments(text: str) -> dict[str, str]:
    """`KEY=value` or `key: value` lines at the left margin; values may be quoted."""
    values = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z_]+)(?:=|:\s+)(.+)$", line)
        if match:
            values[match.group(1)] = match.group(2).strip().strip("'\"")
    return values


def parse_sequence(text: str, key: str) -> str | None:
    """The items of a list at the left margin, joined by `, `; None where there is no such key."""
    match = re.search(rf"^{key}:\s*\n((?:\s*- .+\n?)+)", text, re.MULTILINE)
    if not match:
        return None
    return ", ".join(line.strip()[2:].strip().strip("'\"") for line in match.group(1).splitlines())


def parse_listeners(text: str) -> dict[int, str]:
    """{port: inode} of the listening sockets in the text of /proc/net/tcp or tcp6."""
    listeners = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == "0A":
            listeners[int(fields[1].rsplit(":", 1)[1], 16)] = fields[9]
    return listeners


def probe(address: str, ports: Iterable[int], timeout_seconds: float) -> list[int]:
    """The ports of `address` that take a connection."""
    answering = []
    for port in ports:
        try:
            with socket.create_connection((address, port), timeout=timeout_seconds):
                answering.append(port)
        except OSError:
            continue
    return answering


def probe_all(addresses: list[str], ports: list[int], timeout_seconds: float) -> dict[str, list[int]]:
    """{address: answering ports} of those that answer at all."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(addresses))) as pool:
        answers = pool.map(lambda address: probe(address, ports, timeout_seconds), addresses)
        return {address: found for address, found in zip(addresses, answers) if found}  # noqa: B905


class Host:
    """One host under `root`; `root` is other than / in tests only."""

    def __init__(self, root: str = "/") -> None:
        self.root = Path(root)

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def system(self) -> dict[str, Any]:
        release = parse_assignments(read(self.path("/etc/os-release")))
        memory = re.search(r"MemTotal:\s+(\d+)", read(self.path("/proc/meminfo")))
        machine = os.uname().machine
        return {
            "os": f"{release.get('ID', 'unknown')} {release.get('VERSION_ID', '')}".strip(),
            "memory_mib": int(memory.group(1)) // 1024 if memory else 0,
            "architecture": DEBIAN_ARCHITECTURES.get(machine, machine),
        }

    def kernel_memory(self, data_directory: str) -> dict[str, Any]:
        """Huge pages (`always`, `madvise`, `never` or empty), swap in MiB, and the data disk's read-ahead.

        The device is empty and its read-ahead 0 where the kernel shows none, as on an overlay.
        """
        chosen = re.search(r"\[(\w+)\]", read(self.path("/sys/kernel/mm/transparent_hugepage/enabled")))
        swap = re.search(r"SwapTotal:\s+(\d+)", read(self.path("/proc/meminfo")))
        device, read_ahead = self._disk(data_directory)
        return {
            "container": self.path("/run/systemd/container").exists(),
            "transparent_hugepage": chosen.group(1) if chosen else "",
            "swap_mib": int(swap.group(1)) // 1024 if swap else 0,
            "device": device,
            "read_ahead_kib": read_ahead,
        }

    def _disk(self, data_directory: str) -> tuple[str, int]:
        """Name and read-ahead (KiB) of the disk that holds a directory or, before it is made, its parents."""
        place = self.path(data_directory)
        while not place.exists() and place != self.root:
            place = place.parent
        number = place.stat().st_dev
        block = self.path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        if not block.exists():
            return "", 0
        block = block.resolve()
        # A partition has its queue in the folder above, which is its disk.
        disk = block if (block / "queue").is_dir() else block.parent
        size = read(disk / "queue" / "read_ahead_kb").strip()
        return (disk.name, int(size)) if size.isdigit() else ("", 0)

    def data(self, data_directory: str) -> str:
        """`empty` or `used`: whether Cassandra ever wrote an SSTable or a commit log there."""
        for pattern in ("data/**/*-Data.db", "commitlog/*.log"):
            if next(self.path(data_directory).glob(pattern), None):
                return "used"
        return "empty"

    def configured(self, conf_directory: str) -> dict[str, str | None]:
        """The identity in the files on the host, None where there is no such file or key."""
        conf = self.path(conf_directory)
        text = read(conf / "cassandra.yaml")
        settings = parse_assignments(text)
        place = parse_assignments(read(conf / "cassandra-rackdc.properties"))
        return {
            "cluster_name": settings.get("cluster_name"),
            "num_tokens": settings.get("num_tokens"),
            "partitioner": settings.get("partitioner"),
            "endpoint_snitch": settings.get("endpoint_snitch"),
            "data_file_directories": parse_sequence(text, "data_file_directories"),
            "commitlog_directory": settings.get("commitlog_directory"),
            "address": settings.get("listen_address"),
            "dc": place.get("dc"),
            "rack": place.get("rack"),
        }

    def first_start(self, conf_directory: str) -> Any:
        text = read(self.path(conf_directory) / "first_start.json")
        return json.loads(text) if text else None

    def joining(self, conf_directory: str) -> Any:
        """What a change of the ring's members wrote on this host and has not yet finished, None mostly."""
        text = read(self.path(conf_directory) / "joining.json")
        return json.loads(text) if text else None

    def installed(self, home_parent: str) -> list[str]:
        """Versions whose archive was unpacked completely."""
        marks = self.path(home_parent).glob("apache-cassandra-*/.complete")
        return sorted(mark.parent.name.removeprefix("apache-cassandra-") for mark in marks)

    def tls_missing(self, tls_directory: str) -> list[str]:
        return [name for name in TLS_FILES if not (self.path(tls_directory) / name).is_file()]

    def listeners(self) -> dict[int, str]:
        found = parse_listeners(read(self.path("/proc/net/tcp6")))
        found.update(parse_listeners(read(self.path("/proc/net/tcp"))))
        return found

    def owner(self, inode: str) -> tuple[int, str]:
        """(pid, name) of the process that holds the socket."""
        for descriptor in self.path("/proc").glob("[0-9]*/fd/*"):
            try:
                held = str(descriptor.readlink())
            except OSError:
                continue
            if held == f"socket:[{inode}]":
                process = descriptor.parent.parent
                return int(process.name), read(process / "comm").strip()
        return 0, "unknown"

    def port_conflicts(self, ports: list[int], unit_pid: int) -> list[str]:
        """Sentences on the ports that a process other than the unit's holds."""
        listeners = self.listeners()
        conflicts = []
        for port in ports:
            if port in listeners:
                pid, name = self.owner(listeners[port])
                if pid != unit_pid:
                    conflicts.append(f"port {port} is held by {name} (pid {pid})")
        return conflicts


def unit_state(unit: str) -> tuple[bool, int]:
    """(active, main pid) of a systemd unit; inactive where there is no such unit."""
    try:
        shown = subprocess.run(
            ["systemctl", "show", unit, "--property=ActiveState,MainPID"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    except OSError:
        return False, 0
    values = parse_assignments(shown)
    return values.get("ActiveState") in ("active", "activating", "reloading"), int(values.get("MainPID", 0))


def observe(host: Host, params: dict[str, Any]) -> dict[str, Any]:
    """Everything at once, as cassandra_node_state returns it."""
    active, pid = unit_state(params["unit"])
    data = host.data(params["data_directory"])
    # A connection that is closed at once is a line in the peer's log: a node with data asks only when told.
    probing = data == "empty" or params["probe_always"]
    listeners = host.listeners()
    return {
        **host.system(),
        "kernel_memory": host.kernel_memory(params["data_directory"]),
        "data": data,
        "configured": host.configured(params["conf_directory"]),
        "first_start": host.first_start(params["conf_directory"]),
        "joining": host.joining(params["conf_directory"]),
        "cleanup_pending": bool(read(host.path(params["conf_directory"]) / "cleanup-pending")),
        "installed": host.installed(params["home_parent"]),
        "tls_missing": host.tls_missing(params["tls_directory"]),
        "port_conflicts": host.port_conflicts(params["ports"], pid),
        "listening": [port for port in params["peer_ports"] if port in listeners],
        "answering": probe_all(params["peers"], params["peer_ports"], params["timeout_seconds"])
        if probing
        else {},
        "active": active,
    }
