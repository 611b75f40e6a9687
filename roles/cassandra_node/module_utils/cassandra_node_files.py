"""Small files, read and replaced as a whole."""

from __future__ import annotations

import difflib
import grp
import os
import re
from pathlib import Path


def read(path: str) -> str | None:
    """The text of a file, "" for a directory, None where there is nothing."""
    if Path(path).is_dir():
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def write(path: str, content: str | None) -> None:
    """Replace the file by a rename, closed to others until its attributes are set; None makes a directory."""
    target = Path(path)
    if content is None:
        target.mkdir(mode=0o750, parents=True)
        return
    temporary = target.with_name(target.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    if target.exists():
        present = target.stat()
        os.chown(temporary, present.st_uid, present.st_gid)
        temporary.chmod(present.st_mode & 0o7777)
    temporary.replace(target)


SECRET = re.compile(
    r"^(\s*(?:- )?[\"']?[\w.\-]*(?:password|passphrase|secret|credentials?)[\"']?\s*[:=]\s*)(\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)


def masked(text: str) -> str:
    """The text without the values of settings whose name says that they are secret."""
    return SECRET.sub(r"\1********", text)


def difference(path: str, before: str, after: str) -> dict[str, str]:
    return {
        "before_header": path,
        "after_header": path,
        "before": masked(before),
        "after": masked(after),
    }


def changed_lines(path: str, before: str, after: str) -> list[str]:
    """`file: - old` and `file: + new`, masked; a secret that alone changed is named as changed."""
    name = os.path.basename(path)  # noqa: PTH119
    lines = [
        f"{name}: {line[0]} {masked(line[1:]).strip()}"
        for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
        if line[:1] in "+-" and line[:3] not in ("+++", "---") and line[1:].strip()
    ]
    return [line for line in lines if not line.split(": ", 1)[1][2:].startswith("#")]


def group_is_there(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
