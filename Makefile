# `make demo` sets up and runs the main job; `make test` sets up and passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test slow lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,aselmdb,fast-extxyz]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py --output demo-run

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow or not slow'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf demo-run build *.egg-info
