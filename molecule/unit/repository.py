"""What the unit tests need to know of the repository: its roles, specs, tasks and documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if (path / "tasks").is_dir())
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))


class _Loader(yaml.SafeLoader):
    """Reads Ansible's own tags (!unsafe, !vault) as plain strings."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node))  # type: ignore[no-untyped-call]


def load(path: Path) -> Any:
    """The YAML document at ``path``; None where it is empty or missing."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) if path.exists() else None


def specs(role: Path) -> dict[str, dict[str, Any]]:
    """Entry point → options of the role's argument specs."""
    document = load(role / "meta" / "argument_specs.yml") or {}
    return {name: spec.get("options") or {} for name, spec in document.get("argument_specs", {}).items()}


def tasks(path: Path) -> Iterator[dict[str, Any]]:
    """All tasks of a task file, those in blocks included."""

    def walk(entries: Any) -> Iterator[dict[str, Any]]:
        for entry in entries or []:
            yield entry
            for section in ("block", "rescue", "always"):
                yield from walk(entry.get(section))

    yield from walk(load(path))


def task_files(role: Path) -> list[Path]:
    """Task and handler files of a role."""
    return sorted([*(role / "tasks").glob("*.yml"), *(role / "handlers").glob("*.yml")])
