"""Tries other values of constants in the CPU kernels: builds the library with each, and times all of them in turns.

python benchmarks/sweep.py csrc/cpu/amx/tuning.h slab_steps=4,16 slab_tiles=16 -- --threads 2 --schemes W4A16 --m 64,256

A constant is a line ``constexpr T name = value;`` of the header. The first column has the values as they are, each
other one a single constant changed. What follows ``--`` goes to ``cpu_limits``: times in us, or with ``--cached`` in
cycles for a line of codes; medians over the turns.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("CMakeLists.txt", "benchmarks", "cmake", "csrc", "include")
BINARIES = ("cpu_limits", "liblowbit.so")
Cells = dict[tuple[str, ...], float]


def with_value(text: str, name: str, value: str) -> str:
    """The header's text with another value of one constant."""
    changed, count = re.subn(rf"(constexpr [\w: ]+ {name} = )[^;]+;", rf"\g<1>{value};", text)
    if count != 1:
        raise ValueError(f"the header has {count} lines 'constexpr T {name} = value;', one is expected")
    return changed


def build(header: Path, texts: dict[str, str], folder: Path) -> None:
    """One tree of sources, built with each text of the header: what differs is compiled again."""
    tree = folder / "tree"
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, dirs_exist_ok=True)
        else:
            shutil.copy2(ROOT / name, tree / name)
    flags = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
        "-DLOWBIT_BUILD_BENCHMARKS=ON",
        "-DLOWBIT_CUDA=OFF",
    ]
    subprocess.run(["cmake", "-S", tree, "-B", folder / "build", *flags], check=True, stdout=subprocess.DEVNULL)
    for number, (name, text) in enumerate(texts.items()):
        print(f"building {name} ({number + 1} of {len(texts)})", file=sys.stderr)
        (tree / header).write_text(text)
        subprocess.run(["cmake", "--build", folder / "build", "--parallel"], check=True, stdout=subprocess.DEVNULL)
        (folder / name).mkdir(exist_ok=True)
        for binary in BINARIES:
            shutil.copy2(folder / "build" / binary, folder / name / binary)


def measure(program: Path, arguments: list[str]) -> Cells:
    """A run of ``cpu_limits``: scheme, shape and m, and the figure after them."""
    lines = subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("scheme"))
    figure = 2 if "cycles/line" in lines[start] else 3
    return {tuple(words[:figure]): float(words[figure]) for words in map(str.split, lines[start + 1 :])}


def main() -> None:
    """Builds, measures and prints."""
    arguments = sys.argv[1:]
    at = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("header", type=Path, help="from the root of the project")
    parser.add_argument("values", nargs="+", metavar="constant=value,value")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sweep")
    options = parser.parse_args(arguments[:at])

    text = (ROOT / options.header).read_text()
    texts = {"as it is": text}
    for assignment in options.values:
        name, _, values = assignment.partition("=")
        texts |= {f"{name}={value}": with_value(text, name, value) for value in values.split(",")}
    build(options.header, texts, options.folder)

    times: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for turn in range(options.turns):
        print(f"turn {turn + 1} of {options.turns}", file=sys.stderr)
        for name in texts:
            for cell, time in measure(options.folder / name / "cpu_limits", arguments[at + 1 :]).items():
                times[cell][name].append(time)

    widths = [max(len(name), 10) for name in texts]
    print(" " * 30, *(name.rjust(width) for name, width in zip(texts, widths, strict=True)))
    for cell, by_name in times.items():
        figures = (f"{median(by_name[name]):.1f}".rjust(width) for name, width in zip(texts, widths, strict=True))
        print(" ".join(cell).ljust(30), *figures)


if __name__ == "__main__":
    main()
