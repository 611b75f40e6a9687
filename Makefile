# Fieldring: `make lab` brings up the whole platform on this machine, `make test` proves it.
# Every target installs what it needs: Python tools into .venv, Docker's engine where there is none.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help lab lab-down test test-fast test-full lint lock clean

VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Compiled when first used: most of a large package never is. Of requirements-data.txt the data alone is wanted,
# without what its package needs to run; pip would print that as an error.
PIP_INSTALL = $(BIN)/python -m pip install --quiet --no-compile --no-warn-conflicts --disable-pip-version-check --require-hashes

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

lab: $(VENV)/.lab-ready  ## a whole platform on this machine: real data in and read back
	@lab/up.sh

lab-down:  ## remove everything that `make lab` made
	@lab/down.sh

test: $(VENV)/.test-ready  ## every test but the longest chains on rings, and what does not fit into CI's time
	@.ci/stages.sh ci

test-full: $(VENV)/.test-ready  ## all tests, always
	@.ci/stages.sh full

test-fast: $(VENV)/.test-ready  ## tests that need no container
	@.ci/stages.sh fast

lint: $(VENV)/.test-ready  ## ansible-lint, yamllint, ruff, mypy, import contract
	@.ci/stages.sh lint

lock: $(VENV)/.test-ready  ## compile the hashed requirements anew
	@lab/lock.sh

clean: lab-down  ## the lab, the caches and the virtual environment
	rm -rf .cache .venv

$(VENV)/bin/python:
	@lab/venv.sh $(VENV)

$(VENV)/.lab-ready: requirements-lab.txt requirements-data.txt | $(VENV)/bin/python
	@echo "venv | installing the lab's Python tools (about a minute the first time)"
	@$(PIP_INSTALL) -r requirements-lab.txt
	@$(PIP_INSTALL) --no-deps -r requirements-data.txt
	@touch $@

$(VENV)/.test-ready: requirements-test.txt requirements-data.txt ingest_service/pyproject.toml | $(VENV)/bin/python
	@echo "venv | installing the test tools (about two minutes the first time)"
	@$(PIP_INSTALL) -r requirements-test.txt
	@$(PIP_INSTALL) --no-deps -r requirements-data.txt
	@$(BIN)/python -m pip install --quiet --no-warn-conflicts --disable-pip-version-check --no-deps --no-build-isolation --editable ingest_service
	@touch $@ $(VENV)/.lab-ready
