"""The OpenAPI document against the routes of both applications."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from receiving import Service

from fieldring.http.tokens import TokenBook
from fieldring.settings import Settings
from fieldring.store.sqlite import SqliteStore
from fieldring.web.openapi import document


def described() -> set[tuple[str, str]]:
    return {(path, method.upper()) for path, item in document()["paths"].items() for method in item}


@pytest.fixture
def served(tmp_path: Path) -> set[tuple[str, str]]:
    """Routes of ``serve``, in the document's way of writing."""
    from fieldring.web.serve import create_app

    (tmp_path / "tokens.json").write_text("[]")
    store = SqliteStore(tmp_path / "store.sqlite")
    app = create_app(store=store, tokens=TokenBook(tmp_path / "tokens.json"), settings=Settings())
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    store.close()
    return routes


def test_every_route_is_described_and_nothing_else(service: Service, served: set[tuple[str, str]]) -> None:
    """What the two applications offer is exactly what the document says."""
    received = {(path, method) for path, methods in service.receive.routes.items() for method in methods}
    heads = {(path, "HEAD") for path, method in received | served if method == "GET"}
    assert described() - heads == (received | served) - heads


def test_references_lead_somewhere() -> None:
    """Every $ref has its component, and every component is referred to."""
    text = json.dumps(document())
    used = set(re.findall(r'"\$ref": "#/components/([^"]+)"', text))
    components: dict[str, Any] = document()["components"]
    there = {f"{kind}/{name}" for kind in ("schemas", "responses", "headers") for name in components[kind]}
    assert used == there


def test_path_parameters_are_declared() -> None:
    """Each {name} in a path is a parameter of its operations."""
    for path, item in document()["paths"].items():
        for operation in item.values():
            declared = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert set(re.findall(r"{(\w+)}", path)) == declared, path
