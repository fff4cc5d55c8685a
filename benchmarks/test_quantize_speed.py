"""Time to quantize and pack one layer, and to unpack it again."""

from __future__ import annotations

import pytest
import torch

import lowbit
from problems import float_weight

SHAPE = (4096, 11008)


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A8", "FP8", "MXFP4A16", "NVFP4A16", "NF4"])
def test_quantize_and_pack(benchmark, scheme: str) -> None:
    benchmark.group = "quantize and pack"
    weight = float_weight(*SHAPE).bfloat16()
    quantized = benchmark.pedantic(_quantize_and_pack, args=(weight, scheme), rounds=5, warmup_rounds=1)
    error = lowbit.relative_error(weight, quantized)
    assert error < 0.2
    benchmark.extra_info.update(
        scheme=scheme, n=SHAPE[0], k=SHAPE[1], threads=torch.get_num_threads(), weight_error=error
    )


def _quantize_and_pack(weight: torch.Tensor, scheme: str) -> lowbit.QuantizedTensor:
    quantized = lowbit.quantize(weight, scheme)
    quantized.pack()
    return quantized


def test_unpack(benchmark) -> None:
    benchmark.group = "quantize and pack"
    quantized = lowbit.quantize(float_weight(*SHAPE).bfloat16(), "W4A16")
    codes = quantized.codes.clone()
    quantized.pack()
    unpacked = benchmark.pedantic(quantized.canonical, rounds=5, warmup_rounds=1)
    assert torch.equal(unpacked[0], codes)
    benchmark.extra_info.update(scheme="W4A16", n=SHAPE[0], k=SHAPE[1], threads=torch.get_num_threads())
