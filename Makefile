# Targets: demo, test, test-gpu, check, bench, ui, clean. Each one first creates .venv if it is
# missing; clean removes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-gpu check bench ui clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml deploy/constraints.txt
	@echo "installing into $(VENV) (about 2.5 GB, 2 minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/python -m app demo

# A GPU rounds differently, so these tests always run on the CPU; tests/test_gpu.py runs on a GPU.
# A process that hangs ends the run: pytest-xdist may wait for ever after it has replaced one.
test: $(READY)
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

test-gpu: $(READY)
	$(BIN)/python -m pytest tests/test_gpu.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.data --json outputs/bench/data.json
	$(BIN)/python -m benchmarks.scale --json outputs/bench/scale.json
	$(BIN)/python -m benchmarks.learning --json outputs/bench/learning.json
	$(BIN)/python -m benchmarks.attention --json outputs/bench/attention.json
	$(BIN)/python -m benchmarks.loss --json outputs/bench/loss.json
	$(BIN)/python -m benchmarks.memory --json outputs/bench/memory.json
	$(BIN)/python -m benchmarks.step --json outputs/bench/step.json
	$(BIN)/python -m benchmarks.generate --json outputs/bench/generate.json
	$(BIN)/python -m benchmarks.load --json outputs/bench/load.json

ui: $(READY)
	$(BIN)/python -m app ui demo

clean:
	rm -rf $(VENV) outputs
