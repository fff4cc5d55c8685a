"""Every test of the Python package begins from the same random state, on two threads."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# Random shapes: new ones on every run of a developer, who gets the seed to repeat a failure with; the same in CI.
settings.register_profile(
    "lowbit",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "lowbit"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler():
    """Forgets what torch.compile has seen, so that its limit of recompilations counts for one test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def threads():
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
