"""The hot loops of the ARM levels, read from what the cross compiler makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "aarch64-linux-gnu-"

pytestmark = pytest.mark.skipif(
    not (shutil.which(TOOLS + "g++") and shutil.which(TOOLS + "objdump")),
    reason="there is no g++-aarch64-linux-gnu",
)

# level, multiply instruction, how many the largest tile's loop holds
LOOPS = [
    ("neon", "fmla", 6 * 4),
    ("neon", "smull", 4 * 4),
    ("neon_dotprod", "sdot", 3 * 8 * 4),
    ("neon_i8mm", "usdot", 3 * 8 * 4),
    ("neon_i8mm", "usmmla", 4 * 4),
    ("neon_bf16", "bfmmla", 4 * 4),
]
DECODERS = [("neon", "tbl", 16), ("neon_bf16", "tbl", 16)]


def level_flags(level: str) -> list[str]:
    text = (ROOT / "csrc/cpu" / level / "flags.cmake").read_text()
    match = re.search(r"set\(LOWBIT_ISA_FLAGS([^)]*)\)", text)
    assert match
    return match[1].split()


@pytest.fixture(scope="module")
def disassembly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of each level's kernels.cpp, compiled as CMakeLists.txt says."""
    shared = re.search(r"INTERFACE (-ffp-contract=\S+ \S+)", (ROOT / "CMakeLists.txt").read_text())
    assert shared
    found = {}
    for level in sorted({level for level, *_ in LOOPS}):
        out = tmp_path_factory.mktemp("arm") / f"{level}.o"
        source = ROOT / "csrc/cpu" / level / "kernels.cpp"
        flags = ["-std=c++20", "-O3", "-DNDEBUG", "-fPIC", "-fno-exceptions", *shared[1].split(), *level_flags(level)]
        includes = [f"-I{ROOT}/csrc", f"-I{ROOT}/include"]
        subprocess.run([TOOLS + "g++", *flags, *includes, "-c", source, "-o", out], check=True)
        command = [TOOLS + "objdump", "--disassemble", "--no-show-raw-insn", out]
        found[level] = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return found


def inner_loops(text: str) -> Iterator[list[str]]:
    """The instructions of each loop that holds no other."""
    for function in re.split(r"\n(?=[0-9a-f]{16} <)", text):
        lines = re.findall(r"^\s*([0-9a-f]+):\t(.*?)(?:\s+//.*)?$", function, re.M)
        index = {int(address, 16): i for i, (address, _) in enumerate(lines)}
        loops = []
        for end, (address, instruction) in enumerate(lines):
            jump = re.match(r"(?:b(?:\.\w+)?|cbn?z|tbn?z)\t(?:.*, )?([0-9a-f]+) <", instruction)
            if jump and int(jump[1], 16) <= int(address, 16) and int(jump[1], 16) in index:
                loops.append((index[int(jump[1], 16)], end))
        for first, last in loops:
            if not any((a, b) != (first, last) and first <= a and b <= last for a, b in loops):
                yield [instruction for _, instruction in lines[first : last + 1]]


def loops_with(text: str, name: str, least: int) -> list[list[str]]:
    return [loop for loop in inner_loops(text) if sum(x.split()[0] == name for x in loop) >= least]


@pytest.mark.parametrize(("level", "name", "most"), LOOPS, ids=[f"{x[0]}-{x[1]}" for x in LOOPS])
def test_multiply_loops_stay_in_registers(disassembly: dict[str, str], level: str, name: str, most: int) -> None:
    loops = loops_with(disassembly[level], name, 8)
    loops = [loop for loop in loops if not any(x.startswith("fsub") for x in loop)]  # decoders fuse, too: W - zero, ...
    assert max(sum(x.split()[0] == name for x in loop) for loop in loops) == most
    for loop in loops:
        assert [x for x in loop if "[sp" in x or x.startswith("st")] == [], "spills"
        loads = [x for x in loop if x.startswith("ld")]
        assert loads
        assert [x for x in loads if not re.match(r"(ldp|ldu?r)\tq\d|ld1\t\{v\d+\.16b", x)] == [], "narrow loads"


@pytest.mark.parametrize(("level", "name", "least"), DECODERS, ids=[f"{x[0]}-{x[1]}" for x in DECODERS])
def test_four_bit_codes_are_looked_up_16_at_a_time(
    disassembly: dict[str, str], level: str, name: str, least: int
) -> None:
    loops = loops_with(disassembly[level], name, least)
    assert loops
    for loop in loops:
        tables = [x for x in loop if x.startswith(name)]
        assert all(re.match(r"tbl\tv\d+\.16b, \{v\d+\.16b\}, v\d+\.16b", x) for x in tables)


def test_levels_use_what_they_are_for(disassembly: dict[str, str]) -> None:
    """A level below has none of the instructions of the levels above it."""
    newer = {"neon": ["sdot", "usdot", "usmmla", "bfmmla"], "neon_dotprod": ["usdot", "usmmla", "bfmmla"]}
    for level, names in newer.items():
        used = Counter(re.findall(r"^\s*[0-9a-f]+:\t(\w+)", disassembly[level], re.M))
        assert [name for name in names if used[name]] == []
