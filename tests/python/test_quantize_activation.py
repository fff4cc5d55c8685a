"""Activation quantizers against ml_dtypes: codes and scales bit for bit, by arithmetic written down again in numpy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import lowbit
from lowbit.ops import ops

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
BLOCKS = {"fp8_e4m3": 0, "fp8_e4m3_block": 128, "mxfp8": 32, "mxfp4": 32, "nvfp4": 16}


def quantize(
    x: torch.Tensor, name: str, *, global_scale: float | None = None, power_of_two: bool = False, swizzled: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    scale = None if global_scale is None else torch.tensor([global_scale])
    q, scales, _, _ = ops.quantize_activation(x, name, "plain", None, None, 0.0, scale, power_of_two, swizzled)
    return q.numpy(), scales.numpy()


def in_blocks(x: np.ndarray, block: int) -> np.ndarray:
    """[m, blocks, block], short ones filled up with zeros."""
    m, k = x.shape
    block = block or k
    padded = np.zeros((m, -(-k // block) * block), np.float32)
    padded[:, :k] = x
    return padded.reshape(m, -1, block)


def expected(x: np.ndarray, name: str, global_scale: float, power_of_two: bool) -> tuple[np.ndarray, np.ndarray]:
    """Codes [m, k], one a byte, and scales [m, blocks] as they are stored."""
    values = in_blocks(x, BLOCKS[name])
    largest = np.abs(values).max(axis=2)
    f32 = np.float32
    if name.startswith("mxfp"):
        exponent = np.clip(np.frexp(largest)[1] - 1 - (8 if name == "mxfp8" else 2), -127, 127)
        scale = np.exp2(exponent.astype(np.float32)).astype(ml_dtypes.float8_e8m0fnu)
        inverse = (f32(1) / scale.astype(np.float32)).astype(np.float32)
    elif name == "nvfp4":
        # saturating; ml_dtypes itself makes NaN of what is too large
        scale = np.minimum(f32(global_scale) * (largest / f32(6)), f32(448)).astype(ml_dtypes.float8_e4m3fn)
        inverse = f32(global_scale) / scale.astype(np.float32)
    else:
        scale = (largest / f32(448)).astype(np.float32)
        inverse = (f32(448) / largest).astype(np.float32)
        if power_of_two:
            mantissa, exponent = np.frexp(scale)
            scale = np.ldexp(f32(1), np.where(mantissa == 0.5, exponent - 1, exponent)).astype(np.float32)
            inverse = (f32(1) / scale).astype(np.float32)
    element = ml_dtypes.float4_e2m1fn if name.endswith("fp4") else ml_dtypes.float8_e4m3fn
    limit = f32(6 if name.endswith("fp4") else 448)
    codes = np.clip(values * inverse[..., None], -limit, limit).astype(element).view(np.uint8)
    codes = codes.reshape(x.shape[0], -1)[:, : x.shape[1]]
    return codes, scale


def unpacked(q: np.ndarray, name: str, k: int) -> np.ndarray:
    if not name.endswith("fp4"):
        return q
    return np.stack([q & 15, q >> 4], axis=2).reshape(len(q), -1)[:, :k]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 16, 100, 512])
@pytest.mark.parametrize("name", BLOCKS)
def test_codes_and_scales(name: str, k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(k)
    x = (torch.randn(7, k) * torch.tensor([1e-2, 0.3, 1, 1, 5, 50, 900])[:, None]).to(dtype)
    for power_of_two in [False, True] if name == "fp8_e4m3_block" else [False]:
        global_scale = 12.5 if name == "nvfp4" else 1.0
        q, scales = quantize(x, name, global_scale=12.5 if name == "nvfp4" else None, power_of_two=power_of_two)
        codes, scale = expected(x.float().numpy(), name, global_scale, power_of_two)
        stored = scale if scale.dtype == np.float32 else scale.view(np.uint8)
        np.testing.assert_array_equal(scales.reshape(stored.shape), stored)
        np.testing.assert_array_equal(unpacked(q, name, k), codes)


def test_odd_widths_fill_the_last_byte() -> None:
    q, _ = quantize(torch.ones(2, 5), "mxfp4")
    assert q.shape == (2, 3)
    assert (q[:, 2] >> 4 == 0).all()


def test_swizzled_scales_are_cublas_tiles() -> None:
    """128 rows x 4 blocks to 512 bytes: row % 32, then row / 32, then block."""
    x = torch.randn(200, 32 * 6)
    _, rows = quantize(x, "mxfp8")
    _, swizzled = quantize(x, "mxfp8", swizzled=True)
    padded = np.zeros((256, 8), np.uint8)
    padded[:200, :6] = rows
    tiles = padded.reshape(2, 4, 32, 2, 4).transpose(0, 3, 2, 1, 4)
    np.testing.assert_array_equal(swizzled, tiles.reshape(-1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_behind_rms_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    x, residual = torch.randn(5, 300).to(dtype), torch.randn(5, 300).to(dtype)
    weight = torch.rand(300) + 0.5
    q, scale, _, total = ops.quantize_activation(x, "int8", "rms_norm", residual, weight, 1e-6, None, False, False)
    assert torch.equal(total, x + residual)
    values = torch.nn.functional.rms_norm(total.double(), (300,), weight.double(), 1e-6)
    torch.testing.assert_close(scale.double(), values.abs().amax(1) / 127, rtol=1e-6, atol=0)
    assert ((q * scale[:, None].double() - values).abs() <= scale[:, None] * 0.50001).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_behind_silu(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    gate, up = torch.randn(5, 300).to(dtype) * 4, torch.randn(5, 300).to(dtype)
    q, scale, _, _ = ops.quantize_activation(gate, "int8", "silu_mul", up, None, 0.0, None, False, False)
    values = torch.nn.functional.silu(gate.double()) * up.double()
    torch.testing.assert_close(scale.double(), values.abs().amax(1) / 127, rtol=1e-6, atol=0)
    assert ((q * scale[:, None].double() - values).abs() <= scale[:, None] * 0.50001).all()


@pytest.mark.parametrize("name", ["int8", "int8_asymmetric", *BLOCKS])
@pytest.mark.parametrize("lead", [(), (0,), (3,), (2, 0, 5)])
def test_leading_dimensions(name: str, lead: tuple[int, ...]) -> None:
    x = torch.randn(*lead, 256)
    codes, scale, zero_point, total = lowbit.quantize_activation(x, name, rms_norm=True, residual=x)
    assert codes.shape == (*lead, 128 if name.endswith("fp4") else 256)
    assert scale.shape == ((*lead, 256 // BLOCKS[name]) if BLOCKS.get(name) else lead)
    assert (zero_point is not None and zero_point.shape == lead) == (name == "int8_asymmetric")
    assert total is not None
    assert torch.equal(total, x + x)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["int8", "mxfp8", "nvfp4"])
def test_it_compiles(name: str) -> None:
    x = torch.randn(5, 96)
    compiled = torch.compile(lowbit.quantize_activation, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(lowbit.quantize_activation(x, name)[:2], compiled(x, name)[:2], strict=True):
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"format": "int4"}, ValueError, "'int4': it must be one of int8"),
        ({"rms_norm": None}, TypeError, "rms_norm is a NoneType: it must be True, False or the weight"),
        ({"rms_norm": True, "residual": [1.0]}, TypeError, "residual is a list"),
        ({"silu_mul": 1.0}, TypeError, "silu_mul is a float"),
        ({"format": "nvfp4", "global_scale": 2.0}, TypeError, "global_scale is a float"),
        ({"residual": torch.zeros(3, 64)}, ValueError, "residual: only rms_norm takes it"),
        ({"silu_mul": torch.zeros(3, 63)}, ValueError, "silu_mul is 3 x 63 float32: it must be as x, 3 x 64 float32"),
        ({"rms_norm": torch.zeros(63)}, ValueError, r"weight has shape \[63\]: it must be \[64\]"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lowbit.quantize_activation(torch.zeros(3, 64), **options)
