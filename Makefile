# Two commands for a fresh machine with Python 3.11 or 3.12 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test lint lock wheel clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "cmb-bids needs Python 3.11 or 3.12; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The lock file holds exact versions of everything; pyproject.toml holds the ranges.
$(VENV)/.run: pyproject.toml requirements.lock | $(BIN)/python
	$(PIP) install --quiet --constraint requirements.lock --editable .
	@touch $@

$(VENV)/.test: pyproject.toml requirements.lock | $(BIN)/python
	$(PIP) install --quiet --constraint requirements.lock --editable '.[test]'
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run ## simulate a small dataset, count its microbleeds, compare with the truth
	$(BIN)/cmb-lab simulate $(DEMO)/bids --participants 4 --protocol ukb --seed 20
	$(BIN)/cmb-bids $(DEMO)/bids $(DEMO)/derivatives participant
	$(BIN)/cmb-bids $(DEMO)/bids $(DEMO)/derivatives group
	$(BIN)/cmb-lab evaluate $(DEMO)/derivatives $(DEMO)/bids/derivatives/truth --output $(DEMO)/evaluation
	@echo "Counts by scan: $(DEMO)/derivatives/group_microbleeds.csv"
	@echo "By participant: $(DEMO)/derivatives/phenotype/microbleeds.tsv"
	@echo "Pages: $(DEMO)/derivatives/group.html, $(DEMO)/derivatives/sub-*.html, $(DEMO)/evaluation/evaluation.html"

lint: $(VENV)/.test ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## install what tests need and run them all
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lock: ## resolve pyproject.toml afresh in an empty environment and write requirements.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet 'torch==2.13.0' --editable '.[test,dev]'
	{ echo "# Written by 'make lock'. A constraints file: pip install -c requirements.lock cmb-bids"; \
	  build/lock/bin/python -m pip freeze --exclude-editable --exclude cmb-bids | sed -E 's/\+cpu.*//; s/ @ .*//; /^(nvidia|cuda|triton)/d'; } > requirements.lock
	rm -rf build/lock

wheel: $(VENV)/.test ## build dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## remove the demonstration's data
	rm -rf $(DEMO) build dist
