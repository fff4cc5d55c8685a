"""compressed-tensors' names and layouts of quantized tensors, which ``state_dict()`` writes.

===========================  ==========================================================================================
pack-quantized               int2 to int6, and int8 with floating-point activations:
                             ``weight_packed`` int32 [n, ceil(k * bits / 32)], code + 2^(bits - 1), low bits first;
                             ``weight_scale``; ``weight_shape`` int64 [2]; asymmetric: ``weight_zero_point`` int32
                             [ceil(rows * bits / 32), columns], packed down the rows of the scales
int-quantized                int8 with int8 activations: ``weight`` int8 [n, k], ``weight_scale``, ``weight_zero_point``
float-quantized, mxfp8       ``weight`` float8 [n, k], ``weight_scale`` (mxfp8: uint8, the bytes of E8M0)
nvfp4-, mxfp4-, mxfp6-       ``weight_packed`` uint8 [n, ceil(k * bits / 8)], ``weight_scale`` (float8_e4m3fn; uint8),
  pack-quantized             nvfp4: ``weight_global_scale`` float32 [1], which divides
fp4_e2m1, nf4, fp6, ternary  (not known to compressed-tensors) the same, with a floating-point ``weight_scale``
GGUF's blocks, nf4_dq        (not known to compressed-tensors) ``weight_packed`` uint8 [n, ceil(k * bits / 8)],
                             ``weight_scale``; with minima ``weight_min``; scales of two levels:
                             ``weight_super_scale``, ``weight_super_min``; nf4_dq: ``weight_scale_offset`` float32 [1]
static activations           ``input_scale`` float32 [1], ``input_zero_point`` int8 [1]
===========================  ==========================================================================================

``weight_scale`` is [ceil(n / group_n), ceil(k / group_k)], or [1] where the scheme has one for the whole tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit.formats import FLOATS, Format, describe_shape, dtype_name, num_groups, pack_codes, unpack_codes
from lowbit.tensor import QuantizedTensor

# Every name that a weight's tensors may have.
WEIGHT_NAMES = (
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_global_scale",
    "weight_shape",
    "weight_min",
    "weight_super_scale",
    "weight_super_min",
    "weight_scale_offset",
)


def write_weight(quantized: QuantizedTensor, integer_activations: bool, per_tensor: bool) -> dict[str, Tensor]:
    """The tensors of a weight, by name, in the order in which checkpoints list them.

    Args:
        integer_activations: int8 weights are stored as such, not packed.
        per_tensor: by its scheme the weight has one scale, not one block: it is [1], not [1, 1].
    """
    fmt = quantized.format
    codes, scales, zero_points, mins, super_scales, super_mins = quantized.canonical()
    if scales.dtype == torch.float8_e8m0fnu:
        scales = scales.view(torch.uint8)
    shape = (1,) if per_tensor else tuple(scales.shape)
    tensors: dict[str, Tensor] = {}
    if not _is_packed_int(fmt, integer_activations):
        tensors["weight" if fmt.bits == 8 else "weight_packed"] = codes
        tensors["weight_scale"] = scales.reshape(shape)
        if zero_points is not None:
            tensors["weight_zero_point"] = zero_points.reshape(shape)
        if fmt.global_scale:
            inverse = torch.tensor([1.0 / quantized.global_scale], dtype=torch.float32, device=codes.device)
            tensors["weight_global_scale"] = inverse
        beside = {"weight_min": mins, "weight_super_scale": super_scales, "weight_super_min": super_mins}
        tensors |= {name: tensor for name, tensor in beside.items() if tensor is not None}
        if fmt.scale_values is not None:
            offset = torch.tensor([quantized.scale_offset], dtype=torch.float32, device=codes.device)
            tensors["weight_scale_offset"] = offset
        return tensors
    tensors["weight_packed"] = _words(_biased(codes) if fmt.bits == 8 else codes)
    tensors["weight_scale"] = scales.reshape(shape)
    tensors["weight_shape"] = torch.tensor(quantized.shape, dtype=torch.int64, device="cpu")
    if zero_points is not None:
        tensors["weight_zero_point"] = _pack_zero_points(zero_points, fmt) if shape != (1,) else zero_points.reshape(1)
    return tensors


def missing_names(
    tensors: Mapping[str, Tensor], fmt: Format, zero_points: bool, integer_activations: bool
) -> list[str]:
    """Names that a weight of this format needs and ``tensors`` does not have."""
    needed = ["weight_scale"]
    if fmt.zero_point:
        if "weight" not in tensors:
            packed = _is_packed_int(fmt, integer_activations) or "weight_packed" in tensors
            needed = ["weight_packed", "weight_scale", "weight_shape"] if packed else ["weight", "weight_scale"]
    else:
        needed.insert(0, "weight" if fmt.bits == 8 else "weight_packed")
    if zero_points:
        needed.append("weight_zero_point")
    if fmt.global_scale:
        needed.append("weight_global_scale")
    needed += _beside(fmt)
    if fmt.scale_values is not None:
        needed.append("weight_scale_offset")
    return [name for name in needed if name not in tensors]


def refuse_floating_point(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuses a weight that was never quantized, whatever else is missing."""
    stored = [key for key in ("weight", "weight_packed") if key in tensors]  # both are wrong in another way
    if len(stored) == 1 and (dtype := getattr(tensors[stored[0]], "dtype", None)) in FLOATS:
        raise TypeError(
            f"{name}{stored[0]} is {dtype_name(dtype)}: this is a floating-point checkpoint; load it into "
            f"torch.nn.Linear and quantize that"
        )


def read_weight(
    tensors: Mapping[str, Tensor],
    fmt: Format,
    shape: tuple[int, int],
    group: tuple[int, int],
    zero_points: bool,
    signed_scales: bool,
    name: str = "",
) -> QuantizedTensor:
    """A weight from its tensors. Integer ones may be pack-quantized or int-quantized, whatever ``write_weight`` does.

    Args:
        tensors: by name, none of ``missing_names`` missing.
        name: what the tensors' names begin with, for messages.

    Raises:
        TypeError, ValueError: tensors of the wrong dtype or shape, or with values that cannot be.
    """
    reader = _Reader(tensors, name)
    if "weight" in tensors and "weight_packed" in tensors:
        raise ValueError(f"{name}weight and {name}weight_packed: one of them is needed, not both")
    refuse_floating_point(tensors, name)
    codes = _read_codes(reader, fmt, shape)
    groups = num_groups(shape, group)
    scales = reader.take("weight_scale", None, groups)
    zeros = None
    if zero_points:
        zeros = reader.tensor("weight_zero_point")
        if zeros.dtype == torch.int32:
            packed = reader.take("weight_zero_point", None, _packed_rows(groups, fmt))
            zeros = _unpack_zero_points(packed, groups[0], fmt)
        else:
            zeros = reader.take("weight_zero_point", torch.int8, groups)
    elif "weight_zero_point" in tensors:
        given = reader.tensor("weight_zero_point")
        if not given.is_meta and given.to(torch.float32).any():
            raise ValueError(f"{name}weight_zero_point is not all 0: the layer's scheme is symmetric")
    global_scale = 1.0
    if fmt.global_scale:
        inverse = reader.take("weight_global_scale", torch.float32, (1,))
        if inverse.device.type != "meta":
            value = float(inverse)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}weight_global_scale is {value:g}: it must be positive and finite")
            global_scale = 1.0 / value
    supers = fmt.super_shape(shape, group) or ()
    beside = {
        argument: reader.take(stored, None, groups if argument == "mins" else supers)
        for stored, argument in _beside(fmt).items()
    }
    offset = 0.0
    if fmt.scale_values is not None:
        taken = reader.take("weight_scale_offset", torch.float32, (1,))
        offset = 0.0 if taken.device.type == "meta" else float(taken)
    try:
        return QuantizedTensor(
            codes,
            scales,
            zeros,
            format=fmt.name,
            shape=shape,
            group=group,
            global_scale=global_scale,
            signed_scales=signed_scales,
            scale_offset=offset,
            **beside,
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}weight: {error}") from None


def _read_codes(reader: _Reader, fmt: Format, shape: tuple[int, int]) -> Tensor:
    n, k = shape
    if fmt.zero_point and "weight_packed" in reader.tensors:
        codes = reader.take("weight_packed", torch.int32, (n, -(-k * fmt.bits // 32)))
        codes = _bytes(codes)[:, : fmt.row_bytes(k)]
        reader.expect_shape(shape)
        return _biased(codes).view(torch.int8) if fmt.bits == 8 else codes
    if fmt.zero_point:
        codes = reader.take("weight", torch.int8, shape)
        return codes if fmt.bits == 8 else _codes_of_int8(codes, fmt, reader.name)
    return reader.take("weight" if fmt.bits == 8 else "weight_packed", fmt.storage, (n, fmt.row_bytes(k)))


def _beside(fmt: Format) -> dict[str, str]:
    """What the format has beside scales: names of tensors, and of QuantizedTensor's arguments."""
    names = {"weight_min": "mins"} if fmt.minimum else {}
    if fmt.super_groups:
        names["weight_super_scale"] = "super_scales"
        if fmt.minimum:
            names["weight_super_min"] = "super_mins"
    return names


class _Reader:
    """Takes tensors by name and says which one is wrong."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        self.tensors, self.name = tensors, name

    def tensor(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{self.name}{name} is a {type(tensor).__name__}: a torch.Tensor is needed")
        return tensor

    def take(self, name: str, dtype: torch.dtype | None, shape: tuple[int, ...]) -> Tensor:
        tensor = self.tensor(name)
        if dtype is not None and tensor.dtype != dtype:
            raise TypeError(f"{self.name}{name} is {dtype_name(tensor.dtype)}: {dtype_name(dtype)} is needed")
        one = shape in ((1, 1), (1,)) and tensor.numel() == 1
        if tuple(tensor.shape) != shape and not one:
            raise ValueError(
                f"{self.name}{name} is {describe_shape(tuple(tensor.shape))}: {describe_shape(shape)} is needed"
            )
        return tensor.detach().reshape(shape)

    def expect_shape(self, shape: tuple[int, int]) -> None:
        stated = self.take("weight_shape", None, (2,))
        if stated.device.type != "meta" and tuple(stated.tolist()) != shape:
            raise ValueError(f"{self.name}weight_shape is {stated.tolist()}: {list(shape)} is needed")


def _is_packed_int(fmt: Format, integer_activations: bool) -> bool:
    return fmt.zero_point and not (fmt.bits == 8 and integer_activations)


def _biased(codes: Tensor) -> Tensor:
    """Two's complement <-> plus 128, as uint8."""
    return codes.view(torch.uint8) ^ 0x80


def _words(rows: Tensor) -> Tensor:
    """uint8 [rows, bytes] -> int32 [rows, ceil(bytes / 4)], the last word filled with 0."""
    rows = rows.view(torch.uint8)
    words = F.pad(rows, (0, -rows.shape[1] % 4)).flatten().view(torch.int32)  # a view needs strides, even of one row
    return words.view(rows.shape[0], -1)


def _bytes(words: Tensor) -> Tensor:
    """int32 [rows, words] -> uint8 [rows, 4 * words]."""
    return words.contiguous().flatten().view(torch.uint8).view(words.shape[0], -1)


def _codes_of_int8(codes: Tensor, fmt: Format, name: str) -> Tensor:
    if codes.device.type != "meta":
        bad = (codes < fmt.lowest) | (codes > fmt.largest)
        if bad.any():
            raise ValueError(
                f"{name}weight has {int(bad.sum())} codes out of range, {int(codes[bad][0])} among them: {fmt.name} "
                f"allows {fmt.lowest:g} to {fmt.largest:g}"
            )
    return pack_codes((codes - int(fmt.lowest)).view(torch.uint8), fmt.bits)


def _packed_rows(groups: tuple[int, int], fmt: Format) -> tuple[int, int]:
    return -(-groups[0] * fmt.bits // 32), groups[1]


def _pack_zero_points(zero_points: Tensor, fmt: Format) -> Tensor:
    """int8 [rows, columns] -> int32 [ceil(rows * bits / 32), columns]."""
    stored = (zero_points.to(torch.int16) - int(fmt.lowest)).to(torch.uint8).t().contiguous()
    return _words(pack_codes(stored, fmt.bits)).t().contiguous()


def _unpack_zero_points(packed: Tensor, rows: int, fmt: Format) -> Tensor:
    stored = unpack_codes(_bytes(packed.t()), fmt.bits, rows)
    return (stored.to(torch.int16) + int(fmt.lowest)).to(torch.int8).t().contiguous()
