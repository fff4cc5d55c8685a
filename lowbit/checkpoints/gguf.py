"""GGUF files (ggml/docs/gguf.md, versions 2 and 3): metadata and tensors, read where they lie in a mapped file.

``open`` reads the header alone. Quantized tensors become ``QuantizedTensor`` s with every number that the file has, so
``dequantize()`` gives the weights of llama.cpp to the bit; which format serves which type says
``lowbit.checkpoints.gguf_blocks``. A file is not trusted: every count, length and offset is held against its size
before anything is read or allocated.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
import torch

from lowbit.checkpoints.gguf_blocks import BLOCKS
from lowbit.formats import describe_shape
from lowbit.tensor import QuantizedTensor

__all__ = ["File", "TensorInfo", "open"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_DEEPEST_ARRAY = 4
_STRING, _ARRAY, _BOOL = 8, 9, 7

# Metadata values of a fixed size, by the number of their type.
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}

# Tensors of plain numbers, by the name of their type.
_PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}

# The type numbers of ggml.h.
_TYPES = {
    **dict(enumerate(("F32", "F16", "Q4_0", "Q4_1"))),
    **dict(enumerate(("Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"), 6)),
    **dict(enumerate(("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS"), 16)),
    **dict(enumerate(("I8", "I16", "I32", "I64", "F64", "IQ1_M", "BF16"), 24)),
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of a tensor.

    Attributes:
        name: as in the file.
        shape: outermost dimension first, as torch has it: a weight is (n, k). (The file has the reverse.)
        type: ``"Q4_K"``, ``"F16"``, ...; ``"type 99"`` where the number is not known.
        offset: of its first byte in the file.
        nbytes: its bytes in the file; None where the type is not one that is read here.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int | None

    @property
    def bits_per_weight(self) -> float | None:
        """8 * nbytes / number of elements: what the file spends."""
        return None if self.nbytes is None else 8 * self.nbytes / math.prod(self.shape)


@final
class File:
    """An open GGUF file. ``open`` makes it.

    Attributes:
        version: 2 or 3.
        metadata: by key, in the file's order: int, float, bool, str; arrays are NumPy arrays, or lists of str or of
            arrays. Bytes of a string that are no UTF-8 are kept as surrogates (``errors="surrogateescape"``).
        tensors: ``TensorInfo`` by name, in the file's order.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        with self._path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise ValueError(f"{self._path} ({size} bytes) is truncated or no GGUF file: a header has 24 bytes")
            # private: what is written to a tensor of it stays in memory
            self._bytes: np.ndarray[Any, np.dtype[np.uint8]] | None = np.frombuffer(
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=np.uint8
            )
        try:
            header = _Header(self._bytes)
        except ValueError as error:
            raise ValueError(f"{self._path} ({size} bytes): {error}") from None
        self.version = header.version
        self.metadata: dict[str, Any] = header.metadata
        self.tensors: dict[str, TensorInfo] = header.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __enter__(self) -> File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"File({str(self._path)!r}, version {self.version}, {len(self.tensors)} tensors)"

    def close(self) -> None:
        """Lets go of the file; it stays mapped as long as a plain tensor of it is in use."""
        self._bytes = None

    def tensor(self, name: str, index: int | None = None) -> QuantizedTensor | torch.Tensor:
        """One tensor.

        Args:
            name: a key of ``tensors``.
            index: of the outermost dimension, for tensors that have three (the experts of a layer).

        Returns:
            Quantized types: a ``QuantizedTensor`` [n, k] in memory of its own. Others: a ``torch.Tensor`` that shares
            the file's pages, privately: ``clone()`` gives it memory of its own.

        Raises:
            KeyError: there is no such tensor.
            ValueError: a type that is not read, dimensions that no weight has, scales that are not finite; a closed
                file.
        """
        if self._bytes is None:
            raise ValueError(f"{self._path} is closed")
        if name not in self.tensors:
            raise KeyError(f"{self._path} has no tensor {name!r}: it has {len(self.tensors)}")
        info = self.tensors[name]
        if info.nbytes is None:
            raise ValueError(f"{name} is {info.type}: of GGUF's types {', '.join((*_PLAIN, *BLOCKS))} are read")
        data, shape = self._bytes[info.offset : info.offset + info.nbytes], info.shape
        if index is not None:
            if len(shape) < 3 or not 0 <= index < shape[0]:
                allowed = f"0 to {shape[0] - 1}" if len(shape) > 2 else "None, the tensor is no stack of weights"
                raise ValueError(f"index is {index}: for {name} ({describe_shape(shape)}) it must be {allowed}")
            data, shape = data.reshape(shape[0], -1)[index], shape[1:]
        if info.type in _PLAIN:
            return torch.from_numpy(data).view(_PLAIN[info.type]).view(shape)
        if len(shape) > 2:
            raise ValueError(
                f"{name} is {describe_shape(shape)}: a quantized weight has two dimensions; index=0 to "
                f"{shape[0] - 1} takes one of the stack"
            )
        n, k = (1, *shape) if len(shape) == 1 else shape
        try:
            return BLOCKS[info.type].read(torch.from_numpy(data), n, k)
        except ValueError as error:
            raise ValueError(f"{self._path}: {name} ({info.type}): {error}") from None


def open(path: str | os.PathLike[str]) -> File:
    """Opens a GGUF file: reads its header and maps the rest.

    Raises:
        FileNotFoundError: there is none.
        ValueError: truncated or no GGUF file of versions 2 and 3, or with a header that contradicts itself or the
            file's size.
    """
    return File(path)


class _Header:
    """Reads a header from front to back: a cursor, and what was found."""

    def __init__(self, data: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self._data = data
        self._at = 0
        if self._take(4, "the magic").tobytes() != _MAGIC:
            raise ValueError(f"no GGUF file: it begins with {data[:4].tobytes()!r}, not {_MAGIC!r}")
        self.version = self._u32("the version")
        if self.version not in _VERSIONS:
            what = "big-endian" if self.version & 0xFFFF == 0 else f"version {self.version}"
            raise ValueError(f"GGUF of {what}: little-endian versions {' and '.join(map(str, _VERSIONS))} are read")
        num_tensors = self._u64("the number of tensors")
        num_pairs = self._u64("the number of metadata pairs")
        self._expect(num_tensors, 24, "tensors")
        self._expect(num_pairs, 13, "metadata pairs")
        self.metadata = self._metadata(num_pairs)
        self.tensors = self._tensors(num_tensors)

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for i in range(count):
            key = self._string(f"the key of metadata pair {i}", "strict")
            if key in metadata:
                raise ValueError(f"metadata {key!r} is there twice")
            metadata[key] = self._value(self._u32(f"the type of {key!r}"), key, 0)
        return metadata

    def _tensors(self, count: int) -> dict[str, TensorInfo]:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment!r}: it must be a power of two of at least 8")
        described = [self._described(i) for i in range(count)]
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, number, offset in described:
            if name in tensors:
                raise ValueError(f"tensor {name!r} is there twice")
            tensors[name] = self._placed(name, shape, number, offset, start, alignment)
        return tensors

    def _described(self, i: int) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(f"the name of tensor {i}", "strict")
        dimensions = self._u32(f"the dimensions of {name!r}")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"{name!r} has {dimensions} dimensions: 1 to {_MOST_DIMENSIONS} are possible")
        shape = tuple(self._u64(f"the shape of {name!r}") for _ in range(dimensions))[::-1]
        if not all(1 <= size < 2**63 for size in shape):
            raise ValueError(f"{name!r} is {describe_shape(shape)}: each dimension must be at least 1")
        return name, shape, self._u32(f"the type of {name!r}"), self._u64(f"the offset of {name!r}")

    def _placed(
        self, name: str, shape: tuple[int, ...], number: int, offset: int, start: int, alignment: int
    ) -> TensorInfo:
        """Where the tensor lies, which must be in the file."""
        kind = _TYPES.get(number, f"type {number}")
        if offset % alignment:
            raise ValueError(f"{name!r} begins at byte {offset} of the data: it must be a multiple of {alignment}")
        nbytes = None
        if kind in _PLAIN:
            nbytes = math.prod(shape) * _PLAIN[kind].itemsize
        elif kind in BLOCKS:
            block = BLOCKS[kind]
            if shape[-1] % block.size:
                raise ValueError(f"{name!r} is {describe_shape(shape)}: rows of {kind} are multiples of {block.size}")
            nbytes = math.prod(shape) // block.size * block.nbytes
        if start + offset + (nbytes or 0) > len(self._data):
            raise ValueError(
                f"{name!r} ({describe_shape(shape)} {kind}) ends at byte {start + offset + (nbytes or 0)}: the file is "
                f"truncated, or its header wrong"
            )
        return TensorInfo(name, shape, kind, start + offset, nbytes)

    # ---- the cursor ----

    def _take(self, count: int, what: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if count > len(self._data) - self._at:
            left = len(self._data) - self._at
            raise ValueError(f"truncated: {what} needs {count} bytes from byte {self._at} on, {left} are left")
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def _expect(self, count: int, least: int, what: str) -> None:
        """Refuses a count of things, each of at least so many bytes, that cannot all be in what is left."""
        left = len(self._data) - self._at
        if count * least > left:
            raise ValueError(f"the header promises {count} {what}: the {left} bytes that are left cannot hold them")

    def _u32(self, what: str) -> int:
        value: int = struct.unpack("<I", self._take(4, what).tobytes())[0]
        return value

    def _u64(self, what: str) -> int:
        value: int = struct.unpack("<Q", self._take(8, what).tobytes())[0]
        return value

    def _string(self, what: str, errors: str) -> str:
        data = self._take(self._u64(f"the length of {what}"), what).tobytes()
        try:
            return data.decode("utf-8", errors)
        except UnicodeDecodeError:
            raise ValueError(f"{what} is no UTF-8: {data[:40]!r}") from None

    def _value(self, kind: int, key: str, depth: int) -> Any:
        if kind in _SCALARS:
            return self._numbers(kind, 1, key)[0].item()
        if kind == _STRING:
            return self._string(repr(key), "surrogateescape")
        if kind != _ARRAY:
            raise ValueError(f"{key!r} has a value of type {kind}: 0 to 12 are known")
        if depth == _DEEPEST_ARRAY:
            raise ValueError(f"{key!r} has arrays in arrays, more than {_DEEPEST_ARRAY} deep")
        item, count = self._u32(f"the type of {key!r}"), self._u64(f"the length of {key!r}")
        if item in _SCALARS:
            return self._numbers(item, count, key).copy()
        self._expect(count, 12 if item == _ARRAY else 8, f"items of {key!r}")
        return [self._value(item, key, depth + 1) for _ in range(count)]

    def _numbers(self, kind: int, count: int, key: str) -> np.ndarray[Any, Any]:
        dtype = _SCALARS[kind]
        data = self._take(count * dtype.itemsize, repr(key))
        if kind == _BOOL and (data > 1).any():
            raise ValueError(f"{key!r} has the byte {int(data.max())} for a boolean: 0 and 1 are possible")
        return data.view(dtype)
