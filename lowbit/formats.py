"""The number formats: read from the core's table (csrc/formats), which owns every fact about them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch

from lowbit._load import core

# The floating-point dtypes of activations, weights and free scales.
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_SCALES = (*FLOATS, torch.float8_e8m0fnu, torch.float8_e4m3fn)


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``"bfloat16"``: the names that the core uses."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """``"bfloat16"`` -> ``torch.bfloat16``.

    Raises:
        ValueError: the name is not that of a dtype that scales may have.
    """
    for dtype in _SCALES:
        if dtype_name(dtype) == name:
            return dtype
    raise ValueError(f"dtype is {name!r}: it must be one of {', '.join(map(dtype_name, _SCALES))}")


@dataclass(frozen=True)
class Format:
    """A number format: a value for every code, and how weights share scales.

    Attributes:
        name: as published: ``"int4"``, ``"fp8_e4m3"``, ``"mxfp4"``, ...
        bits: per code, 4 or 8.
        block_n, block_k: rows and columns of the weight that share a scale; 0: the caller's choice.
        scale_dtype: name of the dtype that scales must have; None: float32, float16 or bfloat16 as the caller likes.
        zero_point: zero points are allowed (the integer formats).
        global_scale: the tensor has one more fp32 factor.
        values: float32 [2 ** bits], the value of every code; NaN and infinities where a code stands for them.
    """

    name: str
    bits: int
    block_n: int
    block_k: int
    scale_dtype: str | None
    zero_point: bool
    global_scale: bool
    values: torch.Tensor = field(repr=False, compare=False)

    @cached_property
    def lowest(self) -> float:
        """The least finite value."""
        return float(self.values[self.values.isfinite()].min())

    @cached_property
    def largest(self) -> float:
        """The greatest finite value."""
        return float(self.values[self.values.isfinite()].max())

    @cached_property
    def storage(self) -> torch.dtype:
        """The dtype of ``QuantizedTensor.codes``.

        uint8 with two 4-bit codes in a byte, else the 8-bit dtype of torch whose own values are this format's.
        """
        if self.bits < 8:
            return torch.uint8
        codes = torch.arange(256, dtype=torch.uint8, device="cpu")
        for dtype in (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2):
            if torch.allclose(codes.view(dtype).float(), self.values, rtol=0, atol=0, equal_nan=True):
                return dtype
        return torch.uint8

    @cached_property
    def fits_e4m3(self) -> bool:
        """Every finite value is one of e4m3's, and the format is no integer one: ``"fp8"`` activations multiply it."""
        finite = self.values[self.values.isfinite()]
        return not self.zero_point and torch.equal(finite.to(torch.float8_e4m3fn).float(), finite)

    @cached_property
    def first_bad_code(self) -> int | None:
        """Codes whose low bits are at least this are NaN or infinite, the others finite; None: all are finite."""
        bad = ~self.values.isfinite()
        if not bad.any():
            return None
        magnitude = torch.arange(len(self.values), device="cpu") & (len(self.values) // 2 - 1)
        first = int(magnitude[bad].min())
        if not torch.equal(bad, magnitude >= first):
            raise NotImplementedError(f"{self.name}: the codes that are no finite number are not the last ones")
        return first

    def row_bytes(self, k: int) -> int:
        """Bytes of one row of k codes."""
        return -(-k * self.bits // 8)


@cache
def table() -> dict[str, Format]:
    """Every format, by name, in the core's order."""
    rows = (dict(row) for row in core().formats())
    return {row["name"]: Format(**{**row, "values": torch.from_numpy(row["values"].copy())}) for row in rows}


def get(name: str) -> Format:
    """The format called ``name``.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    try:
        return table()[name]
    except (KeyError, TypeError):
        raise ValueError(f"format is {name!r}: it must be one of {', '.join(table())}") from None


def describe_shape(shape: tuple[int, ...]) -> str:
    """``(4096, 11008)`` -> ``"4096 x 11008"``."""
    return " x ".join(map(str, shape)) if shape else "a scalar"


def num_groups(shape: tuple[int, int], group: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the scales of a weight of ``shape`` in groups of ``group``; the last ones may be short."""
    return math.ceil(shape[0] / group[0]), math.ceil(shape[1] / group[1])
