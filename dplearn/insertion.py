"""Insertion of a soft prompt around embedded inputs: ``[P_1..P_k ; X ; P_{k+1}..P_l]``.

Two functions do the same placement. ``insert`` takes the split k as given. ``insert_weighted`` takes straight-through
weights over the l+1 splits and carries their gradient in closed form, without building the l+1 candidates. Both copy
every row once, know nothing of models, and follow the real tokens: padding stays outside, on the side where it was.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

BLOCK = 64  # input rows per matrix product in the backward: wide enough for BLAS, narrow enough to waste little


class Inserted(NamedTuple):
    """A prompted batch, and where each of its rows came from."""

    embeds: Tensor  # (B, T+l, d)
    mask: Tensor  # (B, T+l), dtype of the given mask (int64 without one), 1 = real token or prompt
    input_positions: Tensor  # (B, T), the row of embeds that holds inputs[b, t]
    prompt_positions: Tensor  # (B, l), the row of embeds that holds prompt vector i of instance b


class _Span(NamedTuple):
    """Per instance, the window of input rows that a split moves: rows start .. start+cut-1."""

    start: Tensor  # (B, 1), padding rows on the left
    cut: Tensor  # (B, 1), real tokens between the two parts of the prompt


def insert(prompt: Tensor, inputs: Tensor, mask: Tensor | None = None, split: int | Tensor | None = None, *,
           keep_last: int | Tensor = 0) -> Inserted:
    """Place a soft prompt around the real tokens of embedded inputs, k vectors before and l-k after.

    A split k = 0 is a postfix, k = l a prefix, anything between surrounds the input. Right-padded rows become
    ``[P before; X; P after; kept; padding]``, left-padded rows ``[padding; P before; X; P after; kept]``.
    A row without real tokens counts as right-padded.

    Args:
        prompt: (l, d), shared, or (B, l, d), one per instance; l >= 1.
        inputs: (B, T, d), T >= 1, floating point, same dtype as the prompt.
        mask: (B, T), bool or integer, 1 = real; the real tokens of a row are contiguous. None: all are real.
        split: an int, or a (B,) integer tensor, from 0 to l. None: prefix.
        keep_last: how many of the last real tokens stay behind the prompt (1 keeps EOS last), an int or a (B,)
            integer tensor. A shorter row keeps what it has.

    >>> insert(torch.ones(5, 4), torch.zeros(2, 3, 4), split=2).embeds[0, :, 0].tolist()
    [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    """
    mask = _check(prompt, inputs, mask, keep_last)
    split = _check_split(split, prompt, inputs)
    return _inserted(_place, prompt, inputs, mask, split, keep_last)


def insert_weighted(prompt: Tensor, inputs: Tensor, mask: Tensor | None = None, weights: Tensor | None = None, *,
                    keep_last: int | Tensor = 0) -> Inserted:
    """Insert at the split that one-hot weights choose, and give the weights the gradient of the mixture.

    The value is ``insert`` at the argmax. The gradients are those of ``sum_k weights[:, k] * insert(split=k)``: the
    straight-through estimator in token space, exact for prompt, inputs and weights, in memory linear in B(T+l).
    The mask needs no gradient: every split of an instance has the same length, so its mask is the same for all k.
    First derivatives only; a second one raises an error.

    Args:
        prompt, inputs, mask, keep_last: as in ``insert``.
        weights: (B, l+1), one-hot rows, as ``gumbel_softmax(logits, hard=True)`` gives them; column k is split k.
    """
    mask = _check(prompt, inputs, mask, keep_last)
    _check_weights(weights, prompt, inputs)

    def place(prompt, inputs, split, span):
        return _WeightedPlace.apply(prompt, inputs, weights, split, *span)

    return _inserted(place, prompt, inputs, mask, weights.argmax(1), keep_last)


# ---- where each row goes -------------------------------------------------------------------------------------------


def _inserted(place, prompt, inputs, mask, split, keep_last) -> Inserted:
    """Find the span of real tokens, place the rows with ``place``, and mark what is real."""
    length, seq = prompt.shape[-2], inputs.shape[1]
    real = mask.sum(1, keepdim=True)  # (B, 1)
    kept = keep_last.unsqueeze(1) if isinstance(keep_last, Tensor) else keep_last
    span = _Span(start=mask.long().argmax(1, keepdim=True), cut=(real - kept).clamp(min=0))
    embeds = place(prompt, inputs, split, span)
    row = torch.arange(seq + length, device=inputs.device)
    occupied = (row >= span.start) & (row < span.start + real + length)
    return Inserted(embeds, occupied.to(mask.dtype), *_positions(split, span, seq, length))


def _positions(split: Tensor, span: _Span, seq: int, length: int) -> tuple[Tensor, Tensor]:
    """Rows of the output for every input row (B, T) and every prompt vector (B, l)."""
    start, cut = span
    k = split.unsqueeze(1)
    t = torch.arange(seq, device=split.device)
    i = torch.arange(length, device=split.device)
    moved = t + k * (t >= start) + (length - k) * (t >= start + cut)  # left padding stays; the tail passes all of P
    return moved, start + i + cut * (i >= k)


def _place(prompt: Tensor, inputs: Tensor, split: Tensor, span: _Span) -> Tensor:
    """Copy every row to its place, once: (B, T+l, d). Ordinary torch operations, so all derivatives are torch's."""
    batch, seq, dim = inputs.shape
    length = prompt.shape[-2]
    to_inputs, to_prompt = (_flat(p, seq + length) for p in _positions(split, span, seq, length))
    out = inputs.new_empty(batch * (seq + length), dim)
    out.index_copy_(0, to_inputs, inputs.reshape(-1, dim))
    out.index_copy_(0, to_prompt, prompt.expand(batch, length, dim).reshape(-1, dim))
    return out.view(batch, seq + length, dim)


def _flat(positions: Tensor, rows: int) -> Tensor:
    """Row numbers per instance (B, n) as row numbers of the whole batch (B*n,)."""
    return (positions + rows * torch.arange(len(positions), device=positions.device).unsqueeze(1)).flatten()


def _take(rows: Tensor, positions: Tensor) -> Tensor:
    """rows[b, positions[b, n]]: (B, S, d) and (B, n) to (B, n, d)."""
    batch, seq, dim = rows.shape
    return rows.reshape(-1, dim).index_select(0, _flat(positions, seq)).view(*positions.shape, dim)


# ---- the gradient of the weights -----------------------------------------------------------------------------------


class _WeightedPlace(torch.autograd.Function):
    """``_place`` at the chosen split, with the gradients of the mixture over all splits."""

    @staticmethod
    def forward(prompt, inputs, weights, split, start, cut):
        return _place(prompt, inputs, split, _Span(start, cut))

    @staticmethod
    def setup_context(ctx, inputs, output):
        prompt, rows, weights, split, start, cut = inputs
        ctx.weights_dtype = weights.dtype
        ctx.save_for_backward(prompt, rows, split, start, cut)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        prompt, inputs, split, *span = ctx.saved_tensors
        to_inputs, to_prompt = _positions(split, _Span(*span), inputs.shape[1], prompt.shape[-2])
        d_prompt = d_inputs = d_weights = None
        if ctx.needs_input_grad[0]:
            d_prompt = _take(grad, to_prompt).sum_to_size(prompt.shape)
        if ctx.needs_input_grad[1]:
            d_inputs = _take(grad, to_inputs)
        if ctx.needs_input_grad[2]:
            d_weights = _weights_gradient(grad, prompt, inputs, _Span(*span)).to(ctx.weights_dtype)
        return d_prompt, d_inputs, d_weights, None, None, None


def _weights_gradient(grad: Tensor, prompt: Tensor, inputs: Tensor, span: _Span) -> Tensor:
    """<G, sequence inserted at k> for every split k: (B, l+1), summed in float32 or wider."""
    with _without_autocast(grad.device.type):
        return _prompt_products(grad, prompt, span) + _input_products(grad, inputs, span)


def _prompt_products(grad: Tensor, prompt: Tensor, span: _Span) -> Tensor:
    """The prompt's share: sum_{i<k} <G_i, P_i> + sum_{i>=k} <G_{i+cut}, P_i>, both counted from ``start``.

    From one split to the next a single vector changes sides, so the sums over k telescope to a cumulative sum.
    """
    i = torch.arange(prompt.shape[-2], device=grad.device)
    wide = torch.promote_types(grad.dtype, torch.float32)
    # The taken rows are ours, so the product may overwrite them: one (B, l, d) temporary at a time.
    before = _take(grad, span.start + i).to(wide).mul_(prompt).sum(-1)
    after = _take(grad, span.start + span.cut + i).to(wide).mul_(prompt).sum(-1)
    return after.sum(1, keepdim=True) + pad((before - after).cumsum(1), (1, 0))


def _input_products(grad: Tensor, inputs: Tensor, span: _Span) -> Tensor:
    """The input's share: sum_t <G_{t+shift}, X_t>, where the shift is 0, k or l as t is left of, in or right of the span.

    This is a correlation with l+1 lags. A block of rows against the window of G that it can reach is one matrix
    product; its band of l+1 diagonals, read with a row stride one longer, holds the lag k in column k.
    """
    batch, seq, _ = inputs.shape
    length = grad.shape[1] - seq
    wide = torch.promote_types(grad.dtype, torch.float32)
    total = grad.new_zeros(batch, length + 1, dtype=wide)
    for first in range(0, seq, BLOCK):
        rows = inputs[:, first:first + BLOCK].to(wide)
        n = rows.shape[1]
        window = grad[:, first:first + n + length].to(wide)
        products = torch.bmm(rows, window.mT).contiguous()  # (B, n, n+l)
        band = products.as_strided((batch, n, length + 1), (n * (n + length), n + length + 1, 1))
        t = torch.arange(first, first + n, device=grad.device)
        left, inside = ((t < edge).unsqueeze(2) for edge in (span.start, span.start + span.cut))  # (B, n, 1)
        total += torch.where(inside, torch.where(left, band[..., :1], band), band[..., length:]).sum(1)
    return total


def _without_autocast(device: str):
    """A context in which autocast does not lower the precision of the sums."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device if available else "cpu", enabled=False)


# ---- checks: shapes and dtypes always, values only where looking at them does not stall a device ----------------------


def _check(prompt: Tensor, inputs: Tensor, mask: Tensor | None, keep_last: int) -> Tensor:
    """Check all but the split; return the mask, made of ones where none is given."""
    if inputs.dim() != 3 or inputs.shape[1] == 0:
        raise ValueError(f"inputs has shape {tuple(inputs.shape)}, expected (batch, seq, dim) with seq >= 1")
    batch, seq, dim = inputs.shape
    if prompt.dim() not in (2, 3) or prompt.shape[-2] == 0:
        raise ValueError(f"prompt has shape {tuple(prompt.shape)}, expected (length, dim) or (batch, length, dim) "
                         "with length >= 1")
    if prompt.shape[-1] != dim:
        raise ValueError(f"prompt has width {prompt.shape[-1]}, expected {dim}, the width of inputs")
    if prompt.dim() == 3 and len(prompt) != batch:
        raise ValueError(f"prompt holds {len(prompt)} instances, expected {batch}, the batch size of inputs")
    if not inputs.is_floating_point():
        raise TypeError(f"inputs has dtype {inputs.dtype}, expected embedded inputs of a floating-point dtype")
    if prompt.dtype != inputs.dtype:
        raise TypeError(f"prompt has dtype {prompt.dtype}, expected {inputs.dtype}, the dtype of inputs")
    _check_device("prompt", prompt, inputs)
    _check_keep_last(keep_last, inputs)
    if mask is None:
        return torch.ones(batch, seq, dtype=torch.long, device=inputs.device)
    _check_mask(mask, inputs)
    return mask


def _check_keep_last(keep_last: int | Tensor, inputs: Tensor) -> None:
    if isinstance(keep_last, Tensor):
        if keep_last.shape != inputs.shape[:1] or keep_last.dtype == torch.bool or keep_last.is_floating_point():
            raise ValueError(f"keep_last has shape {tuple(keep_last.shape)} and dtype {keep_last.dtype}, "
                             f"expected ({len(inputs)},) integers, one per instance")
        _check_device("keep_last", keep_last, inputs)
        if _values_are_free(keep_last) and (keep_last < 0).any():
            raise ValueError(f"keep_last holds {int(keep_last.min())}, expected numbers of tokens >= 0")
    elif not isinstance(keep_last, int) or keep_last < 0:
        raise ValueError(f"keep_last={keep_last!r} is not a number of tokens: expected an int >= 0")


def _check_mask(mask: Tensor, inputs: Tensor) -> None:
    if mask.shape != inputs.shape[:2]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected {tuple(inputs.shape[:2])}, (batch, seq) of inputs")
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"mask has dtype {mask.dtype}, expected bool or an integer dtype")
    _check_device("mask", mask, inputs)
    if not _values_are_free(mask):
        return
    real = mask.long()
    if ((real != 0) & (real != 1)).any():
        raise ValueError(f"mask holds values from {real.min()} to {real.max()}, expected 0 (padding) and 1 (real)")
    runs = (pad(real, (1, 0)).diff(dim=1) == 1).sum(1)
    if (runs > 1).any():
        row = int(runs.argmax())
        raise ValueError(f"mask row {row} has {runs[row]} separate runs of real tokens, expected one: "
                         "padding belongs to the left or to the right of them")


def _check_split(split: int | Tensor | None, prompt: Tensor, inputs: Tensor) -> Tensor:
    """The split as a (B,) int64 tensor."""
    length, batch = prompt.shape[-2], len(inputs)
    scale = f"the prompt has {length} vectors (0 is postfix, {length} is prefix)"
    if split is None:
        split = length
    if isinstance(split, int) and not isinstance(split, bool):
        if not 0 <= split <= length:
            raise ValueError(f"split={split} is outside 0..{length}: {scale}")
        return torch.full((batch,), split, device=inputs.device)
    if not isinstance(split, Tensor) or split.dtype == torch.bool or split.is_floating_point():
        kind = split.dtype if isinstance(split, Tensor) else type(split).__name__
        raise TypeError(f"split is {kind}, expected an int or an integer tensor of shape ({batch},)")
    if split.shape != (batch,):
        raise ValueError(f"split has shape {tuple(split.shape)}, expected ({batch},), one per instance")
    _check_device("split", split, inputs)
    if _values_are_free(split) and ((split < 0) | (split > length)).any():
        wrong = split[(split < 0) | (split > length)][0]
        raise ValueError(f"split={wrong} is outside 0..{length}: {scale}")
    return split.long()


def _check_weights(weights: Tensor | None, prompt: Tensor, inputs: Tensor) -> None:
    expected = (len(inputs), prompt.shape[-2] + 1)
    if not isinstance(weights, Tensor) or weights.shape != expected:
        shape = tuple(weights.shape) if isinstance(weights, Tensor) else weights
        raise ValueError(f"weights has shape {shape}, expected {expected}: one column per split 0..{expected[1] - 1}")
    if not weights.is_floating_point():
        raise TypeError(f"weights has dtype {weights.dtype}, expected a floating-point dtype")
    _check_device("weights", weights, inputs)
    if not _values_are_free(weights) or len(weights) == 0:
        return
    # The straight-through form hard - soft + soft leaves rounding errors, so "one-hot" holds up to a tolerance.
    one_hot = torch.zeros_like(weights).scatter_(1, weights.detach().argmax(1, keepdim=True), 1)
    off = (weights.detach() - one_hot).abs().amax(1)
    if not (off < 0.05).all():
        row = int(off.argmax())
        raise ValueError(f"weights row {row} is {off[row]:.2g} away from one-hot: expected gumbel_softmax(..., hard=True)")


def _check_device(name: str, tensor: Tensor, inputs: Tensor) -> None:
    if tensor.device != inputs.device:
        raise ValueError(f"{name} is on {tensor.device}, expected {inputs.device}, the device of inputs")


def _values_are_free(tensor: Tensor) -> bool:
    """Whether values may be checked: not on a device, which would have to wait, and not while a graph is traced."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
