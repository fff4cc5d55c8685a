"""The block types of GGUF files as formats of the core: same numbers, in the order of the canonical form.

A row of a tensor is a row of blocks (ggml-common.h). Each function here takes blocks apart, bytes [rows, blocks, bytes
of a block], into codes [rows, blocks, columns of a block], scales and what is beside them; ``Block.read`` puts the
parts of all blocks together. Signs are those of W = value * scale + min: the file has minima to subtract.

===========================  ==========================================================================================
Q4_0, Q8_0                   int4, int8 in groups of 32 with float16 scales: as they are
Q4_1, IQ4_NL                 formats of their own, as they are
Q4_K                         q4_k, its 6-bit scales and minima a byte each: 4.625 bits per weight, 4.5 in the file
MXFP4                        mxfp4, as it is
===========================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit import formats
from lowbit.tensor import Canonical, QuantizedTensor

# Elements taken apart at a time: their temporaries fit in cache.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Block:
    """One type.

    Attributes:
        size: columns of a block.
        nbytes: bytes of a block.
        format: the core's format.
        parts: blocks uint8 [rows, blocks, nbytes] -> codes uint8 [rows, blocks, size], one in a byte as the format
            numbers them, and scales [rows, blocks, groups], with mins and super scales as the format has them.
    """

    size: int
    nbytes: int
    format: str
    parts: Callable[[Tensor], Canonical]

    def read(self, data: Tensor, n: int, k: int) -> QuantizedTensor:
        """The weight [n, k] from its blocks, uint8 [n * k / size * nbytes].

        Raises:
            ValueError: numbers that no weight has.
        """
        blocks = data.view(n, k // self.size, self.nbytes)
        rows = max(1, _CHUNK // k)
        chunks = [self._canonical(blocks[begin : begin + rows]) for begin in range(0, n, rows)]
        whole = chunks[0] if len(chunks) == 1 else Canonical(*map(_joined, zip(*chunks, strict=True)))
        fmt = formats.get(self.format)
        return QuantizedTensor(
            **whole._replace(codes=whole.codes.view(fmt.storage))._asdict(),
            format=fmt.name,
            shape=(n, k),
            group=(1, k // whole.scales.shape[1]),
            signed_scales=fmt.signed_scales,
        )

    def _canonical(self, blocks: Tensor) -> Canonical:
        parts = self.parts(blocks).map(lambda part: part.flatten(1))
        return parts._replace(codes=pack_codes(parts.codes, formats.get(self.format).bits))


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 [rows, k], one code in a byte -> uint8 [rows, ceil(k * bits / 8)], low bits first."""
    if bits == 8:
        return codes
    if bits == 4:
        codes = F.pad(codes, (0, codes.shape[1] % 2))
        return codes[:, ::2] | codes[:, 1::2] << 4
    k = codes.shape[1]
    eights = F.pad(codes, (0, -k % 8)).view(codes.shape[0], -1, 8)  # eight codes are `bits` bytes
    words = torch.zeros(eights.shape[:2], dtype=torch.int64)
    for i in range(8):
        words |= eights[:, :, i].long() << bits * i
    return words.view(torch.uint8).view(*eights.shape)[:, :, :bits].flatten(1)[:, : -(-k * bits // 8)]


def _f16(data: Tensor) -> Tensor:
    """uint8 [rows, blocks, 2] -> float16 [rows, blocks, 1]."""
    return data.contiguous().view(torch.float16)


def _halves(data: Tensor) -> Tensor:
    """The low nibbles of all bytes, then the high ones."""
    return torch.cat((data & 15, data >> 4), -1)


def _q4_0(b: Tensor) -> Canonical:
    return Canonical(_halves(b[..., 2:]), _f16(b[..., :2]))


def _q4_1(b: Tensor) -> Canonical:
    return Canonical(_halves(b[..., 4:]), _f16(b[..., :2]), mins=_f16(b[..., 2:4]))


def _q8_0(b: Tensor) -> Canonical:
    return Canonical(b[..., 2:], _f16(b[..., :2]))


def _mxfp4(b: Tensor) -> Canonical:
    return Canonical(_halves(b[..., 1:]), b[..., :1])


def _k_scales(b: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima int8 [rows, blocks, 8] from 12 bytes: 6 bits each, the high two of the last four elsewhere."""
    low, mid, high = b[..., :4], b[..., 4:8], b[..., 8:12]
    scales = torch.cat((low & 63, high & 15 | low >> 6 << 4), -1)
    mins = torch.cat((mid & 63, high >> 4 | mid >> 6 << 4), -1)
    return scales.view(torch.int8), mins.view(torch.int8)


def _q4_k(b: Tensor) -> Canonical:
    scales, mins = _k_scales(b[..., 4:16])
    codes = _halves(b[..., 16:].reshape(*b.shape[:2], 4, 32)).flatten(-2)
    return Canonical(codes, scales, mins=mins, super_scales=_f16(b[..., :2]), super_mins=-_f16(b[..., 2:4]))


# By the name of the type.
BLOCKS = {
    "Q4_0": Block(32, 18, "int4", _q4_0),
    "Q4_1": Block(32, 20, "q4_1", _q4_1),
    "Q8_0": Block(32, 34, "int8", _q8_0),
    "Q4_K": Block(256, 144, "q4_k", _q4_k),
    "IQ4_NL": Block(32, 18, "iq4_nl", _q4_0),
    "MXFP4": Block(32, 17, "mxfp4", _mxfp4),
}
