"""Kernels through torch: every test may run under every CPU level of this machine.

The independent answers are those of tests/python/oracles.py.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from lowbit import _C

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

# Random shapes: new ones on every run of a developer, who gets the seed to repeat a failure with; the same in CI.
settings.register_profile(
    "kernels",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

LEVELS = [
    pytest.param(
        level["name"],
        marks=() if level["supported"] else pytest.mark.skip(reason=f"this processor cannot run {level['name']}"),
    )
    for level in _C.cpu_isas()
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=LEVELS)
def level(request):
    """The name of a CPU level, in use until the test ends."""
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture
def threads():
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
