"""Relative position biases, exactly, and one layer of attention with any of them."""

from collections.abc import Callable, Sequence

import sympy as sp
import torch
from torch import Tensor

from dplearn.theory.attention import relative_buckets
from dplearn.theory.separation.places import check_split, relative_offsets

# The bias of a relative offset r = j - i, position of the key minus position of the query.
Bias = Callable[[int], sp.Expr]


def no_bias(offset: int) -> sp.Expr:
    """No position at all."""
    return sp.Integer(0)


def linear_bias(slope: sp.Expr) -> Bias:
    """b(r) = slope * r, with the sign of r."""
    slope = _exact(slope)
    return lambda offset: slope * offset


def alibi_bias(slope: sp.Expr) -> Bias:
    """b(r) = -slope * abs(r): ALiBi in its symmetric form."""
    slope = _exact(slope)
    return lambda offset: -slope * abs(offset)


def t5_bucket(offset: int, buckets: int = 32, max_distance: int = 128) -> int:
    """T5's bucket of an offset r = j - i in its encoder: half for each side, exact when near, then log-spaced."""
    return int(relative_buckets(torch.tensor(offset), buckets=buckets, max_distance=max_distance))


def t5_bias(values: Sequence[sp.Expr] | None = None, buckets: int = 32, max_distance: int = 128) -> Bias:
    """T5's bias: one value per bucket. Without ``values`` they are symbols: equal then means equal for all values."""
    table = sp.symbols(f"beta0:{buckets}") if values is None else [_exact(v) for v in values]
    if len(table) != buckets:
        raise ValueError(f"values has {len(table)} entries, expected one per bucket: {buckets}")
    return lambda offset: table[t5_bucket(offset, buckets, max_distance)]


def biased_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    split: int,
    bias: Callable[[int], float],
) -> Tensor:
    """The input rows of one head: softmax of q.k + b(j - i) over the prompt and the input, times the values.

    Parameters
    ----------
    query : (B, T, c), and so is ``key``. The scale of the scores is left to the caller.
    value : (B, T, d).
    prompt_key : (..., l, c), leading dimensions are independent prompts.
    prompt_value : (..., l, d).

    Returns
    -------
    (..., B, T, d)
    """
    length, seq = prompt_key.shape[-2], key.shape[-2]
    check_split(split, length)
    offsets = relative_offsets(split, length, seq)
    table = torch.tensor([[float(bias(r)) for r in row] for row in offsets], dtype=query.dtype)  # (T, l + T)
    to_prompt = torch.einsum("btc,...lc->...btl", query, prompt_key)
    to_inputs = (query @ key.mT).expand(*to_prompt.shape[:-1], seq)
    attention = (torch.cat([to_prompt, to_inputs], -1) + table).softmax(-1)  # (..., B, T, l + T)
    from_prompt = torch.einsum("...btl,...ld->...btd", attention[..., :length], prompt_value)
    return from_prompt + attention[..., length:] @ value


def _exact(number: sp.Expr) -> sp.Expr:
    """0.1 as 1/10, so that 3 * 0.1 and 0.3 are the same number."""
    return sp.nsimplify(number, rational=True)
