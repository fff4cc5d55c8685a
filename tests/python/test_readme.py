"""The README holds what it says: its Python runs, its tables name what there is. Its links: test_docs.py."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

import lowbit
from lowbit import formats
from lowbit._load import core
from lowbit.quantizers.scheme import PRESETS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_python_blocks_run():
    assert len(BLOCKS) >= 5
    namespace = {}  # a reader runs them one after another
    for number, block in enumerate(BLOCKS, 1):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)


def test_comments_about_output_are_true():
    weight = torch.zeros(1024, 2048)
    assert repr(lowbit.quantize(weight, "W4A16")).startswith("QuantizedTensor(int4, 1024 x 2048, groups of 1 x 128")


def test_every_preset_is_in_the_table():
    assert [name for name in PRESETS if f"`{name}`" not in README] == []


def test_every_cpu_level_is_in_the_table():
    assert [isa["name"] for isa in core().cpu_isas() if f"| `{isa['name']}` |" not in README] == []


def what_multiplies_what() -> dict[str, list[str]]:
    """The columns behind each format of the table."""
    section = README.split("## What multiplies what")[1].split("\n## ")[0]
    cells: dict[str, list[str]] = {}
    for row in re.findall(r"^\| (`.*) \|$", section, re.MULTILINE):
        names, *columns = row.split("|")
        for name in re.findall(r"`(\w+)`", names):
            assert name not in cells
            cells[name] = [column.strip() for column in columns]
    return cells


def multiplies(family: str, name: str, **where) -> bool:
    fmt = formats.get(name)
    groups = [(fmt.block_n, fmt.block_k)] if fmt.block_k else [(1, 32), (1, 128), (1, 4096)]
    return any(
        row["chosen"]
        for group_n, group_k in groups
        for accum in ("promoted", "fast")
        for row in core().explain(
            family, name, 64, 4096, 4096, group_k, "bfloat16", group_n=group_n or 1, accum=accum, **where
        )
    )


def test_every_format_is_in_the_table_of_what_multiplies_what():
    assert sorted(what_multiplies_what()) == sorted(formats.table())


@pytest.mark.parametrize("name", formats.table())
def test_what_the_cpu_multiplies(name):
    floats, int8, *_ = what_multiplies_what()[name]
    assert multiplies("weight_only", name) == (floats == "yes")
    assert multiplies("integer", name) == (int8 == "yes") == formats.get(name).integer


@pytest.mark.parametrize("name", formats.table())
def test_what_cuda_multiplies(name):
    if not {"80", "89", "90a"} <= set(core().cuda()["architectures"]):
        pytest.skip("this build lacks CUDA kernels")
    for family, column in zip(("weight_only", "integer", "fp8"), what_multiplies_what()[name][2:], strict=True):
        runs = {arch for arch in (80, 89, 90) if multiplies(family, name, device="cuda", arch=arch)}
        assert runs == {"yes": {80, 89, 90}, "8.9": {89, 90}, "9.0": {90}, "": set()}[column], family
