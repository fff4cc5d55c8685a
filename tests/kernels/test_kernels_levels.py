"""CPU levels: the environment variable, the setter, and what explain says of them."""

import os
import subprocess
import sys

import pytest

import lowbit
from lowbit import _C

NAMES = [level["name"] for level in _C.cpu_isas()]
SUPPORTED = [level["name"] for level in _C.cpu_isas() if level["supported"]]

PROGRAM = """
from lowbit import _C
print(_C.cpu_isa())
print(*(kernel["isa"] for kernel in _C.kernels() if kernel["runnable"] and kernel["device"] == "cpu"))
"""


def in_a_process(**environment: str) -> tuple[str, set[str]]:
    """The level in use, and the levels of the kernels that may run, of a new process."""
    env = {name: value for name, value in os.environ.items() if name != "LOWBIT_CPU_ISA"} | environment
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
    level, levels = done.stdout.strip().split("\n")
    return level, set(levels.split())


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_variable_caps_the_level(name):
    level, runnable = in_a_process(LOWBIT_CPU_ISA=name)
    # the best that this processor runs and that is no better than the cap
    allowed = NAMES[: NAMES.index(name) + 1]
    assert level == [other for other in SUPPORTED if other in allowed][-1]
    assert runnable <= set(allowed)


def test_without_the_variable_the_best_level_runs():
    assert in_a_process()[0] == SUPPORTED[-1]


def test_levels_are_set_by_name(level):
    assert _C.cpu_isa() == level
    for kernel in _C.kernels():
        if kernel["device"] == "cpu" and NAMES.index(kernel["isa"]) > NAMES.index(level):
            assert not kernel["runnable"]


def test_an_unknown_level_is_refused():
    before = _C.cpu_isa()
    with pytest.raises(ValueError, match="avx1024"):
        _C.set_cpu_isa("avx1024")
    for name in set(NAMES) - set(SUPPORTED):
        with pytest.raises(RuntimeError, match=name):
            _C.set_cpu_isa(name)
    assert _C.cpu_isa() == before


@pytest.mark.parametrize(
    "scheme", ["W4A16", "W8A8", "W4A8", "FP8", "MXFP4A16", "NF4", "W2A16", "W3A8", "BITNET", "MXFP6A16"]
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_explain_names_one_kernel_and_a_reason_for_each_other(level, scheme, dtype):
    for m in (1, 256):
        explanation = lowbit.explain(scheme, m, 4096, 4096, x_dtype=dtype)
        assert sum(row.chosen for row in explanation.candidates) == 1
        assert all(row.reason for row in explanation.candidates if not row.chosen)
        kernels = {kernel["name"]: kernel for kernel in _C.kernels()}
        assert kernels[explanation.kernel]["runnable"]
        assert level in str(explanation)
