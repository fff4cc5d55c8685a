"""Options of ``pytest benchmarks --benchmark-only``, and what its JSON says about the machine."""

from __future__ import annotations

import argparse
import re
from statistics import median
from typing import Any

import pytest
import torch

import lowbit.info
from lowbit._load import core
from peers import PeerWeights
from problems import CASES, QUICK_CASES, QUICK_ROWS, QUICK_SHAPES, ROWS, SHAPES, Problem


def shape_of(text: str) -> tuple[int, int]:
    """(n, k) of ``"4096x11008"``."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no n x k as in 4096x11008")
    return int(match[1]), int(match[2])


def rows_of(text: str) -> int:
    """How many rows: at least 1."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows")
    return int(text)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lowbit")
    group.addoption("--quick", action="store_true", help="a few problems, one or two minutes")
    schemes = sorted({scheme for scheme, _ in CASES})
    group.addoption("--scheme", action="append", choices=schemes, help="these alone: --scheme W4A16 --scheme W8A8")
    group.addoption("--shape", action="append", type=shape_of, help="these alone, any n x k: --shape 4096x11008")
    group.addoption("--m", action="append", type=rows_of, help="these numbers of rows: --m 1 --m 64")
    group.addoption(
        "--rotate-mib", type=int, default=512, help="weights that are read in turn, to keep them cold (default: 512)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "problem" in metafunc.fixturenames:
        quick = metafunc.config.getoption("quick")
        cases, shapes, rows = (QUICK_CASES, QUICK_SHAPES, QUICK_ROWS) if quick else (CASES, SHAPES, ROWS)
        option = metafunc.config.getoption
        if option("scheme"):
            cases = [case for case in CASES if case[0] in option("scheme")]
        shapes, rows = option("shape") or shapes, option("m") or rows
        problems = [
            Problem(scheme, getattr(torch, x_dtype), n, k, m)
            for n, k in shapes
            for scheme, x_dtype in cases
            for m in rows
        ]
        ids = [f"{p.scheme}-{str(p.x_dtype).removeprefix('torch.')}-{p.n}x{p.k}-m{p.m}" for p in problems]
        metafunc.parametrize("problem", problems, ids=ids)


@pytest.fixture(scope="session")
def blocks(request: pytest.FixtureRequest) -> int:
    """Turns that everyone gets."""
    return 2 if request.config.getoption("quick") else 5


@pytest.fixture(scope="session")
def rotate_bytes(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("rotate_mib")) << 20


@pytest.fixture(scope="session")
def peer_weights(rotate_bytes: int) -> PeerWeights:
    return PeerWeights(rotate_bytes)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["lowbit"] = {
        **lowbit.info.versions(),
        "cpu_isa": core().cpu_isa(),
        "cpu_features": core().cpu_features(),
        "threads": torch.get_num_threads(),
        "build": core().build_info(),
    }


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Adds ``limits``: the median of every limit over the whole run."""
    samples: dict[str, list[float]] = {}
    for row in output_json["benchmarks"]:
        for what, value in row["extra_info"].get("limits", {}).items():
            samples.setdefault(what, []).append(value)
    output_json["limits"] = {what: median(values) for what, values in samples.items()}
