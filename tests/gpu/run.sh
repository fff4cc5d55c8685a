#!/bin/sh
# What a machine with a GPU is asked to do: tests/gpu/run.sh [build] [test] [bench]; all three without arguments.
# Each takes minutes on 16 cores: `build` compiles for the first GPU alone unless LOWBIT_CUDA_ARCHS says otherwise.
# $PYTHON needs torch for CUDA, numpy, pytest, cmake, ninja, pybind11 and setuptools; nvcc is on PATH or in CUDA_HOME.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
[ $# -gt 0 ] || set -- build test bench

for task in "$@"; do
  case $task in
    build)
      if [ -z "${LOWBIT_CUDA_ARCHS:-}" ]; then
        arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
        [ "$arch" -lt 90 ] || arch=${arch}a # with the instructions that its chip alone has
        export LOWBIT_CUDA_ARCHS=$arch
      fi
      LOWBIT_CUDA=ON "$python" -m pip install --no-build-isolation --no-deps --editable .
      ;;
    test) "$python" -m pytest -m gpu -ra tests ;;
    bench)
      mkdir -p build
      "$python" benchmarks/cuda_speed.py --quick --json build/cuda_speed.json
      ;;
    *) echo "$task: build, test or bench" >&2 && exit 2 ;;
  esac
done
