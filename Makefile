# `make demo` and `make test` set up what they need from nothing, in .venv. `make help` lists the rest.

# The first of these that is Python 3.11 or newer and can make environments. Another: `make PYTHON=/path/to/python test`.
CANDIDATES := python3 python3.13 python3.12 python3.11 python
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(SUITABLE)' 2>/dev/null && echo $$p && break; done)

VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python -m
# The files with tests of a marker, or of one of several (`a|b`): collecting all others takes as long as some tests.
marked = $(shell grep -rlE --include='*.py' 'mark\.($(1))\b' tests | sort)

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-compile test-interpreter test-fast \
  test-slow test-slow-compile test-slow-others test-gpu measure-gpu compat lint types imports docs format clean

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-18s %s\n", $$1, $$2 }'

venv: $(READY) ## Set up .venv, or bring it up to date with pyproject.toml.

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv and ensurepip among: $(CANDIDATES)." \
	  "Install one (Debian and Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c '$(SUITABLE)' || { echo "PYTHON=$(PYTHON) does not work, is older than 3.11" \
	  "or lacks venv and ensurepip" >&2; exit 1; }
	@echo "== Setting up $(VENV) with $(PYTHON): once, and again when pyproject.toml changes"
	"$(PYTHON)" -m venv $(VENV)
	$(RUN) pip install --editable ".[dev]"
	@touch $@

demo: $(READY) ## Train a small detector on synthetic shapes, evaluate it and draw what it sees (two CPU cores, minutes).
	@echo "== Training, evaluating and drawing into runs/demo"
	$(VENV)/bin/deformdetr demo --output runs/demo

test: test-fast test-interpreter test-compile ## Run the fast tests.

test-compile: $(READY)
	@echo "== torch.compile, torch.export and random calls (without checking of shapes)"
	JAXTYPING_DISABLE=1 $(RUN) pytest -m "(compile or unchecked) and not slow" $(call marked,compile|unchecked)

test-interpreter: $(READY)
	@echo "== Triton's kernels in its interpreter, which needs no GPU"
	TRITON_INTERPRET=1 JAXTYPING_DISABLE=1 $(RUN) pytest -m "not gpu" tests/kernels/test_kernels.py tests/kernels/test_fuzz.py
	TRITON_INTERPRET=1 JAXTYPING_DISABLE=1 $(RUN) pytest -m interpreter $(call marked,interpreter)

test-fast: $(READY)
	@echo "== All other fast tests (with every annotated shape checked)"
	$(RUN) pytest

test-slow: test-slow-compile test-slow-others ## Run the slow tests.

test-slow-compile: $(READY)
	@echo "== Slow tests of torch.compile, torch.export and long trainings (without checking of shapes)"
	JAXTYPING_DISABLE=1 $(RUN) pytest -m "slow and (compile or unchecked)" $(call marked,slow)

test-slow-others: $(READY)
	@echo "== All other slow tests (with every annotated shape checked)"
	$(RUN) pytest -m slow $(call marked,slow)

test-gpu: $(READY) ## Run the tests that need a GPU.
	JAXTYPING_DISABLE=1 $(RUN) pytest -m gpu

measure-gpu: $(READY) ## Measure kernels and models on a GPU, and run its tests, into runs/gpu (nine minutes).
	$(RUN) benchmarks.measure_gpu --out runs/gpu

compat: $(READY) ## Run the fast tests with old and new releases of Python, PyTorch, NumPy, Numba (hours, 20 GB of disk).
	$(RUN) tools.compat

lint: $(READY) ## Check style and formatting.
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(READY) ## Check types.
	$(RUN) mypy

imports: $(READY) ## Check who imports whom.
	$(VENV)/bin/lint-imports

docs: $(READY) ## Build the documentation into site/.
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

format: $(READY) ## Rewrite the sources in the project's format.
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean: ## Remove .venv, caches and built documentation; runs/ stays.
	rm -rf $(VENV) site dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
