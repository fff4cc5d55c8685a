"""benchmarks/sweep.py: constants of a header with other values, and what it reads of cpu_limits."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import sweep

TUNING = (sweep.ROOT / "csrc/cpu/amx/tuning.h").read_text()

COLD = """level avx2, 2 threads
read 37.9 GB/s (37.7, 38.1), f32 0.235, bf16 0.469, int8 0.939 TOPS
scheme            n x k     m        us       p10    GB/s    TOPS   % limit growth
W4A16         4096x4096     1     262.1     254.3    33.1   0.128      87 m
W4A16         4096x4096     4     378.5     373.9    23.0   0.355      76 x   1.15
"""
CACHED = """level avx2, 1 threads
3.69 GHz
scheme         m  cycles/line
W4A16          1         10.8
"""


def test_one_constant_changes():
    before = TUNING.splitlines()
    after = sweep.with_value(TUNING, "slab_steps", "16").splitlines()
    changed = [line for line, other in zip(after, before, strict=True) if line != other]
    assert changed == ["constexpr int64_t slab_steps = 16;"]


def test_an_expression_is_replaced_whole():
    assert "constexpr int64_t small_bytes = 512 * 1024;" in sweep.with_value(TUNING, "small_bytes", "512 * 1024")


def test_a_constant_that_is_not_there():
    with pytest.raises(ValueError, match=r"0 lines 'constexpr T slab_stepz = value;', one is expected"):
        sweep.with_value(TUNING, "slab_stepz", "16")


@pytest.mark.parametrize(
    ("output", "cells"),
    [
        (COLD, {("W4A16", "4096x4096", "1"): 262.1, ("W4A16", "4096x4096", "4"): 378.5}),
        (CACHED, {("W4A16", "1"): 10.8}),
    ],
)
def test_figures_of_cpu_limits(output, cells, tmp_path):
    program = tmp_path / "cpu_limits"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}END\n")
    program.chmod(0o755)
    assert sweep.measure(program, []) == cells
