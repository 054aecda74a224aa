# `make quickstart` and `make test` each create .venv and install what they need, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# PyTorch and llama.cpp on few cores: threads that wait must sleep.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all recipes lint format types notebooks notebooks-check docs docs-serve clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "optimsyn needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP)  ## Create .venv with everything pinned

quickstart: $(STAMP)  ## Run the whole loop on the embedded model
	$(BIN)/optimsyn run recipes/quickstart.yaml

# Two processes, a file of tests in one of them; each computes on one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test: lint types  ## Style, types and tests, in five to six minutes on two cores
	$(PYTEST) -m 'not slow and not long'

test-all: lint types  ## Also the slow tests: kills, notebooks, the embedded model, Ray
	$(PYTEST) -m 'not long'

# make recipes RECIPES='medicine or korean' runs some of them.
recipes: $(STAMP)  ## Run the domain recipes at tiny size to their end
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m long $(if $(RECIPES),-k '$(RECIPES)')

lint: $(STAMP)  ## Style, formatting and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

types: $(STAMP)  ## Type checks in strict mode
	$(BIN)/mypy

format: $(STAMP)  ## Mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(STAMP)  ## Execute the notebooks and renew their .ipynb, with outputs
	$(BIN)/python tools/notebooks.py

notebooks-check: $(STAMP)
	$(BIN)/python tools/notebooks.py --check

docs: $(STAMP)  ## Build the documentation into site/, strictly
	$(BIN)/python tools/docs.py build

docs-serve: $(STAMP)  ## Show the documentation while you write it
	$(BIN)/python tools/docs.py serve

clean:  ## Remove .venv and caches (runs stay)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist site
