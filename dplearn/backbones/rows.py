"""Rows of hidden states: which are real, which position each has, and the rows of the input taken from among others."""

from __future__ import annotations

import torch
from torch import Tensor


def token_positions(mask: Tensor) -> Tensor:
    """Positions (B, S) that count the real tokens of each row from 0; padding gets 0.

    >>> token_positions(torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]]))
    tensor([[0, 0, 1, 2],
            [0, 1, 0, 0]])
    """
    return (mask.long().cumsum(1) - 1) * (mask != 0)


def last_real(mask: Tensor) -> Tensor:
    """The last real row of each instance, wherever the padding is: (B, T) -> (B,)."""
    return ((mask != 0) * torch.arange(mask.shape[1], device=mask.device)).argmax(1)


def take_rows(states: Tensor, rows: Tensor) -> Tensor:
    """Rows of each instance: (B, S, d), (B, N) -> (B, N, d)."""
    return states.gather(1, rows.unsqueeze(2).expand(-1, -1, states.shape[2]))


def with_rows(output, rows: Tensor):
    """A module's output with the given rows, (B, N) of (B, S), of its last hidden states alone.

    What stands behind the module (pooler, classifier, language-modelling head, loss) then sees N rows, each where it
    would be without a prompt.
    """
    if isinstance(output, Tensor):
        return take_rows(output, rows)
    if isinstance(output, tuple):
        return (take_rows(output[0], rows), *output[1:])
    output["last_hidden_state"] = take_rows(output["last_hidden_state"], rows)
    return output
