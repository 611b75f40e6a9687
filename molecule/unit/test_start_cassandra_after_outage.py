"""The order in which the start after an outage does what it does."""

from __future__ import annotations

from typing import Any

from repository import ROOT, load

PLAYBOOK = ROOT / "playbooks" / "start_cassandra_after_outage.yml"


def steps() -> list[tuple[str, dict[str, Any]]]:
    """(`role/tasks_from`, the task) of every role that is included, in order."""
    plays = [task for play in load(PLAYBOOK) for task in play.get("tasks") or []]
    everything = [step for task in plays for step in [task, *task.get("block", []), *task.get("always", [])]]
    included = [(task.get("ansible.builtin.include_role"), task) for task in everything]
    return [(f"{role['name']}/{role['tasks_from']}", task) for role, task in included if role]


def test_certificates_are_judged_before_they_are_needed() -> None:
    """Only one that has run out refuses; a host that is declared absent is not asked."""
    order = [name for name, _ in steps()]
    assert order.index("site_ca/health") < order.index("cassandra_node/start")
    check = dict(steps())["site_ca/health"]
    assert check["vars"] == {"site_ca_health_days_min": 0}
    assert "cassandra_node_absent_hosts" in check["when"]


def test_what_is_stopped_was_judged_under_the_lock() -> None:
    """Between the first look and the lock somebody else may have started a node."""
    order = [name.removeprefix("cassandra_node/") for name, _ in steps()]
    assert order == [
        "plan_outage", "site_ca/health", "lock", "plan_outage", "stop", "start", "start", "gate", "unlock",
    ]  # fmt: skip


def test_lock_is_given_back_whatever_the_second_look_says() -> None:
    """The block's condition holds for its last task too, so that it must not change within it."""
    block = next(task for play in load(PLAYBOOK) for task in play.get("tasks") or [] if "block" in task)
    assert "__cassandra_node_outage" not in block["when"]
