# Everything a person runs. Each target makes what it needs: a fresh machine wants python >= 3.11 and make, no more.
SHELL := bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
JOBS ?= 2
BIN := .venv/bin
# One thread a process: the processes share the cores, and sums come out the same on every machine.
QUIET_CORES := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

EVIDENCE := real_text world domains efficiency

.PHONY: help quickstart install test test-fast check doctest readme browser docs docs-serve notebooks mutants bench evidence evidence-quick methods gpu

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: .venv/.installed  ## ask, fine-tune, and see before and after (ARGS="--quick" for a short run)
	$(BIN)/fedrag quickstart $(ARGS)

install: .venv/.installed-dev  ## make .venv with everything that tests and checks need

test: .venv/.installed-dev  ## the whole test suite
	$(QUIET_CORES) $(BIN)/pytest -n $(JOBS) $(ARGS)

test-fast: .venv/.installed-dev  ## the tests that take less than ten seconds each
	$(QUIET_CORES) $(BIN)/pytest -n $(JOBS) -m "not slow" $(ARGS)

check: .venv/.installed-dev  ## format, lint, types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

doctest: .venv/.installed-dev  ## the examples in the docstrings
	$(QUIET_CORES) $(BIN)/pytest --doctest-modules src/fedrag $(ARGS)

readme: .venv/.installed-dev  ## the snippets in README.md and docs/, and the deployment of docs/deployment.md
	$(BIN)/python scripts/readme.py $(ARGS)
	$(BIN)/python scripts/deploy_on_loopback.py

browser:  ## a headless Chromium for the tests of pages: Debian's, where there is none
	@command -v chromium >/dev/null || { SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); $$SUDO apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }

docs: .venv/.installed-dev  ## build the documentation into site/, every warning an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: .venv/.installed-dev  ## show the documentation while it is written
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

notebooks: .venv/.installed-dev  ## execute the notebooks of docs/notebooks
	$(BIN)/python scripts/notebooks.py $(ARGS)

mutants: .venv/.installed-dev  ## plant each bug of tests/mutants.toml and demand that its test turns red
	$(QUIET_CORES) $(BIN)/python scripts/mutants.py --jobs $(JOBS) $(ARGS)

bench: .venv/.installed-dev  ## run every benchmark; the figures go to runs/bench/*.json
	@mkdir -p runs/bench; set -o pipefail; failed=0; \
	for file in benchmarks/*.py; do \
	  name=$$(basename $$file .py); echo "== $$name" >&2; \
	  $(BIN)/python $$file | tee runs/bench/$$name.json || failed=1; \
	done; exit $$failed

evidence: .venv/.installed-dev  ## run every experiment, resumable; tables and charts go to docs/evidence/
	@set -e; for name in $(EVIDENCE); do $(BIN)/python experiments/$$name.py $(ARGS); done
	$(BIN)/python experiments/signatures.py
	$(BIN)/python scripts/methods.py

evidence-quick: .venv/.installed-dev  ## the same in 15 minutes: fewer seeds, steps and questions, into runs/
	@set -e; for name in $(EVIDENCE); do $(BIN)/python experiments/$$name.py --size quick $(ARGS); done
	$(BIN)/python experiments/signatures.py --quick

gpu: .venv/.installed-dev  ## on a machine with CUDA: smoke test and throughput, into benchmarks/results/
	@mkdir -p benchmarks/results
	$(BIN)/python benchmarks/device/throughput.py $(ARGS) > benchmarks/results/throughput.json.part
	mv benchmarks/results/throughput.json.part benchmarks/results/throughput.json

methods: .venv/.installed-dev  ## write docs/methods.md anew from the objectives and the evidence
	$(BIN)/python scripts/methods.py

# pip runs again only when the list of dependencies has changed since the last time it ended well.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "fedrag needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there)." >&2; \
	  echo "Name a newer one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install -c constraints.txt -e '.[federated]'
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	@touch .venv/.installed $@
