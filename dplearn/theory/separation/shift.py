"""Absolute positions: the split moves the input along the position table."""

from collections.abc import Sequence

import sympy as sp
import torch
from torch import Tensor

from dplearn.theory.separation.places import check_seq, check_split, standing

# e^{pe_0}, ..., e^{pe_3}: neighbours weigh 1:1, 1:2 and 1:4, so each split of two vectors has a ratio of its own.
SHIFT_FACTORS = (1, 1, 2, 8)
SHIFT_TARGET = (sp.Rational(1, 4), sp.Rational(1, 2))


def shift_weights(split: int, seq: int = 2, factors: Sequence[sp.Expr] = SHIFT_FACTORS) -> list[sp.Expr]:
    """The attention among the input tokens when the input starts at position ``split`` of a position table.

    The score of a token is the entry of its position; ``factors`` are its exponentials, one per position of
    [prompt, input]. The prompt adds weight elsewhere, so these ratios hold for every prompt. Returns T
    numbers that add up to 1.

    >>> [shift_weights(split) for split in (0, 1, 2)]
    [[1/2, 1/2], [1/3, 2/3], [1/5, 4/5]]
    """
    check_seq(seq)
    check_split(split, len(factors) - seq)
    seen = [sp.sympify(f) for f in factors[split : split + seq]]
    if any(not f > 0 for f in seen):
        raise ValueError(f"factors={tuple(factors)}, expected positive numbers")
    return [f / sum(seen) for f in seen]


def shift_floor(
    split: int, target: Sequence[sp.Expr] = SHIFT_TARGET, factors: Sequence[sp.Expr] = SHIFT_FACTORS
) -> sp.Expr:
    """The infimum over all prompts at ``split`` of the loss on the target sum_j target[j] x_j.

    The output is g times the average with ``shift_weights``, plus a constant, with a gate 0 < g < 1 that the
    prompt sets freely. A multiple of ``shift_weights`` is therefore the best that can be had; the infimum is
    attained unless g is 0 or 1.

    >>> [shift_floor(split) for split in (0, 1, 2)]
    [1/32, 0, 1/68]
    """
    wanted = sp.Matrix([sp.sympify(t) for t in target])
    seen = sp.Matrix(shift_weights(split, len(target), factors))
    gate = sp.Min(1, sp.Max(0, wanted.dot(seen) / seen.dot(seen)))
    rest = wanted - gate * seen
    return sp.simplify(rest.dot(rest))


def shift_loss(
    prompt: Tensor,
    split: int,
    target: Sequence[float] = SHIFT_TARGET,
    factors: Sequence[float] = SHIFT_FACTORS,
) -> Tensor:
    """The loss of prompts (..., l, 2), (...,). A vector is a score, to which its own position is added, and a value."""
    length, seq = prompt.shape[-2], len(target)
    check_split(split, length)
    if len(factors) != length + seq:
        raise ValueError(
            f"factors has {len(factors)} entries, expected one per position: {length} + {seq} = {length + seq}"
        )
    table = torch.tensor([float(f) for f in factors], dtype=prompt.dtype).log()
    own, tokens = standing(split, length, seq)
    scores = torch.cat([prompt[..., 0] + table[own], table[tokens].expand(*prompt.shape[:-2], seq)], -1)
    attention = scores.softmax(-1)
    wanted = torch.tensor([float(t) for t in target], dtype=prompt.dtype)
    constant = (attention[..., :length] * prompt[..., 1]).sum(-1)
    return ((attention[..., length:] - wanted) ** 2).sum(-1) + constant**2
