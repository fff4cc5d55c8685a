"""``lowbit.quantize_activation``: activations to low precision, alone or together with what models do just before."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lowbit.formats import FLOATS, describe_shape, dtype_name
from lowbit.ops import ACTIVATION_FORMATS, ops


class QuantizedActivation(NamedTuple):
    """Activations in low precision: v = (codes - zero_point) * scale.

    Attributes:
        codes: int8 or float8_e4m3fn [..., k], or uint8 [..., ceil(k / 2)] with element 0 in the low four bits.
        scale: float32 [...] for rows; float32, float8_e8m0fnu or float8_e4m3fn [..., blocks]; or swizzled, [bytes].
        zero_point: int32 [...] of ``"int8_asymmetric"``, else None.
        sum: x + residual in x's dtype, of ``residual``, else None.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    sum: Tensor | None


def quantize_activation(
    x: Tensor,
    format: str = "int8",
    *,
    rms_norm: Tensor | bool = False,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    silu_mul: Tensor | None = None,
    global_scale: Tensor | None = None,
    power_of_two: bool = False,
    swizzled: bool = False,
) -> QuantizedActivation:
    """Every row of x in a low precision, its scales found on the fly; the same bits on the CPU and on CUDA.

    Args:
        x: [..., k] float32, float16 or bfloat16.
        format: ``"int8"``, ``"int8_asymmetric"``, ``"fp8_e4m3"`` (a scale for a row), ``"fp8_e4m3_block"`` (for 128
            columns), ``"mxfp8"``, ``"mxfp4"`` (OCP MX v1.0 section 6.3, for 32) or ``"nvfp4"`` (for 16).
        rms_norm: quantizes x / sqrt(mean(x^2) + eps) * weight: the weight [k], or True for 1.
        eps: of ``rms_norm``.
        residual: with ``rms_norm``: x + residual is normalised, and returned. Of x's shape and dtype.
        silu_mul: quantizes x / (1 + exp(-x)) * silu_mul. Of x's shape and dtype.
        global_scale: float32 [1], of ``"nvfp4"``: block scales are multiplied by it before they are rounded.
        power_of_two: of ``"fp8_e4m3_block"``: scales are powers of two.
        swizzled: of ``"mxfp8"``, ``"mxfp4"`` and ``"nvfp4"``: scales in the order in which Blackwell's tensor cores
            read them, padded to 128 rows and 4 blocks.

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: no such format, shapes or devices that do not fit, an option that the format has not.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}: it must be a torch.Tensor")
    if x.dtype not in FLOATS:
        raise TypeError(f"x is {dtype_name(x.dtype)}: it must be float32, float16 or bfloat16")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x is {describe_shape(tuple(x.shape))}: it must have a last dimension k of at least 1")
    if format not in ACTIVATION_FORMATS:
        raise ValueError(f"format is {format!r}: it must be one of {', '.join(ACTIVATION_FORMATS)}")
    if not isinstance(rms_norm, (bool, Tensor)):
        raise TypeError(
            f"rms_norm is a {type(rms_norm).__name__}: it must be True, False or the weight, a torch.Tensor"
        )
    for name, tensor in (("residual", residual), ("silu_mul", silu_mul), ("global_scale", global_scale)):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}: it must be a torch.Tensor or None")
    norm = rms_norm is not False
    if norm and silu_mul is not None:
        raise ValueError("rms_norm, silu_mul: at most one of them")
    if residual is not None and not norm:
        raise ValueError("residual: only rms_norm takes it")
    other = residual if norm else silu_mul
    if other is not None and (other.shape != x.shape or other.dtype != x.dtype):
        raise ValueError(
            f"{'residual' if norm else 'silu_mul'} is {describe_shape(tuple(other.shape))} {dtype_name(other.dtype)}: "
            f"it must be as x, {describe_shape(tuple(x.shape))} {dtype_name(x.dtype)}"
        )
    bits, block, _ = ACTIVATION_FORMATS[format]
    lead, k = x.shape[:-1], x.shape[-1]
    codes, scale, zero_point, total = ops.quantize_activation(
        x.reshape(-1, k),
        format,
        "rms_norm" if norm else "plain" if other is None else "silu_mul",
        None if other is None else other.reshape(-1, k),
        rms_norm if isinstance(rms_norm, Tensor) else None,
        eps,
        global_scale,
        power_of_two,
        swizzled,
    )
    codes = codes.view(*lead, codes.shape[1])
    if bits == 8 and not format.startswith("int8"):
        codes = codes.view(torch.float8_e4m3fn)
    if block and format != "fp8_e4m3_block":
        scale = scale.view(torch.float8_e4m3fn if format == "nvfp4" else torch.float8_e8m0fnu)
    if not swizzled:
        scale = scale.view((*lead, *scale.shape[1:]))
    return QuantizedActivation(
        codes,
        scale,
        zero_point.view(lead) if format == "int8_asymmetric" else None,
        total.view(*lead, k) if residual is not None else None,
    )
