"""What is built, what runs here, and which kernel a problem gets."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from typing import Any

import torch

from lowbit import formats
from lowbit._load import core
from lowbit.quantizers.scheme import Scheme
from lowbit.tensor import QuantizedTensor

# What x may be: floats, or quantized already where its scale is static.
_ACTIVATIONS = ("float32", "float16", "bfloat16", "int8", "float8_e4m3fn")


@dataclass(frozen=True)
class Candidate:
    """One kernel, and whether it runs the problem.

    Attributes:
        kernel: its name.
        chosen: it is the one that runs.
        reason: why it is not; nothing for the chosen one.
    """

    kernel: str
    chosen: bool
    reason: str


@dataclass(frozen=True)
class Explanation:
    """Which kernel a problem gets, and why the others were refused; prints as a list.

    Attributes:
        problem: the problem in words.
        candidates: every kernel of the family, best first.
        nothing: why there is none, or nothing.
    """

    problem: str
    candidates: tuple[Candidate, ...]
    nothing: str = ""

    @property
    def kernel(self) -> str | None:
        """The chosen kernel's name; None: no kernel runs this."""
        return next((row.kernel for row in self.candidates if row.chosen), None)

    def __str__(self) -> str:
        width = max((len(row.kernel) for row in self.candidates), default=0)
        lines = [
            f"  {'->' if row.chosen else '  '} {row.kernel.ljust(width)}  {'chosen' if row.chosen else row.reason}"
            for row in self.candidates
        ]
        return "\n".join((self.problem, *lines)) if lines else f"{self.problem}\n  none: {self.nothing}"


def explain(
    what: Scheme | str | QuantizedTensor | torch.nn.Module,
    m: int,
    n: int | None = None,
    k: int | None = None,
    *,
    x_dtype: torch.dtype | str = torch.bfloat16,
    device: torch.device | str | None = None,
    **choices: Any,
) -> Explanation:
    """Which kernel multiplies m rows of activations by such a weight.

    Args:
        what: a preset's name or a ``Scheme`` (then n and k are needed), a ``lowbit.nn.Linear``, or a
            ``QuantizedTensor`` (taken as weight-only).
        m: rows of x.
        n, k: outputs and inputs of the weight.
        x_dtype: of the activations.
        device: ``"cpu"``, ``"cuda"``, or ``"sm_90"``: as a CUDA device of compute capability 9.0 would, be there one
            or not. None: the layer's or tensor's own, else the CPU.
        choices: attributes of the scheme to change.

    Raises:
        TypeError, ValueError: a scheme, size or dtype that cannot be.
    """
    if isinstance(what, QuantizedTensor):
        scheme = Scheme(what.format.name, group_size=what.group, symmetric=not what.has_zero_points)
        (n, k), (group_n, group_k) = what.shape, what.group
    elif isinstance(what, torch.nn.Module):
        from lowbit.nn import Linear

        if not isinstance(what, Linear):
            raise TypeError(f"a {type(what).__name__}: explain takes a lowbit.nn.Linear")
        scheme, n, k = what.scheme, what.out_features, what.in_features
        group_n, group_k = scheme.group(n, k)
    else:
        scheme = Scheme.of(what, **choices)
        if n is None or k is None:
            raise TypeError("explain needs n and k, the outputs and inputs of the weight")
        group_n, group_k = scheme.group(n, k)
    if device is None:
        device = what.device if isinstance(what, QuantizedTensor) else "cpu"
        if isinstance(what, torch.nn.Module):
            device = "cpu" if what.packed.is_meta else what.packed.device
    where, arch = _device(device)
    if m < 0 or n < 1 or k < 1:
        raise ValueError(f"m = {m}, n = {n}, k = {k}: m must be at least 0, n and k at least 1")
    dtype = x_dtype if isinstance(x_dtype, str) else formats.dtype_name(x_dtype)
    if dtype not in _ACTIVATIONS:
        raise ValueError(f"x_dtype is {dtype!r}: it must be one of {', '.join(_ACTIVATIONS)}")
    family = scheme.family_on(where)
    rows = core().explain(
        family,
        scheme.format,
        m,
        n,
        k,
        group_k,
        dtype,
        device=where,
        arch=arch,
        group_n=group_n,
        x_group=scheme.activation_group or 0,
        accum=scheme.accum,
    )
    on = f"CPU level {core().cpu_isa()}" if where == "cpu" else f"sm_{arch}" if arch else "this machine's CUDA device"
    return Explanation(
        f"{family} {scheme.format}: m = {m}, n = {n}, k = {k}, groups of {group_k}, {dtype} activations, {on}",
        tuple(Candidate(row["kernel"], bool(row["chosen"]), "" if row["chosen"] else row["reason"]) for row in rows),
        "" if rows else core().cuda()["problem"] if where == "cuda" else f"the CPU has no {family} kernel",
    )


def _device(device: torch.device | str) -> tuple[str, int]:
    """``"cpu"`` or ``"cuda"``, and a compute capability times ten (0: that of the device there is)."""
    words = re.fullmatch(r"sm_?(\d{2,3})[af]?", str(device))
    if words:
        return "cuda", int(words[1])
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device is {str(device)!r}: it must be 'cpu', 'cuda' or 'sm_' and a compute capability")
    return kind, 0


def versions() -> dict[str, str]:
    """Of what matters to a bug report."""
    return {
        "lowbit": core().version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def summary() -> str:
    """What ``python -m lowbit`` prints: versions, CPU features, levels, formats and kernels."""
    c = core()
    lines = ["lowbit " + c.version()]
    lines += [f"  {name:<11}{value}" for name, value in versions().items() if name != "lowbit"]
    build = c.build_info()
    built = [build["compiler"]]
    built += (
        [f"torch {build['torch']} (works with {build['torch_floor']} and later)"] if build["torch"] else ["no torch"]
    )
    built += [f"the {build['sanitize']} sanitizers"] if build["sanitize"] else []
    built += ["CUDA emulated"] if build["emulated"] else []
    lines.append(f"  {'built with':<11}{', '.join(built)}")
    lines += ["", f"CPU: {' '.join(c.cpu_features())}", "CPU levels, worst first:"]
    for isa in c.cpu_isas():
        state = "in use" if isa["name"] == c.cpu_isa() else "supported" if isa["supported"] else "not on this machine"
        lines.append(f"  {isa['name']:<14}{state}")
    cuda = c.cuda()
    if cuda["architectures"]:
        lines += ["", f"CUDA kernels for {' '.join('sm_' + arch for arch in cuda['architectures'])}:"]
        lines += [f"  none runs: {cuda['problem']}"] if cuda["problem"] else []
    else:
        lines += ["", f"CUDA: {cuda['problem']}"]
    for index, device in enumerate(cuda["devices"]):
        size = f"{device['sms']} SMs, {device['memory_bytes'] / 2**30:.0f} GiB"
        lines.append(f"  device {index}: {device['name']}, sm_{device['arch']}, {size}")
    lines += ["", "formats:"]
    for fmt in formats.table().values():
        block = "any group" + (" of one row" if fmt.block_n == 1 else "")
        block = f"blocks of {fmt.block_n} x {fmt.block_k}" if fmt.block_k else block
        also = (", zero points" if fmt.zero_point else "") + (", global scale" if fmt.global_scale else "")
        also += (", minima" if fmt.minimum else "") + (", scales of two levels" if fmt.super_groups else "")
        lines.append(f"  {fmt.name:<12}{fmt.bits} bits, {block}, {fmt.scale_dtype or 'float'} scales{also}")
    kernels = c.kernels()
    runnable = sum(1 for kernel in kernels if kernel["runnable"])
    lines += ["", f"kernels: {len(kernels)} built, {runnable} runnable here"]
    width = max((len(kernel["name"]) for kernel in kernels), default=0)
    for kernel in kernels:
        tile = f"{kernel['mr']} x {kernel['nr']} x {kernel['kr']}"
        extra = "batch-invariant" if kernel["batch_invariant"] else ""
        mark = "*" if kernel["runnable"] else " "
        where = f"{kernel['isa']:<12}{kernel['family']:<12}"
        lines.append(f"  {mark} {kernel['name']:<{width}}  {where} tile {tile:<14}{extra}".rstrip())
    lines.append("* runs on this machine, at the level in use or on a device it has")
    return "\n".join(lines)
