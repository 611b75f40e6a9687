#!/usr/bin/env python3
"""Stages of the service's bundle: wheels for the targets, base file system, image, manifest.

Each stage is one sub-command, so that a playbook can show them as tasks. ``status`` changes nothing
and prints JSON. Runs on the controller with the standard library and pip only; what the targets run
(Python 3.11 on x86_64 Linux) is asked of pip by platform flags, whatever Python this is.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUITE = "bookworm"  # its Python is the 3.11 that the wheels are for
GLIBC_MINOR = 36  # of that suite: wheels for any manylinux up to it can be loaded
BASE_PACKAGES = (
    "base-files",
    "base-passwd",
    "libc-bin",
    "dash",
    "netbase",
    "python3-minimal",
    "libpython3-stdlib",
    "libstdc++6",  # numpy's wheel links it
    "tzdata",
    "libjs-dygraphs",  # charts of the service's pages
)
# Packages are only unpacked, so what their scripts would have done is done here; compiled at build
# time because the containers' root is read-only.
BASE_HOOK = """
cp "$1"/usr/share/base-passwd/passwd.master "$1"/etc/passwd
cp "$1"/usr/share/base-passwd/group.master "$1"/etc/group
ldconfig -r "$1"
mkdir -p "$1"/tmp
chmod 1777 "$1"/tmp
chroot "$1" /usr/bin/python3 -m compileall -q /usr/lib/python3.11
"""
ARCHIVE = "fieldring-image.tar.gz"
IGNORED = re.compile(r"(^|/)(__pycache__|[^/]+\.egg-info)(/|$)|\.pyc$")


class RefusalError(Exception):
    """A stage cannot run; the text says what was found and what to do."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"bundle | {text}", file=sys.stderr, flush=True)


def run(*argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; its own words are the error when it fails."""
    words = [str(part) for part in argv]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    done = subprocess.run(words, text=True, check=False, **streams)
    if done.returncode != 0:
        tail = (done.stderr or done.stdout or "").strip()[-2000:]
        raise RefusalError(f"{words[0]} failed with {done.returncode}: {tail}")
    return done


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_files(service: Path) -> list[Path]:
    """Everything that the service's wheel is made of."""
    found = [service / "pyproject.toml", service / "README.md"]
    found += [path for path in sorted((service / "src").rglob("*")) if path.is_file()]
    return [
        path for path in found if path.is_file() and not IGNORED.search(path.relative_to(service).as_posix())
    ]


def digest(*parts: str | bytes) -> str:
    """Hex digest of parts, each with its length, so that nothing can move between them."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


class Bundle:
    """The inputs' fingerprints and the outputs' places."""

    def __init__(self, service: Path, output: Path, *, base_revision: str = "1") -> None:
        self.service = service
        self.output = output
        self.wheels = output / "wheels"
        self.tools = output / "tools"
        self.archive = output / ARCHIVE
        self.manifest = output / "manifest.json"
        self.requirements = service / "requirements.txt"
        self.build_requirements = service / "requirements-build.txt"
        self.containerfile = service / "Containerfile"
        for path in (
            self.requirements,
            self.build_requirements,
            self.containerfile,
            service / "pyproject.toml",
        ):
            if not path.is_file():
                raise RefusalError(f"{path} is missing:  a complete ingest_service directory")
        self.base = "fieldring-base:" + digest(SUITE, base_revision, BASE_HOOK, *BASE_PACKAGES)[:12]
        self.wheels_stamp = digest(self.requirements.read_bytes(), self.build_requirements.read_bytes())
        parts: list[str | bytes] = [self.base, self.wheels_stamp, self.containerfile.read_bytes()]
        for path in source_files(service):
            parts += [path.relative_to(service).as_posix(), path.read_bytes()]
        self.fingerprint = digest(*parts)
        self.version = self._version()
        self.image = f"fieldring:{self.version}-{self.fingerprint[:12]}"

    def _version(self) -> str:
        text = (self.service / "src/fieldring/__init__.py").read_text(encoding="utf-8")
        match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
        if not match:
            raise RefusalError(f"{self.service}/src/fieldring/__init__.py names no __version__")
        return match[1]

    def is_current(self, *, with_image: bool) -> bool:
        """Whether the outputs are there, whole, and made from these very inputs."""
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            files = {self.archive: manifest["archive_sha256"]} if with_image else {}
            files |= {self.wheels / name: value for name, value in manifest["wheels"].items()}
            return manifest["fingerprint"] == self.fingerprint and all(
                sha256(p) == v for p, v in files.items()
            )
        except (OSError, ValueError, KeyError, AttributeError):
            return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One stage of one run at a time: labs and tests share the bundle."""
        self.output.mkdir(parents=True, exist_ok=True)
        with (self.output / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def debian_sources() -> list[str]:
    """This machine's own apt source files that name Debian's archives."""
    candidates = [Path("/etc/apt/sources.list")]
    for pattern in ("*.list", "*.sources"):
        candidates += sorted(Path("/etc/apt/sources.list.d").glob(pattern))
    found = []
    for path in candidates:
        if path.is_file() and re.search(
            r"^[^#\n]*/debian(-security)?/?( |$)", path.read_text("utf-8"), re.MULTILINE
        ):
            found.append(str(path))
    return found


def succeeds(*argv: str) -> bool:
    """Whether a probe works."""
    try:
        return subprocess.run(argv, capture_output=True, check=False, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def privilege() -> str:
    """How a root file system can be made here: root, unshare, sudo, or none."""
    if os.geteuid() == 0:
        return "root"
    if succeeds("unshare", "--user", "--map-auto", "--map-root-user", "--mount", "true"):
        return "unshare"
    return "sudo" if succeeds("sudo", "-n", "true") else "none"


def docker_problem() -> str:
    """Why Docker cannot be used here, or nothing."""
    if not shutil.which("docker"):
        return "no docker command"
    probe = subprocess.run(
        ["docker", "info", "--format", "{{.ServerVersion}}"], capture_output=True, text=True, check=False
    )
    return "" if probe.returncode == 0 else (probe.stderr.strip().splitlines() or ["docker info failed"])[-1]


def has_image(name: str) -> bool:
    """Whether the engine holds an image."""
    return succeeds("docker", "image", "inspect", name)


def status(bundle: Bundle, *, with_image: bool) -> dict[str, Any]:
    """What is there, and what would stand in the way of building."""
    found: dict[str, Any] = {
        "image": bundle.image,
        "current": bundle.is_current(with_image=with_image),
        "base_present": False,
        "refusal": "",
    }
    if with_image and not found["current"]:
        problem = docker_problem()
        found["base_present"] = not problem and has_image(bundle.base)
        found["mmdebstrap_present"] = bool(shutil.which("mmdebstrap"))
        found["privilege"] = privilege()
        found["refusal"] = refusal(
            docker_problem=problem,
            base_present=found["base_present"],
            mmdebstrap_present=found["mmdebstrap_present"],
            apt_present=bool(shutil.which("apt-get")),
            privilege=found["privilege"],
            sources=debian_sources(),
        )
    return found


def refusal(
    *,
    docker_problem: str,
    base_present: bool,
    mmdebstrap_present: bool,
    apt_present: bool,
    privilege: str,
    sources: Sequence[str],
) -> str:
    """Why the image cannot be built here, and what to do; empty where it can."""
    elsewhere = (
        " Or build nothing here: set service_bundle_image_enabled to false, ingest_container_image_source"
        " to registry and ingest_container_image_name to an image that the hosts can pull."
    )
    if docker_problem:
        return (
            f"SB-101: the controller's Docker, which builds the image, cannot be used: {docker_problem}."
            " Start an engine, or add your user to the group 'docker' and log in again." + elsewhere
        )
    if base_present:
        return ""
    if not sources or not (mmdebstrap_present or apt_present):
        return (
            "SB-102: the image's base is unpacked from Debian packages, but this controller has"
            f" {'no apt-get' if sources else 'no source of Debian packages in /etc/apt'}."
            " Run this from a Debian machine (a container or a virtual machine will do)." + elsewhere
        )
    if privilege == "none" or (privilege == "unshare" and not mmdebstrap_present):
        need = "mmdebstrap (apt-get install mmdebstrap)" if not mmdebstrap_present else "a way to be root"
        return (
            f"SB-103: unpacking the image's base needs {need}: you are not root, sudo asks for a password"
            " and user namespaces are not usable or not enough. Install uidmap and mmdebstrap, or allow sudo"
            " without a password, or run this once as root." + elsewhere
        )
    return ""


def pip(*arguments: str | Path) -> None:
    """The controller's own pip."""
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)


def download_wheels(bundle: Bundle) -> bool:
    """Download the locked dependencies where the lock changed."""
    stamp = bundle.output / ".wheels"
    with bundle.locked():
        if stamp.is_file() and stamp.read_text() == bundle.wheels_stamp:
            return False
        say("downloading wheels for Python 3.11 on x86_64")
        fresh = bundle.output / "wheels.new"
        for directory in (fresh, bundle.tools):
            shutil.rmtree(directory, ignore_errors=True)
        stamp.unlink(missing_ok=True)
        target = ["--python-version=3.11", "--implementation=cp"]
        target += [f"--abi={abi}" for abi in ("cp311", "abi3", "none")]
        names = [f"_2_{minor}" for minor in range(GLIBC_MINOR, 4, -1)] + ["2014", "2010", "1"]
        target += [f"--platform=manylinux{name}_x86_64" for name in names]
        # The lock is complete, so nothing has to be resolved (markers would be judged by this Python).
        common = ["download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        pip(*common, *target, f"--dest={fresh}", f"--requirement={bundle.requirements}")
        pip(*common, f"--dest={bundle.tools}", f"--requirement={bundle.build_requirements}")
        shutil.rmtree(bundle.wheels, ignore_errors=True)
        fresh.rename(bundle.wheels)
        shutil.copyfile(bundle.requirements, bundle.output / "requirements.txt")
        stamp.write_text(bundle.wheels_stamp)
    return True


def build_own_wheel(bundle: Bundle) -> None:
    """Build the service's wheel from a copy: setuptools builds into the tree, where deleted modules stay."""
    with tempfile.TemporaryDirectory() as work:
        for path in source_files(bundle.service):
            copy = Path(work, "source", path.relative_to(bundle.service))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        offline = ["--no-index", f"--find-links={bundle.tools}"]
        pip("wheel", "--no-deps", *offline, f"--wheel-dir={work}/out", f"{work}/source")
        for old in bundle.wheels.glob("fieldring-*.whl"):
            old.unlink()
        for wheel in Path(work, "out").glob("fieldring-*.whl"):
            shutil.copyfile(wheel, bundle.wheels / wheel.name)


def make_base(bundle: Bundle) -> bool:
    """Unpack the few Debian packages that the image stands on; the engine keeps them."""
    with bundle.locked(), tempfile.TemporaryDirectory() as work:
        if has_image(bundle.base):
            return False
        how = privilege()
        say(f"unpacking the base file system from this machine's Debian mirror ({how})")
        hook = Path(work, "hook.sh")
        hook.write_text("#!/bin/sh\nset -eu\n" + BASE_HOOK)
        hook.chmod(0o755)
        Path(work).chmod(0o755)
        argv = ["sudo", "-n"] if how == "sudo" else []
        mode = "unshare" if how == "unshare" else "root"
        argv += ["mmdebstrap", "--quiet", f"--mode={mode}", "--variant=extract"]
        argv += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--include={','.join(BASE_PACKAGES)}"]
        argv += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
        argv += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
        argv += [f"--customize-hook={hook}", SUITE, "-", *debian_sources()]
        tar = Path(work, "base.tar")
        with tar.open("wb") as file:
            done = subprocess.run(argv, stdout=file, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise RefusalError(f"mmdebstrap failed: {done.stderr.strip()[-2000:]}")
        run("docker", "import", tar, bundle.base)
    return True


def build_image(bundle: Bundle) -> dict[str, str]:
    """Build the image from the wheels and write the archive that hosts load."""
    say(f"building {bundle.image}")
    context = ["tar", "-c", "-C", str(bundle.output), "wheels", "tools", "requirements.txt"]
    context += ["-C", str(bundle.service), "Containerfile"]
    build = ["docker", "build", "--file=Containerfile", f"--build-arg=BASE={bundle.base}"]
    build += [f"--tag={bundle.image}", f"--label=fieldring.fingerprint={bundle.fingerprint}", "-"]
    with subprocess.Popen(context, stdout=subprocess.PIPE) as sender:
        run(*build, stdin=sender.stdout)
    image_id = run("docker", "image", "inspect", "--format={{.Id}}", bundle.image).stdout.strip()
    say(f"writing {ARCHIVE}")
    partial = bundle.archive.with_suffix(".partial")
    save = ["docker", "save", bundle.image]
    with partial.open("wb") as packed, subprocess.Popen(save, stdout=subprocess.PIPE) as sender:
        run("gzip", "-1", "-n", stdin=sender.stdout, stdout=packed)
    if sender.returncode != 0:
        raise RefusalError(f"docker save {bundle.image} failed with {sender.returncode}")
    partial.replace(bundle.archive)
    ours = [
        "docker",
        "image",
        "ls",
        "--filter=label=fieldring.fingerprint",
        "--format={{.Repository}}:{{.Tag}}",
    ]
    for name in set(run(*ours).stdout.split()) - {bundle.image}:
        if name.startswith("fieldring:"):
            succeeds("docker", "image", "rm", name)  # one that a container still uses stays
    succeeds("docker", "image", "prune", "--force", "--filter=label=fieldring.stage=build")
    return {
        "image": bundle.image,
        "image_id": image_id,
        "archive": ARCHIVE,
        "archive_sha256": sha256(bundle.archive),
    }


def make_bundle(bundle: Bundle, *, with_image: bool) -> bool:
    """Build the service's own wheel, the image and, last of all, the manifest."""
    with bundle.locked():
        if bundle.is_current(with_image=with_image):
            return False  # another run has just made it
        say("building the service's wheel")
        build_own_wheel(bundle)
        manifest: dict[str, Any] = {"fingerprint": bundle.fingerprint, "version": bundle.version}
        if with_image:
            manifest |= build_image(bundle)
        manifest["wheels"] = {path.name: sha256(path) for path in sorted(bundle.wheels.glob("*.whl"))}
        draft = bundle.manifest.with_suffix(".new")
        draft.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        draft.replace(bundle.manifest)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """One stage; prints ``changed`` or ``unchanged``, or JSON for ``status``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=["status", "wheels", "base", "bundle"])
    parser.add_argument("--source", type=Path, required=True, help="ingest_service directory")
    parser.add_argument("--output", type=Path, required=True, help="bundle directory")
    parser.add_argument("--without-image", action="store_true", help="wheels only; needs no Docker")
    parser.add_argument("--base-revision", default="1", help="another one unpacks Debian's packages anew")
    options = parser.parse_args(arguments)
    try:
        bundle = Bundle(
            options.source.resolve(), options.output.resolve(), base_revision=options.base_revision
        )
        if options.stage == "status":
            print(json.dumps(status(bundle, with_image=not options.without_image)))
            return 0
        stages = {
            "wheels": lambda: download_wheels(bundle),
            "base": lambda: make_base(bundle),
            "bundle": lambda: make_bundle(bundle, with_image=not options.without_image),
        }
        print("changed" if stages[options.stage]() else "unchanged")
    except RefusalError as error:
        print(f"bundle | refused: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
