"""The scale rules: from the ranges of the groups of a weight to scales, zero points and divisors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lowbit import formats
from lowbit.formats import Format
from lowbit.ops import ops
from lowbit.quantizers.ranges import reduce_columns, reduce_rows, row_chunks
from lowbit.quantizers.scheme import Scheme


@dataclass
class Grid:
    """Where the codes of each group lie. All tensors are [rows of groups, columns of groups].

    Attributes:
        scales: what the weight is multiplied with when it is decoded.
        zero_points: int8, or None.
        divisor: float; code = nearest(w / divisor + zero_point).
        global_scale: one more factor for the whole tensor; 1 where the format has none.
    """

    scales: torch.Tensor
    zero_points: torch.Tensor | None
    divisor: torch.Tensor
    global_scale: float = 1.0


def absmax(weight: torch.Tensor, lows: torch.Tensor, highs: torch.Tensor, scheme: Scheme) -> Grid:
    """The range of every group becomes the range of the format: compressed-tensors' rule, to the bit."""
    return _from_ranges(lows, highs, scheme)


def signed_max(weight: torch.Tensor, lows: torch.Tensor, highs: torch.Tensor, scheme: Scheme) -> Grid:
    """The weight of largest magnitude becomes the lowest code exactly: scale = that weight / lowest.

    The lowest code of an integer format has no positive counterpart, so absmax leaves half a step of the range
    unused; this rule uses it, and the scale is negative where the largest weight is positive. (llama.cpp's Q4_0.)
    """
    fmt = formats.get(scheme.format)
    dtype = scheme.scales(weight.dtype)
    extreme = torch.where(highs > -lows, highs, lows).to(torch.promote_types(weight.dtype, dtype))
    scales = _nonzero((extreme / _like(fmt.lowest, extreme)).to(dtype))
    return Grid(scales, None, scales)


def mse(weight: torch.Tensor, lows: torch.Tensor, highs: torch.Tensor, scheme: Scheme) -> Grid:
    """Of the grids that absmax gives for ranges shrunk or stretched a little, the one of least squared error."""
    fmt = formats.get(scheme.format)
    group = scheme.group(*weight.shape)
    grids = [_from_ranges(lows, highs, scheme, ratio) for ratio in _mse_ratios(fmt)]
    best = grids[0]
    best_error = _squared_error(weight, best, fmt, group)
    for grid in grids[1:]:
        error = _squared_error(weight, grid, fmt, group)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best.scales = _select(better, grid.scales, best.scales)
        best.divisor = torch.where(better, grid.divisor, best.divisor)
        if best.zero_points is not None and grid.zero_points is not None:
            best.zero_points = torch.where(better, grid.zero_points, best.zero_points)
    return best


def absmean(weight: torch.Tensor, lows: torch.Tensor, highs: torch.Tensor, scheme: Scheme) -> Grid:
    """The mean magnitude of every group: W becomes clip(round(W / mean |W|), -1, 1).

    BitNet b1.58's (Ma et al. 2024, The Era of 1-bit LLMs, equations 1 to 3), for ternary weights.
    """
    scales = mean_magnitude(weight, scheme.group(*weight.shape))
    return Grid(scales.to(scheme.scales(weight.dtype)), None, scales)


def mean_magnitude(weight: torch.Tensor, group: tuple[int, int]) -> torch.Tensor:
    """float32 [groups]: the mean of |weight| [n, k] over every group, at least 1e-5 (the paper's epsilon)."""
    n, k = weight.shape
    group_n, group_k = min(group[0], n), min(group[1], k)
    magnitude = torch.nn.functional.pad(weight.float().abs(), (0, -k % group_k, 0, -n % group_n))
    sums = magnitude.view(-(-n // group_n), group_n, -(-k // group_k), group_k).sum((1, 3))
    rows = [min(group_n, n - first) for first in range(0, n, group_n)]
    columns = [min(group_k, k - first) for first in range(0, k, group_k)]
    counts = torch.outer(torch.tensor(rows), torch.tensor(columns)).to(weight.device)  # the last ones may be short
    result: torch.Tensor = (sums / counts).clamp(min=1e-5)
    return result


RULES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Scheme], Grid]] = {
    "absmax": absmax,
    "signed_max": signed_max,
    "mse": mse,
    "absmean": absmean,
}


def quantized_scales(scales: torch.Tensor, fmt: Format) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Double quantization (Dettmers et al. 2023, QLoRA, section 3): scales as the nearest of ``fmt.scale_values``.

    scales float32 [rows, columns] -> uint8 of the same shape, the largest magnitude of every ``fmt.super_groups`` of
    them, and their mean: scale = scale_values[code] * magnitude + mean.
    """
    assert fmt.scale_values is not None
    flat = scales.flatten()
    mean = flat.mean()
    count = -(-flat.numel() // fmt.super_groups)
    rest = torch.nn.functional.pad(flat - mean, (0, count * fmt.super_groups - flat.numel())).view(count, -1)
    magnitude = rest.abs().amax(1)
    quotient = (rest / magnitude[:, None]).nan_to_num(0).flatten()[: flat.numel()]
    table = fmt.scale_values.to(scales.device)
    left = (torch.searchsorted(table, quotient, right=True) - 1).clamp(0, len(table) - 2)
    nearer_right = (table[left + 1] - quotient).abs() < (quotient - table[left]).abs()
    return (left + nearer_right).to(torch.uint8).view(scales.shape), magnitude, float(mean)


def _mse_ratios(fmt: Format) -> list[float]:
    """Factors of absmax's range, 1 first so that it wins ties. A power-of-two scale has only its neighbours."""
    if fmt.scale_dtype == "float8_e8m0fnu":
        return [1.0, 0.5, 2.0]
    return [1.0] + [i / 50 for i in range(34, 56) if i != 50]


def _like(value: float, tensor: torch.Tensor) -> torch.Tensor:
    """A scalar in the tensor's dtype: dividing by it rounds once, as compressed-tensors does."""
    return torch.tensor(value, dtype=tensor.dtype, device=tensor.device)


def _nonzero(scales: torch.Tensor) -> torch.Tensor:
    """Scales of groups that are all zeros (or too small for the dtype) become epsilon, as compressed-tensors'."""
    return torch.where(scales == 0, _like(torch.finfo(scales.dtype).eps, scales), scales)


def _select(condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """torch.where for every dtype of scales."""
    if a.element_size() == 1:
        return torch.where(condition, a.view(torch.uint8), b.view(torch.uint8)).view(a.dtype)
    return torch.where(condition, a, b)


def _from_ranges(lows: torch.Tensor, highs: torch.Tensor, scheme: Scheme, ratio: float = 1.0) -> Grid:
    fmt = formats.get(scheme.format)
    dtype = scheme.scales(lows.dtype)
    magnitude = torch.maximum(lows.abs(), highs.abs())
    if fmt.scale_dtype == "float8_e8m0fnu":
        return _power_of_two(magnitude.float() * ratio, fmt)
    if fmt.global_scale:
        return _two_level(magnitude, fmt, dtype, ratio)
    wide = torch.promote_types(lows.dtype, dtype)
    if not scheme.symmetric:
        return _asymmetric(lows.to(wide) * ratio, highs.to(wide) * ratio, fmt, dtype)
    half_range = (fmt.largest - fmt.lowest) / 2  # 7.5 for int4, 448 for e4m3, 1 for nf4
    scales = (magnitude.to(wide) * ratio / _like(half_range, magnitude.to(wide))).to(dtype)
    scales = _nonzero(scales)
    return Grid(scales, None, scales)


def _asymmetric(lows: torch.Tensor, highs: torch.Tensor, fmt: Format, dtype: torch.dtype) -> Grid:
    """Over a range that includes 0: scale = (high - low) / (2^bits - 1), zero point = lowest - low / scale."""
    lows, highs = lows.clamp(max=0), highs.clamp(min=0)
    steps = (highs - lows) / _like(fmt.largest - fmt.lowest, lows)
    scales = _nonzero(steps.to(dtype))
    # of the scale before it was made nonzero: 0 / 0 in a group of zeros, whose zero point is 0
    zero_points = fmt.lowest - lows / steps.to(dtype)
    zero_points = zero_points.nan_to_num(0).clamp(fmt.lowest, fmt.largest).round().to(torch.int8)
    return Grid(scales, zero_points, scales)


def _power_of_two(magnitude: torch.Tensor, fmt: Format) -> Grid:
    """E8M0 scales: the exponent of the largest weight less that of the largest value.

    It is rounded up where the weight, in units of the largest value's power of two, is nearer to 2 than to that value:
    from 1.75 for fp4, 1.875 for e3m2, 1.9375 for e2m3. (torchao calls this EVEN; it lies between the floor and the
    ceiling of the OCP specification.) fp8 takes 1.75, too, as in compressed-tensors.
    """
    largest = math.floor(math.log2(fmt.largest))
    top = 1.5 if fmt.bits == 8 else fmt.largest / 2**largest
    carry = round((1 - top / 2) * 2**23)  # 2 - (top + 2) / 2
    exponent = (magnitude.view(torch.int32) + carry) >> 23  # biased
    exponent = (exponent - largest).clamp(0, 254)
    scales = exponent.to(torch.uint8).view(torch.float8_e8m0fnu)
    return Grid(scales, None, scales.float())


def _two_level(magnitude: torch.Tensor, fmt: Format, dtype: torch.dtype, ratio: float) -> Grid:
    """NVFP4: an E4M3 scale for every block times an fp32 one for the tensor, which uses all of E4M3's range."""
    largest_scale = torch.finfo(dtype).max
    peak = magnitude.max().clamp(min=torch.finfo(magnitude.dtype).tiny)
    inverse = (largest_scale * fmt.largest / peak).float()
    if not inverse.isfinite():  # float16 overflows below 0.041; there compressed-tensors gives up and takes 1
        inverse = largest_scale * fmt.largest / peak.float()
    if not inverse.isfinite():
        inverse = torch.ones_like(inverse)
    local = inverse * (magnitude / _like(fmt.largest, magnitude)).float() * ratio
    scales = local.clamp(max=largest_scale).to(dtype)
    wide = scales.float()
    wide = torch.where(wide == 0, _like(0.125, wide), wide)
    return Grid(wide.to(dtype), None, wide / inverse, 1.0 / float(inverse))


def _squared_error(weight: torch.Tensor, grid: Grid, fmt: Format, group: tuple[int, int]) -> torch.Tensor:
    """float32 [rows of groups, columns of groups]: the squared error of every group when encoded on the grid."""
    n, k = weight.shape
    group_n, group_k = group
    per_row = torch.empty(n, grid.scales.shape[1], dtype=torch.float32, device=weight.device)
    for begin, end in row_chunks(n, k, group_n):
        rows = weight[begin:end].contiguous()
        part = slice(begin // group_n, -(-end // group_n))
        zero_points = None if grid.zero_points is None else grid.zero_points[part]
        codes = ops.encode(rows, grid.divisor[part], zero_points, fmt.name, group_n, group_k)
        scales = grid.scales[part]
        if scales.element_size() == 1:
            scales = scales.view(torch.uint8)
        decoded = ops.dequantize(
            codes, scales, zero_points, grid.global_scale, fmt.name, end - begin, k, group_n, group_k, torch.float32
        )
        reduce_columns(decoded.sub_(rows).square_(), group_k, "sum", per_row[begin:end])
    return reduce_rows(per_row, group_n, "sum")
