"""How fast the CUDA kernels are: ``python benchmarks/cuda_speed.py [--quick] [--json FILE]``. Needs a GPU.

Every time is that of a CUDA graph which multiplies by distinct weights one after the other, at least 8 of them and
three times the L2 cache, so that none is found in a cache; divided by their number, over many replays: median, 5th and
95th percentile. Beside it run torch's own products of the same shape. The limits are measured, too: the bandwidth of a
copy and, for multiplication, the best product of torch at 8192 x 8192 x 8192 in bf16, int8 and fp8. Times of W8A8, W4A8
and FP8 have the quantization of x in them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import lowbit
from lowbit._load import core

SCHEMES = ["W4A16", "W8A16", "MXFP4A16", "NVFP4A16", "FP8A16", "W8A8", "W4A8", "FP8", "FP8_BLOCK"]
SHAPES = [(8192, 8192), (4096, 4096), (28672, 8192)]
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]


@dataclass
class Result:
    """One line: times in microseconds."""

    what: str
    m: int
    n: int
    k: int
    median: float
    p5: float
    p95: float
    bytes: int  # of the weight
    weights: int
    sm_clock: str

    def gigabytes(self) -> float:
        return self.bytes / self.median / 1e3

    def teraflops(self) -> float:
        return 2 * self.m * self.n * self.k / self.median / 1e6


def clocks() -> str:
    query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw,clocks_event_reasons.active", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def replay_times(calls: list[Callable[[], Any]], replays: int) -> list[float]:
    """Microseconds for one call, of each replay of a graph of all of them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(replays + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return times[3:]  # the first warm up


def measured(what: str, m: int, n: int, k: int, size: int, calls: list[Callable[[], Any]], replays: int) -> Result:
    times = sorted(replay_times(calls, replays))
    low, high = times[int(0.05 * len(times))], times[min(int(0.95 * len(times)), len(times) - 1)]
    return Result(what, m, n, k, statistics.median(times), low, high, size, len(calls), clocks())


def num_weights(size: int) -> int:
    l2 = max(device["l2_bytes"] for device in core().cuda()["devices"])
    return max(8, math.ceil(3 * l2 / size))


def of_scheme(name: str, n: int, k: int) -> lowbit.Scheme:
    if name == "FP8A16":
        return lowbit.Scheme("fp8_e4m3", "channel")
    return lowbit.Scheme.of(name)


def bench_scheme(name: str, n: int, k: int, rows: list[int], replays: int) -> list[Result]:
    scheme = of_scheme(name, n, k)
    first = lowbit.nn.Linear(k, n, bias=False, scheme=scheme, dtype=torch.bfloat16, device="cuda").eval()
    size = first.packed.numel()
    layers = [first]
    while len(layers) < num_weights(size):  # other weights of the same values: distinct memory is what counts
        copied = lowbit.nn.Linear(k, n, bias=False, scheme=scheme, dtype=torch.bfloat16, device="meta")
        copied = copied.to_empty(device="cuda").eval()
        copied.packed.copy_(first.packed)
        layers.append(copied)
    results = []
    for m in rows:
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        calls = [lambda layer=layer, x=x: layer(x) for layer in layers]
        results.append(measured(f"lowbit {name}", m, n, k, size, calls, replays))
    return results


def bench_torch(n: int, k: int, rows: list[int], replays: int) -> list[Result]:
    results = []
    half = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(num_weights(2 * n * k))]
    for m in rows:
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        calls: list[Callable[[], Any]] = [lambda w=w, x=x: torch.nn.functional.linear(x, w) for w in half]
        results.append(measured("torch bf16", m, n, k, 2 * n * k, calls, replays))
    bytes8 = [w.to(torch.int8) for w in half] + [w.to(torch.int8) for w in half]
    for m in rows:
        if m <= 16:
            continue  # torch._int_mm wants more than 16 rows
        x8 = torch.randint(-127, 127, (m, k), device="cuda", dtype=torch.int8)
        calls = [lambda w=w, x8=x8: torch._int_mm(x8, w.T) for w in bytes8]
        results.append(measured("torch._int_mm", m, n, k, n * k, calls, replays))
    if torch.cuda.get_device_capability() >= (8, 9):
        one = torch.ones((), device="cuda")
        fp8 = [w.to(torch.float8_e4m3fn) for w in half] + [w.to(torch.float8_e4m3fn) for w in half]
        for m in rows:
            xf = torch.randn(max(m, 16), k, device="cuda").to(torch.float8_e4m3fn)  # it wants 16 rows
            calls = [
                lambda w=w, xf=xf: torch._scaled_mm(xf, w.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
                for w in fp8
            ]
            results.append(measured("torch._scaled_mm", m, n, k, n * k, calls, replays))
    return results


def limits(replays: int) -> dict[str, float]:
    """Bytes/s and operations/s, measured."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = statistics.median(replay_times([lambda: target.copy_(source)], replays))
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = min(replay_times([lambda: a @ a], replays))
    found = {"copy bytes/s": 2 * source.numel() / copy * 1e6, "bf16 op/s": 2 * 8192**3 / product * 1e6}
    a8 = a.to(torch.int8)
    found["int8 op/s"] = 2 * 8192**3 / min(replay_times([lambda: torch._int_mm(a8, a8.T)], replays)) * 1e6
    if torch.cuda.get_device_capability() >= (8, 9):
        one, f8 = torch.ones((), device="cuda"), a.to(torch.float8_e4m3fn)
        fast: dict[str, Any] = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
        times = replay_times([lambda: torch._scaled_mm(f8, f8.T, one, one, **fast)], replays)
        found["fp8 op/s"] = 2 * 8192**3 / min(times) * 1e6
    return found


def peak(what: str, limit: dict[str, float]) -> float:
    """The measured operations/s of the products that `what` is made of."""
    kind = "int8" if what in ("lowbit W8A8", "lowbit W4A8", "torch._int_mm") else "bf16"
    if what in ("lowbit FP8", "lowbit FP8_BLOCK", "torch._scaled_mm"):
        kind = "fp8"
    return limit.get(f"{kind} op/s", math.nan)


def overhead() -> float:
    """Microseconds that one call of ``lowbit.linear`` keeps the host."""
    layer = lowbit.nn.Linear(256, 256, bias=False, dtype=torch.bfloat16, device="cuda").eval()
    x = torch.randn(1, 256, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        for _ in range(200):
            layer(x)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(500):
            layer(x)
        took = time.perf_counter() - begin
    torch.cuda.synchronize()
    return took / 500 * 1e6


def fp8_errors() -> dict[str, dict[int, float]]:
    """Root mean square error of fp8 sums over that of y, by accumulation and K: normal numbers, float64 beside them."""
    errors: dict[str, dict[int, float]] = {"promoted": {}, "fast": {}}
    for k in (128, 512, 2048, 8192, 16384):
        layer = lowbit.nn.Linear(k, 256, bias=False, scheme="FP8", dtype=torch.float32, device="cuda").eval()
        x = torch.randn(64, k, device="cuda").to(torch.float8_e4m3fn)
        exact = x.double() @ layer.weight.double().T
        for accum, found in errors.items():
            y = lowbit.linear(x, layer.packed, activation="fp8", x_scale=1.0, accum=accum, out_dtype=torch.float32)
            found[k] = ((y.double() - exact).square().mean() / exact.square().mean()).sqrt().item()
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one shape, few replays")
    parser.add_argument("--schemes", nargs="*", default=SCHEMES)
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    if core().cuda()["problem"] or not torch.cuda.is_available():
        sys.exit(f"no GPU: {core().cuda()['problem'] or 'torch sees none'}")
    replays = 10 if options.quick else 50
    shapes, rows = (SHAPES[:1], [1, 16, 128, 1024, 4096]) if options.quick else (SHAPES, ROWS)
    with torch.no_grad():
        limit = limits(replays)
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, lowbit {lowbit.__version__}")
        print(*(f"{name}: {value:.4g}" for name, value in limit.items()), f"op overhead: {overhead():.2f} us", sep="\n")
        print(
            f"{'what':<22}{'m':>6}{'n':>7}{'k':>7}{'us':>10}{'p5':>10}{'p95':>10}{'GB/s':>8}{'% copy':>8}{'TFLOP/s':>9}"
            f"{'% peak':>8}  clock, power"
        )
        results = []
        for n, k in shapes:
            for bench in (bench_torch, *(lambda *a, name=name: bench_scheme(name, *a) for name in options.schemes)):
                for r in bench(n, k, rows, replays):
                    results.append(r)
                    share = 100 * r.gigabytes() * 1e9 / limit["copy bytes/s"]
                    print(
                        f"{r.what:<22}{r.m:>6}{r.n:>7}{r.k:>7}{r.median:>10.2f}{r.p5:>10.2f}{r.p95:>10.2f}"
                        f"{r.gigabytes():>8.0f}{share:>8.1f}{r.teraflops():>9.1f}"
                        f"{100 * r.teraflops() * 1e12 / peak(r.what, limit):>8.1f}  {r.sm_clock}",
                        flush=True,
                    )
        errors = fp8_errors() if torch.cuda.get_device_capability() >= (8, 9) else {}
        for accum, by_k in errors.items():
            print(f"error of fp8 sums, {accum}:", *(f"{k}: {error:.1e}" for k, error in by_k.items()), sep="  ")
    if options.json:
        record = {
            "device": torch.cuda.get_device_name(),
            "limits": limit,
            "fp8 errors": errors,
            "results": [asdict(r) for r in results],
        }
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
