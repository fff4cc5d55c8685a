"""The documents are true where a program can tell: links, paths, names, examples."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
FOLDERS = ["benchmarks", "build_backend", "csrc", "docs", "examples", "include", "lowbit", "tests"]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def test_api_reference_is_current():
    result = subprocess.run(
        [sys.executable, DOCS / "make_api.py", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pages
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose(page))
    if not (DOCS / "images").is_dir():  # made by benchmarks/report.py
        links = [link for link in links if not link.startswith("images/")]
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pages
def test_paths_exist(page):
    """Backticked text that begins with a folder of the tree; `<name>` stands for any."""
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./*<>-]*)`", prose(page))
    assert [path for path in named if not list(ROOT.glob(re.sub(r"<\w+>", "*", path.rstrip("/"))))] == []


def test_the_map_names_what_is_there():
    """Each line: names, parted by commas, then two blanks or more and what they are; below a folder, what it holds."""
    text = (DOCS / "architecture.md").read_text()
    tree = re.search(r"^## The map\n+```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert tree
    folders, missing = {0: ROOT}, []  # by indentation
    for line in filter(None, tree[1].splitlines()):
        indent = len(line) - len(line.lstrip())
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        missing += [line for name in names if name != "..." and not (folders[indent] / name).exists()]
        folders[indent + 2] = folders[indent] / names[0]
    assert missing == []


def test_the_call_goes_through_functions_that_are_there():
    rows = re.findall(r"^\| `(\S+)` \| `(\w+)` \|", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert len(rows) > 5
    assert [row for row in rows if not re.search(rf"\b{row[1]}\b", (ROOT / row[0]).read_text())] == []


def test_the_vector_vocabulary_is_what_generic_kernels_use():
    used = set()
    for header in (ROOT / "csrc/cpu/generic").glob("*.h"):
        code = re.sub(r"//.*", "", header.read_text())
        used |= set(re.findall(r"\bV::(?:template )?(\w+)", code))
    section = (DOCS / "adding_an_isa.md").read_text().split("## 3. The vocabulary")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)", cell)} == used


def test_the_packed_layout_example_runs():
    (example,) = blocks("packed_layout.md", "python")
    exec(compile(example, "packed_layout.md", "exec"), {})


def test_the_checkpoint_recipes_run(tmp_path, monkeypatch, capsys):
    for package in ("transformers", "safetensors"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    namespace = {}  # a reader runs them one after another
    for number, block in enumerate(blocks("checkpoints.md", "python"), 1):
        exec(compile(block, f"checkpoints.md, Python block {number}", "exec"), namespace)
    assert len(namespace["report"]) == 14
    assert namespace["tokens"].shape == (1, 12)
    x = namespace["torch"].randn(3, 256)
    assert namespace["model"](x).equal(namespace["trained"](x))
    capsys.readouterr()


def test_the_format_example_compiles(tmp_path):
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("there is no C++ compiler")
    header = blocks("adding_a_format.md", "cpp")[0]
    check = "static_assert(lowbit::value_table<lowbit::formats::fp4_e3m0>()[15] == -16);\n"
    (tmp_path / "format.cpp").write_text(header.replace("#pragma once", "") + check)
    command = [compiler, "-std=c++20", "-fsyntax-only", f"-I{ROOT}/include", f"-I{ROOT}/csrc", tmp_path / "format.cpp"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
