"""The build keeps its promises: who includes whom, what objects hold and libraries export, what import does."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lowbit
from lowbit._load import core

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
PACKAGE = Path(lowbit.__file__).resolve().parent
OBJECTS = ROOT / "build" / sys.implementation.cache_tag / "CMakeFiles" / "lowbit_core.dir" / "csrc"

X86 = platform.machine() == "x86_64"


def sources(*folders: str) -> list[Path]:
    files = [
        path
        for folder in folders or ("",)
        for path in (CSRC / folder).rglob("*")
        if path.suffix in {".h", ".cpp", ".inc", ".cu", ".cuh"}
    ]
    assert files
    return files


def code(path: Path) -> str:
    """The text without comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.S)


def where(path: Path) -> str:
    return str(path.relative_to(CSRC))


# ---- includes ----

TORCH = re.compile(r"#\s*include\s*[<\"](torch|ATen|c10)/|\b(torch|at|c10)::|\baoti_torch_|\btorch_[a-z]+_?\w*\(")
CUDA = re.compile(
    r"#\s*include\s*[<\"](cuda\w*\.h|cublas|cutlass|nvrtc)|\bcuda[A-Z]\w*\(|__global__|__device__|__shared__"
)
PYTHON = re.compile(r"#\s*include\s*[<\"](Python\.h|pybind11/)|\bpy::|\bPy[A-Z]\w*\(")


@pytest.mark.parametrize(
    ("names", "home"), [(TORCH, "torch"), (CUDA, "cuda"), (PYTHON, "python")], ids=["torch", "cuda", "python"]
)
def test_only_its_own_folder_names_it(names: re.Pattern[str], home: str) -> None:
    folder = [path for path in sources() if where(path).startswith(f"{home}/")]
    assert [where(path) for path in sources() if path not in folder and names.search(code(path))] == []
    if folder:
        assert any(names.search(code(path)) for path in folder)  # the pattern does find it


def test_bindings_see_the_public_header_alone() -> None:
    for path in sources("torch", "python"):
        own = {file.name for file in path.parent.iterdir()}
        for name in re.findall(r'#include "([^"]+)"', path.read_text()):
            assert name in own or name == "lowbit/lowbit.h", f"{where(path)} includes {name}"


# Whoever includes must not stand before what it includes. The layout needs only errors and threads of gemm.
LAYERS = ["formats/", "gemm/status.h", "layout/", "gemm/", ("cpu/", "cuda/"), "dispatch/", "api"]


def layer(name: str) -> int:
    for rank, prefix in enumerate(LAYERS):
        if name.startswith(prefix):
            return rank
    raise AssertionError(f"csrc/{name} belongs to no layer")


def test_includes_run_one_way() -> None:
    for path in sources():
        if where(path).startswith(("torch/", "python/")):
            continue
        for name in re.findall(r'#include "([^"]+)"', path.read_text()):
            if name == "lowbit/lowbit.h":
                continue
            assert (CSRC / name).is_file(), f"{where(path)} includes {name}: give the path from csrc/"
            assert layer(name) <= layer(where(path)), f"{where(path)} includes {name}, which is above it"


def test_every_cpu_level_is_a_folder_and_a_line() -> None:
    levels = set(re.findall(r"^LOWBIT_CPU_ISA\((\w+)", (CSRC / "dispatch" / "cpu_isas.inc").read_text(), re.M))
    folders = {path.parent.name for path in CSRC.glob("cpu/*/flags.cmake")}
    assert levels == folders


# ---- what the objects hold ----


@pytest.fixture(scope="module")
def objects() -> list[Path]:
    if not OBJECTS.is_dir():
        pytest.skip(f"the package was not built here: there is no {OBJECTS}")
    if not shutil.which("nm") or not shutil.which("objdump"):
        pytest.skip("binutils (nm, objdump) are not installed")
    built = [path for path in OBJECTS.rglob("*.o") if (CSRC / path.relative_to(OBJECTS).with_suffix("")).is_file()]
    assert built
    return built


def level_of(path: Path) -> str | None:
    parts = path.relative_to(OBJECTS).parts
    return parts[1] if parts[0] == "cpu" else None


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(type, demangled name) of every symbol."""
    lines = run("nm", "--demangle", "--format=posix", *options, path).splitlines()
    return [(m[2], m[1]) for line in lines if (m := re.match(r"(.+?) ([A-Za-z])(?: [0-9a-f]+)* *$", line))]


def test_kernel_objects_define_only_their_own(objects: list[Path]) -> None:
    """An inline function compiled with a level's flags must not become everybody's copy of it.

    The linker keeps one of the weak copies of an inline function; were it this one, a machine without the level would
    meet its instructions.
    """
    for path in objects:
        level = level_of(path)
        if level:
            for kind, name in symbols(path, "--defined-only", "--extern-only"):
                own = kind in "TDRB" and name.startswith(f"lowbit::cpu::{level}::")
                assert own, f"{level}/{path.name} defines '{name}' ({kind})"


@pytest.mark.skipif(not X86, reason="reads x86-64 instructions")
def test_common_objects_need_no_more_than_the_baseline(objects: list[Path]) -> None:
    for path in objects:
        if level_of(path) in (None, "scalar"):
            text = run("objdump", "--disassemble", "--no-show-raw-insn", path)
            newer = re.findall(r"^\s*[0-9a-f]+:\s+(v[a-z]\w+|tile\w+|t[dl]\w+) .*%|%[yzt]mm\d", text, re.M)
            assert newer == [], path.name


@pytest.mark.skipif(not X86, reason="reads x86-64 instructions")
def test_levels_use_what_they_are_for(objects: list[Path]) -> None:
    """The test above would pass if objdump printed something else."""
    text = "".join(run("objdump", "--disassemble", path) for path in objects if level_of(path) == "amx")
    assert "%zmm" in text
    assert "%tmm" in text


# ---- what the libraries export ----


def exported(name: str) -> list[str]:
    if not shutil.which("nm"):
        pytest.skip("nm is not installed")
    (library,) = PACKAGE.glob(name)
    return [symbol for kind, symbol in symbols(library, "--dynamic", "--defined-only") if kind in "TDRBWV"]


def test_library_exports_the_header() -> None:
    declared = set(
        re.findall(r"^LOWBIT_API [^(]*\b(lowbit_\w+)\(", (ROOT / "include/lowbit/lowbit.h").read_text(), re.M)
    )
    assert set(exported("liblowbit.so")) == declared


def test_bindings_need_no_cpp_symbol_of_torch_or_the_core() -> None:
    """Torch's C++ symbols change between its versions; its stable ABI is C."""
    if not shutil.which("nm"):
        pytest.skip("nm is not installed")
    for name in ("_ops.so", "_C.*.so"):
        (library,) = PACKAGE.glob(name)
        for _, symbol in symbols(library, "--dynamic", "--undefined-only"):
            assert not re.match(r"(c10|at|torch|lowbit)::", symbol), f"{name} needs {symbol}"


# ---- what import does ----


def python(script: str) -> str:
    return run(sys.executable, "-c", script)


def test_import_touches_no_device() -> None:
    assert python("import lowbit, torch, lowbit.ops; print(torch.cuda.is_initialized())") == "False\n"


def test_core_needs_no_torch() -> None:
    script = (
        "import sys, lowbit; from lowbit import _C; _C.formats(); print(lowbit.__version__, 'torch' in sys.modules)"
    )
    assert python(script) == f"{lowbit.__version__} False\n"


def test_versions_agree() -> None:
    stated = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert stated
    assert stated[1] == lowbit.__version__ == core().version() == core().build_info()["version"]


# ---- what is said when something is missing ----


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package as installed, to be damaged."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "lowbit", ignore=shutil.ignore_patterns("__pycache__"))).parent


def complaint(directory: Path, script: str) -> str:
    """The last line of the traceback."""
    command = f"""import sys
sys.path.insert(0, {str(directory)!r})
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]  # would find the real one
{script}"""
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode, f"no complaint: {result.stdout}"
    return result.stderr.strip().splitlines()[-1]


LOAD = "from lowbit._load import load_ops; load_ops()"


def test_an_unbuilt_package_says_so(copy: Path) -> None:
    for library in (copy / "lowbit").glob("*.so"):
        library.unlink()
    assert re.fullmatch(
        r"ImportError: lowbit is not built: there is no _C in .*; build it with .*", complaint(copy, LOAD)
    )


def test_a_missing_library_is_named(copy: Path) -> None:
    (copy / "lowbit" / "liblowbit.so").unlink()
    assert "ImportError: lowbit is half installed: liblowbit.so is missing from" in complaint(copy, LOAD)


def test_missing_operators_are_named(copy: Path) -> None:
    (copy / "lowbit" / "_ops.so").unlink()
    assert "ImportError: lowbit is half installed: _ops.so is missing from" in complaint(copy, LOAD)


def test_operators_that_do_not_load_say_why(copy: Path) -> None:
    (copy / "lowbit" / "_ops.so").write_bytes(b"no library" * 100)
    said = complaint(copy, LOAD)
    assert re.match(
        r"ImportError: lowbit's operators, built with torch \S+, do not load into torch \S+: .*invalid", said
    )


def test_an_old_torch_is_named(copy: Path) -> None:
    said = complaint(copy, f"import torch; torch.__version__ = '2.4.1'\n{LOAD}")
    assert said == f"ImportError: lowbit needs torch >= {core().build_info()['torch_floor']}, and this is torch 2.4.1"
