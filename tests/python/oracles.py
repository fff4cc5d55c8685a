"""Independent answers: plain torch in float64, and the field's own packages. Nothing here calls a kernel of ours."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import lowbit
from lowbit import formats
from lowbit.formats import Format

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
EPS = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def need(package: str):
    """The oracle package, or a skip that says which one is missing."""
    return pytest.importorskip(package, reason=f"the oracle package {package} is not installed")


def decode(quantized: lowbit.QuantizedTensor) -> torch.Tensor:
    """float64 [n, k]: the canonical form by its definition."""
    n, k = quantized.shape
    values = quantized.format.values.double()[code_numbers(quantized)]
    scales, mins = group_scales(quantized)
    scales = expand(scales, quantized.shape, quantized.group)
    if quantized.zero_points is not None:
        values = values - expand(quantized.zero_points.double(), quantized.shape, quantized.group)
    assert values.shape == (n, k)
    weight = values * scales
    if mins is not None:
        weight = weight + expand(mins, quantized.shape, quantized.group)
    return weight * float(torch.tensor(quantized.global_scale, dtype=torch.float32))


def group_scales(quantized: lowbit.QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """float64 [groups]: the scales, of one level or two, and the minima."""
    fmt = quantized.format
    _, scales, _, mins, supers, super_mins = quantized.canonical()
    if supers is None:
        return scales.float().double(), None if mins is None else mins.double()
    if fmt.super_flat:  # fp32 arithmetic is part of its definition
        assert mins is None
        absmax = supers.repeat_interleave(fmt.super_groups)[: scales.numel()].view(scales.shape)
        return (fmt.scale_values[scales.long()] * absmax + quantized.scale_offset).double(), None

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double().repeat_interleave(fmt.super_groups, 1)[:, : scales.shape[1]]

    return scales.double() * spread(supers), None if mins is None else mins.double() * spread(super_mins)


def code_numbers(quantized: lowbit.QuantizedTensor) -> torch.Tensor:
    """int64 [n, k]: which entry of the value table each code is."""
    return unpack_bits(quantized.codes.view(torch.uint8), quantized.format.bits, quantized.shape[1])


def unpack_bits(codes: torch.Tensor, bits: int, k: int) -> torch.Tensor:
    """int64 [n, k] from uint8 [n, ceil(k * bits / 8)]: bit by bit, the low ones first, as NumPy takes bytes apart."""
    stream = np.unpackbits(codes.numpy(), axis=1, bitorder="little")[:, : k * bits]
    return torch.from_numpy(stream.reshape(-1, k, bits)).long() @ (1 << torch.arange(bits))


def pack_bits(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse."""
    stream = (numbers.long()[..., None] >> torch.arange(bits) & 1).to(torch.uint8).flatten(1)
    return torch.from_numpy(np.packbits(stream.numpy(), axis=1, bitorder="little"))


def expand(per_group: torch.Tensor, shape: tuple[int, int], group: tuple[int, int]) -> torch.Tensor:
    """One value for each group -> one for each weight."""
    rows = per_group.repeat_interleave(min(group[0], shape[0]), 0)[: shape[0]]
    return rows.repeat_interleave(min(group[1], shape[1]), 1)[:, : shape[1]]


def matmul_bound(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What csrc/gemm/contract.h allows: float64 [..., n] from x [..., k], weight [n, k] and the exact y [..., n]."""
    k = x.shape[-1]
    to_bf16 = {torch.float32: 0.0, torch.float16: 2.0**-7 + 2.0**-16, torch.bfloat16: 2.0**-8}[x.dtype]  # x and W; W
    relative = (k + 2) * 2.0**-24 + to_bf16
    smallest = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}[x.dtype]
    return relative * (x.double().abs() @ weight.double().abs().T) + EPS[x.dtype] * y.abs() + smallest


def random_tensor(
    fmt: Format, n: int, k: int, group: tuple[int, int] | None = None, zero_points: bool = False, **options
):
    """A QuantizedTensor with random finite codes and scales."""
    group = (fmt.block_n, fmt.block_k) if fmt.block_k else group or (1, k)
    group = (fmt.block_n or group[0], group[1])
    finite = fmt.values.isfinite().nonzero().flatten()
    numbers = finite[torch.randint(len(finite), (n, k))].to(torch.uint8)
    numbers = pack_bits(numbers, fmt.bits)
    groups = formats.num_groups((n, k), group)
    supers = fmt.super_shape((n, k), group)
    signs = torch.randint(0, 2, groups) * 2 - 1
    if supers:
        options["super_scales"] = (torch.randn(supers) / 256).to(formats.dtype_of(fmt.super_dtype))
    if fmt.minimum:
        mins = torch.randint(-63, 64, groups).to(torch.int8) if supers else torch.randn(groups).half()
        options["mins"] = mins
        options |= {"super_mins": (torch.randn(supers) / 256).half()} if supers else {}
    if fmt.scale_values is not None:
        options["scale_offset"] = 0.125
    if fmt.scale_dtype == "float8_e8m0fnu":
        unit = 127 - round(math.log2(fmt.largest))
        scales = torch.randint(unit - 6, unit + 3, groups).to(torch.uint8)
    elif fmt.scale_dtype == "float8_e4m3fn":
        scales = (torch.rand(groups) * 3 + 0.1).to(torch.float8_e4m3fn)
    elif supers:
        scales = torch.randint(-32, 64, groups).to(torch.int8).view(formats.dtype_of(fmt.scale_dtype))
    elif fmt.scale_dtype == "float16":
        scales = ((torch.rand(groups) + 0.5) * signs / fmt.largest).half()
    else:
        scales = (torch.rand(groups) + 0.5).to(options.pop("scale_dtype", torch.float32)) / fmt.largest
    zeros = None
    if zero_points:
        zeros = torch.randint(int(fmt.lowest), int(fmt.largest) + 1, groups).to(torch.int8)
    global_scale = 0.37 if fmt.global_scale else 1.0
    return lowbit.QuantizedTensor(
        numbers.view(fmt.storage),
        scales,
        zeros,
        format=fmt.name,
        shape=(n, k),
        group=group,
        global_scale=options.pop("global_scale", global_scale),
        **options,
    )


def quantize_rows(x: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """int8 [m, k], float32 [m], int32 [m]: csrc/gemm/activation.h in plain torch."""
    x = x.float()
    low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    steps = 127.0 if symmetric else 255.0
    span = torch.maximum(high, -low) if symmetric else high - low
    inverse = torch.where(span > 0, torch.full((), steps) / span, torch.zeros(()))  # number / tensor is rounded twice
    scale = span / steps
    zero = torch.zeros_like(low) if symmetric else torch.where(span > 0, torch.round(-128 - low * inverse), 0 * low)
    q = (torch.round(x * inverse[:, None]) + zero[:, None]).clamp(-128, 127)
    return q.to(torch.int8), scale, zero.to(torch.int32)


def integer_linear(
    q: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, quantized: lowbit.QuantizedTensor
) -> torch.Tensor:
    """float64 [m, n]: the integer family without rounding after the sums."""
    return ((q.double() - zero.double()[:, None]) * scale.double()[:, None]) @ decode(quantized).T


# ---- compressed-tensors ----


def ct_args(preset: str):
    """compressed-tensors' arguments for the weight of a preset of ours."""
    quantization = need("compressed_tensors.quantization")
    name = {"FP8": "FP8_DYNAMIC"}.get(preset, preset)
    return quantization.preset_name_to_scheme(name, ["Linear"]).weights


def ct_scheme(preset: str, format: str | None = None):
    quantization = need("compressed_tensors.quantization")
    name = {"FP8": "FP8_DYNAMIC"}.get(preset, preset)
    scheme = quantization.preset_name_to_scheme(name, ["Linear"])
    scheme.format = format
    return scheme


def ct_ranges(weight: torch.Tensor, args) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and greatest weights of every group, in the shapes that its observers make."""
    strategy = str(getattr(args.strategy, "value", args.strategy))
    n, k = weight.shape
    if strategy == "channel":
        groups = weight.unflatten(1, (1, k))
        return groups.amin(-1), groups.amax(-1)
    if strategy in ("group", "tensor_group"):
        groups = weight.unflatten(1, (-1, args.group_size))
        return groups.amin(-1), groups.amax(-1)
    if strategy == "block":
        height, width = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -k % width, 0, -n % height))
        groups = padded.unflatten(1, (-1, width)).unflatten(0, (-1, height))  # padding with 0: 0 is in every range
        return groups.amin((1, 3)), groups.amax((1, 3))
    assert strategy == "tensor"
    return weight.amin().reshape(1), weight.amax().reshape(1)


def ct_quantize(weight: torch.Tensor, preset: str):
    """(codes, scale, zero_point or None, global_scale or None) as compressed-tensors computes them."""
    utils = need("compressed_tensors.quantization.utils")
    forward = need("compressed_tensors.quantization.lifecycle.forward")
    args = ct_args(preset)
    low, high = ct_ranges(weight, args)
    global_scale = None
    if args.num_bits == 4 and args.group_size == 16:
        global_scale = utils.generate_gparam(weight.amin().reshape(1), weight.amax().reshape(1))
    scale, zero = utils.calculate_qparams(low, high, args, global_scale=global_scale)
    codes = forward.quantize(weight, scale, None if args.symmetric else zero, args, global_scale=global_scale)
    return codes, scale, None if args.symmetric else zero, global_scale


def weights(dtype: torch.dtype, n: int = 48, k: int = 512) -> torch.Tensor:
    """A weight as trained ones are: Gaussian rows of different sizes, some outliers, a row and a block of zeros."""
    weight = torch.randn(n, k) * torch.logspace(-3, 0, n)[:, None]
    weight[torch.randint(n, (20,)), torch.randint(k, (20,))] *= 8
    weight[3] = 0
    weight[5, : k // 4] = 0
    return weight.to(dtype)


def format_cases():
    """(format, has zero points) for all formats."""
    rows = [(fmt, False) for fmt in formats.table().values()]
    rows += [(fmt, True) for fmt in formats.table().values() if fmt.zero_point]
    return [pytest.param(fmt, zero, id=fmt.name + ("-asym" if zero else "")) for fmt, zero in rows]


def cross(**axes):
    """All combinations, as pytest parameters: names and values for parametrize."""
    return ",".join(axes), list(itertools.product(*axes.values()))
