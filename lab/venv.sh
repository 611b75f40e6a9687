#!/usr/bin/env bash
# Makes the virtual environment of the repository's tools; installs python3-venv where Debian has it apart.
set -euo pipefail

venv=$1
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
for python in python3 python3.13 python3.12 python3.11; do
  if command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then break; fi
  python=
done
if [ -z "$python" ]; then
  echo "venv | refused: no Python 3.11 or newer on this machine ($(python3 --version 2>&1)): install one, for example Debian 12's python3" >&2
  exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  echo "venv | installing python3-venv"
  as_root apt-get update -q >/dev/null
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends python3-venv >/dev/null
fi
"$python" -m venv "$venv"
