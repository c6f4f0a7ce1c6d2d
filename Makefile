# Two commands do everything on a machine with Python 3.11 or newer and make:
#   make repro   set up .venv, run the whole pipeline (offline, on simulated months)
#   make test    set up .venv, run the tests
# Not /bin/sh: macOS has make 3.81, which runs a simple command of its default shell itself, and looks for it on the PATH
# of the caller instead of the one below, where there is no dvc.
SHELL := sh
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready

export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: help repro month test lowest coverage lint reference lock clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

repro: $(READY) ## set up, then run every stage that is out of date
	dvc repro

# make always ends with 2 on failure. A scheduler that needs the exit code 5 of a missing month calls `tipline month`.
month: $(if $(M),$(READY)) ## add and score one more month: make month M=2009-06
	@test -n '$(M)' || { echo 'Name the month: make month M=2009-06'; exit 2; }
	@tipline month '$(M)'

test: $(READY) ## set up, then run the tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# In an environment of its own inside .venv; needs uv.
lowest: $(READY) ## run all stages with the lowest versions that pyproject.toml allows
	uv pip compile pyproject.toml --extra dev --resolution lowest-direct --python $(BIN)/python --no-annotate --quiet \
	  -o $(VENV)/lowest.txt
	uv venv --quiet --clear --python $(BIN)/python $(VENV)/lowest
	uv pip install --quiet --python $(VENV)/lowest/bin/python --compile-bytecode -r $(VENV)/lowest.txt "setuptools>=77"
	uv pip install --quiet --python $(VENV)/lowest/bin/python --no-build-isolation --no-deps -e .
	$(VENV)/lowest/bin/python -m pytest tests/lowest.py

coverage: $(READY) ## run the tests and list the lines of src that no test runs
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

lint: $(READY) ## ruff, mypy --strict, import-linter
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo

reference: $(READY) ## generate docs/reference.md from the code
	python docs/reference.py

# Runs again when the lock or the project's metadata change. uv installs in seconds what takes pip minutes; both check
# each package against its hash in the lock.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tipline needs Python 3.11 or newer; for example: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "setting up $(VENV), once: a minute with uv, a few with pip"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv || echo "uv cannot be installed, using pip"
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock && \
	  uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps -e .; \
	else \
	  $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock && \
	  $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .; \
	fi
	@test -e .git || dvc config --local core.no_scm true
	@touch $@

# Needs uv. The lock has hashes and no addresses, so that it works with any package index.
lock: ## resolve the dependencies again into requirements.lock
	uv pip compile pyproject.toml --extra dev --extra server --extra boosting --extra gcs --extra azure --universal \
	  --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet -o requirements.lock

clean: ## remove the environment and the caches of tools; data, models and reports stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
