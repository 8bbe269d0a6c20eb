# make demo · make test · make check · make bench · make ui. Each makes .venv first when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench ui clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml deploy/constraints.txt
	@echo "installing into $(VENV) (about 2.5 GB, 2 minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/python -m app demo

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.data --json outputs/bench/data.json
	$(BIN)/python -m benchmarks.learning --json outputs/bench/learning.json
	$(BIN)/python -m benchmarks.attention --json outputs/bench/attention.json
	$(BIN)/python -m benchmarks.loss --json outputs/bench/loss.json
	$(BIN)/python -m benchmarks.memory --json outputs/bench/memory.json
	$(BIN)/python -m benchmarks.step --json outputs/bench/step.json
	$(BIN)/python -m benchmarks.load --json outputs/bench/load.json

ui: $(READY)
	$(BIN)/python -m app ui demo

clean:
	rm -rf $(VENV) outputs
