"""GGUF files for tests, written by the ``gguf`` package, and its decoding of their blocks: the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf", reason="the oracle package gguf is not installed")

from lowbit.checkpoints.gguf_blocks import BLOCKS  # noqa: E402

TYPES = tuple(BLOCKS)

# Where the float16 numbers of a block begin (ggml-common.h).
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "MXFP4": (),
}


def number(kind: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[kind]


def random_blocks(kind: str, n: int, k: int, seed: int = 0) -> np.ndarray:
    """uint8 [n, bytes of a row]: every bit random, but float16 numbers that are finite, denormal ones among them."""
    random = np.random.default_rng(seed)
    size, nbytes = gguf.GGML_QUANT_SIZES[number(kind)]
    blocks = random.integers(0, 256, (n, k // size, nbytes), dtype=np.uint8)
    for at in HALVES[kind]:
        halves = random.standard_normal(blocks.shape[:2]) * 2.0 ** random.integers(-26, 4, blocks.shape[:2])
        blocks[..., at : at + 2] = halves.astype(np.float16)[..., None].view(np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = 100 + blocks[..., 0] % 50  # 255 is NaN
    return blocks.reshape(n, -1)


def quantized_blocks(kind: str, weight: np.ndarray) -> np.ndarray:
    """uint8: as the package quantizes; random blocks of the types that it only reads."""
    try:
        return gguf.quants.quantize(weight, number(kind))
    except NotImplementedError:
        return random_blocks(kind, *weight.shape)


def decoded(kind: str, blocks: np.ndarray) -> np.ndarray:
    """float32 [n, k]: the package's answer."""
    return gguf.quants.dequantize(blocks, number(kind))


def write(path, tensors=(), metadata=None, **header) -> None:
    """A file of (name, array, type or None) tensors; metadata by the writer's own methods, {method: [arguments]}."""
    writer = gguf.GGUFWriter(path, "test")
    for method, calls in (metadata or {}).items():
        for arguments in calls:
            getattr(writer, method)(*arguments)
    for name, array, kind in tensors:
        writer.add_tensor(name, array, raw_dtype=None if kind is None else number(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def file_of_all_types(directory):
    """A file with a random tensor of every type: its path, and the blocks."""
    path = directory / "all.gguf"
    blocks = {kind: random_blocks(kind, 37, 768, seed) for seed, kind in enumerate(TYPES)}
    write(path, [(f"blk.0.{kind}.weight", data, kind) for kind, data in blocks.items()])
    return path, blocks


def same_bits(a: torch.Tensor, b: np.ndarray) -> bool:
    return torch.equal(a.view(torch.int32), torch.from_numpy(b).view(torch.int32))
