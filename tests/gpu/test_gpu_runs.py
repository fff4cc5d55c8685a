"""How products run on the chip: the same bits every time, whatever m; in graphs, on streams; weights that move."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch

import lowbit

SCHEMES = ["W4A16", "W8A16", "W8A8", "W4A8", "FP8", "NVFP4A16"]


def layer(scheme: str, n: int = 4096, k: int = 4096) -> lowbit.nn.Linear:
    if scheme == "FP8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no fp8 tensor cores before compute capability 8.9")
    return lowbit.nn.Linear(k, n, scheme=scheme, dtype=torch.bfloat16).to("cuda").eval()


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_same_bits_every_time_and_for_every_m(scheme: str) -> None:
    linear = layer(scheme)
    x = torch.randn(300, 4096, device="cuda", dtype=torch.bfloat16)
    y = linear(x)
    for _ in range(5):
        assert torch.equal(linear(x), y)
    for m in (1, 2, 5, 8, 16, 17, 40, 64, 65, 129, 256):
        assert torch.equal(linear(x[:m]), y[:m]), f"m = {m}"


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_in_a_graph(scheme: str) -> None:
    linear = layer(scheme)
    for m in (1, 16, 200):
        x = torch.randn(m, 4096, device="cuda", dtype=torch.bfloat16)
        linear(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = linear(x)
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            graph.replay()
            assert torch.equal(y, linear(x))


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_packing_and_unpacking_in_a_graph(scheme: str) -> None:
    tensor = lowbit.quantize(torch.randn(512, 1024), scheme).to("cuda")
    wanted = copy.deepcopy(tensor).pack()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed = copy.copy(tensor).pack()
    graph.replay()
    assert torch.equal(packed, wanted)


@torch.no_grad()
def test_on_side_streams_at_once() -> None:
    linear = layer("W4A16")
    xs = [torch.randn(3 + i, 4096, device="cuda", dtype=torch.bfloat16) for i in range(8)]
    wanted = [linear(x) for x in xs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in xs]
    for _ in range(20):
        results = []
        for stream, x in zip(streams, xs, strict=True):
            with torch.cuda.stream(stream):
                results.append(linear(x))
        torch.cuda.synchronize()
        assert all(torch.equal(y, z) for y, z in zip(results, wanted, strict=True))


@torch.no_grad()
def test_from_many_threads() -> None:
    linear = layer("W8A8")
    x = torch.randn(33, 4096, device="cuda", dtype=torch.bfloat16)
    wanted = linear(x)
    torch.cuda.synchronize()  # other streams read x
    failures: list[int] = []

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                y = linear(x)
                torch.cuda.current_stream().synchronize()
                if not torch.equal(y, wanted):
                    failures.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_moving_loses_nothing(scheme: str) -> None:
    linear = lowbit.nn.Linear(1000 if scheme != "NVFP4A16" else 1024, 333, scheme=scheme)
    packed, state = linear.packed.clone(), {name: t.clone() for name, t in linear.state_dict().items()}
    on_gpu = copy.deepcopy(linear).to("cuda")
    assert on_gpu.packed.is_cuda
    for name, tensor in on_gpu.state_dict().items():
        assert torch.equal(tensor.cpu().view(torch.uint8), state[name].view(torch.uint8)), name
    assert torch.equal(on_gpu.cpu().packed, packed)
    file = io.BytesIO()
    torch.save(copy.deepcopy(linear).to("cuda"), file)
    file.seek(0)
    assert torch.equal(torch.load(file, map_location="cpu", weights_only=False).packed, packed)


def test_quantizing_on_the_gpu_gives_the_cpu_s_weight() -> None:
    weight = torch.randn(300, 512, dtype=torch.bfloat16)
    for scheme in SCHEMES:
        assert lowbit.quantize(weight.cuda(), scheme).to("cpu").equal(lowbit.quantize(weight, scheme)), scheme


def test_compiled() -> None:
    linear = layer("W4A16", 256, 512)
    x = torch.randn(4, 512, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(torch.compile(linear, fullgraph=True)(x), linear(x))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@torch.no_grad()
def test_on_the_device_of_the_tensors() -> None:
    linear = layer("W4A16").to("cuda:1")
    x = torch.randn(4, 4096, device="cuda:1", dtype=torch.bfloat16)
    assert linear(x).device == x.device
    assert torch.cuda.current_device() == 0
