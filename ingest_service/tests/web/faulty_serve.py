"""``fieldring serve`` over a store that fails after so many points (FIELDRING_TEST_FAIL_AFTER)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import fieldring.store
from fieldring import settings, wiring
from fieldring.errors import StoreUnavailable
from fieldring.model import Point
from fieldring.store.sqlite import SqliteStore

LIMIT = int(os.environ.pop("FIELDRING_TEST_FAIL_AFTER"))


class FailingStore(SqliteStore):
    def points(self, *args: Any, **kwargs: Any) -> Iterator[Point]:
        for count, point in enumerate(super().points(*args, **kwargs)):
            if count == LIMIT:
                raise StoreUnavailable("a replica went away")
            yield point


fieldring.store.open_store = lambda found: FailingStore(found.sqlite_path, retention_days=10_950)  # type: ignore[assignment]
wiring.run_serve(settings.load(os.environ))
