#!/usr/bin/env bash
# Debian packages that the tests drive as real parts: a browser for the pages, a broker, a chart library.
set -euo pipefail

packages=(openssl chromium chromium-driver libjs-dygraphs mosquitto mosquitto-clients prometheus maven faketime)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
echo "test packages | installing ${missing[*]}"
as_root apt-get update -q >/dev/null
# Services of these packages are not to run on this machine: the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
  as_root chmod 755 "$policy"
  trap 'as_root rm -f "$policy"' EXIT
fi
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
