# On a fresh machine with python3 (3.11 or 3.12) and make:
#   make quickstart   set up, train in two stages, write a picture and a report
#   make test         set up, check and test everything
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/quickstart
MINUTES ?= 4.5

.PHONY: setup quickstart test check docs wheel clean help

help:
	@echo "make setup | quickstart | test | docs | wheel | clean"

setup: .venv/.setup

.venv/.setup: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "underpaint needs Python 3.11 or 3.12, and $(PYTHON) is another; try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.setup-dev: .venv/.setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: .venv/.setup
	$(BIN)/underpaint quickstart --minutes $(MINUTES) --out $(OUT) --overwrite

check: .venv/.setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest

docs: .venv/.setup-dev
	$(BIN)/python tools/docs.py

wheel: .venv/.setup-dev
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
