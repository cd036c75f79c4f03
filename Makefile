# The verbs of this project. Each one makes what it needs first: .venv and node_modules, anew only when
# requirements*.txt or package-lock.json changed.

PORT ?= 7071
WORKERS ?= 3
ARGS ?=
DEATHS ?= 6
SECONDS ?= 1800
SEED ?=
STORIES ?= 1000

# What `make test` leaves to `make test-clients`: it needs more packages than the app and its tests.
other_clients := $(filter-out %/test_openai_python.py,$(wildcard tests/clients/test_*.py))

python := .venv/bin/python
setup := interpreter=$$(sh scripts/find-python.sh) && "$$interpreter" scripts/setup.py

.DEFAULT_GOAL := help
.PHONY: help setup start func test test-clients test-page chaos stories fuzz crash-points bench-recovery check format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## Make or refresh .venv and node_modules; every target below does this itself
	@$(setup) python node

start: setup ## Run the server on this machine, on port 7071 or another: make start PORT=8080
	@exec $(python) -m scripts.start --port "$(PORT)"

func: ## The same, under Azure Functions Core Tools (func) in place of the local host
	@command -v func >/dev/null || { echo "Azure Functions Core Tools (func) were not found: install version 4, or use make start." >&2; exit 1; }
	@$(setup) python node
	@exec $(python) -m scripts.start --port "$(PORT)" --func

test: setup ## Run every test but those of test-clients, on a storage emulator of its own; a choice of them: ARGS="tests/unit -k ids"
	@if $(python) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --ignore=tests/page $(other_clients:%=--ignore=%) $(ARGS); then echo 'make test: all passed'; \
	else echo 'make test: FAILED' >&2; exit 1; fi

test-clients: ## Hold other people's clients against the server, unmodified: tests/clients
	@$(setup) python node python-clients node-clients
	@$(python) -m pytest -n $(WORKERS) tests/clients

test-page: setup ## Drive the page in a headless Chromium, which has to be there: tests/page
	@$(python) -m tests.page.browser
	@$(python) -m pytest tests/page $(ARGS)

chaos: setup ## Kill, freeze and cut off real hosts under traffic, then judge every response: SECONDS=1800 SEED=1
	@exec $(python) -m tests.chaos --seconds "$(SECONDS)" $(if $(SEED),--seed "$(SEED)")

stories: setup ## Tell new stories of the state machine, in memory and virtual time: STORIES=1000 SEED=1
	@MACHINE_STORIES="$(STORIES)" exec $(python) -m pytest --timeout 0 $(if $(SEED),--hypothesis-seed "$(SEED)") tests/chaos/test_machine.py $(ARGS)

fuzz: setup ## Attack a server with 22,000 hostile requests: SEED=1
	@$(python) -m tests.fuzz $(if $(SEED),--seed "$(SEED)") $(ARGS)

crash-points: setup ## Kill a real host at every named point of the engine, in every mode that passes it (45 minutes)
	@CRASH_POINTS=every exec $(python) -m pytest -n $(DEATHS) --dist worksteal tests/resilience/test_crash_points.py $(ARGS)

bench-recovery: setup ## Measure how long a response is silent when its worker goes (20 minutes); fewer: ARGS="--kills 5"
	@exec $(python) -m benchmarks.recovery $(ARGS)

check: ## Lint, formatting and types
	@$(setup) python python-clients
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

format: ## Put the code into shape
	@$(setup) python
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

clean: ## Remove what the other targets made, the locally stored responses included
	rm -rf .venv node_modules tests/clients/js/node_modules .azurite .run .mypy_cache .ruff_cache .pytest_cache .hypothesis
