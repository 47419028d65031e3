"""What is added to scores: masks, T5's relative bias; and what turns queries and keys: rotary angles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def causal_bias(rows: int) -> Tensor:
    """(rows, rows): 0 where the key stands at or before the query, else -inf.

    >>> causal_bias(2).tolist()
    [[0.0, -inf], [0.0, 0.0]]
    """
    return torch.full((rows, rows), -torch.inf, dtype=torch.float64).triu(1)


def padding_bias(mask: Tensor) -> Tensor:
    """(B, 1, 1, S) from a mask (B, S), 1 = real: 0 at real keys, -inf at padding."""
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask == 0, -torch.inf)[:, None, None]


def offsets(queries: int, keys: int | None = None) -> Tensor:
    """(queries, keys): position of the key minus position of the query.

    >>> offsets(2).tolist()
    [[0, 1], [-1, 0]]
    """
    keys = queries if keys is None else keys
    return torch.arange(keys) - torch.arange(queries).unsqueeze(1)


def bucket_edges(*, bidirectional: bool = True, buckets: int = 32, max_distance: int = 128) -> list[int]:
    """The smallest distance of every logarithmic bucket of T5's relative bias, in exact arithmetic.

    A side has N buckets (half of them all if bidirectional). Distances below N/2 have a bucket each; from there on
    bucket N/2 + j begins where ``(N/2) * log(r / (N/2)) / log(max_distance / (N/2)) >= j``. From the last edge on all
    distances share one bucket. Raffel et al. (2020), section 2.1; the formula is that of their published code.

    >>> bucket_edges()
    [8, 12, 16, 23, 32, 46, 64, 91]
    """
    side = buckets // 2 if bidirectional else buckets
    near = side // 2
    if near < 1 or max_distance <= near:
        raise ValueError(
            f"buckets={buckets}, max_distance={max_distance}: expected at least {4 if bidirectional else 2} buckets "
            f"and max_distance above {max(near, 1)}, the number of distances with a bucket of their own"
        )
    edges, r = [], near
    for j in range(side - near):
        # r^n m^j >= D^j m^n with n = side - near and m = near: the inequality above, in integers.
        while r ** (side - near) * near**j < max_distance**j * near ** (side - near):
            r += 1
        edges.append(r)
    return edges


def relative_buckets(
    offsets: Tensor, *, bidirectional: bool = True, buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """The bucket of T5's relative bias for each offset (position of the key minus position of the query).

    Bidirectional: keys behind the query (positive offsets) have the second half of the buckets. Causal: all positive
    offsets share bucket 0 with the offset 0; they are masked anyway.

    >>> relative_buckets(torch.tensor([-200, -91, -90, -1, 0, 1, 91, 200])).tolist()
    [15, 15, 14, 1, 0, 17, 31, 31]
    """
    edges = bucket_edges(bidirectional=bidirectional, buckets=buckets, max_distance=max_distance)
    distance = offsets.abs() if bidirectional else (-offsets).clamp(min=0)
    near = edges[0]
    far = torch.bucketize(distance, torch.tensor(edges), right=True) + near - 1
    side = (offsets > 0) * (buckets // 2) if bidirectional else 0
    return torch.where(distance < near, distance, far) + side


def relative_bias(table: Tensor, queries: int, keys: int | None = None, **options: Any) -> Tensor:
    """T5's bias (h, queries, keys) from its table (buckets, h); options as in `relative_buckets`."""
    return table[relative_buckets(offsets(queries, keys), buckets=len(table), **options)].movedim(-1, 0)


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding: turn the pairs (x_c, x_{c + d/2}) by positions * base^(-2c/d).

    A score of rotated queries and keys depends on their positions only through the difference. Su et al. (2021).

    Parameters
    ----------
    x : (..., S, d) queries or keys, d even.
    positions : (S,).
    """
    dim = x.shape[-1]
    if dim % 2:
        raise ValueError(f"x has width {dim}, expected an even number: the features turn in pairs")
    frequency = base ** (-torch.arange(0, dim, 2, dtype=x.dtype) / dim)
    angle = positions.to(x.dtype).unsqueeze(-1) * frequency  # (S, d/2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)
