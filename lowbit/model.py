"""``lowbit.quantize_``: every matching layer of a model, in place, all or none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from lowbit.formats import describe_shape
from lowbit.nn import BitLinear, Linear
from lowbit.quantizers import quantize, relative_error
from lowbit.quantizers.scheme import Scheme
from lowbit.tensor import QuantizedTensor


@dataclass(frozen=True)
class LayerReport:
    """One line of the report.

    Attributes:
        layer: the module's name in the model.
        scheme: None: the layer was matched but left as it is, ``note`` says why.
        shape: (out_features, in_features).
        bits_per_weight: of codes, scales and zero points; NaN for a layer left alone or on the meta device.
        relative_error: ||W - Q|| / ||W||; likewise.
        bytes_before, bytes_after: of the weight. A weight that an earlier line already counts has 0.
        note: what is special about the layer, or nothing.
    """

    layer: str
    scheme: Scheme | None
    shape: tuple[int, int]
    bits_per_weight: float
    relative_error: float
    bytes_before: int
    bytes_after: int
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What ``quantize_`` did, one line for each layer; prints as a table."""

    layers: tuple[LayerReport, ...]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __getitem__(self, layer: str) -> LayerReport:
        for row in self.layers:
            if row.layer == layer:
                return row
        raise KeyError(layer)

    @property
    def bytes_before(self) -> int:
        """Of the weights of the quantized layers."""
        return sum(row.bytes_before for row in self.layers if row.scheme)

    @property
    def bytes_after(self) -> int:
        """Of the same weights now."""
        return sum(row.bytes_after for row in self.layers if row.scheme)

    def __str__(self) -> str:
        head = ("layer", "scheme", "shape", "bits", "rel. error", "note")
        body = [
            (
                row.layer,
                str(row.scheme) if row.scheme else "-",
                describe_shape(row.shape),
                _number(row.bits_per_weight, ".2f"),
                _number(row.relative_error, ".4f"),
                row.note,
            )
            for row in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        right = (False, False, True, True, True, False)
        lines = [
            "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
            for row in (head, tuple("-" * w for w in widths), *body)
        ]
        quantized = sum(1 for row in self.layers if row.scheme)
        total = f"{quantized} of {len(self.layers)} layers quantized"
        if self.bytes_after:
            ratio = self.bytes_before / self.bytes_after
            total += f": {_megabytes(self.bytes_before)} -> {_megabytes(self.bytes_after)} ({ratio:.1f} x less)"
        return "\n".join(line.rstrip() for line in lines) + f"\n{total}\n"


def quantize_(
    model: nn.Module,
    scheme: Scheme | str | Mapping[str, Scheme | str],
    targets: str | Iterable[str] = "Linear",
    ignore: str | Iterable[str] = ("lm_head",),
    *,
    input_scales: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    **choices: Any,
) -> Report:
    """Replaces the matching ``torch.nn.Linear`` layers of a model by ``lowbit.nn.Linear``, in place.

    All or nothing: every replacement is made before the first one is put in, so a failure leaves the model as it
    was, and a float copy of the whole model stays in memory until the end.

    A weight that several layers share (tied weights) is quantized once and shared again. One that is also shared
    with a module left in floating point (an embedding) gets a quantized copy beside it; the report says so. A module
    that appears in several places of the model is replaced in all.

    Matched layers that cannot be replaced without changing what they compute are left alone, and the report says
    why: subclasses with a forward of their own (``lowbit.nn.BitLinear`` becomes "BITNET" and nothing else),
    weights that are parametrized or that a hook computes (pruning), the output projection of
    ``nn.MultiheadAttention`` (which reads ``weight`` itself).

    Args:
        model: on the CPU; layers on the meta device become quantized layers there, to be loaded.
        scheme: a preset's name, a ``Scheme``, or one for each target: ``{"re:.*mlp": "W4A16", "Linear": "W8A16"}``,
            where the keys are the targets and the first match counts.
        targets: class names (of the module or a base class), module names, or ``"re:"`` and a regular expression
            that matches the beginning of the module's name: compressed-tensors' rules.
        ignore: the same, for what is not to be quantized. The default is the usual name of a language model's head.
        input_scales: static schemes: ``{name: scale}`` or ``{name: (scale, zero_point)}`` of the layers' inputs.
        progress: a tqdm bar on stderr. None: where stderr is a terminal and it takes more than a second; without tqdm
            (not a dependency: ``pip install tqdm``) nothing is shown. True needs tqdm.
        choices: attributes of the scheme to change: ``scale_rule="mse"``.

    Raises:
        TypeError: no module, or no scheme.
        ValueError: nothing matches, a target that matches nothing, a layer that cannot be quantized (named).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: it must be a torch.nn.Module")
    if isinstance(model, nn.Linear):  # it has no parent to put its replacement in
        raise ValueError("the model is itself a layer: use lowbit.nn.Linear.from_float(model, scheme)")
    schemes = _schemes(scheme, targets, choices)
    ignored = _patterns(ignore, "ignore")
    matches = _matches(model, schemes, ignored)
    static = {name for name, _, layer_scheme in matches if not layer_scheme.activation_dynamic}
    for name in input_scales or {}:
        if name not in static:
            raise ValueError(f"input_scales has {name!r}: no layer of that name gets a scheme with static activations")
    shared = _shared_parameters(model, {id(module) for _, module, _ in matches})

    made: dict[int, Linear] = {}  # by id of the float layer
    quantized: _Quantized = {}
    rows = []
    elements = sum(module.weight.numel() for _, module, _ in matches)
    with _ProgressBar(elements, progress) as bar:
        for name, module, layer_scheme in matches:
            reason = _why_not(module, layer_scheme)
            if reason:
                rows.append(_row(name, module, note=f"left as it is: {reason}"))
                continue
            bar.describe(name)
            try:
                scales = _input_scale(name, layer_scheme, input_scales or {})
                replacement, row = _replacement(name, module, layer_scheme, scales, quantized, shared)
            except (TypeError, ValueError) as problem:
                raise type(problem)(f"{name}: {problem}") from problem
            _adopt(replacement, module)
            made[id(module)] = replacement
            rows.append(row)
            bar.update(module.weight.numel())

    # Nothing below this line fails.
    for parent in list(model.modules()):
        for child_name, child in parent._modules.items():
            if child is not None and id(child) in made:
                parent._modules[child_name] = made[id(child)]
    return Report(tuple(rows))


# By the id of the float weight and its scheme: the first layer that has it, the weight quantized, its error.
_Quantized: TypeAlias = dict[tuple[int, Scheme], tuple[str, QuantizedTensor, float]]


def _replacement(
    name: str,
    module: nn.Linear,
    scheme: Scheme,
    input_scale: tuple[Any, Any],
    quantized: _Quantized,
    shared: Mapping[int, str],
) -> tuple[Linear, LayerReport]:
    """The layer quantized, and its line; a weight that ``quantized`` has already is shared with its owner."""
    scale, zero_point = input_scale
    if module.weight.is_meta:
        layer = Linear.from_float(module, scheme, input_scale=scale, input_zero_point=zero_point)
        return layer, _row(name, module, scheme, note="on the meta device")
    key = (id(module.weight), scheme)
    first = key not in quantized
    if first:
        tensor = quantize(module.weight, scheme)
        error = relative_error(module.weight, tensor)
        tensor.pack()
        quantized[key] = name, tensor, error
    owner, tensor, error = quantized[key]
    note = ""
    if not first:
        note = f"tied with {owner}"
    elif id(module.weight) in shared:
        note = f"was tied with {shared[id(module.weight)]}, which stays as it is"
    dtype = module.weight.dtype
    layer = Linear.from_quantized(
        tensor, scheme, module.bias, dtype=dtype, input_scale=scale, input_zero_point=zero_point
    )
    return layer, _row(name, module, scheme, tensor, error, first, note)


def match_name(name: str, target: str) -> bool:
    """``target`` is the module's name, or ``"re:"`` and a regular expression that matches its beginning."""
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), name) is not None
    return target == name


def match_module(name: str, module: nn.Module, target: str) -> bool:
    """As ``match_name``, or ``target`` is the name of the module's class or of a base class."""
    return match_name(name, target) or any(cls.__name__ == target for cls in type(module).__mro__)


def _schemes(
    scheme: Scheme | str | Mapping[str, Scheme | str], targets: str | Iterable[str], choices: dict[str, Any]
) -> list[tuple[str, Scheme]]:
    """(target, scheme) in the order in which they are tried."""
    if isinstance(scheme, Mapping):
        if targets != "Linear":
            raise ValueError(f"targets is {targets!r}: with a scheme for each target, its keys are the targets")
        pairs = [(target, Scheme.of(value, **choices)) for target, value in scheme.items()]
    else:
        chosen = Scheme.of(scheme, **choices)
        pairs = [(target, chosen) for target in _patterns(targets, "targets")]
    _patterns([target for target, _ in pairs], "targets")
    if not pairs:
        raise ValueError("there are no targets")
    return pairs


def _patterns(patterns: str | Iterable[str], what: str) -> list[str]:
    """Class names, module names and expressions, checked."""
    if isinstance(patterns, str):
        patterns = [patterns]
    elif not isinstance(patterns, Iterable):
        raise TypeError(f"{what} is {patterns!r}: it must be a name or several")
    patterns = list(patterns)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{what} has {pattern!r}: it must be a class name, a module name or 're:' and an expression"
            )
        if pattern.startswith("re:"):
            try:
                re.compile(pattern.removeprefix("re:"))
            except re.error as error:
                raise ValueError(f"{what} has {pattern!r}, which is no regular expression: {error}") from None
    return patterns


def _matches(
    model: nn.Module, schemes: list[tuple[str, Scheme]], ignore: list[str]
) -> list[tuple[str, nn.Linear, Scheme]]:
    """The layers to quantize, in the order of ``named_modules``."""
    found = []
    unused = dict.fromkeys(target for target, _ in schemes)
    for name, module in model.named_modules():
        for target, scheme in schemes:
            if match_module(name, module, target):
                unused.pop(target, None)
                if isinstance(module, nn.Linear) and not any(match_module(name, module, other) for other in ignore):
                    found.append((name, module, scheme))
                break
    if unused:
        names = ", ".join(repr(target) for target in unused)
        raise ValueError(f"target {names} matches no module of {type(model).__name__}")
    if not found:
        quantized = sum(isinstance(module, Linear) for module in model.modules())
        raise ValueError(
            f"no torch.nn.Linear of {type(model).__name__} matches {[target for target, _ in schemes]} without "
            f"matching {ignore}" + (f" ({quantized} layers are quantized already)" if quantized else "")
        )
    return found


def _why_not(module: nn.Linear, scheme: Scheme) -> str:
    """Why the layer cannot be replaced; nothing: it can."""
    if type(module) is BitLinear and scheme.name != "BITNET":
        return "it was trained for BITNET"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "its weight is parametrized"
    if module._parameters.get("weight") is None:
        return "a hook computes its weight"
    if type(module).forward not in (nn.Linear.forward, BitLinear.forward) or "forward" in vars(module):
        return f"{type(module).__name__} has a forward of its own"
    return ""


def _shared_parameters(model: nn.Module, matched: set[int]) -> dict[int, str]:
    """Parameters of modules that are not matched: id -> name."""
    names: dict[int, str] = {}
    for prefix, module in model.named_modules():
        if id(module) not in matched:
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    names.setdefault(id(parameter), f"{prefix}.{name}".lstrip("."))
    return names


def _input_scale(name: str, scheme: Scheme, scales: Mapping[str, Any]) -> tuple[Any, Any]:
    if scheme.activation_dynamic:
        return None, None
    if name not in scales:
        raise ValueError(f"scheme {scheme} has static activations: input_scales has no {name!r}")
    value = scales[name]
    return value if isinstance(value, tuple) else (value, None)


def _adopt(replacement: Linear, module: nn.Linear) -> None:
    """Mode and forward hooks go over; the hooks' handles keep working, since the dictionaries are the same."""
    replacement.training = module.training
    for attribute in (
        "_forward_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_backward_hooks",
        "_backward_pre_hooks",
    ):
        setattr(replacement, attribute, getattr(module, attribute))


def _row(
    name: str,
    module: nn.Linear,
    scheme: Scheme | None = None,
    tensor: QuantizedTensor | None = None,
    error: float = float("nan"),
    first: bool = True,
    note: str = "",
) -> LayerReport:
    return LayerReport(
        layer=name,
        scheme=scheme,
        shape=(module.out_features, module.in_features),
        bits_per_weight=tensor.bits_per_weight if tensor else float("nan"),
        relative_error=error,
        bytes_before=module.weight.nbytes if tensor and first else 0,
        bytes_after=tensor.nbytes if tensor and first else 0,
        note=note,
    )


def _number(value: float, spec: str) -> str:
    return format(value, spec) if value == value else "-"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


class _ProgressBar:
    """tqdm over weights, where it is wanted and there."""

    def __init__(self, total: int, progress: bool | None) -> None:
        self.bar: Any = None
        if progress is False:
            return
        try:
            from tqdm.auto import tqdm
        except ImportError:
            if progress:
                raise ImportError("progress=True needs tqdm: pip install tqdm") from None
            return
        self.bar = tqdm(
            total=total,
            unit="weights",
            unit_scale=True,
            desc="quantizing",
            leave=False,
            delay=0 if progress else 1,
            disable=None if progress is None else False,
        )

    def __enter__(self) -> _ProgressBar:  # noqa: PYI034 (typing.Self is not in Python 3.10)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def describe(self, name: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(name, refresh=False)

    def update(self, count: int) -> None:
        if self.bar is not None:
            self.bar.update(count)


__all__ = ["LayerReport", "Report", "match_module", "match_name", "quantize_"]
