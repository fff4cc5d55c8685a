"""What holds on every CPU level beside the numbers: the same bits however a call is made, and any layout of x."""

import threading

import pytest
import torch
from oracles import FLOATS, random_tensor

import lowbit
from lowbit import _C, formats

FAMILIES = [
    pytest.param("int4", None, id="weight_only-int4"),
    pytest.param("mxfp8", None, id="weight_only-mxfp8"),
    pytest.param("nf4", None, id="weight_only-nf4"),
    pytest.param("int2", None, id="weight_only-int2"),
    pytest.param("fp6_e3m2", None, id="weight_only-fp6_e3m2"),
    pytest.param("int4", "int8", id="integer-int4"),
    pytest.param("int8", "int8", id="integer-int8"),
    pytest.param("ternary", "int8", id="integer-ternary"),
    pytest.param("int5", "int8", id="integer-int5"),
]


def weight_of(name: str, n: int = 150, k: int = 640, group_k: int = 128) -> lowbit.QuantizedTensor:
    fmt = formats.get(name)
    return random_tensor(fmt, n, k, group=(1, group_k), zero_points=fmt.zero_point)


@pytest.mark.parametrize(("name", "activation"), FAMILIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_any_number_of_threads(level, threads, name, activation, dtype):
    weight = weight_of(name)
    for m in (1, 7, 16, 40, 70):
        x = torch.randn(m, 640).to(dtype)
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(lowbit.linear(x, weight, activation=activation))
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(("name", "activation"), FAMILIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_row_does_not_depend_on_the_batch(level, name, activation, dtype):
    weight = weight_of(name, group_k=48)
    x = torch.randn(70, 640).to(dtype)
    everything = lowbit.linear(x, weight, activation=activation)
    for m in (1, 2, 5, 16, 17, 33, 64):
        for first in (0, 3, 70 - m):
            part = lowbit.linear(x[first : first + m], weight, activation=activation)
            assert torch.equal(part, everything[first : first + m]), (m, first)


@pytest.mark.parametrize(("name", "activation"), FAMILIES)
def test_concurrent_calls(level, name, activation):
    """Threads of the caller multiply at a time, each with its own sizes: the bits of the calls one by one."""
    weight = weight_of(name)
    weight.pack()
    inputs = [
        torch.randn(m, 640, dtype=dtype) for m, dtype in zip((1, 33, 5, 70), (*FLOATS, torch.float32), strict=True)
    ]
    serial = [lowbit.linear(x, weight, activation=activation) for x in inputs]
    wrong = []

    def work(i: int) -> None:
        for _ in range(8):
            if not torch.equal(lowbit.linear(inputs[i], weight, activation=activation), serial[i]):
                wrong.append(i)

    running = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(("name", "activation"), FAMILIES)
def test_layouts_of_x(level, name, activation):
    weight = weight_of(name, n=37, k=192, group_k=64)
    x = torch.randn(6, 192)
    wanted = lowbit.linear(x, weight, activation=activation)
    wide = torch.full((6, 400), float("nan"))
    wide[:, 100:292] = x
    every_other = torch.full((12, 192), float("nan"))
    every_other[::2] = x
    views = {
        "columns of a wider matrix": wide[:, 100:292],
        "every other row": every_other[::2],
        "transposed": x.T.contiguous().T,
        "gaps between elements": torch.stack((x, x), -1).flatten(1)[:, ::2],
        "backwards and forwards": x.flip(0).flip(0),
    }
    for what, view in views.items():
        assert torch.equal(lowbit.linear(view, weight, activation=activation), wanted), what
    one_row = x[2:3].expand(4, 192)  # rows of stride 0
    assert torch.equal(lowbit.linear(one_row, weight, activation=activation), wanted[2:3].expand(4, 37))


@pytest.mark.parametrize(("name", "activation"), FAMILIES)
def test_batches(level, name, activation):
    weight = weight_of(name, n=37, k=192, group_k=64)
    for shape in [(192,), (1, 192), (2, 3, 192), (2, 1, 3, 192)]:
        x = torch.randn(shape)
        result = lowbit.linear(x, weight, activation=activation)
        assert result.shape == (*shape[:-1], 37)
        flat = lowbit.linear(x.reshape(-1, 192), weight, activation=activation)
        assert torch.equal(result.reshape(-1, 37), flat)
    for shape in [(0, 192), (2, 0, 192)]:
        result = lowbit.linear(torch.randn(shape), weight, activation=activation)
        assert result.shape == (*shape[:-1], 37)
        assert result.numel() == 0
    permuted = torch.randn(3, 2, 192).permute(1, 0, 2)
    assert torch.equal(
        lowbit.linear(permuted, weight, activation=activation),
        lowbit.linear(permuted.contiguous(), weight, activation=activation),
    )


def test_the_memory_of_x_is_not_changed(level):
    weight = weight_of("int4")
    for dtype in FLOATS:
        x = torch.randn(33, 640).to(dtype)
        before = x.clone()
        lowbit.linear(x, weight)
        lowbit.linear(x, weight, activation="int8")
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", [name for name, fmt in formats.table().items() if fmt.integer])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integer_bits_are_those_of_every_level(name, symmetric):
    weight = weight_of(name, group_k=100)
    before = _C.cpu_isa()
    try:
        for m in (1, 6, 16, 33, 70):
            for dtype in FLOATS:
                x = torch.randn(m, 640).to(dtype)
                results = {}
                for level in _C.cpu_isas():
                    if level["supported"]:
                        _C.set_cpu_isa(level["name"])
                        results[level["name"]] = lowbit.linear(x, weight, activation="int8", symmetric=symmetric)
                for level, result in results.items():
                    assert torch.equal(result, results["scalar"]), (level, m, dtype)
    finally:
        _C.set_cpu_isa(before)
