# `make repro` makes every result and `make test` runs the tests; `make` lists the rest. All use the
# active virtual environment, or make one in .venv, install what is pinned in constraints.txt, and
# say so.

PYTHON ?= python3
CONDA := $(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX))
VENV := $(or $(VIRTUAL_ENV),$(CONDA),$(CURDIR)/.venv)
BIN := $(VENV)/bin
# Named after the environment, so that changing environments installs again.
STAMP := work/installed$(subst /,-,$(VENV))

export PATH := $(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)/src
export DVC_NO_ANALYTICS := 1

.PHONY: help install repro table1 distill report tables-check test test-slow bench gpu lint format \
	docs readme clean

help:  ## Show the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Stages at a time; each gets its share of the cores.
JOBS ?= 2

repro: install  ## Install, then make every table and figure on the digits (an hour or more)
	python -m tools.repro --jobs $(JOBS)
	@echo
	@sed '/^## Best-epoch/,$$d' metrics/tables/digits/table1/table.md
	@echo
	@echo "Everything: plots/report.html   Tables: metrics/tables   Figures: plots/figures"

table1: install  ## Install, then make Table 1 alone (a quarter of an hour)
	python -m tools.repro --jobs $(JOBS) table1
	@echo
	@sed '/^## Best-epoch/,$$d' metrics/tables/digits/table1/table.md
	@echo
	@echo "Next: dvc exp run -S synthesize.draw=1 table1, or make repro"

# Images per class; further options, such as ARGS="--quick --out FOLDER".
IPC ?= 10
ARGS ?=

distill: install  ## Distil your own images: make distill DATA=folder IPC=10 (minutes to hours)
	@test -n "$(DATA)" || { echo "error: expected the images: make distill DATA=folder"; exit 1; }
	python -m tools.distill "$(DATA)" --ipc $(IPC) $(ARGS)

report: install  ## Write plots/report.html from the tables and figures that are there (seconds)
	dvc repro --single-item resolve report

# Stages that only read what is in Git; the others compute, or read what a clone does not have.
RECORDED := table1 table2 table3 table4 table5 recipes fig2c fig3a fig3b fig3c ablations precision \
	fig3d fig3e report
CHECKED := work/checked

tables-check: install  ## Recompute every table from its records; fails on any difference
	@rm -rf $(CHECKED) && mkdir -p $(CHECKED) && cp -r metrics/tables metrics/summary.json $(CHECKED)
	dvc repro --force --single-item resolve $(RECORDED)
	diff -r $(CHECKED)/tables metrics/tables && diff $(CHECKED)/summary.json metrics/summary.json
	@echo "All tables agree with the records"

test: install  ## Install, then run the tests (a few minutes)
	python -m pytest -m "not slow"

test-slow: install  ## The long tests alone
	python -m pytest -m slow

CIFAR10 := data/raw/cifar10/cifar-10-batches-py

bench: install  ## Measure speeds beside plain loops into metrics/bench (a quarter of an hour)
	python -m benchmarks input $(if $(wildcard $(CIFAR10)),--cifar10 $(dir $(CIFAR10)))
	python -m benchmarks synthesis
	python -m benchmarks evaluation
	python -m benchmarks scaling

# Without `install`: such a machine may have no network. Pack first, on another: see docs/gpu.md.
gpu:  ## On a machine with a GPU: tests, speeds, accuracies and verdicts in twelve minutes
	python -m tools.gpu run
	python -m tools.gpu decide work/gpu-results

lint: install  ## Format check, lint and types
	ruff format --check .
	ruff check .
	mypy

format: install  ## Format and fix what can be fixed
	ruff format .
	ruff check --fix .

install: $(STAMP)  ## Install into the active virtual environment, or into .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; found $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@if [ -x "$(BIN)/python" ]; then echo "Installing into the environment $(VENV)"; \
		else echo "Creating the environment $(VENV)"; $(PYTHON) -m venv "$(VENV)"; fi
	@echo "Installing pinned dependencies; PyTorch takes a few minutes the first time"
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@mkdir -p work && touch $@

docs: install  ## Write docs/parameters.md from the settings, and results into README and docs
	python -m tools.parameters_page
	python -m tools.readme

readme: install  ## Write results into README.md and docs/experiments.md
	python -m tools.readme

clean:  ## Remove resume state and logs (results and caches stay)
	rm -rf work logs
