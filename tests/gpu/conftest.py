"""Tests on a CUDA device, at full size: ``pytest -m gpu``. Without one they are skipped and say why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowbit._load import core

HERE = Path(__file__).parent


def why_not() -> str:
    """Why these tests cannot run here; nothing: they can."""
    if problem := core().cuda()["problem"]:
        return str(problem)
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    reason = why_not() if mine else ""
    for item in mine:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {reason}"))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
