"""The number formats: read from the core's table (csrc/formats), which owns every fact about them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch

from lowbit._load import core

# The floating-point dtypes of activations, weights and free scales.
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_SCALES = (*FLOATS, torch.float8_e8m0fnu, torch.float8_e4m3fn, torch.int8, torch.uint8)


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
        bits: per code: 2, 3, 4, 5, 6 or 8.
        block_n, block_k: rows and columns of the weight that share a scale; 0: the caller's choice.
        scale_dtype: name of the dtype that scales must have; None: float32, float16 or bfloat16 as the caller likes.
        zero_point: zero points are allowed (the integer formats).
        global_scale: the tensor has one more fp32 factor.
        values: float32 [2 ** bits], the value of every code; NaN and infinities where a code stands for them.
        integer: the ``integer`` family multiplies by it.
        signed_scales: scales may be negative.
        minimum: every group has a minimum beside its scale: W = value * scale + min.
        super_groups: scales have two levels, and so many groups share a super scale: scale = ``scales`` *
            ``super_scales`` + ``scale_offset``, and minima likewise; 0: one level.
        super_dtype: name of the dtype of super scales.
        super_flat: groups are counted on from row to row; else each row begins a new super block.
        scale_values: float32 [256], what uint8 scales stand for; None: they have none.
    """

    name: str
    bits: int
    block_n: int
    block_k: int
    scale_dtype: str | None
    zero_point: bool
    global_scale: bool
    values: torch.Tensor = field(repr=False, compare=False)
    integer: bool
    signed_scales: bool
    minimum: bool
    super_groups: int
    super_dtype: str
    super_flat: bool
    scale_values: torch.Tensor | None = field(repr=False, compare=False)

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

        uint8, a stream of bits (``pack_codes``), for codes below 8 bits, else the 8-bit dtype of torch whose own values
        are this format's.
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
        """Every finite value is one of e4m3's: ``"fp8"`` activations multiply it, where there is a kernel."""
        finite = self.values[self.values.isfinite()]
        return torch.equal(finite.to(torch.float8_e4m3fn).float(), finite)

    @cached_property
    def first_bad_code(self) -> int | None:
        """8-bit codes whose low bits are at least this are NaN or infinite, the others finite; None: all are finite."""
        bad = ~self.values.isfinite()
        if self.bits < 8 or not bad.any():
            return None
        magnitude = torch.arange(len(self.values), device="cpu") & (len(self.values) // 2 - 1)
        first = int(magnitude[bad].min())
        if not torch.equal(bad, magnitude >= first):
            raise NotImplementedError(f"{self.name}: the codes that are no finite number are not the last ones")
        return first

    def row_bytes(self, k: int) -> int:
        """Bytes of one row of k codes."""
        return -(-k * self.bits // 8)

    def super_shape(self, shape: tuple[int, int], group: tuple[int, int]) -> tuple[int, ...] | None:
        """Shape of the super scales of a weight of ``shape`` in groups of ``group``; None: scales have one level."""
        if not self.super_groups:
            return None
        rows, columns = num_groups(shape, group)
        if self.super_flat:
            return (-(-rows * columns // self.super_groups),)
        return (rows, -(-columns // self.super_groups))


@cache
def table() -> dict[str, Format]:
    """Every format, by name, in the core's order."""
    rows = (dict(row) for row in core().formats())
    tables = ("values", "scale_values")
    return {
        row["name"]: Format(
            **{**row, **{t: None if row[t] is None else torch.from_numpy(row[t].copy()) for t in tables}}
        )
        for row in rows
    }


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
    """``(4096, 11008)`` -> ``"4096 x 11008"``, ``(4096,)`` -> ``"[4096]"``."""
    return f"[{shape[0]}]" if len(shape) == 1 else " x ".join(map(str, shape)) if shape else "a scalar"


def num_groups(shape: tuple[int, int], group: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the scales of a weight of ``shape`` in groups of ``group``; the last ones may be short."""
    return math.ceil(shape[0] / group[0]), math.ceil(shape[1] / group[1])


def pack_codes(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [rows, columns] of numbers below 2^bits -> uint8 [rows, ceil(columns * bits / 8)].

    A row is a little-endian stream of bits: number 0 is in the low bits of byte 0, and one that does not fit into a
    byte goes on in the low bits of the next. So are compressed-tensors' int32 words (``pack_to_int32``, 1 to 8 bits).
    """
    if bits == 8:
        return numbers
    rows, columns = numbers.shape
    if bits == 4:
        numbers = torch.nn.functional.pad(numbers, (0, columns % 2))
        return numbers[:, ::2] | numbers[:, 1::2] << 4
    eights = torch.nn.functional.pad(numbers, (0, -columns % 8)).view(rows, -1, 8)  # eight codes are `bits` bytes
    words = torch.zeros(eights.shape[:2], dtype=torch.int64, device=numbers.device)
    for i in range(8):
        words |= eights[:, :, i].long() << bits * i
    octets = words.view(torch.uint8).view(eights.shape)[..., :bits]
    return octets.reshape(rows, -1)[:, : -(-columns * bits // 8)]


def unpack_codes(codes: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """The inverse of ``pack_codes``: uint8 [rows, columns] from uint8 [rows, at least ceil(columns * bits / 8)]."""
    rows = codes.shape[0]
    codes = codes[:, : -(-columns * bits // 8)]
    octets = torch.nn.functional.pad(codes, (0, -codes.shape[1] % bits)).view(rows, -1, bits)
    words = torch.nn.functional.pad(octets, (0, 8 - bits)).contiguous().view(torch.int64)
    numbers = (words >> _shifts(bits, codes.device)) & (2**bits - 1)
    result: torch.Tensor = numbers.to(torch.uint8).view(rows, -1)[:, :columns]
    return result


def _shifts(bits: int, device: torch.device) -> torch.Tensor:
    return torch.arange(0, 8 * bits, bits, device=device)
