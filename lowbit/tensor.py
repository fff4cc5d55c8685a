"""``QuantizedTensor``: codes, scales and zero points of one weight, never apart."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lowbit import formats
from lowbit._load import core
from lowbit.canonical import Canonical, as_bytes, as_scale_dtype, check_shapes, check_tensor, check_values
from lowbit.formats import Format, describe_shape, dtype_name, num_groups
from lowbit.ops import ops


def layout_on(device: torch.device) -> str:
    """``"cpu"`` or ``"cuda"``: the packed form that the ops of a device take (a build for tests emulates CUDA)."""
    return "cuda" if device.type == "cuda" or core().build_info()["emulated"] else "cpu"


class QuantizedTensor:
    """A weight in low precision: W[i][j] = ((value(code) - zero_point) * scale + min) * global_scale.

    Where the format's scales have two levels (``Format.super_groups``), scale = ``scales`` * ``super_scales`` +
    ``scale_offset`` and min = ``mins`` * ``super_mins``, each of the group and of the block of groups around it.

    Its canonical form is what checkpoints hold and depends on no device. Packing is an exact permutation of it for
    the kernels. The object holds one of the two, never both: ``pack()`` (and the first ``lowbit.linear``) turns it
    into the packed form, and ``codes``, ``scales`` and ``zero_points`` are then unpacked anew whenever they are
    asked for.

    Args:
        codes: [n, k] of the format's 8-bit dtype, or uint8 [n, ceil(k * bits / 8)], a little-endian stream of bits with
            element 0 in the low bits of byte 0 (int4: value + 8, int2: value + 2, ...).
        scales: [ceil(n / group_n), ceil(k / group_k)] of float32, float16, bfloat16 or the dtype that the format
            says; uint8 is taken for the bytes of an 8-bit one.
        zero_points: int8 of the same shape, in the units of value(); None: 0.
        format: a format's name.
        shape: (n, k); None: as many codes in a row as its bytes hold.
        group: (group_n, group_k), the rectangle of weights that shares a scale; None: a row.
        global_scale: one more factor, for formats that have it.
        signed_scales: True allows negative scales (the rule ``"signed_max"`` makes them) in integer formats. Those
            of GGUF's blocks may always have them.
        mins, super_scales, super_mins: what formats with minima, and with scales of two levels, have beside: see
            ``Canonical``.
        scale_offset: of formats whose scales are codes (uint8).

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: wrong shapes or devices; scales that are NaN, infinite or negative; zero points out of the
            format's range; codes that stand for NaN or infinity; a group that the format forbids.
    """

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        zero_points: Tensor | None = None,
        *,
        format: str,
        shape: tuple[int, int] | None = None,
        group: tuple[int, int] | None = None,
        global_scale: float = 1.0,
        signed_scales: bool = False,
        mins: Tensor | None = None,
        super_scales: Tensor | None = None,
        super_mins: Tensor | None = None,
        scale_offset: float = 0.0,
    ) -> None:
        fmt = formats.get(format)
        check_tensor("codes", codes, fmt.storage)
        if codes.dim() != 2:
            raise ValueError(f"codes are {describe_shape(tuple(codes.shape))}: they must have two dimensions")
        if shape is None:
            shape = (codes.shape[0], codes.shape[1] * 8 // fmt.bits)
        n, k = shape
        if tuple(codes.shape) != (n, fmt.row_bytes(k)):
            raise ValueError(
                f"codes are {describe_shape(tuple(codes.shape))}: {fmt.name} of {n} x {k} has {n} x {fmt.row_bytes(k)}"
            )
        group = (1, k) if group is None else (int(group[0]), int(group[1]))
        scales = as_scale_dtype(scales, fmt)
        QuantizedTensor.packed_bytes(fmt.name, (n, k), group, scales.dtype, zero_points is not None)
        canonical = Canonical(codes, scales, zero_points, mins, super_scales, super_mins)
        check_shapes(canonical, fmt, (n, k), group)
        scale_offset = float(scale_offset)
        if not math.isfinite(scale_offset) or (fmt.scale_values is None and scale_offset):
            expected = f"0, {fmt.name} has none" if fmt.scale_values is None else "finite"
            raise ValueError(f"scale offset is {scale_offset}: it must be {expected}")
        global_scale = float(global_scale)
        if not (0 < global_scale < float("inf")) or (not fmt.global_scale and global_scale != 1):
            expected = "positive and finite" if fmt.global_scale else f"1, {fmt.name} has none"
            raise ValueError(f"global scale is {global_scale}: it must be {expected}")
        if codes.device.type != "meta":
            check_values(canonical, fmt, k, signed_scales)
        self._set(fmt, (n, k), group, scales.dtype, zero_points is not None, global_scale, scale_offset)
        self._canonical: Canonical | None = canonical.map(Tensor.contiguous)
        self._packed: Tensor | None = None

    def _set(
        self,
        format: Format,
        shape: tuple[int, int],
        group: tuple[int, int],
        scale_dtype: torch.dtype,
        has_zero_points: bool,
        global_scale: float,
        scale_offset: float,
    ) -> None:
        self.format = format
        self.shape = shape
        self.group = group
        self.scale_dtype = scale_dtype
        self.has_zero_points = has_zero_points
        self.global_scale = global_scale
        self.scale_offset = scale_offset

    @classmethod
    def trusted(
        cls,
        *,
        codes: Tensor,
        scales: Tensor,
        zero_points: Tensor | None,
        format: Format,
        shape: tuple[int, int],
        group: tuple[int, int],
        global_scale: float,
        mins: Tensor | None = None,
        super_scales: Tensor | None = None,
        super_mins: Tensor | None = None,
        scale_offset: float = 0.0,
    ) -> QuantizedTensor:
        """From tensors that are known to be right and contiguous: nothing is checked."""
        self = cls.__new__(cls)
        self._set(format, shape, group, scales.dtype, zero_points is not None, global_scale, scale_offset)
        self._canonical = Canonical(codes, scales, zero_points, mins, super_scales, super_mins)
        self._packed = None
        return self

    @classmethod
    def from_packed(
        cls, packed: Tensor, global_scale: float | None = None, description: str | None = None
    ) -> QuantizedTensor:
        """From the packed form, which is held, not copied; one for another kind of device is repacked.

        Args:
            packed: uint8 [packed bytes] on the CPU or a CUDA device, as ``pack()`` returns it.
            global_scale: the global scale in double precision, where the caller knows it: the header has it in fp32.
            description: what the weight is, if the caller knows: nothing is read from the device then.

        Raises:
            TypeError: not a uint8 tensor.
            ValueError: not one-dimensional and contiguous on the CPU or a CUDA device; a header that is no packed
                weight's, or corrupt, or of another length than the tensor.
        """
        if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
            what = dtype_name(packed.dtype) if isinstance(packed, Tensor) else f"a {type(packed).__name__}"
            raise TypeError(f"packed weight is {what}: it must be uint8; lowbit.quantize makes a weight of a float one")
        if packed.dim() != 1 or not packed.is_contiguous() or packed.device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"packed weight is {describe_shape(tuple(packed.shape))} with strides {packed.stride()} on "
                f"{packed.device}: it must be one-dimensional and contiguous on the CPU or a CUDA device"
            )
        if packed.device.type == "cpu":
            header = core().describe(packed.detach().numpy())
        elif description is not None and global_scale is not None and not _has_offset(description):
            header = {**core().weight_from_text(description), "packed_for": "cuda"}
        else:
            header = core().describe(packed.detach()[: core().PACKED_HEADER_BYTES].cpu().numpy(), packed.numel())
        self = cls.__new__(cls)
        self._set(
            formats.get(header["format"]),
            (header["n"], header["k"]),
            (header["group_n"], header["group_k"]),
            formats.dtype_of(header["scale_dtype"]),
            bool(header["zero_point"]),
            header["global_scale"] if global_scale is None else global_scale,
            header["scale_offset"],
        )
        self._canonical = None
        self._packed = packed.detach()
        if header["packed_for"] == layout_on(packed.device):
            return self
        self._packed = self._packed.cpu()  # the host's functions read both
        self._canonical, self._packed = self.canonical(), None
        return self.to(packed.device)

    @staticmethod
    def packed_bytes(
        format: str, shape: tuple[int, int], group: tuple[int, int], scale_dtype: torch.dtype, zero_points: bool
    ) -> int:
        """Length of the packed form.

        Raises:
            TypeError, ValueError: the core's refusal of the description.
        """
        size: int = core().packed_bytes(format, *shape, *group, dtype_name(scale_dtype), zero_points)
        return size

    @property
    def device(self) -> torch.device:
        canonical, packed = self._canonical, self._packed
        return canonical[0].device if canonical is not None else packed.device  # type: ignore[union-attr]

    @property
    def description(self) -> str | None:
        """What the packed weight is, for the ops; None but on CUDA devices: the ops read it in the header."""
        if self.device.type != "cuda":
            return None
        text: str = core().weight_to_text(
            self.format.name, *self.shape, *self.group, dtype_name(self.scale_dtype), self.has_zero_points
        )
        return text

    @property
    def is_packed(self) -> bool:
        """The packed form is what is held."""
        return self._packed is not None

    @property
    def codes(self) -> Tensor:
        """[n, k] in the format's dtype, or uint8 [n, ceil(k * bits / 8)]."""
        return self.canonical().codes

    @property
    def scales(self) -> Tensor:
        """[ceil(n / group_n), ceil(k / group_k)]."""
        return self.canonical().scales

    @property
    def zero_points(self) -> Tensor | None:
        """int8, the shape of ``scales``; None: there are none."""
        return self.canonical().zero_points

    def canonical(self) -> Canonical:
        """Codes, scales and all the rest at once: one unpacking where the packed form is held."""
        canonical, packed = self._canonical, self._packed
        if packed is None:
            assert canonical is not None
            return canonical
        fmt = self.format
        groups, supers = num_groups(self.shape, self.group), fmt.super_shape(self.shape, self.group)
        super_dtype = formats.dtype_of(fmt.super_dtype)

        def empty(shape: tuple[int, ...] | None, dtype: torch.dtype) -> Tensor | None:
            return None if shape is None else packed.new_empty(shape, dtype=dtype)

        canonical = Canonical(
            packed.new_empty((self.shape[0], fmt.row_bytes(self.shape[1])), dtype=torch.uint8).view(fmt.storage),
            packed.new_empty(groups, dtype=self.scale_dtype),
            empty(groups if self.has_zero_points else None, torch.int8),
            empty(groups if fmt.minimum else None, self.scale_dtype),
            empty(supers, super_dtype),
            empty(supers if fmt.minimum else None, super_dtype),
        )
        ops.unpack(packed, *canonical.for_ops(), self.description)
        return canonical

    def pack(self) -> Tensor:
        """The packed form, uint8 [packed bytes]: from now on the only one held."""
        canonical = self._canonical  # read before _packed, cleared after that is set: threads may meet here
        packed = self._packed
        if packed is None:
            assert canonical is not None
            codes, scales, zero_points, *beside = canonical.for_ops()
            factor, name = self.global_scale, self.format.name
            # Autograd keeps no tensor that was made in inference mode, and one that was made inside a transform of
            # torch.func dies with it.
            with torch.inference_mode(False), _outside_transforms():
                packed = ops.pack(
                    codes, scales, zero_points, factor, name, *self.shape, *self.group, *beside, self.scale_offset
                )
            self._packed = packed
            self._canonical = None
        return packed

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[n, k] in float32, float16 or bfloat16: computed in fp32, rounded once."""
        if dtype not in formats.FLOATS:
            raise TypeError(f"dtype is {dtype_name(dtype)}: it must be float32, float16 or bfloat16")
        canonical, packed = self._canonical, self._packed
        if packed is None:
            return self._dequantize_part(canonical, 0, self.shape[0], dtype)
        result: Tensor = ops.dequantize_packed(packed, *self.shape, dtype, self.description)
        return result

    def dequantize_rows(self, begin: int, end: int) -> Tensor:
        """float32 [end - begin, k]: some rows, which are whole groups or lie within one."""
        canonical = self._canonical
        if canonical is None:
            raise ValueError("the packed form is held: only the whole of it can be dequantized")
        if self.format.super_flat:  # super blocks reach over rows
            return self.dequantize()[begin:end]
        return self._dequantize_part(canonical, begin, end, torch.float32)

    def _dequantize_part(self, canonical: Canonical | None, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        assert canonical is not None
        if end - begin < self.shape[0]:
            canonical = canonical.rows(begin, end, self.group[0])
        codes, scales, zero_points, *beside = canonical.for_ops()
        result: Tensor = ops.dequantize(
            codes,
            scales,
            zero_points,
            self.global_scale,
            self.format.name,
            end - begin,
            self.shape[1],
            *self.group,
            dtype,
            *beside,
            self.scale_offset,
        )
        return result

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """The same weight on another device, in canonical form; self where it is there already."""
        if isinstance(device, torch.dtype):
            raise TypeError(f"device is {device}: codes and scales keep their dtypes; dequantize(dtype) gives others")
        device = torch.device(device)
        if device == self.device:
            return self
        return QuantizedTensor.trusted(
            **self.canonical().map(lambda tensor: tensor.to(device))._asdict(),
            format=self.format,
            shape=self.shape,
            group=self.group,
            global_scale=self.global_scale,
            scale_offset=self.scale_offset,
        )

    def equal(self, other: QuantizedTensor) -> bool:
        """The same weight to the bit: codes, scales and all that describes them."""
        if self._description() != other._description():
            return False
        for mine, others in zip(self.canonical(), other.canonical(), strict=True):
            if mine is not None and not (others is not None and torch.equal(as_bytes(mine), as_bytes(others))):
                return False
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the canonical form: what a checkpoint holds."""
        rows, columns = num_groups(self.shape, self.group)
        per_group = self.scale_dtype.itemsize + (self.format.bits / 8 if self.has_zero_points else 0)
        codes = self.shape[0] * self.format.row_bytes(self.shape[1])
        per_group += self.scale_dtype.itemsize * self.format.minimum
        supers = math.prod(self.format.super_shape(self.shape, self.group) or (0,)) * (1 + self.format.minimum)
        super_bytes = supers * formats.dtype_of(self.format.super_dtype).itemsize
        once = 4 * (self.format.global_scale + (self.format.scale_values is not None))
        return int(codes + rows * columns * per_group + super_bytes + once + 0.5)

    @property
    def bits_per_weight(self) -> float:
        """8 * nbytes / (n * k)."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def __getstate__(self) -> dict[str, Any]:
        """The format by its name, 8-bit floats as bytes: pickle knows no storage of theirs.

        What is packed for a CUDA device goes in canonical form: it may be loaded onto a CPU.
        """
        canonical, packed = self._canonical, self._packed
        if packed is not None and packed.device.type == "cuda":
            canonical, packed = self.canonical(), None
        kept = canonical and tuple(canonical.for_ops())
        return {**vars(self), "format": self.format.name, "_canonical": kept, "_packed": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, format=formats.get(state["format"]))
        if self._canonical is not None:
            codes, scales, *beside = self._canonical
            self._canonical = Canonical(codes.view(self.format.storage), scales.view(self.scale_dtype), *beside)

    def __repr__(self) -> str:
        words = [
            self.format.name,
            describe_shape(self.shape),
            f"groups of {describe_shape(self.group)}",
            f"{dtype_name(self.scale_dtype)} scales"
            + (" and zero points" if self.has_zero_points else " and mins" if self.format.minimum else ""),
            f"{self.bits_per_weight:.3g} bits per weight",
            ("packed, " if self.is_packed else "") + str(self.device),
        ]
        return f"QuantizedTensor({', '.join(words)})"

    def _description(self) -> tuple[Any, ...]:
        return (
            self.format.name,
            self.shape,
            self.group,
            self.scale_dtype,
            self.has_zero_points,
            self.global_scale,
            self.scale_offset,
        )


_outside_transforms: Any = getattr(torch._C, "_DisableFuncTorch", nullcontext)


def _has_offset(description: str) -> bool:
    """The header holds a number of the weight that its description does not."""
    return formats.get(description.split()[0]).super_flat
