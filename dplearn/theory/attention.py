"""Attention with a prompt, twice: in torch, to compare with real models, and in sympy, where an identity is exact.

The keys of a row fall into segments: the prompt BEFORE the input, the INPUT, the prompt AFTER it. The functions in
torch are free of parameters and end in `recording`, which reads the attention of a Hugging Face model. The functions
named `symbolic_...` return sympy expressions for sequences of any size. Built in notebook 02.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import sympy as sp
import torch
from torch import Tensor, nn

from dplearn.insertion import Inserted

# The labels of the segments, which are also their columns in every table of gates.
BEFORE, INPUT, AFTER = 0, 1, 2


# ---- which row is what -----------------------------------------------------------------------------------


def arrangement(length: int, seq: int, split: int) -> Tensor:
    """The order of the rows of ``[P_1..P_k ; X ; P_k+1..P_l]``, as indices into ``[P ; X]``: (l + T,).

    Its argsort follows tokens: ``rows[arrangement(...).argsort()]`` are the rows of P, then those of X.

    >>> arrangement(3, 2, split=1).tolist()
    [0, 3, 4, 1, 2]
    """
    _check_sizes(length, seq, split)
    prompt, inputs = torch.arange(length), torch.arange(length, length + seq)
    return torch.cat([prompt[:split], inputs, prompt[split:]])


def segments(length: int, seq: int, split: int) -> Tensor:
    """The segment of every row of ``[P_1..P_k ; X ; P_k+1..P_l]``: (l + T,) labels BEFORE, INPUT, AFTER.

    >>> segments(3, 2, split=1).tolist()
    [0, 1, 1, 2, 2]
    """
    _check_sizes(length, seq, split)
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


# ---- biases and masks ------------------------------------------------------------------------------------


def causal_bias(rows: int) -> Tensor:
    """(rows, rows): 0 where the key stands at or before the query, else -inf.

    >>> causal_bias(2).tolist()
    [[0.0, -inf], [0.0, 0.0]]
    """
    return torch.full((rows, rows), -torch.inf, dtype=torch.float64).triu(1)


def padding_bias(mask: Tensor) -> Tensor:
    """(B, 1, 1, S) from a mask (B, S), 1 = real: 0 at real keys, -inf at padding."""
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask == 0, -torch.inf)[:, None, None]


def offsets(queries: int, keys: int | None = None) -> Tensor:
    """(queries, keys): position of the key minus position of the query.

    >>> offsets(2).tolist()
    [[0, 1], [-1, 0]]
    """
    keys = queries if keys is None else keys
    return torch.arange(keys) - torch.arange(queries).unsqueeze(1)


def bucket_edges(*, bidirectional: bool = True, buckets: int = 32, max_distance: int = 128) -> list[int]:
    """The smallest distance of every logarithmic bucket of T5's relative bias, in exact arithmetic.

    A side has N buckets (half of them all if bidirectional). Distances below N/2 have a bucket each; from there on
    bucket N/2 + j begins where ``(N/2) * log(r / (N/2)) / log(max_distance / (N/2)) >= j``. From the last edge on all
    distances share one bucket. Raffel et al. (2020), section 2.1; the formula is that of their published code.

    >>> bucket_edges()
    [8, 12, 16, 23, 32, 46, 64, 91]
    """
    side = buckets // 2 if bidirectional else buckets
    near = side // 2
    if near < 1 or max_distance <= near:
        raise ValueError(
            f"buckets={buckets}, max_distance={max_distance}: expected at least {4 if bidirectional else 2} buckets "
            f"and max_distance above {max(near, 1)}, the number of distances with a bucket of their own"
        )
    edges, r = [], near
    for j in range(side - near):
        # r^n m^j >= D^j m^n with n = side - near and m = near: the inequality above, in integers.
        while r ** (side - near) * near**j < max_distance**j * near ** (side - near):
            r += 1
        edges.append(r)
    return edges


def relative_buckets(
    offsets: Tensor, *, bidirectional: bool = True, buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """The bucket of T5's relative bias for each offset (position of the key minus position of the query).

    Bidirectional: keys behind the query (positive offsets) have the second half of the buckets. Causal: all positive
    offsets share bucket 0 with the offset 0; they are masked anyway.

    >>> relative_buckets(torch.tensor([-200, -91, -90, -1, 0, 1, 91, 200])).tolist()
    [15, 15, 14, 1, 0, 17, 31, 31]
    """
    edges = bucket_edges(bidirectional=bidirectional, buckets=buckets, max_distance=max_distance)
    distance = offsets.abs() if bidirectional else (-offsets).clamp(min=0)
    near = edges[0]
    far = torch.bucketize(distance, torch.tensor(edges), right=True) + near - 1
    side = (offsets > 0) * (buckets // 2) if bidirectional else 0
    return torch.where(distance < near, distance, far) + side


def relative_bias(table: Tensor, queries: int, keys: int | None = None, **options) -> Tensor:
    """T5's bias (h, queries, keys) from its table (buckets, h); options as in `relative_buckets`."""
    return table[relative_buckets(offsets(queries, keys), buckets=len(table), **options)].movedim(-1, 0)


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding: turn the pairs (x_c, x_{c + d/2}) by positions * base^(-2c/d).

    A score of rotated queries and keys depends on their positions only through the difference. Su et al. (2021).

    Parameters
    ----------
    x : (..., S, d) queries or keys, d even.
    positions : (S,).
    """
    dim = x.shape[-1]
    if dim % 2:
        raise ValueError(f"x has width {dim}, expected an even number: the features turn in pairs")
    frequency = base ** (-torch.arange(0, dim, 2, dtype=x.dtype) / dim)
    angle = positions.to(x.dtype).unsqueeze(-1) * frequency  # (S, d/2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


# ---- attention and its parts -----------------------------------------------------------------------------


def scores(query: Tensor, key: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """(..., queries, keys): inner products times the head's scale, plus any bias or mask.

    query: (..., queries, d), key: (..., keys, d), bias: broadcast to the result, -inf hides a key.
    """
    found = query @ key.mT * scale
    return found if bias is None else found + bias


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
    _check_sizes(length, seq, split)
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


def _check_sizes(length: int, seq: int, split: int) -> None:
    if length < 0 or seq < 1 or not 0 <= split <= length:
        raise ValueError(
            f"length={length}, seq={seq}, split={split}: expected length >= 0, seq >= 1 and a split from 0 to length"
        )


# ---- the attention of a real model -----------------------------------------------------------------------


class Layer(NamedTuple):
    """One attention layer of a model, as it ran; heads that share keys and values are written out."""

    name: str  # of the attention module in the model
    scores: Tensor  # (B, h, queries, keys), before the softmax, with bias and mask
    value: Tensor  # (B, h, keys, d_v)
    output: Tensor  # (B, h, queries, d_v), what the model's own attention returned


_SEEN: ContextVar[list | None] = ContextVar("recorded attention layers", default=None)
_RECORDER = "dplearn_recorder"


@contextmanager
def recording(model: nn.Module) -> Iterator[list[Layer]]:
    """While this is open, every attention layer of a Hugging Face model that runs adds a `Layer` to the list.

        with recording(model) as layers:
            model(inputs_embeds=placed.embeds, attention_mask=placed.mask)
        layer_gates(layers, segments_of(placed, split))

    The model computes with torch's `scaled_dot_product_attention` in its own precision, whichever implementation it was
    loaded with; scores are recomputed from the same queries and keys, in float32 or wider. (Maps from
    ``output_attentions`` need ``attn_implementation="eager"``, and several models compute these in float32 even where
    their weights are float64: use `gates_from_maps` for them.) Cross-attention is recorded as well; names tell.

    Parameters
    ----------
    model : a transformers model, or a module that holds some, such as a prompted model.

    Raises
    ------
    TypeError : the module holds no transformers model.
    """
    from transformers import PreTrainedModel

    _register()
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    if not configs:
        raise TypeError(f"model={type(model).__name__} holds no transformers model, expected at least one")
    usual = [(config, config._attn_implementation) for config in configs.values()]
    names = {id(module): name for name, module in model.named_modules()}
    layers: list[Layer] = []
    token = _SEEN.set([names, layers])
    try:
        for config in configs.values():
            config._attn_implementation = _RECORDER
        yield layers
    finally:
        for config, implementation in usual:
            config._attn_implementation = implementation
        _SEEN.reset(token)


@cache
def _register() -> None:
    """Make the recorder known to transformers as an implementation of attention, with masks that are added."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
    from transformers.masking_utils import eager_mask

    def record(module, query, key, value, attention_mask, scaling=None, position_bias=None, **options):
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, position_bias=position_bias, **options
        )
        names, layers = _SEEN.get() or ({}, [])
        times = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, times), repeat_kv(value, times)
        wide = torch.promote_types(query.dtype, torch.float32)
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        found = scores(
            query.to(wide), key.to(wide), scale=query.shape[-1] ** -0.5 if scaling is None else scaling
        )
        found = found if position_bias is None else found + position_bias
        if attention_mask is None and causal and query.shape[2] > 1:
            found = found + causal_bias(query.shape[2]).to(found)
        elif attention_mask is not None and attention_mask.dtype == torch.bool:  # one that the caller made
            found = found.masked_fill(~attention_mask, -torch.inf)
        elif attention_mask is not None:
            found = found + attention_mask
        name = names.get(id(module), type(module).__name__)
        layers.append(
            Layer(name, found, value.to(wide), output.transpose(1, 2))
        )  # (B, S, h, d_v) -> (B, h, S, d_v)
        return output, None

    AttentionInterface.register(_RECORDER, record)
    AttentionMaskInterface.register(_RECORDER, eager_mask)


def layer_gates(layers: Iterable[Layer], segments: Tensor, count: int = 3) -> Tensor:
    """Gates of recorded layers with the same keys: (layers, B, h, queries, count).

    segments: (keys,) labels, or (B, keys) as from `segments_of`.
    """
    return torch.stack([gates(layer.scores, segments, count) for layer in layers])


def gates_from_maps(maps: Sequence[Tensor], segments: Tensor, count: int = 3) -> Tensor:
    """The same from attention maps (B, h, queries, keys) per layer, as ``output_attentions=True`` returns them."""
    labels = segments if segments.dim() == 2 else segments.unsqueeze(0)
    columns = nn.functional.one_hot(labels, count)[:, None]  # (B or 1, 1, keys, count)
    return torch.stack([weights @ columns.to(weights.dtype) for weights in maps])


def mean_gates(gates: Tensor, segments: Tensor, count: int = 3) -> Tensor:
    """Who looks where: (segments of the query, segments of the key), means over layers, batch, heads and rows.

    gates: (..., queries, count) with queries = keys; segments: (keys,) labels. A segment without rows gives nan.
    """
    rows = [gates[..., segments == s, :].flatten(0, -2) for s in range(count)]
    return torch.stack([part.mean(0) for part in rows])


def decomposition_error(layer: Layer, segments: Tensor, count: int = 3) -> float:
    """Largest difference between a layer's own output and the gated sum of its parts, over batch, heads and rows."""
    rebuilt = combine(decompose(layer.scores, layer.value, segments, count))
    return (rebuilt - layer.output).abs().max().item()


def jacobian_blocks(
    function: Callable[[Tensor], Tensor], embeds: Tensor, segments: Tensor, count: int = 3
) -> Tensor:
    """Who can depend on whom: (count, count), the largest |d row of segment a / d input row of segment b|.

    An exact zero means that no path leads from one to the other. A segment without rows gives zeros.

    Parameters
    ----------
    function : (1, S, d) -> (1, S, d'), for example a model from embeddings to hidden states.
    embeds : (1, S, d).
    segments : (S,) labels.
    """
    jacobian = torch.autograd.functional.jacobian(function, embeds)  # (1, S, d', 1, S, d)
    largest = jacobian.abs().amax((0, 2, 3, 5))  # (S, S): output row, input row
    blocks = largest.new_zeros(count, count)
    for a in range(count):
        for b in range(count):
            block = largest[segments == a][:, segments == b]
            if block.numel():
                blocks[a, b] = block.max()
    return blocks


# ---- the same in exact symbols ---------------------------------------------------------------------------


class Symbols(NamedTuple):
    """One row's keys in symbols: scores, values and segments, in the order of the sequence."""

    scores: list[sp.Expr]
    values: list[sp.Expr]
    segments: list[int]


# The bias of a relative position: b(position of the key - position of the query).
symbolic_bias = sp.Function("b", real=True)


def symbols(length: int, seq: int, split: int, *, hidden: Sequence[int] = ()) -> Symbols:
    """Free real symbols for one row over ``[P_1..P_k ; X ; P_k+1..P_l]``: scores s_P1, s_X1, values v_P1, v_X1.

    A token keeps its symbols at every split. hidden: segments whose keys the row does not see (score -oo).
    """
    order, labels = arrangement(length, seq, split).tolist(), segments(length, seq, split).tolist()
    names = [f"P{a + 1}" for a in range(length)] + [f"X{j + 1}" for j in range(seq)]
    found = Symbols([], [], labels)
    for index, label in zip(order, labels):
        score, value = sp.symbols(f"s_{names[index]} v_{names[index]}", real=True)
        found.scores.append(-sp.oo if label in hidden else score)
        found.values.append(value)
    return found


def symbolic_attend(scores: Sequence[sp.Expr], values: Sequence[sp.Expr]) -> sp.Expr:
    """Softmax attention of one row; scores may be -oo. No key that is seen: 0."""
    weights = [sp.exp(s) for s in scores]
    total = sp.Add(*weights)
    return sp.Integer(0) if total == 0 else sp.Add(*(w * v for w, v in zip(weights, values))) / total


def symbolic_gates(scores: Sequence[sp.Expr], segments: Sequence[int], count: int = 3) -> list[sp.Expr]:
    """The share of the row's attention on each segment."""
    total = sp.Add(*(sp.exp(s) for s in scores))
    return [
        sp.Add(*(sp.exp(s) for s, label in zip(scores, segments) if label == c)) / total for c in range(count)
    ]


def symbolic_parts(row: Symbols, count: int = 3) -> list[tuple[sp.Expr, sp.Expr]]:
    """(gate, attention restricted to the segment) for every segment."""
    found = []
    for c, gate in enumerate(symbolic_gates(row.scores, row.segments, count)):
        chosen = [i for i, label in enumerate(row.segments) if label == c]
        found.append(
            (gate, symbolic_attend([row.scores[i] for i in chosen], [row.values[i] for i in chosen]))
        )
    return found


def difference(left: sp.Expr, right: sp.Expr) -> sp.Expr:
    """left - right over one denominator, cancelled: exactly 0 if and only if the two are the same function.

    Exponentials of different symbols are independent, so equality is one of polynomials.
    """
    return sp.cancel(sp.together(sp.expand_power_exp(left - right)))


def symbolic_decomposition(
    length: int, seq: int, split: int, *, hidden: Sequence[int] = ()
) -> tuple[sp.Expr, sp.Expr]:
    """Both sides of the gated decomposition: attention over everything, and the gated sum over segments."""
    row = symbols(length, seq, split, hidden=hidden)
    parts = symbolic_parts(row)
    return symbolic_attend(row.scores, row.values), sp.Add(*(gate * output for gate, output in parts))


def symbolic_rebracketing(length: int, seq: int, split: int) -> tuple[sp.Expr, sp.Expr]:
    """Two prompt terms, and the one term of all prompt keys together with the sum of the gates."""
    row = symbols(length, seq, split)
    before, _, after = symbolic_parts(row)
    prompt = [i for i, label in enumerate(row.segments) if label != INPUT]
    joint = symbolic_attend([row.scores[i] for i in prompt], [row.values[i] for i in prompt])
    return before[0] * before[1] + after[0] * after[1], (before[0] + after[0]) * joint


def symbolic_multihead(
    length: int, seq: int, split: int, heads: int = 2, *, shared_gate: bool = False
) -> tuple[sp.Expr, sp.Expr]:
    """Heads joined by W_O (one output coordinate), and the sum of their own gated parts.

    shared_gate: use the gates of the first head for all heads instead. Then the two sides differ.
    """
    left, right, first = sp.Integer(0), sp.Integer(0), None
    for h in range(heads):
        row = symbols(length, seq, split)
        own = {s: sp.Symbol(f"{s}^{h}", real=True) for pair in row[:2] for s in pair}
        row = Symbols([own[s] for s in row.scores], [own[v] for v in row.values], row.segments)
        parts, projection = symbolic_parts(row), sp.Symbol(f"w_{h}", real=True)
        first = parts if first is None else first
        gate_of = first if shared_gate else parts
        left += projection * symbolic_attend(row.scores, row.values)
        right += projection * sp.Add(*(gate[0] * part[1] for gate, part in zip(gate_of, parts)))
    return left, right


def symbolic_row(
    length: int, seq: int, split: int, row: int | str, *, relative: bool = False, causal: bool = False
) -> Symbols:
    """The keys that one token sees at a split, its content scores with each key being free symbols.

    Parameters
    ----------
    row : which token asks: 0..l-1 the prompt's, l..l+T-1 the input's, or "readout": one more token, behind everything.
    relative : add the bias b(position of the key - position of the query).
    causal : hide the keys behind the query.
    """
    found, order = symbols(length, seq, split), arrangement(length, seq, split).tolist()
    if row != "readout" and row not in order:
        raise ValueError(f"row={row!r}: expected 0..{length + seq - 1} or 'readout'")
    place = length + seq if row == "readout" else order.index(row)
    moved = [s + symbolic_bias(j - place) if relative else s for j, s in enumerate(found.scores)]
    seen = [-sp.oo if causal and j > place else s for j, s in enumerate(moved)]
    return found._replace(scores=seen)


def symbolic_key_ratio(
    length: int, seq: int, split: int, row: int | str, *, relative: bool = True
) -> sp.Expr:
    """The attention of a token on X_1 divided by its attention on X_2 (seq >= 2), from the full softmax.

    For a row of the input no prompt at any split changes it. For a readout behind the prompt the split does, since it
    changes the distance to the input.
    """
    found = symbolic_row(length, seq, split, row, relative=relative)
    total = sp.Add(*(sp.exp(s) for s in found.scores))
    weights = [sp.exp(s) / total for s, label in zip(found.scores, found.segments) if label == INPUT]
    if len(weights) < 2:
        raise ValueError(f"seq={seq}: expected at least 2 tokens, whose ratio is asked for")
    return sp.powsimp(sp.simplify(weights[0] / weights[1]))


def symbolic_content_free(length: int, seq: int, split: int, row: int) -> tuple[list[sp.Expr], list[sp.Expr]]:
    """Gates of the input's row under a bias alone: from the full softmax, and from the two profiles of the prompt.

    row: 0..T-1.
    """
    full = symbolic_row(length, seq, split, length + row, relative=True)
    empty = dict.fromkeys(sp.Add(*full.scores).free_symbols, 0)
    left = symbolic_gates([s.subs(empty) for s in full.scores], full.segments)
    places = [
        [a - split - row for a in range(split)],
        [j - row for j in range(seq)],
        [seq + a - split - row for a in range(split, length)],
    ]
    sums = [sp.Add(*(sp.exp(symbolic_bias(r)) for r in side)) for side in places]
    return left, [side / sp.Add(*sums) for side in sums]
