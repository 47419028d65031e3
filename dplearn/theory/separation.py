"""Targets that a prompt reaches at one split and at no other, with their exact losses, and the models where none exist.

Every comparison is at the same number of prompt vectors, and every prompt is the best one for its split. The frozen
readers are small enough to be solved completely; the name of a function says which it belongs to:

* ``window_*``, ``one_sided*``: one layer with a relative position bias, and rows that a prefix, or a postfix, cannot
  influence
* ``profiles``, ``matching`` and what follows: one layer with any relative bias, and which splits can stand in for each
  other, decided exactly
* ``causal_*``: two causal layers read at an end token; what stands before the input gates, what stands behind it reads
* ``shift_*``: absolute positions; the split moves the input along the position table
* ``instance_*``, ``task_*``: types of inputs that need different splits, so that one split per task is not enough

Exact results are sympy numbers. The functions that end in ``_loss``, and ``one_sided`` and ``biased_rows``, are the
same readers in torch; ``fit`` searches their best prompt from many starts. A search proves no bound, it can only break
one.

Symbols: ``split`` k is the number of prompt vectors before the input, ``length`` l of all of them, ``seq`` T of input
tokens; ``teacher`` is the split at which the target was made. The attention between tokens i and j of a sequence has
the relative offset r = j - i. Inputs have mean 0 and E[x x^T] = 1 wherever a loss is exact.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import sympy as sp
import torch
from torch import Tensor

from dplearn.theory.attention import relative_buckets

# e^-M of a window head: the weight of a token outside the window, with M the penalty on its score.
EPSILON = sp.Symbol("epsilon", positive=True)

# e^{pe_0}, ..., e^{pe_3}: neighbours weigh 1:1, 1:2 and 1:4, so each split of two vectors has a ratio of its own.
SHIFT_FACTORS = (1, 1, 2, 8)
SHIFT_TARGET = (sp.Rational(1, 4), sp.Rational(1, 2))

# The values y of the inputs of both types.
INSTANCE_VALUES = (sp.Rational(-1, 2), sp.Rational(1, 2), sp.Rational(3, 2))

Bias = Callable[[int], sp.Expr]


def _check_split(split: int, length: int, name: str = "split") -> None:
    if length < 1:
        raise ValueError(f"length={length}, expected at least one prompt vector")
    if not 0 <= split <= length:
        raise ValueError(f"{name}={split} is outside 0..{length} (0 is postfix, {length} is prefix)")


def _check_seq(seq: int, least: int = 1) -> None:
    if seq < least:
        raise ValueError(f"seq={seq}, expected at least {least} input token{'s' if least > 1 else ''}")


def _places(split: int, length: int, seq: int) -> tuple[list[int], list[int]]:
    """Where the prompt vectors and the input tokens stand in [P_1..P_k; X; P_{k+1}..P_l]."""
    return [a if a < split else seq + a for a in range(length)], [split + i for i in range(seq)]


# ---- the search for a prompt ---------------------------------------------------------------------------------


class Fit(NamedTuple):
    """The best prompt that a search found."""

    loss: float
    prompt: Tensor  # of the shape that was asked for
    losses: Tensor  # (restarts,), sorted; the first is ``loss``


def fit(
    loss: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    *,
    restarts: int = 16,
    steps: int = 1500,
    rate: float = 0.05,
    seed: int = 0,
    scale: float = 1.0,
) -> Fit:
    """Minimise ``loss`` over a prompt, from many random starts at once.

    ``loss`` takes prompts in float64, of the given shape behind a first dimension of restarts, and gives one loss for
    each. Adam with a falling learning rate runs on all of them; L-BFGS then finishes the best one.
    """
    if restarts < 1 or steps < 1:
        raise ValueError(f"restarts={restarts} and steps={steps}, expected at least one of each")
    generator = torch.Generator().manual_seed(seed)
    prompts = scale * torch.randn(restarts, *shape, generator=generator, dtype=torch.float64)
    prompts.requires_grad_()
    optimizer = torch.optim.Adam([prompts], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=rate / 100)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = loss(prompts)
        if losses.shape != (restarts,):
            raise ValueError(f"loss gives the shape {tuple(losses.shape)}, expected ({restarts},)")
        losses.sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        losses = loss(prompts)
    index = int(losses.argmin())
    best, found = _finish(loss, prompts[index].detach().clone()), losses.clone()
    with torch.no_grad():
        finished = loss(best[None])[0]
    if finished < found[index]:
        found[index] = finished
    else:
        best = prompts[index].detach().clone()
    return Fit(float(found[index]), best, found.sort().values)


def _finish(loss: Callable[[Tensor], Tensor], prompt: Tensor, steps: int = 100) -> Tensor:
    prompt.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [prompt], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-14, tolerance_change=1e-16
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(prompt[None])[0]
        value.backward()
        return value

    optimizer.step(closure)
    return prompt.detach()


# ---- a window head: relative bias, no content ----------------------------------------------------------------


def window_attention(
    split: int, *, length: int = 2, seq: int = 2, window: int = 1, epsilon: sp.Expr = EPSILON
) -> sp.Matrix:
    """Attention of the input rows in a head that sees a window: weight 1 for abs(r) <= window, else ``epsilon``.

    Returns (seq, length + seq); the columns are P_1..P_l, then X_1..X_T. Rows sum to 1. No prompt changes
    them: the head looks at distances only.

    >>> window_attention(2, epsilon=0).tolist()  # a prefix: the second row sees the two input tokens and no prompt
    [[0, 1/3, 1/3, 1/3], [0, 0, 1/2, 1/2]]
    """
    _check_split(split, length)
    _check_seq(seq)
    prompt, tokens = _places(split, length, seq)
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
    offsets = _offsets(split, length, seq)
    inside = torch.tensor([[abs(r) <= window for r in row] for row in offsets])
    weights = inside.double() + epsilon * (~inside).double()
    return weights / weights.sum(-1, keepdim=True)


# ---- one-sided heads: relative bias and content -----------------------------------------------------------------


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

    The score of a key on the other side is lowered by ``penalty``; with the default it is never seen, with 0
    the layer knows no position. ``normalise`` divides every token, of prompt and input, by its root mean
    square first.

    Parameters
    ----------
    prompt : (..., l, d).
    inputs : (B, T, d).

    Returns
    -------
    (..., B, T, 2, d): the outputs of head 0 (left) and head 1 (right).
    """
    _check_split(split, prompt.shape[-2])
    if prompt.shape[-1] != inputs.shape[-1]:
        raise ValueError(
            f"prompt has width {prompt.shape[-1]}, expected the width of inputs, {inputs.shape[-1]}"
        )
    if normalise:
        prompt, inputs = _unit(prompt), _unit(inputs)
    biases = (lambda r: -penalty if r > 0 else 0.0, lambda r: -penalty if r < 0 else 0.0)
    scale = 1 / math.sqrt(inputs.shape[-1])
    outputs = [
        biased_rows(
            inputs @ heads.query[h] * scale,
            inputs @ heads.key[h],
            inputs @ heads.value[h],
            prompt @ heads.key[h],
            prompt @ heads.value[h],
            split,
            biases[h],
        )
        for h in (0, 1)
    ]
    return torch.stack(outputs, -2)


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
    _check_split(split, length)
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
    """S and V: no scaled score of normalised tokens exceeds S in size, and no value vector V in length."""
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


# ---- any relative bias: which splits can stand in for each other ---------------------------------------------


def no_bias(offset: int) -> sp.Expr:
    """No position at all."""
    return sp.Integer(0)


def linear_bias(slope: sp.Expr) -> Bias:
    """b(r) = slope * r, with the sign of r."""
    slope = _exact(slope)
    return lambda offset: slope * offset


def alibi_bias(slope: sp.Expr) -> Bias:
    """b(r) = -slope * abs(r): ALiBi in its symmetric form."""
    slope = _exact(slope)
    return lambda offset: -slope * abs(offset)


def _exact(number: sp.Expr) -> sp.Expr:
    """0.1 as 1/10, so that 3 * 0.1 and 0.3 are the same number."""
    return sp.nsimplify(number, rational=True)


def t5_bucket(offset: int, buckets: int = 32, max_distance: int = 128) -> int:
    """T5's bucket of an offset r = j - i in its encoder: half for each side, exact when near, then log-spaced."""
    return int(relative_buckets(torch.tensor(offset), buckets=buckets, max_distance=max_distance))


def t5_bias(values: Sequence[sp.Expr] | None = None, buckets: int = 32, max_distance: int = 128) -> Bias:
    """T5's bias: one value per bucket. Without ``values`` they are symbols: equal then means equal for all values."""
    table = sp.symbols(f"beta0:{buckets}") if values is None else [_exact(v) for v in values]
    if len(table) != buckets:
        raise ValueError(f"values has {len(table)} entries, expected one per bucket: {buckets}")
    return lambda offset: table[t5_bucket(offset, buckets, max_distance)]


def profiles(bias: Bias, split: int, *, length: int, seq: int) -> list[tuple[sp.Expr, ...]]:
    """For each prompt vector, the bias with which each input row sees it at this split: l tuples of T entries.

    Entries are compared exactly, so a bias of one's own should give fractions or symbols rather than floats.

    >>> profiles(linear_bias(1), 1, length=2, seq=2)  # one step before the first row, and two steps behind it
    [(-1, -2), (2, 1)]
    """
    _check_split(split, length)
    _check_seq(seq)
    prompt, tokens = _places(split, length, seq)
    table = [tuple(sp.expand(bias(p - t)) for t in tokens) for p in prompt]
    for entry in (entry for profile in table for entry in profile):
        if not sp.sympify(entry).is_finite and entry.is_number:
            raise ValueError(f"bias gives {entry}, expected finite numbers: a mask is not a bias here")
    return table


def matching(
    bias: Bias, split: int, other: int, *, length: int, seq: int, constant_query: bool = False
) -> list[int] | None:
    """Which vector at the split ``other`` can play the part of each vector at ``split``; None if they do not pair up.

    One layer, the input rows are read, and they have T >= 2 tokens whose queries fill an open set. Then a
    prompt of different keys at one split has an equal at another split exactly if their profiles pair up. If
    the queries have a constant part, a key can raise its score by the same amount in all rows, and it is
    enough that the profiles pair up to one constant each.
    """
    _check_seq(seq, 2)
    free = defaultdict(list)
    for index, profile in reversed(list(enumerate(profiles(bias, other, length=length, seq=seq)))):
        free[_shape(profile, constant_query)].append(index)
    pairs = []
    for profile in profiles(bias, split, length=length, seq=seq):
        candidates = free[_shape(profile, constant_query)]
        if not candidates:
            return None
        pairs.append(candidates.pop())
    return pairs


def _shape(profile: tuple[sp.Expr, ...], up_to_constant: bool) -> tuple[sp.Expr, ...]:
    return tuple(sp.expand(entry - profile[0]) for entry in profile) if up_to_constant else profile


def equally_expressive(bias: Bias, *, length: int, seq: int, constant_query: bool = False) -> bool:
    """Whether every split realises what every other split realises, for one layer with this bias (see ``matching``).

    >>> equally_expressive(linear_bias(1), length=3, seq=4)
    False
    >>> equally_expressive(linear_bias(1), length=3, seq=4, constant_query=True)
    True
    """
    options = {"length": length, "seq": seq, "constant_query": constant_query}
    return all(matching(bias, 0, other, **options) is not None for other in range(1, length + 1))


def expressiveness_table(length: int = 3, seq: int = 3) -> dict[str, tuple[bool, bool]]:
    """For four kinds of bias: are all splits equally expressive, strictly, and with a constant part in the queries?"""
    slope = sp.Symbol("m", positive=True)
    kinds = {
        "none": no_bias,
        "signed linear": linear_bias(slope),
        "ALiBi": alibi_bias(slope),
        "T5 buckets": t5_bias(),
    }
    return {
        name: tuple(
            equally_expressive(bias, length=length, seq=seq, constant_query=constant)
            for constant in (False, True)
        )
        for name, bias in kinds.items()
    }


def biased_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    split: int,
    bias: Callable[[int], float],
) -> Tensor:
    """The input rows of one head: softmax of q.k + b(j - i) over the prompt and the input, times the values.

    Parameters
    ----------
    query : (B, T, c), and so is ``key``. The scale of the scores is left to the caller.
    value : (B, T, d).
    prompt_key : (..., l, c), leading dimensions are independent prompts.
    prompt_value : (..., l, d).

    Returns
    -------
    (..., B, T, d)
    """
    length, seq = prompt_key.shape[-2], key.shape[-2]
    _check_split(split, length)
    offsets = _offsets(split, length, seq)
    table = torch.tensor([[float(bias(r)) for r in row] for row in offsets], dtype=query.dtype)  # (T, l + T)
    to_prompt = torch.einsum("btc,...lc->...btl", query, prompt_key)
    to_inputs = (query @ key.mT).expand(*to_prompt.shape[:-1], seq)
    attention = (torch.cat([to_prompt, to_inputs], -1) + table).softmax(-1)  # (..., B, T, l + T)
    from_prompt = torch.einsum("...btl,...ld->...btd", attention[..., :length], prompt_value)
    return from_prompt + attention[..., length:] @ value


def _offsets(split: int, length: int, seq: int) -> list[list[int]]:
    """j - i for each input row i and each column j, prompt first: T rows of l + T."""
    prompt, tokens = _places(split, length, seq)
    return [[place - own for place in prompt + tokens] for own in tokens]


def transfer(
    prompt_key: Tensor,
    prompt_value: Tensor,
    bias: Bias,
    split: int,
    other: int,
    *,
    seq: int,
    constant_query: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """The prompt that gives at ``other`` the rows that this one gives at ``split``; None if ``matching`` finds none.

    Keys (..., l, c) and values (..., l, d) are free here. With ``constant_query`` the last coordinate of
    every query is 1; the last coordinate of each key takes up the constant between its two profiles.
    """
    length = prompt_key.shape[-2]
    pairs = matching(bias, split, other, length=length, seq=seq, constant_query=constant_query)
    if pairs is None:
        return None
    ours, theirs = (profiles(bias, k, length=length, seq=seq) for k in (split, other))
    key, value = torch.empty_like(prompt_key), torch.empty_like(prompt_value)
    for index, place in enumerate(pairs):
        key[..., place, :], value[..., place, :] = prompt_key[..., index, :], prompt_value[..., index, :]
        key[..., place, -1] += float(ours[index][0] - theirs[place][0])
    return key, value


# ---- two causal layers, read at the end ----------------------------------------------------------------------


def causal_coefficients(split: int, *, length: int = 2, seq: int = 2) -> list[sp.Rational]:
    """The weight of each input token in the answer of a causal reader, as far as the split alone decides it.

    The sequence is [P_1..P_k; X; P_{k+1}..P_l; end]. In the first layer input rows and end row average
    everything up to themselves; the second layer averages all rows into the end row. So token j counts
    1/(k+i) in each later input row i and 1/N in the end row, and all that is divided by N = l + T + 1. A
    vector behind the input can add its own attention on j, one before it cannot.

    >>> causal_coefficients(1)
    [31/150, 8/75]
    """
    _check_split(split, length)
    _check_seq(seq)
    rows = length + seq + 1
    return [
        (sum(sp.Rational(1, split + i) for i in range(j, seq + 1)) + sp.Rational(1, rows)) / rows
        for j in range(1, seq + 1)
    ]


def _causal_gaps(
    split: int, teacher: int, length: int, seq: int, reads: sp.Expr
) -> tuple[list[sp.Rational], sp.Expr]:
    """N times the missing weight of each token, without the teacher's reading; and the weight of that reading."""
    _check_split(split, length)
    _check_split(teacher, length, "teacher")
    reads = sp.sympify(reads)
    if not 0 <= reads <= length - teacher:
        raise ValueError(
            f"reads={reads} is outside 0..{length - teacher}: at teacher={teacher} that many vectors of {length} "
            "stand behind the input, and each attends with weight 1"
        )
    ours, theirs = (causal_coefficients(k, length=length, seq=seq) for k in (split, teacher))
    return [(length + seq + 1) * (t - o) for o, t in zip(ours, theirs, strict=True)], reads


def causal_bound(
    split: int, teacher: int = 1, *, length: int = 2, seq: int = 2, reads: sp.Expr = 1
) -> sp.Rational:
    """A loss that no prompt at ``split`` goes below on the target of the causal reader: an easy bound.

    The target is what the split ``teacher`` gives without prompt values, and in addition ``reads`` times the
    value of the token whose key is 1 (the others have key -1; it is at each of the T places equally often). A
    vector behind the input only adds attention, so weight that is too large stays too large; a prefix adds
    none at all.

    >>> [causal_bound(split) for split in (0, 1, 2)]
    [17/1800, 0, 101/1800]
    """
    gaps, reads = _causal_gaps(split, teacher, length, seq, reads)
    wanted = [gap + (reads if j == match else 0) for match in range(seq) for j, gap in enumerate(gaps)]
    missed = wanted if split == length else [min(gap, sp.Integer(0)) for gap in wanted]
    return sum(gap**2 for gap in missed) / (seq * (length + seq + 1) ** 2)


def causal_infimum(
    split: int, teacher: int = 1, *, length: int = 2, seq: int = 2, reads: sp.Expr = 1
) -> sp.Rational:
    """The exact infimum of the loss over all prompts at ``split``, on the target of ``causal_bound``.

    A vector behind the input cannot tell the places apart, only the keys. So all readers together give a
    weight p to the matching token and q to each other one, with p, q > 0 and p + (T-1) q < l - k, and every
    such pair is possible. The loss is a square distance in (p, q); its minimum over the closed triangle is
    the infimum. It is often not attained: q = 0 needs an infinite score.

    >>> [causal_infimum(split) for split in (0, 1, 2)]
    [43/3600, 0, 101/1800]
    """
    gaps, reads = _causal_gaps(split, teacher, length, seq, reads)
    mean, others, most = sum(gaps) / seq, seq - 1, length - split
    matching_weight, other_weight = max(mean + reads, sp.Integer(0)), max(mean, sp.Integer(0))
    if matching_weight + others * other_weight > most:  # then the nearest point has p + (T-1) q = most
        largest = sp.Rational(most, others) if others else sp.Integer(0)
        other_weight = min(max((most - reads) / sp.Integer(seq), sp.Integer(0)), largest)
        matching_weight = most - others * other_weight
    spread = sum((gap - mean) ** 2 for gap in gaps)
    distance = (matching_weight - mean - reads) ** 2 + others * (other_weight - mean) ** 2
    return (spread + distance) / (length + seq + 1) ** 2


def causal_loss(prompt: Tensor, split: int, teacher: int = 1, *, seq: int = 2, reads: float = 1.0) -> Tensor:
    """The loss of prompts (..., l, 3) of the causal reader, (...,). A prompt vector is a query, a key and a value.

    Input tokens have the key 1 or -1, see ``causal_bound``; input rows and end row have the query 0. The end
    token has key and value 0.
    """
    length = prompt.shape[-2]
    _check_split(split, length)
    _check_split(teacher, length, "teacher")
    rows, places = length + seq + 1, _places(split, length, seq)
    own, tokens = (torch.tensor(place) for place in places)
    size = prompt.shape[:-2]
    query = prompt.new_zeros(*size, rows).index_copy(-1, own, prompt[..., 0])
    match = 2 * torch.eye(seq, dtype=prompt.dtype) - 1  # (T matches, T tokens): the keys
    key = prompt.new_zeros(*size, seq, rows)
    key = key.index_copy(-1, own, prompt[..., None, :, 1].expand(*size, seq, length))
    key = key.index_copy(-1, tokens, match.expand(*size, seq, seq))
    scores = query[..., None, :, None] * key[..., None, :]  # (..., T matches, rows, rows)
    future = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(-1).mean(-2)  # second layer: the mean of all rows
    base = torch.tensor(
        [float(c) for c in causal_coefficients(teacher, length=length, seq=seq)], dtype=prompt.dtype
    )
    target = base + reads / rows * torch.eye(seq, dtype=prompt.dtype)
    constant = (weights[..., own] * prompt[..., None, :, 2]).sum(-1)
    return (((weights[..., tokens] - target) ** 2).sum(-1) + constant**2).mean(-1)


# ---- absolute positions --------------------------------------------------------------------------------------


def shift_weights(split: int, seq: int = 2, factors: Sequence[sp.Expr] = SHIFT_FACTORS) -> list[sp.Expr]:
    """The attention among the input tokens when the input starts at position ``split`` of a position table.

    The score of a token is the entry of its position; ``factors`` are its exponentials, one per position of
    [prompt, input]. The prompt adds weight elsewhere, so these ratios hold for every prompt. Returns T
    numbers that add up to 1.

    >>> [shift_weights(split) for split in (0, 1, 2)]
    [[1/2, 1/2], [1/3, 2/3], [1/5, 4/5]]
    """
    _check_seq(seq)
    _check_split(split, len(factors) - seq)
    seen = [sp.sympify(f) for f in factors[split : split + seq]]
    if any(not f > 0 for f in seen):
        raise ValueError(f"factors={tuple(factors)}, expected positive numbers")
    return [f / sum(seen) for f in seen]


def shift_floor(
    split: int, target: Sequence[sp.Expr] = SHIFT_TARGET, factors: Sequence[sp.Expr] = SHIFT_FACTORS
) -> sp.Expr:
    """The infimum over all prompts at ``split`` of the loss on the target sum_j target[j] x_j.

    The output is g times the average with ``shift_weights``, plus a constant, with a gate 0 < g < 1 that the
    prompt sets freely. A multiple of ``shift_weights`` is therefore the best that can be had; the infimum is
    attained unless g is 0 or 1.

    >>> [shift_floor(split) for split in (0, 1, 2)]
    [1/32, 0, 1/68]
    """
    wanted = sp.Matrix([sp.sympify(t) for t in target])
    seen = sp.Matrix(shift_weights(split, len(target), factors))
    gate = sp.Min(1, sp.Max(0, wanted.dot(seen) / seen.dot(seen)))
    rest = wanted - gate * seen
    return sp.simplify(rest.dot(rest))


def shift_loss(
    prompt: Tensor,
    split: int,
    target: Sequence[float] = SHIFT_TARGET,
    factors: Sequence[float] = SHIFT_FACTORS,
) -> Tensor:
    """The loss of prompts (..., l, 2), (...,). A vector is a score, to which its own position is added, and a value."""
    length, seq = prompt.shape[-2], len(target)
    _check_split(split, length)
    if len(factors) != length + seq:
        raise ValueError(
            f"factors has {len(factors)} entries, expected one per position: {length} + {seq} = {length + seq}"
        )
    table = torch.tensor([float(f) for f in factors], dtype=prompt.dtype).log()
    own, tokens = _places(split, length, seq)
    scores = torch.cat([prompt[..., 0] + table[own], table[tokens].expand(*prompt.shape[:-2], seq)], -1)
    attention = scores.softmax(-1)
    wanted = torch.tensor([float(t) for t in target], dtype=prompt.dtype)
    constant = (attention[..., :length] * prompt[..., 1]).sum(-1)
    return ((attention[..., length:] - wanted) ** 2).sum(-1) + constant**2


# ---- a split for each instance -------------------------------------------------------------------------------


def instance_cases(values: Iterable[sp.Expr] = INSTANCE_VALUES) -> list[tuple[str, sp.Expr, sp.Expr]]:
    """(type, y, target): type A wants y, type B wants (y - 1)/2. All cases are equally likely."""
    values = [sp.sympify(y) for y in values]
    return [("A", y, y) for y in values] + [("B", y, (y - 1) / 2) for y in values]


def task_rule_floor(values: Iterable[sp.Expr] = INSTANCE_VALUES) -> sp.Expr:
    """What any rule loses at least that gives both types the same answer, E (a - b)^2 / 4: half way between them.

    A reader that ignores the type gives, with one prompt at one split, such a rule.

    >>> task_rule_floor()
    35/192
    """
    cases = instance_cases(values)
    half = len(cases) // 2
    gaps = [(a[2] - b[2]) ** 2 for a, b in zip(cases[:half], cases[half:], strict=True)]
    return sum(gaps) / (4 * half)


class TaskLevel(NamedTuple):
    """The best single prompt at one split."""

    loss: sp.Expr
    z: sp.Expr  # weight of the prompt vector, with that of the token as 1
    u: sp.Expr  # z times its value


def task_level_minimum(split: int, values: Iterable[sp.Expr] = INSTANCE_VALUES) -> TaskLevel:
    """The least loss with one prompt vector that stands at ``split`` for all inputs, in one causal layer.

    The reader's row is the token, with value y and weight 1. A prefix gives (y + u)/(1 + z); a postfix comes
    after the row and is not seen, so the answer is y whatever the prompt.

    >>> task_level_minimum(1)
    TaskLevel(loss=35/192, z=1/3, u=-1/3)
    >>> task_level_minimum(0).loss
    35/96
    """
    _check_split(split, 1)
    values = list(values)
    cases = instance_cases(values)
    if split == 0:
        return TaskLevel(sum((y - t) ** 2 for _, y, t in cases) / len(cases), sp.Integer(0), sp.Integer(0))
    # (y + u)/(1 + z) is any line in y whose slope is between 0 and 1: the line of least squares, if its slope is.
    mean_y, mean_t = (sum(case[i] for case in cases) / len(cases) for i in (1, 2))
    variance = sum((y - mean_y) ** 2 for _, y, _ in cases)
    if variance == 0:
        raise ValueError(f"values={tuple(values)}, expected at least two different numbers")
    slope = sum((y - mean_y) * (t - mean_t) for _, y, t in cases) / variance
    constant = mean_t - slope * mean_y
    loss = sum((slope * y + constant - t) ** 2 for _, y, t in cases) / len(cases)
    return TaskLevel(loss, 1 / slope - 1, constant / slope)


def instance_level_loss(z: sp.Expr, u: sp.Expr, values: Iterable[sp.Expr] = INSTANCE_VALUES) -> sp.Expr:
    """The loss of one prompt that stands behind inputs of type A and before those of type B.

    >>> instance_level_loss(1, -1)
    0
    """
    z, u = sp.sympify(z), sp.sympify(u)
    cases = instance_cases(values)
    answers = [y if kind == "A" else (y + u) / (1 + z) for kind, y, _ in cases]
    return sp.simplify(
        sum((answer - target) ** 2 for answer, (_, _, target) in zip(answers, cases, strict=True))
        / len(cases)
    )


def task_level_accuracy(values: Iterable[sp.Expr] = INSTANCE_VALUES) -> sp.Rational:
    """The largest share of right signs of any rule that does not see the type, over all sign patterns.

    >>> task_level_accuracy()
    5/6
    """
    right = defaultdict(lambda: [0, 0])
    cases = instance_cases(values)
    for _, y, target in cases:
        right[y][int(bool(target > 0))] += 1
    return sp.Rational(sum(max(counts) for counts in right.values()), len(cases))


def instance_level_accuracy(values: Iterable[sp.Expr] = INSTANCE_VALUES) -> sp.Rational:
    """The share of right signs when z = 1, u = -1 stands behind type A and before type B."""
    cases = instance_cases(values)
    answers = [y if kind == "A" else (y - 1) / 2 for kind, y, _ in cases]
    return sp.Rational(
        sum((answer > 0) == (target > 0) for answer, (_, _, target) in zip(answers, cases, strict=True)),
        len(cases),
    )


class InstanceToy(NamedTuple):
    """The cases as tensors, float64. A token has a score, a value y, and its type: 1 for A, -1 for B."""

    inputs: Tensor  # (B, 1, 3)
    targets: Tensor  # (B,)
    types: Tensor  # (B,)


def instance_toy(values: Iterable[sp.Expr] = INSTANCE_VALUES) -> InstanceToy:
    """The cases of ``instance_cases`` as a batch on which a prompt and a rule for its split can be trained."""
    cases = instance_cases(values)
    types = torch.tensor([1.0 if kind == "A" else -1.0 for kind, _, _ in cases], dtype=torch.float64)
    ys, targets = (torch.tensor([float(case[i]) for case in cases], dtype=torch.float64) for i in (1, 2))
    return InstanceToy(torch.stack([torch.zeros_like(ys), ys, types], -1)[:, None], targets, types)


def instance_output(
    prompt: Tensor, inputs: Tensor, weights: Tensor, *, relaxation: str = "token", causal: bool = True
) -> Tensor:
    """The answers of the frozen reader: one attention layer with a constant query, read at the row of the token.

    Parameters
    ----------
    prompt : (1, 3) or (B, 1, 3): score, value, and a third entry that the reader ignores.
    inputs : (B, 1, 3), as in ``InstanceToy``.
    weights : (B, 2), one-hot or not; column k is the split k.
    relaxation : what weights that are not one-hot mean. "token": the weighted sum of the two sequences, and of the rows
        that are read. "position": the prompt stays first and is seen with the weight of split 1. Both agree at one-hot
        weights, with different gradients there.
    causal : False lets the token see the prompt at both splits. Then the split has no effect.

    Returns
    -------
    (B,)
    """
    if relaxation not in ("token", "position"):
        raise ValueError(f'relaxation={relaxation!r}, expected "token" or "position"')
    if inputs.shape[1:] != (1, 3) or prompt.shape[-2:] != (1, 3):
        raise ValueError(
            f"prompt {tuple(prompt.shape)} and inputs {tuple(inputs.shape)}, "
            "expected (1, 3) or (B, 1, 3), and (B, 1, 3)"
        )
    if weights.shape != (len(inputs), 2):
        raise ValueError(f"weights has the shape {tuple(weights.shape)}, expected ({len(inputs)}, 2)")
    prompt = prompt.expand(len(inputs), 1, 3)
    if relaxation == "position":
        seen = weights[:, 1] if causal else torch.ones_like(weights[:, 1])
        mass, own = seen * prompt[:, 0, 0].exp(), inputs[:, 0, 0].exp()
        return (mass * prompt[:, 0, 1] + own * inputs[:, 0, 1]) / (mass + own)
    sequences = torch.stack([torch.cat([inputs, prompt], 1), torch.cat([prompt, inputs], 1)], 1)
    mixed = torch.einsum("bk,bktd->btd", weights, sequences)  # (B, 2, 3)
    scores = mixed[..., 0][:, None, :].expand(-1, 2, 2)  # (B, row, column): every row has the query 1
    if causal:
        scores = scores.masked_fill(torch.ones(2, 2, dtype=torch.bool).triu(1), -math.inf)
    rows = (scores.softmax(-1) @ mixed[..., 1:2]).squeeze(-1)  # (B, 2); split k puts the token in row k
    return (weights * rows).sum(-1)
