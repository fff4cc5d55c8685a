"""``lowbit._C`` on arrays of any library, with the module's own threads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from oracles import need

from lowbit._load import core

_C = core()
N, K, GROUP = 33, 100, 32  # nothing divides anything
GROUPS = -(-K // GROUP)


@pytest.fixture
def weight() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "codes": rng.integers(0, 256, (N, K // 2), dtype=np.uint8),
        "scales": rng.uniform(0.5, 1.5, (N, GROUPS)).astype(np.float32),
        "zero_points": rng.integers(-8, 8, (N, GROUPS), dtype=np.int8),
        "format": "int4",
        "group_n": 1,
        "group_k": GROUP,
    }


@pytest.fixture
def packed(weight: dict[str, Any]) -> np.ndarray:
    return _C.pack(**weight)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((7, K), dtype=np.float32)


def float_weight(weight: dict[str, Any]) -> np.ndarray:
    """float64 [n, k], by the definition of int4."""
    codes = np.stack((weight["codes"] & 15, weight["codes"] >> 4), -1).reshape(N, K).astype(np.float64) - 8
    per_weight = np.arange(K) // GROUP
    return (codes - weight["zero_points"][:, per_weight]) * weight["scales"][:, per_weight]


def assert_close(y: np.ndarray, wanted: np.ndarray, bound: float) -> None:
    assert y.shape == wanted.shape
    assert np.abs(y.astype(np.float64) - wanted).max() <= bound * np.abs(wanted).max()


def test_packing_inverts(weight: dict[str, Any], packed: np.ndarray) -> None:
    assert packed.size == _C.packed_bytes("int4", N, K, 1, GROUP, "float32", True)
    back = _C.unpack(packed)
    for name in ("codes", "scales", "zero_points"):
        np.testing.assert_array_equal(back[name], weight[name])
    assert {name: back[name] for name in ("format", "n", "k", "group_n", "group_k", "scale_dtype", "zero_point")} == {
        "format": "int4",
        "n": N,
        "k": K,
        "group_n": 1,
        "group_k": GROUP,
        "scale_dtype": "float32",
        "zero_point": True,
    }


def test_products_and_weights(weight: dict[str, Any], packed: np.ndarray, x: np.ndarray) -> None:
    w = float_weight(weight)
    assert_close(_C.dequantize_packed(packed), w, 1e-6)
    assert_close(_C.dequantize(**weight, dtype="float16"), w, 2**-11)
    bias = np.arange(N, dtype=np.float32)
    assert_close(_C.gemm(x, packed, bias), x @ w.T + bias, 1e-5)
    q, scale, zero_point = _C.quantize_rows(x, symmetric=False)
    rounded = (q.astype(np.float64) - zero_point[:, None]) * scale[:, None]
    assert np.abs(rounded - x).max() <= scale.max() * 0.51
    assert_close(_C.gemm(x, packed, bias, family="integer", symmetric=False), rounded @ w.T + bias, 1e-5)
    static = _C.gemm(q, packed, family="integer", x_scale=scale, x_zero_point=zero_point)
    assert_close(static, rounded @ w.T, 1e-5)


def test_encode_is_the_nearest_code() -> None:
    w = np.array([[0.26, -1.0, 7.4, 100.0], [0.5, 1.5, 2.5, -3.5]], dtype=np.float32)
    codes = _C.encode(w, np.array([[1.0], [1.0]], dtype=np.float32), format="int8", group_n=1, group_k=4)
    np.testing.assert_array_equal(codes.view(np.int8), [[0, -1, 7, 100], [0, 2, 2, -4]])


def test_any_library_any_strides(packed: np.ndarray, x: np.ndarray) -> None:
    y = _C.gemm(x, packed)
    wide = np.zeros((7, 2 * K), dtype=np.float32)
    wide[:, :K] = x
    every_other = np.zeros((7, 2 * K), dtype=np.float32)
    every_other[:, ::2] = x
    for same in (wide[:, :K], every_other[:, ::2], np.asfortranarray(x), memoryview(x), torch.from_numpy(x)):
        np.testing.assert_array_equal(_C.gemm(same, packed), y)
    for same in (packed.tobytes(), bytearray(packed), memoryview(packed), torch.from_numpy(packed)):
        np.testing.assert_array_equal(_C.gemm(x, same), y)
    strided = torch.zeros(7, 2 * K)
    strided[:, :K] = torch.from_numpy(x)
    np.testing.assert_array_equal(_C.gemm(strided[:, :K], packed), y)  # rows may lie apart
    assert _C.gemm(x[:0], packed).shape == (0, N)


def test_bfloat16(weight: dict[str, Any], packed: np.ndarray, x: np.ndarray) -> None:
    bfloat16 = need("ml_dtypes").bfloat16
    y = _C.gemm(x.astype(bfloat16), packed)
    assert y.dtype == bfloat16
    assert_close(y, x.astype(bfloat16).astype(np.float64) @ float_weight(weight).T, 2**-6)
    np.testing.assert_array_equal(_C.gemm(torch.from_numpy(x).bfloat16(), packed), y)


def test_threads_change_nothing(packed: np.ndarray, x: np.ndarray) -> None:
    y = _C.gemm(x, packed, num_threads=1)
    for num_threads in (0, 2, 3, 8):
        np.testing.assert_array_equal(_C.gemm(x, packed, num_threads=num_threads), y)
    with ThreadPoolExecutor(8) as callers:
        for other in callers.map(lambda _: _C.gemm(x, packed, num_threads=4), range(200)):
            np.testing.assert_array_equal(other, y)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_threads_of_its_own() -> None:
    script = """
import os, numpy as np
from lowbit import _C
packed = _C.pack(np.ones((64, 32), np.uint8), np.ones((64, 1), np.float32), format="int4", group_n=1, group_k=64)
x = np.ones((8, 64), np.float32)
y = _C.gemm(x, packed, num_threads=4)
if os.fork() == 0:
    os._exit(not (_C.gemm(x, packed, num_threads=4) == y).all())
print(os.wait()[1])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "0\n"


FUNCTION = {
    "silu": lambda z: torch.nn.functional.silu(torch.from_numpy(z)).numpy(),
    "gelu": lambda z: torch.nn.functional.gelu(torch.from_numpy(z)).numpy(),
    "gelu_tanh": lambda z: torch.nn.functional.gelu(torch.from_numpy(z), approximate="tanh").numpy(),
    "relu": lambda z: np.maximum(z, 0),
}


@pytest.mark.parametrize("function", [None, *FUNCTION])
@pytest.mark.parametrize("family", ["weight_only", "integer"])
def test_epilogue(packed: np.ndarray, x: np.ndarray, function: str | None, family: str) -> None:
    bias = np.arange(N, dtype=np.float32)
    z = _C.gemm(x, packed, bias, family=family)
    value = FUNCTION[function](z) if function else z
    apart = np.random.default_rng(3).standard_normal((len(x), 2 * N), dtype=np.float32)[:, :N]  # rows lie apart
    given = {"family": family, "activation_function": function}
    assert_close(_C.gemm(x, packed, bias, **given), value, 1e-5)
    assert_close(_C.gemm(x, packed, bias, **given, multiply=apart), value * apart, 1e-5)
    assert_close(_C.gemm(x, packed, bias, **given, residual=apart.astype(np.float16)), value + apart, 1e-3)


def changed(weight: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**weight, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"codes": np.zeros((N, K), np.uint8)}, ValueError, r"scales has shape \[33, 4\]: it must be \[33, 7\]"),
        ({"codes": np.zeros((N, 50), np.int32)}, TypeError, "codes has dtype int32: it must be uint8, int8, "),
        ({"codes": np.zeros(50, np.uint8)}, ValueError, r"codes has shape \[50\]: it must have 2 dimensions"),
        ({"scales": np.ones((N, 3), np.float32)}, ValueError, r"scales has shape \[33, 3\]: it must be \[33, 4\]"),
        ({"scales": np.ones((N, 4))}, TypeError, "scales has dtype float64: it must be float32, float16 or bfloat16"),
        ({"scales": np.full((N, 4), np.nan, np.float32)}, ValueError, "nan"),
        ({"scales": np.ones((N, 4), ">f4")}, TypeError, "scales has byte-swapped elements"),
        ({"zero_points": np.full((N, 4), 9, np.int8)}, ValueError, "9"),
        ({"zero_points": np.zeros((N, 4), np.uint8)}, TypeError, "zero_points has dtype uint8: it must be int8"),
        ({"format": "int7"}, ValueError, "there is no format 'int7'"),
        ({"group_k": 0}, ValueError, "group is 1 x 0: each must be at least 1"),
        ({"k": 98}, ValueError, r"codes has shape \[33, 50\]: it must be \[33, 49\]"),
        ({"num_threads": -1}, ValueError, "num_threads is -1: it must be 0 to"),
        ({"codes": [[1, 2]]}, TypeError, "codes is of type list"),
        ({"codes": torch.zeros(50, N, dtype=torch.uint8).T}, ValueError, "codes is not row-major"),
    ],
)
def test_bad_weights_are_refused(weight: dict[str, Any], changes: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        _C.pack(**changed(weight, **changes))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.ones((2, 64), np.float32)}, ValueError, "x has k = 64, but the packed weight is 33 x 100"),
        ({"x": np.ones((2, K))}, TypeError, "x has dtype float64"),
        ({"x": np.ones((2, K), np.int8)}, TypeError, "int8"),
        ({"x": np.ones(K, np.float32)}, ValueError, r"x has shape \[100\]: it must have 2 dimensions"),
        ({"bias": np.ones(5, np.float32)}, ValueError, r"bias has shape \[5\]: it must be \[33\]"),
        ({"family": "fp6"}, ValueError, "family is 'fp6'"),
        ({"out_dtype": "float64"}, ValueError, "out_dtype is 'float64': it must be one of float32"),
        ({"packed": b"short"}, ValueError, "5 bytes"),
        ({"packed": np.zeros(4096, np.uint8)}, ValueError, "not a packed weight"),
        ({"family": "integer", "x_scale": np.array([-1], np.float32)}, ValueError, "activation scale 0 is -1"),
        ({"family": "integer", "x_zero_point": np.array([1], np.int32)}, ValueError, "x_zero_point is given without"),
        ({"activation_function": "tanh"}, ValueError, "function is 'tanh': it must be silu, gelu, gelu_tanh or relu"),
        ({"residual": np.ones(N, np.float32)}, ValueError, r"residual has shape \[33\]: it must be \["),
        ({"multiply": np.ones((1, N))}, ValueError, r"multiply has shape \[1, 33\]: it must be \["),
        ({"multiply": 1.0}, TypeError, "multiply is of type float"),
        ({"multiply": np.ones(1), "residual": np.ones(1)}, ValueError, "multiply and residual are both given"),
    ],
)
def test_bad_products_are_refused(
    packed: np.ndarray, x: np.ndarray, arguments: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        _C.gemm(**{"x": x, "packed": packed, **arguments})


def test_bad_levels_and_probes_are_refused() -> None:
    with pytest.raises(ValueError, match="CPU level is 'sse': it must be one of scalar"):
        _C.set_cpu_isa("sse")
    with pytest.raises(ValueError, match="there is no probe 'flops'"):
        _C.probe("flops", 0.1, 1)
