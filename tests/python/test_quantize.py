"""Quantizers against compressed-tensors and bitsandbytes, bit for bit; groups of any size; the better scale rules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import FLOATS, code_numbers, cross, ct_quantize, decode, expand, need, weights

import lowbit
from lowbit import Scheme, formats
from lowbit.quantizers import PRESETS

CT_PRESETS = sorted(
    set(PRESETS) - {"FP8_E5M2", "FP4A16", "NF4", "NF4_DQ", "INT8", "FP6_E3M2", "FP6_E2M3", "MXFP6_E3M2", "BITNET"}
)


@pytest.mark.parametrize(*cross(preset=CT_PRESETS, dtype=FLOATS))
def test_equals_compressed_tensors(preset, dtype):
    n, k = (200, 384) if preset == "FP8_BLOCK" else (48, 512)
    weight = weights(dtype, n, k)
    codes, scale, zero, global_scale = ct_quantize(weight, preset)
    ours = lowbit.quantize(weight, preset)
    keep = torch.ones(ours.scales.shape, dtype=torch.bool)
    if formats.get(ours.format.name).scale_dtype == "float8_e8m0fnu" and dtype == torch.float16:
        # Where 2^e underflows float16, compressed-tensors takes 1 for the scale and loses the group; we keep it.
        keep = scale != 1
        assert keep.any()
    assert ours.scales.shape == scale.reshape(ours.scales.shape).shape
    assert torch.equal(ours.scales.float()[keep], scale.float().reshape(ours.scales.shape)[keep])
    if preset not in ("NVFP4A16", "MXFP4A16", "MXFP6A16", "MXFP8A16"):
        assert ours.scales.dtype == scale.dtype == dtype
    if zero is None:
        assert ours.zero_points is None
    else:
        assert torch.equal(ours.zero_points, zero)
    if global_scale is not None:
        assert torch.tensor(1 / ours.global_scale, dtype=torch.float32) == global_scale
    values = ours.format.values[code_numbers(ours)]
    expected = codes.float()
    keep = expand(keep, ours.shape, ours.group)
    assert torch.equal(values[keep], expected[keep])
    if not ours.format.zero_point:  # a weight of -0 itself is the one case where signs may differ
        nonzero = keep & (weight != 0)
        assert torch.equal(values.signbit()[nonzero], expected.signbit()[nonzero])


@pytest.mark.parametrize(*cross(dtype=FLOATS, k=[64, 192, 512]))
def test_nf4_equals_bitsandbytes(dtype, k):
    functional = need("bitsandbytes").functional
    weight = weights(dtype, 40, k)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    ours = lowbit.quantize(weight, "NF4")
    swapped = ours.codes << 4 | ours.codes >> 4  # bitsandbytes has the first element in the high nibble
    assert torch.equal(swapped.reshape(-1), packed.reshape(-1))
    assert torch.equal(ours.scales.reshape(-1), state.absmax)


@pytest.mark.parametrize(*cross(dtype=FLOATS, k=[64, 192, 512, 5120]))
def test_double_quantization_equals_bitsandbytes(dtype, k):
    functional = need("bitsandbytes").functional
    weight = weights(dtype, 40, k)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64, compress_statistics=True)
    ours = lowbit.quantize(weight, "NF4_DQ")
    codes, scales, _, _, supers, _ = ours.canonical()
    assert torch.equal((codes << 4 | codes >> 4).reshape(-1), packed.reshape(-1))
    assert torch.equal(supers, state.state2.absmax)
    assert ours.scale_offset == state.offset.item()
    # its CPU library rounds quotients to a grid of 2^16 before it looks for the nearest code: near midpoints it may err
    magnitude = weight.float().unflatten(1, (-1, 64)).abs().amax(-1).flatten()
    quotient = (magnitude - state.offset) / supers.repeat_interleave(256)[: magnitude.numel()]
    table = ours.format.scale_values
    distance = [(table[c.flatten().long()] - quotient).abs() for c in (scales, state.absmax)]
    assert (distance[0] <= distance[1]).all(), "ours is the nearest"
    assert (distance[1] - distance[0] <= 2.0**-15).all()
    # what it stores, as it decodes it
    theirs = lowbit.QuantizedTensor(
        codes,
        state.absmax.view(scales.shape),
        format="nf4_dq",
        shape=ours.shape,
        group=(1, 64),
        super_scales=state.state2.absmax,
        scale_offset=state.offset.item(),
    )
    state.dtype = torch.float32
    expected = functional.dequantize_4bit(packed, state)
    assert torch.equal(theirs.dequantize(), expected)
    theirs.pack()
    assert torch.equal(theirs.dequantize(), expected)
    assert torch.equal(lowbit.linear(torch.eye(k), theirs).T, expected)


def test_double_quantization_of_equal_groups():
    """Nothing is left after the offset: the code of 0, by a magnitude of 0."""
    for weight in (torch.zeros(3, 128), torch.ones(3, 128)):
        assert torch.equal(lowbit.quantize(weight, "NF4_DQ").dequantize(), weight)


def test_formats_without_a_quantizer():
    for name in ("q4_1", "q4_k", "q6_k"):
        with pytest.raises(ValueError, match=rf"nothing here quantizes to {name}; lowbit.checkpoints.gguf reads it"):
            lowbit.quantize(torch.randn(4, 256), lowbit.Scheme(name))
    with pytest.raises(ValueError, match="scale_rule is 'mse': the scales of nf4_dq have two levels"):
        lowbit.Scheme("nf4_dq", 64, scale_rule="mse")
    with pytest.raises(ValueError, match="groups of nf4_dq have 1 row"):
        lowbit.Scheme("nf4_dq", (2, 64))


@pytest.mark.parametrize("preset", PRESETS)
def test_error_is_that_of_the_literature(preset):
    """Relative errors of round-to-nearest on a Gaussian weight, as the oracle packages give them."""
    expected = {
        "W4A16": 0.1109,
        "W4A16_ASYM": 0.1005,
        "W4A8": 0.1109,
        "W8A16": 0.0065,
        "W8A8": 0.0087,
        "INT8": 0.0087,
        "FP8": 0.0265,
        "FP8_BLOCK": 0.0265,
        "FP8_E5M2": 0.0530,
        "FP4A16": 0.1023,
        "MXFP4A16": 0.1118,
        "MXFP8A16": 0.0265,
        "NVFP4A16": 0.0951,
        "NF4": 0.0920,
        "W2A16": 0.5506,
        "W2A8": 0.5506,
        "W3A16": 0.2378,
        "W3A8": 0.2378,
        "W5A16": 0.0537,
        "W5A8": 0.0537,
        "W6A16": 0.0264,
        "W6A8": 0.0264,
        "FP6_E3M2": 0.0527,
        "FP6_E2M3": 0.0286,
        "MXFP6_E3M2": 0.0528,
        "MXFP6A16": 0.0283,
        "BITNET": 0.5136,
        "NF4_DQ": 0.0921,
    }
    weight = torch.randn(512, 4096)
    error = lowbit.relative_error(weight, lowbit.quantize(weight, preset))
    assert error == pytest.approx(expected[preset], rel=0.02)


def test_better_scale_rules():
    weight = torch.randn(256, 4096)
    error = {
        rule: lowbit.relative_error(weight, lowbit.quantize(weight, "W4A16", scale_rule=rule))
        for rule in ("absmax", "signed_max", "mse")
    }
    assert error["absmax"] == pytest.approx(0.1109, rel=0.01)
    assert error["signed_max"] == pytest.approx(0.1032, rel=0.01)
    assert error["mse"] == pytest.approx(0.1016, rel=0.01)


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"INT8", "NF4_DQ", "BITNET"}))
def test_mse_is_never_worse(preset):
    weight = weights(torch.float32, 64, 512)
    plain = lowbit.quantize(weight, preset)
    searched = lowbit.quantize(weight, preset, scale_rule="mse")
    group = plain.group
    for begin in range(0, weight.shape[1], group[1]):
        part = slice(begin, begin + group[1])
        before = (decode(plain) - weight)[:, part].square().sum(1)
        after = (decode(searched) - weight)[:, part].square().sum(1)
        if group[0] == 1:
            assert (after <= before * (1 + 1e-5) + 1e-12).all()
    assert lowbit.relative_error(weight, searched) <= lowbit.relative_error(weight, plain)


@pytest.mark.parametrize(*cross(dtype=FLOATS, group=["tensor", "channel", 50, (16, 32)]))
def test_absmean_is_bitnets(dtype, group):
    """clip(round(W / mean |W|), -1, 1), by plain float64 means of slices."""
    weight = weights(dtype, 40, 130)
    scheme = Scheme.preset("BITNET", group_size=group)
    ours = lowbit.quantize(weight, scheme)
    group_n, group_k = scheme.group(40, 130)
    for i, first_n in enumerate(range(0, 40, group_n)):
        for j, first_k in enumerate(range(0, 130, group_k)):
            part = weight[first_n : first_n + group_n, first_k : first_k + group_k].double()
            mean = part.abs().mean().clamp(min=1e-5)
            torch.testing.assert_close(ours.scales[i, j].double(), mean, rtol=1e-6, atol=0)
    codes = ours.format.values[code_numbers(ours)]
    quotient = weight.float() / expand(ours.scales, ours.shape, ours.group)
    assert torch.equal(codes, quotient.round().clamp(-1, 1))


def test_signed_max_maps_the_largest_weight_exactly():
    weight = torch.randn(64, 256)
    quantized = lowbit.quantize(weight, "W4A16", group_size=64, scale_rule="signed_max")
    groups = weight.unflatten(1, (-1, 64))
    index = groups.abs().argmax(-1, keepdim=True)
    numbers = quantized.format.values[code_numbers(quantized)].unflatten(1, (-1, 64))
    assert (numbers.gather(-1, index) == -8).all()
    assert (quantized.scales < 0).any()
    largest = groups.gather(-1, index)[..., 0]
    assert torch.equal(quantized.scales, largest / -8)


@given(
    n=st.integers(1, 40),
    k=st.integers(1, 300),
    group=st.one_of(st.integers(1, 320), st.tuples(st.integers(1, 50), st.integers(1, 320)), st.just("tensor")),
    fmt=st.sampled_from(
        ["int4", "int8", "fp8_e4m3", "fp4_e2m1", "nf4", "int2", "int3", "int5", "int6", "fp6_e2m3", "ternary"]
    ),
    asymmetric=st.booleans(),
    rule=st.sampled_from(["absmax", "mse"]),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 9),
)
def test_any_shape_and_group(n, k, group, fmt, asymmetric, rule, dtype, seed):
    """Every weight is within half a step of the grid of its own group."""
    torch.manual_seed(seed)
    symmetric = not (asymmetric and formats.get(fmt).zero_point)
    weight = torch.randn(n, k).to(dtype)
    scheme = Scheme(fmt, group_size=group, symmetric=symmetric, scale_rule=rule)
    quantized = lowbit.quantize(weight, scheme)
    assert quantized.shape == (n, k)
    assert tuple(quantized.scales.shape) == formats.num_groups((n, k), scheme.group(n, k))
    decoded = decode(quantized)
    torch.testing.assert_close(quantized.dequantize().double(), decoded, rtol=1e-6, atol=1e-30)
    values = quantized.format.values[quantized.format.values.isfinite()].unique()
    step = float((values[1:] - values[:-1]).max())
    scales = expand(quantized.scales.abs().double(), (n, k), quantized.group)
    reach = 0.51 + (0.8 / step if rule == "absmax" and formats.get(fmt).zero_point else 0)
    if rule == "absmax":
        error = (decoded - weight.double()).abs()
        slack = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
        # A float16 scale below 2^-14 is denormal: rounded by up to 2^-25, times the largest value.
        denormal = float(values.abs().max()) * 2.0**-25 if dtype == torch.float16 else 0.0
        assert (error <= reach * step * scales * (1 + slack) + slack * weight.double().abs() + denormal).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_strides_do_not_matter(preset):
    weight = torch.randn(256, 96).t()
    assert lowbit.quantize(weight, preset).equal(lowbit.quantize(weight.contiguous(), preset))
    rows = torch.randn(32, 512)[:, ::2]
    assert lowbit.quantize(rows, preset).equal(lowbit.quantize(rows.contiguous(), preset))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros(preset, dtype):
    quantized = lowbit.quantize(torch.zeros(16, 256, dtype=dtype), preset)
    assert not quantized.dequantize().any()
    assert lowbit.relative_error(torch.zeros(16, 256), quantized) == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_tiny_and_huge_weights(preset):
    for factor in (1e-40, 1e-30, 1e30):
        weight = torch.randn(16, 256) * factor
        decoded = lowbit.quantize(weight, preset).dequantize()
        assert decoded.isfinite().all()
        if factor > 1e-35:
            assert (decoded - weight).norm() <= 0.2 * weight.norm() or preset in ("MXFP8A16", "MXFP4A16", "NVFP4A16")


def test_scale_dtypes():
    weight = torch.randn(8, 256, dtype=torch.bfloat16)
    for name in ("float32", "float16", "bfloat16"):
        quantized = lowbit.quantize(weight, "W4A16", scale_dtype=name)
        assert formats.dtype_name(quantized.scales.dtype) == name
        exact = weight.float().unflatten(1, (-1, 128)).abs().amax(-1) / 7.5
        torch.testing.assert_close(quantized.scales.float(), exact, rtol=2.0**-8, atol=0)


@pytest.mark.parametrize("preset", ["W4A16", "W4A16_ASYM", "NF4", "NF4_DQ", "BITNET", "FP8_BLOCK"])
def test_a_group_may_be_larger_than_the_weight(preset):
    weight = torch.randn(40, 96)
    huge = 2**31 - 1 if preset.startswith("NF4_DQ") else (2**31 - 1, 2**31 - 1)
    whole = 96 if preset.startswith("NF4_DQ") else (40, 96)
    quantized = lowbit.quantize(weight, preset, group_size=huge)
    assert torch.equal(quantized.dequantize(), lowbit.quantize(weight, preset, group_size=whole).dequantize())
    assert torch.equal(lowbit.linear(torch.eye(96), quantized), quantized.dequantize().t())


def test_threads_do_not_matter(threads):
    weight = torch.randn(333, 1000)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(lowbit.quantize(weight, "W4A16", group_size=96, scale_rule="mse"))
    assert results[0].equal(results[1])
    assert results[0].equal(results[2])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_not_finite_weights_are_refused(preset, dtype):
    weight = torch.randn(40, 320, dtype=dtype)
    weight[7, 300], weight[8, 0], weight[39, 319] = NAN, INF, -INF
    with pytest.raises(ValueError, match=r"40 x 320\) has 1 NaN and 2 infinite values, the first at \[7, 300\]"):
        lowbit.quantize(weight, preset)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (None, TypeError, "weight is a NoneType"),
        ([[1.0]], TypeError, "weight is a list"),
        (torch.zeros(4, 4, dtype=torch.float64), TypeError, "weight is float64: it must be float32"),
        (torch.zeros(4, 4, dtype=torch.int8), TypeError, "weight is int8"),
        (torch.zeros(4), ValueError, r"weight is \[4\]: it must be n x k"),
        (torch.zeros(2, 3, 4), ValueError, "weight is 2 x 3 x 4"),
        (torch.zeros(0, 4), ValueError, "weight is 0 x 4"),
        (torch.zeros(4, 0), ValueError, "weight is 4 x 0"),
        (torch.zeros(4, 4, device="meta"), ValueError, "weight is on meta"),
    ],
)
def test_bad_weights(weight, error, message):
    with pytest.raises(error, match=message):
        lowbit.quantize(weight, "W4A16")


def test_scales_that_overflow_are_refused():
    weight = torch.full((4, 128), 1e30)
    with pytest.raises(ValueError, match=r"scale of group \[0, 0\] overflows float16 .*scale_dtype='float32'"):
        lowbit.quantize(weight, "W4A16", scale_dtype="float16")


def test_requires_grad_does_not_matter():
    weight = torch.nn.Parameter(torch.randn(8, 64))
    assert lowbit.quantize(weight, "W4A16").equal(lowbit.quantize(weight.detach(), "W4A16"))


def test_relative_error_refuses_another_shape():
    with pytest.raises(ValueError, match="weight is 4 x 4: the quantized tensor is 8 x 64"):
        lowbit.relative_error(torch.zeros(4, 4), lowbit.quantize(torch.randn(8, 64), "W4A16"))
