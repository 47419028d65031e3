"""Types of inputs that need different splits, so that one split per task is not enough.

One causal layer reads at the row of the token, so that a prompt vector before it is seen and one behind it is not.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import sympy as sp
import torch
from torch import Tensor

from dplearn.theory.separation.places import check_split

# The values y of the inputs of both types.
INSTANCE_VALUES = (sp.Rational(-1, 2), sp.Rational(1, 2), sp.Rational(3, 2))


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
    check_split(split, 1)
    values = list(values)
    cases = instance_cases(values)
    if split == 0:
        return TaskLevel(sum((y - t) ** 2 for _, y, t in cases) / len(cases), sp.Integer(0), sp.Integer(0))
    # (y + u)/(1 + z) is any line in y whose slope is between 0 and 1: the line of least squares, if its slope is.
    mean_y = sum(y for _, y, _ in cases) / len(cases)
    mean_t = sum(t for _, _, t in cases) / len(cases)
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
    right: dict[sp.Expr, list[int]] = defaultdict(lambda: [0, 0])
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

    Raises
    ------
    ValueError : another relaxation, or other shapes.
    """
    _check_instances(prompt, inputs, weights, relaxation)
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


def _check_instances(prompt: Tensor, inputs: Tensor, weights: Tensor, relaxation: str) -> None:
    if relaxation not in ("token", "position"):
        raise ValueError(f'relaxation={relaxation!r}, expected "token" or "position"')
    if inputs.shape[1:] != (1, 3) or prompt.shape[-2:] != (1, 3):
        raise ValueError(
            f"prompt {tuple(prompt.shape)} and inputs {tuple(inputs.shape)}, "
            "expected (1, 3) or (B, 1, 3), and (B, 1, 3)"
        )
    if weights.shape != (len(inputs), 2):
        raise ValueError(f"weights has the shape {tuple(weights.shape)}, expected ({len(inputs)}, 2)")
