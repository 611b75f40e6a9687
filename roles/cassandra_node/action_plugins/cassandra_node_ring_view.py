"""Measures how far the host's clock is from the controller's, then asks the node for its view.

The clock is asked on the same connection just before: the answer came somewhere between sending and
receiving, so half the round trip is how wrong the figure can be at most.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]
    """The module's own result, its view with `clock: {offset, within}` in seconds.

    A host that is reached and on which the module does not run has a view, too: of why it has none.
    """

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        clock = None
        try:
            clock = self._clock()
            result: dict[str, Any] = self._execute_module(
                module_name="cassandra_node_ring_view", module_args=self._task.args, task_vars=task_vars
            )
        except AnsibleError as error:
            # A full disk is told as a failed connection, by a host that has just said what time it is.
            if clock is None and isinstance(error, AnsibleConnectionFailure):
                raise
            result = {"failed": True, "msg": str(error)}
        if not isinstance(result.get("view"), dict) and not result.get("unreachable"):
            result["view"] = self._without(str(result.get("msg", "")).strip())
        if "view" in result:
            result["view"]["clock"] = clock
        return result

    def _without(self, why: str) -> dict[str, Any]:
        text = f"it was reached, but could not be asked ({why}). See that Ansible can work on this host"
        return {"error": text, "kind": "", "round": self._task.args.get("round", ""), "pending": []}

    def _clock(self) -> dict[str, float] | None:
        sent = time.time()
        answer = self._low_level_execute_command("date +%s.%N")
        received = time.time()
        try:
            there = float(answer["stdout"].strip().splitlines()[-1])
        except (ValueError, IndexError):
            return None
        return {
            "offset": round(there - (sent + received) / 2, 3),
            "within": round((received - sent) / 2, 3),
        }
