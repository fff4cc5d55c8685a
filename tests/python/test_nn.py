"""lowbit.nn.Linear as a drop-in for torch.nn.Linear."""

import copy
import gc
import io
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from oracles import FLOATS, decode
from torch import nn

import lowbit
from lowbit import Scheme, formats
from lowbit.nn import Linear
from lowbit.quantizers import PRESETS

SCHEMES = sorted(set(PRESETS) - {"INT8"})
STATIC = Scheme.preset("W8A8", activation_dynamic=False)
STATIC_ASYM = Scheme.preset("W8A8", activation_dynamic=False, activation_symmetric=False)


def static_options(scheme):
    if not isinstance(scheme, Scheme) or scheme.activation_dynamic:
        return {}
    return {"input_scale": 0.05} | ({} if scheme.activation_symmetric else {"input_zero_point": 3})


ALL = [
    *SCHEMES,
    STATIC,
    STATIC_ASYM,
    Scheme("int4", 32, symmetric=False, activation="int8", activation_symmetric=False),
]


@pytest.mark.parametrize("scheme", ALL, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_from_float(scheme, dtype):
    linear = nn.Linear(96, 40, dtype=dtype)
    layer = Linear.from_float(linear, scheme, **static_options(scheme))
    x = torch.randn(2, 5, 96).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert y.shape == (2, 5, 40)
    assert layer.bias is linear.bias
    bits = formats.get(Scheme.of(scheme).format).bits
    assert (y - linear(x)).norm() / linear(x).norm() < (0.25 if bits > 2 else 0.6)
    assert layer.weight.dtype == dtype
    torch.testing.assert_close(layer.weight.double(), decode(layer.quantized), rtol=8e-3, atol=1e-6)
    assert layer.training == linear.training


def test_choices_and_mode():
    linear = nn.Linear(96, 40, bias=False).eval()
    layer = Linear.from_float(linear, "W4A16", group_size=32, scale_rule="mse")
    assert layer.scheme == Scheme("int4", 32, scale_rule="mse")
    assert layer.bias is None
    assert not layer.training


def test_construction_like_linear():
    layer = Linear(96, 40)
    assert (layer.in_features, layer.out_features, layer.scheme.name) == (96, 40, "W4A16")
    assert layer.bias.shape == (40,)
    assert layer.weight.abs().max() <= 1.1 / 96**0.5
    assert layer.weight.std() > 0.4 / 96**0.5
    assert Linear(96, 40, False, "W8A8", dtype=torch.bfloat16)(torch.randn(2, 96)).dtype == torch.float32
    assert repr(layer) == (
        f"Linear(in_features=96, out_features=40, bias=True, scheme=W4A16, "
        f"{8 * layer.packed.numel() / 96 / 40:.3g} bits per weight packed)"
    )


def test_from_quantized_shares_memory():
    tensor = lowbit.quantize(torch.randn(40, 96), "W4A16")
    layer = Linear.from_quantized(tensor, "W4A16", torch.zeros(40))
    assert layer.packed.data_ptr() == tensor.pack().data_ptr()
    assert layer.quantized.equal(tensor)
    for scheme, message in (
        ("W8A16", "format int8 is needed"),
        ("W4A16_ASYM", "zero points are needed"),
        (Scheme("int4", 32), "groups of 1 x 32 are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            Linear.from_quantized(tensor, scheme)


class Transposed(nn.Module):
    """As the Conv1D of transformers: its weight is [inputs, outputs]."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.zeros(8))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Linear.from_float(nn.ReLU()), TypeError, "linear is a ReLU"),
        (lambda: Linear.from_float(nn.Embedding(4, 4)), TypeError, "linear is a Embedding"),
        (lambda: Linear.from_float(Transposed()), TypeError, "linear is a Transposed"),
        (lambda: Linear.from_float(nn.Linear(4, 4, dtype=torch.float64)), TypeError, "weight is float64"),
        (lambda: Linear.from_float(nn.Linear(4, 4), "W4A17"), ValueError, "scheme is 'W4A17'"),
        (lambda: Linear.from_float(nn.Linear(4, 4), "W4A16", input_scale=1.0), ValueError, "no static activations"),
        (lambda: Linear.from_float(nn.Linear(4, 4), STATIC), ValueError, "input_scale is needed"),
        (lambda: Linear.from_float(nn.Linear(4, 4), STATIC, input_scale=0.0), ValueError, "x_scale holds 0"),
        (
            lambda: Linear.from_float(nn.Linear(4, 4), STATIC, input_scale=1.0, input_zero_point=1),
            ValueError,
            "has symmetric activations",
        ),
        (lambda: Linear.from_float(nn.Linear(4, 4), STATIC_ASYM, input_scale=1.0), ValueError, "input_zero_point is"),
        (lambda: Linear(4, 4, dtype=torch.float64), TypeError, "weight is float64"),
        (lambda: Linear(0, 4), ValueError, "in_features = 0"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 95), ValueError, "x is 2 x 95: its last dimension must be 96"),
        (torch.zeros(2, 96, dtype=torch.float64), TypeError, "x is float64"),
        (torch.zeros(2, 96, dtype=torch.int8), TypeError, "x is int8"),
        (torch.zeros(2, 96, device="meta"), ValueError, "x is on meta"),
        ([0.0] * 96, TypeError, "x is a list"),
    ],
)
@pytest.mark.parametrize("scheme", ["W4A16", "W8A8"])
def test_bad_activations(scheme, x, error, message):
    with pytest.raises(error, match=message):
        Linear(96, 8, scheme=scheme)(x)


def test_static_layers_take_int8():
    layer = Linear(96, 8, scheme=STATIC, input_scale=0.05, dtype=torch.bfloat16)
    x = torch.randn(3, 96)
    q = torch.round(x * (1 / torch.tensor(0.05))).clamp(-128, 127).to(torch.int8)
    assert layer(q).dtype == torch.bfloat16
    assert torch.equal(layer(q), layer(x).to(torch.bfloat16))


def test_torchs_defaults_change_nothing():
    """In a fresh process, so that what is computed once is computed under them."""
    code = """
import torch, lowbit
torch.set_default_dtype(torch.bfloat16)
with torch.device("meta"):
    layers = [lowbit.nn.Linear(64, 32, scheme=name) for name in lowbit.quantizers.PRESETS]
    weight = torch.arange(32 * 64, dtype=torch.float32, device="cpu").view(32, 64).sin()
    for name in lowbit.quantizers.PRESETS:
        for rule in ("absmax",) if name == "NF4_DQ" else ("absmax", "mse"):
            tensor = lowbit.quantize(weight, name, scale_rule=rule)
            print(name, rule, tensor.scales.dtype, float(lowbit.relative_error(weight, tensor)))
            assert all(part is None or part.device.type == "cpu" for part in tensor.canonical())
            tensor.pack()
            assert tensor.dequantize().dtype == torch.float32
            layer = lowbit.nn.Linear.from_quantized(tensor, lowbit.Scheme.preset(name, scale_rule=rule))
            layer.load_state_dict(layer.state_dict())
"""
    lines = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    weight = torch.arange(32 * 64, dtype=torch.float32).view(32, 64).sin()
    for line in lines:
        name, rule, dtype, error = line.split()
        tensor = lowbit.quantize(weight, name, scale_rule=rule)
        assert str(tensor.scales.dtype) == dtype
        assert lowbit.relative_error(weight, tensor) == float(error)
    assert len(lines) == 2 * len(PRESETS) - 1  # NF4_DQ has no mse


# ---- copies, casts, devices ----


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_copies(scheme):
    layer = Linear.from_float(nn.Linear(96, 40), scheme, **static_options(scheme))
    x = torch.randn(3, 96)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
    ):
        assert other.packed.data_ptr() != layer.packed.data_ptr()
        assert torch.equal(other(x), layer(x))
        assert other.scheme == layer.scheme
        assert other.quantized.equal(layer.quantized)


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", STATIC_ASYM], ids=str)
def test_casts(scheme):
    layer = Linear.from_float(nn.Linear(96, 40), scheme, **static_options(scheme))
    packed = layer.packed.clone()
    for cast, dtype in (
        (lambda m: m.to(torch.bfloat16), torch.bfloat16),
        (lambda m: m.half(), torch.float16),
        (lambda m: m.float(), torch.float32),
        (lambda m: m.to(torch.float16), torch.float16),
    ):
        cast(layer)
        assert layer.weight.dtype == layer.bias.dtype == dtype
        assert layer(torch.randn(2, 96, dtype=dtype)).dtype == dtype
        assert torch.equal(layer.packed, packed), "codes and scales stay as they are"
        if layer.input_scale is not None:
            assert layer.input_scale.dtype == torch.float32
            assert layer.input_scale == torch.tensor([0.05])
    assert layer.cpu() is layer


def test_type_casts_what_to_casts():
    """nn.Module.type() hands every tensor to its function, codes and zero points too."""
    layer = Linear.from_float(nn.Linear(96, 40), STATIC_ASYM, **static_options(STATIC_ASYM))
    x = torch.randn(2, 96)
    y = layer(x)
    layer.type(torch.bfloat16)
    assert layer.packed.dtype == torch.uint8
    assert (layer.input_scale.dtype, layer.input_zero_point.dtype) == (torch.float32, torch.int32)
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    torch.testing.assert_close(layer(x), y, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_other_dtypes_are_refused_before_anything_is_cast(dtype):
    layer = Linear(96, 40)
    with pytest.raises(TypeError, match=f"dtype is {str(dtype)[6:]}: a layer is float32, float16 or bfloat16"):
        layer.to(dtype)
    assert layer.bias.dtype == layer.weight.dtype == torch.float32


def test_other_devices_are_refused_before_anything_moves():
    layer = Linear(96, 40)
    with pytest.raises(ValueError, match="device is xpu:0: lowbit has kernels for the CPU and for CUDA devices"):
        layer._apply(lambda tensor: SimpleNamespace(device=torch.device("xpu", 0)))
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            layer.to("cuda")
    assert layer.packed.device.type == layer.bias.device.type == "cpu"
    layer(torch.randn(1, 96))


def test_requires_grad_and_parameters():
    layer = Linear(96, 40)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    layer.requires_grad_(False)
    x = torch.randn(2, 96, requires_grad=True)
    layer(x).sum().backward()
    assert layer.bias.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, -1))
    with pytest.raises((AttributeError, KeyError)):
        layer.weight = nn.Parameter(torch.zeros(40, 96))


def test_lora_trains_over_a_frozen_layer():
    torch.manual_seed(3)
    base = Linear.from_float(nn.Linear(64, 32), "W4A16").requires_grad_(False)
    before = base.packed.clone()
    down, up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)
    nn.init.zeros_(up.weight)
    x, target = torch.randn(128, 64), torch.randn(128, 32) * 0.1
    optimizer = torch.optim.Adam([*down.parameters(), *up.parameters()], lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (base(x + up(down(x))) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(base.packed, before)


def test_weight_is_decoded_for_code_that_looks_at_it():
    """nn.TransformerEncoderLayer's fast path hands linear1.weight to a fused kernel."""
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0).eval()
    x = torch.randn(2, 5, 32)
    expected = layer(x)
    layer.linear1 = Linear.from_float(layer.linear1, "W8A16")
    layer.linear2 = Linear.from_float(layer.linear2, "W8A16")
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, rtol=0.05, atol=0.05)


# ---- one copy ----


def tensor_bytes() -> int:
    """Bytes of all tensors alive, storages counted once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "FP8", "NVFP4A16"])
def test_one_copy_of_the_weight(scheme):
    before = tensor_bytes()
    layer = Linear.from_float(nn.Linear(1024, 2048, bias=False), scheme)
    held = tensor_bytes() - before
    payload = layer.quantized.nbytes
    assert payload <= held <= payload * 1.02 + 4096
    layer(torch.randn(4, 1024))
    assert tensor_bytes() - before == held, "calling it"
    layer.state_dict()
    layer.weight.sum()
    layer.quantized.codes.shape  # noqa: B018
    assert tensor_bytes() - before == held, "looking at it"
    layer.load_state_dict(layer.state_dict())
    assert tensor_bytes() - before == held, "loading it"


def test_one_copy_in_the_process():
    """The process grows by the packed weight, and not by what quantizing and saving need on the way."""
    code = """
import torch, lowbit, gc, ctypes
from lowbit.nn import Linear
libc = ctypes.CDLL(None)
def resident():
    gc.collect(); libc.malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def make():
    layer = Linear.from_float(torch.nn.Linear(4096, 8192, bias=False), "W4A16", scale_dtype="float16")
    layer(torch.randn(1, 4096)); layer.state_dict()
    return layer
Linear.from_float(torch.nn.Linear(256, 256), "W4A16")(torch.randn(1, 256))
make()
before = resident()
layer = make()
print(resident() - before, layer.packed.numel())
"""
    grown, packed = map(int, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert 0.9 * packed < grown < 1.25 * packed


def test_a_quantized_tensor_holds_one_form():
    before = tensor_bytes()
    tensor = lowbit.quantize(torch.randn(512, 1024), "W4A16")
    payload = tensor.nbytes
    assert payload <= tensor_bytes() - before <= payload + 64
    lowbit.linear(torch.randn(1, 1024), tensor)
    assert payload <= tensor_bytes() - before <= payload * 1.02 + 4096
