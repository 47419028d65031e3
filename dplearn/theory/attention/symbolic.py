"""One row's attention in exact symbols, where an identity is exact: sympy expressions for sequences of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sympy as sp

from dplearn.theory.attention.order import INPUT, arrangement, segments

# The bias of a relative position: b(position of the key - position of the query).
symbolic_bias = sp.Function("b", real=True)


class Symbols(NamedTuple):
    """One row's keys in symbols: scores, values and segments, in the order of the sequence."""

    scores: list[sp.Expr]
    values: list[sp.Expr]
    segments: list[int]


def symbols(length: int, seq: int, split: int, *, hidden: Sequence[int] = ()) -> Symbols:
    """Free real symbols for one row over ``[P_1..P_k ; X ; P_k+1..P_l]``: scores s_P1, s_X1, values v_P1, v_X1.

    A token keeps its symbols at every split. hidden: segments whose keys the row does not see (score -oo).
    """
    order, labels = arrangement(length, seq, split).tolist(), segments(length, seq, split).tolist()
    names = [f"P{a + 1}" for a in range(length)] + [f"X{j + 1}" for j in range(seq)]
    row = Symbols([], [], labels)
    for index, label in zip(order, labels):
        score, value = sp.symbols(f"s_{names[index]} v_{names[index]}", real=True)
        row.scores.append(-sp.oo if label in hidden else score)
        row.values.append(value)
    return row


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
    parts = []
    for c, gate in enumerate(symbolic_gates(row.scores, row.segments, count)):
        chosen = [i for i, label in enumerate(row.segments) if label == c]
        parts.append(
            (gate, symbolic_attend([row.scores[i] for i in chosen], [row.values[i] for i in chosen]))
        )
    return parts


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
    plain, order = symbols(length, seq, split), arrangement(length, seq, split).tolist()
    if row != "readout" and row not in order:
        raise ValueError(f"row={row!r}: expected 0..{length + seq - 1} or 'readout'")
    place = length + seq if row == "readout" else order.index(row)
    moved = [s + symbolic_bias(j - place) if relative else s for j, s in enumerate(plain.scores)]
    seen = [-sp.oo if causal and j > place else s for j, s in enumerate(moved)]
    return plain._replace(scores=seen)


def symbolic_key_ratio(
    length: int, seq: int, split: int, row: int | str, *, relative: bool = True
) -> sp.Expr:
    """The attention of a token on X_1 divided by its attention on X_2 (seq >= 2), from the full softmax.

    For a row of the input no prompt at any split changes it. For a readout behind the prompt the split does, since it
    changes the distance to the input.
    """
    row_symbols = symbolic_row(length, seq, split, row, relative=relative)
    total = sp.Add(*(sp.exp(s) for s in row_symbols.scores))
    weights = [
        sp.exp(s) / total for s, label in zip(row_symbols.scores, row_symbols.segments) if label == INPUT
    ]
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
