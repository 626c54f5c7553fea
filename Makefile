# `make help` lists what there is. Every target sets up what it needs: Python (3.11 or later) and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEED ?=
BENCH ?= --plot plots --json plots/run.json

.PHONY: help demo test lint format bench peers torture build clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY) ## the main job in a minute, on embedded backends
	$(BIN)/dgents demo

test: $(READY) ## every test, with a short form of every proof, on all cores
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

torture: $(READY) ## the long proofs: kills, faults, crash images, random schedules (SEED=n repeats one)
	DGENTS_SEED=$(SEED) $(BIN)/python -m pytest -m torture -s --timeout 3600

$(VENV)/.peers: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

peers: $(VENV)/.peers ## the tests of what dgents is compared with (it installs them: 1.6 GB)
	$(BIN)/python -m pytest -m peers

bench: $(VENV)/.peers ## every benchmark, beside its peers, with pictures in plots/ (BENCH="--quick" for a look)
	$(BIN)/dgents bench $(BENCH)

lint: $(READY) ## ruff, mypy --strict and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(READY) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(READY) ## the sdist and the wheel, in dist/
	$(BIN)/python -m build

clean: ## remove what was built and the virtual environment
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
