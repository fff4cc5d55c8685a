"""``Scheme``: everything that quantizing a layer needs decided, and the presets by the field's names."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lowbit import formats

GroupSize = int | tuple[int, int] | Literal["channel", "tensor", "block"]

SCALE_RULES = ("absmax", "signed_max", "mse", "absmean")


@dataclass(frozen=True)
class Scheme:
    """How a layer is quantized, every choice spelled out.

    Attributes:
        format: number format of the weight, a name of ``lowbit.formats.table()``.
        group_size: weights that share a scale: an int (so many columns of a row; -1 is ``"channel"``),
            ``(rows, columns)``, ``"channel"`` (a row), ``"tensor"`` (all), or ``"block"`` (as the format says: the
            formats that have blocks of their own take nothing else, and it is their default; for others the
            default is ``"channel"``).
        symmetric: no zero points. False only for formats that have them (int2 to int8).
        scale_dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; None: the dtype of the weight, or what the
            format says.
        scale_rule: ``"absmax"`` (compressed-tensors' rule, the default), ``"signed_max"`` (int formats: the weight
            of largest magnitude becomes the lowest code exactly; scales may be negative), ``"mse"`` (search for the
            scale of least squared error) or ``"absmean"`` (ternary: the mean magnitude, BitNet b1.58).
        activation: None (activations stay floating point), ``"int8"`` (quantized inside the op, integer
            multiplication; integer weights) or ``"fp8"`` (quantized to e4m3 on CUDA devices; the CPU has no fp8 product
            and leaves them in floating point; fp8, fp4 and int4 weights).
        activation_dynamic: True: a scale for every row of x, found on the fly; False: one given ``input_scale``.
        activation_symmetric: False: activations have a zero point, too. Only ``"int8"``.
        activation_group: ``"fp8"``, dynamic: 128 gives every 128 columns of a row a scale of their own; None: a row.
        accum: how ``"fp8"`` sums: ``"promoted"`` (in fp32 every 128 columns) or ``"fast"`` (longer in the tensor
            core, which adds with fewer bits).

    Raises:
        ValueError: choices that do not go together.
        TypeError: a choice of the wrong type.
    """

    format: str
    group_size: GroupSize | None = None
    symmetric: bool = True
    scale_dtype: str | None = None
    scale_rule: str = "absmax"
    activation: str | None = None
    activation_dynamic: bool = True
    activation_symmetric: bool = True
    activation_group: int | None = None
    accum: str = "promoted"

    def __post_init__(self) -> None:
        fmt = formats.get(self.format)
        for name in ("symmetric", "activation_dynamic", "activation_symmetric"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}: it must be True or False")
        object.__setattr__(self, "group_size", _normal_group_size(self.group_size, fmt))
        object.__setattr__(self, "scale_dtype", _normal_scale_dtype(self.scale_dtype, fmt))
        if not self.symmetric and not fmt.zero_point:
            allowed = ", ".join(f.name for f in formats.table().values() if f.zero_point)
            raise ValueError(f"symmetric is False: {fmt.name} has no zero points ({allowed} have)")
        if self.scale_rule not in SCALE_RULES:
            raise ValueError(f"scale_rule is {self.scale_rule!r}: it must be one of {', '.join(SCALE_RULES)}")
        if self.scale_rule != "absmax" and fmt.super_groups:
            raise ValueError(
                f"scale_rule is {self.scale_rule!r}: the scales of {fmt.name} have two levels, absmax is all"
            )
        if self.scale_rule == "signed_max" and not (fmt.zero_point and self.symmetric):
            kind = fmt.name if self.symmetric else f"asymmetric {fmt.name}"
            raise ValueError(
                f"scale_rule is 'signed_max': {kind} gains nothing by it; it is for symmetric integer formats"
            )
        if self.scale_rule == "absmean" and self.format != "ternary":
            raise ValueError(
                f"scale_rule is 'absmean': it is the rule of ternary weights, {fmt.name} takes absmax or mse"
            )
        if self.activation not in (None, "int8", "fp8"):
            raise ValueError(f"activation is {self.activation!r}: it must be None, 'int8' or 'fp8'")
        if self.activation == "int8" and not fmt.integer:
            raise ValueError(f"activation is 'int8': it needs an integer weight, not {fmt.name}")
        if self.activation == "fp8" and not fmt.fits_e4m3:
            raise ValueError(f"activation is 'fp8': it needs a weight whose values e4m3 has, not {fmt.name}")
        if self.activation == "fp8" and not self.activation_symmetric:
            raise ValueError("activation_symmetric is False: fp8 activations have no zero point")
        if self.activation_group not in (None, 128):
            raise ValueError(f"activation_group is {self.activation_group!r}: it must be None or 128")
        if self.activation_group and not (self.activation == "fp8" and self.activation_dynamic):
            raise ValueError("activation_group is 128: only dynamic 'fp8' activations have groups")
        if self.accum not in ("promoted", "fast"):
            raise ValueError(f"accum is {self.accum!r}: it must be 'promoted' or 'fast'")
        if self.accum == "fast" and self.activation != "fp8":
            raise ValueError("accum is 'fast': only fp8 activations have a choice")
        if self.activation is None and not (self.activation_dynamic and self.activation_symmetric):
            raise ValueError("activation is None: activation_dynamic and activation_symmetric have no meaning")

    @staticmethod
    def preset(name: str, **choices: Any) -> Scheme:
        """The scheme that the field calls ``name``, with ``choices`` (attributes of Scheme) changed.

        Names are compressed-tensors' where it has them, in any case: ``Scheme.preset("W4A16", group_size=64)``.

        Raises:
            ValueError: no such preset; the message names the nearest ones.
        """
        if not isinstance(name, str):
            raise TypeError(f"scheme is a {type(name).__name__}: it must be a preset's name or a lowbit.Scheme")
        try:
            preset = PRESETS[name.upper()]
        except KeyError:
            near = difflib.get_close_matches(name.upper(), PRESETS, n=3, cutoff=0.4)
            hint = f" (perhaps {' or '.join(near)}?)" if near else ""
            if name in formats.table():
                hint = f", which is a format (lowbit.Scheme({name!r}) is a scheme of it)"
            raise ValueError(f"scheme is {name!r}{hint}: it must be one of {', '.join(PRESETS)}") from None
        return Scheme(**{**preset, **_known(choices)})

    @staticmethod
    def of(scheme: Scheme | str, **choices: Any) -> Scheme:
        """``scheme`` itself, or the preset of that name, with ``choices`` changed."""
        if isinstance(scheme, Scheme):
            return dataclasses.replace(scheme, **_known(choices)) if choices else scheme
        return Scheme.preset(scheme, **choices)

    @property
    def name(self) -> str:
        """The preset's name if this is one (whatever its scale rule), else the choices in one word."""
        for name, choices in PRESETS.items():
            preset = Scheme(**choices)
            if vars(self) == vars(preset) | {"scale_rule": self.scale_rule}:
                return name if self == preset else f"{name}:{self.scale_rule}"
        size = self.group_size
        word = f"g{size}" if isinstance(size, int) else "x".join(map(str, size)) if isinstance(size, tuple) else size
        words = [self.format, str(word)]
        if not self.symmetric:
            words.append("asym")
        if self.scale_dtype:
            words.append(self.scale_dtype)
        if self.scale_rule != "absmax":
            words.append(self.scale_rule)
        if self.activation:
            words.append(f"a_{self.activation}")
            words += [] if self.activation_dynamic else ["static"]
            words += [] if self.activation_symmetric else ["asym"]
            words += [f"ag{self.activation_group}"] if self.activation_group else []
            words += ["fast"] if self.accum == "fast" else []
        return "-".join(words)

    def __str__(self) -> str:
        return self.name

    @property
    def family(self) -> str:
        """The operation family that multiplies with it on the CPU: ``"weight_only"`` or ``"integer"``."""
        return self.family_on("cpu")

    def family_on(self, device: str) -> str:
        """The operation family on a kind of device: ``"weight_only"``, ``"integer"``, or on ``"cuda"`` ``"fp8"``."""
        if self.activation == "int8":
            return "integer"
        return "fp8" if self.activation == "fp8" and device == "cuda" else "weight_only"

    def group(self, n: int, k: int) -> tuple[int, int]:
        """Rows and columns of a group in a weight of n x k."""
        size = self.group_size
        if size == "block":
            fmt = formats.get(self.format)
            return fmt.block_n, fmt.block_k
        if size == "tensor":
            return n, k
        if size == "channel":
            return 1, k
        assert isinstance(size, (int, tuple))
        return (1, size) if isinstance(size, int) else size

    def scales(self, weight_dtype: torch.dtype) -> torch.dtype:
        """The dtype of the scales of a weight that is ``weight_dtype``."""
        return formats.dtype_of(self.scale_dtype) if self.scale_dtype else weight_dtype


def _known(choices: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(Scheme)]
    for name in choices:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f" (perhaps {near[0]}?)" if near else ""
            raise TypeError(f"a scheme has no choice {name!r}{hint}: it has {', '.join(names)}")
    return choices


def _normal_group_size(size: Any, fmt: formats.Format) -> GroupSize:
    own = bool(fmt.block_k)
    if size is None:
        return "block" if own else "channel"
    if isinstance(size, list):
        size = tuple(size)
    if own:
        if size in ("block", fmt.block_k if fmt.block_n == 1 else None, (fmt.block_n, fmt.block_k)):
            return "block"
        raise ValueError(f"group_size is {size!r}: {fmt.name} has blocks of {fmt.block_n} x {fmt.block_k}")
    if size == -1:
        return "channel"
    if size == "tensor" and fmt.block_n:
        raise ValueError(f"group_size is 'tensor': groups of {fmt.name} have {fmt.block_n} row")
    if size in ("channel", "tensor"):
        return size  # type: ignore[no-any-return]
    if isinstance(size, str):
        raise ValueError(f"group_size is {size!r}: a word must be 'channel' or 'tensor'")
    numbers = size if isinstance(size, tuple) else (1, size)
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise TypeError(f"group_size is {size!r}: it must be an int, (rows, columns), 'channel' or 'tensor'")
    if len(numbers) != 2 or not all(1 <= number < 2**31 for number in numbers):
        raise ValueError(f"group_size is {size!r}: it must be in [1, 2^31), or (rows, columns) each in that, or -1")
    rows, columns = numbers
    if fmt.block_n and rows != fmt.block_n:
        raise ValueError(f"group_size is {size!r}: groups of {fmt.name} have {fmt.block_n} row")
    return columns if rows == 1 else (rows, columns)


def _normal_scale_dtype(dtype: Any, fmt: formats.Format) -> str | None:
    if isinstance(dtype, torch.dtype):
        dtype = formats.dtype_name(dtype)
    if dtype is not None and not isinstance(dtype, str):
        raise TypeError(f"scale_dtype is {dtype!r}: it must be a dtype's name, a torch.dtype or None")
    if fmt.scale_dtype is not None:
        if dtype not in (None, fmt.scale_dtype):
            raise ValueError(f"scale_dtype is {dtype!r}: {fmt.name} has {fmt.scale_dtype} scales")
        return fmt.scale_dtype
    names = [formats.dtype_name(d) for d in formats.FLOATS]
    if dtype is not None and dtype not in names:
        raise ValueError(f"scale_dtype is {dtype!r}: {fmt.name} takes {', '.join(names)} or None")
    return dtype


# Weights as compressed-tensors' presets of the same name quantize them. FP8 is its FP8_DYNAMIC: a scale for every
# output channel and for every row of activations.
PRESETS: dict[str, dict[str, Any]] = {
    "W4A16": {"format": "int4", "group_size": 128},
    "W4A16_ASYM": {"format": "int4", "group_size": 128, "symmetric": False},
    "W8A16": {"format": "int8", "group_size": 128},
    "W8A8": {"format": "int8", "group_size": "channel", "activation": "int8"},
    "INT8": {"format": "int8", "group_size": "channel", "activation": "int8"},
    "W4A8": {"format": "int4", "group_size": 128, "activation": "int8"},
    "W2A16": {"format": "int2", "group_size": 128},
    "W3A16": {"format": "int3", "group_size": 128},
    "W5A16": {"format": "int5", "group_size": 128},
    "W6A16": {"format": "int6", "group_size": 128},
    "W2A8": {"format": "int2", "group_size": 128, "activation": "int8"},
    "W3A8": {"format": "int3", "group_size": 128, "activation": "int8"},
    "W5A8": {"format": "int5", "group_size": 128, "activation": "int8"},
    "W6A8": {"format": "int6", "group_size": 128, "activation": "int8"},
    "BITNET": {
        "format": "ternary",
        "group_size": "tensor",
        "scale_dtype": "float32",
        "scale_rule": "absmean",
        "activation": "int8",
    },
    "FP8": {"format": "fp8_e4m3", "group_size": "channel", "activation": "fp8"},
    "FP8_BLOCK": {"format": "fp8_e4m3", "group_size": (128, 128), "activation": "fp8", "activation_group": 128},
    "FP8_E5M2": {"format": "fp8_e5m2", "group_size": "channel"},
    "FP4A16": {"format": "fp4_e2m1", "group_size": 32},
    "FP6_E3M2": {"format": "fp6_e3m2", "group_size": "channel"},
    "FP6_E2M3": {"format": "fp6_e2m3", "group_size": "channel"},
    "MXFP6_E3M2": {"format": "mxfp6_e3m2"},
    "MXFP6A16": {"format": "mxfp6_e2m3"},
    "MXFP4A16": {"format": "mxfp4"},
    "MXFP8A16": {"format": "mxfp8"},
    "NVFP4A16": {"format": "nvfp4"},
    "NF4": {"format": "nf4", "group_size": 64, "scale_dtype": "float32"},
    "NF4_DQ": {"format": "nf4_dq", "group_size": 64},
}
