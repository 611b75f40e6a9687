"""The one error shape."""

from __future__ import annotations

import json

import pytest

from fieldring import errors
from fieldring.errors import LineError
from fieldring.http.errors import MAX_REPORTED_LINES, answer, refused_lines


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (errors.InvalidRequest("no"), 400, {}),
        (errors.Unauthorized("no"), 401, {"WWW-Authenticate": 'Token realm="fieldring"'}),
        (errors.Forbidden("no"), 403, {}),
        (errors.NotFound("no"), 404, {}),
        (errors.MethodNotAllowed("PUT", allowed=("GET", "POST")), 405, {"Allow": "GET, POST"}),
        (errors.RequestTimeout("no"), 408, {"Connection": "close"}),
        (errors.TooLarge("no"), 413, {}),
        (errors.UnsupportedMediaType("no"), 415, {}),
        (errors.HeadTooLarge("no"), 431, {}),
        (errors.Overloaded("no", retry_after_s=7), 429, {"Retry-After": "7"}),
        (errors.StoreUnavailable("no"), 503, {"Retry-After": "1"}),
        (errors.SpoolFull("no"), 503, {"Retry-After": "1"}),
        (errors.BudgetExceeded("no"), 503, {"Retry-After": "1"}),
        (errors.CorruptionError("no"), 500, {}),
    ],
)
def test_map(error: errors.FieldringError, status: int, headers: dict[str, str]) -> None:
    """Each error has its status, its headers and the shape."""
    made = answer(error)
    assert status == made.status
    assert {"Content-Type": "application/json", **headers} == made.headers
    body = json.loads(made.body)
    assert {"code": error.code, "message": str(error), "error": str(error), "errors": []} == body


def test_foreign_error_tells_nothing() -> None:
    """What is inside an unexpected error stays in the log."""
    made = answer(KeyError("secret"))
    assert 500 == made.status
    assert b"secret" not in made.body


def test_refused_lines_are_listed() -> None:
    """Line and reason of each; beyond a limit they are counted."""
    lines = tuple(LineError(n, "bad") for n in range(1, MAX_REPORTED_LINES + 3))
    body = json.loads(answer(refused_lines(lines)).body)
    assert MAX_REPORTED_LINES == len(body["errors"])
    assert {"line": 1, "reason": "bad"} == body["errors"][0]
    assert body["message"].startswith(f"{MAX_REPORTED_LINES + 2} lines were refused (the first")
    assert "1 line was refused, all others were kept; first: line 4: x" == str(
        refused_lines((LineError(4, "x"),))
    )
