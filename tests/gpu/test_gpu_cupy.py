"""lowbit.cupy with CuPy itself: its arrays, its memory, its streams."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit.cupy


@pytest.mark.parametrize("blocking", [True, False])
def test_products_on_cupy_s_stream(blocking: bool) -> None:
    cupy = pytest.importorskip("cupy")
    rng = np.random.default_rng(0)
    n, k = 1000, 4096
    codes = rng.integers(-127, 128, (n, k)).astype("int8")
    scales = rng.random((n, 1), dtype="float32") / 1000
    weight = codes * scales.astype("float64")
    x = rng.standard_normal((17, k), dtype="float32").astype("float16")
    with cupy.cuda.Stream(non_blocking=not blocking):
        w = lowbit.cupy.pack(cupy.asarray(codes), cupy.asarray(scales), format="int8", group=(1, k))
        assert np.array_equal(cupy.asnumpy(lowbit.cupy.dequantize(w)), codes * scales)
        y = cupy.asnumpy(lowbit.cupy.linear(cupy.asarray(x), w, out_dtype="float32"))
        by_integers = cupy.asnumpy(lowbit.cupy.linear(cupy.asarray(x), w, family="integer", out_dtype="float32"))
    wanted = x.astype("float64") @ weight.T
    size = np.abs(x).astype("float64") @ np.abs(weight).T
    assert (np.abs(y - wanted) <= (k + 64) * 2.0**-23 * size).all()
    assert (np.abs(by_integers - wanted) <= size * 4 / 127).all()  # x is rounded to 8 bits
