"""Fixtures of the web room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from receiving import Service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Makes a service with settings of the test's own."""
    made: list[Service] = []

    def make(**settings: Any) -> Service:
        made.append(Service(tmp_path, **settings))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for tests that leave nothing behind which another looks at."""
    made = Service(tmp_path_factory.mktemp("shared"))
    yield made
    made.close()
