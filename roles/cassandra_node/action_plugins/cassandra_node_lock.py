"""Takes, gives back or only looks at the lock of a ring: a file beside the record, on the controller.

One run at a time changes a ring. A lock says who holds it, for what, since when and until when, and by
which process; a lock whose process has ended was left by a run that was interrupted.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
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
        held = read(path)
        running = held is not None and is_running(held)
        if arguments["state"] == "free":
            mine = held is not None and held["host"] == wanted["host"] and held["pid"] == pid
            if mine and not self._task.check_mode:
                path.unlink(missing_ok=True)
            return {"changed": mine, "lock": held}
        take_over = str(arguments.get("take_over", "false")).lower() in ("true", "yes", "1")
        said = refusal(held, wanted, now=now, take_over=take_over, running=running)
        if said:
            return {"failed": True, "msg": said, "lock": held}
        mine = held is not None and held["pid"] == pid and held["host"] == wanted["host"]
        interrupted = held if held is not None and not mine else None
        if arguments["state"] == "looked":
            return {"changed": False, "lock": held, "interrupted": interrupted}
        if not self._task.check_mode:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if held is not None or path.exists():
                path.unlink(missing_ok=True)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return {
                    "failed": True,
                    "msg": "CN-219: another run took the ring's lock at the same moment. Run again.",
                }
            with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                json.dump(wanted, handle, indent=2)
                handle.write("\n")
        return {"changed": not mine, "lock": wanted, "interrupted": interrupted}
