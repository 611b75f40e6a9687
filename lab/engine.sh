#!/usr/bin/env bash
# Makes sure that a Docker engine answers: uses the one there is, else installs the distribution's,
# and starts it by hand where no init does. Never installs over an engine that is already there.
set -euo pipefail

say() { printf 'engine | %s\n' "$*"; }
refuse() { printf 'engine | refused: %s\n' "$*" >&2; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

check() {
  local security context os
  security=$(docker info --format '{{join .SecurityOptions " "}}' 2>/dev/null) || return 1
  case "$security" in
    *rootless*) refuse "rootless Docker cannot run systemd hosts with their own engines; use a rootful engine (docker context use default)" ;;
  esac
  os=$(docker info --format '{{.OperatingSystem}}')
  case "$os" in
    *"Docker Desktop"*) refuse "Docker Desktop hides its hosts in a virtual machine; use a rootful engine on Linux" ;;
  esac
  context=$(docker context show 2>/dev/null || echo default)
  say "Docker $(docker info --format '{{.ServerVersion}}') answers (context $context, cgroup v$(docker info --format '{{.CgroupVersion}}'))"
  if [ "$(docker info --format '{{.CgroupVersion}}')" = 2 ]; then
    say "note: cgroup v2 hosts are started with a private cgroup namespace; this way is not covered by our CI"
  fi
}

if command -v docker >/dev/null && check; then exit 0; fi
if command -v docker >/dev/null; then
  reason=$(docker info 2>&1 >/dev/null | tail -n 1 || true)
  case "$reason" in
    *"permission denied"*) refuse "no permission to talk to Docker: add $(id -un) to the group 'docker' and log in again ($reason)" ;;
  esac
fi

if ! command -v dockerd >/dev/null && [ ! -x /usr/sbin/dockerd ]; then
  command -v apt-get >/dev/null || refuse "no Docker engine, and no apt-get to install one: install Docker's engine and run this again"
  say "no Docker engine: installing docker.io"
  as_root apt-get update -q >/dev/null
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends docker.io iptables >/dev/null
fi

if [ -d /run/systemd/system ]; then
  as_root systemctl start docker
else
  log=${TMPDIR:-/tmp}/fieldring-dockerd.log
  say "no init here: starting dockerd by hand (log: $log)"
  # A pid file of an engine that was killed stops the next one from starting.
  if [ -f /var/run/docker.pid ] && ! kill -0 "$(cat /var/run/docker.pid)" 2>/dev/null; then as_root rm -f /var/run/docker.pid; fi
  as_root sh -c "setsid nohup /usr/sbin/dockerd >'$log' 2>&1 </dev/null &"
fi
for _ in $(seq 1 60); do
  if docker info >/dev/null 2>&1; then check; exit 0; fi
  sleep 1
done
refuse "the engine does not answer after 60 s; see its log (journalctl -u docker, or ${TMPDIR:-/tmp}/fieldring-dockerd.log)"
