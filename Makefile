# The two commands of the README are `make demo` and `make test`; `make` alone lists all.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two test files at a time, the longest first: many tests wait for processes to start.
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder
LONGEST := tests/ray/test_train.py tests/ray/test_train_faults.py tests/e2e/test_demo.py
OTHERS := $(filter-out $(LONGEST) tests/unit/% tests/architecture/%,$(wildcard tests/*/test_*.py))

# Two torch threads collapse by 40x and more when another process uses a core.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
# A finished check of a dead worker must not wait for Ray Train's slow default.
export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S ?= 0.2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format lint types imports unit bench bench-gpu fuzz load-test faults clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 18

setup: $(STAMP) ## virtual environment with the pinned packages

# uv does not read pip's configuration, so pip tells it where extra wheels lie. Bytecode is compiled
# at once because Ray starts many processes that would each compile it again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "nurie needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	links="$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null || true)}"; \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$$links"; fi; \
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode \
	  -c constraints.txt -b constraints.txt -e ".[dev]"
	@touch $@

demo: setup ## the main job on the built-in data (EXIT=1 ends afterwards, FROM_SCRATCH=1 starts at zero)
	$(BIN)/nurie demo $(if $(filter 1,$(EXIT)),--exit) $(if $(filter 1,$(FROM_SCRATCH)),--from-scratch)

test: setup ## everything that CI runs
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest $(BY_FILE) -m "not long" $(LONGEST) $(OTHERS)

check: setup format lint types imports unit ## format, lint, types, imports, unit tests

format: setup
	$(BIN)/ruff format --check .

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/basedpyright

imports: setup
	$(BIN)/lint-imports

unit: setup
	$(BIN)/python -m pytest $(BY_FILE) tests/unit tests/architecture

bench-gpu: setup ## speed and memory of the sdxl preset on one GPU, with random weights
	$(BIN)/python -m benchmarks.gpu

bench: setup ## speed of what the method saves, as ratios of CPU time
	$(BIN)/python -m benchmarks

fuzz: setup ## 10 000 damaged pictures against the endpoint
	NURIE_MUTATIONS=10000 $(BIN)/python -m pytest -s --timeout 1800 \
	  tests/serve/test_hostile.py -k damaged

faults: setup ## faults of training, ten times where they come at random (half an hour)
	NURIE_REPEATS=10 $(BIN)/python -m pytest -q -m fault --junitxml faults.xml; $(BIN)/python -m benchmarks.faults faults.xml

load-test: setup ## loads and faults against a real application on this machine, nine minutes
	$(BIN)/python -m benchmarks.load

clean: ## remove what the demo and training made (data, runs, MLflow store)
	rm -rf data runs .demo mlruns mlartifacts mlflow.db
