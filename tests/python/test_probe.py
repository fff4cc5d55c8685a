"""The probes of the machine's limits: plausible, and in order. How fast they find it is no matter here."""

import pytest

from lowbit._load import core

SECONDS = 0.02


@pytest.fixture
def level():
    """Sets a CPU level; the one in use comes back afterwards."""
    before = core().cpu_isa()
    yield core().set_cpu_isa
    core().set_cpu_isa(before)


LEVELS = [isa["name"] for isa in core().cpu_isas() if isa["supported"]]


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("what", ["f32", "int8"])
def test_every_level_multiplies(level, name, what):
    level(name)
    assert 1e8 < core().probe(what, SECONDS, 1) < 1e14


@pytest.mark.parametrize("name", LEVELS)
def test_bf16_where_there_is_a_unit(level, name):
    level(name)
    has_unit = name == "amx" or (name == "avx512_vnni" and "avx512_bf16" in core().cpu_features())
    if has_unit:
        assert 1e9 < core().probe("bf16", SECONDS, 1) < 1e14
    else:
        with pytest.raises(RuntimeError, match=f"level {name} of this processor has no bf16 multiplier"):
            core().probe("bf16", SECONDS, 1)


def test_read_bandwidth():
    assert 1e8 < core().probe("read_bandwidth", SECONDS, 2) < 1e13


def test_refusals():
    with pytest.raises(ValueError, match="no probe 'int9': read_bandwidth, f32, bf16 or int8"):
        core().probe("int9", SECONDS, 1)
    for seconds in (0.0, -1.0, 61.0, float("nan")):
        with pytest.raises(ValueError, match="more than 0 and at most 60"):
            core().probe("f32", seconds, 1)
