# `make` or `make help` lists the targets. Everything is incremental: a second run does only what changed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

PYTHON ?= python3
JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 60
OUT ?= out

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
VENV_STAMP := $(VENV)/.installed-$(shell sha256sum requirements.txt | cut -c1-16)
LINT_STAMP := $(VENV)/.installed-lint-$(shell sha256sum requirements-lint.txt | cut -c1-16)
IN_TREE := PYTHONPATH=$(CURDIR)/python$${PYTHONPATH:+:$$PYTHONPATH}
CXX_FILES = $(shell git ls-files -co --exclude-standard '*.h' '*.cc')
PY_FOLDERS := $(wildcard python tools tests benchmarks examples)

# Cached objects are shared between clones of the tree; see cmake/OutriderOptions.cmake for the prefix maps.
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := 1
export CCACHE_IGNOREOPTIONS := -fmacro-prefix-map=*

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

# --- what the machine needs ---
.PHONY: deps system-packages
deps: system-packages $(VENV_STAMP)  ## install missing Debian packages (root) and the pinned Python packages into .venv

system-packages:
	@tools/install_apt.sh packaging/apt.txt

$(VENV_STAMP): | system-packages
	test -x $(VENV_PYTHON) || $(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install --quiet -r requirements.txt
	rm -f $(VENV)/.installed-[0-9a-f]*
	touch $@

$(LINT_STAMP): $(VENV_STAMP)
	tools/install_apt.sh packaging/apt-lint.txt
	$(VENV_PYTHON) -m pip install --quiet -r requirements-lint.txt
	rm -f $(VENV)/.installed-lint-*
	touch $@

# --- building ---
.PHONY: build
build: deps build/dev/build.ninja  ## build liboutrider.so, the extension module, tests, micro benchmarks and examples
	cmake --build build/dev -j $(JOBS)

.PHONY: build-package
build-package: deps build/dev/build.ninja  ## only what `import outrider` needs
	cmake --build build/dev -j $(JOBS) --target outrider_bindings

build/dev/build.ninja: CMakePresets.json $(VENV_STAMP)
	cmake --preset dev

build/asan/build.ninja build/tsan/build.ninja build/fuzz/build.ninja: build/%/build.ninja: CMakePresets.json | system-packages
	cmake --preset $*

# --- testing ---
.PHONY: test test-cpp test-asan test-tsan test-torch test-install test-python test-long layers cuda-check
test: layers test-cpp test-torch test-python cuda-check  ## everything that CI runs

layers:  ## check include edges, sizes and forbidden includes (tools/check_layers.py)
	$(PYTHON) tools/check_layers.py

test-cpp: test-asan test-tsan  ## torch-free rooms under ASan + UBSan and under TSan

test-asan test-tsan: test-%: system-packages build/%/build.ninja
	cmake --build build/$* -j $(JOBS)
	ctest --preset $* -j $(JOBS)

test-torch: build  ## C++ tests of the optimised build, torch rooms included, and an installed consumer
	ctest --preset dev
	@$(MAKE) --no-print-directory test-install

test-install: build
	rm -rf build/install build/consumer
	cmake --install build/dev --prefix build/install >/dev/null
	cmake -S tests/cmake_consumer -B build/consumer -G Ninja -DCMAKE_PREFIX_PATH=$(CURDIR)/build/install
	cmake --build build/consumer
	ctest --test-dir build/consumer --output-on-failure --no-tests=error

test-python: build  ## Python tests, end-to-end tests and the short conformance run
	$(IN_TREE) $(VENV_PYTHON) -m pytest

test-long: build  ## what does not fit into CI: all conformance samples, sweeps, soak
	$(IN_TREE) $(VENV_PYTHON) -m pytest -m long --timeout=0

cuda-check: build/dev/build.ninja  ## compile the CUDA units against torch's headers; needs a toolkit, but no GPU
	cmake --build build/dev -j $(JOBS) --target cuda_checks

.PHONY: fuzz
fuzz: system-packages build/fuzz/build.ninja  ## run each libFuzzer program for FUZZ_SECONDS
	cmake --build build/fuzz -j $(JOBS)
	for program in build/fuzz/fuzz_*; do \
	  name=$${program##*/fuzz_}; found=build/fuzz/found/$$name; mkdir -p $$found; \
	  $$program -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=$$found/ $$found tests/fuzz/corpus/$$name; \
	done

# --- seeing and measuring ---
.PHONY: demo demo-coexec demo-refactor demo-serve bench-coexec
demo: demo-coexec demo-refactor demo-serve  ## the demonstrations, one after another

demo-coexec: build-package  ## imperative programs, eager and co-executed side by side
	$(IN_TREE) $(VENV_PYTHON) -m outrider.demo coexec

demo-refactor: build-package  ## a small dense model becomes a Mixture-of-Experts; a real one beside its parent (93 MB once)
	$(IN_TREE) $(VENV_PYTHON) -m outrider.demo refactor

demo-serve: build-package  ## a server on this machine, asked through OpenAI's client
	$(IN_TREE) $(VENV_PYTHON) -m outrider.demo serve

bench-coexec: build  ## CPU figures of co-execution into docs/results and README.md
	$(IN_TREE) $(VENV_PYTHON) benchmarks/coexec/cpu.py
	$(VENV_PYTHON) tools/readme_results.py

# --- a GPU machine without a network ---
.PHONY: gpu-pack gpu-test
gpu-pack: system-packages  ## collect third-party headers and GoogleTest into .gpu_pack
	tools/gpu_pack.sh .gpu_pack

gpu-test:  ## on the GPU machine: build from .gpu_pack, run GPU tests, results into OUT=<folder>
	PYTHON=$(PYTHON) JOBS=$(JOBS) tools/gpu_test.sh $(OUT)

# --- tidying and shipping ---
.PHONY: format tidy wheel clean
format: $(LINT_STAMP)  ## format C++ and Python in place
	clang-format-19 -i $(CXX_FILES)
	$(VENV)/bin/ruff format $(PY_FOLDERS)
	$(VENV)/bin/ruff check --fix $(PY_FOLDERS)

tidy: build $(LINT_STAMP)  ## clang-tidy over our own rooms
	run-clang-tidy-19 -quiet -j $(JOBS) -p build/dev '/(src|bindings)/.*\.cc$$'

wheel: deps  ## a wheel for the torch in .venv, into dist/
	$(VENV_PYTHON) -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

clean:  ## remove what was built; .venv stays
	rm -rf build dist .gpu_pack
	rm -f python/outrider/*.so python/outrider/_built_for.py
