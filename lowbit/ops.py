"""``torch.ops.lowbit``: loads the compiled ops, and gives them what torch needs beyond a kernel.

The kernels and schemas are C++ (csrc/torch); here are their fake kernels, the gradient of the activation, and what
autocast does to them. Everything in the package calls them through ``ops``.

========================  =============================================================================================
``weight_only``           y[..., n] = x[..., k] W^T + bias, W decoded on the way; then a function, a product, a sum
``integer``               the same with x quantized to int8 and exact integer sums
``pack``, ``unpack``      canonical form (codes, scales, zero points) <-> packed weight
``dequantize_packed``     [n, k] from a packed weight
``dequantize``            [n, k] from the canonical form
``encode``                codes from weights and divisors
``fp8``                   the same with x quantized to e4m3; CUDA alone
``quantize_rows``         int8 activations as ``integer`` makes them
``quantize_activation``   activations in any low precision, also behind RMSNorm or SiLU * up
========================  =============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit import formats
from lowbit._load import core, load_ops

load_ops()

# The one name through which the package reaches its ops: a copy of the package may live under another namespace.
NAMESPACE = "lowbit"
ops: Any = getattr(torch.ops, NAMESPACE)


# ---- fake kernels: shapes and dtypes of the results, with symbolic sizes ----


def _fake_weight_only(
    x: Tensor, packed: Tensor, bias: Tensor | None, n: int, description: str | None = None, *epilogue: Any
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


def _fake_integer(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    n: int,
    x_scale: Tensor | None,
    x_zero_point: Tensor | None,
    symmetric: bool,
    out_dtype: torch.dtype,
    description: str | None = None,
    *epilogue: Any,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n), dtype=out_dtype)


def _fake_fp8(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    n: int,
    x_scale: Tensor | None,
    x_group: int,
    fast: bool,
    out_dtype: torch.dtype,
    description: str | None = None,
    *epilogue: Any,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n), dtype=out_dtype)


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


for _name, _fake in (
    ("weight_only", _fake_weight_only),
    ("integer", _fake_integer),
    ("fp8", _fake_fp8),
    ("quantize_activation", _fake_quantize_activation),
    ("pack", _fake_pack),
    ("unpack", _fake_unpack),
    ("dequantize_packed", _fake_dequantize_packed),
    ("dequantize", _fake_dequantize),
    ("encode", _fake_encode),
    ("quantize_rows", _fake_quantize_rows),
):
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)


# ---- gradients: of the activation, the bias and the epilogue's tensor; the weight is frozen ----
#
# weight_only: dx = dy W, W decoded to the dtype of dy.
# integer, fp8: the same. Rounding x has no gradient; it is passed straight through, as quantization-aware
# training does.
# With an epilogue y = f(z) * multiply, or f(z) + residual: z is computed again, rounded to y's dtype, and torch's own
# derivatives take dy to dz.

_aten: Any = torch.ops.aten

# f and df: what torch calls them.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, _aten.silu_backward),
    "gelu": (F.gelu, _aten.gelu_backward),
    "gelu_tanh": (partial(F.gelu, approximate="tanh"), partial(_aten.gelu_backward, approximate="tanh")),
    "relu": (F.relu, lambda grad, z: _aten.threshold_backward(grad, z, 0)),
}


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *call, ctx.function, multiply, residual = inputs
    x, packed, bias = call[:3]
    ctx.k = x.shape[-1]
    ctx.x_dtype = x.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.num_inputs = len(inputs)
    ctx.description = call[-1]
    ctx.again = ctx.function is not None or multiply is not None
    if not ctx.again:
        ctx.save_for_backward(packed)
        return
    ctx.save_for_backward(packed, multiply, *(value if isinstance(value, Tensor) else None for value in call))
    ctx.numbers = [None if isinstance(value, Tensor) else value for value in call]


def _backward(op: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, *saved = ctx.saved_tensors
    grad_x = grad_bias = grad_multiply = grad_residual = None
    # The dispatcher drops arguments at the end that have their defaults.
    needed = (*ctx.needs_input_grad, *[False] * 5)[: ctx.num_inputs]
    if needed[-1]:
        grad_residual = grad.to(ctx.residual_dtype)
    if ctx.again:
        multiply, *tensors = saved
        pairs = zip(tensors, ctx.numbers, strict=True)
        z = op(*(number if tensor is None else tensor for tensor, number in pairs))
        value, derivative = FUNCTIONS[ctx.function] if ctx.function else (None, None)
        if multiply is not None:
            if needed[-2]:
                grad_multiply = (grad * (value(z) if value else z)).to(multiply.dtype)
            grad = (grad * multiply).to(grad.dtype)
        if derivative:
            grad = derivative(grad, z)
    if needed[0]:
        weight = ops.dequantize_packed(packed, grad.shape[-1], ctx.k, grad.dtype, ctx.description)
        grad_x = (grad @ weight).to(ctx.x_dtype)
    if needed[2]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
    return (grad_x, None, grad_bias, *[None] * (ctx.num_inputs - 5), grad_multiply, grad_residual)


for _name in ("weight_only", "integer", "fp8"):
    torch.library.register_autograd(
        f"{NAMESPACE}::{_name}", partial(_backward, getattr(ops, _name)), setup_context=_setup_context
    )

# What register_autograd registers is Python that takes 5 us where it finds nothing to do and 30 where it does: longer
# than a small layer. The package's own calls go past it, with torch's own guard, which has no public name. Without it
# they only take longer.
_below_autograd: Any = getattr(torch._C, "_AutoDispatchBelowAutograd", None)


class _Recorded(torch.autograd.Function):
    """An op and its gradient, as registered above."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *arguments, ctx.op = inputs
        with _below_autograd():
            output: Tensor = ctx.op(*arguments)
        _setup_context(ctx, tuple(arguments), output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(ctx.op, ctx, *grads), None)


def call(op: Any, epilogue: tuple[Any, ...], x: Tensor, packed: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    """``op`` on the arguments and the epilogue (none, or function, multiply and residual), by the shortest way.

    Traced calls and those under autocast stay as they are: a graph is to show the op alone, and autocast's casts
    belong to the gradient.
    """
    if torch.compiler.is_compiling() or _below_autograd is None or torch.is_inference_mode_enabled():
        result: Tensor = op(x, packed, bias, *arguments, *epilogue)
    elif not torch.is_grad_enabled() or not any(
        tensor is not None and tensor.requires_grad for tensor in (x, bias, *epilogue[1:])
    ):
        with _below_autograd():
            result = op(x, packed, bias, *arguments, *epilogue)
    elif torch.is_autocast_enabled(x.device.type):
        result = op(x, packed, bias, *arguments, *epilogue)
    else:
        recorded: Any = _Recorded.apply
        result = recorded(x, packed, bias, *arguments, *(epilogue or (None, None, None)), op)
    return result


# ---- autocast: as F.linear, the result has autocast's dtype ----
#
# weight_only: x and bias are cast to it. integer, fp8: x is quantized anyway and stays as it is; a floating-point
# out_dtype becomes autocast's. The epilogue's tensor stays as it is: it is read as fp32.

_library: Any = torch.library.Library(NAMESPACE, "IMPL")  # type: ignore[no-untyped-call]


def _autocast_dtype(tensor: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(tensor.device.type)


def _autocast_weight_only(
    x: Tensor, packed: Tensor, bias: Tensor | None, n: int, description: str | None = None, *epilogue: Any
) -> Tensor:
    dtype = _autocast_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        bias = None if bias is None else bias.to(dtype)
        result: Tensor = ops.weight_only(x.to(dtype), packed, bias, n, description, *epilogue)
    return result


def _autocast_integer(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    n: int,
    x_scale: Tensor | None,
    x_zero_point: Tensor | None,
    symmetric: bool,
    out_dtype: torch.dtype,
    description: str | None = None,
    *epilogue: Any,
) -> Tensor:
    dtype = _autocast_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = ops.integer(
            x, packed, bias, n, x_scale, x_zero_point, symmetric, dtype, description, *epilogue
        )
    return result


def _autocast_fp8(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    n: int,
    x_scale: Tensor | None,
    x_group: int,
    fast: bool,
    out_dtype: torch.dtype,
    description: str | None = None,
    *epilogue: Any,
) -> Tensor:
    dtype = _autocast_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = ops.fp8(x, packed, bias, n, x_scale, x_group, fast, dtype, description, *epilogue)
    return result


for _key in ("AutocastCPU", "AutocastCUDA"):
    _library.impl("weight_only", _autocast_weight_only, _key)
    _library.impl("integer", _autocast_integer, _key)
    _library.impl("fp8", _autocast_fp8, _key)
