"""lowbit: low-precision GEMM kernels for torch, with the quantizers and layers that use them.

Importing the package touches no device and loads nothing: each public name loads what it needs when it is first
used, so ``from lowbit import _C`` (the NumPy-level module) works where there is no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowbit import checkpoints, formats, info, nn, quantizers
    from lowbit.functional import linear
    from lowbit.info import explain
    from lowbit.model import Report, quantize_
    from lowbit.pretrained import load_pretrained, save_pretrained
    from lowbit.quantizers import quantize, relative_error
    from lowbit.quantizers.activations import QuantizedActivation, quantize_activation
    from lowbit.quantizers.scheme import Scheme
    from lowbit.tensor import QuantizedTensor

    __version__: str

# Where each public name lives; an empty attribute is the module itself. No name here but those may be the name of
# a module beside this file: importing that module would put it under the name.
_PUBLIC = {
    "QuantizedActivation": ("lowbit.quantizers.activations", "QuantizedActivation"),
    "QuantizedTensor": ("lowbit.tensor", "QuantizedTensor"),
    "Report": ("lowbit.model", "Report"),
    "Scheme": ("lowbit.quantizers.scheme", "Scheme"),
    "checkpoints": ("lowbit.checkpoints", ""),
    "cupy": ("lowbit.cupy", ""),  # not in __all__: `from lowbit import *` must not hide CuPy
    "explain": ("lowbit.info", "explain"),
    "formats": ("lowbit.formats", ""),
    "info": ("lowbit.info", ""),
    "linear": ("lowbit.functional", "linear"),
    "load_pretrained": ("lowbit.pretrained", "load_pretrained"),
    "nn": ("lowbit.nn", ""),
    "quantize": ("lowbit.quantizers", "quantize"),
    "quantize_": ("lowbit.model", "quantize_"),
    "quantize_activation": ("lowbit.quantizers.activations", "quantize_activation"),
    "quantizers": ("lowbit.quantizers", ""),
    "relative_error": ("lowbit.quantizers", "relative_error"),
    "save_pretrained": ("lowbit.pretrained", "save_pretrained"),
}

__all__ = [
    "QuantizedActivation",
    "QuantizedTensor",
    "Report",
    "Scheme",
    "__version__",
    "checkpoints",
    "explain",
    "formats",
    "info",
    "linear",
    "load_pretrained",
    "nn",
    "quantize",
    "quantize_",
    "quantize_activation",
    "quantizers",
    "relative_error",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from lowbit._load import core

        value: Any = core().version()
    elif name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        value = importlib.import_module(module)
        if attribute:
            value = getattr(value, attribute)
    else:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_PUBLIC})
