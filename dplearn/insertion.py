"""Insertion of a soft prompt around embedded inputs: ``[P_1..P_k ; X ; P_{k+1}..P_n]``, with n of the l vectors in use.

Two functions place the rows alike. ``insert`` takes the split k and the size n as given. ``insert_weighted`` takes
straight-through weights over the l+1 splits, the l+1 sizes or both, and gives them their gradient in closed form: the
candidates are never built. Both copy every row once and follow the real tokens: padding stays outside, on its side.

Where that is not enough, because a derivative is differentiated again or torch.func (vmap, jvp) rewrites operations,
the mixture of all candidates is written out, one product with a matrix of weights per input (``_weighted_rows``).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import pad

from dplearn.checks import is_whole

# Input rows per matrix product in the backward. More waste work outside the band, fewer leave BLAS too little:
# 16 to 64 measure about alike.
BLOCK = 32


class Inserted(NamedTuple):
    """A prompted batch, and where each of its rows came from."""

    embeds: Tensor  # (B, T+l, d)
    mask: Tensor  # (B, T+l), dtype of the given mask (int64 without one), 1 = real token or prompt vector in use
    input_positions: Tensor  # (B, T), the row of embeds that holds inputs[b, t]
    # (B, l), the row of embeds that holds prompt vector i of instance b; -1: not in use
    prompt_positions: Tensor


class _Plan(NamedTuple):
    """Where every row goes. Of an instance's input rows, start .. end-1 stand between the two parts of the prompt."""

    start: Tensor  # (B, 1), the first real row
    end: Tensor  # (B, 1), the first row behind the prompt: one that is kept last, or padding
    split: Tensor  # (B, 1), vectors before the input, as asked for; min(split, size) stand there
    size: Tensor | None  # (B, 1), vectors in use; None: all
    # (B, 1), the instance's first row in the output of the whole batch, flattened to (B*(T+l), d)
    base: Tensor
    input_positions: Tensor  # (B, T), within the instance
    prompt_positions: Tensor  # (B, l), within the instance; vectors that are not in use fill the last rows


def insert(
    prompt: Tensor,
    inputs: Tensor,
    mask: Tensor | None = None,
    split: int | Tensor | None = None,
    size: int | Tensor | None = None,
    *,
    keep_last: int | Tensor = 0,
) -> Inserted:
    """Place a soft prompt around the real tokens of embedded inputs, k vectors before and the others after.

    A split k = 0 is a postfix, k = l a prefix, anything between surrounds the input. Right-padded rows become
    ``[P before; X; P after; kept; padding]``, left-padded rows ``[padding; P before; X; P after; kept]``.
    A row without real tokens counts as right-padded.

    With a size n < l only P_1..P_n are in use, min(k, n) of them before the input. The others fill the last rows of the
    instance and are masked out, so they are padding to the backbone: the instance looks as with a prompt of n vectors.

    Parameters
    ----------
    prompt : (l, d), shared, or (B, l, d), one per input; l >= 1.
    inputs : (B, T, d), T >= 1, floating point, same dtype as the prompt.
    mask : (B, T), bool or integer, 1 = real; the real tokens of a row are contiguous. None: all are real.
    split : an int, or a (B,) integer tensor, from 0 to l. None: prefix.
    size : an int, or a (B,) integer tensor, from 0 to l. None: all l vectors.
    keep_last : how many of the last real tokens stay behind the prompt (1 keeps EOS last): an int, or
        a (B,) integer tensor. A shorter row keeps what it has.

    >>> insert(torch.ones(5, 4), torch.zeros(2, 3, 4), split=2).embeds[0, :, 0].tolist()
    [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    >>> insert(torch.ones(5, 4), torch.zeros(2, 3, 4), split=2, size=3).mask[0].tolist()
    [1, 1, 1, 1, 1, 1, 0, 0]
    """
    mask = _check(prompt, inputs, mask, keep_last)
    split = _check_count("split", split, prompt, inputs)
    size = None if size is None else _check_count("size", size, prompt, inputs)
    plan = _plan(prompt, inputs, mask, split, size, keep_last)
    return _inserted(_place(prompt, inputs, plan), mask, plan)


def insert_weighted(
    prompt: Tensor,
    inputs: Tensor,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    size_weights: Tensor | None = None,
    *,
    split: int | Tensor | None = None,
    size: int | Tensor | None = None,
    keep_last: int | Tensor = 0,
) -> Inserted:
    """Insert at the split and the size that one-hot weights choose, and give the weights the gradient of the mixture.

    The value is ``insert`` at the argmax. The gradients of prompt, inputs and weights are exactly those of
    ``sum_k weights[:, k] * insert(split=k)`` and ``sum_n size_weights[:, n] * insert(size=n)``, the straight-through
    estimator in token space, with the mask of the chosen size (which needs no weights where only the split is learned:
    all splits of an instance fill the same rows). With both, the mixture is ``sum_kn weights[:, k] *
    size_weights[:, n] * insert(split=k, size=n)``.

    Higher derivatives are exactly those of the mixture too, but with more work, (T+l)^2 numbers per input, as one
    head of attention; so are derivatives under torch.func (vmap, grad, jvp) and in forward mode. Compiled code refuses
    second derivatives.

    Parameters
    ----------
    prompt : (l, d) or (B, l, d); it, ``inputs``, ``mask`` and ``keep_last`` are as in ``insert``.
    weights : (B, l+1), one-hot rows as from ``gumbel_softmax(logits, hard=True)``; column k is split k. None: the
        split is given.
    size_weights : the same for the size; column n is size n. None: the size is given.
    split : as in ``insert``, and so is ``size``; only for what has no weights.
    """
    mask = _check(prompt, inputs, mask, keep_last)
    if weights is None and size_weights is None:
        raise ValueError("weights and size_weights are None, expected at least one of them (else use insert)")
    counts = {"split": (weights, "weights", split), "size": (size_weights, "size_weights", size)}
    chosen: dict[str, Tensor | None] = {}
    for name, (rows, title, count) in counts.items():
        if rows is not None and count is not None:
            raise ValueError(f"{name}={count!r} is given and so is {title}, expected one of the two")
        if rows is not None:
            _check_weights(title, rows, prompt, inputs)
            chosen[name] = rows.argmax(1)
        else:
            chosen[name] = None if count is None else _check_count(name, count, prompt, inputs)
    taken = chosen["split"]
    if taken is None:
        taken = _check_count("split", None, prompt, inputs)
    plan = _plan(prompt, inputs, mask, taken, chosen["size"], keep_last)
    place = _weighted_rows if _is_transformed() else _WeightedPlace.apply
    return _inserted(place(prompt, inputs, weights, size_weights, *plan), mask, plan)


# ---- where each row goes ----------------------------------------------------------------------------------


def _plan(
    prompt: Tensor, inputs: Tensor, mask: Tensor, split: Tensor, size: Tensor | None, keep_last: int | Tensor
) -> _Plan:
    (batch, seq, _), length = inputs.shape, prompt.shape[-2]
    kept = keep_last.unsqueeze(1) if isinstance(keep_last, Tensor) else keep_last
    start = mask.long().argmax(1, keepdim=True)
    end = start + (mask.sum(1, keepdim=True) - kept).clamp(min=0)
    k, n = split.unsqueeze(1), None if size is None else size.unsqueeze(1)
    base, t, i = (torch.arange(count, device=inputs.device) for count in (batch, seq, length))
    front = k if n is None else torch.minimum(k, n)
    moved = front.masked_fill(t >= end, length) if n is None else torch.where(t < end, front, n)
    moved = moved.masked_fill(t < start, 0)  # (B, T), by how many rows
    place = torch.where(i < front, start, end)  # (B, l)
    place = place if n is None else place.masked_fill(i >= n, seq)
    return _Plan(start, end, k, n, (base * (seq + length)).unsqueeze(1), t + moved, i + place)


class Moves(NamedTuple):
    """Where every row would stand at every split: what the position-space estimator needs.

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


def rows_at_every_split(
    mask: Tensor, length: int, split: Tensor, size: Tensor | None = None, keep_last: int | Tensor = 0
) -> Tensor:
    """Where the token that stands in each row would stand at every split: (B, l+1, S) with S = T + l.

    Parameters
    ----------
    mask : (B, T); it and ``keep_last`` are as in ``insert``.
    length : l.
    split : (B,), of the sequences as they are, and so is ``size``, which is the same at every split.
    """
    (batch, seq), options = mask.shape, length + 1
    every = torch.arange(options, device=mask.device).repeat(batch)  # (B*(l+1),), split fastest

    def plan(times, split):
        def spread(value):
            return value.repeat_interleave(times, 0) if isinstance(value, Tensor) else value

        shapes = mask.new_empty(length, 0), mask.new_empty(batch * times, seq, 0)
        return _plan(*shapes, spread(mask), split, spread(size), spread(keep_last))

    now, then = plan(1, split), plan(options, every)
    rows = torch.cat([now.input_positions, now.prompt_positions], 1)  # (B, S): of tokens, then of vectors
    moved = torch.cat([then.input_positions, then.prompt_positions], 1).view(batch, options, -1)
    # A permutation: every entry is written.
    return moved.scatter(2, rows.unsqueeze(1).expand_as(moved), moved)


def _place(prompt: Tensor, inputs: Tensor, plan: _Plan) -> Tensor:
    """Copy every row to its place, once: (B, T+l, d). Ordinary operations, so torch knows all derivatives."""
    (batch, seq, dim), length = inputs.shape, prompt.shape[-2]
    shared = prompt.expand(batch, length, dim)
    if _is_transformed():  # vmap cannot write rows of many prompts into a tensor that it did not make
        out = inputs.new_zeros(batch, seq + length, dim)
        out = out.scatter(1, plan.input_positions.unsqueeze(2).expand(batch, seq, dim), inputs)
        return out.scatter(1, plan.prompt_positions.unsqueeze(2).expand(batch, length, dim), shared)
    out = inputs.new_empty(batch * (seq + length), dim)
    out.index_copy_(0, (plan.base + plan.input_positions).flatten(), inputs.flatten(0, 1))
    out.index_copy_(0, (plan.base + plan.prompt_positions).flatten(), shared.flatten(0, 1))
    return out.view(batch, seq + length, dim)


def _inserted(embeds: Tensor, mask: Tensor, plan: _Plan) -> Inserted:
    """All rows are real but those that hold padding or a vector that is not in use."""
    positions = plan.prompt_positions
    if plan.size is None:
        real = mask.new_ones(embeds.shape[:2])
    else:  # vectors that are not in use fill the last rows
        used = torch.arange(positions.shape[1], device=mask.device) < plan.size
        real = torch.cat([torch.ones_like(mask), used.to(mask.dtype)], 1)
        positions = torch.where(used, positions, -1)
    return Inserted(embeds, real.scatter(1, plan.input_positions, mask), plan.input_positions, positions)


def _is_transformed() -> bool:
    """Whether torch.func (vmap, grad, jvp) or forward-mode differentiation runs: they need ordinary operations."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _take(rows: Tensor, positions: Tensor) -> Tensor:
    """Rows (N, d) of a flattened batch at positions (B, n): a copy, (B, n, d)."""
    return rows.index_select(0, positions.flatten()).view(*positions.shape, rows.shape[1])


def _is_differentiated_again(grad: Tensor) -> bool:
    """Whether a backward runs with create_graph, or on many gradients at once (``is_grads_batched``, vmap)."""
    if torch.compiler.is_compiling():  # compiled code refuses a second derivative, and enables gradients
        return _is_transformed()
    return torch.is_grad_enabled() or _is_transformed() or torch._C._functorch.is_legacy_batchedtensor(grad)


# ---- the gradient of the weights --------------------------------------------------------------------------


class _WeightedPlace(torch.autograd.Function):
    """``_place`` at the chosen split and size, with the gradients of the mixture over all splits and all sizes."""

    @staticmethod
    def forward(prompt, inputs, weights, size_weights, start, end, split, size, base, inputs_at, prompt_at):
        # All are named: torch.compile counts them to tell whether a context comes first.
        return _place(prompt, inputs, _Plan(start, end, split, size, base, inputs_at, prompt_at))

    @staticmethod
    def setup_context(ctx, arguments, output):
        ctx.save_for_backward(*arguments)

    @staticmethod
    def backward(ctx, grad):
        prompt, inputs, weights, size_weights, *plan = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if _is_differentiated_again(grad):
            return _gradient_with_graph(grad, (prompt, inputs, weights, size_weights), plan, needed)
        plan = _Plan(*plan)
        rows = grad.flatten(0, 1)
        d_prompt = (
            _take(rows, plan.base + plan.prompt_positions).sum_to_size(prompt.shape) if needed[0] else None
        )
        d_inputs = _take(rows, plan.base + plan.input_positions) if needed[1] else None
        d_split = d_size = None
        if needed[2] or needed[3]:
            products = _products(grad, prompt, inputs, plan)
            d_split = products.over_splits(plan).to(weights.dtype) if needed[2] else None
            d_size = products.over_sizes(plan).to(size_weights.dtype) if needed[3] else None
        return d_prompt, d_inputs, d_split, d_size, *(None for _ in plan)


class _Products(NamedTuple):
    """Inner products of the gradient G with the rows that the candidates have."""

    before: Tensor  # (B, l), <G_{start+i}, P_i>: vector i stands before the input
    after: Tensor  # (B, l), <G_{end+i}, P_i>: it stands behind it
    # (B, l), <G_{T+i}, P_i>: it is not in use and fills a last row; None: all are in use
    unused: Tensor | None
    # (B, l+1), sum_t <G_{t+j}, X_t> over t < end, with j vectors before the input (padding stays)
    body: Tensor
    # (B, l+1), the same over t >= end, with j vectors in all; None: part of body, all are in use
    tail: Tensor | None

    def front(self) -> Tensor:
        """What depends on f = min(k, n), the number of vectors before the input: (B, l+1)."""
        return pad((self.before - self.after).cumsum(1), (1, 0)) + self.body

    def rest(self) -> Tensor:
        """What depends on the size n alone, (B, l+1), or (B, 1) where all vectors are in use."""
        if self.unused is None or self.tail is None:
            return self.after.sum(1, keepdim=True)
        changes = pad((self.after - self.unused).cumsum(1), (1, 0))
        return changes + self.unused.sum(1, keepdim=True) + self.tail

    def over_splits(self, plan: _Plan) -> Tensor:
        """<G, candidate> of every split at the size in use, (B, l+1)."""
        if plan.size is None:
            return self.front() + self.rest()
        options = torch.arange(self.body.shape[1], device=self.body.device)
        return self.front().gather(1, torch.minimum(options, plan.size)) + self.rest().gather(1, plan.size)

    def over_sizes(self, plan: _Plan) -> Tensor:
        """<G, candidate> of every size at the split asked for, (B, l+1)."""
        options = torch.arange(self.body.shape[1], device=self.body.device)
        return self.front().gather(1, torch.minimum(options, plan.split)) + self.rest()


def _products(grad: Tensor, prompt: Tensor, inputs: Tensor, plan: _Plan) -> _Products:
    """All inner products of a batch, summed in float32 or wider, under autocast too."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    with _no_autocast(grad):
        return _Products(
            *_prompt_products(grad, prompt, plan, wide), *_input_products(grad, inputs, plan, wide)
        )


def _prompt_products(
    grad: Tensor, prompt: Tensor, plan: _Plan, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The prompt's share: each vector at the places that it can have."""
    rows, i = grad.flatten(0, 1), plan.base + torch.arange(prompt.shape[-2], device=grad.device)

    def products(first):
        # The taken rows are a copy, so the product may overwrite them: one (B, l, d) temporary at a time.
        return _take(rows, first + i).to(dtype).mul_(prompt).sum(-1)

    unused = None if plan.size is None else products(grad.shape[1] - prompt.shape[-2])
    return products(plan.start), products(plan.end), unused


def _input_products(
    grad: Tensor, inputs: Tensor, plan: _Plan, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The input's share: sum_t <G_{t+lag}, X_t> for every lag 0..l, over the rows that the prompt moves so far.

    This is a correlation with l+1 lags. A block of n rows against the n+l rows of G that it can reach is one
    matrix product; its band of l+1 diagonals, read with a row stride one longer, holds the lag j in column j.
    """
    batch, seq, _ = inputs.shape
    length, n = grad.shape[1] - seq, min(seq, BLOCK)
    width = n + length
    products = [
        torch.bmm(inputs[:, a : a + n].to(dtype), grad[:, a : a + width].to(dtype).mT)
        for a in range(0, seq, n)
    ]
    short = n - products[-1].shape[1]  # rows that the last block lacks
    products[-1] = pad(products[-1], (0, short, 0, short)) if short else products[-1]
    blocks = len(products)
    band = torch.stack(products).as_strided(  # (blocks, B, n, l+1) of (blocks, B, n, n+l)
        (blocks, batch, n, length + 1), (batch * n * width, n * width, width + 1, 1)
    )
    t = torch.arange(blocks * n, device=grad.device).view(blocks, 1, n, 1)
    ahead = t < plan.end.unsqueeze(2)
    still = torch.where(t < plan.start.unsqueeze(2), band[..., :1], band)
    if plan.size is None:  # rows behind move by all l vectors whatever the split
        return torch.where(ahead, still, band[..., length:]).sum((0, 2)), None
    return torch.where(ahead, still, 0).sum((0, 2)), band.masked_fill(ahead, 0).sum((0, 2))


def _no_autocast(tensor: Tensor) -> torch.autocast:
    device = tensor.device.type if torch.amp.is_autocast_available(tensor.device.type) else "cpu"
    return torch.autocast(device, enabled=False)


# ---- the same with all its derivatives --------------------------------------------------------------------


def _weighted_rows(
    prompt: Tensor, inputs: Tensor, weights: Tensor | None, size_weights: Tensor | None, *columns: Any
) -> Tensor:
    """``_WeightedPlace`` in ordinary operations: its value, and all derivatives of the mixture, (B, T+l, d)."""
    plan = _Plan(*columns)
    placed, wide = _place(prompt, inputs, plan), torch.promote_types(inputs.dtype, torch.float32)
    batch, length = inputs.shape[0], prompt.shape[-2]
    options = torch.arange(length + 1, device=inputs.device)

    def at_least(weights, chosen):
        """P(k >= j) for every j, exactly that of the choice, with the derivative of the sum of weights."""
        value = (options <= chosen).to(wide)
        if weights is None:
            return value
        sums = weights.to(wide).flip(1).cumsum(1).flip(1)
        return value + (sums - sums.detach())

    size = torch.full_like(plan.split, length) if plan.size is None else plan.size
    with _no_autocast(inputs):
        matrix = _mixing_matrix(at_least(weights, plan.split), at_least(size_weights, size), inputs, plan)
        rows = torch.cat([prompt.expand(batch, -1, -1), inputs], 1).to(wide)
        # The matrix less its own value is zero, so that what was placed stays as it is, to the last bit.
        return placed + torch.bmm(matrix - matrix.detach(), rows).to(placed.dtype)


def _mixing_matrix(split: Tensor, size: Tensor, inputs: Tensor, plan: _Plan) -> Tensor:
    """Which part of each row of [prompt; inputs] each row of the output gets, (B, T+l, l+T).

    split, size: (B, l+1), P(k >= j) and P(n >= j), where P sums weights, of any sign; all places are linear in both.
    """
    seq, length = inputs.shape[1], split.shape[1] - 1
    t, i, s = (torch.arange(count, device=inputs.device) for count in (seq, length, seq + length))
    start, end, s = plan.start.unsqueeze(1), plan.end.unsqueeze(1), s.unsqueeze(1)  # (B, 1, 1), (T+l, 1)
    front, used = split * size, split[:, :1] * size  # P(min(k, n) >= j), P(n >= j) over all splits
    whole = used[:, :1].unsqueeze(2)  # 1, whose derivative is not 0

    def vectors(share, first):
        return share.unsqueeze(1) * (s == first + i)

    before, within = front[:, 1:], used[:, 1:]
    of_prompt = vectors(before, start) + vectors(within - before, end) + vectors(used[:, :1] - within, seq)
    lag = s - t  # (T+l, T), by how many rows token t has moved where it stands in row s

    def moved(reached):
        exactly = -pad(reached, (0, 1)).diff(dim=1)  # P(j) of P(>= j)
        shares = exactly.index_select(1, lag.clamp(0, length).flatten()).unflatten(1, lag.shape)
        return shares * ((lag >= 0) & (lag <= length))

    of_inputs = torch.where(t < end, moved(front), moved(used))
    of_inputs = torch.where(t < start, whole * (lag == 0), of_inputs)
    return torch.cat([of_prompt, of_inputs], 2)


def _gradient_with_graph(grad: Tensor, arguments: tuple, plan: list, needed: tuple) -> tuple:
    """The gradients of ``_WeightedPlace``, from operations that can be differentiated again."""
    places = [place for place in range(len(arguments)) if needed[place]]

    def rows(*differentiated):
        given = list(arguments)
        for place, tensor in zip(places, differentiated):
            given[place] = tensor
        return _weighted_rows(*given, *plan)

    with _no_autocast(grad):
        found: Any = torch.func.vjp(
            rows, *(arguments[place] for place in places)
        )  # its type has an aux, always
        _, gradients = found
        by_place = dict(zip(places, gradients(grad)))
    return tuple(by_place.get(place) for place in range(len(arguments))) + (None,) * len(plan)


# ---- checks: shapes and dtypes always, values only where looking at them does not stall a device ----------


def _check(prompt: Tensor, inputs: Tensor, mask: Tensor | None, keep_last: int | Tensor) -> Tensor:
    """Check all but the split; return the mask, made of ones where none is given."""
    if inputs.dim() != 3 or inputs.shape[1] == 0:
        raise ValueError(f"inputs has shape {tuple(inputs.shape)}, expected (batch, seq, dim) with seq >= 1")
    batch, seq, dim = inputs.shape
    if prompt.dim() not in (2, 3) or prompt.shape[-2] == 0:
        shape = tuple(prompt.shape)
        raise ValueError(
            f"prompt has shape {shape}, expected (length, dim) or (batch, length, dim), length >= 1"
        )
    if prompt.shape[-1] != dim:
        raise ValueError(f"prompt has width {prompt.shape[-1]}, expected {dim}, the width of inputs")
    if prompt.dim() == 3 and prompt.shape[0] != batch:
        raise ValueError(
            f"prompt holds {prompt.shape[0]} instances, expected {batch}, the batch size of inputs"
        )
    if not inputs.is_floating_point():
        raise TypeError(f"inputs has dtype {inputs.dtype}, expected embeddings of a floating-point dtype")
    if prompt.dtype != inputs.dtype:
        raise TypeError(f"prompt has dtype {prompt.dtype}, expected {inputs.dtype}, the dtype of inputs")
    _check_device("prompt", prompt, inputs)
    _check_keep_last(keep_last, inputs)
    if mask is None:
        return torch.ones(batch, seq, dtype=torch.long, device=inputs.device)
    _check_integers("mask", mask, (batch, seq), inputs, bools=True)
    if values_are_free(mask):
        _check_mask_values(mask.long())
    return mask


def _check_mask_values(mask: Tensor) -> None:
    if ((mask < 0) | (mask > 1)).any():
        raise ValueError(f"mask holds values {mask.min()}..{mask.max()}, expected 0 (padding) and 1 (real)")
    runs = (pad(mask, (1, 0)).diff(dim=1) == 1).sum(1)  # each run of real tokens has one first token
    if (runs > 1).any():
        row = int(runs.argmax())
        raise ValueError(
            f"mask row {row} has {runs[row]} runs of real tokens, expected one, padding on the sides"
        )


def _check_keep_last(keep_last: int | Tensor, inputs: Tensor) -> None:
    smallest = keep_last
    if isinstance(keep_last, Tensor):
        _check_integers("keep_last", keep_last, (inputs.shape[0],), inputs)
        smallest = int(keep_last.min()) if values_are_free(keep_last) and keep_last.numel() else 0
    if not isinstance(smallest, int):
        raise TypeError(
            f"keep_last is {type(keep_last).__name__}, expected an int or an integer tensor (batch,)"
        )
    if smallest < 0:
        raise ValueError(f"keep_last={smallest} is not a number of tokens, expected 0 or more")


def _check_count(name: str, count: int | Tensor | None, prompt: Tensor, inputs: Tensor) -> Tensor:
    """A split or a size as a (B,) int64 tensor; None is l."""
    batch, length = inputs.shape[0], prompt.shape[-2]
    count = length if count is None else count
    wrong = None
    if isinstance(count, Tensor):
        _check_integers(name, count, (batch,), inputs)
        outside = (count < 0) | (count > length)
        if values_are_free(count) and outside.any():
            wrong = int(count[outside][0])
    elif not is_whole(count):
        raise TypeError(f"{name} is {type(count).__name__}, expected an int or an integer tensor (batch,)")
    elif not 0 <= count <= length:
        wrong = count
    if wrong is not None:
        scale = f" (0 is postfix, {length} is prefix)" if name == "split" else ""
        raise ValueError(f"{name}={wrong} is outside 0..{length}: the prompt has {length} vectors{scale}")
    return count.long() if isinstance(count, Tensor) else torch.full((batch,), count, device=inputs.device)


def _check_weights(name: str, weights: Tensor, prompt: Tensor, inputs: Tensor) -> None:
    expected = (inputs.shape[0], prompt.shape[-2] + 1)
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        kind = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"{name} is {kind}, expected a floating-point tensor of shape {expected}")
    if weights.shape != expected:
        actual, option = tuple(weights.shape), "size" if name == "size_weights" else "split"
        raise ValueError(
            f"{name} has shape {actual}, expected {expected}, one column per {option} 0..{expected[1] - 1}"
        )
    _check_device(name, weights, inputs)
    if not values_are_free(weights) or weights.numel() == 0:
        return
    # The straight-through form, hard - soft + soft, rounds: allow for it, in bf16 too.
    values = weights.detach()
    away = (values - torch.zeros_like(values).scatter_(1, values.argmax(1, keepdim=True), 1)).abs().amax(1)
    if not (away < 0.05).all():
        row = int((~(away < 0.05)).long().argmax())
        diverged = "" if away[row].isfinite() else ": where they were learned, training has diverged"
        raise ValueError(
            f"{name} row {row} is {float(away[row]):.2g} away from one-hot, expected one 1 and else 0{diverged}"
        )


def _check_integers(name: str, tensor: Tensor, shape: tuple, inputs: Tensor, bools: bool = False) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}, as inputs has it")
    if tensor.is_floating_point() or tensor.is_complex() or (tensor.dtype == torch.bool and not bools):
        kind = "bool or an integer dtype" if bools else "an integer dtype"
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected {kind}")
    _check_device(name, tensor, inputs)


def _check_device(name: str, tensor: Tensor, inputs: Tensor) -> None:
    if tensor.device != inputs.device:
        raise ValueError(f"{name} is on {tensor.device}, expected {inputs.device}, the device of inputs")


def values_are_free(tensor: Tensor) -> bool:
    """Whether values may be checked: not on a device, which would have to wait, while tracing, nor under vmap."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # grad and jvp let values be seen
        if torch._C._functorch.is_batchedtensor(tensor):
            return False
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return True
