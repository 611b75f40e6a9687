"""/metrics and /ready."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from fieldring.gateway.metrics import Metrics
from fieldring.gateway.overview import Inflow, page
from fieldring.gateway.status import StatusServer


class State:
    ready = True


@pytest.fixture
def server(metrics: Metrics) -> Iterator[StatusServer]:
    server = StatusServer(
        host="127.0.0.1",
        port=0,
        registry=metrics.registry,
        before_scrape=lambda: metrics.pending_bytes.set(77),
        ready=lambda: (State.ready, {"subscribed": State.ready}),
        page=lambda: page("Gateway <gw>", {"Spool": [("waiting", "<1>")]}),
    )
    server.start()
    yield server
    server.close()


def get(server: StatusServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_measured_at_the_scrape(server: StatusServer) -> None:
    """Gauges are as of now."""
    status, text = get(server, "/metrics")
    assert status == 200
    assert "fieldring_forwarder_pending_bytes 77.0" in text


@pytest.mark.parametrize(("ready", "expected"), [(True, (200, "ready")), (False, (503, "not ready"))])
def test_ready(
    server: StatusServer, monkeypatch: pytest.MonkeyPatch, ready: bool, expected: tuple[Any, ...]
) -> None:
    """/ready says yes or no by its status, and why in its body."""
    monkeypatch.setattr(State, "ready", ready)
    status, text = get(server, "/ready")
    assert (status, json.loads(text)["status"]) == expected
    assert json.loads(text)["subscribed"] is ready


def test_other_paths(server: StatusServer) -> None:
    """There is nothing else."""
    assert get(server, "/etc/passwd")[0] == 404


def test_silent_clients_do_not_hold_the_rest(server: StatusServer) -> None:
    """Connections that send nothing keep neither a scrape nor the stop waiting."""
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
    try:
        assert get(server, "/ready")[0] == 200
    finally:
        for connection in silent:
            connection.close()


def test_page(server: StatusServer) -> None:
    """Names and values, escaped."""
    status, text = get(server, "/")
    assert status == 200
    assert "<h1>Gateway &lt;gw&gt;</h1>" in text
    assert "<tr><th>waiting<td>&lt;1&gt;" in text


def test_hours_left() -> None:
    """Room by inflow, over a window that moves on."""
    inflow = Inflow()
    assert inflow.hours_left(0, 0, 100) == float("inf")
    for second in range(0, 1_000):
        inflow.note(float(second), second * 10)
    assert inflow.hours_left(1_000, 10_000, 36_000) == pytest.approx(1.0)
    for second in range(1_000, 3_000):
        inflow.note(float(second), 10_000)
    assert inflow.hours_left(3_000, 10_000, 36_000) == float("inf")
