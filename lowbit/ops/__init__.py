"""``torch.ops.lowbit``: loads the compiled ops, and gives them what torch needs beyond a kernel.

The kernels and schemas are C++ (csrc/torch); here are their fake kernels (fakes.py), gradients (gradients.py) and what
autocast does to them (autocast.py). Everything in the package calls them through ``ops``.

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

from typing import Any

import torch

from lowbit._load import load_ops

load_ops()

# The one name through which the package reaches its ops: a copy of the package may live under another namespace.
NAMESPACE = "lowbit"
ops: Any = getattr(torch.ops, NAMESPACE)

# The ops that multiply, and the names of their arguments: x, packed, bias and n first; description, function, multiply
# and residual last, with the default None; out_dtype between, but for weight_only.
PRODUCTS: dict[str, tuple[str, ...]] = {
    name: tuple(argument.name for argument in getattr(ops, name).default._schema.arguments)
    for name in ("weight_only", "integer", "fp8")
}

library: Any = torch.library.Library(NAMESPACE, "IMPL")  # type: ignore[no-untyped-call]

from lowbit.ops import autocast, fakes, gradients  # noqa: E402 (they register what they have with the above)
from lowbit.ops.fakes import ACTIVATION_FORMATS  # noqa: E402
from lowbit.ops.gradients import FUNCTIONS, call  # noqa: E402

__all__ = ["ACTIVATION_FORMATS", "FUNCTIONS", "NAMESPACE", "PRODUCTS", "autocast", "call", "fakes", "gradients", "ops"]
