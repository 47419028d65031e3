"""What an estimator is made of: a choice, a row of the table of estimators, and the Gumbel-Softmax sample.

The estimators stand in :mod:`dplearn.estimators`, one row each; decisions ask for a choice through
:class:`dplearn.choice.Chooser`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn


class Choice(NamedTuple):
    """What was decided for each instance of a batch.

    index: chosen option, (B,), int64.  weights: hard one-hot rows (B, n) that carry the estimator's gradient, or None
    where no gradient is wanted (a fixed choice, evaluation).  logits: (B, n), or None for a fixed choice.
    """

    index: Tensor  # type: ignore[assignment]  # a field of this name hides the method of tuples
    weights: Tensor | None = None
    logits: Tensor | None = None

    def picked(self, instances: Tensor) -> Choice:
        """The choices of these instances, (N,) numbers of 0..B - 1."""
        return self.of_each(lambda part: part.index_select(0, instances))

    def of_each(self, change: Callable[[Tensor], Tensor]) -> Choice:
        """The choice whose tensors, where there are any, are what ``change`` makes of these."""
        weights = None if self.weights is None else change(self.weights)
        return Choice(change(self.index), weights, None if self.logits is None else change(self.logits))


def learned(part: Tensor | None) -> Tensor:
    """Logits or weights of a choice that a controller made: it has them; a fixed one has none.

    Raises
    ------
    ValueError : there are none.
    """
    if part is None:
        raise ValueError("logits or weights of a choice are None, expected a learned decision's")
    return part


class Draws(NamedTuple):
    """The decisions that are tried for each instance.

    index: name of the decision -> (S, B) options.  log_probs: (S, B), of the decisions together, with gradient.
    weight: factor of each option in the exact expectation (1, or options / S for a sample), None for score-function.
    estimator: whose draws these are, which says how their losses are put together.
    """

    index: dict[str, Tensor]  # type: ignore[assignment]  # as in Choice
    log_probs: Tensor
    weight: float | None
    estimator: str

    def only(self, number: int) -> Draws:
        """One of the S draws, with S = 1."""
        rows = slice(number, number + 1)
        index = {name: options[rows] for name, options in self.index.items()}
        return self._replace(index=index, log_probs=self.log_probs[rows])

    def distinct(self) -> tuple[Tensor, Tensor]:
        """Which of the S * B copies differ from all before them, (U,), in order; and for each copy which of those it
        equals, (S * B,). Draws of an instance that agree in every decision need one pass.

        >>> draws = Draws({"position": torch.tensor([[2, 0], [2, 1]])}, torch.zeros(2, 2), None, "score-function")
        >>> draws.distinct()
        (tensor([0, 1, 3]), tensor([0, 1, 0, 2]))
        """
        times, batch = self.log_probs.shape
        copies = torch.arange(times * batch, device=self.log_probs.device)
        keys = copies % batch
        for options in self.index.values():
            keys = keys * (options.max() + 1) + options.flatten()
        keys_once, which = keys.unique(return_inverse=True)
        first = copies.new_full(keys_once.shape, times * batch).scatter_reduce(0, which, copies, "amin")
        order = first.argsort()
        return first[order], order.argsort()[which]


class Estimator(NamedTuple):
    """How the gradient of a sampled decision is estimated: a row of :data:`dplearn.estimators.ESTIMATORS`.

    words: what it does, one line for the documentation.
    sample: logits (B, n), temperature, generator -> the choice that a decision makes while training.
    space: what the weights of a position multiply: "tokens" (inserted sequences), "positions" (the backbone's
        position information alone), or None where a choice has no weights. Other decisions than the position have
        weights on tokens.
    draw: log probabilities by the name of the decision, number of samples or None, generator -> what is tried. None
        where losses are not compared.
    surrogate: losses (S, B) of what was tried, draws -> (B,) surrogates.
    least_samples, usual_samples: how many options are tried for each instance, at least and where nobody says
        (None: all).
    joint: whether several decisions can be learned together.
    across_instances: whether losses are compared with those of the batch's other instances.
    """

    words: str
    sample: Callable[[Tensor, Tensor | float, torch.Generator | None], Choice]
    space: str | None = "tokens"
    draw: Callable[[dict[str, Tensor], int | None, torch.Generator | None], Draws] | None = None
    surrogate: Callable[[Tensor, Draws], Tensor] | None = None
    least_samples: int = 1
    usual_samples: int | None = None
    joint: bool = True
    across_instances: bool = False

    @property
    def compares_losses(self) -> bool:
        """Whether several options are tried for each instance and their losses compared."""
        return self.draw is not None


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
        # A tensor does as well as the float that its signature asks for, and needs no new compilation.
        return nn.functional.gumbel_softmax(logits, tau=cast(float, temperature), hard=True, dim=-1)
    noise = -torch.empty_like(logits).exponential_(generator=generator).log()
    soft = ((logits + noise) / temperature).softmax(-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard - soft.detach() + soft  # in this order the sum is exactly 0 or 1 in every dtype


def sampled(logits: Tensor, temperature: Tensor | float, generator: torch.Generator | None) -> Choice:
    """A sample without a gradient of its own: for evaluation, and where the gradient comes from compared losses."""
    return Choice(gumbel_one_hot(logits.detach(), 1.0, generator).argmax(-1), None, logits)
