#!/usr/bin/env bash
# Makes fieldring-host:lab, the systemd image of every lab host: the existing one when its recipe is
# unchanged, else pulled from FIELDRING_HOST_IMAGE where that is set, else built from the Debian
# mirror that this machine itself uses. --tools stops after the packages that building needs.
set -euo pipefail
cd "$(dirname "$0")/.."

image=fieldring-host:lab
say() { printf 'base image | %s\n' "$*"; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

recipe=$(sha256sum lab/base_image.sh | cut -c1-16)
if [ "$(docker image inspect -f '{{index .Config.Labels "fieldring.recipe"}}' "$image" 2>/dev/null || true)" = "$recipe" ]; then
  [ "${1:-}" = --tools ] || say "$image is up to date"
  exit 0
fi
if [ -n "${FIELDRING_HOST_IMAGE:-}" ]; then
  [ "${1:-}" != --tools ] || exit 0
  say "pulling $FIELDRING_HOST_IMAGE"
  docker pull -q "$FIELDRING_HOST_IMAGE"
  docker tag "$FIELDRING_HOST_IMAGE" "$image"
  exit 0
fi

if ! command -v mmdebstrap >/dev/null; then
  say "installing mmdebstrap"
  as_root apt-get update -q >/dev/null
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends mmdebstrap >/dev/null
fi
[ "${1:-}" != --tools ] || exit 0

work=$(mktemp -d)
trap 'as_root rm -rf "$work"' EXIT
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
  # Only Debian's own archives: a lab host needs nothing from the machine's other sources.
  if [ -s "$file" ] && grep -qE '^[^#]*/debian(-security)?/?( |$)' "$file"; then sources+=("$file"); fi
done
[ ${#sources[@]} -gt 0 ] || { say "refused: no Debian source in /etc/apt; set FIELDRING_HOST_IMAGE to an image with systemd and Python" >&2; exit 1; }

# Java and the Python libraries that several roles declare are here so that converging a lab host
# does not fetch them again; apt's lists stay for the same reason.
packages=systemd,systemd-sysv,dbus,python3,python3-apt,iproute2,ca-certificates,procps,sudo,openssh-server,nftables
packages+=,openjdk-17-jre-headless,python3-cassandra,python3-cryptography,python3-requests,python3-docker,python3-passlib
say "building $image from this machine's Debian mirror (about half a minute)"
as_root mmdebstrap --quiet --variant=minbase --include="$packages" --skip=cleanup/apt/lists \
  --customize-hook='chroot "$1" systemctl disable -q ssh.service' \
  --customize-hook='chroot "$1" systemctl mask -q getty.target console-getty.service systemd-logind.service' \
  --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
  --customize-hook='printf "" >"$1"/etc/machine-id' \
  --customize-hook='echo force-unsafe-io >"$1"/etc/dpkg/dpkg.cfg.d/lab' \
  bookworm "$work/base.tar" "${sources[@]}"
docker import -c "LABEL fieldring.recipe=$recipe" -c 'ENV container=docker LANG=C.UTF-8' \
  -c 'CMD ["/lib/systemd/systemd"]' "$work/base.tar" "$image" >/dev/null
say "$image built: $(docker image inspect -f '{{.Size}}' "$image" | awk '{printf "%d MB", $1 / 1e6}')"
