# One entry for every routine job. `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
QUICKSTART_ARGS ?=
TEST_PROCESSES ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# Some packages lack their own dependencies on purpose, so that pip is not to warn of conflicts.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test test-system system-packages check docs bench bench-environments bench-pool clean

help: ## list the targets
	@echo 'usage: make TARGET [PYTHON=python3.12] [SEED=1]'
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-19s %s\n", $$1, $$2 }' Makefile

# The stamps make the environment follow pyproject.toml and constraints.txt, and nothing else.
$(VENV)/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "firesteel needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name a newer one, for example: make $(or $(MAKECMDGOALS),test) PYTHON=python3.12"; exit 1; }
	@echo "setting up $(VENV): torch, transformers and what they need (once; 1.3 GB, some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) "$$(grep '^torch==' constraints.txt)"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "adding what the tests need (once; 0.5 GB, some minutes)"
	@$(PIP_INSTALL) --editable '.[dev,plot,scienceworld,tools,webshop,bfcl]'
	@$(PIP_INSTALL) --no-deps bfcl-eval
	@touch $@

# Without these the tests that need them are skipped, and the benchmarks say so.
$(VENV)/.alfworld: $(VENV)/.dev tools/install_alfworld.sh
	@tools/install_alfworld.sh $(BIN)/python && touch $@ || echo "ALFWorld's engines are not installed (see above)"

$(VENV)/.openenv: $(VENV)/.dev tools/install_openenv.sh
	@tools/install_openenv.sh $(BIN)/python $(VENV)/openenv && touch $@ || echo "OpenEnv is not installed (see above)"

$(VENV)/.docs: $(VENV)/.core
	@$(PIP_INSTALL) --editable '.[docs]'
	@touch $@

venv: $(VENV)/.dev ## make .venv with everything the tests need

quickstart: $(VENV)/.core ## set up, then train a small model on the CPU
	$(BIN)/firesteel train quickstart --continue seed=$(SEED) $(if $(filter-out 0,$(SEED)),name=quickstart-seed$(SEED)) $(QUICKSTART_ARGS)

# OpenEnv's packages contradict constraints.txt: this file is run by itself, with a folder of theirs.
OPENENV_TEST := tests/environments/test_adapters_openenv.py

# The tests are many small matrix products: more threads than one only compete.
test test-system: export OMP_NUM_THREADS ?= 1

test: $(VENV)/.dev ## set up, then run the tests that need nothing more than pip
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) -m 'not system and not slow' $(PYTEST_ARGS)

test-system: system-packages $(VENV)/.alfworld $(VENV)/.openenv ## also what needs a browser, Java, an extra or more time
	$(BIN)/python -m pytest -m 'system or slow' --ignore=$(OPENENV_TEST) $(PYTEST_ARGS)
	PYTHONPATH=$(VENV)/openenv $(BIN)/python -m pytest -m system $(OPENENV_TEST)

system-packages:
	@tools/install_system_packages.sh

check: $(VENV)/.dev ## lint, formatting, types, file and function sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_sizes.py

docs: $(VENV)/.docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

ENVIRONMENT_BENCHMARKS := $(addprefix benchmarks/,household.py scienceworld_steps.py alfworld_steps.py alfworld_games.py webshop.py forks.py)

# One that fails does not keep the others from running.
run_all = failed=; for file in $(1); do echo "== $$file"; $(BIN)/python "$$file" || failed="$$failed $$file"; done; \
  [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

bench: $(VENV)/.dev ## measure what the speed claims rest on
	@$(call run_all,$(filter-out $(ENVIRONMENT_BENCHMARKS) benchmarks/pool.py,$(wildcard benchmarks/[a-z]*.py)))

bench-environments: $(VENV)/.alfworld ## measure the environments beside the stock ones (compiles ALFWorld's planner)
	@$(call run_all,$(ENVIRONMENT_BENCHMARKS))

bench-pool: $(VENV)/.dev ## inject 1,000 faults into a pool of workers (an hour, most of it waiting)
	$(BIN)/python benchmarks/pool.py

clean: ## remove what the other targets made
	rm -rf $(VENV) site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
