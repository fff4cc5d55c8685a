"""``lowbit.load_pretrained``, ``lowbit.save_pretrained``: a model's directory, as compressed-tensors lays it out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowbit.checkpoints.quantization_config import read_config, write_config
from lowbit.checkpoints.safetensors import add_tied_names, check_model_state, load_file, save_model
from lowbit.model import LayerReport, Report, match_module, match_name
from lowbit.nn import Linear
from lowbit.quantizers.scheme import Scheme


def load_pretrained(model: nn.Module, directory: str | os.PathLike[str]) -> Report:
    """Puts a checkpoint that llm-compressor or ``save_pretrained`` wrote into a model of float layers.

    The layers that the checkpoint has quantized become ``lowbit.nn.Linear``; their weights run as they are stored.
    All else is loaded as ``load_state_dict`` does, into the model's own dtypes. On an error the model is as it was.
    With transformers, ``AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))`` makes such a model.

    Args:
        model: its modules' names are those of the checkpoint's tensors. Layers that are replaced may be on the meta
            device; the new ones are on the CPU.
        directory: config.json with a ``quantization_config`` of compressed-tensors, and ``model.safetensors`` or the
            files that ``model.safetensors.index.json`` names.

    Returns:
        The layers that are quantized now. Their relative errors are not known.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another method or format than lowbit has (read_config), truncated files, missing or unexpected
            tensors, wrong shapes, values that cannot be.
        TypeError: tensors of the wrong dtype.
    """
    if isinstance(model, nn.Linear):  # it has no parent to put its replacement in
        raise ValueError("the model is itself a layer: put it into a torch.nn.Module")
    directory = Path(directory)
    config = _read_json(directory / "config.json")
    try:
        schemes, ignore = read_config(config.get("quantization_config"))
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from None
    state = _read_state(directory)
    found = _matches(model, schemes, ignore)
    if not found:
        raise ValueError(f"{directory / 'config.json'}: no torch.nn.Linear of the model matches {list(schemes)}")
    replacements = {id(module): _empty(module, scheme) for _, module, scheme in found}
    originals = _replace(model, replacements)
    try:
        add_tied_names(model, state)
        check_model_state(model, state, directory)
        rest = dict(state)
        for name, module, _ in found:
            layer = replacements[id(module)]
            own = {key.removeprefix(name + "."): rest.pop(key) for key in state if key.startswith(name + ".")}
            layer.load_state_dict(own, assign=True)
    except BaseException:
        _replace(model, originals)
        raise
    meta = any(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(rest, strict=False, assign=meta)
    return Report(tuple(_line(name, module, replacements[id(module)]) for name, module, _ in found))


def save_pretrained(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Writes ``model.safetensors``, and ``quantization_config`` into config.json: vLLM and transformers read both.

    Args:
        model: with ``lowbit.nn.Linear`` layers. Its ``config`` (transformers) becomes config.json; without one, the
            file that is there keeps its other entries.
        directory: made where there is none.

    Raises:
        ValueError: no quantized layer, or one of a scheme that compressed-tensors does not know.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no lowbit.nn.Linear: lowbit.quantize_ makes some")
    floats = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    quantization = write_config({name: layer.scheme for name, layer in layers.items()}, floats)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    own: Any = getattr(model, "config", None)
    config = own.to_dict() if hasattr(own, "to_dict") else _read_json(path) if path.exists() else {}
    save_model(model, directory / "model.safetensors")
    path.write_text(json.dumps({**config, "quantization_config": quantization}, indent=2, default=str) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}: it must be an object")
    return value


def _read_state(directory: Path) -> dict[str, Tensor]:
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return load_file(directory / "model.safetensors")
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in files.values()
    ):
        raise ValueError(f"{index}: weight_map must name files beside it")
    state: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        state |= load_file(directory / file)
    return state


def _matches(model: nn.Module, schemes: dict[str, Scheme], ignore: list[str]) -> list[tuple[str, nn.Linear, Scheme]]:
    """compressed-tensors tries names before expressions and these before classes."""
    targets = sorted(schemes, key=lambda target: target.startswith("re:"))
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or any(match_module(name, module, other) for other in ignore):
            continue
        fits = [target for target in targets if match_name(name, target)]
        fits += [target for target in targets if match_module(name, module, target)]
        if fits:
            found.append((name, module, schemes[fits[0]]))
    return found


def _empty(module: nn.Linear, scheme: Scheme) -> Linear:
    bias = module.bias is not None
    layer = Linear(module.in_features, module.out_features, bias, scheme, "meta", module.weight.dtype)
    layer.training = module.training
    return layer


def _replace(model: nn.Module, by_id: dict[int, Any]) -> dict[int, nn.Module]:
    """What goes back in their place."""
    undo: dict[int, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in by_id:
                parent._modules[name] = by_id[id(child)]
                undo[id(by_id[id(child)])] = child
    return undo


def _line(name: str, module: nn.Linear, layer: Linear) -> LayerReport:
    weight = layer.quantized
    return LayerReport(
        layer=name,
        scheme=layer.scheme,
        shape=weight.shape,
        bits_per_weight=weight.bits_per_weight,
        relative_error=float("nan"),
        bytes_before=module.weight.nbytes,
        bytes_after=weight.nbytes,
    )
