"""compute-sanitizer over a small sweep of shapes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = """
import torch, lowbit
for scheme in ("W4A16", "W4A16_ASYM", "W8A16", "NVFP4A16", "W8A8", "W4A8"):
    for n, k in ((64, 128), (65, 320), (200, 1056)):
        if lowbit.formats.get(lowbit.Scheme.of(scheme).format).block_k: k = -(-k // 32) * 32
        layer = lowbit.nn.Linear(k, n, scheme=scheme, dtype=torch.bfloat16).to("cuda")
        for m in (1, 7, 17, 130):
            layer(torch.randn(m, k, device="cuda", dtype=torch.bfloat16))
        layer.cpu()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_sanitizer(tool: str) -> None:
    beside = Path("/usr/local/cuda/bin/compute-sanitizer")
    sanitizer = shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)
    if not sanitizer:
        pytest.skip("there is no compute-sanitizer on PATH or in /usr/local/cuda/bin")
    command = [sanitizer, "--tool", tool, "--kernel-name", "kns=lowbit", "--error-exitcode", "1"]
    result = subprocess.run([*command, sys.executable, "-c", SWEEP], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
