# Sourced by what runs playbooks on lab hosts and in tests: Mitogen keeps one Python per host for a whole run,
# where Ansible's own connection starts `docker exec` and an interpreter for every task. Roles and modules stay
# the same. FIELDRING_PLAIN_ANSIBLE=1 keeps Ansible's own way, which is what real sites use over SSH.
# shellcheck shell=bash
if [ -z "${FIELDRING_PLAIN_ANSIBLE:-}" ]; then
  ANSIBLE_STRATEGY_PLUGINS=$(python -c 'import importlib.util as u; print(u.find_spec("ansible_mitogen").submodule_search_locations[0] + "/plugins/strategy")')
  export ANSIBLE_STRATEGY_PLUGINS ANSIBLE_STRATEGY=mitogen_linear FIELDRING_LAB_CONNECTION=docker
  # To reach a host; ten seconds are too few while rings start on the same cores.
  export ANSIBLE_TIMEOUT=60
fi
