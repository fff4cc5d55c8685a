"""The block types of GGUF files as formats of the core: same numbers, in the order of the canonical form.

A row of a tensor is a row of blocks (ggml-common.h). Each function here takes blocks apart, bytes [rows, blocks, bytes
of a block], into codes [rows, blocks, columns of a block], scales and what is beside them; ``Block.read`` puts the
parts of all blocks together. Signs are those of W = value * scale + min: the file has minima to subtract.

======================  ======================  ===================================================================
type                    format                  bits per weight: in the file, here
======================  ======================  ===================================================================
Q4_0, Q5_0, Q8_0        int4, int5, int8        4.5, 5.5, 8.5: as they are, in groups of 32 with float16 scales
Q4_1, Q5_1              q4_1, q5_1              5, 6: as they are
IQ4_NL, MXFP4           iq4_nl, mxfp4           4.5, 4.25: as they are
Q6_K                    q6_k                    6.5625: as it is
Q3_K, Q4_K, Q5_K        q3_k, q4_k, q5_k        3.4375, 4.5, 5.5; + 0.125: scales and minima of 6 bits are a byte each
Q2_K                    q2_k                    2.625; + 0.5: scales and minima of 4 bits are a byte each
TQ2_0                   tq2_0                   2.0625: as it is
TQ1_0                   tq2_0                   1.6875; + 0.375: five codes in a byte become two bits each
======================  ======================  ===================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit import formats
from lowbit.canonical import Canonical
from lowbit.tensor import QuantizedTensor

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
        return parts._replace(codes=formats.pack_codes(parts.codes, formats.get(self.format).bits))


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]


def _f16(data: Tensor) -> Tensor:
    """uint8 [rows, blocks, 2] -> float16 [rows, blocks, 1]."""
    return data.contiguous().view(torch.float16)


def _fields(data: Tensor, bits: int) -> Tensor:
    """The low ``bits`` of all bytes, then the next ones, and so on: [..., bytes] -> [..., bytes * 8 / bits]."""
    return torch.cat([data >> shift & ((1 << bits) - 1) for shift in range(0, 8, bits)], -1)


def _fields_of(data: Tensor, bits: int, width: int) -> Tensor:
    """``_fields`` of each ``width`` bytes."""
    return _fields(data.reshape(*data.shape[:2], -1, width), bits).flatten(-2)


def _q4_0(b: Tensor) -> Canonical:
    return Canonical(_fields(b[..., 2:], 4), _f16(b[..., :2]))


def _q4_1(b: Tensor) -> Canonical:
    return Canonical(_fields(b[..., 4:], 4), _f16(b[..., :2]), mins=_f16(b[..., 2:4]))


def _fifth_bits(data: Tensor) -> Tensor:
    """Bit i of four bytes, in the place of bit 4 of code i."""
    bits = torch.stack([data >> i & 1 for i in range(8)], -1)
    return bits.flatten(-2) << 4


def _q5_0(b: Tensor) -> Canonical:
    return Canonical(_fields(b[..., 6:], 4) | _fifth_bits(b[..., 2:6]), _f16(b[..., :2]))


def _q5_1(b: Tensor) -> Canonical:
    codes = _fields(b[..., 8:], 4) | _fifth_bits(b[..., 4:8])
    return Canonical(codes, _f16(b[..., :2]), mins=_f16(b[..., 2:4]))


def _q8_0(b: Tensor) -> Canonical:
    return Canonical(b[..., 2:], _f16(b[..., :2]))


def _mxfp4(b: Tensor) -> Canonical:
    return Canonical(_fields(b[..., 1:], 4), b[..., :1])


def _q2_k(b: Tensor) -> Canonical:
    scales = b[..., :16]
    return Canonical(
        _fields_of(b[..., 16:80], 2, 32),
        (scales & 15).view(torch.int8),
        mins=(scales >> 4).view(torch.int8),
        super_scales=_f16(b[..., 80:82]),
        super_mins=-_f16(b[..., 82:84]),
    )


def _q3_k(b: Tensor) -> Canonical:
    codes = _fields_of(b[..., 32:96], 2, 32) | _fields(b[..., :32], 1) << 2
    low, high = b[..., 96:104], b[..., 104:108]
    scales = (_fields(low, 4) | _fields(high, 2) << 4).view(torch.int8) - 32
    return Canonical(codes, scales, super_scales=_f16(b[..., 108:110]))


def _six_bits(b: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima int8 [rows, blocks, 8] from 12 bytes: the last four have their high bits in the first's."""
    scales, mins, both = b[..., :4], b[..., 4:8], b[..., 8:12]
    scales = torch.cat((scales & 63, both & 15 | scales >> 6 << 4), -1)
    mins = torch.cat((mins & 63, both >> 4 | mins >> 6 << 4), -1)
    return scales.view(torch.int8), mins.view(torch.int8)


def _q4_k(b: Tensor) -> Canonical:
    scales, mins = _six_bits(b[..., 4:16])
    codes = _fields_of(b[..., 16:], 4, 32)
    return Canonical(codes, scales, mins=mins, super_scales=_f16(b[..., :2]), super_mins=-_f16(b[..., 2:4]))


def _q5_k(b: Tensor) -> Canonical:
    scales, mins = _six_bits(b[..., 4:16])
    codes = _fields_of(b[..., 48:], 4, 32) | _fields(b[..., 16:48], 1) << 4
    return Canonical(codes, scales, mins=mins, super_scales=_f16(b[..., :2]), super_mins=-_f16(b[..., 2:4]))


def _q6_k(b: Tensor) -> Canonical:
    codes = _fields_of(b[..., :128], 4, 64) | _fields_of(b[..., 128:192], 2, 32) << 4
    return Canonical(codes, b[..., 192:208].contiguous().view(torch.int8), super_scales=_f16(b[..., 208:210]))


def _tq1_0(b: Tensor) -> Canonical:
    """A byte is a fraction, of 256, whose digits to base 3 are codes: byte * 3^i mod 256 has the next one first."""
    parts = ((b[..., :32], 5), (b[..., 32:48], 5), (b[..., 48:52], 4))
    digits = [(data * 3**i).to(torch.int16) * 3 >> 8 for data, count in parts for i in range(count)]
    return Canonical(torch.cat(digits, -1).to(torch.uint8), _f16(b[..., 52:54]))


def _tq2_0(b: Tensor) -> Canonical:
    return Canonical(_fields_of(b[..., :64], 2, 32), _f16(b[..., 64:66]))


# By the name of the type.
BLOCKS = {
    "Q4_0": Block(32, 18, "int4", _q4_0),
    "Q4_1": Block(32, 20, "q4_1", _q4_1),
    "Q5_0": Block(32, 22, "int5", _q5_0),
    "Q5_1": Block(32, 24, "q5_1", _q5_1),
    "Q8_0": Block(32, 34, "int8", _q8_0),
    "Q2_K": Block(256, 84, "q2_k", _q2_k),
    "Q3_K": Block(256, 110, "q3_k", _q3_k),
    "Q4_K": Block(256, 144, "q4_k", _q4_k),
    "Q5_K": Block(256, 176, "q5_k", _q5_k),
    "Q6_K": Block(256, 210, "q6_k", _q6_k),
    "IQ4_NL": Block(32, 18, "iq4_nl", _q4_0),
    "TQ1_0": Block(256, 54, "tq2_0", _tq1_0),
    "TQ2_0": Block(256, 66, "tq2_0", _tq2_0),
    "MXFP4": Block(32, 17, "mxfp4", _mxfp4),
}
