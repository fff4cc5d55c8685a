"""GGUF files: every type to the bit against the ``gguf`` package, and files that lie."""

import contextlib
import resource
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from gguf_files import TYPES, decoded, gguf, number, quantized_blocks, random_blocks, write
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit
from lowbit import checkpoints
from lowbit._load import core
from lowbit.checkpoints.gguf import _PLAIN, _TYPES, File
from lowbit.checkpoints.gguf import open as open_gguf
from lowbit.checkpoints.gguf_blocks import BLOCKS, pack_codes

# What this library spends beside the file: scales of 4 and 6 bits are a byte each, base 3 becomes two bits.
MORE_BITS = {"Q2_K": 0.5, "Q3_K": 0.125, "Q4_K": 0.125, "Q5_K": 0.125, "TQ1_0": 0.375}


@pytest.fixture(scope="module")
def all_types(tmp_path_factory):
    """A file with a random tensor of every type, and its blocks."""
    path = tmp_path_factory.mktemp("gguf") / "all.gguf"
    blocks = {kind: random_blocks(kind, 37, 768, seed) for seed, kind in enumerate(TYPES)}
    write(path, [(f"blk.0.{kind}.weight", data, kind) for kind, data in blocks.items()])
    return path, blocks


def same_bits(a: torch.Tensor, b: np.ndarray) -> bool:
    return torch.equal(a.view(torch.int32), torch.from_numpy(b).view(torch.int32))


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


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("k", [1, 7, 8, 9, 64, 100])
def test_codes_are_a_stream_of_bits(bits, k):
    codes = torch.randint(0, 1 << bits, (5, k), dtype=torch.uint8)
    stream = np.unpackbits(codes.numpy()[..., None], axis=-1, bitorder="little")[..., :bits].reshape(5, -1)
    assert np.array_equal(pack_codes(codes, bits).numpy(), np.packbits(stream, axis=1, bitorder="little"))


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


# ---- files ----


def plain_tensors():
    random = np.random.default_rng(1)
    return {
        "f32": random.standard_normal((3, 5)).astype(np.float32),
        "f16": random.standard_normal((2, 3, 4)).astype(np.float16),
        "f64": random.standard_normal(7),
        "i8": random.integers(-128, 128, (4, 4)).astype(np.int8),
        "i16": random.integers(-9, 9, (2, 2)).astype(np.int16),
        "i32": random.integers(-9, 9, (1, 6)).astype(np.int32),
        "i64": random.integers(-9, 9, (3,)).astype(np.int64),
    }


def test_plain_tensors(tmp_path):
    arrays = plain_tensors()
    bf16 = torch.randn(3, 8).bfloat16()
    write(
        tmp_path / "plain.gguf",
        [(name, array, None) for name, array in arrays.items()]
        + [("bf16", bf16.view(torch.uint8).numpy().reshape(3, 16), "BF16")],
    )
    with open_gguf(tmp_path / "plain.gguf") as file:
        assert list(file) == [*arrays, "bf16"]
        assert len(file) == len(arrays) + 1
        assert "f16" in file
        for name, array in arrays.items():
            tensor = file.tensor(name)
            assert tensor.dtype == torch.from_numpy(array).dtype
            assert np.array_equal(tensor.numpy(), array), name
            assert file.tensors[name].shape == array.shape
        assert torch.equal(file.tensor("bf16"), bf16)
        assert file.tensors["bf16"].type == "BF16"
        kept = file.tensor("f32")
        with pytest.raises(KeyError, match="no tensor 'f31'"):
            file.tensor("f31")
    with pytest.raises(ValueError, match=r"plain\.gguf is closed"):
        file.tensor("f32")
    assert np.array_equal(kept.numpy(), arrays["f32"])


def test_plain_tensors_lie_in_the_mapped_file(tmp_path):
    write(tmp_path / "plain.gguf", [("f32", np.ones((4, 4), np.float32), None)])
    before = (tmp_path / "plain.gguf").read_bytes()
    file = open_gguf(tmp_path / "plain.gguf")
    tensor = file.tensor("f32")
    assert tensor.data_ptr() == file.tensor("f32").data_ptr(), "no copy"
    tensor.fill_(7)
    assert (tmp_path / "plain.gguf").read_bytes() == before, "writes stay in memory"


def test_metadata(tmp_path):
    write(
        tmp_path / "meta.gguf",
        metadata={
            "add_uint8": [("u8", 255)],
            "add_int8": [("i8", -128)],
            "add_uint16": [("u16", 65535)],
            "add_int16": [("i16", -32768)],
            "add_uint32": [("u32", 2**32 - 1)],
            "add_int32": [("i32", -(2**31))],
            "add_uint64": [("u64", 2**64 - 1)],
            "add_int64": [("i64", -(2**63))],
            "add_float32": [("f32", 0.5)],
            "add_float64": [("f64", 0.1)],
            "add_bool": [("yes", True), ("no", False)],
            "add_string": [("text", "Grüße")],
            "add_array": [("words", ["a", "", "ß"]), ("ints", [1, -2, 3]), ("floats", [0.5, 1.5]), ("flags", [True])],
        },
    )
    file = open_gguf(tmp_path / "meta.gguf")
    assert file.version == 3
    found = file.metadata
    assert found["general.architecture"] == "test"
    expected = {"u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1, "i32": -(2**31)}
    expected |= {"u64": 2**64 - 1, "i64": -(2**63), "f32": 0.5, "f64": 0.1, "yes": True, "no": False}
    expected |= {"text": "Grüße", "words": ["a", "", "ß"]}
    for key, value in expected.items():
        assert found[key] == value
        assert type(found[key]) is type(value)
    assert found["ints"].tolist() == [1, -2, 3]
    assert found["floats"].tolist() == [0.5, 1.5]
    assert found["flags"].tolist() == [True]
    assert not file.tensors


def test_a_reader_of_another_make_agrees(all_types):
    path, _ = all_types
    theirs = gguf.GGUFReader(path)
    ours = open_gguf(path)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert info.type == tensor.tensor_type.name
        assert info.offset == tensor.data_offset
        assert info.nbytes == tensor.n_bytes


def test_stacks_of_weights(tmp_path):
    """The experts of a layer are one tensor of three dimensions."""
    blocks = [random_blocks("Q4_K", 16, 512, seed) for seed in range(3)]
    write(tmp_path / "moe.gguf", [("experts", np.stack(blocks), "Q4_K"), ("w", blocks[0], "Q4_K")])
    file = open_gguf(tmp_path / "moe.gguf")
    assert file.tensors["experts"].shape == (3, 16, 512)
    for i in range(3):
        assert same_bits(file.tensor("experts", i).dequantize(), decoded("Q4_K", blocks[i]))
    with pytest.raises(
        ValueError, match=r"experts is 3 x 16 x 512: a quantized weight has two dimensions; index=0 to 2"
    ):
        file.tensor("experts")
    with pytest.raises(ValueError, match=r"index is 3: for experts .* it must be 0 to 2"):
        file.tensor("experts", 3)
    with pytest.raises(ValueError, match=r"index is 0: for w .* no stack"):
        file.tensor("w", 0)


def test_alignment(tmp_path):
    arrays = [("a", np.ones(3, np.float32), None), ("b", np.full(5, 2, np.float32), None)]
    write(tmp_path / "wide.gguf", arrays, {"add_custom_alignment": [(256,)]})
    file = open_gguf(tmp_path / "wide.gguf")
    assert all(info.offset % 256 == 0 for info in file.tensors.values())
    assert file.tensor("b").tolist() == [2.0] * 5


def test_bad_scales_name_the_tensor(tmp_path):
    blocks = random_blocks("Q6_K", 4, 512)
    blocks.reshape(4, 2, 210)[2, 1, 208:] = np.float16("nan").reshape(1).view(np.uint8)
    write(tmp_path / "nan.gguf", [("blk.7.w", blocks, "Q6_K")])
    with pytest.raises(ValueError, match=r"nan\.gguf: blk\.7\.w \(Q6_K\): 1 of 8 super scales are not finite"):
        open_gguf(tmp_path / "nan.gguf").tensor("blk.7.w")
    blocks = random_blocks("MXFP4", 4, 64)
    blocks[1, 0] = 255
    write(tmp_path / "nan.gguf", [("w", blocks, "MXFP4")])
    with pytest.raises(ValueError, match=r"w \(MXFP4\): 1 of 8 scales"):
        open_gguf(tmp_path / "nan.gguf").tensor("w")


def test_types_that_are_not_read(tmp_path):
    nbytes = gguf.GGML_QUANT_SIZES[number("IQ2_XXS")][1]
    blocks = np.zeros((2, nbytes), np.uint8)
    write(tmp_path / "iq.gguf", [("w", blocks, "IQ2_XXS"), ("v", np.ones(4, np.float32), None)])
    file = open_gguf(tmp_path / "iq.gguf")
    assert file.tensors["w"].type == "IQ2_XXS"
    assert file.tensors["w"].nbytes is None
    assert file.tensors["w"].bits_per_weight is None
    assert file.tensor("v").tolist() == [1.0] * 4
    with pytest.raises(ValueError, match=r"w is IQ2_XXS: of GGUF's types F32, .*Q4_K.* are read"):
        file.tensor("w")


# ---- files that lie ----


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def header(tensors=0, pairs=0, version=3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def described(name="t", dims=(4,), kind=0, offset=0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def opened(tmp_path, data: bytes) -> File:
    (tmp_path / "x.gguf").write_bytes(data)
    return open_gguf(tmp_path / "x.gguf")


def padded(data: bytes, more: int = 64) -> bytes:
    return data + bytes(-len(data) % 32 + more)


HUGE = 2**62

LIES = {
    "empty": (b"", "0 bytes"),
    "short": (b"GGUF\3\0\0\0", r"truncated or no GGUF file"),
    "another magic": (b"GGJT" + header()[4:], "it begins with b'GGJT'"),
    "version 1": (header(version=1), "GGUF of version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "GGUF of big-endian"),
    "many tensors": (header(tensors=HUGE), f"promises {HUGE} tensors"),
    "many pairs": (header(pairs=HUGE), f"promises {HUGE} metadata pairs"),
    "a long key": (header(pairs=1) + struct.pack("<Q", HUGE) + bytes(32), f"needs {HUGE} bytes"),
    "a long string": (header(pairs=1) + string("a") + struct.pack("<IQ", 8, HUGE), f"needs {HUGE} bytes"),
    "a long array": (header(pairs=1) + string("a") + struct.pack("<IIQ", 9, 4, HUGE), f"needs {4 * HUGE} bytes"),
    "many strings": (header(pairs=1) + string("a") + struct.pack("<IIQ", 9, 8, HUGE), f"{HUGE} items of 'a'"),
    "many arrays": (header(pairs=1) + string("a") + struct.pack("<IIQ", 9, 9, HUGE), f"{HUGE} items of 'a'"),
    "deep arrays": (
        header(pairs=1) + string("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 1000,
        "more than 4 deep",
    ),
    "an unknown value": (header(pairs=1) + string("a") + struct.pack("<IQ", 13, 0), "a value of type 13"),
    "a strange boolean": (header(pairs=1) + string("a") + struct.pack("<IB", 7, 2), "the byte 2 for a boolean"),
    "a key that is no text": (header(pairs=1) + string(b"\xff") + struct.pack("<II", 4, 0), "no UTF-8"),
    "a key twice": (header(pairs=2) + (string("a") + struct.pack("<II", 4, 0)) * 2, "'a' is there twice"),
    "an odd alignment": (
        header(pairs=1) + string("general.alignment") + struct.pack("<II", 4, 24),
        "general.alignment is 24",
    ),
    "no alignment": (
        header(pairs=1) + string("general.alignment") + struct.pack("<II", 4, 0),
        "general.alignment is 0",
    ),
    "an alignment in words": (
        header(pairs=1) + string("general.alignment") + struct.pack("<I", 8) + string("32"),
        "general.alignment is '32'",
    ),
    "a tensor twice": (padded(header(tensors=2) + described() * 2), "'t' is there twice"),
    "no dimensions": (padded(header(tensors=1) + described(dims=())), "0 dimensions"),
    "many dimensions": (padded(header(tensors=1) + described(dims=(1,) * 5)), "5 dimensions"),
    "billions of dimensions": (
        padded(header(tensors=1) + string("t") + struct.pack("<I", 2**32 - 1)),
        "4294967295 dimensions",
    ),
    "a dimension of 0": (padded(header(tensors=1) + described(dims=(0, 4))), "4 x 0"),
    "an enormous tensor": (padded(header(tensors=1) + described(dims=(HUGE, HUGE))), "truncated, or its header wrong"),
    "an overflowing tensor": (padded(header(tensors=1) + described(dims=(2**32, 2**32))), "truncated"),
    "a tensor past the end": (padded(header(tensors=1) + described(dims=(16,), offset=32)), "truncated"),
    "an offset past the end": (padded(header(tensors=1) + described(offset=2**63)), "truncated"),
    "an unknown type past the end": (padded(header(tensors=1) + described(kind=999, offset=2**40)), "truncated"),
    "a crooked offset": (padded(header(tensors=1) + described(offset=4)), "must be a multiple of 32"),
    "half a block": (padded(header(tensors=1) + described(dims=(48,), kind=2)), "rows of Q4_0 are multiples of 32"),
    "half a super block": (padded(header(tensors=1) + described(dims=(128,), kind=12)), "multiples of 256"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(tmp_path, lie):
    data, message = LIES[lie]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            opened(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 2**21, "a count in the file must not allocate"
    finally:
        tracemalloc.stop()


def small_file(path) -> bytes:
    write(
        path,
        [("w", random_blocks("Q4_K", 2, 256), "Q4_K"), ("v", np.arange(6, dtype=np.float32), None)],
        {
            "add_array": [("words", ["a", "bc"]), ("ints", [1, 2])],
            "add_string": [("s", "text")],
            "add_bool": [("b", True)],
        },
    )
    return path.read_bytes()


def test_every_truncation_is_refused(tmp_path):
    whole = small_file(tmp_path / "w.gguf")
    end = max(info.offset + info.nbytes for info in open_gguf(tmp_path / "w.gguf").tensors.values())
    for length in range(end):
        with pytest.raises(ValueError, match=r"x\.gguf \(\d+ bytes\)"):
            opened(tmp_path, whole[:length])


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 4))
def test_changed_bytes_are_read_or_refused(tmp_path_factory, seed, changes):
    """Whatever a header says, opening and reading end in tensors or in a ValueError, in little memory."""
    directory = tmp_path_factory.mktemp("changed")
    data = bytearray(small_file(directory / "w.gguf"))
    random = np.random.default_rng(seed)
    for _ in range(changes):
        data[random.integers(0, len(data) - 300)] = random.choice([0, 1, 255, 127, random.integers(0, 256)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(ValueError):
        file = opened(directory, bytes(data))
        for name in file:
            file.tensor(name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17, "KB"


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_gguf(tmp_path / "none.gguf")


def test_version_2(tmp_path):
    data = padded(header(1, 0, version=2) + described(dims=(4,)), 0) + struct.pack("<4f", 1, 2, 3, 4) + bytes(16)
    file = opened(tmp_path, data)
    assert file.version == 2
    assert file.tensor("t").tolist() == [1, 2, 3, 4]
    assert repr(file).endswith("version 2, 1 tensors)")


def test_strings_that_are_no_text_keep_their_bytes(tmp_path):
    file = opened(tmp_path, header(pairs=1) + string("tokens") + struct.pack("<IIQ", 9, 8, 1) + string(b"a\xff"))
    assert file.metadata["tokens"][0].encode("utf-8", "surrogateescape") == b"a\xff"
