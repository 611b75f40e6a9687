#!/usr/bin/env bash
# Removes what `make lab` made: hosts, their volumes and network, images, secrets and state files.
# The Docker engine, .venv and .cache stay (`make clean` removes the latter two).
set -euo pipefail
cd "$(dirname "$0")/.."

export FIELDRING_LAB=${FIELDRING_LAB:-fieldring}
state=.lab
[ "$FIELDRING_LAB" = fieldring ] || state=.lab-$FIELDRING_LAB
say() { printf 'lab-down | %s\n' "$*"; }

if docker info >/dev/null 2>&1; then
  label="label=fieldring.lab=fieldring-$FIELDRING_LAB"
  mapfile -t hosts < <(docker ps --all --filter "$label" --format '{{.Names}}')
  if [ ${#hosts[@]} -gt 0 ]; then
    say "removing ${hosts[*]}"
    docker rm --force --volumes "${hosts[@]}" >/dev/null
  fi
  mapfile -t volumes < <(docker volume ls --quiet --filter "name=^$FIELDRING_LAB-((ring|ingest|gateway|monitor)[0-9]+-docker|backup)$")
  if [ ${#volumes[@]} -gt 0 ]; then docker volume rm "${volumes[@]}" >/dev/null; fi
  mapfile -t networks < <(docker network ls --quiet --filter "$label")
  if [ ${#networks[@]} -gt 0 ]; then docker network rm "${networks[@]}" >/dev/null; fi
  if [ -z "$(docker ps --all --quiet --filter label=fieldring.lab)" ]; then
    mapfile -t images < <(docker images --filter label=fieldring.recipe --quiet | sort -u)
    mapfile -t service < <({ docker images --quiet fieldring; docker images --quiet fieldring-base; docker images --quiet --filter label=fieldring.fingerprint; } | sort -u)
    if [ ${#images[@]} -gt 0 ] || [ ${#service[@]} -gt 0 ]; then
      docker rmi --force "${images[@]}" "${service[@]}" >/dev/null 2>&1 || say "an image is still in use and stays"
    fi
  fi
else
  say "no Docker engine answers: only files are removed"
fi
rm -rf "$state" "secrets/$FIELDRING_LAB" inventories/lab/sites
say "gone"
