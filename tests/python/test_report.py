"""benchmarks/report.py on a run of two rows: numbers in their places, slower cells marked, plots written."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import report


def row(m, median_us, peer_us):
    n = k = 4096
    operations, moved = 2 * m * n * k, n * k // 2
    return {
        "scheme": "W4A16",
        "format": "int4",
        "x_dtype": "bfloat16",
        "n": n,
        "k": k,
        "m": m,
        "kernel": "some_kernel",
        "bytes": moved,
        "operations": operations,
        "median_us": median_us,
        "p5_us": median_us * 0.9,
        "p95_us": median_us * 1.5,
        "gb_per_s": moved / median_us / 1e3,
        "tops": operations / median_us / 1e6,
        "limits": {"read_bandwidth": 3e10, "bf16": 7e12},
        "percent_of_limit": 80.0,
        "bound": "memory" if m == 1 else "multiply",
        "relative_error": 0.002,
        "peers": {"torch bf16": {"median_us": peer_us, "ratio": peer_us / median_us}},
    }


@pytest.fixture
def run(tmp_path):
    rows = [{"extra_info": row(1, 300.0, 600.0)}, {"extra_info": row(256, 2000.0, 1000.0)}, {"extra_info": {}}]
    path = tmp_path / "run.json"
    limits = {"read_bandwidth": 3e10, "bf16": 7e12}
    path.write_text(json.dumps({"machine_info": {}, "limits": limits, "benchmarks": rows}))
    return path


def test_markdown(run):
    text = report.markdown(*report.load(run))
    assert "read bandwidth 30 GB/s, bf16 multiply 7 TOPS" in text
    assert "| 4096 × 4096 | 1 | 300 [270 – 450] | 28.0 | 0.11 | 80 | memory | 2.00 |" in text
    assert "| 4096 × 4096 | 256 | 2000 [1800 – 3000] | 4.2 | 4.29 | 80 | bf16 | **▼ 0.50** |" in text
    assert "| W4A16 | 80 %, 2.00 | 80 %, **▼ 0.50** |" in text


def test_plot(run, tmp_path):
    pytest.importorskip("matplotlib")
    files = report.plot(*report.load(run), tmp_path / "plots" / "roofline")
    assert [path.name for path in files] == ["roofline.png", "roofline.svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in files[1].read_text()


def test_a_run_without_rows_is_refused(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"benchmarks": [{"extra_info": {}}]}))
    with pytest.raises(ValueError, match="holds 1 benchmarks and none of test_linear"):
        report.load(path)


def test_insert():
    document = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.insert(document, "new\n")
    assert once == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.insert(once, "new\n") == once
    with pytest.raises(ValueError, match="each of these lines once"):
        report.insert("no marks", "new")
