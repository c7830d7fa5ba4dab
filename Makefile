# make demo   the whole path, from a simulated cohort to synthetic volumes (five to ten minutes on two cores)
#             DEMO=quick make demo   the same stages in two minutes, without a claim of quality
# make test   the default tests;  make test-slow  one of each fault and long job;  make lint  style and types
# make test-matrix   all combinations, about an hour: before a change of a part is called done (tests/README.md)
# make fuzz   spoils configurations, files, tables, folders and environments, ten minutes a kind
# Each installs what it needs into .venv first, once.

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt

.NOTPARALLEL:
.PHONY: demo test test-slow test-matrix fuzz lint clean-demo

demo: .venv/demo-installed
	$(BIN)/python jobs/demo.py $(DEMO)

test: .venv/dev-installed
	$(BIN)/pytest

test-slow: .venv/dev-installed
	$(BIN)/pytest -m 'slow and not matrix'

test-matrix: .venv/dev-installed
	$(BIN)/pytest -m matrix

fuzz: .venv/dev-installed
	VOXFLEET_FUZZ_MINUTES=10 $(BIN)/pytest tests/test_fuzz.py

lint: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean-demo:
	rm -rf demo demo-quick

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Voxfleet needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	@$(PYTHON) -m venv .venv

.venv/demo-installed: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing into .venv (one to two minutes) ..."
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

.venv/dev-installed: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing into .venv, with the tools for development (one to two minutes) ..."
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ .venv/demo-installed

.venv/cloud-installed: .venv/demo-installed
	@$(PIP_INSTALL) --editable '.[cloud]'
	@touch $@
