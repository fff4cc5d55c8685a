# What the pybind11 module of csrc/python offers to Python.
#
# Its arrays are NumPy's, CPU arrays of any library with __dlpack__, or buffers; results are NumPy arrays, those of
# bfloat16 by ml_dtypes. num_threads=0: all that this process may run on.

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = Any  # with __array__, __dlpack__ or the buffer protocol

PACKED_HEADER_BYTES: int

def formats() -> list[dict[str, Any]]: ...
def packed_bytes(
    format: str,
    n: int,
    k: int,
    group_n: int,
    group_k: int,
    scale_dtype: str,
    zero_point: bool,
    packed_for: str = "cpu",
) -> int: ...
def describe(packed: Array, size: int | None = None) -> dict[str, Any]: ...
def weight_to_text(
    format: str, n: int, k: int, group_n: int, group_k: int, scale_dtype: str, zero_point: bool
) -> str: ...
def weight_from_text(text: str) -> dict[str, Any]: ...
def kernels() -> list[dict[str, Any]]: ...
def explain(
    family: str,
    format: str,
    m: int,
    n: int,
    k: int,
    group_k: int,
    x_dtype: str,
    device: str = "cpu",
    arch: int = 0,
    group_n: int = 1,
    x_group: int = 0,
    accum: str = "promoted",
) -> list[dict[str, Any]]: ...
def cuda() -> dict[str, Any]: ...
def cpu_isas() -> list[dict[str, Any]]: ...
def cpu_isa() -> str: ...
def set_cpu_isa(name: str) -> None: ...
def cpu_features() -> list[str]: ...
def version() -> str: ...
def build_info() -> dict[str, Any]: ...
def probe(what: str, seconds: float = 0.2, num_threads: int = 0) -> float: ...
def pack(
    codes: Array,
    scales: Array,
    zero_points: Array | None = None,
    *,
    format: str,
    group_n: int,
    group_k: int,
    k: int | None = None,
    global_scale: float = 1.0,
    mins: Array | None = None,
    super_scales: Array | None = None,
    super_mins: Array | None = None,
    scale_offset: float = 0.0,
    num_threads: int = 0,
) -> NDArray[np.uint8]: ...
def unpack(packed: Array, *, num_threads: int = 0) -> dict[str, Any]: ...
def dequantize_packed(packed: Array, *, dtype: str = "float32", num_threads: int = 0) -> NDArray[Any]: ...
def dequantize(
    codes: Array,
    scales: Array,
    zero_points: Array | None = None,
    *,
    format: str,
    group_n: int,
    group_k: int,
    k: int | None = None,
    global_scale: float = 1.0,
    mins: Array | None = None,
    super_scales: Array | None = None,
    super_mins: Array | None = None,
    scale_offset: float = 0.0,
    dtype: str = "float32",
    num_threads: int = 0,
) -> NDArray[Any]: ...
def encode(
    w: Array,
    divisor: Array,
    zero_points: Array | None = None,
    *,
    format: str,
    group_n: int,
    group_k: int,
    num_threads: int = 0,
) -> NDArray[np.uint8]: ...
def gemm(
    x: Array,
    packed: Array,
    bias: Array | None = None,
    *,
    family: str = "weight_only",
    out_dtype: str | None = None,
    x_scale: Array | None = None,
    x_zero_point: Array | None = None,
    symmetric: bool = True,
    activation_function: str | None = None,
    multiply: Array | None = None,
    residual: Array | None = None,
    num_threads: int = 0,
) -> NDArray[Any]: ...
def quantize_rows(
    x: Array, symmetric: bool = True, *, num_threads: int = 0
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]: ...
def cuda_pack(
    codes: Array,
    scales: Array,
    zero_points: Array | None,
    packed: Array,
    *,
    description: str,
    global_scale: float = 1.0,
    stream: int = 0,
) -> None: ...
def cuda_dequantize_packed(packed: Array, out: Array, *, description: str, stream: int = 0) -> None: ...
def cuda_gemm(
    x: Array,
    packed: Array,
    out: Array,
    bias: Array | None = None,
    *,
    allocate: Callable[[int], Array],
    description: str,
    family: str = "weight_only",
    x_scale: Array | None = None,
    x_zero_point: Array | None = None,
    symmetric: bool = True,
    x_group: int = 0,
    accum: str = "promoted",
    activation_function: str | None = None,
    multiply: Array | None = None,
    residual: Array | None = None,
    stream: int = 0,
) -> None: ...
