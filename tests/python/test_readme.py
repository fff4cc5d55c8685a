"""The README holds what it says: its Python runs, its tables name what there is. Its links: test_docs.py."""

import contextlib
import io
import re
from pathlib import Path

import torch

import lowbit
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
