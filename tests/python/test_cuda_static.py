"""What nvcc made of the CUDA kernels: nothing in memory that belongs into registers, and the instructions meant.

The objects are those of the package's build if it has every architecture, else of a build of their own, which is kept
(build/cuda-static) and only repeats what changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHS = ("80", "89", "90a", "100a", "120a")
SOURCES = {path.relative_to(ROOT / "csrc/cuda").as_posix() for path in ROOT.glob("csrc/cuda/*/*.cu")}

# The instructions that do the work, by file: of which kernels, on which architectures (None: all), what each must have.
MEANT: dict[str, list[tuple[str, tuple[str, ...] | None, str]]] = {
    "sm80/weight_only.cu": [
        ("weight_only_kernel", None, r"HMMA\.16816\.F32"),
        ("weight_only_kernel", None, r"LDGSTS\.E\.(\w+\.)*128"),
    ],
    "sm80/integer.cu": [
        ("bytes_\\w+_kernel", None, r"IMMA\.16832\.S8\.S8"),
        ("bytes_tiled_kernel", None, r"LDGSTS\.E\.(\w+\.)*128"),
    ],
    # Hopper's own: warpgroup products, x and packed weights by bulk copies.
    "sm90/weight_only.cu": [
        ("weight_only_kernel", None, r"HGMMA\.64x\d+x16\.F32"),
        ("weight_only_kernel", None, r"UTMALDG"),
        ("weight_only_kernel", None, r"UBLKCP"),
    ],
    "sm90/integer.cu": [
        ("byte_x_kernel", None, r"IGMMA\.64x\d+x32\.S8\.S8"),
        ("byte_x_kernel", None, r"UTMALDG"),
        ("byte_x_kernel", None, r"UBLKCP"),
    ],
    "sm90/fp8.cu": [
        ("byte_x_kernel", None, r"QGMMA\.64x\d+x32\.F32\.E4M3\.E4M3"),
        ("byte_x_kernel", None, r"UTMALDG"),
        ("byte_x_kernel", None, r"UBLKCP"),
    ],
    "sm90/fp8_lut16.cu": [
        ("byte_x_kernel|group_kernel", None, r"QGMMA\.64x\d+x32\.F32\.E4M3\.E4M3"),
        ("byte_x_kernel|group_kernel", None, r"UTMALDG"),
    ],
    "sm89/fp8.cu": [
        ("bytes_\\w+_kernel", ("89", "120a"), r"QMMA\.16832\.F32\.E4M3\.E4M3"),
        ("bytes_tiled_kernel", None, r"LDGSTS\.E\.(\w+\.)*128"),
    ],
}


def tool(name: str, *packages: str) -> str:
    """A CUDA binary utility: of its PyPI package, or on PATH."""
    for folder in map(Path, sys.path):
        for found in folder.glob(f"nvidia/*/bin/{name}"):
            return str(found)
    found_on_path = shutil.which(name)
    if not found_on_path:
        pytest.skip(f"there is no {name}: pip install nvidia-cuda-{name}")
    return found_on_path


def nvcc() -> str:
    for candidate in (shutil.which("nvcc"), Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")):
        if candidate and Path(candidate).is_file():
            return str(candidate)
    pytest.skip("there is no nvcc, on PATH or in CUDA_HOME")


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_complete(tree: Path) -> bool:
    cache_file = tree / "CMakeCache.txt"
    archs = f"LOWBIT_CUDA_ARCHS:STRING={';'.join(ARCHS)}\n"
    objects = {path.relative_to(tree / "cuda").as_posix().removesuffix(".o") for path in tree.glob("cuda/*/*.o")}
    if not (cache_file.is_file() and archs in cache_file.read_text() and objects == SOURCES):
        return False
    newest = max(path.stat().st_mtime for path in ROOT.glob("csrc/**/*") if path.suffix in {".cu", ".h"})
    return min(path.stat().st_mtime for path in tree.glob("cuda/*/*.o")) >= newest


@pytest.fixture(scope="module")
def tree() -> Path:
    nvcc()
    of_package = ROOT / "build" / sys.implementation.cache_tag
    if is_complete(of_package):
        return of_package
    own = ROOT / "build" / "cuda-static"
    cmake = shutil.which("cmake")
    if not cmake or not shutil.which("ninja"):
        pytest.skip("cmake and ninja are not installed")
    jobs = ["--parallel", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    run(cmake, "-S", ROOT, "-B", own, "-G", "Ninja", "-DLOWBIT_CUDA=ON", f"-DLOWBIT_CUDA_ARCHS={';'.join(ARCHS)}")
    run(cmake, "--build", own, "--target", "lowbit_cuda_objects", *jobs)
    return own


@dataclass
class Kernel:
    """One kernel of one architecture."""

    source: str
    arch: str
    name: str
    registers: int = 0
    stack: int = 0
    local: int = 0
    threads: int = 0
    min_ctas: int = 1
    instructions: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return f"{self.source} for sm_{self.arch}: {self.name}"


@cache
def demangled(name: str) -> str:
    return run(shutil.which("c++filt") or tool("cu++filt"), name).strip()


def read_resources(source: str, path: Path) -> Iterator[Kernel]:
    arch = ""
    name = ""
    for line in run(tool("cuobjdump"), "--dump-resource-usage", path).splitlines():
        if match := re.match(r"arch = sm_(\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\w+):", line):
            name = match[1]
        elif name and (match := re.match(r"\s*REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line)):
            yield Kernel(source, arch, name, *map(int, match.groups()))
            name = ""


def read_instructions(path: Path, kernels: dict[tuple[str, str], Kernel]) -> None:
    process = subprocess.Popen([tool("cuobjdump"), "-sass", str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    arch = ""
    kernel = None
    instruction = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)")
    for line in process.stdout:
        if match := instruction.search(line):
            if kernel:
                kernel.instructions[match[1]] += 1
        elif match := re.match(r"\s*Function : (\w+)", line):
            kernel = kernels.get((arch, match[1]))
        elif match := re.match(r"arch = sm_(\w+)", line):
            arch, kernel = match[1], None
    assert process.wait() == 0


@pytest.fixture(scope="module")
def kernels(tree: Path) -> list[Kernel]:
    found: list[Kernel] = []
    for source in sorted(SOURCES):
        path = tree / "cuda" / f"{source}.o"
        here = list(read_resources(source, path))
        assert here, f"cuobjdump names no kernel of {path}"
        if source in MEANT:
            read_instructions(path, {(kernel.arch, kernel.name): kernel for kernel in here})
        found += here
    return found


def archs_of(source: str) -> set[str]:
    """The architectures that a folder is for."""
    number = source.split("/")[0].removeprefix("sm")
    own = {arch for arch in ARCHS if arch.rstrip("af") == number and arch != number}
    return own if int(number) >= 90 else {arch for arch in ARCHS if int(arch.rstrip("af")) >= int(number)}


def test_every_kernel_is_there_for_every_architecture(kernels: list[Kernel]) -> None:
    for source in SOURCES:
        by_arch = {
            arch: {k.name for k in kernels if k.source == source and k.arch == arch} for arch in archs_of(source)
        }
        assert all(by_arch.values()), source
        assert len({frozenset(names) for names in by_arch.values()}) == 1, source


def test_nothing_is_spilled(kernels: list[Kernel]) -> None:
    assert [f"{k}: {k.stack} bytes of stack" for k in kernels if k.stack or k.local] == []


def test_nvcc_had_nothing_to_say(tree: Path) -> None:
    """Spills, local memory, and wgmma that ptxas serialises (C7510) are warnings."""
    for source in SOURCES:
        said = (tree / "cuda" / f"{source}.o.log").read_text().splitlines()[:-2]  # the last two: times
        assert [line for line in said if re.search(r"warning|C7510", line, re.I)] == [], source


def test_the_instructions_meant_are_there(kernels: list[Kernel]) -> None:
    for source, rules in MEANT.items():
        for pattern, archs, instruction in rules:
            wanted = archs_of(source) & set(archs or ARCHS)
            for arch in sorted(wanted):
                matching = [k for k in kernels if k.source == source and k.arch == arch and re.search(pattern, k.name)]
                assert matching, f"{source} for sm_{arch} has no {pattern}"
                for kernel in matching:
                    assert any(re.match(instruction, i) for i in kernel.instructions), f"{kernel} has no {instruction}"


def test_every_mma_file_has_its_rule() -> None:
    multiplying = {
        source
        for source in SOURCES
        if re.search(r"mma|LOWBIT_(WEIGHT_ONLY|INTEGER|FP8)\b", (ROOT / "csrc/cuda" / source).read_text())
    }
    assert multiplying == set(MEANT)


def test_the_build_is_short(tree: Path) -> None:
    """On two cores, less than ten minutes: the processor time of all objects, and that of the longest."""
    seconds = {}
    for log in tree.glob("cuda/**/*.log"):
        user, system = re.findall(r"(\d+)m([\d.]+)s", log.read_text().splitlines()[-1])
        seconds[log.name] = sum(60 * int(minutes) + float(rest) for minutes, rest in (user, system))
    print(*(f"{name}: {time:.0f} s" for name, time in sorted(seconds.items())), sep="\n")
    assert sum(seconds.values()) / 2 < 600
    assert max(seconds.values()) < 600


def test_no_compiler_takes_much_memory(tree: Path) -> None:
    """At most 4 GB a job, which is what kernels.cmake counts with."""
    peaks = {peak.name: int(peak.read_text()) for peak in tree.glob("cuda/**/*.peak")}
    if not peaks:
        pytest.skip("there is no GNU time in /usr/bin to measure with")
    print(*(f"{name}: {kilobytes / 1024:.0f} MB" for name, kilobytes in sorted(peaks.items())), sep="\n")
    assert max(peaks.values()) < 4 * 1024**2
