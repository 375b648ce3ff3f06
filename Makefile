# Every target does its own set-up in .venv; nothing is done again when nothing has changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TOOLS  := $(VENV)/.tools
SITE   := python$(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])")/site-packages
SANITIZED := build/sanitized
CPP    := $(wildcard src/throughtime/kernels/native/cpp/*)

# Where there is a compiler, the native engine must build; THROUGHTIME_REQUIRE_NATIVE=0 installs without it if it does not.
CAN_COMPILE := $(shell command -v $(firstword $(CXX)) >/dev/null && $(PYTHON) -c "import os, sysconfig as s; \
	os.stat(os.path.join(s.get_path('include'), 'Python.h'))" 2>/dev/null && echo 1)
THROUGHTIME_REQUIRE_NATIVE ?= $(CAN_COMPILE)
export THROUGHTIME_REQUIRE_NATIVE
# For this machine alone; a release, and continuous integration, have all instruction sets.
THROUGHTIME_NATIVE_ISAS ?= native
export THROUGHTIME_NATIVE_ISAS
STAMP  := $(VENV)/.installed$(if $(CAN_COMPILE),,-without-native)

.PHONY: demo test test-without-native sanitize check install bench clean

demo: install          ## train on Python's own standard library, evaluate, and write some text
	$(BIN)/throughtime demo

test: install          ## all tests, with coverage
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

test-without-native: install   ## what a machine without a compiler runs
	THROUGHTIME_ISA=none $(BIN)/python -m pytest -n 2 tests/nn tests/recurrence tests/kernels tests/models

sanitize: install      ## the native engine's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(PYTHON) -m venv --without-pip $(SANITIZED)
	@# It sees the tools of .venv, and its own throughtime before the one installed there.
	echo "$(abspath $(BIN)/..)/lib/$(SITE)" > $(SANITIZED)/lib/$(SITE)/tools.pth
	THROUGHTIME_REQUIRE_NATIVE=1 THROUGHTIME_NATIVE_ISAS=native \
		$(BIN)/python -m pip --python $(SANITIZED)/bin/python install --quiet --no-deps --no-build-isolation . \
		--config-settings=build-dir=$(SANITIZED)/cmake --config-settings=cmake.build-type=RelWithDebInfo \
		--config-settings=cmake.define.THROUGHTIME_SANITIZE=ON
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 \
		$(SANITIZED)/bin/python -m pytest tests/kernels/native

check: install         ## formatting, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install         ## speed and memory against PyTorch, both sides in one run
	$(BIN)/python benchmarks/recurrence.py
	$(BIN)/python benchmarks/recurrence.py --ragged
	$(BIN)/python benchmarks/recurrence.py --memory
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/language_model.py

install: $(STAMP)      ## the package and its tools, in .venv, at the tested versions

$(TOOLS): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch scikit-build-core nanobind cmake ninja
	@touch $@

# Not isolated: the build is kept, and a change of the C++ compiles only what it touches.
$(STAMP): $(TOOLS) CMakeLists.txt $(CPP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--no-build-isolation --editable ".[tensorboard]" --group dev
	@touch $@
	$(if $(CAN_COMPILE),,@echo "Installed without the native engine: no C++ compiler or no Python headers here (Debian: apt-get install g++ python3-dev)")

clean:                 ## forget the installation, the builds and the caches
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
