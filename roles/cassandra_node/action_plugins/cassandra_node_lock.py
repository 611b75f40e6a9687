"""Takes, gives back or only looks at the lock of a ring: a file beside the record, on the controller.

One run at a time changes a ring. A lock says who holds it, for what, since when and until when, and by
which process; a lock whose process has ended was left by a run that was interrupted.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

_FOR_EVER = 253_402_300_799  # the end of the year 9999


def process_start(pid: int) -> str:
    """When the process began, as its kernel counts; "" where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def is_running(lock: dict[str, Any]) -> bool:
    """Whether the process of the lock still runs on this controller."""
    try:
        os.kill(int(lock["pid"]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, KeyError, ValueError):
        return True
    return not lock.get("started") or lock["started"] == process_start(int(lock["pid"]))


def refusal(
    held: dict[str, Any] | None, wanted: dict[str, Any], *, now: float, take_over: bool, running: bool
) -> str:
    """Why the lock cannot be had; "" where it can. `running`: whether the holder's process runs here."""
    if held is None or take_over:
        return ""
    same_controller = held["host"] == wanted["host"]
    # Handing over a node's data may take longer than any lock: here one can see whether it goes on.
    if now >= float(held["until"]) and not (same_controller and running):
        return ""
    if same_controller and held["pid"] == wanted["pid"] and held["started"] == wanted["started"]:
        return ""
    if held["owner"] == wanted["owner"] and same_controller and not running:
        # This person's own run was interrupted: going on is what a second start is for.
        return ""
    state = "still running" if running or not same_controller else "interrupted"
    return (
        f"CN-219: the ring is locked by {held['owner']} on {held['host']} for {held['operation']} since "
        f"{stamp(held['since'])}, until {stamp(held['until'])} (process {held['pid']}, {state}). Two "
        "operations at once can take a quorum away. Wait, or ask them; if that run has ended for good, "
        "take the lock over with -e cassandra_node_lock_take_over=true."
    )


def stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(float(seconds)))


def read(path: Path) -> dict[str, Any] | None:
    """The lock; None where there is none. One that cannot be read is held by nobody knows whom."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    unknown = {"pid": 0, "started": "", "host": "?", "owner": "?", "operation": "?", "since": 0}
    try:
        lock = json.loads(text)
        float(lock["until"])
        return {**unknown, **lock}
    except (ValueError, KeyError, TypeError):
        return {**unknown, "owner": f"nobody knows whom ({path} cannot be read)", "until": _FOR_EVER}


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time reads, decides and writes: a file beside the lock is held meanwhile.

    Not the lock itself: it is replaced, and would be held under a name that is another file's by then.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    guard = os.open(path.with_name(f"{path.name}.guard"), os.O_RDWR | os.O_CREAT)
    try:
        if os.fstat(guard).st_uid == os.getuid():
            # Whatever the umask: colleagues may share the directory.
            os.fchmod(guard, 0o660)
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield
    finally:
        os.close(guard)


def judge(path: Path, wanted: dict[str, Any], *, now: float, take_over: bool) -> dict[str, Any]:
    """{lock, interrupted} as found, `interrupted` where it was left by another run; or a failure."""
    held = read(path)
    running = held is not None and is_running(held)
    said = refusal(held, wanted, now=now, take_over=take_over, running=running)
    if said:
        return {"failed": True, "msg": said, "lock": held}
    return {"lock": held, "interrupted": None if is_mine(held, wanted) else held}


def take(path: Path, wanted: dict[str, Any], *, now: float, take_over: bool) -> dict[str, Any]:
    """The same, with the lock taken where that is no failure."""
    with alone(path):
        result = judge(path, wanted, now=now, take_over=take_over)
        if result.get("failed"):
            return result
        new = path.with_name(f"{path.name}.new")
        new.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        new.replace(path)
        return {**result, "lock": wanted, "changed": not is_mine(result["lock"], wanted)}


def free(path: Path, wanted: dict[str, Any]) -> None:
    """Gives back what this process holds and nothing else."""
    with alone(path):
        if is_mine(read(path), wanted):
            path.unlink()


def is_mine(held: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    return held is not None and all(held[key] == wanted[key] for key in ("host", "pid", "started"))


class ActionModule(ActionBase):  # type: ignore[misc]
    """Arguments: file, state (held, free, looked), operation, owner, minutes, take_over.

    `looked` refuses where `held` would, and changes nothing.
    """

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = self._task.args
        path = Path(str(arguments["file"]))
        # A task runs in a fork of the ansible-playbook that holds the lock.
        pid = os.getppid()
        now = time.time()
        wanted = {
            "owner": str(arguments.get("owner") or getpass.getuser()),
            "host": socket.gethostname(),
            "pid": pid,
            "started": process_start(pid),
            "operation": str(arguments.get("operation", "")),
            "since": int(now),
            "until": int(now + 60 * float(arguments.get("minutes", 240))),
        }
        if arguments["state"] == "free":
            held = read(path)
            if is_mine(held, wanted) and not self._task.check_mode:
                free(path, wanted)
            return {"changed": is_mine(held, wanted), "lock": held}
        take_over = str(arguments.get("take_over", "false")).lower() in ("true", "yes", "1")
        if arguments["state"] == "looked" or self._task.check_mode:
            return {"changed": False, **judge(path, wanted, now=now, take_over=take_over)}
        return take(path, wanted, now=now, take_over=take_over)
