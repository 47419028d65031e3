"""Which row of a prompted sequence is what: of the prompt before the input, of the input, of the prompt after it."""

from __future__ import annotations

import torch
from torch import Tensor

from dplearn.insertion import Inserted

# The labels of the segments, which are also their columns in every table of gates.
BEFORE, INPUT, AFTER = 0, 1, 2


def arrangement(length: int, seq: int, split: int) -> Tensor:
    """The order of the rows of ``[P_1..P_k ; X ; P_k+1..P_l]``, as indices into ``[P ; X]``: (l + T,).

    Its argsort follows tokens: ``rows[arrangement(...).argsort()]`` are the rows of P, then those of X.

    >>> arrangement(3, 2, split=1).tolist()
    [0, 3, 4, 1, 2]
    """
    check_sizes(length, seq, split)
    prompt, inputs = torch.arange(length), torch.arange(length, length + seq)
    return torch.cat([prompt[:split], inputs, prompt[split:]])


def segments(length: int, seq: int, split: int) -> Tensor:
    """The segment of every row of ``[P_1..P_k ; X ; P_k+1..P_l]``: (l + T,) labels BEFORE, INPUT, AFTER.

    >>> segments(3, 2, split=1).tolist()
    [0, 1, 1, 2, 2]
    """
    check_sizes(length, seq, split)
    return torch.tensor([BEFORE] * split + [INPUT] * seq + [AFTER] * (length - split))


def segments_of(placed: Inserted, split: int | Tensor) -> Tensor:
    """The segment of every row of an inserted batch, (B, T + l): prompt vectors before and after, INPUT otherwise.

    Rows that are not of the prompt count as INPUT: the tokens, an end token behind the prompt, and padding, on which
    no attention falls. Vectors that are not in use count as INPUT too, for the same reason.

    Parameters
    ----------
    placed : what ``dplearn.insert`` returned.
    split : k, an int or (B,), as it was given there.
    """
    positions, k = placed.prompt_positions, torch.as_tensor(split).reshape(-1, 1)  # (B, l), (B or 1, 1)
    batch, rows = placed.mask.shape
    side = torch.where(torch.arange(positions.shape[1]) < k, BEFORE, AFTER).expand_as(positions)
    labels = torch.full((batch, rows + 1), INPUT)  # one more column takes the vectors that are not in use
    return labels.scatter(1, torch.where(positions < 0, rows, positions), side)[:, :rows]


def check_sizes(length: int, seq: int, split: int) -> None:
    """Raise ValueError where there is no such arrangement."""
    if length < 0 or seq < 1 or not 0 <= split <= length:
        raise ValueError(
            f"length={length}, seq={seq}, split={split}: expected length >= 0, seq >= 1 and a split from 0 to length"
        )
