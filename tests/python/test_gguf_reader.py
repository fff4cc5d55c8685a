"""The reader of GGUF files: what is in them, and files that lie."""

import contextlib
import resource
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from gguf_files import (
    decoded,
    file_of_all_types,
    gguf,
    number,
    random_blocks,
    same_bits,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.checkpoints.gguf import File
from lowbit.checkpoints.gguf import open as open_gguf


@pytest.fixture(scope="module")
def all_types(tmp_path_factory):
    return file_of_all_types(tmp_path_factory.mktemp("gguf"))


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
