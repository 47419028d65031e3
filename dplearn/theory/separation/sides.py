"""Two heads that look to one side each: rows that a prefix, or a postfix, cannot influence.

One layer with a relative position bias and content; no prompt reaches the head that looks away from it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dplearn.theory.separation.biases import biased_rows
from dplearn.theory.separation.places import check_split


class Heads(NamedTuple):
    """Frozen projections of two heads; head 0 looks left, head 1 right, and both at their own row."""

    query: Tensor  # (2, d, d), used as x @ query[h]
    key: Tensor  # (2, d, d)
    value: Tensor  # (2, d, d)


def random_heads(dim: int, seed: int = 0) -> Heads:
    """Random projections, float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(3, 2, dim, dim, generator=generator, dtype=torch.float64)
    return Heads(*(draw / math.sqrt(dim)))


def one_sided(
    prompt: Tensor,
    inputs: Tensor,
    split: int,
    heads: Heads,
    *,
    penalty: float = math.inf,
    normalise: bool = False,
) -> Tensor:
    """The input rows of two heads that look to one side each.

    Parameters
    ----------
    prompt : (..., l, d).
    inputs : (B, T, d).
    split : k, from 0 to l.
    heads : the frozen projections.
    penalty : what the score of a key on the other side is lowered by; with the default it is never seen, with 0 the
        layer knows no position.
    normalise : whether every token, of prompt and input, is divided by its root mean square first.

    Returns
    -------
    (..., B, T, 2, d): the outputs of head 0 (left) and head 1 (right).

    Raises
    ------
    ValueError : a split outside 0..l, or prompt and inputs of different widths.
    """
    check_split(split, prompt.shape[-2])
    if prompt.shape[-1] != inputs.shape[-1]:
        raise ValueError(
            f"prompt has width {prompt.shape[-1]}, expected the width of inputs, {inputs.shape[-1]}"
        )
    if normalise:
        prompt, inputs = _unit(prompt), _unit(inputs)
    return torch.stack([_head(prompt, inputs, split, heads, side, penalty) for side in (0, 1)], -2)


def _head(prompt: Tensor, inputs: Tensor, split: int, heads: Heads, side: int, penalty: float) -> Tensor:
    """The input rows of one head, (..., B, T, d); side 0 looks left, 1 right."""
    return biased_rows(
        inputs @ heads.query[side] * (1 / math.sqrt(inputs.shape[-1])),
        inputs @ heads.key[side],
        inputs @ heads.value[side],
        prompt @ heads.key[side],
        prompt @ heads.value[side],
        split,
        lambda r: -penalty if (r > 0 if side == 0 else r < 0) else 0.0,
    )


def one_sided_floor(
    target: Tensor,
    inputs: Tensor,
    split: int,
    heads: Heads,
    *,
    length: int,
    penalty: float = math.inf,
    normalise: bool = False,
) -> float:
    """What every prompt of ``length`` vectors at this split loses at least on ``target``, (B, T, 2, d): a proved bound.

    All vectors of a prefix stand to the left, where head 1 does not look: its rows are those without a
    prompt, whatever the prompt. So the loss is at least their distance from the target, and for a postfix the
    same holds for head 0. The loss is the squared error, summed over rows, heads and width, and averaged over
    the batch. A split in between has no such bound: 0.

    With a finite penalty M and normalised tokens, a row can move by at most 2 V l e^(2S-M); ``head_bounds``
    gives S, V.
    """
    check_split(split, length)
    if 0 < split < length:
        return 0.0
    if penalty != math.inf and not normalise:
        raise ValueError(
            f"penalty={penalty} is finite, expected normalise=True: else prompts can be of any size"
        )
    head = 1 if split == length else 0
    rows = _without_prompt(_unit(inputs) if normalise else inputs, heads, head, penalty)
    reach = 0.0
    if penalty != math.inf:
        score, value = head_bounds(heads)
        reach = 2 * value * length * math.exp(2 * score - penalty)
    distance = (target[..., head, :] - rows).norm(dim=-1)
    return float((distance - reach).clamp(min=0).square().sum(-1).mean())


def head_bounds(heads: Heads) -> tuple[float, float]:
    """S and V: no scaled score of normalised tokens exceeds S in size, and no value vector has a norm above V."""
    dim = heads.key.shape[-1]
    product = heads.query @ heads.key.mT
    score = float(torch.linalg.matrix_norm(product, 2).max()) * dim / math.sqrt(dim)
    return score, float(torch.linalg.matrix_norm(heads.value, 2).max()) * math.sqrt(dim)


def _unit(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


def _without_prompt(inputs: Tensor, heads: Heads, head: int, penalty: float) -> Tensor:
    """The rows of one head when there is no prompt, (B, T, d)."""
    seq, dim = inputs.shape[-2:]
    offset = torch.arange(seq)[None, :] - torch.arange(seq)[:, None]
    other_side = offset > 0 if head == 0 else offset < 0
    scores = (inputs @ heads.query[head]) @ (inputs @ heads.key[head]).mT / math.sqrt(dim)
    scores = torch.where(other_side, scores - penalty, scores)
    return scores.softmax(-1) @ (inputs @ heads.value[head])
