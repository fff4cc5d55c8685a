"""QuantizedTensor: its two forms, what it refuses."""

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import EPS, decode, format_cases, random_tensor

import lowbit
from lowbit import QuantizedTensor, formats


@pytest.mark.parametrize(("fmt", "zero"), format_cases())
@pytest.mark.parametrize("shape", [(1, 32), (16, 128), (33, 160), (50, 96)])
def test_packing_is_invertible(fmt, zero, shape):
    tensor = random_tensor(fmt, *shape, group=(1, 40), zero_points=zero)
    reference = copy.deepcopy(tensor)
    packed = tensor.pack()
    assert tensor.is_packed
    assert tensor.pack() is packed
    assert packed.dtype == torch.uint8
    assert packed.dim() == 1
    assert packed.numel() == QuantizedTensor.packed_bytes(fmt.name, shape, tensor.group, tensor.scale_dtype, zero)
    assert tensor.equal(reference)
    again = QuantizedTensor.from_packed(packed, tensor.global_scale)
    assert again.equal(reference)
    assert again.pack().data_ptr() == packed.data_ptr()


@given(
    case=st.sampled_from(
        [
            (name, zero)
            for name in ("int4", "int8", "nf4", "fp8_e4m3", "int2", "int3", "int6", "fp6_e3m2")
            for zero in (False, True)
        ]
    ),
    n=st.integers(1, 70),
    k=st.integers(1, 300),
    group=st.tuples(st.integers(1, 80), st.integers(1, 310)),
    scale_dtype=st.sampled_from(formats.FLOATS),
    seed=st.integers(0, 9),
)
def test_packing_is_invertible_for_any_group(case, n, k, group, scale_dtype, seed):
    torch.manual_seed(seed)
    fmt = formats.get(case[0])
    tensor = random_tensor(fmt, n, k, group, case[1] and fmt.zero_point, scale_dtype=scale_dtype)
    reference = copy.deepcopy(tensor)
    expected = decode(tensor)
    torch.testing.assert_close(tensor.dequantize().double(), expected, rtol=2.0**-22, atol=0)
    tensor.pack()
    torch.testing.assert_close(tensor.dequantize().double(), expected, rtol=2.0**-22, atol=0)
    assert tensor.equal(reference)


@pytest.mark.parametrize(("fmt", "zero"), format_cases())
@pytest.mark.parametrize("dtype", formats.FLOATS)
def test_dequantize(fmt, zero, dtype):
    tensor = random_tensor(fmt, 24, 128, group=(2, 48), zero_points=zero)
    expected = decode(tensor)
    result = tensor.dequantize(dtype)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, rtol=EPS[dtype], atol=1e-7 if dtype == torch.float16 else 0)
    packed = copy.deepcopy(tensor)
    packed.pack()
    assert torch.equal(packed.dequantize(dtype), result)
    assert torch.equal(tensor.dequantize_rows(2, 10), tensor.dequantize()[2:10])


@pytest.mark.parametrize(("fmt", "zero"), format_cases())
def test_copies(fmt, zero):
    tensor = random_tensor(fmt, 8, 64, zero_points=zero)
    for other in (copy.deepcopy(tensor), pickle.loads(pickle.dumps(tensor))):
        assert other.equal(tensor)
        other.pack()
        for again in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
            assert again.is_packed
            assert again.equal(tensor)


def test_description():
    tensor = lowbit.quantize(torch.randn(64, 256, dtype=torch.bfloat16), "W4A16")
    assert tensor.nbytes == 64 * 128 + 64 * 2 * 2
    assert tensor.bits_per_weight == 4.125
    assert repr(tensor) == (
        "QuantizedTensor(int4, 64 x 256, groups of 1 x 128, bfloat16 scales, 4.12 bits per weight, cpu)"
    )
    tensor.pack()
    assert repr(tensor).endswith("packed, cpu)")
    assert tensor.nbytes == 64 * 128 + 64 * 2 * 2
    asymmetric = lowbit.quantize(torch.randn(64, 256, dtype=torch.bfloat16), "W4A16_ASYM")
    assert asymmetric.bits_per_weight == 4.125 + 4 / 128
    assert lowbit.quantize(torch.randn(64, 256), "NVFP4A16").nbytes == 64 * 128 + 64 * 16 + 4
    assert "float scales and zero points" not in repr(asymmetric)
    assert "bfloat16 scales and zero points" in repr(asymmetric)


def test_equal_notices_everything():
    make = lambda **options: random_tensor(formats.get("nvfp4"), 8, 64, **options)  # noqa: E731
    torch.manual_seed(1)
    tensor = make()
    torch.manual_seed(1)
    assert tensor.equal(make())
    torch.manual_seed(1)
    assert not tensor.equal(make(global_scale=0.5))
    assert not tensor.equal(make())
    assert not tensor.equal(random_tensor(formats.get("mxfp4"), 8, 64))


def test_meta():
    tensor = lowbit.quantize(torch.randn(8, 64), "W4A16_ASYM")
    meta = tensor.to("meta")
    assert meta.device.type == "meta"
    assert meta.codes.shape == tensor.codes.shape
    assert meta.pack().shape == tensor.pack().shape
    assert tensor.to("cpu") is tensor


INT4 = {"format": "int4"}
NAN, INF = float("nan"), float("inf")


def arguments(**changed):
    """A valid int4 8 x 64 in groups of 32, something of it changed."""
    valid = {
        "codes": torch.zeros(8, 32, dtype=torch.uint8),
        "scales": torch.ones(8, 2),
        "zero_points": None,
        "format": "int4",
        "group": (1, 32),
    }
    return {**valid, **changed}


def with_value(value, dtype=torch.float32):
    scales = torch.ones(8, 2, dtype=dtype)
    scales[3, 1] = value
    return scales


def bad_code(dtype, byte):
    codes = torch.zeros(8, 64, dtype=torch.uint8)
    codes[2, 5] = byte
    return codes.view(dtype)


BAD = [
    ({"format": "int7"}, ValueError, "format is 'int7'"),
    ({"codes": [[1]]}, TypeError, "codes are a list: a torch.Tensor is needed"),
    ({"codes": torch.zeros(8, 32)}, TypeError, "codes are float32: uint8 is needed"),
    ({"codes": torch.zeros(8, 32, dtype=torch.int8)}, TypeError, "codes are int8: uint8 is needed"),
    ({"codes": torch.zeros(32, dtype=torch.uint8)}, ValueError, r"codes are \[32\]: they must have two dimensions"),
    ({"shape": (8, 65)}, ValueError, "codes are 8 x 32: int4 of 8 x 65 has 8 x 33"),
    ({"shape": (9, 64)}, ValueError, "codes are 8 x 32: int4 of 9 x 64 has 9 x 32"),
    ({"scales": 1.0}, TypeError, "scales are a float"),
    ({"scales": torch.ones(8, 2, dtype=torch.float64)}, TypeError, "scales are float64: int4 takes float32, float16"),
    ({"scales": torch.ones(8, 2, dtype=torch.uint8)}, TypeError, "scales are uint8: int4 takes float32"),
    ({"scales": torch.ones(8, 3)}, ValueError, "scales are 8 x 3: 8 x 64 in groups of 1 x 32 needs 8 x 2"),
    ({"scales": torch.ones(16)}, ValueError, r"scales are \[16\]: 8 x 64"),
    ({"scales": torch.ones(8, 2, device="meta")}, ValueError, "scales are on meta, codes on cpu"),
    (
        {"scales": with_value(NAN)},
        ValueError,
        r"1 of 16 scales are not finite and not negative, the first is nan at \[3, 1\]",
    ),
    ({"scales": with_value(INF)}, ValueError, r"the first is inf at \[3, 1\]"),
    ({"scales": with_value(-INF)}, ValueError, r"the first is -inf at \[3, 1\]"),
    ({"scales": with_value(-0.5)}, ValueError, r"the first is -0.5 at \[3, 1\] \(signed_scales=True allows"),
    ({"scales": with_value(-0.5, torch.float16)}, ValueError, "the first is -0.5"),
    ({"scales": with_value(NAN), "signed_scales": True}, ValueError, "1 of 16 scales are not finite, the first is nan"),
    ({"zero_points": torch.zeros(8, 2)}, TypeError, "zero points are float32: int8 is needed"),
    ({"zero_points": torch.zeros(8, 2, dtype=torch.int32)}, TypeError, "zero points are int32: int8 is needed"),
    ({"zero_points": torch.zeros(8, 1, dtype=torch.int8)}, ValueError, "zero points are 8 x 1: 8 x 64 in groups"),
    (
        {"zero_points": with_value(8, torch.int8)},
        ValueError,
        r"out of range, the first is 8 at \[3, 1\]: int4 allows -8 to 7",
    ),
    ({"zero_points": with_value(-9, torch.int8)}, ValueError, r"the first is -9 at \[3, 1\]"),
    ({"zero_points": torch.zeros(8, 2, dtype=torch.int8, device="meta")}, ValueError, "zero points are on meta"),
    ({"group": (1, 0)}, ValueError, "group is 1 x 0"),
    ({"group": (-1, 32)}, ValueError, "group is -1 x 32"),
    ({"global_scale": 2.0}, ValueError, "global scale is 2.0: it must be 1, int4 has none"),
    ({"format": "nf4", "zero_points": torch.zeros(8, 2, dtype=torch.int8)}, ValueError, "nf4 has no zero points"),
    ({"format": "mxfp4", "scales": torch.ones(8, 2)}, TypeError, "mxfp4 takes float8_e8m0fnu or its bytes"),
    ({"format": "mxfp4", "scales": with_value(255, torch.uint8)}, ValueError, r"the first is nan at \[3, 1\]"),
    (
        {"format": "mxfp4", "group": (1, 64), "scales": torch.ones(8, 1, dtype=torch.uint8)},
        ValueError,
        "group is 1 x 64: mxfp4 has blocks of 1 x 32",
    ),
    ({"format": "nvfp4", "scales": torch.ones(8, 4), "group": (1, 16)}, TypeError, "nvfp4 takes float8_e4m3fn"),
    (
        {"format": "nvfp4", "scales": torch.full((8, 4), -1.0).to(torch.float8_e4m3fn), "group": (1, 16)},
        ValueError,
        r"32 of 32 scales are not finite and not negative, the first is -1 at \[0, 0\]",
    ),
    (
        {"format": "nvfp4", "scales": torch.ones(8, 4).to(torch.float8_e4m3fn), "group": (1, 16), "global_scale": NAN},
        ValueError,
        "global scale is nan: it must be positive and finite",
    ),
    (
        {"format": "nvfp4", "scales": torch.ones(8, 4).to(torch.float8_e4m3fn), "group": (1, 16), "global_scale": -1},
        ValueError,
        "global scale is -1.0",
    ),
    ({"format": "fp8_e4m3", "codes": bad_code(torch.float8_e4m3fn, 0xFF)}, ValueError, r"first is nan at \[2, 5\]"),
    ({"format": "fp8_e5m2", "codes": bad_code(torch.float8_e5m2, 0xFC)}, ValueError, r"first is -inf at \[2, 5\]"),
    ({"format": "fp8_e5m2", "codes": bad_code(torch.float8_e4m3fn, 0)}, TypeError, "float8_e5m2 is needed"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD, ids=range(len(BAD)))
def test_refusals(changed, error, message):
    with pytest.raises(error, match=message):
        QuantizedTensor(**arguments(**changed))


def test_the_valid_one_is_valid():
    assert QuantizedTensor(**arguments()).shape == (8, 64)
    signed = QuantizedTensor(**arguments(scales=with_value(-0.5), signed_scales=True))
    signed.pack()
    assert signed.scales[3, 1] == -0.5


def test_signed_scales_are_for_integers():
    with pytest.raises(ValueError, match="not finite and not negative"):
        QuantizedTensor(**arguments(format="nf4", scales=with_value(-0.5), signed_scales=True))


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "nvfp4"])
def test_blocks_that_do_not_divide(name):
    block = formats.get(name).block_k
    message = rf"k = {block + 6} is not a multiple of block {block} \({name}\)"
    with pytest.raises(ValueError, match=message):
        lowbit.quantize(torch.randn(5, block + 6), lowbit.Scheme(name))
    with pytest.raises(ValueError, match=message):
        lowbit.nn.Linear(block + 6, 5, scheme=lowbit.Scheme(name), device="meta")


# ---- packed weights ----


@pytest.fixture
def packed():
    return lowbit.quantize(torch.randn(20, 200), "W4A16").pack()


def test_from_packed_refuses_what_is_no_packed_weight(packed):
    for bad, error, message in (
        (packed.float(), TypeError, "packed weight is float32: it must be uint8"),
        ("x", TypeError, "packed weight is a str"),
        (packed[None], ValueError, "one-dimensional"),
        (packed.repeat_interleave(2)[::2], ValueError, re.escape("strides (2,)")),
        (packed.to("meta"), ValueError, "on meta"),
    ):
        with pytest.raises(error, match=message):
            QuantizedTensor.from_packed(bad)
    for bad in (torch.zeros(0, dtype=torch.uint8), torch.zeros(4096, dtype=torch.uint8), packed[:100], packed[:-1]):
        with pytest.raises(ValueError):  # noqa: PT011 (the core's words)
            QuantizedTensor.from_packed(bad.clone())


def test_every_byte_of_the_header_is_guarded(packed):
    """One flipped bit anywhere in what the checksum covers is noticed, before anything is computed."""
    x = torch.randn(1, 200)
    noticed = 0
    for index in range(128):
        broken = packed.clone()
        broken[index] ^= 1 << (index % 8)
        try:
            QuantizedTensor.from_packed(broken)
        except ValueError:
            noticed += 1
            with pytest.raises(ValueError):  # noqa: PT011 (the core's words)
                lowbit.linear(x, broken)
            with pytest.raises(ValueError):  # noqa: PT011
                lowbit.ops.ops.weight_only(x, broken, None, 20)
        else:
            assert torch.equal(lowbit.linear(x, broken), lowbit.linear(x, packed)), f"byte {index} matters"
    assert noticed >= 100


def test_threads_may_meet_at_the_first_use():
    for _ in range(20):
        tensor = lowbit.quantize(torch.randn(64, 256), "W4A16")
        expected, codes = tensor.dequantize(), tensor.codes.clone()
        with ThreadPoolExecutor(6) as pool:
            packed = [pool.submit(tensor.pack) for _ in range(2)]
            decoded = [pool.submit(tensor.dequantize) for _ in range(4)]
            unpacked = [pool.submit(tensor.canonical) for _ in range(4)]
        assert torch.equal(packed[0].result(), packed[1].result())
        assert all(torch.equal(future.result(), expected) for future in decoded)
        assert all(torch.equal(future.result()[0], codes) for future in unpacked)


def test_dequantize_refuses():
    tensor = lowbit.quantize(torch.randn(4, 64), "W4A16")
    with pytest.raises(TypeError, match="dtype is int8: it must be float32"):
        tensor.dequantize(torch.int8)
    tensor.pack()
    with pytest.raises(ValueError, match="only the whole"):
        tensor.dequantize_rows(0, 2)


def test_to_takes_devices_alone():
    tensor = lowbit.quantize(torch.randn(8, 64), "W4A16")
    assert tensor.to("cpu") is tensor
    with pytest.raises(TypeError, match=r"device is torch.float16: codes and scales keep their dtypes"):
        tensor.to(torch.float16)
