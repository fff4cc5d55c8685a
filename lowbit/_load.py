"""Loads the compiled parts of the package, and says in one sentence what is wrong when one does not load.

``core``      lowbit._C: the NumPy-level module; needs no torch
``load_ops``  _ops.so: registers ``torch.ops.lowbit``
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent
_REBUILD = "build it with `pip install .` (or `pip install -e .`) in the source directory"


@cache
def core() -> ModuleType:
    """The pybind11 module ``lowbit._C``.

    Raises:
        ImportError: it is not built, not for this Python, its shared library is missing or of another build, or
            LOWBIT_CPU_ISA names no CPU level.
    """
    try:
        from lowbit import _C
    except ImportError as error:
        raise ImportError(_why_no_core(error)) from error
    built, library = _C.build_info()["version"], _C.version()
    if built != library:
        raise ImportError(f"lowbit's module is version {built} and its liblowbit.so version {library}: {_REBUILD}")
    wanted, levels = os.environ.get("LOWBIT_CPU_ISA"), [isa["name"] for isa in _C.cpu_isas()]
    if wanted and wanted not in levels:
        raise ImportError(f"LOWBIT_CPU_ISA is {wanted!r}: it must be one of {', '.join(levels)}")
    return _C


def _why_no_core(error: ImportError) -> str:
    built = sorted(path.name for path in _PACKAGE.glob("_C.*.so"))
    if not built:
        return f"lowbit is not built: there is no _C in {_PACKAGE}; {_REBUILD}"
    if not (_PACKAGE / "liblowbit.so").exists():
        return f"lowbit is half installed: liblowbit.so is missing from {_PACKAGE}; {_REBUILD}"
    return f"lowbit's compiled module does not load ({error}); {_PACKAGE} holds {', '.join(built)}; {_REBUILD}"


@cache
def load_ops() -> None:
    """Registers the operators ``torch.ops.lowbit.*``.

    Raises:
        ImportError: they are not built, or this torch is too old for them or otherwise does not fit.
    """
    info = core().build_info()
    built_with, floor = info["torch"], info["torch_floor"]
    if built_with is None:
        raise ImportError(f"lowbit was built without its torch operators (LOWBIT_TORCH=OFF); {_REBUILD}")
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ImportError(f"lowbit's operators need torch >= {floor}, which is not installed") from error
    if _release(torch.__version__) < _release(floor):
        raise ImportError(f"lowbit needs torch >= {floor}, and this is torch {torch.__version__}")
    library = _PACKAGE / "_ops.so"
    if not library.exists():
        raise ImportError(f"lowbit is half installed: _ops.so is missing from {_PACKAGE}; {_REBUILD}")
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"lowbit's operators, built with torch {built_with}, do not load into torch {torch.__version__}: "
            f"{error.__cause__ or error}; {_REBUILD}"
        ) from error


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
