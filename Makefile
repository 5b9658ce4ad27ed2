# Two commands to know: `make demo` and `make test`. README.md says what they show; `make help` lists all.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export EMBEDDING_ASSETS_HOME ?= $(CURDIR)/.embedding_assets
export DAGSTER_HOME ?= $(EMBEDDING_ASSETS_HOME)/dagster
# Nothing of the tools' own writing outside the project either.
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: demo help test test-slow lint schema ui stop clean bench bench-scale

demo: .venv/installed ## real documents, searchable in two regions
	$(BIN)/embedding-assets demo

help: ## this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: .venv/installed ## all tests but the slow tier
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/installed ## the kill sweep and other minutes-long tests
	$(BIN)/python -m pytest -n 4 --dist loadgroup -m slow # more than cores: they wait for processes that they kill

lint: .venv/installed ## format, style, types, what may import what, declared dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

schema: .venv/installed ## writes sql/schema.sql, after a change of sql/migrations or sql/surface
	$(BIN)/python -m embedding_assets_tests.support.schema_files

ui: .venv/installed ## the Dagster UI on http://127.0.0.1:3000, with what the demo materialized
	$(BIN)/embedding-assets dagster-home
	$(BIN)/dagster dev --workspace workspace.yaml --host 127.0.0.1 --port 3000

bench: .venv/installed ## side by side with peers, which get an environment of their own
	$(BIN)/python -m bench

bench-scale: .venv/installed ## 1,000,000 chunks from files to searchable: hours; stopped, it goes on where it was
	$(BIN)/python -m bench scale

stop: ## stops the embedded Postgres
	if [ -x $(BIN)/embedding-assets ]; then $(BIN)/embedding-assets stop; fi

clean: stop ## leaves nothing behind, no process either
	rm -rf "$(EMBEDDING_ASSETS_HOME)" .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv || { echo "cure: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
