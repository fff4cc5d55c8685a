"""What an epilogue costs: a product with it, the bare product, and the product with torch's operations behind it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import lowbit
from problems import Problem, activations, float_weight, packed_copies, relative_error
from timing import Call, Contestant, Turns, run

SHAPE = (4096, 4096)
EPILOGUES = {
    "silu": ("silu", None, None),
    "gelu": ("gelu", None, None),
    "residual": (None, None, "residual"),
    "silu * up": ("silu", "multiply", None),
}


@pytest.mark.parametrize("m", [64, 256])
@pytest.mark.parametrize("scheme", ["W4A16", "W8A8"])
def test_epilogue(benchmark, scheme: str, m: int, rotate_bytes: int, blocks: int) -> None:
    benchmark.group = "epilogue"
    problem = Problem(scheme, torch.bfloat16, *SHAPE, m)
    quantized = lowbit.quantize(float_weight(*SHAPE).bfloat16(), scheme)
    copies = packed_copies(quantized, rotate_bytes)
    x, other = activations(problem), torch.randn(m, SHAPE[0]).bfloat16()

    def product(w: torch.Tensor, *epilogue: object) -> torch.Tensor:
        y: torch.Tensor
        if problem.family == "integer":
            y = torch.ops.lowbit.integer(x, w, None, SHAPE[0], None, None, True, x.dtype, None, *epilogue)
        else:
            y = torch.ops.lowbit.weight_only(x, w, None, SHAPE[0], None, *epilogue)
        return y

    def fused(name: str) -> list[Call]:
        function, multiply, residual = EPILOGUES[name]
        arguments = (function, other if multiply else None, other if residual else None)
        return [lambda w=w: product(w, *arguments) for w in copies]

    bare = Contestant("bare", [lambda w=w: product(w) for w in copies])
    others = [Contestant(name, fused(name)) for name in EPILOGUES]
    behind = Contestant("silu * up, by torch", [lambda w=w: F.silu(product(w)).mul_(other) for w in copies])
    error = relative_error(fused("silu * up")[0](), behind.next()().float())
    assert error < 8e-3, f"{problem}: relative error {error:.3g}"

    turns = Turns(bare, [*others, behind], blocks)
    benchmark.pedantic(run, setup=turns, rounds=turns.rounds)
    if benchmark.stats is None:  # --benchmark-disable
        return
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(
        scheme=scheme,
        n=SHAPE[0],
        k=SHAPE[1],
        m=m,
        threads=torch.get_num_threads(),
        percent_more={entrant.name: 100 * (entrant.spread().median / median - 1) for entrant in [*others, behind]},
    )
