"""After a dozen refused runs the hosts are as bare as before: refusing comes before changing."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    "path",
    [
        "/etc/cassandra",
        "/var/lib/cassandra",
        "/opt/cassandra",
        "/opt/apache-cassandra-5.0.9",
        "/usr/local/bin/nodetool",
        "/etc/systemd/system/cassandra.service",
    ],
)
def test_nothing_was_left_behind(host: Any, path: str) -> None:
    """No file of the role is there."""
    assert not host.file(path).exists


def test_no_account_was_made(host: Any) -> None:
    """Nor is its user."""
    assert not host.user("cassandra").exists
