"""What an S3 storage says to the credentials and the bucket of a backup, before restic is asked.

restic makes a bucket that is not there, so that a mistyped name would become one; it cannot tell that from a
missing repository where a region is given, nor a wrong key from a lack of rights. One signed request can.

Only `ask_storage` does anything; the functions above it are pure.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

TIMEOUT_SECONDS = 30
# The request has no body.
EMPTY = hashlib.sha256(b"").hexdigest()
ADVICE = {
    "InvalidAccessKeyId": "it does not know the AWS_ACCESS_KEY_ID. Correct it",
    "SignatureDoesNotMatch": "the AWS_SECRET_ACCESS_KEY is not that of the AWS_ACCESS_KEY_ID. Correct it",
    "ExpiredToken": "the AWS_SESSION_TOKEN has expired. Put new credentials",
    "InvalidToken": "the AWS_SESSION_TOKEN is not valid. Put new credentials",
    "AccessDenied": "they may not list it. Let them list it, read, write and delete in it, or put others",
}
NOT_DONE = "Nothing was changed."


class Bucket(NamedTuple):
    """Where restic's `s3:https://host/bucket/prefix` points to."""

    scheme: str
    host: str
    name: str
    prefix: str


def bucket_of(repository: str) -> Bucket:
    url = urllib.parse.urlsplit(repository.removeprefix("s3:"))
    name, _, prefix = url.path.strip("/").partition("/")
    return Bucket(url.scheme, url.netloc, name, prefix)


def listing(bucket: Bucket) -> tuple[str, str]:
    """Path and query of a list of one object of the prefix: what restic needs the right to do as well."""
    query = {"max-keys": "1", "prefix": f"{bucket.prefix}/"}
    encoded = urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote, safe="-_.~")
    return f"/{urllib.parse.quote(bucket.name)}", encoded


def signed_headers(
    host: str, path: str, query: str, *, environment: dict[str, str], now: datetime.datetime
) -> dict[str, str]:
    """Headers of a GET by Signature Version 4; path and query are already encoded, the query sorted."""
    region = environment.get("AWS_DEFAULT_REGION") or environment.get("AWS_REGION") or "us-east-1"
    moment = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": EMPTY, "x-amz-date": moment}
    if token := environment.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = f"GET\n{path}\n{query}\n{lines}\n{names}\n{EMPTY}"
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{environment['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    identity = f"{environment['AWS_ACCESS_KEY_ID']}/{scope}"
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={identity},SignedHeaders={names},Signature={signature}"
    )
    return headers


def refusal(bucket: Bucket, status: int, body: str) -> str:
    """What the answer means for a backup; "" where it may go on, or where restic is to find out.

    Of the body only the code is told: some servers repeat parts of the request in it.
    """
    found = re.search(r"<Code>([A-Za-z0-9]{1,64})</Code>", body)
    code = found.group(1) if found else ""
    if status == 404 and code in ("", "NoSuchBucket"):
        return (
            f"CN-154: there is no bucket {bucket.name} at {bucket.host}. It is not made here, since a "
            "mistyped name would become an empty one: make it, or correct cassandra_node_backup_repository. "
            f"{NOT_DONE}"
        )
    if code == "RequestTimeTooSkewed":
        return (
            f"CN-153: {bucket.host} says that this node's clock is wrong ({code}). Mend the time, then run "
            f"again. {NOT_DONE}"
        )
    # Some servers answer 404 to an ID that they do not know. 400 and redirects speak of the region.
    if status in (401, 403, 404) or code in ADVICE:
        advice = ADVICE.get(code, "its code says why. Put others")
        return (
            f"CN-153: {bucket.host} refuses the credentials for the bucket {bucket.name} ({code or status}): "
            f"{advice} in cassandra_node_backup_environment. {NOT_DONE}"
        )
    return ""


def unreachable(bucket: Bucket, error: Exception) -> str:
    """Why the storage could not be asked, and what helps."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"CN-155: the certificate of {bucket.host} is not trusted ({reason.verify_message}). Put the PEM "
            "of the CA that signed it into cassandra_node_backup_ca, and name the host as it is in the "
            f"certificate. {NOT_DONE}"
        )
    return (
        f"CN-155: {bucket.host} cannot be asked ({reason}). Is it the right address in "
        f"cassandra_node_backup_repository, and may this node reach it? {NOT_DONE}"
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The bucket of another region: restic follows, and knows how to sign there."""

    def redirect_request(self, *arguments: Any) -> None:
        """Never."""


def ask_storage(repository: str, *, environment: dict[str, str], ca_file: str) -> str:
    """The refusal for this repository and these credentials, or "".

    Credentials that restic finds elsewhere, such as those of a cloud's host, are not judged.
    """
    if not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= environment.keys():
        return ""
    bucket = bucket_of(repository)
    path, query = listing(bucket)
    headers = signed_headers(
        bucket.host, path, query, environment=environment, now=datetime.datetime.now(datetime.UTC)
    )
    proxies = {
        key.lower().removesuffix("_proxy"): value
        for key, value in {**os.environ, **environment}.items()
        if key.lower().endswith("_proxy")
    }
    context = ssl.create_default_context(cafile=ca_file or None)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPSHandler(context=context),
        _NoRedirect,
    )
    request = urllib.request.Request(f"{bucket.scheme}://{bucket.host}{path}?{query}", headers=headers)
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return refusal(bucket, error.code, error.read(65536).decode(errors="replace"))
    except (OSError, ValueError) as error:
        return unreachable(bucket, error)
