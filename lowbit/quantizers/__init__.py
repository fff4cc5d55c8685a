"""From floating-point weights to ``QuantizedTensor``: schemes, and one quantizer for each scale rule."""

from __future__ import annotations

from typing import Any

import torch

from lowbit import formats
from lowbit.ops import ops
from lowbit.quantizers.ranges import group_ranges, row_chunks
from lowbit.quantizers.rules import RULES, Grid, quantized_scales
from lowbit.quantizers.scheme import PRESETS, SCALE_RULES, Scheme
from lowbit.tensor import QuantizedTensor

__all__ = ["PRESETS", "RULES", "SCALE_RULES", "Scheme", "quantize", "relative_error"]


def quantize(weight: torch.Tensor, scheme: Scheme | str, **choices: Any) -> QuantizedTensor:
    """The weight in low precision.

    Codes and scales equal those of compressed-tensors bit for bit for the presets that it has, bitsandbytes' for NF4.
    (Where its float16 arithmetic over- or underflows, in NVFP4, MXFP4 and MXFP8, ours is done in float32. NF4_DQ's
    8-bit scales are the nearest codes; bitsandbytes' CPU library rounds to a grid of 2^16 before it looks them up.) Any
    shape will do, and any group size where the format leaves that open: the last group of a row may be short.

    Args:
        weight: [n, k] float32, float16 or bfloat16 on the CPU: n outputs, k inputs. Any strides.
        scheme: a preset's name (``"W4A16"``) or a ``Scheme``.
        choices: attributes of the scheme to change: ``quantize(w, "W4A16", scale_rule="mse")``.

    Raises:
        TypeError: the weight is no tensor, or of another dtype.
        ValueError: its shape, NaN or infinite weights (counted, the first one named), scales that overflow.
    """
    scheme = Scheme.of(scheme, **choices)
    _check_weight(weight)
    weight = weight.detach()
    group = scheme.group(weight.shape[0], weight.shape[1])
    fmt = formats.get(scheme.format)
    if fmt.minimum or fmt.scale_dtype == "int8":
        raise ValueError(f"scheme is {scheme}: nothing here quantizes to {fmt.name}; lowbit.checkpoints.gguf reads it")
    # the core's check of the description: before any work, and with its numbers
    QuantizedTensor.packed_bytes(
        fmt.name, (weight.shape[0], weight.shape[1]), group, scheme.scales(weight.dtype), not scheme.symmetric
    )
    lows, highs = group_ranges(weight, group)
    if not (lows.isfinite().all() and highs.isfinite().all()):
        raise ValueError(_describe_not_finite(weight))
    super_scales, offset = None, 0.0
    if fmt.name in ("nf4", "nf4_dq") and scheme.scale_rule == "absmax":
        codes, grid = _bitsandbytes(weight, lows, highs, scheme, group)
    else:
        grid = RULES[scheme.scale_rule](weight, lows, highs, scheme)
        _check_overflow(grid, weight.dtype)
        codes = ops.encode(weight.contiguous(), grid.divisor, grid.zero_points, fmt.name, *group)
    if fmt.scale_values is not None:
        grid.scales, super_scales, offset = quantized_scales(grid.scales, fmt)
    return QuantizedTensor.trusted(
        codes=codes if fmt.storage == torch.uint8 else codes.view(fmt.storage),
        scales=grid.scales,
        zero_points=grid.zero_points,
        format=fmt,
        shape=(weight.shape[0], weight.shape[1]),
        group=group,
        global_scale=grid.global_scale,
        super_scales=super_scales,
        scale_offset=offset,
    )


def relative_error(weight: torch.Tensor, quantized: QuantizedTensor) -> float:
    """||W - dequantized|| / ||W|| (Frobenius), 0 for a weight of zeros.

    weight [n, k] float32, float16 or bfloat16: what ``quantized`` was made from.
    """
    _check_weight(weight)
    if tuple(weight.shape) != quantized.shape:
        raise ValueError(
            f"weight is {formats.describe_shape(tuple(weight.shape))}: "
            f"the quantized tensor is {formats.describe_shape(quantized.shape)}"
        )
    weight = weight.detach()
    n, k = quantized.shape
    if quantized.is_packed:
        whole = weight.float()
        norm = float(torch.linalg.vector_norm(whole))
        return float(torch.linalg.vector_norm(quantized.dequantize().sub_(whole))) / norm if norm else 0.0
    error = total = 0.0
    for begin, end in row_chunks(n, k, quantized.group[0]):
        rows = weight[begin:end].float()
        total += float(torch.linalg.vector_norm(rows)) ** 2
        error += float(torch.linalg.vector_norm(quantized.dequantize_rows(begin, end).sub_(rows))) ** 2
    return (error / total) ** 0.5 if total else 0.0


def _bitsandbytes(
    weight: torch.Tensor, lows: torch.Tensor, highs: torch.Tensor, scheme: Scheme, group: tuple[int, int]
) -> tuple[torch.Tensor, Grid]:
    """NF4 as bitsandbytes has it: weights times the reciprocal of absmax, and a scale of 0 for a group of zeros."""
    n, k = weight.shape
    group_n, group_k = min(group[0], n), min(group[1], k)
    magnitude = torch.maximum(lows.abs(), highs.abs()).float()
    inverse = 1.0 / magnitude.clamp(min=1e-38)
    one = torch.ones(1, 1, dtype=torch.float32, device=weight.device)
    codes = torch.empty(n, formats.get(scheme.format).row_bytes(k), dtype=torch.uint8, device=weight.device)
    for begin, end in row_chunks(n, k, group_n):
        factor = inverse[begin // group_n : -(-end // group_n)]
        if group_n > 1:
            factor = factor.repeat_interleave(min(group_n, end - begin), 0)[: end - begin]
        factor = factor.repeat_interleave(group_k, 1)[:, :k]
        codes[begin:end] = ops.encode(weight[begin:end].float() * factor, one, None, "nf4", end - begin, k)
    scales = magnitude if scheme.format == "nf4_dq" else magnitude.to(scheme.scales(weight.dtype))
    return codes, Grid(scales, None, scales)


def _check_weight(weight: Any) -> None:
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"weight is a {type(weight).__name__}: it must be a torch.Tensor")
    if weight.dtype not in formats.FLOATS:
        raise TypeError(f"weight is {formats.dtype_name(weight.dtype)}: it must be float32, float16 or bfloat16")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"weight is {formats.describe_shape(tuple(weight.shape))}: it must be n x k, each at least 1")
    if weight.device.type not in ("cpu", "cuda"):
        raise ValueError(f"weight is on {weight.device}: quantizing runs on the CPU and on CUDA devices")


def _describe_not_finite(weight: torch.Tensor) -> str:
    nans, infinities = int(weight.isnan().sum()), int(weight.isinf().sum())
    row, column = (~weight.isfinite()).nonzero()[0].tolist()
    return (
        f"weight ({formats.describe_shape(tuple(weight.shape))}) has {nans} NaN and {infinities} infinite values, "
        f"the first at [{row}, {column}]: every weight must be finite"
    )


def _check_overflow(grid: Grid, weight_dtype: torch.dtype) -> None:
    scales = grid.scales
    if scales.dtype in formats.FLOATS and not scales.isfinite().all():
        row, column = (~scales.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"the scale of group [{row}, {column}] overflows {formats.dtype_name(scales.dtype)} (weights are "
            f"{formats.dtype_name(weight_dtype)}): pass scale_dtype='float32'"
        )
