"""What may follow a product: lowbit.linear's activation_function, multiply and residual, against torch."""

import pytest
import torch
import torch.nn.functional as F
from oracles import EPS, FLOATS, cross

import lowbit
from lowbit.ops import ops

FUNCTIONS = {
    None: lambda z: z,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "relu": F.relu,
}
EXACT = {  # in double, where torch's own 1 + erf and 1 + tanh cancel
    "silu": lambda z: z * torch.sigmoid(z),
    "gelu": lambda z: 0.5 * z * torch.special.erfc(-z * 0.5**0.5),
    "gelu_tanh": lambda z: z * torch.sigmoid((8 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)),
    "relu": lambda z: z.clamp(min=0),
}
SLOPE = 1.13  # no function is steeper


def combine(y, how, other):
    if how is None:
        return y
    return y * other if how == "multiply" else y + other


def operands(how, other):
    return {} if how is None else {how: other}


@pytest.fixture
def weight():
    return lowbit.quantize(torch.randn(50, 320) * 0.2, "W8A8")


# ---- answers ----


@pytest.mark.parametrize("activation", [None, "int8"])
@pytest.mark.parametrize(
    *cross(function=list(FUNCTIONS), how=[None, "multiply", "residual"], dtype=FLOATS, m=[1, 5, 40])
)
def test_against_torch(weight, activation, function, how, dtype, m):
    """The same product without an epilogue, in float32 or rounded to y, through torch's functions in double."""
    x, bias = torch.randn(m, 320).to(dtype), torch.randn(50).to(dtype)
    other = torch.randn(m, 50).to(FLOATS[(m + len(str(how))) % 3])
    y = lowbit.linear(x, weight, bias, activation=activation, activation_function=function, **operands(how, other))
    assert y.dtype == dtype
    if activation:
        z = lowbit.linear(x, weight, bias, activation=activation, out_dtype=torch.float32)
        rounding = 2.0**-23
    else:
        z = lowbit.linear(x, weight, bias)
        rounding = EPS[dtype]
    z = z.double()
    expected = combine(FUNCTIONS[function](z), how, other.double())
    factor = other.double().abs() if how == "multiply" else 1
    bound = EPS[dtype] * expected.abs() + (SLOPE * rounding + 2.0**-22) * z.abs() * factor + 1e-6
    assert ((y.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("function", ["silu", "gelu", "gelu_tanh", "relu"])
def test_functions_over_all_of_float32(function):
    """An identity for a weight: every pattern of float32 goes through the function."""
    identity = lowbit.quantize(torch.eye(64), "MXFP4A16")  # 1 is exact, and no sum larger than x is scaled down to it
    exponents = torch.arange(-149, 128)
    x = torch.cat([2.0**exponents, -(2.0**exponents), torch.linspace(-120, 120, 20001), torch.zeros(2)]).float()
    x = F.pad(x, (0, -x.numel() % 64)).reshape(-1, 64)
    diagonal = torch.eye(64).repeat(x.shape[0], 1) * x.reshape(-1, 1)  # one number in a row: no sum
    z = lowbit.linear(diagonal, identity).double()
    y = lowbit.linear(diagonal, identity, activation_function=function).double()
    expected = EXACT[function](z)
    relative = 2e-5 if function == "gelu_tanh" else 2.0**-20
    assert ((y - expected).abs() <= relative * expected.abs() + 2.0**-148).all()


def test_ends():
    identity = lowbit.quantize(torch.eye(2), "W8A16")
    x = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [3e38, 0.0]])
    for function in ("silu", "gelu", "gelu_tanh", "relu"):
        y = lowbit.linear(x, identity, activation_function=function)[:, 0]
        assert y[0].isnan()
        assert y[2] > 2e38


def test_a_residual_is_rounded_once():
    identity = lowbit.quantize(torch.eye(64), "MXFP4A16")  # 1 is exact
    x = torch.full((1, 64), 1.0, dtype=torch.bfloat16)
    residual = torch.full((1, 64), 2.0**-9)
    y = lowbit.linear(x, identity, residual=residual)
    assert torch.equal(y, (x.float() + residual).bfloat16())
    z = lowbit.linear(x.float(), identity, residual=residual)
    assert torch.equal(z, x.float() + residual)


@pytest.mark.parametrize("activation", [None, "int8"])
def test_shapes_and_strides(weight, activation):
    x = torch.randn(3, 4, 320)
    wide = torch.randn(3, 4, 120)
    for other in (wide[..., :50], wide[..., 60:110], torch.randn(3, 50, 4).mT, torch.randn(4, 3, 50).transpose(0, 1)):
        y = lowbit.linear(x, weight, activation=activation, activation_function="silu", multiply=other)
        expected = lowbit.linear(
            x, weight, activation=activation, activation_function="silu", multiply=other.contiguous()
        )
        assert torch.equal(y, expected)
    empty = lowbit.linear(x[:0], weight, activation=activation, residual=wide[:0, :, :50])
    assert empty.shape == (0, 4, 50)
    vector = lowbit.linear(x[0, 0], weight, activation=activation, residual=wide[0, 0, :50])
    assert torch.equal(
        vector, lowbit.linear(x[:1, :1], weight, activation=activation, residual=wide[:1, :1, :50])[0, 0]
    )


@pytest.mark.parametrize("activation", [None, "int8"])
def test_rows_do_not_depend_on_the_batch(weight, activation):
    x, up = torch.randn(70, 320).bfloat16(), torch.randn(70, 50).bfloat16()
    kwargs = {"activation": activation, "activation_function": "gelu"}
    y = lowbit.linear(x, weight, multiply=up, **kwargs)
    for rows in (slice(0, 1), slice(3, 5), slice(17, 50)):
        assert torch.equal(lowbit.linear(x[rows], weight, multiply=up[rows], **kwargs), y[rows])


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "INT8"])
def test_layers_take_them(scheme):
    layer = lowbit.nn.Linear(96, 24, scheme=scheme)
    x, up = torch.randn(5, 96), torch.randn(5, 24)
    y = layer(x, activation_function="silu", multiply=up)
    torch.testing.assert_close(y, F.silu(layer(x)) * up, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer(x, residual=up), layer(x) + up, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="nothing is broadcast"):
        layer(x, residual=up[:1])


# ---- gradients, compilation, autocast ----


@pytest.mark.parametrize("activation", [None, "int8"])
@pytest.mark.parametrize(*cross(function=list(FUNCTIONS), how=["multiply", "residual"]))
def test_gradients(weight, activation, function, how):
    """Those of the same product followed by torch's own operations."""
    grads = []
    x, bias, other = torch.randn(3, 2, 320), torch.randn(50), torch.randn(3, 2, 50)
    dy = torch.randn(3, 2, 50)
    for fused in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, bias, other)]
        a, b, o = leaves
        if fused:
            y = lowbit.linear(a, weight, b, activation=activation, activation_function=function, **operands(how, o))
        else:
            y = combine(FUNCTIONS[function](lowbit.linear(a, weight, b, activation=activation)), how, o)
        grads.append(torch.autograd.grad(y, leaves, dy))
    for ours, torchs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5)


def test_gradients_have_their_tensors_dtypes(weight):
    x = torch.randn(3, 320, dtype=torch.bfloat16, requires_grad=True)
    up = torch.randn(3, 50, requires_grad=True)
    lowbit.linear(x, weight, activation_function="silu", multiply=up).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert up.grad.dtype == torch.float32
    residual = torch.randn(3, 50, requires_grad=True)
    lowbit.linear(x.detach(), weight, residual=residual).sum().backward()
    assert torch.equal(residual.grad, torch.ones(3, 50))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(weight, requires_grad):
    packed = weight.pack()
    x = torch.randn(4, 320, requires_grad=requires_grad)
    other = torch.randn(4, 50, requires_grad=requires_grad)
    for function, multiply, residual in (("silu", other, None), (None, None, other), ("gelu", None, None)):
        args = (x, packed, None, 50)
        results = torch.library.opcheck(ops.weight_only.default, (*args, None, function, multiply, residual))
        assert set(results.values()) == {"SUCCESS"}
        integer = (*args, None, None, True, torch.float32, None, function, multiply, residual)
        assert set(torch.library.opcheck(ops.integer.default, integer).values()) == {"SUCCESS"}


class GatedMlp(torch.nn.Module):
    def __init__(self, scheme):
        super().__init__()
        self.gate = lowbit.nn.Linear(96, 64, scheme=scheme, bias=False)
        self.up = lowbit.nn.Linear(96, 64, scheme=scheme, bias=False)
        self.down = lowbit.nn.Linear(64, 96, scheme=scheme, bias=False)

    def forward(self, x):
        return self.down(self.gate(x, activation_function="silu", multiply=self.up(x)), residual=x)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("scheme", ["W4A16", "W8A8"])
def test_compiles_whole(scheme):
    mlp = GatedMlp(scheme)
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 96, requires_grad=True)
    y, expected = compiled(x), mlp(x)
    assert torch.equal(y, expected)
    ours, eager = (torch.autograd.grad(z.square().sum(), x)[0] for z in (y, expected))
    torch.testing.assert_close(ours, eager)
    exported = torch.export.export(mlp, (x.detach(),))
    assert torch.equal(exported.module()(x.detach()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(weight, dtype):
    x, up = torch.randn(3, 320), torch.randn(3, 50)
    with torch.autocast("cpu", dtype=dtype):
        y = lowbit.linear(x, weight, activation_function="silu", multiply=up)
        z = lowbit.linear(x, weight, activation="int8", residual=up)
    assert y.dtype == z.dtype == dtype
    assert torch.equal(y, lowbit.linear(x.to(dtype), weight, activation_function="silu", multiply=up))
    assert torch.equal(z, lowbit.linear(x, weight, activation="int8", residual=up, out_dtype=dtype))


# ---- bad input ----

X, Y = torch.randn(3, 320), torch.randn(3, 50)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"activation_function": "tanh"}, ValueError, r"'tanh': it must be None, 'silu', 'gelu', 'gelu_tanh', 'relu'"),
        ({"multiply": Y, "residual": Y}, ValueError, "only one of them"),
        ({"multiply": 2.0}, TypeError, "multiply is a float"),
        ({"residual": Y.double()}, TypeError, "residual is float64"),
        ({"residual": Y[:1]}, ValueError, "residual is 1 x 50: it must be 3 x 50"),
        ({"multiply": Y[0]}, ValueError, r"multiply is \[50\]: it must be 3 x 50"),
        ({"multiply": Y[:, :1]}, ValueError, "multiply is 3 x 1"),
        ({"residual": Y.to("meta")}, ValueError, "residual is on meta, x on cpu"),
    ],
)
@pytest.mark.parametrize("activation", [None, "int8"])
def test_bad_arguments_are_refused(weight, activation, arguments, error, words):
    with pytest.raises(error, match=words):
        lowbit.linear(X, weight, activation=activation, **arguments)


@pytest.mark.parametrize(
    ("epilogue", "words"),
    [
        (("tanh", None, None), "function is 'tanh'"),
        ((None, Y, Y), "one of them can be"),
        ((None, Y[:1], None), r"multiply has shape \[1, 50\]: it must be \[3, 50\]"),
        ((None, None, Y.double()), "residual has dtype"),
    ],
)
def test_the_ops_refuse_them_too(weight, epilogue, words):
    with pytest.raises((ValueError, RuntimeError), match=words):
        ops.weight_only(X, weight.pack(), None, 50, None, *epilogue)
