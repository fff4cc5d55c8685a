"""Products of random shapes, groups, formats and dtypes on every CPU level, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import EPS, FLOATS, decode, integer_linear, matmul_bound, quantize_rows, random_tensor

import lowbit
from lowbit import formats
from lowbit.ops import ops

INTEGERS = [name for name, fmt in formats.table().items() if fmt.integer]
profile = settings.get_profile("kernels")
GROUPS = st.one_of(st.sampled_from([1, 7, 16, 24, 32, 48, 64, 100, 128, 256]), st.integers(1, 700))


@st.composite
def weights(draw, names):
    """A random QuantizedTensor: sizes around panels of 16 rows and lines of 64 and 128 columns are likely."""
    fmt = formats.get(draw(st.sampled_from(names)))
    n = draw(st.one_of(st.sampled_from([1, 15, 16, 17, 33]), st.integers(1, 80)))
    k = draw(st.one_of(st.sampled_from([1, 63, 64, 65, 127, 128, 129, 513]), st.integers(1, 700)))
    if fmt.block_k:
        k = -(-k // fmt.block_k) * fmt.block_k
    group = (draw(st.sampled_from([1, 1, 3, 16, 128])), draw(GROUPS))
    zero_points = fmt.zero_point and draw(st.booleans())
    scales = {} if fmt.scale_dtype else {"scale_dtype": draw(st.sampled_from(FLOATS))}
    torch.manual_seed(draw(st.integers(0, 2**16)))
    return random_tensor(fmt, n, k, group=group, zero_points=zero_points, **scales)


ROWS = st.one_of(st.sampled_from([1, 2, 3, 6, 15, 16, 17, 31, 32, 33, 64, 65]), st.integers(1, 80))


@profile
@given(weight=weights(list(formats.table())), m=ROWS, dtype=st.sampled_from(FLOATS), biased=st.booleans())
def test_weight_only(level, weight, m, dtype, biased):
    n, k = weight.shape
    x = torch.randn(m, k).to(dtype)
    bias = torch.randn(n).to(dtype) if biased else None
    exact = torch.nn.functional.linear(x.double(), decode(weight))
    y = exact if bias is None else exact + bias.double()
    result = lowbit.linear(x, weight, bias)
    assert result.dtype == dtype
    assert result.shape == (m, n)
    bound = matmul_bound(x, decode(weight), y)
    if bias is not None:
        bound = bound + EPS[dtype] * bias.double().abs()
    # float32 results go through one more fused multiply-add, with the global scale and the bias
    assert ((result.double() - y).abs() <= bound + 2.0**-23 * y.abs()).all()


@profile
@given(
    weight=weights(INTEGERS),
    m=ROWS,
    dtype=st.sampled_from(FLOATS),
    out_dtype=st.sampled_from(FLOATS),
    symmetric=st.booleans(),
    biased=st.booleans(),
)
def test_integer(level, weight, m, dtype, out_dtype, symmetric, biased):
    n, k = weight.shape
    x = torch.randn(m, k).to(dtype)
    bias = torch.randn(n) if biased else torch.zeros(n)
    exact = integer_linear(*quantize_rows(x, symmetric), weight) + bias.double()
    result = lowbit.linear(
        x, weight, bias if biased else None, activation="int8", symmetric=symmetric, out_dtype=out_dtype
    )
    # sums are exact: only the scales of the groups are rounded, one fused multiply-add each
    q, scale, zero = quantize_rows(x, symmetric)
    size = ((q.double() - zero.double()[:, None]).abs() * scale.double()[:, None]) @ decode(weight).abs().T
    groups = -(-k // weight.group[1])
    smallest = 2.0**-24 if out_dtype == torch.float16 else 2.0**-133
    bound = (groups + 3) * 2.0**-23 * (size + bias.double().abs()) + EPS[out_dtype] * exact.abs() + smallest
    assert ((result.double() - exact).abs() <= bound).all()


@profile
@given(weight=weights(INTEGERS), m=ROWS, per_row=st.booleans(), zero=st.booleans())
def test_static_int8_activations(level, weight, m, per_row, zero):
    k = weight.shape[1]
    x = torch.randint(-128, 128, (m, k)).to(torch.int8)
    count = m if per_row else 1
    scale = torch.rand(count) * 0.02 + 0.005
    zero_point = (
        torch.randint(-128, 128, (count,), dtype=torch.int32) if zero else torch.zeros(count, dtype=torch.int32)
    )
    exact = integer_linear(x, scale.expand(m), zero_point.expand(m), weight)
    result = lowbit.linear(x, weight, activation="int8", x_scale=scale, x_zero_point=zero_point if zero else None)
    size = ((x.double() - zero_point.double().expand(m)[:, None]).abs() * scale.double().expand(m)[:, None]) @ decode(
        weight
    ).abs().T
    groups = -(-k // weight.group[1])
    assert ((result.double() - exact).abs() <= (groups + 3) * 2.0**-23 * size + 2.0**-149).all()


@profile
@given(weight=weights(list(formats.table())))
def test_dequantized_weights(weight):
    """Of the packed form: the definition, rounded once."""
    torch.testing.assert_close(weight.dequantize().double(), decode(weight), rtol=2.0**-22, atol=0)
    packed = weight.pack()
    for dtype in FLOATS:
        direct = ops.dequantize_packed(packed, *weight.shape, dtype)
        assert torch.equal(direct, weight.dequantize(dtype))


def test_one_hot_rows_give_the_dequantized_weight(level):
    """The identity times W^T is W^T, bit for bit, under every format."""
    for fmt in formats.table().values():
        weight = random_tensor(fmt, 50, 192, group=(1, 64), zero_points=fmt.zero_point)
        wanted = weight.dequantize().T
        assert torch.equal(lowbit.linear(torch.eye(192), weight), wanted), fmt.name
        result = lowbit.linear(torch.eye(192, dtype=torch.bfloat16), weight)
        # one rounding from the scaled code to bfloat16 before the global factor, or after it
        torch.testing.assert_close(result.float(), wanted, rtol=2.0**-7, atol=0)
        if fmt.global_scale is False:
            assert torch.equal(result, wanted.to(torch.bfloat16)), fmt.name


@pytest.mark.parametrize("fmt", list(formats.table().values()), ids=lambda fmt: fmt.name)
def test_nonfinite_activations_stay_in_their_row(level, fmt):
    weight = random_tensor(fmt, 37, 192, group=(1, 64))
    for m in (3, 40):
        for dtype in FLOATS:
            x = torch.randn(m, 192).to(dtype)
            others = torch.arange(m) != 1
            clean = lowbit.linear(x, weight)
            for bad in (float("nan"), float("inf")):
                spoilt = x.clone()
                spoilt[1, 77] = bad
                result = lowbit.linear(spoilt, weight)
                assert not result[1].isfinite().any()
                assert torch.equal(result[others], clean[others])
                if fmt.integer:
                    result = lowbit.linear(spoilt, weight, activation="int8")
                    assert result[1].isnan().all()
                    assert torch.equal(result[others], lowbit.linear(x, weight, activation="int8")[others])
