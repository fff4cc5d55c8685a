"""torch.ops.lowbit and lowbit.linear: answers, fakes, compilation, autocast, threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    EPS,
    FLOATS,
    cross,
    decode,
    format_cases,
    integer_linear,
    matmul_bound,
    quantize_rows,
    random_tensor,
)

import lowbit
from lowbit import formats
from lowbit._load import core
from lowbit.ops import ops

INTEGERS = [
    pytest.param(formats.get(name), zero, id=name + ("-asym" if zero else ""))
    for name in ("int4", "int8")
    for zero in (False, True)
]


# ---- answers ----


@pytest.mark.parametrize(("fmt", "zero"), format_cases())
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [1, 5, 40])
def test_weight_only(fmt, zero, dtype, m):
    weight = random_tensor(fmt, 50, 320, group=(1, 64), zero_points=zero)
    exact = decode(weight)
    x, bias = torch.randn(m, 320).to(dtype), torch.randn(50).to(dtype)
    y = x.double() @ exact.T + bias.double()
    result = lowbit.linear(x, weight, bias)
    assert result.dtype == dtype
    bound = matmul_bound(x, exact, y) + EPS[dtype] * bias.double().abs()
    assert ((result.double() - y).abs() <= bound).all()


@pytest.mark.parametrize("preset", ["W4A16", "W8A16", "FP8", "NVFP4A16", "NF4"])
def test_float32_is_computed_in_float32(preset):
    weight = lowbit.quantize(torch.randn(300, 1008), preset)
    x = torch.randn(33, 1008)
    exact = x.double() @ decode(weight).T
    error = (lowbit.linear(x, weight).double() - exact).norm() / exact.norm()
    assert error < 1e-5


@pytest.mark.parametrize(("fmt", "zero"), INTEGERS)
@pytest.mark.parametrize(*cross(dtype=FLOATS, symmetric=[True, False], m=[1, 5, 40]))
def test_integer_dynamic(fmt, zero, dtype, symmetric, m):
    weight = random_tensor(fmt, 50, 320, group=(1, 64), zero_points=zero)
    x, bias = (torch.randn(m, 320) + 0.3).to(dtype), torch.randn(50).to(dtype)
    q, scale, zero_point = quantize_rows(x, symmetric)
    ours = ops.quantize_rows(x, symmetric)
    assert torch.equal(ours[0], q)
    torch.testing.assert_close(ours[1], scale, rtol=2.0**-23, atol=0)
    assert torch.equal(ours[2], zero_point)
    y = integer_linear(*ours, weight) + bias.double()
    result = lowbit.linear(x, weight, bias, activation="int8", symmetric=symmetric)
    assert result.dtype == dtype
    size = (q.double().abs() + 128) @ decode(weight).abs().T * scale.double()[:, None] + bias.double().abs()
    assert ((result.double() - y).abs() <= EPS[dtype] * y.abs() + 1e-6 * size).all()


@pytest.mark.parametrize(("fmt", "zero"), INTEGERS)
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("zero_point", [False, True])
def test_integer_static(fmt, zero, rows, zero_point):
    weight = random_tensor(fmt, 50, 320, group=(1, 64), zero_points=zero)
    x = torch.randn(7, 320)
    scale = torch.rand(rows) * 0.01 + 0.02
    zeros = torch.randint(-20, 20, (rows,), dtype=torch.int32) if zero_point else None
    shift = zeros[:, None] if zero_point else torch.zeros(1, 1)
    q = (torch.round(x * (1 / scale[:, None])) + shift).clamp(-128, 127).to(torch.int8)
    y = integer_linear(q, scale.expand(7), (zeros if zero_point else torch.zeros(1)).expand(7), weight)
    result = lowbit.linear(x, weight, activation="int8", x_scale=scale, x_zero_point=zeros)
    size = (q.double().abs() + 128) @ decode(weight).abs().T * scale.double().expand(7)[:, None]
    assert ((result.double() - y).abs() <= 1e-6 * size).all()
    from_int8 = lowbit.linear(q, weight, activation="int8", x_scale=scale, x_zero_point=zeros)
    assert from_int8.dtype == torch.float32
    assert torch.equal(from_int8, result)
    half = lowbit.linear(q, weight, activation="int8", x_scale=scale, x_zero_point=zeros, out_dtype=torch.bfloat16)
    assert torch.equal(half, result.to(torch.bfloat16))


@given(
    n=st.integers(1, 80),
    k=st.integers(1, 300),
    m=st.integers(0, 20),
    group=st.tuples(st.integers(1, 90), st.integers(1, 310)),
    case=st.sampled_from([(f, z) for f in formats.table() for z in (False, True)]),
    dtype=st.sampled_from(FLOATS),
    activation=st.sampled_from([None, "int8"]),
    seed=st.integers(0, 9),
)
def test_any_shape(n, k, m, group, case, dtype, activation, seed):
    torch.manual_seed(seed)
    fmt = formats.get(case[0])
    k = -(-k // max(1, fmt.block_k)) * max(1, fmt.block_k)
    weight = random_tensor(fmt, n, k, group, case[1] and fmt.zero_point)
    exact = decode(weight)
    x = torch.randn(m, k).to(dtype)
    if activation and fmt.zero_point:
        q, scale, zero = ops.quantize_rows(x, True)
        y = integer_linear(q, scale, zero, weight)
        bound = EPS[dtype] * y.abs() + 1e-6 * (x.double().abs() @ exact.abs().T) + 1e-6
        result = lowbit.linear(x, weight, activation="int8")
    else:
        y = x.double() @ exact.T
        bound = matmul_bound(x, exact, y)
        result = lowbit.linear(x, weight)
    assert result.shape == (m, n)
    assert ((result.double() - y).abs() <= bound).all()


def both(weight, **options):
    """The two families as functions of (x, bias)."""
    packed, n = weight.pack(), weight.shape[0]
    return [
        lambda x, bias=None: ops.weight_only(x, packed, bias, n),
        lambda x, bias=None: ops.integer(x, packed, bias, n, None, None, True, x.dtype),
    ]


@pytest.fixture
def weight():
    return lowbit.quantize(torch.randn(24, 96), "W4A16", group_size=32)


@pytest.mark.parametrize("family", [0, 1])
class TestShapes:
    def test_leading_dimensions(self, weight, family):
        f = both(weight)[family]
        x = torch.randn(2, 3, 4, 96)
        assert f(x).shape == (2, 3, 4, 24)
        assert torch.equal(f(x).reshape(-1, 24), f(x.reshape(-1, 96)))
        assert torch.equal(f(x[0, 0, 0]), f(x.reshape(-1, 96))[0])

    def test_empty_batches(self, weight, family):
        f = both(weight)[family]
        for shape in ((0,), (0, 5), (3, 0, 2)):
            assert f(torch.randn(*shape, 96)).shape == (*shape, 24)

    def test_strides(self, weight, family):
        f = both(weight)[family]
        whole = torch.randn(6, 200)
        for x in (
            whole[:, :96],
            whole[:, 3:99],
            whole[:, ::2][:, :96],
            whole[::2, :96],
            torch.randn(96, 6).t(),
            torch.randn(1, 96).expand(6, 96),
            torch.randn(2, 96, 3).transpose(1, 2),
            torch.randn(3, 2, 96).transpose(0, 1),
            torch.randn(6, 96).as_strided((4, 96), (40, 1)),
        ):
            assert torch.equal(f(x), f(x.clone(memory_format=torch.contiguous_format)))
            assert torch.equal(f(x.bfloat16()), f(x.bfloat16().clone(memory_format=torch.contiguous_format)))

    def test_bias_dtypes_and_strides(self, weight, family):
        f = both(weight)[family]
        x = torch.randn(3, 96)
        bias = torch.randn(48)[::2]
        assert torch.equal(f(x, bias), f(x, bias.contiguous()))
        for dtype in FLOATS:
            torch.testing.assert_close(f(x, bias.to(dtype)), f(x) + bias.to(dtype).float())

    def test_batch_invariance(self, weight, family):
        f = both(weight)[family]
        for dtype in FLOATS:
            x = torch.randn(70, 96).to(dtype)
            whole = f(x)
            for count in (1, 2, 15, 16, 17, 33, 64):
                assert torch.equal(f(x[:count]), whole[:count])

    def test_threads_do_not_matter(self, family, threads):
        weight = lowbit.quantize(torch.randn(300, 700), "W4A16")
        f = both(weight)[family]
        x = torch.randn(65, 700, dtype=torch.bfloat16)
        results = []
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            results.append(f(x))
        assert all(torch.equal(result, results[0]) for result in results)

    def test_concurrent_calls(self, family):
        weight = lowbit.quantize(torch.randn(200, 512), "W4A16")
        f = both(weight)[family]
        inputs = [torch.randn(9, 512) for _ in range(8)]
        expected = [f(x) for x in inputs]
        wrong = []

        def work(index):
            for _ in range(20):
                if not torch.equal(f(inputs[index]), expected[index]):
                    wrong.append(index)

        workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong

    def test_threads_meet_at_the_first_use_and_while_the_level_changes(self, family):
        """Each result has the bits of one level or another, whoever packs and whoever changes the level."""
        weight = torch.randn(70, 512)
        x = torch.randn(9, 512)
        before = core().cpu_isa()
        levels = [isa["name"] for isa in core().cpu_isas() if isa["supported"]]
        activation = (None, "int8")[family]
        possible = []
        try:
            for level in levels:
                core().set_cpu_isa(level)
                possible.append(lowbit.linear(x, lowbit.quantize(weight, "W4A16"), activation=activation))
            for _ in range(5):
                fresh = lowbit.quantize(weight, "W4A16")
                with ThreadPoolExecutor(5) as pool:
                    changes = pool.submit(lambda: [core().set_cpu_isa(level) for level in levels * 20])
                    results = [pool.submit(lowbit.linear, x, fresh, activation=activation) for _ in range(16)]
                changes.result()
                for result in results:
                    assert any(torch.equal(result.result(), y) for y in possible)
        finally:
            core().set_cpu_isa(before)

    def test_not_finite_activations(self, weight, family):
        f = both(weight)[family]
        x = torch.randn(4, 96)
        x[1, 5], x[2, 7] = float("nan"), float("inf")
        result = f(x)
        assert result[1].isnan().all()
        assert not result[2].isfinite().all()
        assert result[0].isfinite().all()
        assert torch.equal(result[3], f(x[3:])[0])

    def test_inference_mode(self, weight, family):
        x = torch.randn(4, 96)
        expected = both(weight)[family](x)
        with torch.inference_mode():
            assert torch.equal(both(weight)[family](x), expected)


# ---- opcheck ----


def opcheck(op, *args):
    result = torch.library.opcheck(op, args)
    assert set(result.values()) == {"SUCCESS"}, result


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_multiplications(weight, requires_grad, dtype):
    packed = weight.pack()
    x = torch.randn(2, 3, 96, dtype=dtype, requires_grad=requires_grad)
    bias = torch.randn(24, dtype=dtype, requires_grad=requires_grad)
    for b in (None, bias):
        opcheck(ops.weight_only.default, x, packed, b, 24)
        opcheck(ops.integer.default, x, packed, b, 24, None, None, True, dtype)
    opcheck(ops.integer.default, x, packed, None, 24, torch.tensor([0.02]), torch.tensor([3]).int(), True, dtype)
    q = torch.randint(-128, 128, (4, 96), dtype=torch.int8)
    opcheck(ops.integer.default, q, packed, None, 24, torch.full((4,), 0.02), None, True, torch.float32)


@pytest.mark.parametrize("preset", ["W4A16", "W4A16_ASYM", "FP8", "NVFP4A16", "MXFP8A16"])
def test_opcheck_weights(preset):
    tensor = lowbit.quantize(torch.randn(24, 96), preset)
    raw = lambda t: t.view(torch.uint8) if t.element_size() == 1 else t  # noqa: E731
    codes, scales, zeros = raw(tensor.codes), raw(tensor.scales), tensor.zero_points
    name, shape, group, factor = tensor.format.name, tensor.shape, tensor.group, tensor.global_scale
    opcheck(ops.pack.default, codes, scales, zeros, factor, name, *shape, *group)
    opcheck(ops.dequantize.default, codes, scales, zeros, factor, name, *shape, *group, torch.float32)
    packed = tensor.pack()
    opcheck(ops.dequantize_packed.default, packed, *shape, torch.bfloat16)
    opcheck(ops.unpack.default, packed, codes.clone(), scales.clone(), None if zeros is None else zeros.clone())


def test_opcheck_encode_and_quantize_rows():
    opcheck(ops.encode.default, torch.randn(24, 97), torch.rand(24, 4) + 0.1, None, "int4", 1, 32)
    zeros = torch.randint(-8, 8, (24, 4), dtype=torch.int8)
    opcheck(ops.encode.default, torch.randn(24, 97), torch.rand(24, 4) + 0.1, zeros, "int4", 1, 32)
    opcheck(ops.encode.default, torch.randn(24, 97), torch.rand(24, 4) + 0.1, None, "fp8_e4m3", 1, 32)
    for symmetric in (True, False):
        opcheck(ops.quantize_rows.default, torch.randn(5, 33), symmetric)


# ---- compilation and export ----


class Net(torch.nn.Module):
    def __init__(self, scheme, **options):
        super().__init__()
        self.first = lowbit.nn.Linear(96, 64, scheme=scheme, **options)
        self.second = lowbit.nn.Linear(64, 8, scheme=scheme, bias=False, **options)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


STATIC = lowbit.Scheme.preset("W8A8", activation_dynamic=False)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "W4A8", "FP8_BLOCK", "NVFP4A16", STATIC], ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(scheme, dynamic):
    options = {"input_scale": 0.05} if scheme is STATIC else {}
    net = Net(scheme, **options)
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for m in (1, 4, 7):
        x = torch.randn(m, 96)
        torch.testing.assert_close(compiled(x), net(x))
    x = torch.randn(4, 96, requires_grad=True)
    compiled(x).sum().backward()
    expected = torch.autograd.grad(net(x).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_with_inductor():
    net = Net("W4A16")
    x = torch.randn(4, 96)
    torch.testing.assert_close(torch.compile(net, fullgraph=True)(x), net(x))


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_the_functional_form(weight):
    def f(x):
        return lowbit.linear(x * 2, weight, activation="int8") + lowbit.linear(x, weight)

    weight.pack()
    x = torch.randn(4, 96)
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8"])
def test_export(scheme, tmp_path):
    net = Net(scheme).eval()
    x = torch.randn(4, 96)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("lowbit" in name for name in names)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    for m in (1, 4, 9):
        x = torch.randn(m, 96)
        assert torch.equal(loaded(x), net(x))


def test_fake_tensors_and_meta(weight):
    packed = weight.pack()
    x = torch.empty(5, 2, 96, dtype=torch.bfloat16, device="meta")
    y = ops.weight_only(x, packed.to("meta"), None, 24)
    assert (y.shape, y.dtype, y.device.type) == ((5, 2, 24), torch.bfloat16, "meta")
    y = ops.integer(x, packed.to("meta"), None, 24, None, None, True, torch.float32)
    assert (y.shape, y.dtype) == ((5, 2, 24), torch.float32)


# ---- autocast ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_its_dtype_as_linear_does(weight, dtype):
    x, bias = torch.randn(3, 96, requires_grad=True), torch.randn(24)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.nn.functional.linear(x, weight.dequantize(), bias).dtype == dtype
        y = lowbit.linear(x, weight, bias)
        z = lowbit.linear(x, weight, bias, activation="int8")
    assert y.dtype == z.dtype == dtype
    assert torch.equal(y, lowbit.linear(x.to(dtype), weight, bias.to(dtype)))
    assert torch.equal(z, lowbit.linear(x, weight, bias, activation="int8", out_dtype=dtype))
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.usefixtures("fresh_compiler")
def test_autocast_compiles():
    net = Net("W4A16")
    x = torch.randn(3, 96)

    def f(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(x)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert compiled(x).dtype == torch.bfloat16
    torch.testing.assert_close(compiled(x), f(x))


# ---- bad input ----

X = torch.randn(3, 96)
NAN, INF = float("nan"), float("inf")

BAD = [
    ({"x": [1.0]}, TypeError, "x is a list"),
    ({"x": X.double()}, TypeError, "x is float64: it must be float32, float16 or bfloat16"),
    ({"x": X.to(torch.int8)}, TypeError, "x is int8: .*needs activation='int8' and a static scale"),
    ({"x": X[:, :95]}, ValueError, "x is 3 x 95: its last dimension must be 96"),
    ({"x": X[0, 0]}, ValueError, "x is a scalar"),
    ({"x": X.to("meta")}, ValueError, "x is on meta, the weight on cpu"),
    ({"bias": 1.0}, TypeError, "bias is a float"),
    ({"bias": torch.zeros(24, dtype=torch.int32)}, TypeError, "bias is int32"),
    ({"bias": torch.zeros(23)}, ValueError, r"bias is \[23\]: it must be \[24\]"),
    ({"bias": torch.zeros(1, 24)}, ValueError, "bias is 1 x 24"),
    ({"bias": torch.zeros(24, device="meta")}, ValueError, "bias is on meta"),
    ({"weight": torch.zeros(24, 96)}, TypeError, "packed weight is float32: it must be uint8; lowbit.quantize makes"),
    ({"weight": "W4A16"}, TypeError, "packed weight is a str"),
    ({"activation": "fp8"}, ValueError, "activation is 'fp8'"),
    ({"symmetric": False}, ValueError, "symmetric: only activation='int8' or 'fp8' takes this"),
    ({"x_scale": 0.1, "out_dtype": torch.float32}, ValueError, "x_scale, out_dtype: only activation"),
    ({"activation": "int8", "x_zero_point": 3}, ValueError, "x_zero_point without x_scale"),
    ({"activation": "int8", "x_scale": 0.0}, ValueError, "x_scale holds 0: every scale must be positive"),
    ({"activation": "int8", "x_scale": -0.1}, ValueError, "x_scale holds -0.1"),
    ({"activation": "int8", "x_scale": NAN}, ValueError, "x_scale holds nan"),
    ({"activation": "int8", "x_scale": torch.tensor([0.1, INF, 0.1])}, ValueError, "x_scale holds inf"),
    ({"activation": "int8", "x_scale": torch.ones(2)}, ValueError, "x_scale has 2 numbers: it must have 1 or 3"),
    ({"activation": "int8", "x_scale": torch.ones(1).int()}, TypeError, "x_scale is int32"),
    ({"activation": "int8", "x_scale": 0.1, "x_zero_point": 128}, ValueError, "x_zero_point holds 128"),
    ({"activation": "int8", "x_scale": 0.1, "x_zero_point": -129}, ValueError, "x_zero_point holds -129"),
    ({"activation": "int8", "x_scale": 0.1, "x_zero_point": 0.5}, TypeError, "x_zero_point is float32"),
    ({"activation": "int8", "x_scale": 0.1, "x_zero_point": torch.zeros(2).int()}, ValueError, "x_zero_point has 2"),
    ({"activation": "int8", "out_dtype": torch.int32}, TypeError, "out_dtype is int32"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD, ids=range(len(BAD)))
def test_refusals(weight, changed, error, message):
    with pytest.raises(error, match=message):
        lowbit.linear(**{"x": X, "weight": weight, **changed})


def test_a_description_is_that_of_the_packed_weight(weight):
    packed, text = weight.pack(), "int4 24x96 1x32 float32"
    assert torch.equal(ops.weight_only(X, packed, None, 24, text), ops.weight_only(X, packed, None, 24))
    with pytest.raises(
        ValueError, match=f"description is 'int4 24x96 1x48 float32', but the packed weight is '{text}'"
    ):
        ops.weight_only(X, packed, None, 24, "int4 24x96 1x48 float32")


def test_integer_needs_an_integer_weight():
    with pytest.raises(ValueError, match="needs an integer weight, not nf4"):
        lowbit.linear(X, lowbit.quantize(torch.randn(8, 96), "NF4"), activation="int8")


def test_the_ops_themselves_refuse_without_crashing(weight):
    packed = weight.pack()
    for call in (
        lambda: ops.weight_only(X[:, :95], packed, None, 24),
        lambda: ops.weight_only(X, packed, None, 25),
        lambda: ops.weight_only(X, packed, torch.zeros(23), 24),
        lambda: ops.weight_only(X, packed[:-1], None, 24),
        lambda: ops.weight_only(X.double(), packed, None, 24),
        lambda: ops.weight_only(X, packed.float(), None, 24),
        lambda: ops.integer(X, packed, None, 24, torch.ones(2), None, True, torch.float32),
        lambda: ops.integer(X.to(torch.int8), packed, None, 24, None, None, True, torch.float32),
        lambda: ops.integer(X, packed, None, 24, None, None, True, torch.int32),
        lambda: ops.dequantize_packed(packed, 24, 95, torch.float32),
        lambda: ops.dequantize_packed(packed, 24, 96, torch.int8),
        lambda: ops.encode(X, torch.ones(3, 2), None, "int4", 1, 96),
        lambda: ops.encode(X, torch.ones(3, 1), None, "int9", 1, 96),
        lambda: ops.quantize_rows(X[0], True),
        lambda: ops.weight_only(X[:, :1], packed, None, 1, "int4 1x1 1x1 float32"),
        lambda: ops.dequantize_packed(packed, 1, 1, torch.float32, "int4 1x1 1x1 float32"),
        lambda: ops.unpack(packed, torch.zeros(24, 48, dtype=torch.uint8), torch.zeros(24, 4), None),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            call()
