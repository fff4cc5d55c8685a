"""What is measured: the problems, and our own side of them with its answer checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

import lowbit
from timing import Contestant, num_copies

SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008), (32000, 4096)]  # (n, k) of a 7B model's projections, its head
ROWS = [1, 4, 16, 64, 256, 1024]  # m: decode, prefill

TOO_SLOW_SECONDS = 2.0  # for a call: the scalar reference on a large problem is right, and nothing to time

# (scheme, dtype of the activations)
CASES = [
    ("W4A16", "bfloat16"),
    ("W4A16_ASYM", "bfloat16"),
    ("W8A16", "bfloat16"),
    ("FP8", "bfloat16"),
    ("FP8_BLOCK", "bfloat16"),
    ("MXFP4A16", "bfloat16"),
    ("NVFP4A16", "bfloat16"),
    ("MXFP8A16", "bfloat16"),
    ("NF4", "bfloat16"),
    ("W4A16", "float32"),
    ("W8A16", "float32"),
    ("W4A8", "bfloat16"),
    ("W8A8", "bfloat16"),
]

QUICK_SHAPES = [(4096, 4096)]
QUICK_ROWS = [1, 16, 256]
QUICK_CASES = [
    ("W4A16", "bfloat16"),
    ("MXFP4A16", "bfloat16"),
    ("W4A16", "float32"),
    ("W4A8", "bfloat16"),
    ("W8A8", "bfloat16"),
]


@dataclass(frozen=True)
class Problem:
    """y[m][n] = x[m][k] W[n][k]^T under a scheme."""

    scheme: str
    x_dtype: torch.dtype
    n: int
    k: int
    m: int

    @property
    def family(self) -> str:
        return lowbit.Scheme.of(self.scheme).family

    @property
    def operations(self) -> int:
        """A multiply-add counts two."""
        return 2 * self.m * self.n * self.k

    def bytes(self, weight: lowbit.QuantizedTensor) -> int:
        """What must move at least: the weight in canonical form (no padding), x in, y out."""
        return weight.nbytes + (self.m * self.k + self.m * self.n) * self.x_dtype.itemsize

    def kernel(self) -> str:
        """The kernel that runs it, as ``lowbit.explain`` says."""
        return lowbit.explain(self.scheme, self.m, self.n, self.k, x_dtype=self.x_dtype).kernel or "none"


def float_weight(n: int, k: int) -> torch.Tensor:
    """A weight as models have it: float32 [n, k], normal, standard deviation 0.02."""
    return torch.randn(n, k, generator=torch.Generator().manual_seed(n + k)).mul_(0.02)


def activations(problem: Problem) -> torch.Tensor:
    """[m, k], normal."""
    x = torch.randn(problem.m, problem.k, generator=torch.Generator().manual_seed(problem.m))
    return x.to(problem.x_dtype)


def packed_copies(weight: lowbit.QuantizedTensor, rotate_bytes: int) -> list[torch.Tensor]:
    """The packed weight, as often as keeps it cold."""
    packed = weight.pack()
    copies = num_copies(packed.numel(), rotate_bytes)
    return [packed] + [packed.clone() for _ in range(copies - 1)]


def ours(problem: Problem, x: torch.Tensor, copies: list[torch.Tensor]) -> Contestant:
    """The operator that ``lowbit.linear`` and ``lowbit.nn.Linear`` call."""
    op, n = torch.ops.lowbit, problem.n
    if problem.family == "integer":
        integer = op.integer.default
        return Contestant("lowbit", [_bind(integer, x, w, None, n, None, None, True, x.dtype) for w in copies])
    weight_only = op.weight_only.default
    return Contestant("lowbit", [_bind(weight_only, x, w, None, n) for w in copies])


def _bind(function, *args):  # a closure of its own for each copy; functools.partial costs the same
    return lambda: function(*args)


# Frobenius norms. float32: sums in fp32. bfloat16: x and W rounded to 8 bits, then y.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


def check(problem: Problem, x: torch.Tensor, weight: lowbit.QuantizedTensor, y: torch.Tensor) -> float:
    """Relative error of y against the same product in float32 of plain torch.

    Raises:
        AssertionError: it is more than rounding explains.
    """
    reference = x.float()
    if problem.family == "integer":  # the activation's rounding to int8 is part of the problem
        scale = reference.abs().amax(1, keepdim=True) / 127
        reference = (reference / scale).round() * scale
    reference = F.linear(reference, weight.dequantize())
    error = relative_error(y, reference)
    assert error <= TOLERANCE[problem.x_dtype], f"{problem}: relative error {error:.3g}"
    return error


def relative_error(y: torch.Tensor, reference: torch.Tensor) -> float:
    """||y - reference|| / ||reference||."""
    return float((y.float() - reference).norm() / reference.norm())
