"""Walking over the groups of a weight: their ranges, and the chunks of rows that stay in cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lowbit.formats import num_groups

# Elements of a chunk: its float32 temporaries fit in the L2 of one core.
CHUNK = 1 << 18


def row_chunks(n: int, k: int, group_n: int) -> Iterator[tuple[int, int]]:
    """Row ranges [begin, end) of about CHUNK elements that cover [0, n): each holds whole groups, or lies in one."""
    rows = max(1, CHUNK // k)
    if group_n <= rows:
        step = rows // group_n * group_n
        for begin in range(0, n, step):
            yield begin, min(begin + step, n)
    else:
        for first in range(0, n, group_n):
            last = min(first + group_n, n)
            for begin in range(first, last, rows):
                yield begin, min(begin + rows, last)


def reduce_columns(values: torch.Tensor, group_k: int, op: str, out: torch.Tensor) -> None:
    """out[r][g] = op (``"amin"``, ``"amax"``, ``"sum"``) of values[r] over the columns of group g.

    values [rows, k], out [rows, ceil(k / group_k)] of the same dtype.
    """
    rows, k = values.shape
    whole = k // group_k
    reduce = getattr(torch, op)
    if whole:
        groups = values[:, : whole * group_k].view(rows, whole, group_k)
        reduce(groups, -1, out=out[:, :whole])
    if whole * group_k < k:
        reduce(values[:, whole * group_k :], -1, out=out[:, whole])


def reduce_rows(values: torch.Tensor, group_n: int, op: str) -> torch.Tensor:
    """[ceil(rows / group_n), columns]: op of values [rows, columns] over the rows of every group."""
    if group_n == 1:
        return values
    rows = values.shape[0]
    whole = rows // group_n
    reduce = getattr(torch, op)
    parts = []
    if whole:
        parts.append(reduce(values[: whole * group_n].view(whole, group_n, -1), 1))
    if whole * group_n < rows:
        parts.append(reduce(values[whole * group_n :], 0, keepdim=True))
    return torch.cat(parts)


def group_ranges(weight: torch.Tensor, group: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the greatest weight of every group, NaN where a group has one.

    weight [n, k] -> two of [ceil(n / group_n), ceil(k / group_k)], in its dtype.
    """
    n, k = weight.shape
    columns = num_groups((n, k), group)[1]
    lows, highs = (torch.empty(n, columns, dtype=weight.dtype, device=weight.device) for _ in range(2))
    for begin, end in row_chunks(n, k, 1):
        rows = weight[begin:end]
        reduce_columns(rows, group[1], "amin", lows[begin:end])
        reduce_columns(rows, group[1], "amax", highs[begin:end])
    return reduce_rows(lows, group[0], "amin"), reduce_rows(highs, group[0], "amax")
