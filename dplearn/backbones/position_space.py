"""The position-space estimator: gradients of a split through the backbone's position information alone.

Moving a prompt changes where its tokens stand, not which tokens there are, and attention without position information
does not see the order. So the split acts only through relative biases, position vectors, rotary angles and causal
visibility. This estimator mixes these over all splits, at the sampled split: the forward pass is the one of the
inserted sequence, and the weights of the splits get the gradient of the mixture ``sum_k w_k * position information
at k``. (The paper's estimator mixes the inserted sequences instead: it differentiates a blend of different tokens.)

In a causal model the slope at a key that is not visible yet is its exponentiated score over the sum of the visible
ones, which has no bound: estimates can be of any size there, and "score-function" is the better choice.

Each mixture is a constant to the forward pass. :func:`with_gradient` hands its gradient to the weights in closed form
or in a loop over splits, so that no tensor has a dimension of splits and of rows twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dplearn.backbones.views import Change, evaluating
from dplearn.insertion import Moves

if TYPE_CHECKING:
    from transformers import PreTrainedModel
from dplearn.offload import device_of

# Weight of a key that causal order hides, instead of 0: small enough to change nothing that is visible, large enough
# for its gradient (float16 cannot hold it: hidden keys then get no gradient).
HIDDEN = 1e-24


class _WithGradient(torch.autograd.Function):
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


def with_gradient(weights: Tensor, value: Tensor, products: Callable[[Tensor], Tensor]) -> Tensor:
    """``value`` as it is, with a gradient to ``weights`` (B, K): ``products(gradient of value)``, (B, K).

    Of a mixture that is linear in the weights, second derivatives are exact where ``products`` can be differentiated.
    """
    return _WithGradient.apply(weights, value.detach(), products)


def table_term(moves: Moves, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros (B, S, d) that carry the gradient of ``sum_k w_k table[position at k]``; table: (positions, d)."""
    positions = moves.positions
    table = table[: positions.shape[2]]

    def products(grad):
        wide = torch.promote_types(grad.dtype, torch.float32)
        every = grad.to(wide) @ table.to(wide).mT  # (B, S, positions)
        return every.gather(2, positions.mT).sum(1)  # (B, S, K) -> (B, K)

    batch, _, rows = positions.shape
    return with_gradient(moves.weights, table.new_zeros(batch, rows, table.shape[1], dtype=dtype), products)


def code_term(weights: Tensor, codes: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros (B, S, d) that carry the gradient of ``sum_k w_k at_k codes``: codes (S, d) that are added to some rows.

    weights: (B, K).  at: (K, S), 1 in the rows that get their code at split k.
    """

    def products(grad):
        wide = torch.promote_types(grad.dtype, torch.float32)
        return (grad.to(wide) * codes.to(wide)).sum(2) @ at.to(wide).T

    return with_gradient(weights, codes.new_zeros(weights.shape[0], *codes.shape, dtype=dtype), products)


def bias_term(moves: Moves, by_offset: Tensor) -> Tensor:
    """Zeros (B, h, S, S) that carry the gradient of ``sum_k w_k bias(position of key - position of query at k)``.

    by_offset: (h, 2S - 1), the bias of the offsets -(S-1)..S-1.
    """
    rows = moves.rows
    batch, splits, length = rows.shape

    def products(grad):
        slopes = []
        for k in range(splits):
            offsets = rows[:, k].unsqueeze(1) - rows[:, k].unsqueeze(2) + length - 1  # (B, query, key)
            slopes.append(torch.einsum("bhij,hbij->b", grad, by_offset[:, offsets].to(grad.dtype)))
        return torch.stack(slopes, 1)

    zeros = by_offset.new_zeros(1).expand(batch, len(by_offset), length, length)
    return with_gradient(moves.weights, zeros, products)


def visibility(moves: Moves, mask: Tensor, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """The causal mask to add to scores, (B, 1, S, S), that carries the gradient of ``log(sum_k w_k visible at k)``.

    Padding is hidden at every split. Keys that the order hides have the weight ``HIDDEN`` instead of 0. A second
    derivative by the weights is an error.

    window : how many rows a row sees, counted from itself; None: all in front of it.
    """
    rows, real = moves.rows, (mask != 0).unsqueeze(1)  # (B, 1, S) keys
    steps = torch.arange(mask.shape[1], device=mask.device)
    visible = _sees(steps.unsqueeze(0), window)[0]  # (query, key), as the rows stand now
    lowest = torch.finfo(dtype).min
    value = torch.zeros(visible.shape, dtype=dtype, device=mask.device).masked_fill(
        ~visible, math.log(HIDDEN)
    )
    value = value.expand(mask.shape[0], -1, -1).masked_fill(~real, lowest).unsqueeze(1)

    def products(grad):
        wide = torch.promote_types(grad.dtype, torch.float32)
        weight = torch.ones(visible.shape, dtype=wide, device=grad.device).masked_fill(~visible, HIDDEN)
        scaled = (grad.squeeze(1).to(wide) / weight).masked_fill(~real, 0)
        orders = (rows[:, k] for k in range(rows.shape[1]))
        slopes = torch.stack([(scaled * _sees(order, window)).sum((1, 2)) for order in orders], 1)
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # with create_graph
        return _Once.apply(slopes, moves.weights) if again else slopes

    return with_gradient(moves.weights, value, products)


def _sees(order: Tensor, window: int | None) -> Tensor:
    """Which key a query sees, (B, query, key), for rows that stand at ``order`` (B, S)."""
    distance = order.unsqueeze(2) - order.unsqueeze(1)  # query - key
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


# ---- where the backbones keep their position information: changes of modules (dplearn.backbones.views) ----


def causal_masks(config, moves: Moves, mask: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """:func:`visibility` for a decoder's layers: one mask, or one for each kind of layer where these differ."""
    return _for_kinds(config, lambda window: visibility(moves, mask, dtype, window))


def _for_kinds(config, mask: Callable) -> Tensor | dict[str, Tensor]:
    """``mask(window)`` for all layers, or one for each kind of layer where these differ."""
    window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
    windows = {"full_attention": None, "sliding_attention": window}
    if len(kinds) > 1:
        return {kind: mask(windows[kind]) for kind in sorted(kinds)}
    return mask(windows[kinds.pop()] if kinds else window)


def refuses_order(
    model: PreTrainedModel, states: Callable, width: int, window: int | None = None
) -> str | None:
    """Why a model's position information is not all within reach of the mixtures, or None if it is.

    What stands where is told by positions (and a mask) alone, so rows in another order, each told where it stands, have
    the states that they have in order. Not so where anything else counts rows: a second table or bias, a convolution,
    a mask of the layers' own, a window.

    Parameters
    ----------
    states : a function of rows (1, S, d) and of where each stands (S,), or None for the model's own order, to hidden
        states (1, S, h).
    width : d.
    window : how many rows a layer sees, where it does not see all.
    """
    count = 6 if window is None or window > 62 else window + 2  # beyond a window that is small enough
    rows = torch.linspace(-1, 1, count * width).sin().view(1, count, width)
    rows = rows.to(device_of(model), model.dtype)
    order = torch.arange(count, device=rows.device).roll(2).flip(0)
    try:
        with torch.no_grad(), evaluating(model, copies=False):
            expected, reordered = states(rows, None)[:, order], states(rows[:, order], order)
    except Exception as error:
        return f"it fails where rows are told their positions: {type(error).__name__}: {str(error)[:200]}"
    coarse = rows.dtype in (torch.float16, torch.bfloat16)
    difference = (reordered - expected).abs().max()
    if not difference <= (0.05 if coarse else 1e-3) * expected.abs().max():
        return (
            f"its answer differs by {difference:.2g} where rows stand in another order and are told their positions, "
            "so it has position information that is not known"
        )
    return None


def ordered_masks(config, order: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """The masks of a decoder's layers, as :func:`causal_masks`, for one input whose rows stand at ``order`` (S,)."""

    def mask(window):
        hidden = ~_sees(order.unsqueeze(0), window)
        value = torch.zeros(hidden.shape, dtype=dtype, device=order.device)
        return value.masked_fill(hidden, math.log(HIDDEN))[None]

    return _for_kinds(config, mask)


def unknown_layers(config) -> str | None:
    """Why layers do not attend by a causal mask that is known, or None if they do."""
    unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        return f"layers of the kind {sorted(unknown)[0]!r} do not attend by a causal mask that is known"
    return None


def blocks_of(config) -> str | None:
    """Why an encoder that attends in blocks of rows is not within reach, or None where it does not."""
    if getattr(config, "attention_window", None) or getattr(config, "attention_type", None) == "block_sparse":
        return "which rows attend to each other depends on blocks or windows of rows"
    return None


def standing_at(path: str, table: nn.Embedding, order: Tensor, first: int) -> dict[str, Change]:
    """The change of an embedding module at ``path`` by which the rows of an input stand at ``order`` (S,)."""
    return {path: lambda usual, *arguments, **options: table.weight[first + order][None]}


def bias_standing_at(order: Tensor) -> Change:
    """The same for ``compute_bias`` of a T5-like attention module."""

    def compute_bias(usual, *arguments, **options):
        return usual(*arguments, **options)[:, :, order][..., order]

    return compute_bias


def relative_biases(encoder: nn.Module) -> list[str]:
    """Paths of the attention modules of a T5-like encoder that make a bias: one for all layers, or one in each."""
    return [
        name
        for name, module in encoder.named_modules()
        if getattr(module, "has_relative_attention_bias", False) and hasattr(module, "compute_bias")
    ]


def in_relative_bias(moves: Moves) -> Change:
    """``compute_bias`` of a T5-like attention module, carrying the mixture."""

    def compute_bias(usual, *arguments, **options):
        bias = usual(*arguments, **options)  # (1, h, S, S)
        # Its first row holds the offsets 0..S-1, its first column 0..-(S-1).
        by_offset = torch.cat([bias[0, :, 1:, 0].flip(1), bias[0, :, 0]], 1).detach()
        return bias + bias_term(moves, by_offset)

    return compute_bias


def in_rotary_angles(rotary: nn.Module, moves: Moves) -> Change:
    """A rotary module whose cosines and sines carry the mixture."""

    def forward(usual, states, position_ids, *arguments, **options):
        output = usual(states, position_ids, *arguments, **options)
        steps = torch.arange(moves.rows.shape[2], device=states.device).unsqueeze(0)
        tables = usual(states, steps, *arguments, **options)
        return tuple(value + table_term(moves, table[0], value.dtype) for value, table in zip(output, tables))

    return forward


def in_vectors(module: nn.Embedding, moves: Moves, first: int = 0) -> Change:
    """An embedding module whose position vectors carry the mixture.

    first : the row of its table that belongs to position 0.
    """

    def forward(usual, *arguments, **options):
        output = usual(*arguments, **options)
        return output + table_term(moves, module.weight[first:].detach(), output.dtype)

    return forward
