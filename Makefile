# Two commands do everything on a machine with Python 3.11 or newer and make:
#   make repro   set up .venv, run the whole pipeline (offline, on simulated months)
#   make test    set up .venv, run the tests
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready

# Stages are started by DVC as plain `tipline ...`, so the environment has to be the first on the path.
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: help repro month test lowest coverage mistakes lint reference lock clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

repro: $(READY) ## set up, then run every stage that is out of date
	dvc repro

# make ends with 2 whatever fails; cron, which should see 5 for a month that is not published, calls `tipline month`.
month: $(if $(M),$(READY)) ## fetch, score and judge one more month: make month M=2009-06
	@test -n '$(M)' || { echo 'which month? make month M=2009-06'; exit 2; }
	@tipline month '$(M)'

test: $(READY) ## set up, then run the tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# In an environment of its own, below the other one; needs uv.
lowest: $(READY) ## all stages with the lowest versions that pyproject.toml allows
	uv pip compile pyproject.toml --extra dev --resolution lowest-direct --python $(BIN)/python --no-annotate --quiet \
	  -o $(VENV)/lowest.txt
	uv venv --quiet --clear --python $(BIN)/python $(VENV)/lowest
	uv pip install --quiet --python $(VENV)/lowest/bin/python --compile-bytecode -r $(VENV)/lowest.txt "setuptools>=77"
	uv pip install --quiet --python $(VENV)/lowest/bin/python --no-build-isolation --no-deps -e .
	$(VENV)/lowest/bin/python -m pytest tests/lowest.py

coverage: $(READY) ## the tests, and which lines of src no test runs
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

mistakes: $(READY) ## make thirty deliberate mistakes in the core: the tests have to notice each
	$(BIN)/python -m tests.mistakes

reference: $(READY) ## write docs/reference.md anew from the code
	python docs/reference.py

lint: $(READY) ## ruff and mypy --strict
	ruff check .
	ruff format --check .
	mypy

# Made again only when the lock or the project's own metadata change. uv installs in seconds what pip takes minutes for;
# either checks every package against its hash in the lock.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tipline needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "setting up $(VENV), once: a minute with uv, a few with pip"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv || echo "no uv here, so pip does it"
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock && \
	  uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps -e .; \
	else \
	  $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock && \
	  $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .; \
	fi
	@test -e .git || dvc config --local core.no_scm true
	@touch $@

# Needs uv. The lock carries hashes and no addresses, so that it works with any index.
lock: ## resolve the dependencies anew into requirements.lock
	uv pip compile pyproject.toml --extra dev --extra server --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet -o requirements.lock

clean: ## remove the environment and the caches of tools; data, models and reports stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
