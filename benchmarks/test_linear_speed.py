"""Every family and format against the machine's limits and the peers: nothing here fails on speed, only on answers."""

from __future__ import annotations

import time

import pytest
import torch

import lowbit
from lowbit._load import core
from peers import PeerWeights, contestants
from problems import TOO_SLOW_SECONDS, Problem, activations, check, float_weight, ours, packed_copies
from timing import Disturbance, Limit, Spread, Turns, multiplier, run


class OurWeights:
    """Float and packed weights of the shape and scheme at hand, kept from one m to the next."""

    def __init__(self, rotate_bytes: int) -> None:
        self._rotate_bytes = rotate_bytes
        self._float: tuple[tuple[int, int], torch.Tensor] | None = None
        self._key: tuple[object, ...] | None = None

    def of(self, problem: Problem) -> tuple[torch.Tensor, lowbit.QuantizedTensor, list[torch.Tensor]]:
        """The float32 weight, the quantized one, and its packed copies."""
        shape = (problem.n, problem.k)
        if self._float is None or self._float[0] != shape:
            self._float = (shape, float_weight(*shape))
        weight = self._float[1]
        key = (problem.scheme, shape)
        if key != self._key:
            self._key, self._copies = key, []
            # scales as checkpoints of bfloat16 models have them
            self._quantized = lowbit.quantize(weight.bfloat16(), problem.scheme)
            self._copies = packed_copies(self._quantized, self._rotate_bytes)
        return weight, self._quantized, self._copies


@pytest.fixture(scope="module")
def our_weights(rotate_bytes: int) -> OurWeights:
    return OurWeights(rotate_bytes)


def test_linear(benchmark, problem: Problem, our_weights: OurWeights, peer_weights: PeerWeights, blocks: int) -> None:
    benchmark.group = problem.family
    weight, quantized, copies = our_weights.of(problem)
    x = activations(problem)
    entrant = ours(problem, x, copies)
    begin = time.perf_counter()
    y = entrant.next()()
    if time.perf_counter() - begin > TOO_SLOW_SECONDS:
        pytest.skip(f"{problem.kernel()} takes {time.perf_counter() - begin:.1f} s a call")
    error = check(problem, x, quantized, y)
    others = contestants(problem, weight, x, peer_weights)
    bandwidth = Limit("read_bandwidth")
    multiply = Limit(multiplier(problem.family, problem.x_dtype))

    turns = Turns(entrant, [bandwidth, multiply, *others], blocks)
    disturbance = Disturbance()
    benchmark.pedantic(run, setup=turns, rounds=turns.rounds)
    if benchmark.stats is None:  # --benchmark-disable
        return

    spread = Spread.of(benchmark.stats.stats.data)
    bytes, operations = problem.bytes(quantized), problem.operations
    memory_seconds, multiply_seconds = bytes / bandwidth.value, operations / multiply.value
    benchmark.extra_info.update(
        {
            "family": problem.family,
            "scheme": problem.scheme,
            "format": quantized.format.name,
            "x_dtype": str(problem.x_dtype).removeprefix("torch."),
            "n": problem.n,
            "k": problem.k,
            "m": problem.m,
            "group": list(quantized.group),
            "kernel": problem.kernel(),
            "isa": core().cpu_isa(),
            "threads": torch.get_num_threads(),
            "bytes": bytes,
            "operations": operations,
            "median_us": spread.median * 1e6,
            "p5_us": spread.p5 * 1e6,
            "p95_us": spread.p95 * 1e6,
            "gb_per_s": bytes / spread.median / 1e9,
            "tops": operations / spread.median / 1e12,
            "limits": {"read_bandwidth": bandwidth.value, multiply.what: multiply.value},
            "percent_of_bandwidth": 100 * memory_seconds / spread.median,
            "percent_of_multiply_peak": 100 * multiply_seconds / spread.median,
            "percent_of_limit": 100 * max(memory_seconds, multiply_seconds) / spread.median,
            "bound": "memory" if memory_seconds > multiply_seconds else "multiply",
            "relative_error": error,
            "weight_error": lowbit.relative_error(weight, quantized),
            "copies": len(copies),
            "others_percent": disturbance.percent(),
            "peers": {
                other.name: {
                    "median_us": other.spread().median * 1e6,
                    "p5_us": other.spread().p5 * 1e6,
                    "p95_us": other.spread().p95 * 1e6,
                    "ratio": other.spread().median / spread.median,  # above 1: ours is faster
                }
                for other in others
            },
        }
    )
