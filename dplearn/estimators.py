"""Estimators that evaluate the loss at several options: "score-function" and "exact".

Both repeat every instance S times, each copy with its own decision, and turn the S losses f_s of an instance into one
surrogate whose gradient is the estimate. They differ in which options are tried and in the surrogate:

exact           every option k once, or an unbiased sample of them: ``sum_k pi_k f_k``.
score-function  S options drawn from pi: ``mean_s f_s``, plus the gradient of ``mean_s (f_s - b_s) log pi_s``, where the
                baseline b_s is the mean of the instance's other losses (leave one out): the estimate is unbiased.

Sources: Williams (1992); Kool et al. (2019) for the leave-one-out baseline.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from dplearn.choice import at_least_float32

SAMPLED = ("score-function", "exact")


class Draws(NamedTuple):
    """The decisions that are tried for each instance.

    index: name of the decision -> (S, B) options.  log_probs: (S, B), of the decisions together, with gradient.
    weight: factor of each option in the exact expectation (1, or options / S for a sample), None for score-function.
    """

    index: dict[str, Tensor]
    log_probs: Tensor
    weight: float | None


def draw(
    logits: dict[str, Tensor],
    estimator: str,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Draws:
    """Choose what to try.

    Parameters
    ----------
    logits : name of a decision -> (B, n) logits. "exact" takes a single decision.
    samples : S, how many options to try for each instance; None: all for "exact", 4 for "score-function".
    generator : source of the randomness; None is torch's global one.
    """
    log_p = {name: at_least_float32(value).log_softmax(-1) for name, value in logits.items()}
    if estimator == "exact":
        ((name, chances),) = log_p.items()
        batch, options = chances.shape
        tried = options if samples is None else min(samples, options)
        # A random order of the options for each instance; its first S are a sample without replacement.
        order = torch.arange(options, device=chances.device).expand(batch, -1)
        if tried < options:
            order = torch.rand(batch, options, generator=generator).to(chances.device).argsort(1)[:, :tried]
        return Draws({name: order.T}, chances.gather(1, order).T, options / tried)
    tried, index, total = 4 if samples is None else samples, {}, 0.0
    for name, chances in log_p.items():
        noise = torch.empty(tried, *chances.shape).exponential_(generator=generator).to(chances.device)
        index[name] = (chances.detach() - noise.log()).argmax(-1)  # Gumbel-max: a sample from softmax(logits)
        total = total + chances.expand(tried, -1, -1).gather(2, index[name].unsqueeze(2)).squeeze(2)
    return Draws(index, total, None)


def surrogate(losses: Tensor, draws: Draws) -> Tensor:
    """Losses (S, B) of the tried options -> (B,) surrogates, whose value is the (estimated) expected loss."""
    if draws.weight is not None:
        return draws.weight * (draws.log_probs.exp() * losses).sum(0)
    count = len(losses)
    values = losses.detach()
    advantage = (values - values.mean(0)) * count / (count - 1)  # f_s - mean of the others
    score = (advantage * (draws.log_probs - draws.log_probs.detach())).mean(0)  # 0, with the score's gradient
    return losses.mean(0) + score


def repeat(value: Tensor, times: int, batch: int) -> Tensor:
    """A tensor of the batch repeated ``times`` times, (times * B, ...); anything else as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != batch:
        return value
    return value.repeat(times, *[1] * (value.ndim - 1))


def instance_losses(logits: Tensor, labels: Tensor, shift: bool = False) -> Tensor:
    """One loss per instance, (N,), whose mean is the loss that transformers computes for the batch.

    Parameters
    ----------
    logits : (N, L, C) scores of tokens or (N, C) scores of texts.
    labels : (N, L) or (N,) classes, -100 where there is none; floating point (N,) or (N, C) for a regression (C = 1)
        or several labels at once.
    shift : the scores of a token are about the next one (decoder-only language models).
    """
    if labels.is_floating_point():
        if logits.shape[-1] == 1:
            return mse_loss(logits.flatten(1).squeeze(1), labels.flatten(), reduction="none")
        return binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    if logits.ndim == 2:
        return cross_entropy(logits, labels.view(-1), reduction="none")
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    scores = at_least_float32(logits).transpose(1, 2)  # (N, C, L)
    losses = cross_entropy(scores, labels, ignore_index=-100, reduction="none")  # (N, L)
    return losses.sum(1) * len(labels) / (labels != -100).sum().clamp(min=1)
