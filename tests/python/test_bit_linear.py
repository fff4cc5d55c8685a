"""lowbit.nn.BitLinear: the papers' formulas in plain torch, gradients, training, and the packed layer."""

import copy

import pytest
import torch
import torch.nn.functional as F
from oracles import FLOATS, need
from torch import nn

import lowbit
from lowbit import Scheme
from lowbit.nn import BitLinear, Linear
from lowbit.nn.bit_linear import int8_rows


def formulas(x, weight, bias):
    """BitNet b1.58 as its authors publish it: x + (quantized - x).detach(), in float64."""
    scale = 1.0 / weight.abs().mean().clamp(min=1e-5)
    ternary = (weight * scale).round().clamp(-1, 1) / scale
    weight = weight + (ternary - weight).detach()
    rows = 127.0 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    int8 = (x * rows).round().clamp(-128, 127) / rows
    x = x + (int8 - x).detach()
    return F.linear(x, weight, bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 96), (2, 3, 96), (96,)])
def test_result_and_gradients(bias, shape):
    layer = BitLinear(96, 40, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    parameters = [p.detach().double().requires_grad_() for p in layer.parameters()]
    wide = x.detach().double().requires_grad_()
    expected = formulas(wide, parameters[0], parameters[1] if bias else None)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(layer.parameters(), parameters, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_equals_transformers(dtype):
    bitnet = need("transformers.integrations.bitnet")
    theirs = bitnet.AutoBitLinear(96, 40, online_quant=True).to(dtype)
    layer = BitLinear.from_float(theirs)
    x = torch.randn(5, 96).to(dtype)
    # theirs without torch.compile: the same functions, as they are written
    weight = bitnet.WeightQuant.forward.__wrapped__(None, theirs.weight)
    rows = bitnet.ActQuant.forward.__wrapped__(None, x)
    eps = {torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}[dtype]
    torch.testing.assert_close(layer(x), F.linear(rows, weight, theirs.bias), rtol=eps, atol=eps)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_packed_layer_computes_the_same(dtype):
    layer = BitLinear(200, 70, dtype=dtype)
    packed = layer.pack()
    assert isinstance(packed, Linear)
    assert packed.scheme == Scheme.preset("BITNET")
    assert packed.bias is layer.bias
    assert packed.quantized.equal(layer.quantized)
    x = torch.randn(9, 200).to(dtype)
    x[3] = 0
    eps = {torch.float32: 1e-5, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5}[dtype]
    torch.testing.assert_close(packed(x), layer(x), rtol=eps, atol=eps)
    assert 8 * packed.packed.numel() / (200 * 70) < 4  # with the padding of so small a weight


def test_codes_are_the_weight_that_trained():
    layer = BitLinear(96, 40, bias=False)
    rows = layer(torch.eye(96)).T  # 127 of 127 in every row: x is exact
    assert torch.equal(rows, layer.quantized.dequantize())
    assert len(rows.unique()) == 3


def test_odd_rows():
    layer = BitLinear(16, 4, bias=False)
    x = torch.randn(5, 16)
    x[1], x[2], x[3, 0] = 0.0, 1e-44, float("nan")
    y = layer(x)
    assert torch.equal(y[1:3], torch.zeros(2, 4))
    assert y[3].isnan().all()
    assert y[[0, 4]].isfinite().all()
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(layer(x[:1]), torch.zeros(1, 4))
    assert torch.equal(layer.pack()(x[:1]), torch.zeros(1, 4))


def test_it_learns():
    """A ternary target is found: the latent weight moves through the rounding."""
    target = torch.randint(-1, 2, (8, 32)).float()
    layer = BitLinear(32, 8, bias=False)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(300):
        x = torch.randn(64, 32)
        loss = (layer(x) - x @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    signs = (layer.quantized.dequantize().sign() == target).float().mean()
    assert signs > 0.95, float(signs)


def test_state_dicts_are_those_of_linear():
    source, target = BitLinear(24, 8), BitLinear(24, 8)
    assert list(source.state_dict()) == ["weight", "bias"]
    target.load_state_dict(source.state_dict())
    x = torch.randn(3, 24)
    assert torch.equal(target(x), source(x))
    plain = nn.Linear(24, 8)
    plain.load_state_dict(source.state_dict())
    again = BitLinear.from_float(plain)
    assert again.weight is plain.weight
    assert torch.equal(again(x), source(x))
    packed = source.pack()
    other = Linear(24, 8, scheme="BITNET")
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other(x), packed(x))


def test_quantize_replaces_them_by_what_they_were_trained_for():
    model = nn.Sequential(BitLinear(64, 32), nn.ReLU(), BitLinear(32, 8), nn.Linear(8, 8))
    x = torch.randn(4, 64)
    trained = copy.deepcopy(model)[:3](x)
    report = lowbit.quantize_(model, {"BitLinear": "BITNET", "Linear": "W8A8"})
    assert [str(row.scheme) for row in report] == ["BITNET", "BITNET", "W8A8"]
    torch.testing.assert_close(model[:3](x), trained, rtol=1e-4, atol=1e-4)
    model = nn.Sequential(BitLinear(64, 32), nn.Linear(32, 8))
    report = lowbit.quantize_(model, "W4A16")
    assert report["0"].note == "left as it is: it was trained for BITNET"
    assert type(model[0]) is BitLinear


def test_compiles(fresh_compiler):
    layer = BitLinear(64, 32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 64)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert layer.weight.grad is not None


def test_autocast():
    layer = BitLinear(64, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(4, 64)).dtype == torch.bfloat16


def test_refusals():
    with pytest.raises(TypeError, match="linear is a ReLU"):
        BitLinear.from_float(nn.ReLU())
    layer = BitLinear(8, 4)
    with torch.no_grad():
        layer.weight[1, 2] = float("inf")
    with pytest.raises(ValueError, match=r"1 infinite values, the first at \[1, 2\]"):
        layer.pack()


@pytest.mark.parametrize("dtype", FLOATS)
def test_activations_are_those_of_the_integer_kernels_to_the_bit(dtype):
    """Numbers of few bits are often halfway between two: one more rounding anywhere and they go the other way."""
    x = torch.randn(64, 2048).bfloat16().to(dtype)
    x[0], x[1], x[2] = 0, 1e-30, torch.arange(2048) % 255 - 127
    q, scale, _ = torch.ops.lowbit.quantize_rows(x, True)
    assert torch.equal(int8_rows(x), (q * scale[:, None]).to(dtype))
