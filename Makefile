# make demo   sets up .venv and opens the chatroom      make test   sets up .venv and checks what a change breaks
PYTHON ?= python3
PORT ?= 8189
JOBS ?= 5 # more than cores: half of the tests wait for clocks and other processes
XDIST := -n $(JOBS) --dist loadfile --no-loadscope-reorder # tests/conftest.py puts the long files first
KILLS ?= 20
CASES ?= 10000
EXAMPLES ?= 100
ENGINE ?= simulated
DATABASE ?= sqlite
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCKED := $(PIP) install --quiet --require-hashes --no-deps
define install
	$(LOCKED) -r lock/build.txt
	$(LOCKED) --no-build-isolation -r lock/$(1).txt
	$(PIP) install --quiet -c constraints.txt torch torchvision
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
endef
export PYTHONUNBUFFERED := 1
export PYTHONDONTWRITEBYTECODE := # the tests start many processes: each would compile our modules anew

.PHONY: help demo test test-all lint types imports tests tests-all removable coverage audit audit-if-online bill lock docs write-docs attack schemathesis chaos fuzz format clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/.all ## set up what is missing, then open the chatroom
	$(BIN)/darkroom up --port $(PORT) --open

test: lint imports docs ## set up what is missing, then check what a change usually breaks
	@$(MAKE) --no-print-directory --jobs 2 types tests

test-all: lint imports docs bill audit-if-online ## check everything, slow tests and PostgreSQL too
	@$(MAKE) --no-print-directory --jobs 2 types tests-all

lint: .venv/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev ## basedpyright; with node's usual heap it forgets and reads torch and discord.py again, a dozen times
	NODE_OPTIONS=--max-old-space-size=8192 $(BIN)/basedpyright

imports: .venv/.dev ## import-linter: who may import whom
	$(BIN)/lint-imports

tests: .venv/.collected ## pytest, without the tests marked slow
	$(BIN)/python -m pytest $(XDIST) -m "not slow"

tests-all: .venv/.collected ## pytest, all of it
	$(BIN)/python -m pytest $(XDIST)

removable: .venv/.dev ## take out each feature, or SOME by SEED (BRIEF=1: few tests), and check what is left
	$(BIN)/python tools/removable.py $(if $(SOME),--some $(SOME)) $(if $(SEED),--seed $(SEED)) $(if $(BRIEF),--brief)

coverage: .venv/.dev ## all tests with coverage by lines and branches, a row for each package
	$(BIN)/python -m pytest $(XDIST) --cov --cov-report= && $(BIN)/coverage json -q -o out/coverage.json && $(BIN)/python tools/coverage_by_package.py out/coverage.json

audit: .venv/.dev ## known vulnerabilities of the pinned versions; asks PyPI, so it needs the internet
	$(BIN)/pip-audit --strict --disable-pip --no-deps -r constraints.txt

audit-if-online: .venv/.dev ## the same, but without the internet it says that nothing was checked, and passes
	@if $(BIN)/python .ci/online; then $(MAKE) --no-print-directory audit; fi

bill: .venv/.dev ## the bill of materials, as CycloneDX, in out/bill-of-materials.json
	$(BIN)/python .ci/bill out/bill-of-materials.json

docs: .venv/.dev ## build the pages of docs/ as a site in out/site; a broken link or anchor fails, and a table that differs from the code
	$(BIN)/python -m tools.write_docs --check
	$(BIN)/zensical build --strict --clean

write-docs: .venv/.dev ## write the tables of docs/ that repeat the code, and .env.example
	$(BIN)/python -m tools.write_docs

attack: .venv/.dev ## attack a Darkroom that it starts: floods, forged cookies, every route and role, its API and its broker; QUICK=1, SEED=n
	$(BIN)/python -m tools.attack $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED))

schemathesis: .venv/.dev ## ask a Darkroom that it starts for everything in its openapi.json, rightly and wrongly; EXAMPLES=100 of each operation, SEED=n
	$(BIN)/python -m tools.attack.schema_fuzzing --examples $(EXAMPLES) $(if $(SEED),--seed $(SEED))

chaos: .venv/.dev ## inject KILLS=20 faults into a complete installation, about half of them SIGKILL; ENGINE=simulated or real, DATABASE=sqlite or postgres, SEED=n
	$(BIN)/python -m tools.chaos --kills $(KILLS) --engine $(ENGINE) --database $(DATABASE) $(if $(SEED),--seed $(SEED))

fuzz: .venv/.dev ## decode CASES=10000 damaged pictures with the real upload decoder; SEED=n
	$(BIN)/python -m tools.fuzz --cases $(CASES) $(if $(SEED),--seed $(SEED))

format: .venv/.dev ## let ruff put things in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was set up and built
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache

lock: .venv/.dev ## write lock/ anew after a change of constraints.txt; asks the package index for hashes
	$(BIN)/python .ci/lock

# Stamps: each is newer than what it was made from, so set-up happens once. Every package comes by its hash. Only torch
# and torchvision do not: their builds differ by device, and come from the index that pip is configured with.
.venv/.new:
	$(PYTHON) -c 'import sys; sys.exit("Darkroom needs Python 3.11 or newer: make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	touch $@

.venv/.all: pyproject.toml lock/build.txt lock/base.txt lock/engine.txt .venv/.new
	$(call install,engine)
	touch $@

.venv/.dev: pyproject.toml lock/build.txt lock/base.txt lock/engine.txt lock/dev.txt .venv/.new
	$(call install,dev)
	touch $@

# Once: pytest rewrites the asserts of 450 files and keeps the result. Else each of the workers would rewrite them all.
.venv/.collected: .venv/.dev
	-$(BIN)/python -m pytest --collect-only --quiet > .venv/collected.log 2>&1
	touch $@
