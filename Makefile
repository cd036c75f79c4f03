# The verbs of this project. Each one makes what it needs first: .venv and node_modules, anew only when
# requirements*.txt or package-lock.json changed.

PORT ?= 7071
WORKERS ?= 2
ARGS ?=

python := .venv/bin/python
setup := interpreter=$$(sh scripts/find-python.sh) && "$$interpreter" scripts/setup.py

.DEFAULT_GOAL := help
.PHONY: help setup start func test check format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## Make or refresh .venv and node_modules; every target below does this itself
	@$(setup) python node

start: setup ## Run the server on this machine, on port 7071 or another: make start PORT=8080
	@exec $(python) -m scripts.start --port "$(PORT)"

func: ## The same, under Azure Functions Core Tools (func) in place of the local host
	@command -v func >/dev/null || { echo "Azure Functions Core Tools (func) were not found: install version 4, or use make start." >&2; exit 1; }
	@$(setup) python node
	@exec $(python) -m scripts.start --port "$(PORT)" --func

test: setup ## Run every test, on a storage emulator of its own; a choice of them: ARGS="tests/unit -k ids"
	@if $(python) -m pytest -n $(WORKERS) $(ARGS); then echo 'make test: every test passed'; \
	else echo 'make test: FAILED' >&2; exit 1; fi

check: ## Lint, formatting and types
	@$(setup) python
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

format: ## Put the code into shape
	@$(setup) python
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

clean: ## Remove what the other targets made, the locally stored responses included
	rm -rf .venv node_modules .azurite .run .mypy_cache .ruff_cache .pytest_cache .hypothesis
