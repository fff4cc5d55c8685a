"""``lowbit.nn.BitLinear``: training with ternary weights and int8 activations, BitNet b1.58."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.nn.linear import Linear
from lowbit.quantizers import quantize
from lowbit.quantizers.rules import mean_magnitude
from lowbit.tensor import QuantizedTensor

SCHEME = "BITNET"


class BitLinear(nn.Linear):
    """``torch.nn.Linear`` that computes with ternary weights and int8 activations while a float weight is trained.

    Ma et al. 2024, The Era of 1-bit LLMs: BitNet b1.58, section 2, with the activations of Wang et al. 2023, BitNet,
    section 2.1:

        W~ = clip(round(W / s), -1, 1) s    s = mean |W|, at least 1e-5: one number for the whole weight
        x~ = clip(round(x / a), -127, 127) a    a = max |x| / 127 of every row of x
        y  = x~ W~^T + bias

    Rounding has no gradient. It is passed straight through: dL/dW = dL/dW~, dL/dx = dL/dx~, so dL/dW = dy^T x~ and
    dL/dx = dy W~. The papers normalize x before they quantize it: put a norm before this layer.

    ``pack()`` gives the layer for inference: 2 bits for each weight, and integer kernels that compute the same y but
    for the order of fp32 rounding. ``lowbit.quantize_(model, "BITNET", targets="BitLinear")`` does so for a model.
    State dicts hold the float weight under ``nn.Linear``'s names.

    Args:
        in_features, out_features, bias, device, dtype: as ``torch.nn.Linear``.

    Shape:
        x [..., in_features] -> y [..., out_features], in the weight's dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_straight_through(x, int8_rows(x)), self._ternary(), self.bias)

    def _ternary(self) -> Tensor:
        return _straight_through(self.weight, ternary(self.weight))

    @property
    def quantized(self) -> QuantizedTensor:
        """The weight as it multiplies: ternary codes and their scale.

        Raises:
            ValueError: weights that are NaN or infinite, or not on the CPU.
        """
        return quantize(self.weight, SCHEME)

    def pack(self) -> Linear:
        """The layer for inference, with this layer's bias; the float weight is not in it.

        Raises:
            ValueError: weights that are NaN or infinite, or not on the CPU.
        """
        return Linear.from_float(self, SCHEME)

    @classmethod
    def from_float(cls, linear: nn.Linear) -> BitLinear:
        """A layer that goes on training the weight and the bias of ``linear``: the same Parameters.

        Raises:
            TypeError: not a ``torch.nn.Linear``.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is a {type(linear).__name__}: a torch.nn.Linear is needed")
        self = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.training = linear.training
        return self


def ternary(weight: Tensor) -> Tensor:
    """clip(round(W / s), -1, 1) s in the weight's dtype, s the mean magnitude: what ``quantize`` makes of it."""
    with torch.no_grad():
        scale = mean_magnitude(weight, (weight.shape[0], weight.shape[1]))
        return ((weight.float() / scale).round().clamp(-1, 1) * scale).to(weight.dtype)


def int8_rows(x: Tensor) -> Tensor:
    """Every row of x rounded to 255 numbers, in x's dtype: what the integer kernels do (csrc/gemm/activation.h)."""
    with torch.no_grad():
        wide = x.float()
        largest = wide.abs().amax(-1, keepdim=True)
        steps = torch.full_like(largest, 127.0)  # a scalar would be multiplied by a rounded reciprocal
        inverse = steps / largest
        inverse = torch.where(inverse.isinf(), 0.0, inverse)  # all zero, or too small for its reciprocal
        return ((wide * inverse).round() * (largest / steps)).to(x.dtype)


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """``rounded``, with the gradient of x."""
    result: Tensor = _StraightThrough.apply(x, rounded)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    """Exact where x + (rounded - x).detach() is not: that is rounded twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None
