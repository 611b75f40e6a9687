"""Writes docs/variables.md from the roles' argument specs and the service's table of settings.

``python docs/generate_variables.py`` writes it; with ``--check`` it only tells whether it is current.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import yaml

from fieldring.settings import ENVIRONMENT_PREFIX, Settings

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "variables.md"

HEAD = """\
# Variables

Made from the roles' argument specs and the service's table of settings: do not edit, run
`docs/generate_variables.py`.
A variable without a default must be set where it says *required*.
"""


def cell(value: Any) -> str:
    """``value`` as the text of one table cell."""
    text = " ".join(value) if isinstance(value, list) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def default(name: str, option: dict[str, Any], defaults: dict[str, Any]) -> str:
    """What the variable is when nobody sets it."""
    if option.get("required"):
        return "*required*"
    value = defaults.get(name, option.get("default"))
    if value is None:
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    return f"`{cell(text)}`"


def role_section(role: Path) -> str:
    """One role: its entry points and their options."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    path = role / "defaults" / "main.yml"
    defaults = (yaml.safe_load(path.read_text()) if path.exists() else None) or {}
    lines = [f"\n## {role.name}\n", cell(specs["main"]["short_description"]) + "."]
    for entry, spec in specs.items():
        options = spec.get("options") or {}
        if entry != "main":
            lines.append(f"\n### {role.name}: {entry}\n\n{cell(spec['short_description'])}.")
        if options:
            lines += ["", "| variable | type | default | what it is |", "|---|---|---|---|"]
        for name, option in sorted(options.items()):
            kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
            lines.append(
                f"| `{name}` | {kind} | {default(name, option, defaults)} | {cell(option['description'])} |"
            )
    return "\n".join(lines)


def settings_section() -> str:
    """The service's settings as environment variables."""
    lines = [
        "\n## Settings of the ingest service\n",
        "Roles render them; they can be set for a process of your own too.",
        "",
        "| variable | default | unit | what it is |",
        "|---|---|---|---|",
    ]
    for field in dataclasses.fields(Settings):
        value = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = f"`{value}`" if value != "" else ""
        unit, text = field.metadata["unit"], cell(field.metadata["help"])
        lines.append(f"| `{ENVIRONMENT_PREFIX}{field.name.upper()}` | {shown} | {unit} | {text} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    roles = sorted(path.parents[1] for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
    return "\n".join([HEAD.rstrip(), *map(role_section, roles), settings_section()]) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.exists() and PAGE.read_text() == page() else "docs/variables.md is not current")
    PAGE.write_text(page())
