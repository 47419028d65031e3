"""One-of-many decisions: Gumbel-Softmax while training, argmax in evaluation; temperature schedules.

A position (where the prompt stands) is a discrete choice among l + 1 options. In training the choice is sampled, and
its gradient comes from an estimator; in evaluation it is the most likely option, with no noise. Sampling at
evaluation is possible, but only when asked for.

Paper: Yang et al. (2023), section 3.2 (Gumbel-Softmax with straight-through gradients).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Choice(NamedTuple):
    """What was decided for each instance of a batch.

    index: chosen option, (B,), int64.  weights: hard one-hot rows (B, n) that carry the estimator's gradient, or None
    where no gradient is wanted (a fixed choice, evaluation).  logits: (B, n), or None for a fixed choice.
    """

    index: Tensor
    weights: Tensor | None = None
    logits: Tensor | None = None


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def gumbel_one_hot(
    logits: Tensor, temperature: float | Tensor = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Sample hard one-hot rows with straight-through gradients.

    Forward: ``one_hot(argmax(logits + g))`` with standard Gumbel noise g. Backward: the gradient of
    ``softmax((logits + g) / temperature)``.

    Parameters
    ----------
    logits : (..., n) unnormalised log-probabilities.
    temperature : positive; small values make the relaxation sharper and its gradient noisier.
    generator : source of the noise. None uses :func:`torch.nn.functional.gumbel_softmax` and the global generator;
        the same seed gives the same sample either way.

    Returns
    -------
    (..., n) rows with a single 1, exact in every dtype.

    Source: Jang et al. (2017), Maddison et al. (2017); paper section 3.2.

    >>> rows = gumbel_one_hot(torch.zeros(3, 5), generator=torch.Generator().manual_seed(0))
    >>> rows.sum(-1)
    tensor([1., 1., 1.])
    """
    if generator is None:
        return nn.functional.gumbel_softmax(logits, tau=temperature, hard=True, dim=-1)
    noise = -torch.empty_like(logits).exponential_(generator=generator).log()
    soft = ((logits + noise) / temperature).softmax(-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard - soft.detach() + soft  # in this order the sum is exactly 0 or 1 in every dtype


def straight_through(
    logits: Tensor, temperature: Tensor | float, generator: torch.Generator | None
) -> Choice:
    """The paper's estimator: one Gumbel-Softmax sample, gradient by straight-through."""
    weights = gumbel_one_hot(logits, temperature, generator)
    return Choice(weights.argmax(-1), weights, logits)


def sampled(logits: Tensor, temperature: Tensor | float, generator: torch.Generator | None) -> Choice:
    """A sample without a gradient of its own: "score-function" and "exact" work on the loss (dplearn.estimators)."""
    return Choice(gumbel_one_hot(logits.detach(), 1.0, generator).argmax(-1), None, logits)


# What a decision samples while training, by estimator; evaluation is argmax for all of them. "position-space" samples
# as the paper's does; only what its weights are multiplied with differs (dplearn.backbones.position_space).
ESTIMATORS: dict[str, Callable[[Tensor, Tensor | float, torch.Generator | None], Choice]] = {
    "straight-through": straight_through,
    "position-space": straight_through,
    "score-function": sampled,
    "exact": sampled,
}


class Chooser(nn.Module):
    """Turns logits (B, n) into a :class:`Choice`: sampled in training, argmax in evaluation.

    Parameters
    ----------
    estimator : how the gradient of the sampled choice is estimated, a key of ``ESTIMATORS``.
    temperature : of Gumbel-Softmax, positive. Change it with :meth:`set_temperature`, or let
        :class:`dplearn.training.Annealing` do so; evaluation does not depend on it.
    sample_in_evaluation : draw noise in evaluation too. Off by default: the score of a sampled decision is a
        random number, and the best of many such scores is too high.
    generator : source of the noise, None for torch's global one.

    Raises
    ------
    ValueError : unknown estimator; temperature not positive.
    """

    def __init__(
        self,
        estimator: str = "straight-through",
        temperature: float = 1.0,
        sample_in_evaluation: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator={estimator!r} is unknown, expected one of {sorted(ESTIMATORS)}")
        self.estimator = estimator
        self.sample_in_evaluation = sample_in_evaluation
        self.generator = generator
        # A tensor, not a float: under torch.compile a new float at every step would compile the model anew.
        self.register_buffer("temperature", torch.tensor(1.0), persistent=False)
        self.set_temperature(temperature)

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of Gumbel-Softmax (a positive, finite number)."""
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature={temperature} is not a positive, finite number")
        self.temperature.fill_(temperature)

    def forward(self, logits: Tensor) -> Choice:
        logits = at_least_float32(logits)  # half precision would create ties
        if self.training:
            return ESTIMATORS[self.estimator](logits, self.temperature, self.generator)
        if self.sample_in_evaluation:
            return Choice(gumbel_one_hot(logits, self.temperature, self.generator).argmax(-1), None, logits)
        return Choice(logits.argmax(-1), None, logits)


# --- temperature schedules: step -> temperature -----------------------------------------------------------------------


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value} is not valid, expected {expected}")


@dataclass(frozen=True)
class Constant:
    """The same temperature at every step."""

    value: float = 1.0

    def __post_init__(self):
        _require(self.value > 0, "value", self.value, "a positive number")

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

    def __post_init__(self):
        _require(self.start > 0, "start", self.start, "a positive number")
        _require(self.end > 0, "end", self.end, "a positive number")
        _require(self.steps >= 1, "steps", self.steps, "at least 1")

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

    def __post_init__(self):
        _require(self.interval > 0, "interval", self.interval, "a positive number")
        _require(0 < self.floor <= 1, "floor", self.floor, "a number in (0, 1]")

    def __call__(self, step: int) -> float:
        return max(math.exp(-1.5e-5 * step * (step + 1) / self.interval), self.floor)


SCHEDULES = {"constant": Constant, "linear": Linear, "exponential": Exponential, "authors": Authors}


def schedule(name: str, **options: float) -> Callable[[int], float]:
    """A temperature schedule by name: "constant", "linear", "exponential" or "authors".

    Returns a function from the optimiser step (int, from 0) to the temperature.

    >>> schedule("linear", start=2.0, end=1.0, steps=10)(5)
    1.5
    """
    if name not in SCHEDULES:
        raise ValueError(f"name={name!r} is not a temperature schedule, expected one of {sorted(SCHEDULES)}")
    return SCHEDULES[name](**options)
