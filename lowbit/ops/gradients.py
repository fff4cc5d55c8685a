"""Gradients of what multiplies: of the activation, the bias and the epilogue's tensor; the weight is frozen.

weight_only: dx = dy W, W decoded to the dtype of dy.
integer, fp8: the same. Rounding x has no gradient; it is passed straight through, as quantization-aware training does.
With an epilogue y = f(z) * multiply, or f(z) + residual: z is computed again, rounded to y's dtype, and torch's own
derivatives take dy to dz.

``torch.func`` (grad, vjp, jvp, vmap and what is made of them) and forward mode work through ``call``, that is in
``lowbit.linear`` and the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from lowbit.ops import NAMESPACE, PRODUCTS, library, ops

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


def _before_epilogue(op: Any, ctx: Any, tensors: Sequence[Tensor | None]) -> Tensor:
    """Z = x W^T + bias, computed again."""
    pairs = zip(tensors, ctx.numbers, strict=True)
    return _product(op, *(number if tensor is None else tensor for tensor, number in pairs))


def _backward(op: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, *saved = ctx.saved_tensors
    grad_x = grad_bias = grad_multiply = grad_residual = None
    # The dispatcher drops arguments at the end that have their defaults.
    needed = (*ctx.needs_input_grad, *[False] * 5)[: ctx.num_inputs]
    if needed[-1]:
        grad_residual = grad.to(ctx.residual_dtype)
    if ctx.again:
        multiply, z = saved[0], _before_epilogue(op, ctx, saved[1:])
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


def _jvp(op: Any, ctx: Any, tangents: tuple[Any, ...]) -> Tensor:
    packed, *saved = ctx.saved_tensors
    dx, _, dbias, *_, dmultiply, dresidual = tangents
    *shape, n = ctx.output_shape

    def as_output(tangent: Tensor) -> Tensor:
        return tangent.to(ctx.output_dtype).expand(*shape, n)

    zero = packed.new_zeros((), dtype=ctx.output_dtype)
    dy = as_output(zero)
    if dx is not None:
        dy = as_output(_product(ops.weight_only, dx, packed, None, n, ctx.description))
    if dbias is not None:
        dy = dy + as_output(dbias)
    if ctx.again:
        multiply, z = saved[0], _before_epilogue(op, ctx, saved[1:])
        value, derivative = FUNCTIONS[ctx.function] if ctx.function else (None, None)
        if derivative:
            dy = derivative(dy, z)
        if multiply is not None:
            dy = (dy * multiply).to(ctx.output_dtype)
            if dmultiply is not None:
                dy = dy + as_output((value(z) if value else z) * dmultiply)
    if dresidual is not None:
        dy = dy + as_output(dresidual)
    return dy


# Autograd's keys out of the way: torch's own guard, which has no public name.
_below_autograd: Any = getattr(torch._C, "_AutoDispatchBelowAutograd", None)


class _Recorded(torch.autograd.Function):
    """An op and its gradient."""

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


class _Transformed(torch.autograd.Function):
    """The same for torch.func's transforms and forward mode, in the form that they want; 20 us slower."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        *arguments, op = inputs
        with _below_autograd():
            output: Tensor = op(*arguments)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *arguments, ctx.op = inputs
        ctx.output_shape, ctx.output_dtype = output.shape, output.dtype
        _setup_context(ctx, tuple(arguments), output)
        ctx.save_for_forward(*ctx.to_save)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(ctx.op, ctx, *grads), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _jvp(ctx.op, ctx, tangents[:-1])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        *arguments, op = inputs
        return _vmap(op, partial(_product, op), info, in_dims[:-1], *arguments)


def _vmap(
    op: Any, product: Callable[..., Tensor], info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[Tensor, int]:
    """One product where x, multiply and residual alone have the new dimension; else one for each of its elements."""
    names = [argument.name for argument in op.default._schema.arguments]
    given = dict(zip(names, arguments, strict=False))
    batched = {name for name, dim in zip(names, in_dims, strict=False) if dim is not None}
    for name, dim in zip(names, in_dims, strict=False):
        if dim is not None:
            given[name] = given[name].movedim(dim, 0)
    rows = [name for name in ("x", "multiply", "residual") if given.get(name) is not None]
    x_scale = given.get("x_scale")
    if batched <= {*rows} and (x_scale is None or x_scale.numel() == 1):
        for name in rows:
            if name not in batched:
                given[name] = given[name].expand(info.batch_size, *given[name].shape)
        return product(*given.values()), 0
    each = [
        product(*(value[i] if name in batched else value for name, value in given.items()))
        for i in range(info.batch_size)
    ]
    return torch.stack(each), 0


def _transforms_are_active() -> bool:
    """torch.func's, or forward mode, which marks no tensor as one that requires a gradient."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def _product(op: Any, *arguments: Any) -> Tensor:
    """``op`` under whatever transforms are active."""
    if not _transforms_are_active():
        return op(*arguments)  # type: ignore[no-any-return]
    missing = len(op.default._schema.arguments) - len(arguments)
    return _Transformed.apply(*arguments, *[None] * missing, op)  # type: ignore[no-any-return, no-untyped-call]


def _autograd(op: Any, keyset: Any, *arguments: Any) -> Tensor:
    """What the dispatcher calls for tensors that may need a gradient."""
    wanted = torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in arguments)
    if _transforms_are_active() and (wanted or forward_ad._current_level >= 0):
        raise NotImplementedError(
            f"{op}: torch.func's transforms and forward mode take lowbit.linear, not the operator"
        )
    if not wanted:
        with _below_autograd():
            result: Tensor = op(*arguments)
        return result
    missing = len(op.default._schema.arguments) - len(arguments)  # the dispatcher drops defaults at the end
    return _Recorded.apply(*arguments, *[None] * missing, op)  # type: ignore[no-any-return, no-untyped-call]


for _name in PRODUCTS:
    _op = getattr(ops, _name)
    torch.library.register_vmap(f"{NAMESPACE}::{_name}", partial(_vmap, _op, _op))
    if _below_autograd is None:
        torch.library.register_autograd(f"{NAMESPACE}::{_name}", partial(_backward, _op), setup_context=_setup_context)
    else:
        library.impl(_name, partial(_autograd, _op), "Autograd", with_keyset=True)


# The ops as functions of C: what ``ops`` gives is Python around them.
_EAGER = {name: getattr(getattr(ops, name).default, "_op", getattr(ops, name)) for name in PRODUCTS}


def call(
    name: str, epilogue: tuple[Any, ...], x: Tensor, packed: Tensor, bias: Tensor | None, *arguments: Any
) -> Tensor:
    """The op on the arguments and the epilogue (none, or function, multiply and residual), by the shortest way.

    What the dispatcher finds is Python that takes 5 us where no gradient is wanted: longer than a small layer. Traced
    calls and those under autocast stay as they are: a graph is to show the op alone, and autocast's casts belong to
    the gradient.
    """
    if torch.compiler.is_compiling() or _below_autograd is None:
        result: Tensor = getattr(ops, name)(x, packed, bias, *arguments, *epilogue)
    elif torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        result = _product(getattr(ops, name), x, packed, bias, *arguments, *epilogue)
    elif not torch.is_grad_enabled() or not (
        x.requires_grad
        or (bias is not None and bias.requires_grad)
        or any(tensor is not None and tensor.requires_grad for tensor in epilogue[1:])
    ):
        with _below_autograd():
            result = _EAGER[name](x, packed, bias, *arguments, *epilogue)
    elif torch.is_autocast_enabled(x.device.type):
        result = getattr(ops, name)(x, packed, bias, *arguments, *epilogue)
    else:
        recorded: Any = _Recorded.apply
        result = recorded(x, packed, bias, *arguments, *(epilogue or (None, None, None)), getattr(ops, name))
    return result
