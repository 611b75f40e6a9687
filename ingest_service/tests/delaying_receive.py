"""``fieldring receive`` over a store that takes one write at a time, each for FIELDRING_TEST_DELAY_MS."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

import fieldring.store
from fieldring import settings, wiring
from fieldring.model import Batch
from fieldring.store.sqlite import SqliteStore

DELAY_S = int(os.environ.pop("FIELDRING_TEST_DELAY_MS")) / 1000


class DelayingStore(SqliteStore):
    one_at_a_time = threading.Lock()

    def write_many(self, batches: Sequence[Batch]) -> None:
        with self.one_at_a_time:
            time.sleep(DELAY_S)
            super().write_many(batches)

    def write(self, batch: Batch) -> None:
        self.write_many([batch])


fieldring.store.open_store = lambda found: DelayingStore(found.sqlite_path, retention_days=10_950)  # type: ignore[assignment]
wiring.run_receive(settings.load(os.environ))
