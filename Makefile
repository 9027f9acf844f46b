# Segue's commands. Each does its own set-up: Python 3.11+ and make are all that is needed.
# PYTHON chooses the interpreter, e.g. `make test PYTHON=python3.12`; WORKERS how many test files run side by side.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
STACK  ?= embedded
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check figures bench chaos clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## create .venv and install everything

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Segue needs Python 3.11+; name one: make PYTHON=python3.12 ...'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,check]'
	@touch $(STAMP)

demo: $(STAMP) ## play real and scripted customers on an embedded stack, until Ctrl-C
	$(BIN)/segue demo

test: $(STAMP) ## run every test (a real Kafka and a real Valkey included)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

check: $(STAMP) ## lint, types, compose file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

figures: $(STAMP) ## import the reference files and compare every count; STACK=embedded|kafka
	$(BIN)/python -m bench.figures --stack $(STACK)

bench: $(STAMP) ## measure speed, memory, latency and what the guarantee costs; docs/benchmarks.md
	$(BIN)/python -m bench

chaos: $(STAMP) ## every fault of docs/faults.md against a real Kafka and a real Valkey; ARGS="--rows F1 --quick"
	$(BIN)/python -m tests.chaos --markdown docs/faults.md $(ARGS)

clean: ## remove what the commands made here
	rm -rf $(VENV) .segue build dist .pytest_cache .mypy_cache .ruff_cache
