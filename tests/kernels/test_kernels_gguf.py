"""Products of weights read from GGUF blocks, on every CPU level, against the package's own weights in float64."""

import pytest
import torch
from gguf_files import TYPES, decoded, random_blocks
from oracles import FLOATS, integer_linear, matmul_bound, quantize_rows

import lowbit
from lowbit.checkpoints.gguf_blocks import BLOCKS


def weight_of(kind: str, n: int, k: int) -> tuple[lowbit.QuantizedTensor, torch.Tensor]:
    blocks = random_blocks(kind, n, k)
    return BLOCKS[kind].read(torch.from_numpy(blocks).flatten(), n, k), torch.from_numpy(decoded(kind, blocks)).double()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_weight_only(level, kind, dtype):
    for m, n, k in ((1, 33, 768), (5, 16, 256), (40, 20, 512)):
        weight, exact = weight_of(kind, n, k)
        exact = exact.clamp(-1e30, 1e30) if kind == "MXFP4" else exact
        x = torch.randn(m, k).to(dtype)
        if kind == "MXFP4":  # exponents up to 2^122: float32 alone has the range
            x = x.float()
        y = x.double() @ exact.T
        result = lowbit.linear(x, weight).double()
        fits = y.abs() < torch.finfo(x.dtype).max / 2
        assert ((result - y).abs() <= matmul_bound(x, exact, y) + 2.0**-23 * y.abs())[fits].all(), (m, n, k)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q6_K", "TQ2_0"])
def test_integer(level, kind):
    """Types without minima are integers: rows of x become int8, sums are exact."""
    weight, exact = weight_of(kind, 33, 512)
    x = torch.randn(7, 512)
    q, scale, zero = quantize_rows(x, True)
    y = integer_linear(q, scale, zero, weight)
    size = (q.double().abs() * scale.double()[:, None]) @ exact.abs().T
    groups = 512 // weight.group[1]
    result = lowbit.linear(x, weight, activation="int8").double()
    assert ((result - y).abs() <= (groups + 3) * 2.0**-23 * size + 2.0**-149).all()


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K", "IQ4_NL"])
def test_types_that_are_no_integers(kind):
    weight, _ = weight_of(kind, 4, 256)
    with pytest.raises(ValueError, match=f"needs an integer weight, not {weight.format.name}"):
        lowbit.linear(torch.randn(2, 256), weight, activation="int8")
