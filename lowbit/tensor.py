"""``QuantizedTensor``: codes, scales and zero points of one weight, never apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowbit import formats
from lowbit._load import core
from lowbit.formats import Format, describe_shape, dtype_name, num_groups
from lowbit.ops import ops

Canonical = tuple[Tensor, Tensor, Tensor | None]  # codes, scales, zero points

_HEADER_BYTES = 256  # of a packed weight, which describe it


def layout_on(device: torch.device) -> str:
    """``"cpu"`` or ``"cuda"``: the packed form that the ops of a device take (a build for tests emulates CUDA)."""
    return "cuda" if device.type == "cuda" or core().build_info()["emulated"] else "cpu"


class QuantizedTensor:
    """A weight in low precision: W[i][j] = (value(code) - zero_point) * scale * global_scale.

    Its canonical form is what checkpoints hold and depends on no device. Packing is an exact permutation of it for
    the kernels. The object holds one of the two, never both: ``pack()`` (and the first ``lowbit.linear``) turns it
    into the packed form, and ``codes``, ``scales`` and ``zero_points`` are then unpacked anew whenever they are
    asked for.

    Args:
        codes: [n, k] of the format's 8-bit dtype, or uint8 [n, ceil(k / 2)] with element 0 in the low four bits
            (int4: value + 8).
        scales: [ceil(n / group_n), ceil(k / group_k)] of float32, float16, bfloat16 or the dtype that the format
            says; uint8 is taken for the bytes of an 8-bit one.
        zero_points: int8 of the same shape, in the units of value(); None: 0.
        format: a format's name.
        shape: (n, k); None: as the codes say (4-bit: k is even).
        group: (group_n, group_k), the rectangle of weights that shares a scale; None: a row.
        global_scale: one more factor, for formats that have it.
        signed_scales: True allows negative scales (the rule ``"signed_max"`` makes them) in integer formats.

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
    ) -> None:
        fmt = formats.get(format)
        _check_tensor("codes", codes, fmt.storage)
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
        scales = _as_scale_dtype(scales, fmt)
        QuantizedTensor.packed_bytes(fmt.name, (n, k), group, scales.dtype, zero_points is not None)
        _check_shape("scales", scales, (n, k), group)
        _same_device("scales", scales, codes)
        if zero_points is not None:
            _check_tensor("zero points", zero_points, torch.int8)
            _check_shape("zero points", zero_points, (n, k), group)
            _same_device("zero points", zero_points, codes)
        global_scale = float(global_scale)
        if not (0 < global_scale < float("inf")) or (not fmt.global_scale and global_scale != 1):
            expected = "positive and finite" if fmt.global_scale else f"1, {fmt.name} has none"
            raise ValueError(f"global scale is {global_scale}: it must be {expected}")
        if codes.device.type != "meta":
            _check_scales(scales, signed_scales and fmt.zero_point)
            _check_zero_points(zero_points, fmt)
            _check_codes(codes, fmt)
        self._set(fmt, (n, k), group, scales.dtype, zero_points is not None, global_scale)
        zero_points = None if zero_points is None else zero_points.contiguous()
        self._canonical: Canonical | None = (codes.contiguous(), scales.contiguous(), zero_points)
        self._packed: Tensor | None = None

    def _set(
        self,
        format: Format,
        shape: tuple[int, int],
        group: tuple[int, int],
        scale_dtype: torch.dtype,
        has_zero_points: bool,
        global_scale: float,
    ) -> None:
        self.format = format
        self.shape = shape
        self.group = group
        self.scale_dtype = scale_dtype
        self.has_zero_points = has_zero_points
        self.global_scale = global_scale

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
    ) -> QuantizedTensor:
        """From tensors that are known to be right and contiguous: nothing is checked."""
        self = cls.__new__(cls)
        self._set(format, shape, group, scales.dtype, zero_points is not None, global_scale)
        self._canonical = (codes, scales, zero_points)
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
        _check_tensor("packed weight", packed, torch.uint8)
        if packed.dim() != 1 or not packed.is_contiguous() or packed.device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"packed weight is {describe_shape(tuple(packed.shape))} with strides {packed.stride()} on "
                f"{packed.device}: it must be one-dimensional and contiguous on the CPU or a CUDA device"
            )
        if description is not None and global_scale is not None:
            header = core().weight_from_text(description)
            header["packed_for"] = packed.device.type
        elif packed.device.type == "cpu":
            header = core().describe(packed.detach().numpy())
        else:
            header = core().describe(packed.detach()[:_HEADER_BYTES].cpu().numpy(), packed.numel())
        self = cls.__new__(cls)
        self._set(
            formats.get(header["format"]),
            (header["n"], header["k"]),
            (header["group_n"], header["group_k"]),
            formats.dtype_of(header["scale_dtype"]),
            bool(header["zero_point"]),
            header["global_scale"] if global_scale is None else global_scale,
        )
        self._canonical = None
        self._packed = packed.detach()
        if header["packed_for"] == layout_on(packed.device):
            return self
        self._packed = self._packed.cpu()  # the host's functions read both
        self._canonical, self._packed = self._unpacked(), None
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
        """What the packed weight is, for the ops; None on the CPU, where they read it in its header."""
        if self.device.type == "cpu":
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
        """[n, k] in the format's dtype, or uint8 [n, ceil(k / 2)]."""
        return self._unpacked()[0]

    @property
    def scales(self) -> Tensor:
        """[ceil(n / group_n), ceil(k / group_k)]."""
        return self._unpacked()[1]

    @property
    def zero_points(self) -> Tensor | None:
        """int8, the shape of ``scales``; None: there are none."""
        return self._unpacked()[2]

    def canonical(self) -> Canonical:
        """Codes, scales and zero points at once: one unpacking where the packed form is held."""
        return self._unpacked()

    def pack(self) -> Tensor:
        """The packed form, uint8 [packed bytes]: from now on the only one held."""
        canonical = self._canonical  # read before _packed, cleared after that is set: threads may meet here
        packed = self._packed
        if packed is None:
            assert canonical is not None
            codes, scales, zero_points = canonical
            factor, name = self.global_scale, self.format.name
            packed = ops.pack(_bytes(codes), _bytes(scales), zero_points, factor, name, *self.shape, *self.group)
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
        return self._dequantize_part(canonical, begin, end, torch.float32)

    def _dequantize_part(self, canonical: Canonical | None, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        assert canonical is not None
        codes, scales, zero_points = canonical
        groups = slice(begin // self.group[0], -(-end // self.group[0]))
        result: Tensor = ops.dequantize(
            _bytes(codes[begin:end]),
            _bytes(scales[groups]),
            None if zero_points is None else zero_points[groups],
            self.global_scale,
            self.format.name,
            end - begin,
            self.shape[1],
            *self.group,
            dtype,
        )
        return result

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """The same weight on another device, in canonical form; self where it is there already."""
        device = torch.device(device)
        if device == self.device:
            return self
        codes, scales, zero_points = self._unpacked()
        return QuantizedTensor.trusted(
            codes=codes.to(device),
            scales=scales.to(device),
            zero_points=None if zero_points is None else zero_points.to(device),
            format=self.format,
            shape=self.shape,
            group=self.group,
            global_scale=self.global_scale,
        )

    def equal(self, other: QuantizedTensor) -> bool:
        """The same weight to the bit: codes, scales, zero points and all that describes them."""
        if self._description() != other._description():
            return False
        for mine, others in zip(self._unpacked(), other._unpacked(), strict=True):
            if mine is not None and not (others is not None and torch.equal(_bytes(mine), _bytes(others))):
                return False
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the canonical form: what a checkpoint holds."""
        rows, columns = num_groups(self.shape, self.group)
        per_group = self.scale_dtype.itemsize + (self.format.bits / 8 if self.has_zero_points else 0)
        codes = self.shape[0] * self.format.row_bytes(self.shape[1])
        return int(codes + rows * columns * per_group + 0.5) + (4 if self.format.global_scale else 0)

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
            canonical, packed = self._unpacked(), None
        kept = canonical and (_bytes(canonical[0]), _bytes(canonical[1]), canonical[2])
        return {**vars(self), "format": self.format.name, "_canonical": kept, "_packed": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, format=formats.get(state["format"]))
        if self._canonical is not None:
            codes, scales, zero_points = self._canonical
            self._canonical = codes.view(self.format.storage), scales.view(self.scale_dtype), zero_points

    def __repr__(self) -> str:
        words = [
            self.format.name,
            describe_shape(self.shape),
            f"groups of {describe_shape(self.group)}",
            f"{dtype_name(self.scale_dtype)} scales" + (" and zero points" if self.has_zero_points else ""),
            f"{self.bits_per_weight:.3g} bits per weight",
            ("packed, " if self.is_packed else "") + str(self.device),
        ]
        return f"QuantizedTensor({', '.join(words)})"

    def _description(self) -> tuple[Any, ...]:
        return (self.format.name, self.shape, self.group, self.scale_dtype, self.has_zero_points, self.global_scale)

    def _unpacked(self) -> Canonical:
        canonical, packed = self._canonical, self._packed
        if packed is None:
            assert canonical is not None
            return canonical
        groups = num_groups(self.shape, self.group)
        codes = packed.new_empty((self.shape[0], self.format.row_bytes(self.shape[1])), dtype=torch.uint8)
        scales = packed.new_empty(groups, dtype=self.scale_dtype)
        zero_points = packed.new_empty(groups, dtype=torch.int8) if self.has_zero_points else None
        ops.unpack(packed, codes, _bytes(scales), zero_points, description=self.description)
        return codes.view(self.format.storage), scales, zero_points


def _bytes(tensor: Tensor) -> Tensor:
    """8-bit tensors as uint8: the ops take bytes, the format says what they are."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def _as_scale_dtype(scales: Any, fmt: Format) -> Tensor:
    if not isinstance(scales, Tensor):
        raise TypeError(f"scales are a {type(scales).__name__}: they must be a torch.Tensor")
    if fmt.scale_dtype is None:
        if scales.dtype not in formats.FLOATS:
            raise TypeError(f"scales are {dtype_name(scales.dtype)}: {fmt.name} takes float32, float16 or bfloat16")
        return scales
    dtype = formats.dtype_of(fmt.scale_dtype)
    if scales.dtype not in (dtype, torch.uint8):
        raise TypeError(f"scales are {dtype_name(scales.dtype)}: {fmt.name} takes {fmt.scale_dtype} or its bytes")
    return scales.view(dtype)


def _check_tensor(what: str, tensor: Any, dtype: torch.dtype) -> None:
    verb = "are" if what.endswith("s") else "is"
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} {verb} a {type(tensor).__name__}: a torch.Tensor is needed")
    if tensor.dtype != dtype:
        raise TypeError(f"{what} {verb} {dtype_name(tensor.dtype)}: {dtype_name(dtype)} is needed")


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


def _check_scales(scales: Tensor, signed: bool) -> None:
    values = scales.float()
    bad = ~values.isfinite() if signed else ~((values >= 0) & values.isfinite())
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        allowed = "finite" if signed else "finite and not negative"
        hint = ""
        if not signed and values.isfinite().all():
            hint = " (signed_scales=True allows negative ones in integer formats)"
        raise ValueError(
            f"{int(bad.sum())} of {bad.numel()} scales are not {allowed}, the first is {values[row, column].item():g} "
            f"at [{row}, {column}]{hint}"
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


def _check_codes(codes: Tensor, fmt: Format) -> None:
    first = fmt.first_bad_code
    if first is None:
        return
    bad = codes.view(torch.uint8).bitwise_and(len(fmt.values) // 2 - 1) >= first
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        value = fmt.values[int(codes.view(torch.uint8)[row, column])].item()
        raise ValueError(
            f"{int(bad.sum())} of {bad.numel()} codes are no finite number, the first is {value:g} at "
            f"[{row}, {column}]: every weight must be finite"
        )
