"""Two causal layers, read at an end token: what stands before the input gates, what stands behind it reads."""

import math

import sympy as sp
import torch
from torch import Tensor

from dplearn.theory.separation.places import check_seq, check_split, standing


def causal_coefficients(split: int, *, length: int = 2, seq: int = 2) -> list[sp.Rational]:
    """The weight of each input token in the answer of a causal reader, as far as the split alone decides it.

    The sequence is [P_1..P_k; X; P_{k+1}..P_l; end]. In the first layer input rows and end row average
    everything up to themselves; the second layer averages all rows into the end row. So token j counts
    1/(k+i) in each later input row i and 1/N in the end row, and all that is divided by N = l + T + 1. A
    vector behind the input can add its own attention on j, one before it cannot.

    >>> causal_coefficients(1)
    [31/150, 8/75]
    """
    check_split(split, length)
    check_seq(seq)
    rows = length + seq + 1
    return [
        (sum(sp.Rational(1, split + i) for i in range(j, seq + 1)) + sp.Rational(1, rows)) / rows
        for j in range(1, seq + 1)
    ]


def _causal_gaps(
    split: int, teacher: int, length: int, seq: int, reads: sp.Expr
) -> tuple[list[sp.Rational], sp.Expr]:
    """N times the missing weight of each token, without the teacher's reading; and the weight of that reading."""
    check_split(split, length)
    check_split(teacher, length, "teacher")
    reads = sp.sympify(reads)
    if not 0 <= reads <= length - teacher:
        raise ValueError(
            f"reads={reads} is outside 0..{length - teacher}: at teacher={teacher} that many vectors of {length} "
            "stand behind the input, and each attends with weight 1"
        )
    ours, theirs = (causal_coefficients(k, length=length, seq=seq) for k in (split, teacher))
    return [(length + seq + 1) * (t - o) for o, t in zip(ours, theirs, strict=True)], reads


def causal_bound(
    split: int, teacher: int = 1, *, length: int = 2, seq: int = 2, reads: sp.Expr = 1
) -> sp.Rational:
    """A loss that no prompt at ``split`` goes below on the target of the causal reader: an easy bound.

    The target is what the split ``teacher`` gives without prompt values, and in addition ``reads`` times the
    value of the token whose key is 1 (the others have key -1; it is at each of the T places equally often). A
    vector behind the input only adds attention, so weight that is too large stays too large; a prefix adds
    none at all.

    >>> [causal_bound(split) for split in (0, 1, 2)]
    [17/1800, 0, 101/1800]
    """
    gaps, reads = _causal_gaps(split, teacher, length, seq, reads)
    wanted = [gap + (reads if j == match else 0) for match in range(seq) for j, gap in enumerate(gaps)]
    missed = wanted if split == length else [min(gap, sp.Integer(0)) for gap in wanted]
    return sum(gap**2 for gap in missed) / (seq * (length + seq + 1) ** 2)


def causal_infimum(
    split: int, teacher: int = 1, *, length: int = 2, seq: int = 2, reads: sp.Expr = 1
) -> sp.Rational:
    """The exact infimum of the loss over all prompts at ``split``, on the target of ``causal_bound``.

    A vector behind the input cannot tell the places apart, only the keys. So all readers together give a
    weight p to the matching token and q to each other one, with p, q > 0 and p + (T-1) q < l - k, and every
    such pair is possible. The loss is a square distance in (p, q); its minimum over the closed triangle is
    the infimum. It is often not attained: q = 0 needs an infinite score.

    >>> [causal_infimum(split) for split in (0, 1, 2)]
    [43/3600, 0, 101/1800]
    """
    gaps, reads = _causal_gaps(split, teacher, length, seq, reads)
    mean, others, most = sum(gaps) / seq, seq - 1, length - split
    matching_weight, other_weight = max(mean + reads, sp.Integer(0)), max(mean, sp.Integer(0))
    if matching_weight + others * other_weight > most:  # then the nearest point has p + (T-1) q = most
        largest = sp.Rational(most, others) if others else sp.Integer(0)
        other_weight = min(max((most - reads) / sp.Integer(seq), sp.Integer(0)), largest)
        matching_weight = most - others * other_weight
    spread = sum((gap - mean) ** 2 for gap in gaps)
    distance = (matching_weight - mean - reads) ** 2 + others * (other_weight - mean) ** 2
    return (spread + distance) / (length + seq + 1) ** 2


def causal_loss(prompt: Tensor, split: int, teacher: int = 1, *, seq: int = 2, reads: float = 1.0) -> Tensor:
    """The loss of prompts (..., l, 3) of the causal reader, (...,). A prompt vector is a query, a key and a value.

    Input tokens have the key 1 or -1, see ``causal_bound``; input rows and end row have the query 0. The end
    token has key and value 0.
    """
    length = prompt.shape[-2]
    check_split(split, length)
    check_split(teacher, length, "teacher")
    rows = length + seq + 1
    own, tokens = (torch.tensor(places) for places in standing(split, length, seq))
    size = prompt.shape[:-2]
    query = prompt.new_zeros(*size, rows).index_copy(-1, own, prompt[..., 0])
    match = 2 * torch.eye(seq, dtype=prompt.dtype) - 1  # (T matches, T tokens): the keys
    key = prompt.new_zeros(*size, seq, rows)
    key = key.index_copy(-1, own, prompt[..., None, :, 1].expand(*size, seq, length))
    key = key.index_copy(-1, tokens, match.expand(*size, seq, seq))
    scores = query[..., None, :, None] * key[..., None, :]  # (..., T matches, rows, rows)
    future = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(-1).mean(-2)  # second layer: the mean of all rows
    base = torch.tensor(
        [float(c) for c in causal_coefficients(teacher, length=length, seq=seq)], dtype=prompt.dtype
    )
    target = base + reads / rows * torch.eye(seq, dtype=prompt.dtype)
    constant = (weights[..., own] * prompt[..., None, :, 2]).sum(-1)
    return (((weights[..., tokens] - target) ** 2).sum(-1) + constant**2).mean(-1)
