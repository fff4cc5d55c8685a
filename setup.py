"""Builds the package's libraries with CMake and puts them beside its modules. Metadata: pyproject.toml.

Environment variables:
    MAX_JOBS            compiler processes at a time
    LOWBIT_CUDA         AUTO (build the CUDA kernels where nvcc is found; the default), ON or OFF
    LOWBIT_CUDA_ARCHS   GPU architectures, for example "80;90a"
    LOWBIT_TORCH        OFF: no torch operators; or torch's package directory (default: found, see build_backend)
    CMAKE_ARGS          further arguments to CMake
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))

from lowbit_build import find_torch, torch_requirement  # noqa: E402


def program(name: str) -> str:
    path = shutil.which(name)
    if not path:
        raise SystemExit(f"lowbit: the build needs {name}: pip install {name}")
    return path


def pybind11_directory() -> str:
    try:
        import pybind11
    except ImportError:
        raise SystemExit("lowbit: the build needs pybind11: pip install pybind11") from None
    return str(pybind11.get_cmake_dir())


def torch_arguments() -> list[str]:
    if os.environ.get("LOWBIT_TORCH", "").upper() == "OFF":
        return ["-DLOWBIT_TORCH=OFF"]
    torch = find_torch()
    if not torch:
        raise SystemExit(
            f"lowbit: the build needs {torch_requirement()} and finds none: install it first, or set LOWBIT_TORCH=OFF "
            "to build without the torch operators"
        )
    return ["-DLOWBIT_TORCH=ON", f"-DLOWBIT_TORCH_DIR={torch.directory}"]


class CMakeBuild(build_ext):
    def run(self) -> None:
        tree = ROOT / "build" / sys.implementation.cache_tag
        cache = tree / "CMakeCache.txt"
        if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
            shutil.rmtree(tree)  # copied here with the sources: CMake refuses it
        arguments = [
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={program('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11_directory()}",
            "-DLOWBIT_PYTHON=ON",
            *torch_arguments(),
            *(f"-D{name}={os.environ[name]}" for name in ("LOWBIT_CUDA", "LOWBIT_CUDA_ARCHS") if name in os.environ),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        jobs = os.environ.get("MAX_JOBS")
        in_place = self.inplace or self.editable_mode
        target = ROOT if in_place else Path(self.build_lib).resolve()
        cmake = program("cmake")
        for command in (
            [cmake, "-S", ROOT, "-B", tree, "-G", "Ninja", *arguments],
            [cmake, "--build", tree, *(["--parallel", jobs] if jobs else [])],
            [cmake, "--install", tree, "--component", "package", "--prefix", target],
        ):
            subprocess.run(command, check=True)


setup(ext_modules=[Extension("lowbit._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
