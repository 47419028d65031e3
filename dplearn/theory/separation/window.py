"""A head that sees a window and no content: the split fixes its weights, and no prompt changes them.

A relative position bias of the coarsest kind: weight 1 for near tokens, a small one for all others.
"""

from collections.abc import Sequence

import sympy as sp
import torch
from torch import Tensor

from dplearn.theory.separation.places import check_seq, check_split, relative_offsets, standing

# e^-M of a window head: the weight of a token outside the window, with M the penalty on its score.
EPSILON = sp.Symbol("epsilon", positive=True)


def window_attention(
    split: int, *, length: int = 2, seq: int = 2, window: int = 1, epsilon: sp.Expr = EPSILON
) -> sp.Matrix:
    """Attention of the input rows in a head that sees a window: weight 1 for abs(r) <= window, else ``epsilon``.

    Returns (seq, length + seq); the columns are P_1..P_l, then X_1..X_T. Rows sum to 1. No prompt changes
    them: the head looks at distances only.

    >>> window_attention(2, epsilon=0).tolist()  # a prefix: the second row sees the two input tokens and no prompt
    [[0, 1/3, 1/3, 1/3], [0, 0, 1/2, 1/2]]
    """
    check_split(split, length)
    check_seq(seq)
    prompt, tokens = standing(split, length, seq)
    weights = sp.Matrix(
        seq,
        length + seq,
        lambda i, j: 1 if abs((prompt + tokens)[j] - tokens[i]) <= window else sp.sympify(epsilon),
    )
    return sp.Matrix.vstack(*[weights.row(i) / sum(weights.row(i)) for i in range(seq)])


def window_floor(
    split: int,
    teacher: int = 1,
    *,
    length: int = 2,
    seq: int = 2,
    window: int = 1,
    epsilon: sp.Expr = EPSILON,
) -> sp.Expr:
    """What every prompt at ``split`` loses at least on a target made at the split ``teacher``, in the window head.

    A prompt only adds constants to the rows of X; their weights on X are fixed by the split. So the squared
    error of rows of width 1 is at least the sum of the squared gaps of these weights.

    >>> [window_floor(split, epsilon=0) for split in (0, 1, 2)]
    [1/18, 0, 1/18]
    """
    ours, theirs = (
        window_attention(k, length=length, seq=seq, window=window, epsilon=epsilon) for k in (split, teacher)
    )
    gap = ours[:, length:] - theirs[:, length:]
    return sp.factor(sum(entry**2 for entry in gap))


def window_minimum(
    split: int,
    values: Sequence[sp.Expr],
    teacher: int = 1,
    *,
    length: int = 2,
    seq: int = 2,
    window: int = 1,
    epsilon: sp.Expr = 0,
) -> sp.Expr:
    """The least loss at ``split`` when the target is the output at ``teacher`` of a prompt with these values.

    It is ``window_floor`` and, on top, what the l constants that the student may choose cannot fit of the
    teacher's T.
    """
    if len(values) != length:
        raise ValueError(f"values has {len(values)} entries, expected one per prompt vector: {length}")
    options = {"length": length, "seq": seq, "window": window, "epsilon": epsilon}
    ours, theirs = (window_attention(k, **options)[:, :length] for k in (split, teacher))
    wanted = theirs * sp.Matrix(list(values))
    basis = ours.columnspace()
    rest = wanted
    if basis:
        columns = sp.Matrix.hstack(*basis)
        rest = wanted - columns * (columns.T * columns).LUsolve(columns.T * wanted)
    return sp.factor(sp.simplify(window_floor(split, teacher, **options) + rest.dot(rest)))


def window_loss(
    prompt: Tensor,
    split: int,
    values: Sequence[float],
    teacher: int = 1,
    *,
    seq: int = 2,
    window: int = 1,
    epsilon: float = 0.0,
) -> Tensor:
    """The loss of prompts (..., l) of width 1 in the window head, (...,). See ``window_minimum`` for its minimum."""
    length = prompt.shape[-1]
    ours, theirs = (_window_weights(k, length, seq, window, epsilon) for k in (split, teacher))
    slopes = ((ours[:, length:] - theirs[:, length:]) ** 2).sum()
    wanted = theirs[:, :length] @ torch.as_tensor([float(v) for v in values], dtype=torch.float64)
    return slopes + ((prompt @ ours[:, :length].T - wanted) ** 2).sum(-1)


def _window_weights(split: int, length: int, seq: int, window: int, epsilon: float) -> Tensor:
    inside = torch.tensor([[abs(r) <= window for r in row] for row in relative_offsets(split, length, seq)])
    weights = inside.double() + epsilon * (~inside).double()
    return weights / weights.sum(-1, keepdim=True)
