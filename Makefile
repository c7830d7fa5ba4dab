# make demo   the whole path, from a simulated cohort to synthetic volumes (about 11 minutes on two cores, and installation)
# make test   the default tests;  make test-slow  the long ones;  make test-all  both;  make lint  style and types
# make test-matrix   what takes an hour: more kills than those do, in all combinations
# make fuzz   spoils configurations and files, ten minutes a kind
# Each installs what it needs into .venv first, once.

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow test-all test-matrix fuzz lint clean-demo

demo: .venv/demo-installed
	$(BIN)/python jobs/demo.py

test: .venv/dev-installed
	$(BIN)/pytest

test-slow: .venv/dev-installed
	$(BIN)/pytest -m slow

test-all: .venv/dev-installed
	$(BIN)/pytest -m 'not matrix'

test-matrix: .venv/dev-installed
	$(BIN)/pytest -m matrix

fuzz: .venv/dev-installed
	VOXFLEET_FUZZ_MINUTES=10 $(BIN)/pytest tests/test_fuzz.py

lint: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean-demo:
	rm -rf demo

.venv/demo-installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Voxfleet needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	@echo "Installing into .venv (one to three minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

.venv/dev-installed: .venv/demo-installed
	@echo "Installing the tools for development ..."
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

.venv/cloud-installed: .venv/demo-installed
	@$(PIP_INSTALL) --editable '.[cloud]'
	@touch $@
