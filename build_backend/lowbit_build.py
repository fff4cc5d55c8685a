"""The package's PEP 517 backend: setuptools, plus one question: where is torch?

The torch operators need torch's headers and library at build time. pip builds in an isolated environment that does not
show the packages of the environment it installs into, and naming torch as a build requirement would download another
one each time. But that environment is still there on disk, and its torch can be used without importing it. Only where
there is none is torch asked for.

LOWBIT_TORCH=<directory> names torch's package directory; LOWBIT_TORCH=OFF builds without the torch operators.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parent.parent

prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable


def torch_requirement() -> str:
    """The runtime requirement on torch, as pyproject.toml states it: ``torch>=2.11``."""
    match = re.search(r'"(torch>=\d+\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert match, "pyproject.toml names no torch>=X.Y"
    return match[1]


def _release(version: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


@dataclass(frozen=True)
class Torch:
    """A torch package on disk: its directory (holding include/ and lib/) and version."""

    directory: Path
    version: str


def _site_directories() -> Iterator[Path]:
    """Where the environment that is installed into keeps packages, most specific first."""
    for path in ("platlib", "purelib"):
        yield Path(sysconfig.get_path(path))
    if sys.prefix == sys.base_prefix:
        yield Path(site.getusersitepackages())
        yield from map(Path, site.getsitepackages())
        return
    config = Path(sys.prefix, "pyvenv.cfg")
    if config.is_file() and re.search(r"include-system-site-packages\s*=\s*true", config.read_text(), re.I):
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        for path in ("platlib", "purelib"):
            yield Path(sysconfig.get_path(path, vars=base))


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("torch")  # looks, without importing
    if spec and spec.origin:
        yield Path(spec.origin).parent
    for directory in _site_directories():
        yield directory / "torch"


def find_torch() -> Torch | None:
    """The torch to build against; None: there is none, or LOWBIT_TORCH=OFF.

    Raises:
        SystemExit: it is too old, or LOWBIT_TORCH names a directory that is no torch package.
    """
    wanted = os.environ.get("LOWBIT_TORCH", "")
    if wanted.upper() == "OFF":
        return None
    for directory in [Path(wanted)] if wanted else _candidates():
        version_file = directory / "version.py"
        if not version_file.is_file():
            continue
        match = re.search(r"^__version__ = ['\"](.+)['\"]", version_file.read_text(), re.M)
        if not match:
            continue
        found, needed = match[1], torch_requirement()
        if _release(found) < _release(needed):
            raise SystemExit(
                f"lowbit needs {needed}, and {directory} is torch {found}: upgrade it, or set LOWBIT_TORCH=OFF to "
                "build without the torch operators"
            )
        return Torch(directory.resolve(), found)
    if wanted:
        raise SystemExit(f"LOWBIT_TORCH is {wanted!r}: it must be OFF or a torch package directory")
    return None


def _requires_torch() -> list[str]:
    if os.environ.get("LOWBIT_TORCH", "").upper() == "OFF" or find_torch():
        return []
    return [torch_requirement()]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requires_torch()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_requires_torch()]


def _forget_staged_files() -> None:
    """Removes setuptools' copies of an earlier build, which would put deleted modules into a new wheel."""
    for pattern in ("lib*", "bdist*"):
        for directory in (ROOT / "build").glob(pattern):
            shutil.rmtree(directory)


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    _forget_staged_files()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    _forget_staged_files()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


if __name__ == "__main__":  # CMake's arguments for the bindings, for builds without setuptools
    import pybind11

    found = find_torch()
    print("-DLOWBIT_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    print(*(["-DLOWBIT_TORCH=ON", f"-DLOWBIT_TORCH_DIR={found.directory}"] if found else []))
