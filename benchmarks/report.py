"""Turns the JSON of ``pytest benchmarks --benchmark-only --benchmark-json=run.json`` into a plot and tables.

python benchmarks/report.py run.json                                     the tables, on the screen
python benchmarks/report.py run.json --plot docs/images/roofline         PNG and SVG
python benchmarks/report.py run.json --insert docs/performance.md        the tables, between that file's marks
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

MULTIPLY = ("f32", "bf16", "int8")
Row = dict[str, Any]


def load(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The whole JSON, and the rows of the linear benchmarks in the order of the run."""
    run = json.loads(path.read_text())
    rows = [row["extra_info"] for row in run["benchmarks"] if "percent_of_limit" in row["extra_info"]]
    if not rows:
        raise ValueError(f"{path} holds {len(run['benchmarks'])} benchmarks and none of test_linear")
    return run, rows


def cases(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by (scheme, dtype of the activations)."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["scheme"], row["x_dtype"]), []).append(row)
    return found


def title(case: tuple[str, str]) -> str:
    """``W4A16``, with the dtype of the activations where it is not bfloat16."""
    return case[0] if case[1] == "bfloat16" else f"{case[0]}, {case[1]}"


def multiply_peak(row: Row) -> tuple[str, float]:
    """Which unit binds the row, and its operations per second."""
    return next((what, value) for what, value in row["limits"].items() if what in MULTIPLY)


def best_peer(row: Row) -> tuple[str, dict[str, float]] | None:
    """The fastest peer of a row."""
    return min(row["peers"].items(), key=lambda peer: peer[1]["median_us"], default=None)


# ---- Markdown ----


def ratio_cell(ratio: float) -> str:
    """How many times faster than the peer; marked where it is not faster."""
    return f"{ratio:.2f}" if ratio >= 1 else f"**▼ {ratio:.2f}**"


def table(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table, its first column left, all others right."""
    lines = [head, [":--"] + ["--:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(run: dict[str, Any], rows: list[Row]) -> str:
    """What it ran on, in a few lines."""
    info, limits = run["machine_info"], run.get("limits", {})
    own = info.get("lowbit", {})
    cpu = info.get("cpu", {})
    system = own.get("platform", "?").split("-")[0]
    units = {"read_bandwidth": ("read bandwidth", "GB/s", 1e9)} | {
        what: (f"{what} multiply", "TOPS", 1e12) for what in MULTIPLY
    }
    measured = [
        f"{name} {limits[what] / scale:.3g} {unit}" for what, (name, unit, scale) in units.items() if what in limits
    ]
    return "\n".join(
        [
            f"- {cpu.get('brand_raw', 'unknown')}, {own.get('threads')} threads, CPU level `{own.get('cpu_isa')}`",
            f"- lowbit {own.get('lowbit', '?')}, torch {own.get('torch', '?')}, {system}",
            f"- commit `{(run.get('commit_info') or {}).get('id', '?')[:12]}`, {run.get('datetime', '?')[:16]}",
            f"- limits measured during the run (medians): {', '.join(measured)}",
            *disturbance(rows),
        ]
    )


def disturbance(rows: list[Row]) -> list[str]:
    """A line on what others took of the machine meanwhile, if it is known."""
    percents = [row["others_percent"] for row in rows if row.get("others_percent") is not None]
    if not percents:
        return []
    return [f"- others took {median(percents):.0f} % of the processors (median; at most {max(percents):.0f} %)"]


def summary(rows: list[Row]) -> str:
    """For each case and m: percent of the limit, and the ratio to the best peer, over the shapes."""
    sizes = sorted({row["m"] for row in rows})
    head = ["scheme", *(f"m = {m}" for m in sizes)]
    body = []
    for case, found in cases(rows).items():
        cells = [title(case)]
        for m in sizes:
            here = [row for row in found if row["m"] == m]
            if not here:
                cells.append("")
                continue
            percent = median(row["percent_of_limit"] for row in here)
            ratios = [peer[1]["ratio"] for row in here if (peer := best_peer(row))]
            cells.append(f"{percent:.0f} %" + (f", {ratio_cell(geometric_mean(ratios))}" if ratios else ""))
        body.append(cells)
    return table(head, body)


def details(found: list[Row]) -> str:
    """One row for each shape and m of a case."""
    peers = list(dict.fromkeys(name for row in found for name in row["peers"]))
    head = ["n × k", "m", "µs [p5 – p95]", "GB/s", "TOPS", "% of limit", "bound", *peers]
    body = []
    for row in sorted(found, key=lambda row: (row["n"] * row["k"], row["n"], row["m"])):
        ratios = [ratio_cell(row["peers"][name]["ratio"]) if name in row["peers"] else "" for name in peers]
        what = "memory" if row["bound"] == "memory" else multiply_peak(row)[0]
        body.append(
            [
                f"{row['n']} × {row['k']}",
                str(row["m"]),
                f"{row['median_us']:.0f} [{row['p5_us']:.0f} – {row['p95_us']:.0f}]",
                f"{row['gb_per_s']:.1f}",
                f"{row['tops']:.2f}",
                f"{row['percent_of_limit']:.0f}",
                what,
                *ratios,
            ]
        )
    return table(head, body)


SUMMARY = (
    "Percent of the machine's limit (read bandwidth or multiply peak, whichever binds), median over the shapes; then "
    "how many times faster than the best peer of the same problem (geometric mean; ▼: slower)."
)


def markdown(run: dict[str, Any], rows: list[Row]) -> str:
    """The whole report."""
    parts = [
        "### Machine",
        machine(run, rows),
        "### Summary",
        SUMMARY,
        summary(rows),
        "### Details",
        "Times are medians. Peer columns: their time divided by ours, above 1 where ours is faster.",
    ]
    for case, found in cases(rows).items():
        kernels = ", ".join(sorted({f"`{row['kernel']}`" for row in found}))
        error = max(row["relative_error"] for row in found)
        facts = f"Format `{found[0]['format']}`, kernels {kernels}, largest relative error {error:.1e}."
        parts += [f"#### {title(case)}", facts, details(found)]
    return "\n\n".join(parts) + "\n"


BEGIN, END = "<!-- measured: benchmarks/report.py --insert writes from here -->", "<!-- to here -->"


def insert(document: str, text: str) -> str:
    """The document with ``text`` between its two marks.

    Raises:
        ValueError: it does not have both, once.
    """
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise ValueError(f"the document must hold each of these lines once: {BEGIN!r} and {END!r}")
    before, after = document.index(BEGIN) + len(BEGIN), document.index(END)
    return f"{document[:before]}\n\n{text}\n{document[after:]}"


# ---- plot ----

INK, GRID, ROOF, OURS, THEIRS = "#22272e", "#e6e9ee", "#22272e", "#1769e0", "#b4bac4"
MARKERS = ["o", "s", "^", "D"]


def plot(run: dict[str, Any], rows: list[Row], stem: Path) -> list[Path]:
    """A roofline for each case, side by side: PNG and SVG. Returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = cases(rows)
    shapes = sorted({(row["n"], row["k"]) for row in rows}, key=lambda shape: (shape[0] * shape[1], shape[0]))
    columns = min((5, 4, 3), key=lambda count: (-len(found) % count, -count)) if len(found) > 3 else len(found)
    lines = -(-len(found) // columns)
    style = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.edgecolor": "#c5cad3",
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "svg.fonttype": "none",
        "svg.hashsalt": "lowbit",
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            lines, columns, figsize=(3.3 * columns, 2.8 * lines + 1.1), sharex=True, sharey=True, squeeze=False
        )
        panels = list(axes.flat)
        intensities = [row["operations"] / row["bytes"] for row in rows]
        x_range = (min(intensities) / 2, max(intensities) * 2)
        slowest = min(min([row["tops"], *(_peer_tops(row))]) for row in rows)
        fastest = max(multiply_peak(row)[1] for row in rows) / 1e12
        for panel, (case, members) in zip(panels, found.items(), strict=False):
            _panel(panel, case, members, shapes, x_range)
            panel.set(xlim=x_range, ylim=(slowest / 2, fastest * 2.5))
        for panel in panels[len(found) :]:
            panel.set_visible(False)
        for panel in panels[max(0, len(found) - columns) : len(found)]:
            panel.set_xlabel("operations per byte")
            panel.tick_params(labelbottom=True)
        for row_of_axes in axes:
            row_of_axes[0].set_ylabel("TOPS")
        figure.legend(
            handles=_legend(shapes), loc="lower center", ncols=len(shapes) + 3, frameon=False, bbox_to_anchor=(0.5, 0)
        )
        own = run["machine_info"].get("lowbit", {})
        figure.suptitle(
            "lowbit against the limits measured in the same run", fontsize=13, fontweight="bold", x=0.02, ha="left"
        )
        figure.text(
            0.02,
            1 - 0.52 / figure.get_figheight(),
            f"{own.get('threads', '?')} threads, CPU level {own.get('cpu_isa', '?')}, weights out of every cache; "
            "numbers are m, the rows of activations",
            va="top",
        )
        height = figure.get_figheight()
        figure.tight_layout(rect=(0, 0.4 / height, 1, 1 - 0.72 / height))
        stem.parent.mkdir(parents=True, exist_ok=True)
        files = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
        figure.savefig(files[0], dpi=160)
        figure.savefig(files[1], metadata={"Date": None})
        pyplot.close(figure)
    return files


def _peer_tops(row: Row) -> list[float]:
    return [row["operations"] / peer[1]["median_us"] / 1e6 for peer in [best_peer(row)] if peer]


def _panel(
    panel: Any,
    case: tuple[str, str],
    rows: list[Row],
    shapes: list[tuple[int, int]],
    x_range: tuple[float, float],
) -> None:
    """The roof, its spread during the run, our points and the best peers'."""
    import numpy as np

    x = np.geomspace(*x_range, 200)
    bandwidths = [row["limits"]["read_bandwidth"] for row in rows]
    what = multiply_peak(rows[0])[0]
    peaks = [multiply_peak(row)[1] for row in rows]
    low, middle, high = (np.minimum(pick(bandwidths) * x, pick(peaks)) / 1e12 for pick in (min, median, max))
    panel.fill_between(x, low, high, color=ROOF, alpha=0.08, linewidth=0)
    panel.plot(x, middle, color=ROOF, linewidth=1.2, zorder=2)
    for shape, marker in zip(shapes, MARKERS, strict=False):
        here = sorted((row for row in rows if (row["n"], row["k"]) == shape), key=lambda row: row["m"])
        if not here:
            continue
        intensity = [row["operations"] / row["bytes"] for row in here]
        with_peers = [(i, _peer_tops(row)[0]) for i, row in zip(intensity, here, strict=True) if row["peers"]]
        if with_peers:
            panel.plot(*zip(*with_peers, strict=True), color=THEIRS, linewidth=0.7, zorder=3)
            panel.plot(
                *zip(*with_peers, strict=True), marker, color="white", markeredgecolor=THEIRS, markersize=4.5, zorder=3
            )
        tops = [row["tops"] for row in here]
        panel.plot(intensity, tops, color=OURS, linewidth=0.8, alpha=0.6, zorder=4)
        panel.plot(intensity, tops, marker, color=OURS, markeredgecolor="white", markersize=5, zorder=5)
    first = [row for row in rows if (row["n"], row["k"]) == shapes[0]]
    for row in first:
        panel.annotate(
            str(row["m"]),
            (row["operations"] / row["bytes"], row["tops"]),
            textcoords="offset points",
            xytext=(5, -9),
            fontsize=7,
            color=OURS,
        )
    panel.set_title(title(case), loc="left", fontsize=10, fontweight="bold")
    limits = f"{median(bandwidths) / 1e9:.0f} GB/s, {what} {median(peaks) / 1e12:.3g} TOPS"
    panel.set_title(limits, loc="right", fontsize=8)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.grid(which="major", color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.minorticks_off()
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:g}")
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _legend(shapes: list[tuple[int, int]]) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=OURS, marker=marker, markeredgecolor="white", linewidth=0.8, label=f"lowbit {n} × {k}")
        for (n, k), marker in zip(shapes, MARKERS, strict=False)
    ]
    handles.append(Line2D([], [], color=THEIRS, marker="o", markerfacecolor="white", linewidth=0.7, label="best peer"))
    handles.append(Line2D([], [], color=ROOF, linewidth=1.2, label="measured limit (shade: its range during the run)"))
    return handles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--plot", type=Path, metavar="STEM", help="write STEM.png and STEM.svg")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here (default: to the screen)")
    parser.add_argument("--insert", type=Path, metavar="FILE", help="replace what stands between this file's marks")
    arguments = parser.parse_args()
    run, rows = load(arguments.json)
    if arguments.plot:
        for path in plot(run, rows, arguments.plot):
            print(f"wrote {path}", file=sys.stderr)
    text = markdown(run, rows)
    if arguments.insert:
        arguments.insert.write_text(insert(arguments.insert.read_text(), text))
        print(f"wrote {arguments.insert}", file=sys.stderr)
    elif arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(text)
        print(f"wrote {arguments.markdown}", file=sys.stderr)
    else:
        print(text)


if __name__ == "__main__":
    main()
