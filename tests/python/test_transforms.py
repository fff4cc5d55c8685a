"""torch.func's transforms and forward mode over lowbit.linear, against the decoded weight in torch's own layer."""

import pytest
import torch
import torch.nn.functional as F
from oracles import cross
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import lowbit

EPILOGUES = {
    "none": lambda y, other: (y, {}),
    "gelu": lambda y, other: (F.gelu(y), {"activation_function": "gelu"}),
    "relu": lambda y, other: (F.relu(y), {"activation_function": "relu"}),
    "gate": lambda y, other: (F.silu(y) * other, {"activation_function": "silu", "multiply": other}),
    "residual": lambda y, other: (F.silu(y) + other, {"activation_function": "silu", "residual": other}),
    "product": lambda y, other: (y * other, {"multiply": other}),
}


@pytest.fixture
def weight():
    return lowbit.quantize(torch.randn(24, 96) / 8, "W4A16", group_size=32)


def pair(weight, epilogue):
    """Ours and torch's, functions of x, bias and the other tensor."""

    def ours(x, bias, other):
        return lowbit.linear(x, weight, bias, **EPILOGUES[epilogue](torch.zeros(()), other)[1])

    def theirs(x, bias, other):
        return EPILOGUES[epilogue](F.linear(x, weight.dequantize(), bias), other)[0]

    return ours, theirs


def arguments(rows=3):
    return torch.randn(rows, 96), torch.randn(24), torch.randn(rows, 24)


TRANSFORMS = {
    "grad": lambda f: grad(lambda *a: f(*a).square().sum(), argnums=(0, 1, 2)),
    "jacrev": lambda f: jacrev(f, argnums=(0, 1)),
    "jacfwd": lambda f: jacfwd(f, argnums=(0, 1)),
    "jvp": lambda f: lambda *a: jvp(f, a, tuple(t.flip(-1) for t in a)),
    "vjp": lambda f: lambda *a: vjp(f, *a)[1](a[2]),
    "vmap": lambda f: vmap(f, in_dims=(0, None, 0)),
    "vmap of the last dimension": lambda f: lambda x, b, o: vmap(f, in_dims=(1, None, 1), out_dims=1)(x.T, b, o.T),
    "vmap of grad": lambda f: vmap(grad(lambda *a: f(*a).square().sum()), in_dims=(0, None, 0)),
    "vmap over biases": lambda f: lambda x, b, o: vmap(f, in_dims=(None, 0, None))(x, torch.stack([b, -b]), o),
    "grad of vmap": lambda f: grad(lambda x, b, o: vmap(f, in_dims=(0, None, 0))(x, b, o).square().sum()),
    "vmap of vmap": lambda f: (
        lambda x, b, o: vmap(vmap(f, in_dims=(0, None, 0)), in_dims=(None, 0, None))(x, b[None], o)
    ),
}


@pytest.mark.parametrize(*cross(transform=TRANSFORMS, epilogue=EPILOGUES))
def test_transforms_equal_those_of_the_float_layer(weight, transform, epilogue):
    ours, theirs = (TRANSFORMS[transform](f) for f in pair(weight, epilogue))
    given = arguments()
    torch.testing.assert_close(ours(*given), theirs(*given), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("epilogue", ["none", "gelu"])
def test_second_derivatives(weight, epilogue):
    ours, theirs = (lambda x, f=f: f(x[None], bias, other).square().sum() for f in pair(weight, epilogue))
    x, bias, other = arguments(1)
    torch.testing.assert_close(hessian(ours)(x[0]), hessian(theirs)(x[0]), rtol=1e-3, atol=1e-3)


def test_forward_mode(weight):
    ours, theirs = pair(weight, "gate")
    given = arguments()
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, t.flip(-1)) for t in given]
        mine, other = (forward_ad.unpack_dual(f(*duals)).tangent for f in (ours, theirs))
        only_bias = forward_ad.unpack_dual(ours(given[0], duals[1], given[2])).tangent
        assert forward_ad.unpack_dual(ours(*given)).tangent is None or not only_bias.equal(mine)
    torch.testing.assert_close(mine, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("x_scale", [None, 0.02, "rows"])
@pytest.mark.parametrize("preset", ["W8A8", "W4A8"])
def test_rounding_of_x_is_passed_straight_through(preset, x_scale):
    weight = lowbit.quantize(torch.randn(24, 96) / 8, preset)
    x = torch.randn(3, 96)
    scale = torch.rand(3) / 50 + 0.01 if x_scale == "rows" else x_scale

    def f(x):
        return lowbit.linear(x, weight, activation="int8", x_scale=scale)

    torch.testing.assert_close(grad(lambda x: f(x).sum())(x), weight.dequantize().sum(0).expand(3, -1))
    torch.testing.assert_close(jvp(f, (x,), (x,))[1], x @ weight.dequantize().T, rtol=1e-4, atol=1e-4)
    if x_scale != "rows":
        assert torch.equal(vmap(f)(x), f(x))


def test_a_layer_under_functional_call_and_an_ensemble_of_biases(weight):
    layer = lowbit.nn.Linear.from_float(torch.nn.Linear(96, 24), "W4A16")
    x = torch.randn(3, 96)

    def loss(parameters):
        return functional_call(layer, parameters, (x,)).square().sum()

    got = grad(loss)({"bias": layer.bias.detach()})["bias"]
    loss(dict(layer.named_parameters())).backward()
    torch.testing.assert_close(got, layer.bias.grad)
    biases = torch.randn(4, 24)
    each = torch.stack([functional_call(layer, {"bias": bias}, (x,)) for bias in biases])
    assert torch.equal(vmap(lambda bias: functional_call(layer, {"bias": bias}, (x,)))(biases), each)


def test_a_weight_that_is_packed_inside_a_transform_outlives_it(weight):
    x = torch.randn(3, 96)
    first = grad(lambda x: vmap(lambda x: lowbit.linear(x, weight))(x).square().sum())(x)
    assert weight.is_packed
    assert torch.equal(grad(lambda x: lowbit.linear(x, weight).square().sum())(x), first)


def test_the_operator_has_a_batching_rule(weight, capfd):
    x, bias = torch.randn(5, 3, 96), torch.randn(24)
    got = vmap(lambda x: torch.ops.lowbit.weight_only(x, weight.pack(), bias, 24))(x)
    assert torch.equal(got, lowbit.linear(x, weight, bias))
    assert "batching rule" not in capfd.readouterr().err  # torch's warning where it lacks one


def test_the_operator_alone_refuses_what_it_would_get_wrong(weight):
    x, packed = torch.randn(3, 96), weight.pack()

    def op(x):
        return torch.ops.lowbit.weight_only(x, packed, None, 24)

    for attempt in (lambda: jvp(op, (x,), (x,)), lambda: grad(lambda x: op(x).sum())(x)):
        with pytest.raises(NotImplementedError, match=r"weight_only: .* take lowbit\.linear"):
            attempt()
