"""Three small frozen attention heads, and what their rows read at every split of a prompt.

They share their queries, keys and values and differ only in what is added to the scores: nothing, a number for each
relative distance, or a causal mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dplearn.insertion import insert
from dplearn.theory.attention import attend, causal_bias, gates, offsets, scores, segments_of

# The vectors and the head: small numbers, chosen so that every share can be read off a bar. The last input token is
# the readout R; it stays last at every split, as an end-of-sequence token does.
PROMPT = ((-1.5, -1.3), (1.5, 0.5), (1.1, 0.3), (0.3, -0.8))  # (l, d)
INPUTS = ((-0.1, 0.7), (0.1, -0.9), (-1.2, -0.2), (-0.9, 0.1))  # (T, d)
QUERY = ((0.6, 0.3), (-0.3, 0.6))  # (d, d): the query of a row x is x @ QUERY, its key is x itself
VALUE = (1.0, -1.0)  # (d,): the value of a row x is the number x @ VALUE
# What the relative bias takes off a score for each step of distance to the left and to the right.
LEFT, RIGHT = 0.5, 0.2


class Head(NamedTuple):
    """The words of one head."""

    title: str
    rule: str  # what is added to its scores
    notice: str  # what to see when the split moves


HEADS = {
    "order-blind": Head(
        "Order-blind head",
        "Nothing is added to the scores.",
        "No output ever changes. A prompt vector that moves takes its attention along, so the two parts of the"
        " prompt's share keep their sum.",
    ),
    "relative bias": Head(
        "Relative-bias head",
        f"As in T5, a score depends on the distance: it loses {LEFT} per step to the left and {RIGHT} per step to"
        " the right.",
        "The outputs change, though the vectors are the same: their distances to the row are not.",
    ),
    "causal": Head(
        "Causal head",
        "A row sees itself and what stands before it.",
        "The rows X never see the prompt after them: that share is exactly 0. R stands last and sees every vector,"
        " so for R this one layer is order-blind.",
    ),
}


class Readings(NamedTuple):
    """A head at every split k = 0..l. Rows are the input tokens, wherever they stand."""

    gates: Tensor  # (l+1, T, 3), shares of a row's attention: prompt before the input, input, prompt after it
    outputs: Tensor  # (l+1, T)

    @property
    def changes(self) -> Tensor:
        """Difference of each output from the one at k = l, (l+1, T)."""
        return self.outputs - self.outputs[-1]


def head_bias(head: str, rows: int) -> Tensor:
    """What a head adds to the score of each row (first axis) and key: (rows, rows), float64.

    A head is one of "order-blind", "relative bias" and "causal"; any other raises ValueError.

    >>> head_bias("relative bias", 3).tolist()
    [[0.0, -0.2, -0.4], [-0.5, 0.0, -0.2], [-1.0, -0.5, 0.0]]
    """
    if head == "order-blind":
        return torch.zeros(rows, rows, dtype=torch.float64)
    if head == "relative bias":
        distance = offsets(rows).double()
        return torch.where(distance < 0, LEFT * distance, -RIGHT * distance) + 0.0  # no -0.0
    if head == "causal":
        return causal_bias(rows)
    raise ValueError(f"head={head!r} is unknown, expected one of {', '.join(map(repr, HEADS))}")


def readings(head: str, prompt: Any = PROMPT, inputs: Any = INPUTS) -> Readings:
    """Gates and outputs of a head's input rows for every split; the readout, the last input row, is kept last.

    prompt: (l, 2) and inputs: (T, 2), numbers or tensors; the head computes in float64. Raises ValueError for another
    shape and for an unknown head.

    >>> blind, causal = readings("order-blind"), readings("causal")
    >>> bool(blind.changes.abs().max() < 1e-12), causal.gates[:, :3, 2].count_nonzero().item()
    (True, 0)
    """
    prompt, inputs = _vectors("prompt", prompt), _vectors("inputs", inputs)
    query, value = (torch.tensor(weights, dtype=torch.float64) for weights in (QUERY, VALUE))
    bias = head_bias(head, len(prompt) + len(inputs))
    shares, outputs = [], []
    for k in range(len(prompt) + 1):
        placed = insert(prompt, inputs[None], split=k, keep_last=1)
        rows = placed.embeds[0]  # (l+T, d)
        row_scores = scores(rows @ query, rows, bias)[placed.input_positions[0]]  # (T, l+T)
        shares.append(gates(row_scores, segments_of(placed, k)[0]))
        outputs.append(attend(row_scores, (rows @ value)[:, None])[:, 0])
    return Readings(torch.stack(shares), torch.stack(outputs))


def _vectors(name: str, rows: Any) -> Tensor:
    rows = torch.as_tensor(rows, dtype=torch.float64).detach()
    if rows.dim() != 2 or len(rows) == 0 or rows.shape[1] != len(VALUE):
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)}, expected (rows, {len(VALUE)}) with rows >= 1"
        )
    return rows
