# The front door. `make` alone says what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DATA_DIR ?= $(HOME)/.tokenweir

.PHONY: help demo run test check docs format bench lock install install-test clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

demo: install ## four simulated teams against a simulated Claude API, live in this terminal; needs no key
	@$(BIN)/tokenweir demo

run: install ## the gateway before the real Claude API; needs ANTHROPIC_API_KEY
	@test -n "$$ANTHROPIC_API_KEY" || { echo "make run: set ANTHROPIC_API_KEY to the key that the gateway shall use upstream"; exit 2; }
	@TOKENWEIR_UPSTREAM__API_KEY="$$ANTHROPIC_API_KEY" $(BIN)/tokenweir serve --data-dir "$(DATA_DIR)"

test: install-test ## all tests, from nothing
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not alone" tests
	@$(BIN)/python -m pytest -m alone tests

check: install-test ## lint, types, imports
	@$(BIN)/ruff format --check src tests bench
	@$(BIN)/ruff check src tests bench
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: install-test ## draw the pages that come from the code
	@$(BIN)/python docs/generate.py

format: install-test ## format and fix what can be fixed
	@$(BIN)/ruff format src tests bench
	@$(BIN)/ruff check --fix src tests bench

bench: install-test ## CPU per request and event, memory per stream, entries per second; a figure is recorded, never asserted
	@$(PYTHON) -m venv bench/.venv && bench/.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@$(BIN)/python bench/run.py

claude-code: install-test ## Claude Code itself through the gateway, once; fetches about 200 MB into a throw-away environment
	@$(BIN)/python tests/clients/claude_code.py

lock: install-test ## refresh the hashed locks
	@$(PIP) pip-tools
	@for name in runtime test old-sdk bench; do \
	  $(BIN)/pip-compile --quiet --upgrade --generate-hashes --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	    --strip-extras --allow-unsafe -o requirements/$$name.txt requirements/$$name.in; done

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(VENV)/.installed: requirements/runtime.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes --only-binary :all: -r requirements/runtime.txt
	@$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements/test.txt requirements/old-sdk.txt
	@$(PIP) --require-hashes --only-binary :all: -r requirements/test.txt
	@test -x $(VENV)/old-sdk/bin/python || $(PYTHON) -m venv $(VENV)/old-sdk
	@$(VENV)/old-sdk/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/old-sdk.txt
	@touch $@

clean: ## remove what was made here
	@rm -rf $(VENV) bench/.venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
