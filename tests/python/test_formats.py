"""Value tables against independent ones, for every code."""

import numpy as np
import pytest
import torch
from oracles import FLOATS, code_numbers, group_scales, need, pack_bits, unpack_bits

import lowbit
from lowbit import formats

INTEGERS = ["int2", "int3", "int4", "int5", "int6", "int8"]

ML_DTYPES = {
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
    "fp4_e2m1": "float4_e2m1fn",
    "mxfp4": "float4_e2m1fn",
    "mxfp8": "float8_e4m3fn",
    "nvfp4": "float4_e2m1fn",
    "fp6_e2m3": "float6_e2m3fn",
    "fp6_e3m2": "float6_e3m2fn",
    "mxfp6_e2m3": "float6_e2m3fn",
    "mxfp6_e3m2": "float6_e3m2fn",
}


@pytest.mark.parametrize("name", ML_DTYPES)
def test_minifloats_equal_ml_dtypes(name):
    ml_dtypes = need("ml_dtypes")
    fmt = formats.get(name)
    codes = np.arange(2**fmt.bits, dtype=np.uint8).view(getattr(ml_dtypes, ML_DTYPES[name]))
    expected = codes.astype(np.float32)
    np.testing.assert_array_equal(fmt.values.numpy(), expected)
    assert np.array_equal(np.signbit(fmt.values.numpy()), np.signbit(expected)), "the sign of zero"


@pytest.mark.parametrize(
    ("name", "offset"), [("int2", 2), ("int3", 4), ("int4", 8), ("int5", 16), ("int6", 32), ("int8", 0)]
)
def test_integers(name, offset):
    fmt = formats.get(name)
    codes = torch.arange(2**fmt.bits, dtype=torch.uint8)
    expected = codes.float() - offset if offset else codes.view(torch.int8).float()
    assert torch.equal(fmt.values, expected)
    assert fmt.zero_point


@pytest.mark.parametrize("bits", [2, 4])
def test_integers_equal_ml_dtypes(bits):
    """Whose integers are two's complement: the codes are those, plus the offset."""
    ml_dtypes = need("ml_dtypes")
    numbers = np.arange(2**bits, dtype=np.uint8)
    theirs = numbers.view(getattr(ml_dtypes, f"int{bits}")).astype(np.float32)
    ours = formats.get(f"int{bits}").values.numpy()
    np.testing.assert_array_equal(theirs, ours[numbers ^ 2 ** (bits - 1)])


def test_ternary():
    fmt = formats.get("ternary")
    assert torch.equal(fmt.values[:3], torch.tensor([-1.0, 0.0, 1.0]))
    assert fmt.values[3].isnan()
    assert fmt.integer
    assert not fmt.zero_point


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("k", [1, 7, 8, 9, 64, 77])
def test_codes_are_a_stream_of_bits(bits, k):
    """As compressed-tensors packs them, and as NumPy takes them apart."""
    numbers = torch.randint(0, 2**bits, (5, k)).to(torch.uint8)
    packed = formats.pack_codes(numbers, bits)
    assert packed.shape == (5, -(-k * bits // 8))
    assert torch.equal(packed, pack_bits(numbers, bits))
    assert torch.equal(formats.unpack_codes(packed, bits, k), numbers)
    assert torch.equal(unpack_bits(packed, bits, k), numbers.long())
    helpers = need("compressed_tensors.compressors.pack_quantized.helpers")
    signed = (numbers.int() - 2 ** (bits - 1)).to(torch.int8)
    theirs = helpers.pack_to_int32(signed, bits)
    assert torch.equal(theirs.view(torch.uint8)[:, : packed.shape[1]], packed)


def test_nf4_equals_bitsandbytes():
    functional = need("bitsandbytes").functional
    for name in ("nf4", "nf4_dq"):
        assert torch.equal(formats.get(name).values, functional.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(formats.get("nf4_dq").scale_values, functional.create_dynamic_map())


# GGUF's types that are formats of their own; test_gguf.py has their scales, too.
GGUF = {
    "q4_1": "Q4_1",
    "q5_1": "Q5_1",
    "q2_k": "Q2_K",
    "q3_k": "Q3_K",
    "q4_k": "Q4_K",
    "q5_k": "Q5_K",
    "q6_k": "Q6_K",
    "iq4_nl": "IQ4_NL",
    "tq2_0": "TQ2_0",
}


@pytest.mark.parametrize("name", GGUF)
def test_values_are_those_of_gguf(name):
    """One row of blocks whose codes are counted up, under scales of 1 and minima of 0, as the package decodes it."""
    need("gguf")
    from gguf_files import decoded, random_blocks

    from lowbit.checkpoints.gguf_blocks import BLOCKS

    kind, fmt = GGUF[name], formats.get(name)
    blocks = random_blocks(kind, 1, 1024)
    parts = BLOCKS[kind].parts(torch.from_numpy(blocks).view(1, -1, BLOCKS[kind].nbytes))
    assert set(parts.codes.flatten().tolist()) == set(range(2**fmt.bits)), "every code occurs"
    weight = BLOCKS[kind].read(torch.from_numpy(blocks).flatten(), 1, 1024)
    scales, mins = group_scales(weight)
    values = fmt.values.double()[parts.codes.long()].flatten() * scales.flatten().repeat_interleave(weight.group[1])
    if mins is not None:
        values = values + mins.flatten().repeat_interleave(weight.group[1])
    assert np.array_equal(values.float().numpy(), decoded(kind, blocks)[0])


def test_every_format_is_tested_here():
    assert set(formats.table()) == {*ML_DTYPES, *INTEGERS, *GGUF, "ternary", "nf4", "nf4_dq"}


def test_storage():
    expected = {
        "int8": torch.int8,
        "fp8_e4m3": torch.float8_e4m3fn,
        "fp8_e5m2": torch.float8_e5m2,
        "mxfp8": torch.float8_e4m3fn,
    }
    for fmt in formats.table().values():
        assert fmt.storage == expected.get(fmt.name, torch.uint8)
        assert fmt.row_bytes(5) == {2: 2, 3: 2, 4: 3, 5: 4, 6: 4, 8: 5}[fmt.bits]


def test_bad_codes():
    assert {fmt.name: fmt.first_bad_code for fmt in formats.table().values() if fmt.first_bad_code} == {
        "fp8_e4m3": 0x7F,
        "fp8_e5m2": 0x7C,
        "mxfp8": 0x7F,
    }


def encode_values(fmt: formats.Format, values: torch.Tensor) -> torch.Tensor:
    """The value that each float32 value is rounded to: quantized with a scale of 1."""
    codes = lowbit.ops.ops.encode(values[None], torch.ones(1, 1), None, fmt.name, 1, values.numel())
    whole = (
        lowbit.QuantizedTensor(
            codes.view(fmt.storage),
            torch.full((1, 1), 127, dtype=torch.uint8) if fmt.scale_dtype == "float8_e8m0fnu" else torch.ones(1, 1),
            format=fmt.name,
            shape=(1, values.numel()),
        )
        if not fmt.block_k
        else None
    )
    numbers = unpack_bits(codes, fmt.bits, values.numel())
    assert whole is None or torch.equal(numbers, code_numbers(whole))
    return fmt.values[numbers[0]]


FREE = [*INTEGERS, "ternary", "fp8_e4m3", "fp8_e5m2", "fp6_e2m3", "fp6_e3m2", "fp4_e2m1", "nf4"]


@pytest.mark.parametrize("name", FREE)
def test_encode_is_the_identity_on_values(name):
    fmt = formats.get(name)
    finite = fmt.values[fmt.values.isfinite()]
    result = encode_values(fmt, finite)
    assert torch.equal(result, finite)
    if not fmt.integer:
        assert torch.equal(result.signbit(), finite.signbit()), "-0 keeps its sign"


@pytest.mark.parametrize("name", sorted(ML_DTYPES.keys() & set(FREE)))
def test_encode_rounds_as_ml_dtypes(name):
    """Nearest, ties to even, on values between all neighbours, at and beside their midpoints."""
    ml_dtypes = need("ml_dtypes")
    fmt = formats.get(name)
    finite = fmt.values[fmt.values.isfinite()].unique()
    middle = (finite[1:] + finite[:-1]) / 2
    values = torch.cat(
        [
            middle,
            torch.nextafter(middle, middle + 1),
            torch.nextafter(middle, middle - 1),
            finite,
            torch.linspace(fmt.lowest, fmt.largest, 10001),
            torch.tensor([1e-40, -1e-40, 2.0**-149, 0.0, -0.0]),
        ]
    )
    expected = values.numpy().astype(getattr(ml_dtypes, ML_DTYPES[name])).astype(np.float32)
    np.testing.assert_array_equal(encode_values(fmt, values).numpy(), expected)


@pytest.mark.parametrize("name", FREE)
def test_encode_saturates(name):
    fmt = formats.get(name)
    beyond = torch.tensor([fmt.largest * 1.5 + 1, 1e30, float("inf"), fmt.lowest * 1.5 - 1, -1e30, float("-inf")])
    expected = torch.tensor([fmt.largest] * 3 + [fmt.lowest] * 3)
    assert torch.equal(encode_values(fmt, beyond), expected)


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("dtype", FLOATS)
def test_encode_takes_every_float(name, dtype):
    fmt = formats.get(name)
    w = (torch.randn(7, 33) * fmt.largest / 2).to(dtype)
    one = torch.ones(7, 1, dtype=dtype)
    direct = lowbit.ops.ops.encode(w, one, None, name, 1, 33)
    widened = lowbit.ops.ops.encode(w.float(), one.float(), None, name, 1, 33)
    assert torch.equal(direct, widened)


def test_dtype_names():
    assert formats.dtype_name(torch.bfloat16) == "bfloat16"
    assert formats.dtype_of("float8_e8m0fnu") == torch.float8_e8m0fnu
    with pytest.raises(ValueError, match="'int16': it must be one of float32, float16, bfloat16"):
        formats.dtype_of("int16")
    with pytest.raises(ValueError, match="'int7': it must be one of int4, int8"):
        formats.get("int7")
