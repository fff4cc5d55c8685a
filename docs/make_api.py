"""Writes docs/api.md from the docstrings: ``python docs/make_api.py``; ``--check`` only says whether it is current."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lowbit
import lowbit.canonical
import lowbit.checkpoints
import lowbit.checkpoints.compressed_tensors
import lowbit.checkpoints.gguf_blocks
import lowbit.cupy
import lowbit.formats
import lowbit.info
import lowbit.model
import lowbit.nn
import lowbit.ops
import lowbit.quantizers.rules
from lowbit.quantizers import PRESETS

OUTPUT = Path(__file__).with_name("api.md")
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Shape):")
ITEM = re.compile(r"([\w\[\], .*]+?): (.*)", re.DOTALL)

# What the page shows, in order: title, and the objects under it.
PAGE: list[tuple[str, list[Any]]] = [
    (
        "Quantizing",
        [lowbit.quantize, lowbit.Scheme, lowbit.QuantizedTensor, lowbit.canonical.Canonical, lowbit.relative_error],
    ),
    ("Scale rules", list(lowbit.quantizers.rules.RULES.values())),
    ("Multiplying", [lowbit.linear, lowbit.quantize_activation, lowbit.QuantizedActivation]),
    ("CuPy", [lowbit.cupy.pack, lowbit.cupy.linear, lowbit.cupy.dequantize, lowbit.cupy.PackedWeight]),
    (
        "Layers and models",
        [lowbit.nn.Linear, lowbit.nn.BitLinear, lowbit.quantize_, lowbit.Report, lowbit.model.LayerReport],
    ),
    (
        "Checkpoints",
        [
            lowbit.load_pretrained,
            lowbit.save_pretrained,
            lowbit.checkpoints.compressed_tensors,
            lowbit.checkpoints.save_model,
            lowbit.checkpoints.load_model,
            lowbit.checkpoints.save_file,
            lowbit.checkpoints.load_file,
            lowbit.checkpoints.gguf.open,
            lowbit.checkpoints.gguf.File,
            lowbit.checkpoints.gguf.TensorInfo,
            lowbit.checkpoints.gguf_blocks,
        ],
    ),
    ("What runs where", [lowbit.explain, lowbit.info.Explanation, lowbit.info.Candidate]),
    ("Formats", [lowbit.formats.Format, lowbit.formats.get, lowbit.formats.table]),
    ("Operators", [lowbit.ops]),
]


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        current = OUTPUT.exists() and OUTPUT.read_text() == text
        print(f"{OUTPUT} is {'current' if current else 'not current: run python docs/make_api.py'}")
        return 0 if current else 1
    OUTPUT.write_text(text)
    return 0


def page() -> str:
    parts = [
        "# API\n",
        "<!-- Written by docs/make_api.py from the docstrings: change those. -->\n",
        markdown(inspect.getdoc(lowbit) or ""),
        presets(),
    ]
    for title, things in PAGE:
        parts.append(f"## {title}\n")
        parts += [entry(thing) for thing in things]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def presets() -> str:
    lines = ["## Presets\n", "| name | format | group | activations | bits per weight |", "|---|---|---|---|---|"]
    for name in PRESETS:
        scheme = lowbit.Scheme.preset(name)
        fmt = lowbit.formats.get(scheme.format)
        group = scheme.group(4096, 4096)
        words = {(1, 4096): "a row", (4096, 4096): "the tensor"}
        size = words.get(group) or (str(group[1]) if group[0] == 1 else f"{group[0]} x {group[1]}")
        kind = fmt.name + ("" if scheme.symmetric else ", zero points")
        activations = "float"
        if scheme.activation:
            part = f"{scheme.activation_group} columns of a row" if scheme.activation_group else "row"
            activations = f"{scheme.activation}, per {part}" + (" (CPU: float)" if scheme.activation == "fp8" else "")
        scale_bits = 8 * scheme.scales(lowbit.formats.FLOATS[2]).itemsize + (0 if scheme.symmetric else fmt.bits)
        bits = fmt.bits + scale_bits / (group[0] * group[1])
        lines.append(f"| `{name}` | {kind} | {size} | {activations} | {bits:.4g} |")
    lines.append("\nBits per weight are those of a bfloat16 weight of 4096 x 4096.\n")
    return "\n".join(lines)


def entry(thing: Any) -> str:
    if isinstance(thing, ModuleType):
        return f"### `{thing.__name__}`\n\n{markdown(inspect.getdoc(thing) or '')}\n"
    public = public_name(thing)
    parts = [heading(public, thing), markdown(inspect.getdoc(thing) or "")]
    if inspect.isclass(thing):
        for name, member in members(thing):
            parts.append(member_line(name, member))
    return "\n".join(parts) + "\n"


def public_name(thing: Any) -> str:
    """``lowbit.quantize`` for what the package itself offers, else the full path."""
    if getattr(lowbit, thing.__name__, None) is thing:
        return f"lowbit.{thing.__name__}"
    module = thing.__module__
    if getattr(lowbit.checkpoints, thing.__name__, None) is thing:
        module = "lowbit.checkpoints"
    return f"{module}.{thing.__qualname__}"


def heading(name: str, thing: Any) -> str:
    return f"### `{name}`\n\n```python\n{signature(name.rpartition('.')[2], thing)}\n```\n"


class Verbatim:
    """An annotation as it is written, without the quotes of a string."""

    def __init__(self, annotation: str) -> None:
        self.annotation = annotation

    def __repr__(self) -> str:
        return self.annotation


def signature(name: str, thing: Any) -> str:
    """On one line where it fits, else a parameter on each."""
    sig = inspect.signature(thing)
    parameters: list[str] = []
    for p in sig.parameters.values():
        if p.name in ("self", "cls"):
            continue
        if p.kind is p.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        verbatim = isinstance(p.annotation, str)
        parameters.append(str(p.replace(annotation=Verbatim(p.annotation)) if verbatim else p))
    result = f" -> {sig.return_annotation}" if isinstance(sig.return_annotation, str) else ""
    if inspect.isclass(thing):
        result = ""
    line = f"{name}({', '.join(parameters)}){result}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parameters) + f",\n){result}"


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that the class itself defines and documents, in source order."""
    for name, member in vars(cls).items():
        if name.startswith("_") or name == "forward":
            continue
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if (inspect.isfunction(function) or isinstance(member, property)) and function.__doc__:
            yield name, member


def member_line(name: str, member: Any) -> str:
    if isinstance(member, property):
        return f"- **`.{name}`** {indent(markdown(inspect.getdoc(member) or ''))}"
    function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    doc = indent(markdown(inspect.getdoc(function) or ""))
    call = " ".join(signature(name, function).split()).replace("( ", "(").replace(", )", ")")
    return f"- **`.{call}`**\n\n  {doc}\n"


def indent(text: str) -> str:
    return text.strip().replace("\n", "\n  ").replace("\n  \n", "\n\n")


def markdown(doc: str) -> str:
    """A Google-style docstring as Markdown: sections as bold words, their items as lists."""
    out: list[str] = []
    section = ""
    for line in code_tables(doc).splitlines():
        match = SECTION.fullmatch(line)
        if match:
            section = match[1]
            out += ["", f"**{section}**", ""]
        elif section and line and not line.startswith(" "):
            section = ""
            out.append(line)
        elif section in ("Returns", "Shape"):
            out.append(line.strip())
        elif section and line.startswith("    ") and not line.startswith("     "):
            item = ITEM.fullmatch(line.strip())
            out.append(f"- `{item[1]}`: {item[2]}" if item else f"- {line.strip()}")
        elif section:
            out.append("  " + line.strip() if line.strip() else "")
        else:
            out.append(line)
    text = re.sub(r"``([^`]+)``", r"`\1`", "\n".join(out))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def code_tables(doc: str) -> str:
    """Tables in reStructuredText are shown as they are, in a code block."""
    lines = doc.splitlines()
    rules = [i for i, line in enumerate(lines) if re.fullmatch(r"=+( +=+)+", line)]
    if len(rules) >= 2:
        lines[rules[-1]] = "```"
        lines[rules[0]] = "```text"
        lines[rules[0] + 1 : rules[-1]] = [line.replace("``", "") for line in lines[rules[0] + 1 : rules[-1]]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
