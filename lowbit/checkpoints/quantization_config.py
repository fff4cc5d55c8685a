"""``quantization_config`` of a model's config.json, as compressed-tensors has it: which layers get which scheme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit import formats
from lowbit.quantizers.scheme import Scheme

# Formats that are not integers, by what compressed-tensors calls them: type "float", bits, the scales' dtype.
_FLOATS = {
    "fp8_e4m3": ("float-quantized", None),
    "nvfp4": ("nvfp4-pack-quantized", "torch.float8_e4m3fn"),
    "mxfp4": ("mxfp4-pack-quantized", "torch.uint8"),
    "mxfp6_e2m3": ("mxfp6-pack-quantized", "torch.uint8"),
    "mxfp8": ("mxfp8-quantized", "torch.uint8"),
}
_DTYPES = {"torch.float32", "torch.float16", "torch.bfloat16"}


def read_config(config: Any) -> tuple[dict[str, Scheme], list[str]]:
    """The scheme of each target, in the order in which they are tried, and what is left as it is.

    Args:
        config: the value of ``"quantization_config"``.

    Raises:
        ValueError: it is no compressed-tensors configuration, or asks for what lowbit has no kernel for; nothing that
            would change the results is passed over.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"quantization_config is {config!r}: it must be an object")
    method = config.get("quant_method")
    if method != "compressed-tensors":
        raise ValueError(f"quant_method is {method!r}: it must be 'compressed-tensors'")
    for name in ("kv_cache_scheme", "transform_config", "sparsity_config"):
        if config.get(name):
            raise ValueError(f"{name} is {config[name]!r}: it must be absent, lowbit has no such thing")
    groups, ignore = config.get("config_groups"), config.get("ignore") or []
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(f"config_groups is {groups!r}: it must be an object with one group or more")
    if not isinstance(ignore, list) or not all(isinstance(name, str) for name in ignore):
        raise ValueError(f"ignore is {ignore!r}: it must be a list of names")
    schemes: dict[str, Scheme] = {}
    for name, group in groups.items():
        try:
            scheme = _read_group(group, config.get("format"))
            targets = group.get("targets")
            if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
                raise ValueError(f"targets is {targets!r}: it must be a list of names")
        except (TypeError, ValueError) as error:
            raise ValueError(f"config_groups, {name}: {error}") from None
        for target in targets:
            schemes.setdefault(target, scheme)
    return schemes, ignore


def write_config(schemes: Mapping[str, Scheme], ignore: list[str]) -> dict[str, Any]:
    """The configuration of a model whose layers, by name, have these schemes.

    Raises:
        ValueError: a scheme that compressed-tensors does not know.
    """
    targets: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        targets.setdefault(scheme, []).append(name)
    groups = {
        f"group_{i}": {"targets": names, **_write_group(scheme)} for i, (scheme, names) in enumerate(targets.items())
    }
    layouts = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": ignore,
    }


def _read_group(group: Any, default_format: Any) -> Scheme:
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        raise ValueError("it has no weights")
    if group.get("output_activations"):
        raise ValueError("output_activations: lowbit quantizes no outputs")
    weights = group["weights"]
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    layout = group.get("format") or default_format
    if weights.get("dynamic"):
        raise ValueError(f"weights are dynamic ({weights['dynamic']!r}): they must not be")
    name = f"int{bits}"
    if kind == "float":
        fits = [name for name, (stored, _) in _FLOATS.items() if stored == layout and formats.get(name).bits == bits]
        if not fits:
            raise ValueError(f"weights are floats of {bits} bits stored as {layout!r}: lowbit has no such format")
        name = fits[0]
    elif kind != "int" or name not in formats.table():
        raise ValueError(f"weights are {kind} of {bits} bits: lowbit has int2 to int6, int8, and floats")
    choices = _read_activations(group.get("input_activations"))
    return Scheme(name, _read_strategy(weights), symmetric=bool(weights.get("symmetric", True)), **choices)


def _read_strategy(weights: Mapping[str, Any]) -> Any:
    """``group_size`` of a Scheme."""
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy is None:  # compressed-tensors' default
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy in ("tensor", "channel"):
        return strategy
    if strategy in ("group", "tensor_group"):
        return size
    if strategy == "block":
        block = weights.get("block_structure")
        if isinstance(block, str):  # "128x128", of older releases
            block = [int(number) for number in block.split("x")]
        if isinstance(block, list) and len(block) == 2:
            return tuple(block)
        raise ValueError(f"block_structure is {block!r}: it must be [rows, columns]")
    raise ValueError(f"strategy is {strategy!r}: it must be tensor, channel, group, tensor_group or block")


def _read_activations(arguments: Any) -> dict[str, Any]:
    """The choices of a Scheme that are about activations."""
    if arguments is None:
        return {}
    bits, kind, strategy = arguments.get("num_bits"), arguments.get("type", "int"), arguments.get("strategy")
    dynamic, size = arguments.get("dynamic", False), arguments.get("group_size")
    what = f"{strategy} {'dynamic' if dynamic else 'static'} {kind}{bits}"
    if strategy == "group":
        what += f" of {size}"
    known: dict[str, dict[str, Any]] = {
        "token dynamic int8": {"activation": "int8"},
        "tensor static int8": {"activation": "int8", "activation_dynamic": False},
        "token dynamic float8": {"activation": "fp8"},
        "tensor static float8": {"activation": "fp8", "activation_dynamic": False},
        "group dynamic float8 of 128": {"activation": "fp8", "activation_group": 128},
    }
    if what not in known or dynamic not in (True, False):
        raise ValueError(f"input_activations are {what}: lowbit has {', '.join(known)}, and none (floating point)")
    if not arguments.get("symmetric", True):
        return {**known[what], "activation_symmetric": False}
    return known[what]


def _write_group(scheme: Scheme) -> dict[str, Any]:
    fmt = formats.get(scheme.format)
    if scheme.scale_rule == "signed_max":
        raise ValueError(f"{scheme}: compressed-tensors has no negative scales")
    weights: dict[str, Any] = {"num_bits": fmt.bits, "type": "int", "symmetric": scheme.symmetric, "dynamic": False}
    if scheme.format in _FLOATS:
        layout, scale_dtype = _FLOATS[scheme.format]
        weights |= {"type": "float"} | ({"scale_dtype": scale_dtype} if scale_dtype else {})
    elif fmt.zero_point:
        layout = "int-quantized" if fmt.bits == 8 and scheme.activation == "int8" else "pack-quantized"
    else:
        raise ValueError(f"{scheme}: compressed-tensors has no format {fmt.name}")
    size = scheme.group_size
    if size in ("channel", "tensor"):
        weights["strategy"] = size
    elif isinstance(size, tuple):
        weights |= {"strategy": "block", "block_structure": list(size)}
    else:
        strategy = "tensor_group" if scheme.format == "nvfp4" else "group"
        weights |= {"strategy": strategy, "group_size": fmt.block_k if size == "block" else size}
    return {"weights": weights, "input_activations": _write_activations(scheme), "format": layout}


def _write_activations(scheme: Scheme) -> dict[str, Any] | None:
    if scheme.activation is None:
        return None
    arguments: dict[str, Any] = {
        "num_bits": 8,
        "type": "int" if scheme.activation == "int8" else "float",
        "symmetric": scheme.activation_symmetric,
        "dynamic": scheme.activation_dynamic,
        "strategy": "token" if scheme.activation_dynamic else "tensor",
    }
    if scheme.activation_group:
        arguments |= {"strategy": "group", "group_size": scheme.activation_group}
    return arguments
