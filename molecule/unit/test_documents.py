"""What the documents say is there is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

DOCUMENTS = sorted(
    path
    for path in [
        ROOT / "README.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("roles/*/README.md"),
        *ROOT.glob("ingest_service/**/*.md"),
    ]
    if path.exists()
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """A relative link names a file of this repository, and its anchor a heading."""
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{document.name}: [{text}]({target})"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = {
                re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
            }
            assert anchor in anchors, f"{document.name}: [{text}]({target})"


def test_make_targets_in_the_readme_exist() -> None:
    """Every `make X` that the README names is a target."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_playbooks_in_the_documents_exist() -> None:
    """Every playbooks/x.yml that a document names is a file."""
    for document in DOCUMENTS:
        for playbook in re.findall(r"playbooks/(\w+\.yml)", document.read_text(encoding="utf-8")):
            assert (ROOT / "playbooks" / playbook).exists(), f"{document.name}: {playbook}"


def test_variables_page_is_current() -> None:
    """`python docs/generate_variables.py` was run after the last change of a spec or setting."""
    result = subprocess.run(
        [sys.executable, "docs/generate_variables.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_every_dependency_has_its_reason_in_the_readme() -> None:
    """A package that is named in a requirements.in stands in the table of dependencies."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Dependencies", 1)[1].lower()
    for file in [*ROOT.glob("*.in"), *ROOT.glob("*/requirements*.in")]:
        for line in file.read_text(encoding="utf-8").splitlines():
            name = re.match(r"[A-Za-z0-9][\w.-]*", line)
            if name:
                short = name[0].removeprefix("pytest-").lower()
                assert re.search(rf"\b{re.escape(short)}\b", table), f"{file.relative_to(ROOT)}: {name[0]}"
