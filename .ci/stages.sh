#!/usr/bin/env bash
# Starts the test stages; the engine first where a stage needs one.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$1" = full ] || [ "$1" = ci ]; then
  lab/engine.sh
  lab/base_image.sh
  lab/test_packages.sh
fi
exec python .ci/stages.py "$@"
