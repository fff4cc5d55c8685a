"""``lowbit.linear``: one multiplication by a quantized weight, its arguments checked and explained."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from lowbit.formats import FLOATS, describe_shape, dtype_name
from lowbit.ops import FUNCTIONS, call
from lowbit.tensor import QuantizedTensor


def linear(
    x: Tensor,
    weight: QuantizedTensor | Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    symmetric: bool = True,
    x_scale: Tensor | float | None = None,
    x_zero_point: Tensor | int | None = None,
    x_group: int | None = None,
    accum: str = "promoted",
    out_dtype: torch.dtype | None = None,
    activation_function: str | None = None,
    multiply: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """As ``torch.nn.functional.linear`` with a quantized weight: y = x W^T + bias.

    With an epilogue y = f(x W^T + bias) * multiply, or f(x W^T + bias) + residual, in fp32 and rounded once:
    ``activation_function="silu", multiply=up`` is a gated MLP's first half, ``residual=hidden`` its last step.

    Differentiable in x, bias, multiply and residual; with ``activation="int8"`` the rounding of x is passed straight
    through.

    Args:
        x: [..., k] float32, float16 or bfloat16, any strides; int8 with ``activation="int8"`` and ``x_scale``.
        weight: [n, k]. A ``QuantizedTensor`` is packed by its first use, and holds the packed form from then on. A
            tensor is taken for a packed weight: uint8 [packed bytes].
        bias: [n] float32, float16 or bfloat16.
        activation: None multiplies in floating point. ``"int8"`` (integer weights) quantizes x and sums integers
            exactly. ``"fp8"`` (fp8, fp4 and int4 weights, CUDA devices) quantizes x to e4m3.
        symmetric: False gives every row of x a zero point as well. Only ``activation="int8"`` without ``x_scale``.
        x_scale: None: every row of x gets a scale of its own. Else the static scale of x, one number or one for
            each row ([1] or [rows]), positive: x = (q - x_zero_point) * x_scale.
        x_zero_point: with ``x_scale``, in -128 .. 127, as many as scales; None: 0.
        x_group: 128 gives every 128 columns of a row a scale of their own: x_scale, if given, is [rows,
            ceil(k / 128)]. Only ``activation="fp8"``.
        accum: ``"promoted"`` adds the sums of 128 columns in fp32, ``"fast"`` leaves more of them to the tensor core,
            which adds with fewer bits. Only ``activation="fp8"``.
        out_dtype: float32, float16 or bfloat16; None: x's (float32 where x is int8 or e4m3), or autocast's. Only with
            an ``activation``.
        activation_function: f: ``"silu"``, ``"gelu"``, ``"gelu_tanh"`` (``torch.nn.functional.gelu`` with
            ``approximate="tanh"``), ``"relu"``, or None. Errors in ulp: csrc/gemm/epilogue.h.
        multiply, residual: one of them, [..., n] as the result, float32, float16 or bfloat16, any strides; nothing is
            broadcast.

    Returns:
        [..., n].

    Raises:
        TypeError: a dtype that is not taken.
        ValueError: shapes or devices that do not fit, scales or zero points out of range, a corrupt packed weight.
    """
    if not isinstance(weight, QuantizedTensor):
        weight = QuantizedTensor.from_packed(weight)
    n, k = weight.shape
    packed = weight.pack()
    if activation not in (None, "int8", "fp8"):
        raise ValueError(f"activation is {activation!r}: it must be None, 'int8' or 'fp8'")
    quantized = None if x_scale is None or activation is None else _QUANTIZED[activation]
    check_activation(x, k, packed.device, quantized)
    check_bias(bias, n, packed.device)
    epilogue: tuple[Any, ...] = ()
    if activation_function is not None or multiply is not None or residual is not None:
        epilogue = checked_epilogue(x, n, activation_function, multiply, residual)
    if activation is None:
        given = [
            name
            for name, value, default in (
                ("symmetric", symmetric, True),
                ("x_scale", x_scale, None),
                ("x_zero_point", x_zero_point, None),
                ("x_group", x_group, None),
                ("accum", accum, "promoted"),
                ("out_dtype", out_dtype, None),
            )
            if value is not default and value != default
        ]
        if given:
            raise ValueError(f"{', '.join(given)}: only activation='int8' or 'fp8' takes this")
        return call("weight_only", epilogue, x, packed, bias, n, weight.description)
    if activation == "fp8":
        return _linear_fp8(
            x, weight, packed, bias, symmetric, x_scale, x_zero_point, x_group, accum, out_dtype, epilogue
        )
    if x_group is not None or accum != "promoted":
        raise ValueError("x_group, accum: only activation='fp8' takes this")
    if not weight.format.integer:
        raise ValueError(f"activation is 'int8': it needs an integer weight, not {weight.format.name}")
    if x_scale is None and x_zero_point is not None:
        raise ValueError("x_zero_point without x_scale: give both, or none for dynamic quantization")
    scale = zero_point = None
    if x_scale is not None:
        scale, zero_point = static_scale(x_scale, x_zero_point, packed.device, x.numel() // k)
    dtype = _out_dtype(x, out_dtype)
    return call("integer", epilogue, x, packed, bias, n, scale, zero_point, symmetric, dtype, weight.description)


def _linear_fp8(
    x: Tensor,
    weight: QuantizedTensor,
    packed: Tensor,
    bias: Tensor | None,
    symmetric: bool,
    x_scale: Tensor | float | None,
    x_zero_point: Tensor | int | None,
    x_group: int | None,
    accum: str,
    out_dtype: torch.dtype | None,
    epilogue: tuple[Any, ...],
) -> Tensor:
    if not weight.format.fits_e4m3:
        raise ValueError(f"activation is 'fp8': it needs a weight whose values e4m3 has, not {weight.format.name}")
    if packed.device.type == "cpu":
        raise ValueError("activation is 'fp8': the CPU has no fp8 product; None multiplies the same weight there")
    if not symmetric or x_zero_point is not None:
        raise ValueError("symmetric, x_zero_point: fp8 activations have no zero points")
    if x_group not in (None, 128):
        raise ValueError(f"x_group is {x_group}: it must be None or 128")
    if accum not in ("promoted", "fast"):
        raise ValueError(f"accum is {accum!r}: it must be 'promoted' or 'fast'")
    scale = None
    if x_scale is not None:
        rows = x.numel() // weight.shape[1]
        numbers = rows * -(-weight.shape[1] // x_group) if x_group else rows
        scale, _ = static_scale(x_scale, None, packed.device, numbers)
        if x_group and scale.numel() != numbers:
            raise ValueError(f"x_scale has {scale.numel()} numbers: with x_group it must have {numbers}")
    arguments = (scale, x_group or 0, accum == "fast", _out_dtype(x, out_dtype), weight.description)
    return call("fp8", epilogue, x, packed, bias, weight.shape[0], *arguments)


def _out_dtype(x: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    if wanted is None:
        return x.dtype if x.dtype in FLOATS else torch.float32
    if wanted not in FLOATS:
        raise TypeError(f"out_dtype is {dtype_name(wanted)}: it must be float32, float16 or bfloat16")
    return wanted


# What x may be already where its static scale is given.
_QUANTIZED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


def check_activation(x: Any, k: int, device: torch.device, quantized: torch.dtype | None = None) -> None:
    """Refuses an x that the ops do not take: cheap, as every forward pass calls it.

    Args:
        quantized: the dtype that x may have besides floats.
    """
    if (
        not isinstance(x, Tensor)
        or not (x.dtype in FLOATS or x.dtype == quantized)
        or not (shape := x.shape)
        or shape[-1] != k
        or x.device != device
    ):
        _refuse_activation(x, k, device, quantized)


def _refuse_activation(x: Any, k: int, device: torch.device, quantized: torch.dtype | None) -> NoReturn:
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}: it must be a torch.Tensor")
    if not (x.dtype in FLOATS or x.dtype == quantized):
        allowed = "float32, float16 or bfloat16"
        if quantized:
            allowed = f"float32, float16, bfloat16 or {dtype_name(quantized)}"
        hint = "".join(
            f" ({dtype_name(x.dtype)} needs activation={name!r} and a static scale)"
            for name, dtype in _QUANTIZED.items()
            if x.dtype == dtype
        )
        raise TypeError(f"x is {dtype_name(x.dtype)}: it must be {allowed}{hint}")
    if x.dim() == 0 or x.shape[-1] != k:
        raise ValueError(f"x is {describe_shape(tuple(x.shape))}: its last dimension must be {k}, the inputs of W")
    raise ValueError(f"x is on {x.device}, the weight on {device}: they must be on one device")


def check_bias(bias: Any, n: int, device: torch.device) -> None:
    """Refuses a bias that the ops do not take."""
    if bias is None:
        return
    if not isinstance(bias, Tensor):
        raise TypeError(f"bias is a {type(bias).__name__}: it must be a torch.Tensor or None")
    if bias.dtype not in FLOATS:
        raise TypeError(f"bias is {dtype_name(bias.dtype)}: it must be float32, float16 or bfloat16")
    if tuple(bias.shape) != (n,):
        raise ValueError(f"bias is {describe_shape(tuple(bias.shape))}: it must be [{n}], one for each output")
    if bias.device != device:
        raise ValueError(f"bias is on {bias.device}, the weight on {device}: they must be on one device")


def checked_epilogue(
    x: Tensor, n: int, function: str | None, multiply: Tensor | None, residual: Tensor | None
) -> tuple[str | None, Tensor | None, Tensor | None]:
    """The last arguments of the ops: function, multiply, residual.

    Raises:
        TypeError, ValueError: what is wrong with them.
    """
    if function is not None and function not in FUNCTIONS:
        raise ValueError(f"activation_function is {function!r}: it must be None, {', '.join(map(repr, FUNCTIONS))}")
    if multiply is not None and residual is not None:
        raise ValueError("multiply and residual: only one of them can be given")
    name, other = ("multiply", multiply) if multiply is not None else ("residual", residual)
    if other is None:
        return function, None, None
    if not isinstance(other, Tensor):
        raise TypeError(f"{name} is a {type(other).__name__}: it must be a torch.Tensor or None")
    if other.dtype not in FLOATS:
        raise TypeError(f"{name} is {dtype_name(other.dtype)}: it must be float32, float16 or bfloat16")
    shape = (*x.shape[:-1], n)
    if tuple(other.shape) != shape:
        raise ValueError(
            f"{name} is {describe_shape(tuple(other.shape))}: it must be {describe_shape(shape)} as the result, "
            "nothing is broadcast"
        )
    if other.device != x.device:
        raise ValueError(f"{name} is on {other.device}, x on {x.device}: they must be on one device")
    return function, multiply, residual


def static_scale(
    scale: Tensor | float, zero_point: Tensor | int | None, device: torch.device, rows: int | None
) -> tuple[Tensor, Tensor | None]:
    """float32 [1] or [rows] and int32 of the same shape: the static scale of activations, checked.

    Args:
        rows: how many rows of activations there are; None: one scale is needed.

    Raises:
        TypeError, ValueError: what is wrong with them.
    """
    scale = scale.to(device) if isinstance(scale, Tensor) else torch.tensor(scale, device=device)
    if not scale.is_floating_point():
        raise TypeError(f"x_scale is {dtype_name(scale.dtype)}: it must be a floating-point number or tensor")
    scale = scale.detach().float().reshape(-1).contiguous()
    if scale.numel() != 1 and scale.numel() != rows:
        expected = "1" if rows is None else f"1 or {rows}, the rows of x"
        raise ValueError(f"x_scale has {scale.numel()} numbers: it must have {expected}")
    # looking at values would break a graph that is being traced
    look = scale.device.type != "meta" and not torch.compiler.is_compiling()
    if look and not (scale.isfinite() & (scale > 0)).all():
        bad = scale[~(scale.isfinite() & (scale > 0))][0].item()
        raise ValueError(f"x_scale holds {bad:g}: every scale must be positive and finite")
    if zero_point is None:
        return scale, None
    zero_point = zero_point.to(device) if isinstance(zero_point, Tensor) else torch.tensor(zero_point, device=device)
    if zero_point.is_floating_point() or zero_point.dtype == torch.bool:
        raise TypeError(f"x_zero_point is {dtype_name(zero_point.dtype)}: it must be an integer")
    zero_point = zero_point.reshape(-1)
    if zero_point.numel() != scale.numel():
        raise ValueError(f"x_zero_point has {zero_point.numel()} numbers, x_scale {scale.numel()}: as many are needed")
    if look and ((zero_point < -128) | (zero_point > 127)).any():
        bad = zero_point[(zero_point < -128) | (zero_point > 127)][0].item()
        raise ValueError(f"x_zero_point holds {bad}: every one must be in -128 to 127")
    return scale, zero_point.to(torch.int32).contiguous()
