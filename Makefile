# `make demo` sets up and runs the main job; `make test` sets up and passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test slow lint reference clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,aselmdb,fast-extxyz]'
	touch $@

# One thread each: structures this small gain nothing from more, and threads that wait for busy cores cost.
demo: setup
	rm -rf demo-run
	OMP_NUM_THREADS=1 $(BIN)/python examples/demo.py --output demo-run

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow or not slow'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

reference: setup
	$(BIN)/python docs/make_reference.py

clean:
	rm -rf demo-run build *.egg-info
