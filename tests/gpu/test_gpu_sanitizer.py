"""compute-sanitizer over a small sweep of shapes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# What kernels read comes by copies from the host: initcheck sees no writes of kernels that it does not look at.
SWEEP = """
import torch, lowbit
for scheme in ("W4A16", "W4A16_ASYM", "W8A16", "NVFP4A16", "W8A8", "W4A8", "FP8"):
    if scheme == "FP8" and torch.cuda.get_device_capability() < (8, 9): continue
    for n, k in ((64, 128), (65, 320), (200, 1056)):
        if lowbit.formats.get(lowbit.Scheme.of(scheme).format).block_k: k = -(-k // 32) * 32
        layer = lowbit.nn.Linear(k, n, scheme=scheme, dtype=torch.bfloat16).to("cuda")
        for m in (1, 7, 17, 130):
            layer(torch.randn(m, k, dtype=torch.bfloat16).to("cuda"))
        layer.cpu()
torch.cuda.synchronize()
"""


def kernel_filter(sanitizer: str) -> list[str]:
    """Kernels of lowbit alone. The option's name has changed between versions."""
    text = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, check=False).stdout
    for option in ("--kernel-name", "--kernel-regex", "--filter"):
        if option in text:
            return [option, "kns=lowbit"]
    return []


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_sanitizer(tool: str) -> None:
    beside = Path("/usr/local/cuda/bin/compute-sanitizer")
    sanitizer = shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)
    if not sanitizer:
        pytest.skip("there is no compute-sanitizer on PATH or in /usr/local/cuda/bin")
    command = [sanitizer, "--tool", tool, *kernel_filter(sanitizer), "--error-exitcode", "1"]
    # Each tensor an allocation of its own, so that what lies beyond one is not another's.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(
        [*command, sys.executable, "-c", SWEEP], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
