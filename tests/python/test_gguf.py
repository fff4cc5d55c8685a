"""GGUF's types, to the bit against the ``gguf`` package: blocks, layers, state dicts."""

import numpy as np
import pytest
import torch
from gguf_files import (
    TYPES,
    decoded,
    file_of_all_types,
    gguf,
    number,
    quantized_blocks,
    random_blocks,
    same_bits,
    write,
)

import lowbit
from lowbit import checkpoints
from lowbit._load import core
from lowbit.checkpoints.gguf import _PLAIN, _TYPES
from lowbit.checkpoints.gguf import open as open_gguf
from lowbit.checkpoints.gguf_blocks import BLOCKS

# What this library spends beside the file: scales of 4 and 6 bits are a byte each, base 3 becomes two bits.
MORE_BITS = {"Q2_K": 0.5, "Q3_K": 0.125, "Q4_K": 0.125, "Q5_K": 0.125, "TQ1_0": 0.375}


@pytest.fixture(scope="module")
def all_types(tmp_path_factory):
    return file_of_all_types(tmp_path_factory.mktemp("gguf"))


# ---- types ----


@pytest.mark.parametrize("kind", TYPES)
def test_weights_are_those_of_the_package_to_the_bit(all_types, kind):
    path, blocks = all_types
    weight = open_gguf(path).tensor(f"blk.0.{kind}.weight")
    assert isinstance(weight, lowbit.QuantizedTensor)
    assert weight.shape == (37, 768)
    expected = decoded(kind, blocks[kind])
    if kind == "MXFP4":  # E2M1 has a -0; the package's table of integers has not
        expected = expected + np.float32(0)
    zero = torch.tensor(0.0 if kind == "MXFP4" else -0.0)  # adding -0 changes nothing
    assert same_bits(weight.dequantize() + zero, expected)
    weight.pack()
    assert same_bits(weight.dequantize() + zero, expected)


@pytest.mark.parametrize("kind", TYPES)
def test_what_the_package_quantizes(tmp_path, kind):
    weight = np.random.default_rng(3).standard_normal((24, 512)).astype(np.float32)
    weight[0] = 0
    blocks = quantized_blocks(kind, weight)
    write(tmp_path / "w.gguf", [("w", blocks, kind)])
    read = open_gguf(tmp_path / "w.gguf").tensor("w")
    assert np.array_equal(read.dequantize().numpy(), decoded(kind, blocks))


@pytest.mark.parametrize("kind", TYPES)
def test_bits_per_weight_are_those_of_the_file(all_types, kind):
    path, _ = all_types
    file = open_gguf(path)
    info = file.tensors[f"blk.0.{kind}.weight"]
    size, nbytes = gguf.GGML_QUANT_SIZES[number(kind)]
    assert info.bits_per_weight == nbytes * 8 / size
    weight = file.tensor(info.name)
    assert weight.bits_per_weight == info.bits_per_weight + MORE_BITS.get(kind, 0)


@pytest.mark.parametrize("kind", TYPES)
def test_packed_weights_are_as_small(kind):
    """Of whole panels and lines the packed form has nothing more than the canonical one, but the header."""
    blocks = torch.from_numpy(random_blocks(kind, 64, 1024))
    weight = BLOCKS[kind].read(blocks.flatten(), 64, 1024)
    assert weight.pack().numel() == 256 + weight.nbytes


def to_blocks(kind: str, weight: lowbit.QuantizedTensor) -> np.ndarray:
    """The way back, in other words than the way there: from numbers to the bits of each block."""
    n, k = weight.shape
    size, nbytes = gguf.GGML_QUANT_SIZES[number(kind)]
    parts = weight.canonical()
    bits = np.unpackbits(parts.codes.view(torch.uint8).numpy(), axis=1, bitorder="little")
    width = weight.format.bits
    q = (bits[:, : k * width].reshape(n, k, width) << np.arange(width)).sum(2).astype(np.uint8).reshape(n, -1, size)
    out = np.zeros((n, k // size, nbytes), dtype=np.uint8)

    def halves(tensor):
        return tensor.numpy().reshape(n, -1, 1).view(np.uint8)

    def nibbles(values, group):  # low halves of each group of `group` values, then high ones
        pairs = values.reshape(n, k // size, -1, 2, group // 2)
        return (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(n, k // size, -1)

    def planes(values, count):  # one bit of each of `count` rows in a byte
        rows = values.reshape(n, k // size, count, -1)
        return (rows << np.arange(count, dtype=np.uint8)[:, None]).sum(2).astype(np.uint8)

    def crumbs(values):  # two bits of four rows of 32
        rows = values.reshape(n, k // size, 2, 4, 32)
        return (rows << np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]).sum(3).astype(np.uint8).reshape(n, -1, 64)

    def six(tensor):
        return tensor.numpy().reshape(n, -1, 8).astype(np.uint8)

    if kind == "MXFP4":
        out[..., 0] = parts.scales.view(torch.uint8).numpy()
        out[..., 1:] = nibbles(q, 32)
    elif kind in ("Q4_0", "IQ4_NL", "Q8_0", "Q5_0"):
        out[..., :2] = halves(parts.scales)
        if kind == "Q5_0":
            out[..., 2:6] = np.packbits(q >> 4, axis=-1, bitorder="little")
            out[..., 6:] = nibbles(q & 15, 32)
        else:
            out[..., 2:] = q if kind == "Q8_0" else nibbles(q, 32)
    elif kind in ("Q4_1", "Q5_1"):
        out[..., :2], out[..., 2:4] = halves(parts.scales), halves(parts.mins)
        if kind == "Q5_1":
            out[..., 4:8] = np.packbits(q >> 4, axis=-1, bitorder="little")
        out[..., -16:] = nibbles(q & 15, 32)
    elif kind == "Q2_K":
        scales, mins = (t.numpy().reshape(n, -1, 16).astype(np.uint8) for t in (parts.scales, parts.mins))
        out[..., :16] = scales | mins << 4
        out[..., 16:80] = crumbs(q)
        out[..., 80:82], out[..., 82:] = halves(parts.super_scales), halves(-parts.super_mins)
    elif kind == "Q3_K":
        out[..., :32] = planes(q >> 2, 8)
        out[..., 32:96] = crumbs(q & 3)
        scales = (parts.scales.numpy().reshape(n, -1, 16) + 32).astype(np.uint8)
        out[..., 96:104] = scales[..., :8] & 15 | (scales[..., 8:] & 15) << 4
        high = (scales >> 4).reshape(n, -1, 4, 4)
        out[..., 104:108] = (high << np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]).sum(2).astype(np.uint8)
        out[..., 108:] = halves(parts.super_scales)
    elif kind in ("Q4_K", "Q5_K"):
        out[..., :2], out[..., 2:4] = halves(parts.super_scales), halves(-parts.super_mins)
        scales, mins = six(parts.scales), six(parts.mins)
        out[..., 4:8] = scales[..., :4] | scales[..., 4:] >> 4 << 6
        out[..., 8:12] = mins[..., :4] | mins[..., 4:] >> 4 << 6
        out[..., 12:16] = scales[..., 4:] & 15 | (mins[..., 4:] & 15) << 4
        if kind == "Q5_K":
            out[..., 16:48] = planes(q >> 4, 8)
        out[..., -128:] = nibbles(q & 15, 64)
    elif kind == "Q6_K":
        out[..., :128] = nibbles(q & 15, 128)
        out[..., 128:192] = crumbs(q >> 4)
        out[..., 192:208] = parts.scales.numpy().reshape(n, -1, 16).view(np.uint8)
        out[..., 208:] = halves(parts.super_scales)
    elif kind == "TQ2_0":
        out[..., :64] = crumbs(q)
        out[..., 64:] = halves(parts.scales)
    else:
        assert kind == "TQ1_0"
        for at, first, columns, digits in ((0, 0, 32, 5), (32, 160, 16, 5), (48, 240, 4, 4)):
            rows = q[..., first : first + columns * digits].reshape(n, -1, digits, columns).astype(np.uint16)
            whole = (rows * 3 ** np.arange(4, 4 - digits, -1, dtype=np.uint16)[:, None]).sum(2)
            out[..., at : at + columns] = (whole * 256 + 242) // 243
        out[..., 52:] = halves(parts.scales)
    return out.reshape(n, -1)


@pytest.mark.parametrize("kind", TYPES)
def test_nothing_is_lost(kind):
    """The file's own bytes come back from the weight, also through the packed form."""
    blocks = random_blocks(kind, 20, 1024, seed=5)
    if kind == "TQ1_0":  # of 256 bytes 243 are numbers to base 3: those that its own quantizer writes
        blocks = quantized_blocks(kind, np.random.default_rng(0).standard_normal((20, 1024)).astype(np.float32))
    weight = BLOCKS[kind].read(torch.from_numpy(blocks).flatten(), 20, 1024)
    assert np.array_equal(to_blocks(kind, weight), blocks)
    weight.pack()
    assert np.array_equal(to_blocks(kind, weight), blocks)


def test_types_and_sizes_are_the_packages():
    names = {value.value: value.name for value in gguf.GGMLQuantizationType}
    assert set(_TYPES.items()) <= set(names.items())
    for kind, block in BLOCKS.items():
        assert (block.size, block.nbytes) == gguf.GGML_QUANT_SIZES[number(kind)]
    for kind, dtype in _PLAIN.items():
        assert (1, dtype.itemsize) == gguf.GGML_QUANT_SIZES[number(kind)]


def test_mxfp4_scales_at_the_ends():
    blocks = random_blocks("MXFP4", 1, 96)
    blocks.reshape(3, 17)[:, 0] = (0, 1, 252)
    weight = BLOCKS["MXFP4"].read(torch.from_numpy(blocks).flatten(), 1, 96)
    assert np.array_equal(weight.dequantize().numpy(), decoded("MXFP4", blocks))


# ---- in layers, without torch, and wrong ----


def read(kind: str, n: int = 24, k: int = 512) -> lowbit.QuantizedTensor:
    return BLOCKS[kind].read(torch.from_numpy(random_blocks(kind, n, k)).flatten(), n, k)


def scheme_of(weight: lowbit.QuantizedTensor) -> lowbit.Scheme:
    if weight.format.zero_point:  # int4, int5 and int8: scales may be negative
        return lowbit.Scheme(
            weight.format.name, weight.group[1], scale_dtype="float16", scale_rule="signed_max", symmetric=True
        )
    return lowbit.Scheme(weight.format.name, None if weight.format.block_k else weight.group[1])


@pytest.mark.parametrize("kind", TYPES)
def test_layers_and_state_dicts(tmp_path, kind):
    weight = read(kind)
    reference = weight.to("cpu").dequantize()
    layer = lowbit.nn.Linear.from_quantized(weight, scheme_of(weight))
    x = torch.randn(3, 512)
    assert torch.equal(layer(x), lowbit.linear(x, weight))
    checkpoints.save_model(layer, tmp_path / "layer.safetensors")
    with torch.device("meta"):
        other = lowbit.nn.Linear(512, 24, bias=False, scheme=scheme_of(weight))
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in other.state_dict().items()}
    assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in layer.state_dict().items()}
    checkpoints.load_model(other, tmp_path / "layer.safetensors", assign=True)
    assert other.quantized.equal(weight)
    assert torch.equal(other.weight, reference)


def test_state_dict_names():
    layer = lowbit.nn.Linear.from_quantized(read("Q4_K"), lowbit.Scheme("q4_k"))
    described = {name: (t.dtype, tuple(t.shape)) for name, t in layer.state_dict().items()}
    assert described == {
        "weight_packed": (torch.uint8, (24, 256)),
        "weight_scale": (torch.int8, (24, 16)),
        "weight_min": (torch.int8, (24, 16)),
        "weight_super_scale": (torch.float16, (24, 2)),
        "weight_super_min": (torch.float16, (24, 2)),
    }
    layer = lowbit.nn.Linear.from_float(torch.nn.Linear(256, 80, bias=False), "NF4_DQ")
    described = {name: (t.dtype, tuple(t.shape)) for name, t in layer.state_dict().items()}
    assert described == {
        "weight_packed": (torch.uint8, (80, 128)),
        "weight_scale": (torch.uint8, (80, 4)),
        "weight_super_scale": (torch.float32, (2,)),
        "weight_scale_offset": (torch.float32, (1,)),
    }
    state = layer.state_dict()
    with pytest.raises(ValueError, match="weight_super_scale"):
        layer.check_state({name: t for name, t in state.items() if name != "weight_super_scale"}, "")


@pytest.mark.parametrize("kind", ["Q4_1", "Q2_K", "Q5_K", "Q6_K"])
def test_without_torch(kind):
    weight = read(kind)
    codes, scales, _, *beside = (None if part is None else part.numpy() for part in weight.canonical())
    named = dict(zip(("mins", "super_scales", "super_mins"), beside, strict=True))
    options = {"format": weight.format.name, "group_n": 1, "group_k": weight.group[1]}
    packed = core().pack(codes, scales, **named, **options)
    assert np.array_equal(packed, weight.pack().numpy())
    back = core().unpack(packed)
    for name, array in (("codes", codes), ("scales", scales), *named.items()):
        assert back[name] is None if array is None else np.array_equal(back[name], array)
    assert np.array_equal(core().dequantize(codes, scales, **named, **options), weight.dequantize().numpy())
    with pytest.raises(ValueError, match=f"{weight.format.name} has no mins|{weight.format.name} needs mins"):
        core().pack(codes, scales, **options, mins=None if named["mins"] is not None else scales)


def test_parts_that_are_missing_or_too_many():
    parts = read("Q4_K").canonical()._asdict()
    options = {"format": "q4_k", "group": (1, 32)}
    bad = parts["super_scales"].clone()
    bad[3, 1] = float("inf")
    for change, message in (
        ({"mins": None}, r"mins are missing: q4_k needs 24 x 16"),
        ({"super_mins": None}, r"super mins are missing: q4_k needs 24 x 2"),
        ({"super_scales": bad[:, :1]}, r"super scales are 24 x 1: 24 x 2 are needed"),
        ({"super_scales": bad}, r"1 of 48 super scales are not finite, the first is inf at \[3, 1\]"),
        ({"scale_offset": 1.0}, r"scale offset is 1.0: it must be 0, q4_k has none"),
        ({"scales": parts["scales"].short()}, r"scales are int16: q4_k takes int8"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            lowbit.QuantizedTensor(**{**parts, **options, **change})
    with pytest.raises(TypeError, match="super scales are float32: float16 is needed"):
        lowbit.QuantizedTensor(**{**parts, **options, "super_scales": bad.float()})
    with pytest.raises(ValueError, match="mins are given: int4 has none"):
        lowbit.QuantizedTensor(parts["codes"], torch.ones(24, 1), format="int4", mins=parts["mins"])
