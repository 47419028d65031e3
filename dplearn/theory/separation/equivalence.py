"""Which splits can stand in for each other in one layer with a relative bias, decided exactly.

What a prompt vector can do at a split is said by its profile: the bias with which each input row sees it.
"""

from collections import defaultdict

import sympy as sp
import torch
from torch import Tensor

from dplearn.theory.separation.biases import Bias, alibi_bias, linear_bias, no_bias, t5_bias
from dplearn.theory.separation.places import check_seq, check_split, standing


def profiles(bias: Bias, split: int, *, length: int, seq: int) -> list[tuple[sp.Expr, ...]]:
    """For each prompt vector, the bias with which each input row sees it at this split: l tuples of T entries.

    Entries are compared exactly, so a bias of one's own should give fractions or symbols rather than floats.

    >>> profiles(linear_bias(1), 1, length=2, seq=2)  # one step before the first row, and two steps behind it
    [(-1, -2), (2, 1)]
    """
    check_split(split, length)
    check_seq(seq)
    prompt, tokens = standing(split, length, seq)
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
    check_seq(seq, 2)
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
    return all(
        matching(bias, 0, other, length=length, seq=seq, constant_query=constant_query) is not None
        for other in range(1, length + 1)
    )


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
        name: (
            equally_expressive(bias, length=length, seq=seq),
            equally_expressive(bias, length=length, seq=seq, constant_query=True),
        )
        for name, bias in kinds.items()
    }


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
