"""Fake kernels: shapes and dtypes of the ops' results, with symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowbit import formats
from lowbit._load import core
from lowbit.ops import NAMESPACE, PRODUCTS


def _fake_product(name: str, *arguments: Any) -> Tensor:
    given = dict(zip(PRODUCTS[name], arguments, strict=False))  # the dispatcher drops defaults at the end
    x = given["x"]
    result: Tensor = x.new_empty((*x.shape[:-1], given["n"]), dtype=given.get("out_dtype", x.dtype))
    return result


def _fake_pack(
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    global_scale: float,
    format: str,
    n: int,
    k: int,
    group_n: int,
    group_k: int,
    *beside: Any,
) -> Tensor:
    sizes = (n, k, group_n, group_k)
    if all(isinstance(size, int) for size in sizes):
        fmt = formats.get(format)
        scale_dtype = fmt.scale_dtype or formats.dtype_name(scales.dtype)
        layout = "cuda" if codes.device.type == "cuda" else "cpu"
        size: Any = core().packed_bytes(format, *sizes, scale_dtype, zero_points is not None, layout)
    else:  # the layout is the core's affair: its size as a formula of symbols is not known here
        size = torch.library.get_ctx().new_dynamic_size()
    return codes.new_empty((size,), dtype=torch.uint8)


def _fake_unpack(
    packed: Tensor, codes: Tensor, scales: Tensor, zero_points: Tensor | None, *beside: Tensor | str | None
) -> None:
    return None


def _fake_dequantize_packed(
    packed: Tensor, n: int, k: int, dtype: torch.dtype, description: str | None = None
) -> Tensor:
    return packed.new_empty((n, k), dtype=dtype)


def _fake_dequantize(
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    global_scale: float,
    format: str,
    n: int,
    k: int,
    group_n: int,
    group_k: int,
    dtype: torch.dtype,
    *beside: Any,
) -> Tensor:
    return codes.new_empty((n, k), dtype=dtype)


def _fake_encode(
    w: Tensor, divisor: Tensor, zero_points: Tensor | None, format: str, group_n: int, group_k: int
) -> Tensor:
    n, k = w.shape
    return w.new_empty((n, formats.get(format).row_bytes(k)), dtype=torch.uint8)


def _fake_quantize_rows(x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    m = x.shape[0]
    return (
        torch.empty_like(x, dtype=torch.int8, memory_format=torch.contiguous_format),
        x.new_empty((m,), dtype=torch.float32),
        x.new_empty((m,), dtype=torch.int32),
    )


def _fake_quantize_activation(
    x: Tensor,
    format: str,
    source: str,
    other: Tensor | None,
    weight: Tensor | None,
    epsilon: float,
    global_scale: Tensor | None,
    power_of_two: bool,
    swizzled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    m, k = x.shape
    bits, block, scale_dtype = ACTIVATION_FORMATS[format]
    blocks = -(-k // block) if block else 1
    if swizzled:
        scales: tuple[Any, ...] = (-(-m // 128) * -(-blocks // 4) * 512,)
    else:
        scales = (m, blocks) if block else (m,)
    sums = source == "rms_norm" and other is not None
    return (
        x.new_empty((m, -(-k * bits // 8)), dtype=torch.int8 if format.startswith("int8") else torch.uint8),
        x.new_empty(scales, dtype=scale_dtype),
        x.new_empty((m if format == "int8_asymmetric" else 0,), dtype=torch.int32),
        x.new_empty((m if sums else 0, k)),
    )


# Of ``quantize_activation``: bits, columns that share a scale (0: all), dtype of scales as the op gives them. Read at
# import: torch.compile does not look into the core.
ACTIVATION_FORMATS = {
    row["name"]: (row["bits"], row["block"], torch.float32 if row["scale_dtype"] == "float32" else torch.uint8)
    for row in core().activation_formats()
}


_FAKES: dict[str, Callable[..., Any]] = {
    **{name: partial(_fake_product, name) for name in PRODUCTS},
    "quantize_activation": _fake_quantize_activation,
    "pack": _fake_pack,
    "unpack": _fake_unpack,
    "dequantize_packed": _fake_dequantize_packed,
    "dequantize": _fake_dequantize,
    "encode": _fake_encode,
    "quantize_rows": _fake_quantize_rows,
}
for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)
