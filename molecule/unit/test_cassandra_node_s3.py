"""What an S3 storage's answer means for a backup, and that it is asked as S3 wants to be asked."""

from __future__ import annotations

import datetime
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from repository import ROOT, load

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/cassandra_node/module_utils"))
import cassandra_node_backup as backup  # type: ignore[import-not-found]
import cassandra_node_s3 as s3  # type: ignore[import-not-found]

KEYS = {"AWS_ACCESS_KEY_ID": "backup", "AWS_SECRET_ACCESS_KEY": "molecule-s3-secret-1"}
BUCKET = s3.Bucket("https", "s3.example.net:9000", "ring-backups", "site/main/ring1")


def test_place_of_a_repository() -> None:
    """As restic reads it; a prefix is no part of the bucket."""
    assert s3.bucket_of("s3:https://s3.example.net:9000/ring-backups/site/main/ring1") == BUCKET
    assert s3.bucket_of("s3:https://s3.example.net/ring-backups").prefix == ""
    path, query = s3.listing(BUCKET)
    assert (path, query) == ("/ring-backups", "max-keys=1&prefix=site%2Fmain%2Fring1%2F")


def test_signature_is_that_of_the_documentation() -> None:
    """The example "GET Bucket (List Objects)" of the S3 API's description of Signature Version 4."""
    headers = s3.signed_headers(
        "examplebucket.s3.amazonaws.com",
        "/",
        "max-keys=2&prefix=J",
        environment={
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        },
        now=datetime.datetime(2013, 5, 24, tzinfo=datetime.UTC),
    )
    assert headers["Authorization"].endswith(
        "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    )
    assert "us-east-1" in headers["Authorization"]


def test_session_token_is_signed() -> None:
    """Temporary credentials are three."""
    headers = s3.signed_headers(
        "h", "/b", "", environment={**KEYS, "AWS_SESSION_TOKEN": "t"}, now=datetime.datetime.now(datetime.UTC)
    )
    assert "x-amz-date;x-amz-security-token," in headers["Authorization"]


def answer(code: str) -> str:
    """An error's body; some servers repeat what they were sent."""
    return f"<Error><Code>{code}</Code><Message>repeats {KEYS}</Message></Error>"


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "NoSuchBucket", "CN-154: there is no bucket ring-backups at s3.example.net:9000"),
        (404, "", "CN-154"),
        (404, "XAdminUserNotFound", "CN-153"),
        (403, "InvalidAccessKeyId", "CN-153: s3.example.net:9000 refuses the credentials"),
        (403, "SignatureDoesNotMatch", "is not that of the AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", "may not list it"),
        (400, "ExpiredToken", "CN-153"),
        (403, "RequestTimeTooSkewed", "clock is wrong"),
        (401, "", "(401)"),
        (400, "AuthorizationHeaderMalformed", None),
        (301, "PermanentRedirect", None),
        (503, "SlowDown", None),
    ],
)
def test_answers_of_the_storage(status: int, code: str, says: str | None) -> None:
    """What is certain is refused and says what to do; restic finds out the rest. No secret is told."""
    said = s3.refusal(BUCKET, status, answer(code) if code else "")
    if says is None:
        assert said == ""
        return
    assert says in said
    assert said.endswith("Nothing was changed.")
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in said


@pytest.fixture
def storage() -> Iterator[tuple[str, list[str]]]:
    """A server that knows no bucket, and the request lines that it saw."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.requestline} {self.headers['Host']}")
            body = answer("NoSuchBucket").encode()
            self.send_response(404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", seen
        server.shutdown()


def test_storage_is_asked_before_restic(storage: tuple[str, list[str]]) -> None:
    """One request, with the port in the name that is signed; none where the credentials are not known."""
    host, seen = storage
    where = f"s3:http://{host}/ring-backups/main/ring1"
    assert "" == s3.ask_storage(where, environment={"AWS_DEFAULT_REGION": "main"}, ca_file="")
    assert [] == seen
    assert f"CN-154: there is no bucket ring-backups at {host}" in s3.ask_storage(
        where, environment=KEYS, ca_file=""
    )
    assert [f"GET /ring-backups?max-keys=1&prefix=main%2Fring1%2F HTTP/1.1 {host}"] == seen


def test_storage_that_cannot_be_reached() -> None:
    """CN-155, with the reason."""
    said = s3.ask_storage("s3:http://127.0.0.1:9/b", environment=KEYS, ca_file="")
    assert "CN-155: 127.0.0.1:9 cannot be asked" in said


def faults(**variables: Any) -> str:
    """What CN-140 says of these settings."""
    role = ROOT / "roles" / "cassandra_node"
    settings = {
        name: value
        for name, value in load(role / "defaults" / "main.yml").items()
        if name.startswith("cassandra_node_backup_")
    }
    constants = load(role / "vars" / "main.yml")
    keep = trust_as_template(constants["__cassandra_node_backup_keep"])
    given = {"cassandra_node_backup_password": "x" * 16, "__cassandra_node_backup_keep": keep, **variables}
    templar = Templar(loader=DataLoader(), variables={**settings, **given})
    return json.dumps(templar.template(trust_as_template(constants["__cassandra_node_backup_faults"])))


@pytest.mark.parametrize(
    ("last", "daily", "weekly", "accepted"),
    [
        (3, 14, 8, True),
        (1, 0, 0, True),
        ("2", "7", "0", True),
        (0, 0, 0, False),
        (0, 1, 0, True),
        (-1, 14, 8, False),
        (3, -1, 8, False),
        (3, 14, "many", False),
    ],
)
def test_what_is_kept_has_the_backup_just_made(last: Any, daily: Any, weekly: Any, accepted: bool) -> None:
    """CN-140: with none to be kept, a run let go of what it had made, and ended well."""
    found = faults(
        cassandra_node_backup_repository="/srv/backup",
        cassandra_node_backup_keep_last=last,
        cassandra_node_backup_keep_daily=daily,
        cassandra_node_backup_keep_weekly=weekly,
    )
    assert accepted == (found == "[]")
    assert accepted or "cassandra_node_backup_keep_last" in found


@pytest.mark.parametrize(
    ("repository", "words"),
    [
        ("sftp:backup@host:/srv/backup", ["backup@host"]),
        ("sftp:backup@192.0.2.50:/srv/backup", ["backup@192.0.2.50"]),
        ("sftp://backup@host//srv/backup", ["-l", "backup", "host"]),
        ("sftp://backup@host:2222//srv/backup", ["-p", "2222", "-l", "backup", "host"]),
        ("sftp://backup@[2001:db8::5]//srv/backup", ["-l", "backup", "2001:db8::5"]),
        ("sftp://backup@[2001:db8::5]:22//srv/backup", ["-p", "22", "-l", "backup", "2001:db8::5"]),
        # What restic takes for another path, or for one below the account's home.
        ("sftp:backup@[2001:db8::5]:/srv/backup", None),
        ("sftp://backup@[2001:db8::5]/srv/backup", None),
        ("sftp://backup@2001:db8::5//srv/backup", None),
        ("sftp://backup@host:/srv/backup", None),
        ("sftp://host//srv/backup", None),
        ("sftp:host:/srv/backup", None),
    ],
)
def test_target_over_ssh(repository: str, words: list[str] | None) -> None:
    """As restic understands it, and ssh is told."""
    found = faults(
        cassandra_node_backup_repository=repository,
        cassandra_node_backup_ssh_key="key",
        cassandra_node_backup_ssh_known_hosts="hosts",
    )
    assert (found == "[]") == (words is not None), found
    assert words is None or words == backup.ssh_words(repository)


@pytest.mark.parametrize(
    ("repository", "environment", "ca", "says"),
    [
        ("/srv/backup", {}, "", None),
        ("s3:https://host/bucket", KEYS, "", None),
        ("s3:https://host:9000/bucket/prefix", {"AWS_DEFAULT_REGION": "main"}, "", None),
        ("s3:https://host", KEYS, "", "s3:https://host/bucket"),
        ("s3:https://backup:secret@host/bucket", KEYS, "", "s3:https://***@host/bucket"),
        ("s3:https://host/bucket", {}, "", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3:https://host/bucket", {"AWS_ACCESS_KEY_ID": "backup"}, "", "AWS_SECRET_ACCESS_KEY"),
        ("s3:https://host/bucket", KEYS, "/etc/ssl/ca.pem", "not a path"),
        ("sftp:backup@host:/srv/backup", {}, "", "cassandra_node_backup_ssh_key"),
        ("sftp:backup@[2001:db8::5]:/srv/backup", {}, "", "sftp://user@[2001:db8::5]:22//path"),
    ],
)
def test_settings_of_a_target(
    repository: str, environment: dict[str, str], ca: str, says: str | None
) -> None:
    """CN-140: each target with what it needs."""
    found = faults(
        cassandra_node_backup_repository=repository,
        cassandra_node_backup_environment=environment,
        cassandra_node_backup_ca=ca,
    )
    assert found == "[]" if says is None else says in found
