"""CUDA without a GPU: fake tensors go where real ones would, the kernels that were built are listed, and who asks for a
device hears why there is none. The numbers are tests/cuda_emulator's and tests/gpu's.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lowbit
from lowbit import QuantizedTensor
from lowbit._load import core
from lowbit.ops import ACTIVATION_FORMATS, ops

SCHEMES = ["W4A16", "W4A16_ASYM", "W8A16", "W8A8", "W4A8", "FP8", "FP8_BLOCK", "NVFP4A16", "MXFP4A16", "NF4"]


for _format in lowbit.formats.table().values():  # what is found out once must be found out on real tensors
    _ = _format.storage, _format.fits_e4m3, _format.lowest, _format.largest, _format.first_bad_code


def fake_weight(scheme: str, n: int = 96, k: int = 256) -> QuantizedTensor:
    """A weight whose tensors are fake CUDA tensors; under a FakeTensorMode."""
    s = lowbit.Scheme.of(scheme)
    fmt, group = lowbit.formats.get(s.format), s.group(n, k)
    groups = lowbit.formats.num_groups((n, k), group)
    return QuantizedTensor.trusted(
        codes=torch.empty(n, fmt.row_bytes(k), dtype=fmt.storage, device="cuda"),
        scales=torch.empty(groups, dtype=s.scales(torch.bfloat16), device="cuda"),
        zero_points=None if s.symmetric else torch.empty(groups, dtype=torch.int8, device="cuda"),
        format=fmt,
        shape=(n, k),
        group=group,
        global_scale=1.0,
    )


def size_on(device: str, w: QuantizedTensor) -> int:
    dtype = lowbit.formats.dtype_name(w.scale_dtype)
    size: int = core().packed_bytes(w.format.name, *w.shape, *w.group, dtype, w.has_zero_points, device)
    return size


@pytest.mark.parametrize("scheme", SCHEMES)
def test_linear_on_fake_tensors(scheme: str) -> None:
    s = lowbit.Scheme.of(scheme)
    with FakeTensorMode():
        w = fake_weight(scheme)
        bias = torch.empty(96, device="cuda", dtype=torch.bfloat16)
        x = torch.empty(3, 5, 256, device="cuda", dtype=torch.bfloat16)
        y = lowbit.linear(x, w, bias, activation=s.activation, x_group=s.activation_group)
        assert (y.shape, y.dtype, y.device.type) == ((3, 5, 96), torch.bfloat16, "cuda")
        assert w.is_packed
        packed = w.pack()
        assert packed.device.type == "cuda"
        assert packed.numel() == size_on("cuda", w)
        assert w.dequantize(torch.float16).shape == (96, 256)
        assert w.codes.device.type == "cuda"
        assert w.to("cpu").pack().numel() == size_on("cpu", w)


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()  # autograd asks the CUDA of torch, which need not be there, for streams
def test_layers_move_between_fake_devices(scheme: str) -> None:
    with FakeTensorMode():
        layer = lowbit.nn.Linear(256, 96, bias=False, scheme=scheme, device="meta", dtype=torch.bfloat16)
        cpu_size = layer.packed.numel()
        layer = layer.to_empty(device="cuda")
        assert layer.packed.device.type == "cuda"
        assert layer.packed.numel() == size_on("cuda", layer.quantized)
        y = layer(torch.empty(7, 256, device="cuda", dtype=torch.float16))
        assert (y.shape, y.dtype, y.device.type) == ((7, 96), torch.float16, "cuda")
        if not scheme.endswith("ASYM"):  # packing zero points asks for the device
            state = layer.state_dict()
            assert all(tensor.device.type == "cuda" for name, tensor in state.items() if name != "weight_shape")
        assert copy.deepcopy(layer).packed.shape == layer.packed.shape
        assert layer.weight.shape == (96, 256)
        layer.cpu()
        assert layer.packed.device.type == "cpu"
        assert layer.packed.numel() == cpu_size
        assert layer.input_scale is None


def test_a_graph_holds_the_description() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        w = fake_weight("W4A16_ASYM")
        packed = w.pack()
        assert w.description == "int4 96x256 1x128 bfloat16 zero_points"

        def multiply(x: torch.Tensor, packed: torch.Tensor) -> Any:
            return ops.weight_only(x, packed, None, 96, w.description)

        graph = make_fx(multiply)(torch.empty(4, 256, device="cuda", dtype=torch.bfloat16), packed)
    assert "int4 96x256 1x128 bfloat16 zero_points" in graph.code


@pytest.mark.parametrize("name", ["int8", "int8_asymmetric", "fp8_e4m3", "fp8_e4m3_block", "mxfp8", "mxfp4", "nvfp4"])
def test_quantized_activations_on_fake_tensors(name: str) -> None:
    bits, block, dtype = ACTIVATION_FORMATS[name]
    with FakeTensorMode():
        x = torch.empty(5, 256, device="cuda", dtype=torch.bfloat16)
        other = torch.empty_like(x)
        q, scale, zero, total = ops.quantize_activation(x, name, "rms_norm", other, None, 1e-6, None, False, False)
    assert q.shape == (5, 256 * bits // 8)
    assert q.dtype == (torch.int8 if name.startswith("int8") else torch.uint8)
    assert scale.shape == ((5, 256 // block) if block else (5,))
    assert scale.dtype == dtype
    assert zero.numel() == (5 if name == "int8_asymmetric" else 0)
    assert total.shape == (5, 256)


def test_the_cpu_refuses_fp8_products() -> None:
    w = lowbit.quantize(torch.randn(16, 32), "FP8")
    with pytest.raises(ValueError, match="the CPU has no fp8 product"):
        lowbit.linear(torch.randn(2, 32), w, activation="fp8")
    with pytest.raises(RuntimeError, match="fp8 products run on CUDA devices alone"):
        ops.fp8(torch.randn(2, 32), w.pack(), None, 16, None, 0, False, torch.float32)
    layer = lowbit.nn.Linear.from_quantized(w, "FP8", dtype=torch.float32)  # the scheme multiplies in floating point
    x = torch.randn(2, 32)
    assert torch.equal(layer(x), lowbit.linear(x, w))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "fp8", "format": "int8"}, "needs a weight whose values e4m3 has"),
        ({"activation": "fp8", "activation_symmetric": False}, "fp8 activations have no zero point"),
        ({"activation": "fp8", "activation_group": 64}, "must be None or 128"),
        ({"activation_group": 128}, "only dynamic 'fp8' activations have groups"),
        ({"activation": "fp8", "accum": "slow"}, "must be 'promoted' or 'fast'"),
        ({"accum": "fast"}, "only fp8 activations have a choice"),
    ],
)
def test_fp8_schemes_that_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lowbit.Scheme(**{"format": "fp8_e4m3", "group_size": "channel", **change})


def test_a_packed_weight_for_gpus_is_read_on_the_cpu() -> None:
    """torch.load with map_location may bring one here."""
    w = lowbit.quantize(torch.randn(40, 100), "W4A16", group_size=32)
    assert pickle.loads(pickle.dumps(w)).equal(w)
    described = core().weight_from_text("int4 40x100 1x32 float32")
    assert described["n"] == 40
    assert core().weight_to_text("int4", 40, 100, 1, 32, "float32", False) == "int4 40x100 1x32 float32"


# ---- what is said without a device ----


def test_the_kernels_that_were_built_are_listed() -> None:
    cuda = core().cuda()
    rows = [row for row in core().kernels() if row["device"] == "cuda"]
    assert bool(rows) == bool(cuda["architectures"])
    text = lowbit.info.summary()
    if cuda["problem"]:
        assert not any(row["runnable"] for row in rows)
        assert cuda["problem"] in text
    for row in rows:
        assert row["name"] in text


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "FP8"])
def test_explain_without_a_device(scheme: str) -> None:
    explanation = lowbit.explain(scheme, 16, 4096, 4096, device="cuda")
    if core().cuda()["problem"]:
        assert explanation.kernel is None
        assert all(core().cuda()["problem"] in row.reason for row in explanation.candidates)


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "FP8"])
@pytest.mark.parametrize("m", [1, 16, 4096])
def test_explain_for_a_device_elsewhere(scheme: str, arch: int, m: int) -> None:
    built = core().cuda()["architectures"]
    if not built:
        pytest.skip("built without CUDA kernels")
    explanation = lowbit.explain(scheme, m, 4096, 4096, device=f"sm_{arch}")
    assert f"sm_{arch}" in explanation.problem
    if {"80", "89", "90a", "100a", "120a"} <= set(built):
        assert (explanation.kernel is not None) == (scheme != "FP8" or arch >= 89)
    with pytest.raises(ValueError, match=r"nothing is known of devices of compute capability 7\.0"):
        lowbit.explain(scheme, m, 4096, 4096, device="sm_70")


def test_asking_loads_no_driver_before_it_must() -> None:
    code = "import lowbit, lowbit.ops; print('libcuda' in open('/proc/self/maps').read())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
