"""``lowbit.nn.Linear``: ``torch.nn.Linear`` over a quantized weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import formats
from lowbit.checkpoints import compressed_tensors as names
from lowbit.formats import describe_shape, dtype_name
from lowbit.functional import check_activation, checked_epilogue, static_scale
from lowbit.ops import call, ops
from lowbit.quantizers import quantize
from lowbit.quantizers.scheme import Scheme
from lowbit.tensor import QuantizedTensor

_INPUT_NAMES = ("input_scale", "input_zero_point")
_QUANTIZED = {"integer": torch.int8, "fp8": torch.float8_e4m3fn}  # what x may be already where its scale is static


class Linear(nn.Module):
    """y = x W^T + bias with a quantized W: a drop-in for ``torch.nn.Linear``.

    The weight is held once, packed for the kernels, in the buffer ``packed``. ``state_dict()`` writes its canonical
    form under compressed-tensors' names (lowbit/checkpoints/compressed_tensors.py), loading packs it again.
    ``weight`` decodes it anew whenever it is asked for, so that code which looks at ``layer.weight`` still works.

    The weight is frozen; gradients reach x and the bias. ``.to(dtype)`` casts the bias and the dtype of ``weight``;
    codes and scales stay as they are, since a cast would change the weight. Kernels take float32, float16 and
    bfloat16 activations whatever that dtype is, and answer in the activation's.

    Args:
        in_features, out_features, bias, device, dtype: as ``torch.nn.Linear``; the weight is initialised as it
            initialises its own, then quantized. On the meta device nothing is computed: load a state dict with
            ``assign=True``.
        scheme: a preset's name or a ``Scheme``.
        input_scale: static schemes: x = (q - input_zero_point) * input_scale, positive.
        input_zero_point: static asymmetric schemes: in -128 .. 127.

    Shape:
        x [..., in_features] -> y [..., out_features].
    """

    packed: Tensor
    bias: nn.Parameter | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    _like: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        scheme: Scheme | str = "W4A16",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_scale: Tensor | float | None = None,
        input_zero_point: Tensor | int | None = None,
    ) -> None:
        scheme = Scheme.of(scheme)
        if in_features < 1 or out_features < 1:
            raise ValueError(f"in_features = {in_features}, out_features = {out_features}: each must be at least 1")
        linear = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        quantized = _quantize(linear.weight, scheme)
        if input_scale is None and not scheme.activation_dynamic:  # a place for load_state_dict to fill
            input_scale = torch.ones(1, device=quantized.device)
            if not scheme.activation_symmetric:
                input_zero_point = torch.zeros(1, dtype=torch.int32, device=quantized.device)
        self._build(scheme, quantized, linear.bias, linear.weight.dtype, input_scale, input_zero_point)

    def _build(
        self,
        scheme: Scheme,
        quantized: QuantizedTensor,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
        input_scale: Tensor | float | None,
        input_zero_point: Tensor | int | None,
    ) -> None:
        super().__init__()
        scale, zero_point = _static_input(scheme, input_scale, input_zero_point, quantized.device)
        packed = quantized.pack()
        self.scheme = scheme
        self.out_features, self.in_features = quantized.shape
        self.register_parameter("bias", bias)
        self.register_buffer("packed", packed, persistent=False)
        self._hold(quantized)
        # Casts with the module, so that it knows the dtype that a float layer in its place would have.
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=packed.device), persistent=False)
        self._integer = scheme.family == "integer"
        self.register_buffer("input_scale", scale, persistent=False)
        self.register_buffer("input_zero_point", zero_point, persistent=False)

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear | Linear,
        scheme: Scheme | str = "W4A16",
        *,
        input_scale: Tensor | float | None = None,
        input_zero_point: Tensor | int | None = None,
        **choices: Any,
    ) -> Linear:
        """The layer quantized. Its bias is the same Parameter; a layer on the meta device gives one there.

        Args:
            linear: its weight [n, k] and bias [n] are all that is looked at: a subclass's own ``forward`` is not.
            scheme: a preset's name or a ``Scheme``.
            input_scale, input_zero_point: of the activations, for static schemes.
            choices: attributes of the scheme to change.

        Raises:
            TypeError: no layer, or a weight of another dtype.
            ValueError: weights that are NaN or infinite, a weight that is not on the CPU.
        """
        if not isinstance(linear, (nn.Linear, Linear)):
            raise TypeError(f"linear is a {type(linear).__name__}: a torch.nn.Linear is needed")
        scheme = Scheme.of(scheme, **choices)
        weight = linear.weight
        self = cls.__new__(cls)
        self._build(scheme, _quantize(weight, scheme), linear.bias, weight.dtype, input_scale, input_zero_point)
        self.training = linear.training
        return self

    @classmethod
    def from_quantized(
        cls,
        quantized: QuantizedTensor,
        scheme: Scheme | str,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        input_scale: Tensor | float | None = None,
        input_zero_point: Tensor | int | None = None,
    ) -> Linear:
        """A layer around a weight that is quantized already; it shares the packed form with ``quantized``.

        Raises:
            ValueError: the weight is not what the scheme makes.
        """
        scheme = Scheme.of(scheme)
        mismatch = _mismatch(quantized, scheme)
        if mismatch:
            raise ValueError(f"{quantized!r} is not {scheme}: {mismatch}")
        parameter = None
        if bias is not None:
            parameter = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        self = cls.__new__(cls)
        self._build(scheme, quantized, parameter, dtype, input_scale, input_zero_point)
        return self

    def _hold(self, quantized: QuantizedTensor) -> None:
        """What the layer keeps of its weight besides ``packed``."""
        self._global_scale = quantized.global_scale  # in double: fp32 does not survive 1 / (1 / x)
        self._description = quantized.description
        self._family = self.scheme.family_on(quantized.device.type)

    def forward(
        self,
        x: Tensor,
        *,
        activation_function: str | None = None,
        multiply: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Y [..., out_features]; what may follow x W^T + bias is as ``lowbit.linear`` has it."""
        buffers = self._buffers  # nn.Module.__getattr__ takes 0.5 us for each name
        packed, bias = buffers["packed"], self._parameters["bias"]
        assert packed is not None
        scale = buffers["input_scale"]
        family = self._family
        quantized = None if scale is None or family == "weight_only" else _QUANTIZED[family]
        check_activation(x, self.in_features, packed.device, quantized)
        epilogue: tuple[Any, ...] = ()
        if activation_function is not None or multiply is not None or residual is not None:
            epilogue = checked_epilogue(x, self.out_features, activation_function, multiply, residual)
        description = self._description
        if family == "weight_only":
            return call("weight_only", epilogue, x, packed, bias, self.out_features, description)
        scheme, dtype = self.scheme, x.dtype
        if dtype == quantized:
            like = buffers["_like"]
            assert like is not None
            dtype = like.dtype
        arguments: tuple[Any, ...]
        if family == "fp8":
            arguments = (scale, scheme.activation_group or 0, scheme.accum == "fast", dtype, description)
        else:
            arguments = (scale, buffers["input_zero_point"], scheme.activation_symmetric, dtype, description)
        return call(family, epilogue, x, packed, bias, self.out_features, *arguments)

    @property
    def quantized(self) -> QuantizedTensor:
        """The weight, sharing this layer's memory."""
        return QuantizedTensor.from_packed(self.packed, self._global_scale, self._description)

    @property
    def weight(self) -> Tensor:
        """[out_features, in_features], decoded on every access: read-only, and as large as a float layer's."""
        result: Tensor = ops.dequantize_packed(
            self.packed, self.out_features, self.in_features, self._like.dtype, self._description
        )
        return result

    def extra_repr(self) -> str:
        bits = 8 * self.packed.numel() / (self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"scheme={self.scheme}, {bits:.3g} bits per weight packed"
        )

    # ---- moving and casting ----

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear:
        like, before = fn(self._like), self.packed.device
        device = like.device
        if device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(f"device is {device}: lowbit has kernels for the CPU and for CUDA devices")
        if like.dtype not in formats.FLOATS:
            raise TypeError(f"dtype is {dtype_name(like.dtype)}: a layer is float32, float16 or bfloat16")
        repacked = None
        if device.type != before.type and "cuda" in (device.type, before.type):  # another layout
            repacked = self._repacked(device)
        # Moved, never cast: neither by .to(dtype), which leaves integers alone, nor by .type(dtype), which does not.
        kept = {name: buffer for name in ("packed", *_INPUT_NAMES) if (buffer := self._buffers[name]) is not None}
        self._buffers |= dict.fromkeys(kept)
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            moved = {name: _moved(buffer, fn) for name, buffer in kept.items() if name != "packed" or not repacked}
        except BaseException:
            self._buffers |= kept
            raise
        self._buffers |= moved
        if repacked is not None:
            self._buffers["packed"] = repacked.pack()
            self._hold(repacked)
        return self

    def _repacked(self, device: torch.device) -> QuantizedTensor:
        """The weight for another kind of device; from or to the meta device, of the same shape alone."""
        if not self.packed.is_meta and device.type != "meta":
            weight = self.quantized.to(device)
        else:
            like = torch.empty(self.out_features, self.in_features, dtype=self._like.dtype, device="meta")
            meta = _meta_quantized(self.scheme, like)
            weight = QuantizedTensor.trusted(
                **meta.canonical().map(lambda tensor: torch.empty_like(tensor, device=device))._asdict(),
                format=meta.format,
                shape=meta.shape,
                group=meta.group,
                global_scale=meta.global_scale,
                scale_offset=meta.scale_offset,
            )
        weight.pack()
        return weight

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Packs anew what was loaded onto another kind of device (torch.load's map_location)."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        kind = self.packed.device.type
        if kind in ("cpu", "cuda") and (kind == "cuda") == (self._description is None):
            quantized = QuantizedTensor.from_packed(self.packed, self._global_scale)
            self._buffers["packed"] = quantized.pack()
            self._hold(quantized)

    # ---- state: the canonical form ----

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, tensor in names.write_weight(
            self._canonical(), self._integer, self.scheme.group_size == "tensor"
        ).items():
            destination[prefix + name] = tensor
        for name in _INPUT_NAMES:
            value = getattr(self, name)
            if value is not None:
                destination[prefix + name] = value.to(torch.int8) if name == "input_zero_point" else value.detach()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _canonical(self) -> QuantizedTensor:
        if not self.packed.is_meta:
            return self.quantized
        weight = torch.empty(self.out_features, self.in_features, dtype=self._like.dtype, device="meta")
        return _meta_quantized(self.scheme, weight)

    def check_state(self, state: Mapping[str, Tensor], prefix: str, strict: bool = True) -> set[str]:
        """Refuses a state dict that ``load_state_dict`` would refuse; changes nothing.

        Returns:
            The names that it would read.

        Raises:
            ValueError, TypeError: as ``load_state_dict``; with ``strict``, for missing names, too.
        """
        mine = self._own(state, prefix)
        missing = self._missing(mine)
        if self.bias is not None and prefix + "bias" not in state:
            missing.append("bias")
        if missing and strict:
            raise ValueError(f"{', '.join(prefix + name for name in missing)}: missing, {self.scheme} needs this")
        self._read(state, prefix, mine)
        return {prefix + name for name in (*mine, "bias")}

    def _own(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        known: tuple[str, ...] = names.WEIGHT_NAMES
        if not self.scheme.activation_dynamic:
            known += _INPUT_NAMES
        return {name: state[prefix + name] for name in known if prefix + name in state}

    def _missing(self, mine: Mapping[str, Tensor]) -> list[str]:
        fmt = formats.get(self.scheme.format)
        missing = names.missing_names(mine, fmt, not self.scheme.symmetric, self._integer)
        needed = [name for name in _INPUT_NAMES if getattr(self, name) is not None]
        return missing + [name for name in needed if name not in mine]

    def _read(
        self, state: Mapping[str, Tensor], prefix: str, mine: Mapping[str, Tensor]
    ) -> tuple[QuantizedTensor | None, Tensor | None, Tensor | None]:
        """The weight and the input's scale and zero point that the state dict holds, None for what it does not."""
        fmt = formats.get(self.scheme.format)
        weight = scale = zero_point = None
        names.refuse_floating_point(mine, prefix)
        if not names.missing_names(mine, fmt, not self.scheme.symmetric, self._integer):
            weight = names.read_weight(
                mine,
                fmt,
                (self.out_features, self.in_features),
                self.scheme.group(self.out_features, self.in_features),
                not self.scheme.symmetric,
                self.scheme.scale_rule == "signed_max",
                prefix,
            )
        if "input_scale" in mine:
            zero = None if self.scheme.activation_symmetric else mine.get("input_zero_point")
            try:
                scale, zero_point = static_scale(mine["input_scale"], zero, mine["input_scale"].device, None)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{prefix}input_scale: {error}") from None
        bias = state.get(prefix + "bias")
        if self.bias is not None and bias is not None:
            if not isinstance(bias, Tensor):
                raise TypeError(f"{prefix}bias is a {type(bias).__name__}: a torch.Tensor is needed")
            if bias.shape != self.bias.shape:
                raise ValueError(
                    f"{prefix}bias is {describe_shape(tuple(bias.shape))}: {describe_shape(tuple(self.bias.shape))} "
                    f"is needed"
                )
            if bias.dtype not in formats.FLOATS:
                raise TypeError(f"{prefix}bias is {dtype_name(bias.dtype)}: it must be float32, float16 or bfloat16")
        return weight, scale, zero_point

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        mine = self._own(state_dict, prefix)
        weight, scale, zero_point = self._read(state_dict, prefix, mine)
        missing = self._missing(mine)
        missing_keys += [prefix + name for name in missing]
        if missing and mine:
            return  # part of a layer: change nothing. (Whether load_state_dict is strict is not known here.)
        own_unexpected: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, own_unexpected, error_msgs
        )
        unexpected_keys += [name for name in own_unexpected if name.removeprefix(prefix) not in mine]
        if weight is None:
            return
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        if self.packed.is_meta and not assign:
            warnings.warn(
                f"for {prefix}packed: copying to a meta tensor is a no-op; pass assign=True to load_state_dict",
                stacklevel=2,
            )
            return
        if not assign and weight.device.type != self.packed.device.type:
            weight = weight.to(self.packed.device)
        packed = weight.pack()
        if assign or packed.shape != self.packed.shape or packed.device != self.packed.device:
            self.packed = packed
            self._like = torch.empty(0, dtype=self._like.dtype, device=packed.device)
        else:
            self.packed.copy_(packed)
        self._hold(weight)
        if scale is not None:
            where = self.packed.device
            self.input_scale = scale.to(where)
            self.input_zero_point = None if zero_point is None else zero_point.to(where)


def _meta_quantized(scheme: Scheme, weight: Tensor) -> QuantizedTensor:
    """What quantizing a weight on the meta device gives: shapes and dtypes."""
    n, k = weight.shape
    fmt = formats.get(scheme.format)
    group = scheme.group(n, k)
    groups, supers = formats.num_groups((n, k), group), fmt.super_shape((n, k), group)
    scale_dtype, super_dtype = scheme.scales(weight.dtype), formats.dtype_of(fmt.super_dtype)

    def empty(shape: tuple[int, ...] | None, dtype: torch.dtype) -> Tensor | None:
        return None if shape is None else torch.empty(shape, dtype=dtype, device="meta")

    return QuantizedTensor(
        torch.empty(n, fmt.row_bytes(k), dtype=fmt.storage, device="meta"),
        torch.empty(groups, dtype=scale_dtype, device="meta"),
        empty(None if scheme.symmetric else groups, torch.int8),
        format=fmt.name,
        shape=(n, k),
        group=group,
        mins=empty(groups if fmt.minimum else None, scale_dtype),
        super_scales=empty(supers, super_dtype),
        super_mins=empty(supers if fmt.minimum else None, super_dtype),
    )


def _quantize(weight: Tensor, scheme: Scheme) -> QuantizedTensor:
    """The weight quantized; on the meta device, what that would be."""
    if not weight.is_meta:
        return quantize(weight, scheme)
    if weight.dtype in formats.FLOATS:
        return _meta_quantized(scheme, weight)
    raise TypeError(f"weight is {dtype_name(weight.dtype)}: it must be float32, float16 or bfloat16")


def _static_input(
    scheme: Scheme, scale: Tensor | float | None, zero_point: Tensor | int | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """The static scale and zero point that the scheme wants of the activations, checked."""
    if scheme.activation_dynamic:
        if scale is not None or zero_point is not None:
            raise ValueError(f"input_scale and input_zero_point: scheme {scheme} has no static activations")
        return None, None
    if scale is None:
        raise ValueError(f"scheme {scheme} has static activations: input_scale is needed")
    if scheme.activation_symmetric:
        if zero_point is not None:
            raise ValueError(f"input_zero_point: scheme {scheme} has symmetric activations")
    elif zero_point is None:
        raise ValueError(f"scheme {scheme} has asymmetric static activations: input_zero_point is needed")
    return static_scale(scale, zero_point, device, None)


def _moved(buffer: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """fn(buffer), if need be without its cast."""
    moved = fn(buffer)
    if moved.dtype == buffer.dtype:
        return moved
    return torch.empty_like(buffer, device=moved.device) if buffer.is_meta else buffer.to(moved.device)


def _mismatch(quantized: QuantizedTensor, scheme: Scheme) -> str:
    if quantized.format.name != scheme.format:
        return f"format {scheme.format} is needed"
    if quantized.group != scheme.group(*quantized.shape):
        return f"groups of {describe_shape(scheme.group(*quantized.shape))} are needed"
    if quantized.has_zero_points == scheme.symmetric:
        return "zero points are " + ("not wanted" if scheme.symmetric else "needed")
    return ""
