"""Products on the chip against float64, at the sizes of real models and with every kind of tail."""

from __future__ import annotations

import pytest
import torch

import lowbit
from lowbit import QuantizedTensor

SHAPES = [(4096, 4096), (8192, 8192), (11008, 4096), (4096, 14336), (1000, 4100), (63, 129)]
ROWS = [1, 2, 3, 7, 8, 16, 17, 33, 64, 65, 128, 257, 1024]
WEIGHT_ONLY = ["W4A16", "W4A16_ASYM", "W8A16", "MXFP4A16", "NVFP4A16", "MXFP8A16", "NF4"]


def weight(scheme: str | lowbit.Scheme, n: int, k: int) -> QuantizedTensor:
    block = 128  # of all formats that have blocks, k is a multiple
    k = -(-k // block) * block if lowbit.formats.get(lowbit.Scheme.of(scheme).format).block_k else k
    return lowbit.quantize(torch.randn(n, k, dtype=torch.bfloat16) / k**0.5, scheme)


def exact(x: torch.Tensor, w: QuantizedTensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Y in float64, and sum |x W|, by which errors are measured."""
    x64, w64 = x.double(), w.dequantize().double()
    y = x64 @ w64.T
    return (y if bias is None else y + bias.double()), x64.abs() @ w64.abs().T


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", WEIGHT_ONLY)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_weight_only(scheme: str, n: int, k: int, dtype: torch.dtype) -> None:
    w = weight(scheme, n, k).to("cuda")
    k = w.shape[1]
    bias = torch.randn(n, device="cuda", dtype=dtype)
    eps = torch.finfo(dtype).eps
    for m in ROWS:
        x = torch.randn(m, k, device="cuda", dtype=dtype)
        y = lowbit.linear(x, w, bias)
        wanted, size = exact(x, w, bias)
        # csrc/cuda/contract.h: at most 1.5 eps for a weight (its value, its scale, their product), and y's rounding.
        bound = eps * (1.5 * size + wanted.abs() + 1) + (k + 64) * 2.0**-23 * size
        assert ((y.double() - wanted).abs() <= bound).all(), f"m = {m}"


@pytest.mark.parametrize("scheme", ["W8A8", "W4A8"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_integer_gives_the_cpu_s_bits(scheme: str, symmetric: bool, n: int, k: int) -> None:
    w = weight(scheme, n, k)
    bias = torch.randn(n)
    for m in (1, 8, 33, 200):
        x = torch.randn(m, k, dtype=torch.bfloat16)
        on_cpu = lowbit.linear(x, w, bias, activation="int8", symmetric=symmetric)
        on_gpu = lowbit.linear(x.cuda(), w.to("cuda"), bias.cuda(), activation="int8", symmetric=symmetric)
        assert torch.equal(on_cpu, on_gpu.cpu()), f"m = {m}"


@pytest.mark.parametrize("accum", ["promoted", "fast"])
@pytest.mark.parametrize(("scheme", "group"), [("FP8", None), ("FP8_BLOCK", 128)])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (8192, 28672), (1024, 4096)])
def test_fp8(scheme: str, group: int | None, n: int, k: int, accum: str) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no fp8 tensor cores before compute capability 8.9")
    w = weight(scheme, n, k).to("cuda")
    for m in (1, 16, 100, 1024):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        y = lowbit.linear(x, w, activation="fp8", x_group=group, accum=accum)
        wanted, size = exact(x, w, None)
        # x to e4m3 once; products are exact; the tensor core keeps 13 bits behind the point of the largest.
        terms = 128 if accum == "promoted" else 512
        bound = (2.0**-4 + terms * 2.0**-13 / 32 + 2.0**-8) * size + 1e-3
        assert ((y.double() - wanted).abs() <= bound).all(), f"m = {m}"


def test_strided_and_empty_activations() -> None:
    w = weight("W4A16", 512, 1024).to("cuda")
    x = torch.randn(4, 7, 2048, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(lowbit.linear(x[..., :1024], w), lowbit.linear(x[..., :1024].contiguous(), w))
    assert torch.equal(lowbit.linear(x[:, :, ::2], w), lowbit.linear(x[:, :, ::2].contiguous(), w))
    assert lowbit.linear(x[:0, 0, :1024], w).shape == (0, 512)
