"""The kernels on CuPy arrays, on CuPy's current stream: no torch, nothing but ``lowbit._C``.

packed = lowbit.cupy.pack(codes, scales, format="int4", group=(1, 128))
y = lowbit.cupy.linear(x, packed)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowbit._load import core

Array = Any  # a cupy.ndarray


@dataclass(frozen=True)
class PackedWeight:
    """A weight packed for CUDA, in device memory.

    Attributes:
        data: uint8 [packed bytes].
        description: what it is, as the C API writes it.
        shape: (n, k).
    """

    data: Array
    description: str
    shape: tuple[int, int]


def _cupy() -> Any:
    import cupy  # type: ignore[import-not-found]

    return cupy


def _stream(cupy: Any) -> int:
    return int(cupy.cuda.get_current_stream().ptr)


def pack(
    codes: Array,
    scales: Array,
    zero_points: Array | None = None,
    *,
    format: str,
    group: tuple[int, int],
    k: int | None = None,
    global_scale: float = 1.0,
) -> PackedWeight:
    """Codes [n, ceil(k * bits / 8)] and scales [n groups, k groups] packed for the kernels.

    Scales have the format's dtype, or are the bytes of it; values are not looked at.

    Raises:
        TypeError, ValueError: a dtype or shape that the format has not, arrays that are not on a CUDA device.
    """
    cupy, c = _cupy(), core()
    info = next((row for row in c.formats() if row["name"] == format), None)
    if info is None:
        raise ValueError(f"format is {format!r}: it must be one of {', '.join(row['name'] for row in c.formats())}")
    n = int(codes.shape[0])
    k = int(codes.shape[1]) * 8 // info["bits"] if k is None else k
    what = (format, n, k, *group, info["scale_dtype"] or str(scales.dtype), zero_points is not None)
    description = c.weight_to_text(*what)
    packed = cupy.empty(c.packed_bytes(*what, "cuda"), dtype="uint8")
    c.cuda_pack(
        codes,
        scales,
        zero_points,
        packed,
        description=description,
        global_scale=global_scale,
        stream=_stream(cupy),
    )
    return PackedWeight(packed, description, (n, k))


def dequantize(weight: PackedWeight, dtype: str = "float32") -> Array:
    """[n, k] in float32 or float16."""
    cupy = _cupy()
    out = cupy.empty(weight.shape, dtype=dtype)
    core().cuda_dequantize_packed(weight.data, out, description=weight.description, stream=_stream(cupy))
    return out


def linear(
    x: Array, weight: PackedWeight, bias: Array | None = None, *, out_dtype: str | None = None, **options: Any
) -> Array:
    """Y [m, n] = f(x [m, k] W^T + bias), times or plus another tensor.

    Args:
        x: float16 or float32 [m, k]; int8 with ``x_scale``.
        weight: as ``pack`` gives it.
        bias: float16 or float32 [n].
        out_dtype: ``"float32"`` or ``"float16"``; None: x's.
        options: ``family`` (``"weight_only"``, ``"integer"``, ``"fp8"``), ``x_scale``, ``x_zero_point``, ``symmetric``,
            ``x_group``, ``accum``: as ``lowbit._C.cuda_gemm`` takes them; ``activation_function``, ``multiply``,
            ``residual``: as ``lowbit.linear``.

    Raises:
        TypeError, ValueError: dtypes and shapes that do not fit, arrays that are not on a CUDA device.
        RuntimeError: no kernel runs this.
    """
    cupy = _cupy()
    out = cupy.empty((int(x.shape[0]), weight.shape[0]), dtype=out_dtype or x.dtype)
    core().cuda_gemm(
        x,
        weight.data,
        out,
        bias,
        allocate=lambda size: cupy.empty(size, dtype="uint8"),
        description=weight.description,
        stream=_stream(cupy),
        **options,
    )
    return out
