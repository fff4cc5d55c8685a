"""What others offer for the same problem, at its best: measured beside ours, in the same turns.

Each peer gets the weight in the form it wants, its own thread pool of the same size, and as many copies of the weight
as ours. ``_int_mm`` is the bare product (activations already int8, no scales applied), which is less than our op does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from problems import Problem
from timing import Call, Contestant, num_copies

# Extras: pip install lowbit[bench]
try:
    import onnx
    import onnxruntime
except ImportError:
    onnxruntime = None
try:
    import openvino
    from openvino import opset13
except ImportError:
    openvino = None
try:
    import bitsandbytes
except ImportError:
    bitsandbytes = None

GROUP = 128


@dataclass(frozen=True)
class Peer:
    """One peer.

    Attributes:
        name: as tables show it.
        serves: whether it solves the problem, or one that costs no less.
        prepare: weight (float32 [n, k]) -> its own form of it, which is cloned by calling again.
        weight_bytes: of that form, given n * k.
        bind: (its weight, x) -> a call that multiplies.
        tolerance: relative error allowed against the float product.
    """

    name: str
    serves: Callable[[Problem], bool]
    prepare: Callable[[torch.Tensor], Callable[[], Any]]
    weight_bytes: Callable[[int], int]
    bind: Callable[[Any, torch.Tensor], Call]
    tolerance: float


# ---- torch ----


def _plain(dtype: torch.dtype) -> Callable[[torch.Tensor], Callable[[], Any]]:
    return lambda w: w.to(dtype).clone


def _linear(dtype: torch.dtype) -> Callable[[Any, torch.Tensor], Call]:
    def bind(w: torch.Tensor, x: torch.Tensor) -> Call:
        x = x.to(dtype)
        return lambda: F.linear(x, w)

    return bind


def _quantize(w: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric codes [n, k] and scales [n, k / group], both float32."""
    n, k = w.shape
    grouped = w.reshape(n, k // group, group)
    scales = grouped.abs().amax(-1) / (2 ** (bits - 1) - 1)
    return (grouped / scales[..., None]).round().reshape(n, k), scales


def _prepare_int4pack(w: torch.Tensor) -> Callable[[], Any]:
    codes, scales = _quantize(w, 4, GROUP)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu((codes + 8).to(torch.int32), 2)
    scales_and_zeros = torch.stack([scales.t(), torch.zeros_like(scales.t())], -1).bfloat16().contiguous()
    return lambda: (packed.clone(), scales_and_zeros.clone())


def _bind_int4pack(w: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> Call:
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    packed, scales_and_zeros = w
    x = x.bfloat16()
    return lambda: multiply(x, packed, GROUP, scales_and_zeros)


def _prepare_int8pack(w: torch.Tensor) -> Callable[[], Any]:
    codes, scales = _quantize(w, 8, w.shape[1])
    codes = codes.to(torch.int8)
    return lambda: (codes.clone(), scales[:, 0].bfloat16())


def _bind_int8pack(w: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> Call:
    multiply = torch.ops.aten._weight_int8pack_mm.default
    codes, scales = w
    x = x.bfloat16()
    return lambda: multiply(x, codes, scales)


def _prepare_int_mm(w: torch.Tensor) -> Callable[[], Any]:
    codes, scales = _quantize(w, 8, w.shape[1])
    codes = codes.to(torch.int8)
    return lambda: (codes.clone().t(), scales.t())


class _IntMm:
    """``_int_mm`` as a call; the scales are for ``checked`` only."""

    def __init__(self, w: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> None:
        self._codes, self._scales = w
        x = x.float()
        self._x_scale = x.abs().amax(1, keepdim=True) / 127
        self._x = (x / self._x_scale).round().to(torch.int8)

    def __call__(self) -> torch.Tensor:
        return torch._int_mm(self._x, self._codes)

    def checked(self) -> torch.Tensor:
        return self() * self._x_scale * self._scales


# ---- onnxruntime ----


def _nbits_model(w: torch.Tensor, bits: int, accuracy_level: int) -> bytes:
    n, k = w.shape
    codes, scales = _quantize(w, bits, GROUP)
    codes = (codes + 2 ** (bits - 1)).to(torch.uint8).reshape(n, k // GROUP, GROUP)
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    helper, to_onnx = onnx.helper, onnx.numpy_helper.from_array
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        domain="com.microsoft",
        K=k,
        N=n,
        bits=bits,
        block_size=GROUP,
        accuracy_level=accuracy_level,
    )
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["m", n])],
        [to_onnx(codes.numpy(), "codes"), to_onnx(scales.numpy(), "scales")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


_global_pool = False


def _prepare_nbits(bits: int, accuracy_level: int) -> Callable[[torch.Tensor], Callable[[], Any]]:
    def prepare(w: torch.Tensor) -> Callable[[], Any]:
        global _global_pool
        if not _global_pool:  # one pool for all sessions, as a program would have
            onnxruntime.set_global_thread_pool_sizes(torch.get_num_threads(), 1)
            _global_pool = True
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False
        model = _nbits_model(w, bits, accuracy_level)
        return lambda: onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    return prepare


class _Session:
    """A session with its input and output bound, as a call."""

    def __init__(self, session: Any, x: torch.Tensor) -> None:
        n = session.get_outputs()[0].shape[1]
        self._x = x.float().numpy()
        self._y = torch.empty(x.shape[0], n)
        self._binding = session.io_binding()
        self._binding.bind_cpu_input("x", self._x)
        self._binding.bind_output("y", "cpu", 0, "float32", tuple(self._y.shape), self._y.data_ptr())
        self._run = session.run_with_iobinding

    def __call__(self) -> torch.Tensor:
        self._run(self._binding)
        return self._y


# ---- OpenVINO ----


def _compressed_model(w: torch.Tensor, bits: int, dynamic: bool) -> Callable[[], Any]:
    """X [m, k] float32 by W in i4 (groups of 128) or i8 (a scale for an output), decompressed as NNCF writes it."""
    n, k = w.shape
    codes, scales = _quantize(w, bits, GROUP if bits == 4 else k)
    codes = codes.to(torch.int8).reshape(n, scales.shape[1], -1)
    shape = list(codes.shape)
    if bits == 4:
        codes = codes.to(torch.uint8) & 15
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    data = codes.contiguous().numpy()
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32" if dynamic else "bf16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP) if dynamic else "0",
    }

    def compile() -> tuple[Any, Any]:
        own = data.copy()  # compiled models read the memory that their constants were made from
        kind = openvino.Type.i4 if bits == 4 else openvino.Type.i8
        values = opset13.convert(opset13.constant(openvino.Tensor(own, shape, kind)), openvino.Type.f16)
        scaled = opset13.multiply(values, opset13.constant(scales[..., None].half().numpy()))
        weight = opset13.convert(opset13.reshape(scaled, [n, k], False), openvino.Type.f32)
        x = opset13.parameter([-1, k], openvino.Type.f32)
        model = openvino.Model([opset13.matmul(x, weight, False, True)], [x])
        return openvino.Core().compile_model(model, "CPU", options), own

    return compile


class _Request:
    """An inference request with its input and output bound, as a call."""

    def __init__(self, model: tuple[Any, Any], x: torch.Tensor) -> None:
        compiled, self._weight = model
        self._x = x.float().numpy()
        self._y = torch.empty(x.shape[0], compiled.outputs[0].partial_shape[1].get_length())
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(openvino.Tensor(self._x, shared_memory=True))
        self._request.set_output_tensor(openvino.Tensor(self._y.numpy(), shared_memory=True))

    def __call__(self) -> torch.Tensor:
        self._request.infer()
        return self._y


# ---- bitsandbytes ----


def _prepare_nf4(w: torch.Tensor) -> Callable[[], Any]:
    def clone() -> Any:
        n, k = w.shape
        layer = bitsandbytes.nn.Linear4bit(k, n, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        layer.weight = bitsandbytes.nn.Params4bit(w.bfloat16(), requires_grad=False, quant_type="nf4")
        return layer.to("cpu").eval()

    return clone


def _bind_nf4(layer: Any, x: torch.Tensor) -> Call:
    x = x.bfloat16()

    def call() -> torch.Tensor:
        with torch.no_grad():
            y: torch.Tensor = layer(x)
        return y

    return call


# ---- the list ----


def _scheme(*names: str) -> Callable[[Problem], bool]:
    return lambda problem: problem.scheme in names


INT4 = _scheme("W4A16", "W4A16_ASYM", "W4A8")
INT8 = _scheme("W8A16", "W8A8")

PEERS = [
    Peer("torch bf16", lambda p: True, _plain(torch.bfloat16), lambda nk: 2 * nk, _linear(torch.bfloat16), 0.02),
    Peer(
        "torch f32",
        lambda p: p.x_dtype == torch.float32,
        _plain(torch.float32),
        lambda nk: 4 * nk,
        _linear(torch.float32),
        1e-3,
    ),
    Peer("torch int4pack", INT4, _prepare_int4pack, lambda nk: nk // 2, _bind_int4pack, 0.3),
    Peer("torch int8pack", INT8, _prepare_int8pack, lambda nk: nk, _bind_int8pack, 0.05),
    Peer("torch _int_mm", _scheme("W8A8"), _prepare_int_mm, lambda nk: nk, _IntMm, 0.05),
]
if onnxruntime is not None:
    PEERS += [
        Peer(
            f"ORT {bits}-bit acc {level}",
            serves,
            _prepare_nbits(bits, level),
            lambda nk, bits=bits: nk * bits // 8,
            _Session,
            0.3 if bits == 4 else 0.05,
        )
        for bits, serves in ((4, INT4), (8, INT8))
        for level in (0, 1, 4)
    ]
if openvino is not None:  # `dynamic`: x is quantized to int8 on the fly
    PEERS += [
        Peer(
            f"OpenVINO {bits}-bit{' dynamic' if dynamic else ''}",
            serves,
            lambda w, bits=bits, dynamic=dynamic: _compressed_model(w, bits, dynamic),
            lambda nk, bits=bits: nk * bits // 8,
            _Request,
            0.3 if bits == 4 else 0.05,
        )
        for bits, serves in ((4, INT4), (8, INT8))
        for dynamic in (False, True)
    ]
if bitsandbytes is not None:
    PEERS.append(
        Peer("bitsandbytes NF4", _scheme("NF4", "NF4_DQ"), _prepare_nf4, lambda nk: nk * 9 // 16, _bind_nf4, 0.3)
    )


class PeerWeights:
    """The peers' weights for one shape: made when first asked for, gone when another shape is."""

    def __init__(self, rotate_bytes: int) -> None:
        self._rotate_bytes = rotate_bytes
        self._shape: tuple[int, ...] | None = None
        self._copies: dict[str, list[Any]] = {}

    def of(self, peer: Peer, weight: torch.Tensor) -> list[Any]:
        """The peer's copies of the float weight [n, k]."""
        if tuple(weight.shape) != self._shape:
            self._copies.clear()
            self._shape = tuple(weight.shape)
        if peer.name not in self._copies:
            clone = peer.prepare(weight)
            count = num_copies(peer.weight_bytes(weight.numel()), self._rotate_bytes)
            self._copies[peer.name] = [clone() for _ in range(count)]
        return self._copies[peer.name]


def contestants(problem: Problem, weight: torch.Tensor, x: torch.Tensor, weights: PeerWeights) -> list[Contestant]:
    """Every peer that serves the problem, its answer checked against the float product."""
    reference = F.linear(x.float(), weight)
    entrants = []
    for peer in PEERS:
        if not peer.serves(problem):
            continue
        calls = [peer.bind(copy, x) for copy in weights.of(peer, weight)]
        y = calls[0].checked() if isinstance(calls[0], _IntMm) else calls[0]()
        error = float((y.float() - reference).norm() / reference.norm())
        assert error <= peer.tolerance, f"{peer.name} on {problem}: relative error {error:.3g}"
        entrants.append(Contestant(peer.name, calls))
    return entrants
