"""Gradients of the activation and the bias; the weight is frozen."""

import itertools

import pytest
import torch
from oracles import EPS, FLOATS, decode

import lowbit


@pytest.fixture
def weight():
    return lowbit.quantize(torch.randn(24, 96), "W4A16", group_size=32)


@pytest.mark.parametrize(
    ("preset", "activation"),
    [(preset, None) for preset in ("W4A16", "W4A16_ASYM", "W8A16", "FP8", "NVFP4A16", "NF4")]
    + [(preset, "int8") for preset in ("W4A16", "W4A16_ASYM", "W8A8")],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_equal_the_float_layer(preset, activation, dtype):
    weight = lowbit.quantize(torch.randn(24, 96), preset)
    exact = decode(weight)
    x = torch.randn(2, 5, 96).to(dtype).requires_grad_()
    bias = torch.randn(24).to(dtype).requires_grad_()
    grad = torch.randn(2, 5, 24).to(dtype)
    lowbit.linear(x, weight, bias, activation=activation).backward(grad)
    assert x.grad.dtype == bias.grad.dtype == dtype
    expected = grad.double() @ exact
    bound = 4 * EPS[dtype] * (grad.double().abs() @ exact.abs()) + 1e-6
    assert ((x.grad.double() - expected).abs() <= bound).all()
    torch.testing.assert_close(bias.grad, grad.double().sum((0, 1)).to(dtype), rtol=8 * EPS[dtype], atol=8 * EPS[dtype])


@pytest.mark.filterwarnings("ignore:Input .* requires gradient and is not a double")
def test_gradcheck_of_the_float_family():
    """Against finite differences: the op is linear in x, so a coarse step in float32 is exact enough."""
    weight = lowbit.quantize(torch.randn(6, 32), "W4A16")
    x = torch.randn(3, 32, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, b: lowbit.linear(x, weight, b), (x, bias), eps=1e-1, atol=1e-2, rtol=1e-3, fast_mode=False
    )


def test_second_derivatives():
    weight = lowbit.quantize(torch.randn(6, 32), "W4A16")
    x = torch.randn(3, 32, requires_grad=True)
    (grad,) = torch.autograd.grad(lowbit.linear(x, weight).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    w = weight.dequantize()
    expected = 2 * (2 * x.detach() @ w.T @ w) @ (2 * w.T @ w)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [None, "int8"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_short_ways_give_what_the_op_gives(weight, activation, autocast, mode, monkeypatch):
    """Past the registered autograd: the same bits and the same gradients."""

    def run(needed):
        torch.manual_seed(0)
        tensors = [torch.randn(3, 96), torch.randn(24), torch.randn(3, 24)]
        for tensor, wanted in zip(tensors, needed, strict=True):
            tensor.requires_grad_(wanted)
        x, bias, multiply = tensors
        with mode(), torch.autocast("cpu", enabled=autocast):
            plain = lowbit.linear(x, weight, bias, activation=activation)
            y = lowbit.linear(x, weight, bias, activation=activation, activation_function="silu", multiply=multiply)
        assert plain.requires_grad == (mode is torch.enable_grad and any(needed[:2]))
        assert y.requires_grad == (mode is torch.enable_grad and any(needed))
        if y.requires_grad:
            (plain.sum() + y.square().sum()).backward()
        assert [tensor.grad is not None for tensor in tensors] == [wanted and y.requires_grad for wanted in needed]
        return [plain, y, *(tensor.grad for tensor in tensors if tensor.grad is not None)]

    for needed in itertools.product([False, True], repeat=3):
        short = run(needed)
        with monkeypatch.context() as m:
            m.setattr(
                lowbit.functional, "call", lambda name, epilogue, *a: getattr(torch.ops.lowbit, name)(*a, *epilogue)
            )
            long = run(needed)
        assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))


def test_only_what_needs_a_gradient_gets_one(weight):
    x, bias = torch.randn(3, 96), torch.randn(24, requires_grad=True)
    lowbit.linear(x, weight, bias).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(bias.grad, torch.full((24,), 3.0))
    y = lowbit.linear(x.requires_grad_(), weight, bias.detach())
    y.sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert not lowbit.linear(x, weight).requires_grad


@pytest.mark.parametrize("shape", [(96,), (0, 96), (2, 0, 96), (2, 3, 96)])
def test_any_leading_dimensions(weight, shape):
    x, bias = torch.randn(shape, requires_grad=True), torch.randn(24, requires_grad=True)
    y = lowbit.linear(x, weight, bias)
    grad = torch.randn_like(y)
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad @ weight.dequantize())
    torch.testing.assert_close(bias.grad, grad.reshape(-1, 24).sum(0))


@pytest.mark.parametrize(
    "first_use", [lambda weight: weight.pack(), lambda weight: lowbit.linear(torch.ones(96), weight)]
)
def test_a_first_use_in_inference_mode_does_not_prevent_training(first_use):
    with torch.inference_mode():
        weight = lowbit.quantize(torch.randn(24, 96), "W4A16")
        layer = lowbit.nn.Linear(96, 24)
        first_use(weight)
    x = torch.randn(3, 96, requires_grad=True)
    lowbit.linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.dequantize().sum(0).expand(3, -1))
    layer(x).sum().backward()
