# make demo           set up .venv, build the kernels, compare and train (the main job)
# make test           set up .venv, lint, run the suite here and against a wheel on an older torch
# make lint           ruff and clang-format; `make format` applies what they want
# make bench          the benchmarks, with every contestant that can be installed
# make bench-results  the records behind the README's tables, and the tables, on an idle machine
# make paper          the comparison of the paper, resumable; hours on two cores
# make nightly        what takes longer: many more examples, sanitizers, emulated Arm, a build under isolation
# make aarch64-python a Python for 64-bit Arm, on which the suite then runs sepconv_edge, emulated
# make clean          removes builds; `make distclean` the environments too
#
# Each environment is made once and only given what it lacks. Stamps in it say what was done.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= python3
WORKERS ?= $(shell nproc)
TORCH := torch==2.14.1 torchvision==0.29.1
OLDER_TORCH := torch==2.13.0

VENV := .venv
OLDER := .venv-oldest
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip install
# setup.py finds ninja, and the tests cmake, where pip put them.
export PATH := $(BIN):$(PATH)

CXX_FILES = $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.c')
BUILD_INPUTS := pyproject.toml setup.py $(shell find csrc -type f)
WHEEL_INPUTS := $(BUILD_INPUTS) MANIFEST.in $(shell find sepconv models -type f -not -name '*.so' -not -path '*/__pycache__/*')

# One thread a worker; tests that are about threads set their own number.
PYTEST := OMP_NUM_THREADS=1 pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: help demo test suite test-wheel lint format bench bench-results paper nightly aarch64-python sanitize
.PHONY: test-isolated clean distclean

help:
	@sed -n 's/^# make /make /p' Makefile

demo: $(VENV)/demo.stamp
	$(BIN)/python benchmarks/demo.py

test: lint suite test-wheel

suite: $(VENV)/test.stamp
	$(PYTEST)

lint: $(VENV)/test.stamp
	ruff check
	ruff format --check
	clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/test.stamp
	ruff check --fix
	ruff format
	clang-format -i $(CXX_FILES)

bench: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/models.py
	$(BIN)/python benchmarks/training.py

bench-results: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/record.py

# CIFAR-10 is fetched unless DATA names a place that has it. Stopped, the same command goes on.
DATA ?= runs/cifar10
OUT ?= runs/paper

paper: $(VENV)/demo.stamp
	test -e $(OUT)/timing.csv || $(BIN)/python benchmarks/paper.py --timing --out $(OUT)
	$(BIN)/python benchmarks/paper.py --data $(DATA) $(if $(filter file,$(origin DATA)),--download) --out $(OUT)

nightly: export SEPCONV_TEST_PROFILE := nightly
nightly: lint aarch64-python sanitize test-isolated suite test-wheel

# --- environments -----------------------------------------------------------------------------------------

# torch first and alone: its version decides what the rest may be.
$(VENV)/torch.stamp:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/build.stamp: $(VENV)/torch.stamp
	$(PIP) 'setuptools>=77' wheel ninja
	touch $@

# An editable install also compiles; objects are kept, so that only what changed is compiled again.
$(VENV)/demo.stamp: $(VENV)/build.stamp $(BUILD_INPUTS)
	$(PIP) --no-build-isolation -e '.[demo]'
	touch $@

$(VENV)/test.stamp: $(VENV)/build.stamp $(BUILD_INPUTS)
	$(PIP) --no-build-isolation -e '.[test-models]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/build.stamp $(BUILD_INPUTS)
	$(PIP) --no-build-isolation -e '.[bench,demo]'
	touch $@

# --- the wheel, on an older torch and away from the clone -------------------------------------------------

# By way of the source distribution, so that MANIFEST.in is tested and no stale file of build/ slips in.
dist/wheel.stamp: $(VENV)/test.stamp $(WHEEL_INPUTS)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --sdist --outdir dist
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist dist/sepconv-*.tar.gz
	touch $@

$(OLDER)/torch.stamp:
	$(PYTHON) -m venv $(OLDER)
	$(OLDER)/bin/python -m pip install $(OLDER_TORCH)
	touch $@

$(OLDER)/wheel.stamp: $(OLDER)/torch.stamp dist/wheel.stamp
	$(OLDER)/bin/python -m pip install "$$(echo dist/sepconv-*.whl)[test]"
	$(OLDER)/bin/python -m pip install --force-reinstall --no-deps dist/sepconv-*.whl
	touch $@

test-wheel: $(OLDER)/wheel.stamp
	folder=$$(mktemp -d)
	trap 'rm -rf "$$folder"' EXIT
	cp -r tests pyproject.toml "$$folder"
	cd "$$folder"
	export PATH="$(CURDIR)/$(OLDER)/bin:$$PATH"
	python -c 'import sepconv, torch; print("sepconv of", sepconv.__path__[0], "on torch", torch.__version__)'
	$(PYTEST)

# --- nightly ----------------------------------------------------------------------------------------------

aarch64-python: $(VENV)/torch.stamp
	$(BIN)/python tests/aarch64_python.py build/aarch64-python

sanitize: $(VENV)/test.stamp
	for preset in sanitize threads; do
	  cmake --preset $$preset
	  cmake --build --preset $$preset
	  ctest --preset $$preset
	done

# A plain `pip install .`: pip fetches the newest torch to build with, the environment keeps its own to run on.
test-isolated:
	folder=$$(mktemp -d)
	trap 'rm -rf "$$folder"' EXIT
	$(PYTHON) -m venv "$$folder/venv"
	"$$folder/venv/bin/python" -m pip install $(OLDER_TORCH) numpy
	"$$folder/venv/bin/python" -m pip install .
	cd "$$folder"
	venv/bin/python -W error::RuntimeWarning -c 'import sepconv, torch; print(sepconv.row_average(torch.eye(3)[None]))'

# --- cleaning ---------------------------------------------------------------------------------------------

clean:
	rm -rf build dist *.egg-info sepconv/_C*.so
	rm -f $(VENV)/demo.stamp $(VENV)/test.stamp $(VENV)/bench.stamp

distclean: clean
	rm -rf $(VENV) $(OLDER)
