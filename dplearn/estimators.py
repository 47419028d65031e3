"""The estimators of a decision's gradient: one table, a row for each.

Two read the gradient off one sampled choice, by its weights: "straight-through", the paper's, and "position-space"
(:mod:`dplearn.backbones.position_space`). The others compare losses: they repeat every instance S times, each copy with
its own decision, and turn the losses f_s of an instance into one surrogate whose gradient is the estimate:

exact                 every option k once, or an unbiased sample of them: ``sum_k pi_k f_k``.
score-function        S options drawn from pi: ``mean_s f_s``, plus the gradient of ``mean_s (f_s - b_s) log pi_s``,
                      where the baseline b_s is the mean of the instance's other losses (leave one out): the estimate is
                      unbiased.
score-function-batch  the same with one b for all losses of an instance, the mean loss of the batch's other instances.
                      They drew without regard to this one, so the estimate is unbiased too. A single draw suffices, at
                      the price of one pass; its noise has what instances differ in anyway. A batch of one instance
                      has nothing to compare a single draw with: it moves no decision, and a warning says so.

A new estimator is a file with its functions (of :mod:`dplearn.sampling`) and a row in ``ESTIMATORS``.

Sources: Yang et al. (2023), section 3.2; Williams (1992); Kool et al. (2019) for the leave-one-out
baseline.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from dplearn.checks import caller_level, refuse
from dplearn.insertion import values_are_free
from dplearn.sampling import Choice, Draws, Estimator, at_least_float32, gumbel_one_hot, sampled


def straight_through(
    logits: Tensor, temperature: Tensor | float, generator: torch.Generator | None
) -> Choice:
    """The paper's estimator: one Gumbel-Softmax sample, gradient by straight-through."""
    weights = gumbel_one_hot(logits, temperature, generator)
    return Choice(weights.argmax(-1), weights, logits)


def some_options(
    log_p: dict[str, Tensor], samples: int | None, generator: torch.Generator | None = None
) -> Draws:
    """For "exact": every option (B, n) of the one decision, or ``samples`` different ones for each instance."""
    ((name, chances),) = log_p.items()
    batch, options = chances.shape
    tried = options if samples is None else min(samples, options)
    # A random order of the options for each instance; its first S are a sample without replacement.
    order = torch.arange(options, device=chances.device).expand(batch, -1)
    if tried < options:
        order = torch.rand(batch, options, generator=generator).to(chances.device).argsort(1)[:, :tried]
    return Draws({name: order.T}, chances.gather(1, order).T, options / tried, "exact")


def expected_loss(losses: Tensor, draws: Draws) -> Tensor:
    """For "exact": ``sum_k pi_k f_k``, (S, B) -> (B,)."""
    weight = 1.0 if draws.weight is None else draws.weight
    return weight * (draws.log_probs.exp() * losses).sum(0)


def independent_options(
    log_p: dict[str, Tensor], samples: int | None, generator: torch.Generator | None = None
) -> Draws:
    """For the score functions: ``samples`` independent options of every decision (B, n) for each instance."""
    index: dict[str, Tensor] = {}
    parts: list[Tensor] = []
    samples = 1 if samples is None else samples
    for name, chances in log_p.items():
        noise = torch.empty(samples, *chances.shape).exponential_(generator=generator).to(chances.device)
        index[name] = (chances.detach() - noise.log()).argmax(-1)  # Gumbel-max: a sample from softmax(logits)
        parts.append(chances.expand(samples, -1, -1).gather(2, index[name].unsqueeze(2)).squeeze(2))
    return Draws(index, sum(parts[1:], parts[0]), None, "score-function")


def leave_one_out(losses: Tensor, draws: Draws) -> Tensor:
    """For "score-function": the mean loss, with the gradient of the score, (S, B) -> (B,)."""
    count = losses.shape[0]
    values = losses.detach()
    advantage = (values - values.mean(0)) * count / (count - 1)  # f_s - mean of the others
    return _with_score(losses, advantage, draws)


def leave_one_instance_out(losses: Tensor, draws: Draws) -> Tensor:
    """For "score-function-batch": the mean loss, with the gradient of the score, (S, B) -> (B,)."""
    count, batch = losses.shape
    if batch == 1 < count:
        return leave_one_out(losses, draws)
    if batch == 1:
        warnings.warn(
            "estimator='score-function-batch' with one draw learns nothing from a batch of one instance: take larger "
            "batches, samples=2, or estimator='score-function'",
            stacklevel=caller_level(),
        )
    values = losses.detach()
    others = values if batch == 1 else (values.sum() - values.sum(0)) / (count * (batch - 1))
    return _with_score(losses, values - others, draws)


def _with_score(losses: Tensor, advantage: Tensor, draws: Draws) -> Tensor:
    """The mean loss of each instance, (S, B) -> (B,), with the gradient of its score added."""
    score = (advantage * (draws.log_probs - draws.log_probs.detach())).mean(0)  # 0, with the score's gradient
    return losses.mean(0) + score


ESTIMATORS: dict[str, Estimator] = {
    "straight-through": Estimator(
        "the paper's: the gradient of the relaxed sample, over inserted sequences", straight_through
    ),
    "position-space": Estimator(
        "the same sample, over the backbone's position information alone (other decisions: straight-through)",
        straight_through,
        space="positions",
    ),
    "score-function": Estimator(
        "several sampled options, whose losses are compared with each other (leave one out); unbiased",
        sampled,
        space=None,
        draw=independent_options,
        surrogate=leave_one_out,
        least_samples=2,
        usual_samples=4,
    ),
    "exact": Estimator(
        "every option of one decision, or an unbiased sample of them, weighted by its probability",
        sampled,
        space=None,
        draw=some_options,
        surrogate=expected_loss,
        joint=False,
    ),
    "score-function-batch": Estimator(
        "one sampled option, or several, whose losses are compared with those of the batch's other instances; unbiased",
        sampled,
        space=None,
        draw=independent_options,
        surrogate=leave_one_instance_out,
        usual_samples=1,
        across_instances=True,
    ),
}


def comparing_losses(compare: bool = True) -> list[str]:
    """Names of the estimators that try several options for each instance and compare their losses, or of the others,
    which take any loss.

    >>> comparing_losses(), comparing_losses(False)
    (['score-function', 'exact', 'score-function-batch'], ['straight-through', 'position-space'])
    """
    return [name for name, row in ESTIMATORS.items() if row.compares_losses is compare]


def draw(
    logits: dict[str, Tensor],
    estimator: str,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Draws:
    """Choose what to try.

    Parameters
    ----------
    logits : name of a decision -> (B, n) logits. An estimator that is not ``joint`` takes a single decision.
    estimator : one that compares losses.
    samples : S, how many options to try for each instance; None: all for "exact", 4 for "score-function", 1 for
        "score-function-batch".
    generator : source of the randomness; None is torch's global one.

    Raises
    ------
    ValueError : the estimator does not compare losses, or takes one decision and got another number of them; logits
        that are not finite (looked at on the CPU alone: a device would have to wait).
    """
    row = ESTIMATORS.get(estimator)
    if row is None or row.draw is None:
        raise ValueError(f"estimator={estimator!r} is not valid, expected one of {comparing_losses()}")
    if not logits or (len(logits) > 1 and not row.joint):
        expected = "one decision" if not row.joint else "at least one decision"
        raise ValueError(f"logits={list(logits)} is not valid with {estimator!r}, expected {expected}")
    for name, value in logits.items():
        if values_are_free(value) and not value.isfinite().all():
            wrong = int((~value.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"logits of the {name}, row {wrong}, are not finite: training has diverged")
    log_p = {name: at_least_float32(value).log_softmax(-1) for name, value in logits.items()}
    tried = row.draw(log_p, row.usual_samples if samples is None else samples, generator)
    return tried._replace(estimator=estimator)  # several rows draw in the same way


def surrogate(losses: Tensor, draws: Draws) -> Tensor:
    """Losses (S, B) of the tried options -> (B,) surrogates, whose value is the (estimated) expected loss."""
    combine = ESTIMATORS[draws.estimator].surrogate
    if combine is None:
        refuse("draws.estimator", draws.estimator, f"one of {comparing_losses()}")
    return combine(losses, draws)


def pick(value: Tensor, instances: Tensor, batch: int) -> Tensor:
    """A tensor of the batch for these instances, (N,) -> (N, ...); anything else as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != batch:
        return value
    return value.index_select(0, instances.to(value.device))


def repeat(value: Tensor, times: int, batch: int) -> Tensor:
    """A tensor of the batch repeated ``times`` times, (times * B, ...); anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return pick(value, torch.arange(batch, device=value.device).repeat(times), batch)


def instance_losses(
    logits: Tensor, labels: Tensor, shift: bool = False, problem: str | None = None
) -> Tensor:
    """One loss per input, (N,), whose mean is the loss that transformers computes for the batch.

    Parameters
    ----------
    logits : (N, L, C) scores of tokens or (N, C) scores of texts.
    labels : (N, L) or (N,) classes, -100 where there is none; floating point (N,) or (N, C) for a regression or several
        labels at once.
    shift : the scores of a token are about the next one (decoder-only language models).
    problem : of texts, the ``problem_type`` of a model's config: "regression", "single_label_classification" or
        "multi_label_classification". None: as transformers takes it then, a regression where C = 1, several labels at
        once where they are floating point.

    >>> scores, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]])
    >>> instance_losses(scores, labels, problem="regression")
    tensor([2.])
    """
    if logits.ndim == 2 or labels.is_floating_point():
        if problem is None and logits.shape[-1] == 1:
            problem = "regression"
        elif problem is None and labels.is_floating_point():
            problem = "multi_label_classification"
        if problem == "regression":
            return mse_loss(logits.flatten(1), labels.reshape(len(logits), -1), reduction="none").mean(1)
        if problem == "multi_label_classification":
            return binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        logits, labels = logits.unsqueeze(1), labels.view(-1, 1)  # a text of one token
    elif shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    scores = at_least_float32(logits).transpose(1, 2)  # (N, C, L)
    losses = cross_entropy(scores, labels, ignore_index=-100, reduction="none")  # (N, L)
    return losses.sum(1) * labels.shape[0] / (labels != -100).sum().clamp(min=1)
