"""Every string inside a value of an inventory: of lists, mappings and what is nested in them."""

from __future__ import annotations

from typing import Any


def support_bundle_strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in support_bundle_strings(part)]
    if isinstance(value, (list, tuple, set)):
        return [text for part in value for text in support_bundle_strings(part)]
    return [str(value)] if isinstance(value, str) and value.strip() else []


class FilterModule:
    """The entry for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"support_bundle_strings": support_bundle_strings}
