#!/usr/bin/env bash
# Brings up the lab: hosts as containers, the whole platform by playbooks/site.yml, real data in and
# read back. Safe to repeat and to interrupt: every stage looks at what is there already.
set -euo pipefail
cd "$(dirname "$0")/.."

. lab/transport.sh
export FIELDRING_LAB=${FIELDRING_LAB:-fieldring}
offset=${FIELDRING_LAB_PORT_OFFSET:-0}
state=.lab
[ "$FIELDRING_LAB" = fieldring ] || state=.lab-$FIELDRING_LAB
started=$SECONDS
stage=start

say() { printf 'lab | %s\n' "$*"; }
refuse() { printf 'lab | refused: %s\n' "$*" >&2; trap - EXIT; exit 1; }
begin() { stage=$1; stage_started=$SECONDS; say "$stage ..."; }
finish() { say "$stage: $((SECONDS - stage_started)) s"; }
trap 'code=$?; kill %1 2>/dev/null || true; [ $code = 0 ] || say "stopped in stage \"$stage\" (exit $code): nothing is lost; mend what the message above says and run make lab again" >&2' EXIT

# One `make lab` at a time: a second one would race the first for hosts and secrets.
mkdir -p "$state"
exec 9>"$state/lock"
flock --nonblock 9 || refuse "another make lab is running in this clone"

memory_mib=$(awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
[ "$memory_mib" -ge 5000 ] || [ -f "$state/endpoints.env" ] ||
  refuse "the lab needs 5000 MiB of free memory, this machine has $memory_mib MiB: close something or use a larger machine"
disk_mib=$(df --output=avail -m . | tail -n 1)
[ "$disk_mib" -ge 8000 ] || refuse "the lab needs 8000 MiB of free disk here, there are $disk_mib MiB"

# Without the lock: an engine that is started here by hand outlives this script.
begin "engine"; lab/engine.sh 9>&-; finish

for port in 8443 8444 8883 9090 9093; do
  port=$((port + offset))
  if ! docker ps --filter "label=fieldring.lab=fieldring-$FIELDRING_LAB" --format '{{.Ports}}' | grep -q ":$port->" &&
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    refuse "port $port on 127.0.0.1 is taken by another program: stop it, or choose other ports with FIELDRING_LAB_PORT_OFFSET=1000 make lab"
  fi
done

begin "base image"
lab/base_image.sh --tools
# Beside the stages that follow: site.yml waits for what is still being made when it needs it.
say "Cassandra's archive and the service's image are made meanwhile (log in $state/prepare.log)"
ansible-playbook lab/prepare.yml >"$state/prepare.log" 2>&1 9>&- &
lab/base_image.sh
finish
begin "hosts"; ansible-playbook lab/create_hosts.yml >"$state/create.log" || { tail -n 40 "$state/create.log" >&2; exit 1; }; finish
begin "platform (playbooks/site.yml; log in $state/site.log)"
ansible-playbook playbooks/site.yml 2>&1 | tee "$state/site.log" | grep --line-buffered -E '^(PLAY \[|fatal:|failed:|\[ERROR\])|^fieldring-[a-z0-9]+ .*ok=' ||
  true
# grep hides the playbook's own exit code behind the filter: the recap decides.
if grep -qE '(unreachable|failed)=[1-9]' "$state/site.log" || ! grep -q '^PLAY RECAP' "$state/site.log"; then
  grep -nE -A25 '^(fatal:|failed:|\[ERROR\])' "$state/site.log" | tail -n 60 >&2
  exit 1
fi
finish
begin "endpoints"
ansible-playbook lab/write_endpoints.yml -e "lab_state_directory=$PWD/$state" >"$state/endpoints.log" || { tail -n 40 "$state/endpoints.log" >&2; exit 1; }
finish
begin "real data in and read back"; python lab/feed.py --endpoints "$state/endpoints.env"; finish
stage="done"
say "up after $((SECONDS - started)) s; endpoints and tokens are in $state/endpoints.env"
sed -n -E 's/^(FIELDRING_(URL|PROMETHEUS_URL|ALERTMANAGER_URL|MQTT_HOST|MQTT_PORT))=/lab |   \1 /p' "$state/endpoints.env"
say "sign in at $(sed -n 's/^FIELDRING_URL=//p' "$state/endpoints.env")/ with FIELDRING_READ_TOKEN; make lab-down removes it all"
