"""One-of-many decisions: sampled while training, argmax in evaluation; temperature schedules.

A position (where the prompt stands) is a discrete choice among l + 1 options. In training the choice is sampled, and
its gradient comes from an estimator; in evaluation it is the most likely option, with no noise. Sampling at
evaluation is possible, but only when asked for.

Paper: Yang et al. (2023), section 3.2 (Gumbel-Softmax with straight-through gradients).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dplearn.checks import KeyOf, Number, is_number, refuse
from dplearn.estimators import ESTIMATORS
from dplearn.sampling import Choice, at_least_float32, gumbel_one_hot, sampled

# Choice and its sample are what readers look for here; they stand below the estimators, which need them too.
__all__ = [
    "Authors",
    "Choice",
    "Chooser",
    "Constant",
    "Exponential",
    "Linear",
    "at_least_float32",
    "gumbel_one_hot",
    "most_likely",
    "schedule",
]

_positive = Number()


def most_likely(logits: Tensor) -> Tensor:
    """The option with the largest logit, (B, n) -> (B,); the last one of equals.

    Decisions that did not move yet (equal logits) then answer as a fixed prompt does by default: the last split is the
    prefix, the last size is the whole prompt.

    >>> most_likely(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    tensor([2, 1])
    """
    return logits.shape[-1] - 1 - logits.flip(-1).argmax(-1)


class Chooser(nn.Module):
    """Turns logits (B, n) into a :class:`Choice`: sampled in training, argmax in evaluation.

    Parameters
    ----------
    estimator : how the gradient of the sampled choice is estimated, a key of :data:`dplearn.estimators.ESTIMATORS`.
        (The default here is the one that needs nothing but this module; a prompt's is that of its config.)
    temperature : of Gumbel-Softmax, positive. Change it with :meth:`set_temperature`, or let
        :class:`dplearn.training.Annealing` do so; evaluation does not depend on it.
    sample_in_evaluation : draw noise in evaluation too. Off by default: the score of a sampled decision is a
        random number, and the best of many such scores is too high.
    generator : source of the noise, None for torch's global one.

    Raises
    ------
    ValueError : unknown estimator; temperature not positive, or out of the range of float32.
    """

    temperature: Tensor

    def __init__(
        self,
        estimator: str = "straight-through",
        temperature: float = 1.0,
        sample_in_evaluation: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        KeyOf(ESTIMATORS)("estimator", estimator)
        self.estimator = estimator
        self.sample_in_evaluation = sample_in_evaluation
        self.generator = generator
        # A tensor, not a float: under torch.compile a new float at every step would compile the model anew.
        self.register_buffer("temperature", torch.tensor(1.0), persistent=False)
        self.set_temperature(temperature)

    def set_temperature(self, temperature: float | Tensor) -> None:
        """Set the temperature of Gumbel-Softmax (a positive, finite number that float32 holds)."""
        number: Any = temperature
        if getattr(number, "ndim", None) == 0:  # a number of numpy or torch, as a schedule may give it
            number = number.item()
        _positive("temperature", number)
        self.temperature.fill_(number)

    def forward(self, logits: Tensor, sampling: bool | None = None) -> Choice:
        """A choice for each instance.

        Parameters
        ----------
        logits : (B, n).
        sampling : True samples as training does, False decides as evaluation does, whatever the module's mode; None
            follows the mode.
        """
        logits = at_least_float32(logits)  # half precision would create ties
        if self.training if sampling is None else sampling:
            return ESTIMATORS[self.estimator].sample(logits, self.temperature, self.generator)
        if self.sample_in_evaluation:
            return sampled(logits, self.temperature, self.generator)
        return Choice(most_likely(logits), None, logits)


# --- temperature schedules: step -> temperature -----------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """The same temperature at every step."""

    value: float = 1.0

    def __post_init__(self) -> None:
        _positive("value", self.value)

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """From ``start`` to ``end`` in equal differences over ``steps``, then ``end``.

    >>> Linear(1.0, 0.5, steps=100)(50)
    0.75
    """

    start: float = 1.0
    end: float = 0.5
    steps: int = 1000

    def __post_init__(self) -> None:
        _positive("start", self.start)
        _positive("end", self.end)
        if not is_number(self.steps) or not 1 <= self.steps < math.inf:
            refuse("steps", self.steps, "at least 1")

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Exponential(Linear):
    """From ``start`` to ``end`` in equal ratios over ``steps``, then ``end``.

    >>> round(Exponential(1.0, 0.25, steps=100)(50), 12)
    0.5
    """

    def __call__(self, step: int) -> float:
        return self.start * (self.end / self.start) ** min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Authors:
    """The schedule of the authors' code: ``tau <- max(tau * exp(-3e-5 * step / interval), 0.5)`` at each step.

    The decay compounds, so tau(t) = exp(-1.5e-5 t (t + 1) / interval) until the floor 0.5, which it meets at step 680
    of the 20,000 when interval = 10: after 3.4 % of the training it is a constant.

    >>> [round(Authors()(t), 3) for t in (0, 300, 679, 680, 20_000)]
    [1.0, 0.873, 0.5, 0.5, 0.5]
    """

    interval: float = 10.0
    floor: float = 0.5

    def __post_init__(self) -> None:
        _positive("interval", self.interval)
        if not is_number(self.floor) or not 0 < self.floor <= 1:
            refuse("floor", self.floor, "a number in (0, 1]")

    def __call__(self, step: int) -> float:
        return max(math.exp(-1.5e-5 * step * (step + 1) / self.interval), self.floor)


SCHEDULES = {"constant": Constant, "linear": Linear, "exponential": Exponential, "authors": Authors}


def schedule(name: str, **options: float) -> Callable[[int], float]:
    """A temperature schedule by name: "constant", "linear", "exponential" or "authors".

    Returns a function from the optimizer step (int, from 0) to the temperature.

    >>> schedule("linear", start=2.0, end=1.0, steps=10)(5)
    1.5
    """
    if name not in SCHEDULES:
        raise ValueError(f"name={name!r} is not a temperature schedule, expected one of {sorted(SCHEDULES)}")
    return SCHEDULES[name](**options)
