#!/usr/bin/env bash
# Compiles the hashed requirements. One superset for the tests is solved first and constrains the
# others, so that all of them agree. No index address is written into any lock.
set -euo pipefail
cd "$(dirname "$0")/.."

export CUSTOM_COMPILE_COMMAND="make lock"
compile=(pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --strip-extras --allow-unsafe)
"${compile[@]}" "$@" --output-file requirements-test.txt requirements-test.in
for name in requirements requirements-lab ingest_service/requirements ingest_service/requirements-build bench/requirements; do
  "${compile[@]}" --constraint requirements-test.txt --output-file "$name.txt" "$name.in"
done
