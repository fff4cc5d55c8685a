"""The package over the emulated CUDA device: from Python down to the kernels, without a GPU.

``make cpp-release`` builds the core, the operators and the module with LOWBIT_CUDA=EMULATED; its tensors are those of
the CPU. They run in a process of their own, since the operators' names are taken in this one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lowbit

ROOT = Path(__file__).resolve().parents[2]
TREES = (ROOT / "build" / "cpp-release", ROOT / "build" / "emu")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to import the emulated package from."""
    for tree in TREES:
        libraries = [
            tree / "liblowbit.so",
            tree / "csrc" / "torch" / "_ops.so",
            *tree.glob(f"csrc/python/_C.{sys.implementation.cache_tag}-*.so"),
        ]
        cache = tree / "CMakeCache.txt"
        emulated = cache.is_file() and "LOWBIT_CUDA:STRING=EMULATED\n" in cache.read_text()
        if emulated and len(libraries) == 3 and all(path.exists() for path in libraries):
            break
    else:
        pytest.skip(f"there is no emulated build in {TREES[0]}: make cpp-release")
    folder = tmp_path_factory.mktemp("emulated")
    source = Path(lowbit.__file__).parent
    shutil.copytree(source, folder / "lowbit", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for path in libraries:
        shutil.copy(path, folder / "lowbit")
    return folder


def run(package: Path, script: str, *arguments: str, arch: int = 90) -> str:
    # Meta path finders of editable installations would find the real package.
    preface = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "LOWBIT_EMULATED_HOST_MEMORY": "1",
        "LOWBIT_EMULATED_ARCH": str(arch),
    }
    result = subprocess.run(
        [sys.executable, "-c", preface + script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=package,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


# Multiplies by the weights of a file and writes what comes out; runs in the real package and in the emulated one.
PRODUCTS = """
import sys, torch, lowbit
from lowbit._load import core
problems = torch.load(sys.argv[1], weights_only=False)
out = []
for scheme, state, x, bias in problems:
    s = lowbit.Scheme.of(scheme)
    w = lowbit.quantize(state, s)
    integer = s.family == "integer"
    y = lowbit.linear(x, w, bias, activation="int8" if integer else None)
    again = lowbit.QuantizedTensor.from_packed(w.pack(), w.global_scale)
    assert again.equal(lowbit.quantize(state, s)), scheme
    layer = lowbit.nn.Linear.from_quantized(again, s, bias, dtype=x.dtype)
    assert torch.equal(layer(x), y), scheme
    out.append((y, again.dequantize()))
torch.save((core().build_info()["emulated"], out), sys.argv[2])
"""
SCHEMES = ["W4A16", "W4A16_ASYM", "W8A16", "W8A8", "W4A8", "FP8", "MXFP4A16", "NVFP4A16", "NF4", "W2A16"]


@pytest.mark.parametrize("arch", [80, 90])
def test_torch_s_products(package: Path, tmp_path: Path, arch: int) -> None:
    torch.manual_seed(0)
    problems = [
        (scheme, torch.randn(72, 192) / 8, torch.randn(2, 5, 192).bfloat16(), torch.randn(72)) for scheme in SCHEMES
    ]
    torch.save(problems, tmp_path / "problems")
    run(package, PRODUCTS, str(tmp_path / "problems"), str(tmp_path / "emulated"), arch=arch)
    emulated, got = torch.load(tmp_path / "emulated")
    assert emulated
    for (scheme, weight, x, bias), (y, decoded) in zip(problems, got, strict=True):
        s = lowbit.Scheme.of(scheme)
        w = lowbit.quantize(weight, s)
        assert torch.equal(decoded, w.dequantize()), scheme
        if s.family == "integer":  # exact on both
            assert torch.equal(y, lowbit.linear(x, w, bias, activation="int8")), scheme
            continue
        exact = x.double() @ w.dequantize().double().T + bias.double()
        size = x.double().abs() @ w.dequantize().double().abs().T + bias.abs().double()
        assert ((y.double() - exact).abs() <= 2.0**-7 * size).all(), scheme


FP8 = """
import torch, lowbit
from lowbit.ops import ops
torch.manual_seed(1)
w = lowbit.quantize(torch.randn(80, 256) / 16, "FP8")
x = torch.randn(5, 256).bfloat16()
wanted = x.float() @ w.dequantize().T
for fast in (False, True):
    y = ops.fp8(x, w.pack(), None, 80, None, 0, fast, torch.float32)
    assert (y - wanted).norm() / wanted.norm() < 0.04
q, scale, _, _ = lowbit.quantize_activation(x, "fp8_e4m3")
given = ops.fp8(q, w.pack(), None, 80, scale, 0, False, torch.float32)
assert torch.equal(given, ops.fp8(x, w.pack(), None, 80, None, 0, False, torch.float32))
block = lowbit.quantize(torch.randn(256, 384) / 16, "FP8_BLOCK")
x = torch.randn(3, 384).bfloat16()
y = ops.fp8(x, block.pack(), None, 256, None, 128, False, torch.bfloat16)
wanted = x.float() @ block.dequantize().T
assert (y.float() - wanted).norm() / wanted.norm() < 0.04
"""


@pytest.mark.parametrize("arch", [89, 90])
def test_torch_s_fp8(package: Path, arch: int) -> None:
    run(package, FP8, arch=arch)


QUANTIZERS = """
import sys, torch, lowbit
from lowbit._load import core
x, cases = torch.load(sys.argv[1])
out = [tuple(lowbit.quantize_activation(x, name, **options)) for name, options in cases]
torch.save((core().build_info()["emulated"], out), sys.argv[2])
"""


def test_torch_s_activation_quantizers(package: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    x, other, weight = torch.randn(5, 272).bfloat16(), torch.randn(5, 272).bfloat16(), torch.rand(272) + 0.5
    cases: list[tuple[str, dict[str, Any]]] = []
    for name in ("int8", "int8_asymmetric", "fp8_e4m3", "fp8_e4m3_block", "mxfp8", "mxfp4", "nvfp4"):
        cases += [(name, {}), (name, {"rms_norm": weight, "residual": other}), (name, {"silu_mul": other})]
        if name in ("mxfp8", "mxfp4", "nvfp4"):
            cases.append((name, {"swizzled": True}))
    torch.save((x, cases), tmp_path / "inputs")
    run(package, QUANTIZERS, str(tmp_path / "inputs"), str(tmp_path / "emulated"))
    emulated, got = torch.load(tmp_path / "emulated")
    assert emulated
    for (name, options), results in zip(cases, got, strict=True):
        for one, other_one in zip(results, lowbit.quantize_activation(x, name, **options), strict=True):
            assert (one is None) == (other_one is None), name
            assert one is None or torch.equal(one.view(torch.uint8), other_one.view(torch.uint8)), (name, list(options))


# NumPy in CuPy's place: what lowbit.cupy uses of it.
CUPY = """
import sys, types, numpy
asked = []
class Stream: ptr = 0
cuda = types.SimpleNamespace(get_current_stream=lambda: asked.append(1) or Stream)
sys.modules["cupy"] = types.SimpleNamespace(empty=numpy.empty, cuda=cuda)
import lowbit.cupy
from lowbit._load import core
assert "torch" not in sys.modules
rng = numpy.random.default_rng(0)
n, k = 70, 192
codes = rng.integers(-127, 128, (n, k)).astype("int8")
scales = rng.random((n, 1), dtype="float32") / 100
w = lowbit.cupy.pack(codes, scales, format="int8", group=(1, k))
assert w.description == "int8 70x192 1x192 float32", w.description
weight = codes * scales
assert numpy.array_equal(lowbit.cupy.dequantize(w), weight)
x = rng.standard_normal((9, k), dtype="float32").astype("float16")
bias = rng.standard_normal(n, dtype="float32")
y = lowbit.cupy.linear(x, w, bias, out_dtype="float32")
assert abs(y - (x.astype("float32") @ weight.T + bias)).max() < 0.02
y = lowbit.cupy.linear(x, w, bias, family="integer", out_dtype="float32")
assert abs(y - (x.astype("float32") @ weight.T + bias)).max() < 0.5  # x is rounded to 8 bits
up, gated = numpy.ones((9, n), dtype="float16") * 2, lowbit.cupy.linear(x, w, bias, out_dtype="float32")
y = lowbit.cupy.linear(x, w, bias, out_dtype="float32", activation_function="relu", multiply=up)
assert numpy.array_equal(y, numpy.maximum(gated, 0) * 2)
assert len(asked) == 6
for bad in (x[:, :-1], x.astype("float64"), x[0]):
    try: lowbit.cupy.linear(bad, w)
    except (TypeError, ValueError): pass
    else: raise AssertionError(bad.shape)
"""


def test_cupy_s_arrays(package: Path) -> None:
    run(package, CUPY)


def test_what_is_there(package: Path) -> None:
    text = run(package, "from lowbit.info import summary; print(summary())")
    assert "emulated sm_90" in text
    assert "CUDA emulated" in text
    run(package, "import lowbit; assert lowbit.explain('W4A16', 4, 4096, 4096, device='cuda').kernel")
