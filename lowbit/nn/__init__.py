"""Layers: ``Linear`` over a quantized weight, ``BitLinear`` that trains a ternary one."""

from lowbit.nn.bit_linear import BitLinear
from lowbit.nn.linear import Linear

__all__ = ["BitLinear", "Linear"]
