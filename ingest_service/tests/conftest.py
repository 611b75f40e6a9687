"""What holds for all tests of the service."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import certifi
from hypothesis import settings

# How long one example takes says something of the machine, not of the code.
settings.register_profile("fieldring", deadline=None)
# For `make test-fast`: the other targets try five times as many examples.
settings.register_profile("quick", deadline=None, max_examples=20)
settings.load_profile("quick" if os.environ.get("FIELDRING_TEST_QUICK") else "fieldring")

# Every client of httpx reads the whole trust store, 50 ms each time. Tests speak HTTP or name their own CA:
# one certificate of the store is enough for the others.
_END = "-----END CERTIFICATE-----\n"
_trust = tempfile.NamedTemporaryFile("w", prefix="fieldring-tests-", suffix=".pem")  # noqa: SIM115, until exit
_trust.write(Path(certifi.where()).read_text(encoding="utf-8").partition(_END)[0] + _END)
_trust.flush()
os.environ["SSL_CERT_FILE"] = _trust.name
