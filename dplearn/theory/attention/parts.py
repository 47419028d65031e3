"""Attention and its parts: what falls on each segment of a prompted sequence, and what comes from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dplearn.theory.attention.order import AFTER, BEFORE, check_sizes


def scores(query: Tensor, key: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """(..., queries, keys): inner products times the head's scale, plus any bias or mask.

    query: (..., queries, d), key: (..., keys, d), bias: broadcast to the result, -inf hides a key.
    """
    products = query @ key.mT * scale
    return products if bias is None else products + bias


def attend(scores: Tensor, value: Tensor) -> Tensor:
    """Softmax attention (..., queries, d_v) of scores (..., queries, keys) and values (..., keys, d_v).

    A row that sees no key gives zeros.
    """
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.softmax(-1).masked_fill(blind, 0.0) @ value


class Parts(NamedTuple):
    """A row's attention, taken apart by segment. A segment that a row does not see has the gate 0, exactly."""

    gates: Tensor  # (..., queries, segments), the share lambda_S of the attention that falls on each segment
    outputs: Tensor  # (..., queries, segments, d_v), A(i; S): attention restricted to the segment's keys


def gates(scores: Tensor, segments: Tensor, count: int = 3) -> Tensor:
    """The share of every row's attention that falls on each segment: (..., queries, count), rows sum to 1.

    Parameters
    ----------
    scores : (..., queries, keys).
    segments : (keys,) labels 0..count-1, or (B, keys) where the scores begin with a batch dimension.
    """
    # Library masks hide with the lowest finite number; as differences from the largest score they add up exactly.
    largest = scores.amax(-1, keepdim=True)
    scores = scores - largest.masked_fill(largest == -torch.inf, 0.0)
    total = scores.logsumexp(-1, keepdim=True)
    within = [one.logsumexp(-1) for one in _restricted(scores, segments, count)]
    return (torch.stack(within, -1) - total).exp().masked_fill(total == -torch.inf, 0.0)


def decompose(scores: Tensor, value: Tensor, segments: Tensor, count: int = 3) -> Parts:
    """Gates and the attention restricted to each segment; `combine` gives back `attend(scores, value)`.

    Every part is computed from its own segment's scores alone. Arguments as in `gates`; value: (..., keys, d_v).
    """
    outputs = [attend(one, value) for one in _restricted(scores, segments, count)]
    return Parts(gates(scores, segments, count), torch.stack(outputs, -2))


def combine(parts: Parts) -> Tensor:
    """The gated sum of the parts, (..., queries, d_v): the right side of the decomposition."""
    return (parts.gates.unsqueeze(-1) * parts.outputs).sum(-2)


def rebracket(parts: Parts, first: int = BEFORE, second: int = AFTER) -> Parts:
    """Two segments as one: their gates added, their outputs averaged with the gates as weights.

    The sum of the parts stays the same, so two prompt terms are always one. The merged segment stands at ``first``.
    """
    one, two = parts.gates[..., first], parts.gates[..., second]
    total = one + two
    weight = torch.where(total == 0, 0.0, one / total).unsqueeze(-1)
    merged = weight * parts.outputs[..., first, :] + (1 - weight) * parts.outputs[..., second, :]
    kept = [s for s in range(parts.gates.shape[-1]) if s != second]
    gate, output = parts.gates.clone(), parts.outputs.clone()
    gate[..., first], output[..., first, :] = total, merged
    return Parts(gate[..., kept], output[..., kept, :])


def within(weights: Tensor, segments: Tensor, segment: int) -> Tensor:
    """Attention weights (..., queries, keys) on one segment, rescaled to sum to 1: (..., queries, keys of it).

    The ratios of a row's weights inside the segment, free of how much falls on it. segments: (keys,) labels.
    """
    part = weights[..., segments == segment]
    return part / part.sum(-1, keepdim=True)


def multihead(outputs: Tensor, projection: Tensor, bias: Tensor | None = None) -> Tensor:
    """Heads (B, h, queries, d_v) joined by W_O, the weight (d, h * d_v) of a linear layer: (B, queries, d)."""
    joined = outputs.transpose(-3, -2).flatten(-2)
    return nn.functional.linear(joined, projection, bias)


def content_free_gates(bias: Callable[[Tensor], Tensor], length: int, seq: int, split: int) -> Tensor:
    """Gates (T, 3) of the input's rows when scores are a bias b(j - i) alone, from the sums of its exponentials.

    Row i of the input stands at k + i. Prompt vector a is a - k - i away if it stands before, T + a - k - i if after;
    so the prompt enters the gate through two profiles over rows, one for each side.

    Parameters
    ----------
    bias : the bias for a tensor of integer offsets (position of the key minus position of the query).
    """
    check_sizes(length, seq, split)
    i, a, j = torch.arange(seq).unsqueeze(1), torch.arange(length), torch.arange(seq)
    exponents = [(a - split - i)[:, :split], j - i, (seq + a - split - i)[:, split:]]
    sums = torch.stack([bias(r).exp().sum(-1) for r in exponents], -1)
    return sums / sums.sum(-1, keepdim=True)


def _restricted(scores: Tensor, segments: Tensor, count: int) -> list[Tensor]:
    """The scores once per segment, all other keys hidden."""
    if segments.is_floating_point() or segments.dtype == torch.bool:
        raise TypeError(f"segments is {segments.dtype}, expected integer labels 0..{count - 1}")
    if segments.shape[-1] != scores.shape[-1]:
        raise ValueError(
            f"segments labels {segments.shape[-1]} keys, expected {scores.shape[-1]} as the scores have"
        )
    if segments.numel() and not 0 <= int(segments.min()) <= int(segments.max()) < count:
        raise ValueError(
            f"segments holds labels {int(segments.min())}..{int(segments.max())}, expected 0..{count - 1}"
        )
    missing = scores.dim() - segments.dim()
    labels = segments.reshape(*segments.shape[:-1], *(1 for _ in range(missing)), segments.shape[-1])
    return [scores.masked_fill(labels != s, -torch.inf) for s in range(count)]
