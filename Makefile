# `make quickstart` and `make test` set up .venv by themselves; nothing else is needed on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup test test-all lint format quickstart clean

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# The default tests: at most 4 minutes on 2 idle cores.
test: setup lint
	$(PYTEST)

# Also the training of every configuration, the wheel, the browser and the benchmarks: at most 15 minutes.
test-all: setup lint
	$(PYTEST) -m 'not gpu'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quickstart: setup
	$(BIN)/maskgen quickstart

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
