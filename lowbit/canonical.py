"""``Canonical``: the tensors of a weight as checkpoints hold them, and what they must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowbit import formats
from lowbit.formats import Format, describe_shape, dtype_name, num_groups


class Canonical(NamedTuple):
    """The tensors of a weight: what checkpoints hold. None: the format, or this weight, has none.

    Attributes:
        codes: [n, k] in the format's 8-bit dtype, or uint8 [n, ceil(k * bits / 8)].
        scales: [ceil(n / group_n), ceil(k / group_k)].
        zero_points: int8, the shape of ``scales``.
        mins: the shape and dtype of ``scales``.
        super_scales: the second level of ``scales``, ``Format.super_shape``.
        super_mins: that of ``mins``.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None = None
    mins: Tensor | None = None
    super_scales: Tensor | None = None
    super_mins: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Canonical:
        """The function of each tensor that there is."""
        codes, scales, *beside = self
        return Canonical(function(codes), function(scales), *(None if t is None else function(t) for t in beside))

    def rows(self, begin: int, end: int, group_n: int) -> Canonical:
        """Those of rows [begin, end) of the weight."""
        groups = slice(begin // group_n, -(-end // group_n))
        return self.map(lambda tensor: tensor[groups])._replace(codes=self.codes[begin:end])

    def for_ops(self) -> Canonical:
        """As the ops take them: codes and 8-bit floats as bytes, since the format says what they are."""
        float8 = self.map(lambda t: t.view(torch.uint8) if t.is_floating_point() and t.element_size() == 1 else t)
        return float8._replace(codes=as_bytes(self.codes))


def as_bytes(tensor: Tensor) -> Tensor:
    """8-bit elements as uint8, others as they are."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def as_scale_dtype(scales: Any, fmt: Format) -> Tensor:
    """Scales in a dtype that the format takes; bytes are taken for its 8-bit one.

    Raises:
        TypeError: they are no tensor, or of another dtype.
    """
    if not isinstance(scales, Tensor):
        raise TypeError(f"scales are a {type(scales).__name__}: they must be a torch.Tensor")
    if fmt.scale_dtype is None:
        if scales.dtype not in formats.FLOATS:
            raise TypeError(f"scales are {dtype_name(scales.dtype)}: {fmt.name} takes float32, float16 or bfloat16")
        return scales
    dtype = formats.dtype_of(fmt.scale_dtype)
    allowed = (dtype, torch.uint8) if dtype.itemsize == 1 else (dtype,)
    if scales.dtype not in allowed:
        bytes_too = " or its bytes" if len(allowed) > 1 else ""
        raise TypeError(f"scales are {dtype_name(scales.dtype)}: {fmt.name} takes {fmt.scale_dtype}{bytes_too}")
    return scales.view(dtype)


def check_tensor(what: str, tensor: Any, dtype: torch.dtype) -> None:
    """Refuses what is no tensor of this dtype, by its name in plain words."""
    verb = "are" if what.endswith("s") else "is"
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} {verb} a {type(tensor).__name__}: a torch.Tensor is needed")
    if tensor.dtype != dtype:
        raise TypeError(f"{what} {verb} {dtype_name(tensor.dtype)}: {dtype_name(dtype)} is needed")


def check_shapes(parts: Canonical, fmt: Format, shape: tuple[int, int], group: tuple[int, int]) -> None:
    """Refuses tensors beside the codes of the wrong dtype, shape or device, and those that the format has not.

    Raises:
        TypeError, ValueError: which one, what it is and what it must be.
    """
    codes, scales, zero_points, mins, super_scales, super_mins = parts
    _check_shape("scales", scales, shape, group)
    _same_device("scales", scales, codes)
    if zero_points is not None:
        check_tensor("zero points", zero_points, torch.int8)
        _check_shape("zero points", zero_points, shape, group)
        _same_device("zero points", zero_points, codes)
    groups, supers = num_groups(shape, group), fmt.super_shape(shape, group)
    super_dtype = formats.dtype_of(fmt.super_dtype)
    _check_beside("mins", mins, scales.dtype, groups if fmt.minimum else None, codes, fmt)
    _check_beside("super scales", super_scales, super_dtype, supers, codes, fmt)
    _check_beside("super mins", super_mins, super_dtype, supers if fmt.minimum else None, codes, fmt)


def check_values(parts: Canonical, fmt: Format, k: int, signed_scales: bool) -> None:
    """Refuses numbers that no weight has; k columns.

    Raises:
        ValueError: how many there are, the first one and where.
    """
    _check_scales("scales", parts.scales, fmt.signed_scales and (signed_scales or fmt.scale_dtype is not None))
    for what, tensor in (("mins", parts.mins), ("super scales", parts.super_scales), ("super mins", parts.super_mins)):
        if tensor is not None:
            _check_scales(what, tensor, True)
    _check_zero_points(parts.zero_points, fmt)
    _check_codes(parts.codes, fmt, k)


def _check_shape(what: str, tensor: Tensor, shape: tuple[int, int], group: tuple[int, int]) -> None:
    expected = num_groups(shape, group)
    if tuple(tensor.shape) != expected:
        raise ValueError(
            f"{what} are {describe_shape(tuple(tensor.shape))}: {describe_shape(shape)} in groups of "
            f"{describe_shape(group)} needs {describe_shape(expected)}"
        )


def _same_device(what: str, tensor: Tensor, codes: Tensor) -> None:
    if tensor.device != codes.device:
        raise ValueError(f"{what} are on {tensor.device}, codes on {codes.device}: they must be on one device")


def _check_beside(
    what: str, tensor: Any, dtype: torch.dtype, shape: tuple[int, ...] | None, codes: Tensor, fmt: Format
) -> None:
    """Refuses a tensor beside the scales: one that is missing or that the format has not, another dtype or shape."""
    if shape is None:
        if tensor is not None:
            raise ValueError(f"{what} are given: {fmt.name} has none")
        return
    if tensor is None:
        raise ValueError(f"{what} are missing: {fmt.name} needs {describe_shape(shape)} of them")
    check_tensor(what, tensor, dtype)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{what} are {describe_shape(tuple(tensor.shape))}: {describe_shape(shape)} are needed")
    _same_device(what, tensor, codes)


def _check_scales(what: str, scales: Tensor, signed: bool) -> None:
    values = scales.float()
    bad = ~values.isfinite() if signed else ~((values >= 0) & values.isfinite())
    if bad.any():
        first = bad.nonzero()[0].tolist()
        allowed = "finite" if signed else "finite and not negative"
        hint = ""
        if not signed and values.isfinite().all():
            hint = " (signed_scales=True allows negative ones in integer formats)"
        raise ValueError(
            f"{int(bad.sum())} of {bad.numel()} {what} are not {allowed}, the first is "
            f"{values[tuple(first)].item():g} at {first}{hint}"
        )


def _check_zero_points(zero_points: Tensor | None, fmt: Format) -> None:
    if zero_points is None:
        return
    bad = (zero_points < fmt.lowest) | (zero_points > fmt.largest)
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{int(bad.sum())} of {bad.numel()} zero points are out of range, the first is "
            f"{int(zero_points[row, column])} at [{row}, {column}]: {fmt.name} allows {fmt.lowest:g} to {fmt.largest:g}"
        )


def _check_codes(codes: Tensor, fmt: Format, k: int) -> None:
    if fmt.values.isfinite().all():
        return
    if fmt.bits < 8:
        numbers = formats.unpack_codes(codes, fmt.bits, k)
        bad = ~fmt.values.isfinite().to(codes.device)[numbers.int()]
    else:
        numbers = codes.view(torch.uint8)
        first = fmt.first_bad_code
        assert first is not None
        bad = numbers.bitwise_and(len(fmt.values) // 2 - 1) >= first
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        value = fmt.values[int(numbers[row, column])].item()
        raise ValueError(
            f"{int(bad.sum())} of {bad.numel()} codes are no finite number, the first is {value:g} at "
            f"[{row}, {column}]: every weight must be finite"
        )
