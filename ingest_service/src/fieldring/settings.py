"""One table of every setting: name, default, unit and help.

A setting ``x_y`` is read from the environment variable ``FIELDRING_X_Y``; secrets come from files
named by settings that end in ``_file``. Ansible renders these variables from role defaults of the
same names; a test holds table, roles and docs together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fieldring.errors import ConfigurationError

__all__ = ["ENVIRONMENT_PREFIX", "Settings", "file_stamp", "load", "read_secret"]

ENVIRONMENT_PREFIX = "FIELDRING_"


def _setting(default: Any, unit: str, help: str) -> Any:  # noqa: A002
    return field(default=default, metadata={"unit": unit, "help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Values of all settings; see each field's ``metadata`` for unit and help."""

    # who and where
    node_name: str = _setting("localhost", "", "name of this host or worker, unique in the site")
    site: str = _setting("", "", "name of the deployment site")
    listen_host: str = _setting("127.0.0.1", "", "address to listen on")
    listen_port: int = _setting(8080, "port", "port to listen on")
    log_level: str = _setting("info", "", "debug, info, warning or error")
    tokens_file: str = _setting("", "path", "JSON list of tokens; reloaded when it changes")

    # store
    store: str = _setting("cassandra", "", "cassandra, or sqlite for a single box")
    sqlite_path: str = _setting("fieldring.sqlite", "path", "database file of the embedded store")
    cassandra_hosts: tuple[str, ...] = _setting((), "addresses", "contact points of the local data centre")
    cassandra_port: int = _setting(9042, "port", "CQL port")
    cassandra_local_dc: str = _setting("dc1", "", "data centre whose quorum acknowledges")
    cassandra_keyspace: str = _setting("fieldring", "", "keyspace of the schema")
    cassandra_username: str = _setting("", "", "service account")
    cassandra_password_file: str = _setting("", "path", "file with the service account's password")
    cassandra_ca_file: str = _setting("", "path", "CA of the ring's certificates; empty: no TLS")
    cassandra_request_timeout_ms: int = _setting(5_000, "ms", "deadline of one statement")
    cassandra_in_flight: int = _setting(128, "statements", "concurrent statements of one write")
    registry_interval_seconds: int = _setting(
        10, "s", "least time between updates of a sensor's last time, and of attributes that came again"
    )

    # limits
    retention_days: int = _setting(1825, "d", "age beyond which points are refused and expire")
    future_limit_seconds: int = _setting(86_400, "s", "how far ahead of now a point may lie")
    body_max_bytes: int = _setting(33_554_432, "bytes", "largest body as sent")
    body_unpacked_max_bytes: int = _setting(268_435_456, "bytes", "largest body after unpacking")
    body_budget_bytes: int = _setting(536_870_912, "bytes", "all unpacked bodies of this process together")
    body_timeout_seconds: int = _setting(30, "s", "how long the next part of a body may take")
    receive_threads: int = _setting(32, "threads", "commits under way at once; they share fsyncs")
    receive_queue_max: int = _setting(1_024, "requests", "how many may wait for such a thread; more get 503")
    receive_requests_max: int = _setting(
        4_096, "requests", "writes under way at once, those included whose bodies are still coming"
    )
    serve_threads: int = _setting(16, "threads", "readings and pages under way at once")
    metrics_trusted_header: str = _setting(
        "", "", "'Name: value' that the load balancer sets for the monitor's client certificate"
    )
    series_tags: tuple[str, ...] = _setting((), "tag names", "tags that always distinguish series")
    sensor_community_devices: tuple[str, ...] = _setting(
        (), "X-Sensor names", "sensor.community devices that may push without a token"
    )

    # spool
    spool_dir: str = _setting("spool", "path", "spool root; every worker has a directory in it")
    spool_segment_bytes: int = _setting(8_388_608, "bytes", "size of one segment")
    spool_max_bytes: int = _setting(1_073_741_824, "bytes", "room for all segments of one worker")
    spool_full_policy: str = _setting("refuse", "", "refuse, or drop_oldest with a counted gap record")
    drain_backlog_bytes_per_second: int = _setting(
        0, "bytes/s", "how fast what had to wait is moved to the store, beside what comes in; 0: no limit"
    )
    drain_retry_max_seconds: int = _setting(30, "s", "longest pause between two tries of the drain")

    # analyse
    rules_file: str = _setting("", "path", "quality rules (JSON), reloaded on change; empty: those shipped")
    mark_shards: int = _setting(4, "shards", "how many shards marks are spread over; fixed for a ring")
    mark_ttl_days: int = _setting(7, "d", "how long a mark is kept")
    analyse_interval_seconds: int = _setting(2, "s", "pause between two rounds")
    analyse_skew_seconds: int = _setting(5, "s", "clock skew between hosts that a bucket waits for")

    # pages
    session_key_file: str = _setting("", "path", "key that signs sessions; empty: made anew at every start")
    session_cookie_secure: int = _setting(1, "0 or 1", "1: browsers send session cookies over HTTPS only")
    dygraphs_dir: str = _setting(
        "/usr/share/javascript/dygraphs", "path", "dygraph.min.js and .css (Debian: libjs-dygraphs)"
    )

    # gateway
    gateway_name: str = _setting("", "", "this gateway, as its token says")
    gateway_clock_trust: str = _setting(
        "always", "", "kernel: hold messages until the clock is synchronised; always: believe it"
    )
    gateway_clock_wait_seconds: int = _setting(
        3_600, "s", "uptime after which a clock is believed that was never synchronised"
    )
    device_listener: str = _setting(
        "forwarder", "", "forwarder: MQTT devices connect here; mosquitto: to a local mosquitto that is read"
    )
    device_mqtt_host: str = _setting("", "", "address for MQTT devices; empty: all")
    device_mqtt_port: int = _setting(8883, "port", "port for MQTT devices")
    device_http_host: str = _setting("", "", "address for HTTP devices; empty: all")
    device_http_port: int = _setting(0, "port", "port for HTTP devices; 0: none")
    device_certificate_file: str = _setting(
        "", "path", "PEM with key and certificates for devices; empty: no TLS, loopback only"
    )
    device_passwords_file: str = _setting("", "path", "devices' accounts in mosquitto's format; reloaded")
    device_message_max_bytes: int = _setting(1_048_576, "bytes", "largest MQTT message of a device")
    device_body_max_bytes: int = _setting(4_194_304, "bytes", "largest HTTP body of a device, as sent")
    device_connections_max: int = _setting(1_000, "connections", "devices that may be connected at once")
    mqtt_host: str = _setting("127.0.0.1", "", "broker that the forwarder reads")
    mqtt_port: int = _setting(1883, "port", "port of that broker")
    mqtt_username: str = _setting("", "", "the forwarder's account")
    mqtt_password_file: str = _setting("", "path", "file with that account's password")
    mqtt_client_id_file: str = _setting(
        "", "path", "file with the id of the forwarder's session; not to be guessed"
    )
    upstream_urls: tuple[str, ...] = _setting((), "URLs", "ingest endpoints, tried in order of health")
    upstream_ca_file: str = _setting("", "path", "CA of the ingest endpoints")
    upstream_token_file: str = _setting("", "path", "file with the gateway's write token")
    upstream_timeout_seconds: int = _setting(10, "s", "deadline of one upstream request")
    upstream_retry_max_seconds: int = _setting(30, "s", "longest pause between two tries")
    upstream_gzip_min_bytes: int = _setting(1_024, "bytes", "blocks from this size on are gzipped; 0: none")
    upstream_backlog_bytes_per_second: int = _setting(
        0, "bytes/s", "most that is sent of a backlog, beside what comes in now; 0: no limit"
    )
    dead_letter_dir: str = _setting("dead_letter", "path", "what could not be taken, with the reason")
    dead_letter_max_bytes: int = _setting(67_108_864, "bytes", "room for dead letters; then counted only")


def load(environ: Mapping[str, str]) -> Settings:
    """Settings from environment variables; unset ones keep their default.

    Raises:
        ConfigurationError: a value is not of its setting's type.
    """
    values: dict[str, Any] = {}
    for entry in fields(Settings):
        name = ENVIRONMENT_PREFIX + entry.name.upper()
        text = environ.get(name)
        if text is None or text == "":
            continue
        if isinstance(entry.default, int):
            try:
                values[entry.name] = int(text)
            except ValueError:
                raise ConfigurationError(
                    f"{name} is {text!r}, but must be a whole number ({entry.metadata['help']})"
                ) from None
        elif isinstance(entry.default, tuple):
            values[entry.name] = tuple(part.strip() for part in text.split(",") if part.strip())
        else:
            values[entry.name] = text
    return Settings(**values)


def read_secret(setting: str, path: str) -> str:
    """The secret in the file at ``path``, without its trailing newline.

    Raises:
        ConfigurationError: the file is not set, missing, unreadable or empty.
    """
    name = ENVIRONMENT_PREFIX + setting.upper()
    if not path:
        raise ConfigurationError(f"{name} is not set: name the file that holds the secret")
    try:
        secret = Path(path).read_text(encoding="utf-8").strip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"{name}: cannot read {path}: {error.strerror}") from error
    if not secret:
        raise ConfigurationError(f"{name}: {path} is empty")
    return secret


def file_stamp(path: Path) -> tuple[int, int, int]:
    """Another one whenever the file was written or replaced; zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    # ctime, because a renamed-in file may carry an older mtime.
    return (status.st_ctime_ns, status.st_size, status.st_ino)
