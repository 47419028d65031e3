"""The position-space estimator: gradients of a split through the backbone's position information alone.

Moving a prompt changes where its tokens stand, not which tokens there are, and attention without position information
does not see the order. So the split acts only through relative biases, position vectors, rotary angles and causal
visibility. This estimator mixes these over all splits, at the sampled split: the forward pass is the one of the
inserted sequence, and the weights of the splits get the gradient of the mixture ``sum_k w_k * position information
at k``. (The paper's estimator mixes the inserted sequences instead: it differentiates a blend of different tokens.)

In a causal model the slope at a key that is not visible yet is its exponentiated score over the sum of the visible
ones, which has no bound: estimates can be of any size there, and "score-function" is the better choice.

Each mixture is a constant to the forward pass. :func:`carry` hands its gradient to the weights in closed form or in a
loop over splits, so that no tensor has a dimension of splits and of rows twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Weight of a key that causal order hides, instead of 0: small enough to change nothing that is visible, large enough
# for its gradient (float16 cannot hold it: hidden keys then get no gradient).
HIDDEN = 1e-24


class Moves(NamedTuple):
    """Where every row would stand at every split.

    weights: (B, K) straight-through one-hot rows over the K = l + 1 splits.
    rows: (B, K, S), the row in which the token that now stands in row s would stand at split k.
    first: (B, 1), the first real row of each instance; positions count from there.
    """

    weights: Tensor
    rows: Tensor
    first: Tensor

    @property
    def positions(self) -> Tensor:
        """(B, K, S) positions that count from 0 at the first real row."""
        return (self.rows - self.first.unsqueeze(1)).clamp(min=0)


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, value, products):
        ctx.products, ctx.dtype = products, weights.dtype
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.products(grad).to(ctx.dtype), None, None


class _Once(torch.autograd.Function):
    """A gradient that is not to be differentiated, as a function of the weights too."""

    @staticmethod
    def forward(ctx, gradient, weights):
        return gradient.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(
            "second derivatives of position-space weights are refused where order decides what is visible (causal "
            "models): they divide by the square of a weight that is almost 0; use estimator='exact'"
        )


def carry(weights: Tensor, value: Tensor, products: Callable[[Tensor], Tensor]) -> Tensor:
    """``value`` as it is, with a gradient to ``weights`` (B, K): ``products(gradient of value)``, (B, K).

    Of a mixture that is linear in the weights, second derivatives are exact where ``products`` can be differentiated.
    """
    return _Carry.apply(weights, value.detach(), products)


def table_term(moves: Moves, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros (B, S, d) that carry the gradient of ``sum_k w_k table[position at k]``; table: (positions, d)."""
    positions = moves.positions
    table = table[: positions.shape[2]]

    def products(grad):
        wide = torch.promote_types(grad.dtype, torch.float32)
        every = grad.to(wide) @ table.to(wide).mT  # (B, S, positions)
        return every.gather(2, positions.mT).sum(1)  # (B, S, K) -> (B, K)

    batch, _, rows = positions.shape
    return carry(moves.weights, table.new_zeros(batch, rows, table.shape[1], dtype=dtype), products)


def code_term(weights: Tensor, codes: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros (B, S, d) that carry the gradient of ``sum_k w_k at_k codes``: codes (S, d) that are added to some rows.

    weights: (B, K).  at: (K, S), 1 in the rows that get their code at split k.
    """

    def products(grad):
        wide = torch.promote_types(grad.dtype, torch.float32)
        return (grad.to(wide) * codes.to(wide)).sum(2) @ at.to(wide).T

    return carry(weights, codes.new_zeros(len(weights), *codes.shape, dtype=dtype), products)


def bias_term(moves: Moves, by_offset: Tensor) -> Tensor:
    """Zeros (B, h, S, S) that carry the gradient of ``sum_k w_k bias(position of key - position of query at k)``.

    by_offset: (h, 2S - 1), the bias of the offsets -(S-1)..S-1.
    """
    rows = moves.rows
    batch, splits, length = rows.shape

    def products(grad):
        found = []
        for k in range(splits):
            offsets = rows[:, k].unsqueeze(1) - rows[:, k].unsqueeze(2) + length - 1  # (B, query, key)
            found.append(torch.einsum("bhij,hbij->b", grad, by_offset[:, offsets].to(grad.dtype)))
        return torch.stack(found, 1)

    zeros = by_offset.new_zeros(1).expand(batch, len(by_offset), length, length)
    return carry(moves.weights, zeros, products)


def visibility(moves: Moves, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The causal mask to add to scores, (B, 1, S, S), that carries the gradient of ``log(sum_k w_k visible at k)``.

    Padding is hidden at every split. Keys that the order hides have the weight ``HIDDEN`` instead of 0. A second
    derivative by the weights is an error.
    """
    rows, real = moves.rows, (mask != 0).unsqueeze(1)  # (B, 1, S) keys
    steps = torch.arange(mask.shape[1], device=mask.device)
    visible = steps <= steps.unsqueeze(1)  # (query, key), as the rows stand now
    lowest = torch.finfo(dtype).min
    value = torch.zeros(visible.shape, dtype=dtype, device=mask.device).masked_fill(
        ~visible, math.log(HIDDEN)
    )
    value = value.expand(len(mask), -1, -1).masked_fill(~real, lowest).unsqueeze(1)

    def products(grad):
        wide = torch.promote_types(grad.dtype, torch.float32)
        weight = torch.ones(visible.shape, dtype=wide, device=grad.device).masked_fill(~visible, HIDDEN)
        scaled = (grad.squeeze(1).to(wide) / weight).masked_fill(~real, 0)
        orders = (rows[:, k] for k in range(rows.shape[1]))
        found = torch.stack([(scaled * (o.unsqueeze(1) <= o.unsqueeze(2))).sum((1, 2)) for o in orders], 1)
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # with create_graph
        return _Once.apply(found, moves.weights) if again else found

    return carry(moves.weights, value, products)


# ---- where the backbones keep their position information ----


def relative_bias_of(model: nn.Module) -> nn.Module | None:
    """The attention module of a T5-like encoder that makes the bias of all layers."""
    for module in model.get_encoder().modules():
        if getattr(module, "has_relative_attention_bias", False) and hasattr(module, "compute_bias"):
            return module
    return None


@contextmanager
def in_relative_bias(attention: nn.Module, moves: Moves):
    """While this is open, the bias that a T5-like attention module makes carries the mixture."""
    usual = attention.compute_bias

    def compute_bias(query_length, key_length, *arguments, **options):
        bias = usual(query_length, key_length, *arguments, **options)  # (1, h, S, S)
        # Its first row holds the offsets 0..S-1, its first column 0..-(S-1).
        by_offset = torch.cat([bias[0, :, 1:, 0].flip(1), bias[0, :, 0]], 1).detach()
        return bias + bias_term(moves, by_offset)

    attention.compute_bias = compute_bias
    try:
        yield
    finally:
        del attention.compute_bias  # the class's own is visible again


@contextmanager
def in_rotary_angles(rotary: nn.Module, moves: Moves):
    """While this is open, cosines and sines of a rotary module carry the mixture."""

    def hook(module, arguments, keywords, output):
        like = output[0]
        steps = torch.arange(moves.rows.shape[2], device=like.device).unsqueeze(0)
        tables = module.forward(like, steps)  # forward, not a call: no hooks
        return tuple(value + table_term(moves, table[0], value.dtype) for value, table in zip(output, tables))

    handle = rotary.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def in_vectors(module: nn.Module, moves: Moves, first: int = 0):
    """While this is open, the position vectors that an embedding module returns carry the mixture.

    first : the row of its table that belongs to position 0.
    """

    def hook(_, arguments, output):
        return output + table_term(moves, module.weight[first:].detach(), output.dtype)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
