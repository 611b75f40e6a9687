"""No secret leaves in a support bundle, however it is spelled."""

from __future__ import annotations

import base64
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
from plays import run
from repository import ROOT

sys.path.insert(0, str(ROOT / "roles/support_bundle/module_utils"))
import support_bundle_redaction as redaction  # type: ignore[import-not-found]

SECRET = "Tr0ub4dor-and-3"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\nZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "text",
    [
        f"login failed for {SECRET}",
        f"curl -u x:{SECRET}@host",
        base64.b64encode(SECRET.encode()).decode(),
        KEY,
        "password: unknown-to-the-inventory",
        'AWS_SECRET="unknown-to-the-inventory"',
        "api_key=unknown-to-the-inventory",
        "Authorization: Bearer unknown-to-the-inventory",
    ],
)
def test_secret_is_taken_out(text: str) -> None:
    """Those of the inventory anywhere, others by what stands before them."""
    clean = redaction.redacted(text, [SECRET, KEY])
    assert SECRET not in clean
    assert "unknown-to-the-inventory" not in clean
    assert "b3BlbnNzaC1r" not in clean
    assert not redaction.leaks(clean, [SECRET, KEY])


@pytest.mark.parametrize(
    "text", ["password_file = /etc/x", "num_tokens: 16 of 4", "initial_token: null", "UN 10.0.0.1"]
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    """Paths, numbers and views are what a helper needs."""
    assert redaction.redacted(text, []) == text


def test_leak_is_found() -> None:
    """What is searched for at the end: the secret itself, its base64, a line of a key, a private key."""
    assert redaction.leaks(f"x{SECRET}y", [SECRET])
    assert redaction.leaks(base64.b64encode(SECRET.encode()).decode(), [SECRET])
    assert redaction.leaks(KEY, [])
    assert not redaction.leaks("nothing", [SECRET])


def collect(folder: Path) -> tuple[int, str]:
    """Exit status and all that the role printed, on this machine for its host."""
    tasks = [{"name": "Collect", "ansible.builtin.include_role": {"name": "support_bundle"}}]
    play = {"name": "Collect", "hosts": "cassandra", "gather_facts": False, "tasks": tasks}
    book = folder / "play.yml"
    book.write_text(json.dumps([play]))
    # By -e, which alone goes before the role's own.
    variables = {
        "support_bundle_directory": str(folder),
        "support_bundle_secrets": [SECRET],
        "_support_bundle_part": str(folder / "part.tar.gz"),
        "_support_bundle_parts": str(folder / "parts"),
        "_support_bundle_commands": {"system/said.txt": ["echo", f"a {SECRET} in what a command prints"]},
        "_support_bundle_files": [],
    }
    return run(folder, book, "-e", json.dumps(variables))


@pytest.mark.playbook
def test_part_with_a_secret_is_not_handed_out(tmp_path: Path) -> None:
    """BU-101: such as one that was brought here by something that does not take secrets out."""
    (tmp_path / "parts").mkdir()
    content = f"password {SECRET}".encode()
    with tarfile.open(tmp_path / "parts/ring2.tar.gz", "w:gz") as part:
        entry = tarfile.TarInfo("files/etc/x.conf")
        entry.size = len(content)
        part.addfile(entry, io.BytesIO(content))
    status, said = collect(tmp_path)
    assert status != 0
    assert "BU-101: a secret of the inventory, or a private key, stands in ring2/files/etc/x.conf" in said
    assert SECRET not in said
    assert list(tmp_path.glob("support-*")) == []
    assert not (tmp_path / "parts").exists()


@pytest.mark.playbook
def test_bundle_without_one_is_written(tmp_path: Path) -> None:
    """The near miss: the same secret, in what the host says."""
    status, said = collect(tmp_path)
    assert status == 0, said
    (archive,) = tmp_path.glob("support-*.tar.gz")
    with tarfile.open(archive) as bundle:
        (name,) = (name for name in bundle.getnames() if name.endswith("said.txt"))
        text = bundle.extractfile(name).read().decode()  # type: ignore[union-attr]
    assert "in what a command prints" in text
    assert SECRET not in text
