"""Autocast, as in F.linear: the result has autocast's dtype.

weight_only: x and bias are cast to it. integer, fp8: x is quantized anyway and stays as it is; a floating-point
out_dtype becomes autocast's. The epilogue's tensor stays as it is: it is read as fp32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowbit.ops import PRODUCTS, library, ops


def _autocast_product(name: str, *arguments: Any) -> Tensor:
    given = dict(zip(PRODUCTS[name], arguments, strict=False))
    device = given["x"].device.type
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        if "out_dtype" in given:
            given["out_dtype"] = dtype
        else:
            given["x"] = given["x"].to(dtype)
            given["bias"] = None if given["bias"] is None else given["bias"].to(dtype)
        result: Tensor = getattr(ops, name)(*given.values())
    return result


for _name in PRODUCTS:
    for _key in ("AutocastCPU", "AutocastCUDA"):
        library.impl(_name, partial(_autocast_product, _name), _key)
