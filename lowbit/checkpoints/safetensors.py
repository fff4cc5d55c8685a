"""safetensors files: what goes wrong with one is a ValueError that names it, and a failed load changes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn


def save_file(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Writes tensors to a file, at once or not at all: under a temporary name, which is changed at the end."""
    from safetensors.torch import save_file as save

    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"format": "pt"})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_file(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file as load

    try:
        return load(path)
    except SafetensorError as error:
        size = os.path.getsize(path)
        raise ValueError(f"{os.fspath(path)} ({size} bytes) is truncated or no safetensors file: {error}") from error


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes ``model.state_dict()``; tensors that are one in memory (tied weights) once, under their first name."""
    seen: set[tuple[object, ...]] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        identity = (tensor.data_ptr(), tensor.dtype, *tensor.shape, *tensor.stride())
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        tensors[name] = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
    save_file(tensors, path)


def load_model(model: nn.Module, path: str | os.PathLike[str], strict: bool = True, assign: bool = False) -> None:
    """Loads what ``save_model`` wrote into a model of the same layers; on an error the model is as it was.

    Args:
        strict: every tensor of the model must be in the file and the other way round.
        assign: take the file's tensors rather than copy them: for a model on the meta device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a truncated file, missing or unexpected names, wrong shapes, values that cannot be.
        TypeError: tensors of the wrong dtype.
    """
    state = load_file(path)
    add_tied_names(model, state)
    check_model_state(model, state, path, strict)
    model.load_state_dict(state, strict=strict, assign=assign)


def check_model_state(
    model: nn.Module, state: Mapping[str, Tensor], source: str | os.PathLike[str], strict: bool = True
) -> None:
    """Refuses a state dict that ``model.load_state_dict`` would refuse, halfway perhaps; changes nothing.

    Raises:
        ValueError, TypeError: as ``load_model``; ``source`` is where the tensors are from.
    """
    missing: list[str] = []
    wrong: list[str] = []
    expected: set[str] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        prefix = prefix + "." if prefix else ""
        check_state = getattr(module, "check_state", None)
        if check_state is not None:  # a layer of lowbit.nn
            expected |= check_state(state, prefix, strict)
            continue
        for key, tensor in _own_tensors(module).items():
            name = prefix + key
            expected.add(name)
            if name not in state:
                missing.append(f"{name} is missing")
            elif state[name].shape != tensor.shape:
                wrong.append(f"{name} is {list(state[name].shape)}: {list(tensor.shape)} is needed")
    problems = wrong
    if strict:
        problems += missing + [f"{name} is unexpected" for name in state if name not in expected]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{os.fspath(source)}: {'; '.join(problems[:5])}{more}")


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers of the module itself, by name."""
    tensors: dict[str, Tensor | None] = dict(module._parameters)
    for name, buffer in module._buffers.items():
        if name not in module._non_persistent_buffers_set:
            tensors[name] = buffer
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def add_tied_names(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Gives every name of a tied parameter the tensor that was written under one of them."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    for names in names_of.values():
        present = [name for name in names if name in state]
        for name in names:
            if present and name not in state:
                state[name] = state[present[0]]
