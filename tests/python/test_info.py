"""import lowbit, python -m lowbit, explain."""

import subprocess
import sys

import pytest
import torch

import lowbit
from lowbit import info
from lowbit._load import core


def python(code: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code], text=True)


def test_import_loads_nothing():
    out = python(
        "import sys, lowbit; print('torch' in sys.modules, 'lowbit._C' in sys.modules);"
        "print(sorted(lowbit.__all__) == sorted(n for n in dir(lowbit) if n in lowbit.__all__));"
        "lowbit.Scheme; import torch; print(torch.cuda.is_initialized())"
    )
    assert out.split() == ["False", "False", "True", "False"]


def test_every_public_name_is_there():
    for name in lowbit.__all__:
        assert getattr(lowbit, name) is not None
    with pytest.raises(AttributeError, match="module 'lowbit' has no attribute 'nothing'"):
        lowbit.nothing  # noqa: B018
    assert python("from lowbit import *; print(quantize.__name__, nn.Linear.__name__)").split() == [
        "quantize",
        "Linear",
    ]


def test_cupy_is_reached_and_hides_nothing():
    assert python("import lowbit; print(lowbit.cupy.linear.__module__)").strip() == "lowbit.cupy"
    assert "cupy" not in lowbit.__all__


def test_version():
    assert lowbit.__version__ == core().version()


def test_summary():
    text = subprocess.check_output([sys.executable, "-m", "lowbit"], text=True)
    assert f"lowbit {lowbit.__version__}" in text
    assert torch.__version__ in text
    assert "in use" in text
    for fmt in lowbit.formats.table():
        assert f"\n  {fmt} " in text
    for kernel in core().kernels():
        assert kernel["name"] in text
    assert text == info.summary() + "\n"


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "FP8_BLOCK", "NVFP4A16"])
@pytest.mark.parametrize("m", [1, 256])
def test_explain(scheme, m):
    explanation = lowbit.explain(scheme, m, 4096, 11008)
    assert sum(row.chosen for row in explanation.candidates) == 1
    assert explanation.kernel in {kernel["name"] for kernel in core().kernels()}
    assert all(row.reason for row in explanation.candidates if not row.chosen)
    assert f"-> {explanation.kernel}" in str(explanation)
    assert f"m = {m}, n = 4096, k = 11008" in explanation.problem


def test_explain_takes_layers_and_tensors():
    layer = lowbit.nn.Linear(96, 40, scheme="W8A8")
    assert lowbit.explain(layer, 4).problem.startswith("integer int8: m = 4, n = 40, k = 96, groups of 96, bfloat16")
    tensor = lowbit.quantize(torch.randn(40, 96), "W4A16")
    problem = lowbit.explain(tensor, 4, x_dtype=torch.float32).problem
    assert problem.startswith("weight_only int4: m = 4, n = 40, k = 96, groups of 128, float32 activations")
    assert lowbit.explain(tensor, 4).kernel == lowbit.explain("W4A16", 4, 40, 96).kernel


def test_explain_says_why_there_is_no_kernel():
    if core().cuda()["architectures"]:
        pytest.skip("this build has CUDA kernels")
    explanation = lowbit.explain("W4A16", 1, 64, 64, device="sm_90")
    assert explanation.kernel is None
    assert "none: this lowbit was built without CUDA kernels" in str(explanation)


def test_explain_refuses():
    with pytest.raises(TypeError, match="needs n and k"):
        lowbit.explain("W4A16", 4)
    with pytest.raises(TypeError, match="a ReLU"):
        lowbit.explain(torch.nn.ReLU(), 4)
    with pytest.raises(ValueError, match="x_dtype is 'float64': it must be one of float32, float16, bfloat16, int8, "):
        lowbit.explain("W4A16", 4, 8, 8, x_dtype=torch.float64)
    with pytest.raises(ValueError, match="m = -1, n = 8, k = 8: m must be at least 0"):
        lowbit.explain("W4A16", -1, 8, 8)
    with pytest.raises(ValueError, match=r"compute capability 7\.0: it must be one of 8\.0, 8\.6, .*12\.1$"):
        lowbit.explain("W4A16", 4, 8, 8, device="sm_70")


def test_explain_follows_the_level():
    level = core().cpu_isa()
    try:
        core().set_cpu_isa("scalar")
        explanation = lowbit.explain("W4A16", 1, 64, 64)
        assert "CPU level scalar" in explanation.problem
        assert "scalar" in explanation.kernel
    finally:
        core().set_cpu_isa(level)


def test_the_summary_into_a_pipe_that_closes():
    script = f"{sys.executable} -m lowbit | head -1"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.startswith("lowbit ")
    assert result.stderr == ""
