"""The bundle is built anew when an input changes, never when not, and refuses before it begins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

sys.path.insert(0, str(ROOT / "roles" / "service_bundle" / "files"))

import bundle

ROLE = ROOT / "roles" / "service_bundle"


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """A copy of the service's project, small enough to change."""
    copy = tmp_path / "service"
    (copy / "src" / "fieldring").mkdir(parents=True)
    for name in (
        "pyproject.toml",
        "README.md",
        "requirements.txt",
        "requirements-build.txt",
        "Containerfile",
    ):
        shutil.copyfile(ROOT / "ingest_service" / name, copy / name)
    (copy / "src" / "fieldring" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    return copy


def fingerprint(service: Path, **options: str) -> str:
    return bundle.Bundle(service, service.parent / "out", **options).fingerprint


def test_the_image_is_named_by_version_and_fingerprint(service: Path) -> None:
    """The name on a host tells which release it runs."""
    made = bundle.Bundle(service, service.parent / "out")
    assert made.image == f"fieldring:1.2.3-{made.fingerprint[:12]}"


@pytest.mark.parametrize(
    "name",
    [
        "src/fieldring/new.py",
        "src/fieldring/web/page.html",
        "requirements.txt",
        "Containerfile",
        "pyproject.toml",
    ],
)
def test_a_changed_input_changes_the_fingerprint(service: Path, name: str) -> None:
    """Whatever ends up in the image counts."""
    before = fingerprint(service)
    (service / name).parent.mkdir(exist_ok=True)
    with (service / name).open("a") as file:
        file.write("\n# another line\n")
    assert fingerprint(service) != before


def test_what_python_leaves_behind_does_not_count(service: Path) -> None:
    """Running the service's tests does not make a new release."""
    before = fingerprint(service)
    for name in ("src/fieldring/__pycache__/x.cpython-311.pyc", "src/fieldring.egg-info/PKG-INFO"):
        (service / name).parent.mkdir()
        (service / name).write_text("x")
    assert fingerprint(service) == before


def test_a_new_base_revision_changes_the_fingerprint(service: Path) -> None:
    """Debian's security updates reach the hosts like a release."""
    assert fingerprint(service, base_revision="2") != fingerprint(service)


def test_a_project_that_is_not_whole_is_refused(service: Path) -> None:
    """The missing file is named."""
    (service / "requirements.txt").unlink()
    with pytest.raises(bundle.RefusalError, match=r"requirements\.txt is missing"):
        bundle.Bundle(service, service.parent / "out")


def test_a_damaged_output_is_not_current(service: Path) -> None:
    """Files are judged by their content, not by being there."""
    made = bundle.Bundle(service, service.parent / "out")
    made.wheels.mkdir(parents=True)
    (made.wheels / "fieldring-1.2.3.whl").write_bytes(b"wheel")
    made.archive.write_bytes(b"image")
    manifest = {
        "fingerprint": made.fingerprint,
        "archive_sha256": bundle.sha256(made.archive),
        "wheels": {"fieldring-1.2.3.whl": bundle.sha256(made.wheels / "fieldring-1.2.3.whl")},
    }
    made.manifest.write_text(json.dumps(manifest))
    assert made.is_current(with_image=True)
    made.archive.write_bytes(b"image, damaged")
    assert not made.is_current(with_image=True)
    assert made.is_current(with_image=False)
    (made.wheels / "fieldring-1.2.3.whl").unlink()
    assert not made.is_current(with_image=False)


FINE: dict[str, Any] = {
    "docker_problem": "",
    "base_present": False,
    "mmdebstrap_present": True,
    "apt_present": True,
    "privilege": "root",
    "sources": ["/etc/apt/sources.list"],
}


@pytest.mark.parametrize(
    "found",
    [{}, {"privilege": "sudo", "mmdebstrap_present": False}, {"privilege": "unshare"},
     {"base_present": True, "privilege": "none", "mmdebstrap_present": False, "sources": []}],
)  # fmt: skip
def test_a_controller_that_can_build_is_not_refused(found: dict[str, Any]) -> None:
    """Root, sudo or user namespaces are each enough; with the base at hand none is needed."""
    assert bundle.refusal(**FINE | found) == ""


@pytest.mark.parametrize(
    ("found", "refusal", "words"),
    [
        ({"docker_problem": "permission denied"}, "SB-101", "permission denied"),
        ({"sources": []}, "SB-102", "no source of Debian packages"),
        ({"mmdebstrap_present": False, "apt_present": False}, "SB-102", "no apt-get"),
        ({"privilege": "none"}, "SB-103", "a way to be root"),
        ({"privilege": "unshare", "mmdebstrap_present": False}, "SB-103", "apt-get install mmdebstrap"),
    ],
)
def test_a_controller_that_cannot_build_is_refused(found: dict[str, Any], refusal: str, words: str) -> None:
    """The refusal says what is missing, and the way without building."""
    text = bundle.refusal(**FINE | found)
    assert text.startswith(refusal)
    assert words in text
    assert "registry" in text


@pytest.mark.playbook
def test_the_role_stops_at_the_refusal(service: Path) -> None:
    """A controller whose Docker does not answer is told so, and nothing is written (SB-101)."""
    play = service.parent / "play.yml"
    out = service.parent / "out"
    play.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "roles": ["service_bundle"]}]))
    environment = {
        "DOCKER_HOST": "unix:///nowhere.sock",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(ROLE.parent),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
    }
    variables = json.dumps({"service_bundle_source": str(service), "service_bundle_output": str(out)})
    result = subprocess.run(
        ["ansible-playbook", "-i", "a,b,", str(play), "-e", variables],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode != 0
    assert "SB-101" in result.stdout
    assert not out.exists()
