"""Names that no other test uses, so that backends may share one database between tests."""

from __future__ import annotations

import itertools
import time
import uuid

import pytest

_shards = itertools.count(1000)


@pytest.fixture
def sensor() -> str:
    return f"s-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def shard() -> int:
    """A shard of its own: leases and cursors outlive a test."""
    return next(_shards) + int(time.time()) % 1_000_000 * 1000
