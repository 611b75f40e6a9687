"""Where points, marks, flags and sensors live: Cassandra, or SQLite on a single box.

This room speaks the model's columns and the Store protocol only: it decodes no request, judges no
value, and gives every failure of a backend one name, ``StoreUnavailable``.
"""

from __future__ import annotations

from fieldring.errors import ConfigurationError
from fieldring.model import Store
from fieldring.settings import Settings, read_secret

__all__ = ["open_store"]


def open_store(settings: Settings) -> Store:
    """The store that the settings name. Connects lazily: a ring that is down does not stop a start.

    Raises:
        ConfigurationError: a setting that this store needs is missing or wrong.
    """
    if settings.store == "sqlite":
        from fieldring.store.sqlite import SqliteStore

        return SqliteStore(
            settings.sqlite_path,
            mark_shards=settings.mark_shards,
            mark_ttl_days=settings.mark_ttl_days,
            retention_days=settings.retention_days,
        )
    if settings.store != "cassandra":
        raise ConfigurationError(f"FIELDRING_STORE is {settings.store!r}, but must be cassandra or sqlite")
    if not settings.cassandra_hosts:
        raise ConfigurationError(
            "FIELDRING_CASSANDRA_HOSTS is empty: name some nodes of the local data centre, or set "
            "FIELDRING_STORE=sqlite"
        )
    # The driver takes a while to load and starts threads of its own: only where it is used.
    from fieldring.store.cassandra import CassandraStore

    password = ""
    if settings.cassandra_username:
        password = read_secret("cassandra_password_file", settings.cassandra_password_file)
    return CassandraStore(
        settings.cassandra_hosts,
        port=settings.cassandra_port,
        local_dc=settings.cassandra_local_dc,
        keyspace=settings.cassandra_keyspace,
        username=settings.cassandra_username,
        password=password,
        ca_file=settings.cassandra_ca_file,
        request_timeout_s=settings.cassandra_request_timeout_ms / 1000,
        in_flight=settings.cassandra_in_flight,
        registry_interval_s=settings.registry_interval_seconds,
        retention_days=settings.retention_days,
        mark_shards=settings.mark_shards,
        mark_ttl_days=settings.mark_ttl_days,
    )
