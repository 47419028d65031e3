"""What training steps tell a real model's position logits, against the exact gradient.

A step with a sampled split gives the logits one random estimate of a gradient. Is it right on average, and how far off
is a single one? Both are measured here on any backbone that a prompt can be put on: many estimates at once, by
repeating the batch, and the exact gradient by trying every split.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from dplearn.checks import whole
from dplearn.config import PromptConfig
from dplearn.controllers import LearnedDecision
from dplearn.estimators import ESTIMATORS, repeat
from dplearn.loading import prompted
from dplearn.model import PromptedModel


class GradientQuality(NamedTuple):
    """An estimator's gradient of the position logits, compared with the exact one.

    cosine: of the mean of all estimates with the exact gradient; 1 is the right direction, 0 says nothing.
    noise: standard deviation of one estimate (root of the summed variances) in units of the exact gradient's norm.
    error: standard error of the mean estimate, in the same units: how far the cosine can be trusted.
    """

    cosine: float
    noise: float
    error: float


def position_gradients(model: PromptedModel, batch: dict[str, Tensor], draws: int = 64) -> Tensor:
    """What ``draws`` training steps on one batch would each give the position logits, (draws, l+1).

    Parameters
    ----------
    model : with a position learned per task, for one task; its own estimator is used. It is left as it is, gradients
        of its parameters included.
    batch : what ``model`` is called with, ``labels`` included; every tensor has the batch first.
    draws : how many independent estimates.

    Raises
    ------
    ValueError : the position is not learned per task; ``labels`` are missing; ``draws`` is not positive.
    """
    _check(model, batch, draws)
    if draws > 1 and ESTIMATORS[model.prompt_config.estimator].across_instances:
        # Copies of the batch in one pass would be compared with one another.
        return torch.cat([position_gradients(model, batch, 1) for _ in range(draws)])
    size = len(batch["labels"])
    copies = {name: repeat(value, draws, size) for name, value in batch.items()}
    seen, training = [], model.training
    controller = cast(nn.Module, model.prompt.position.controller)
    hook = controller.register_forward_hook(lambda *args: seen.append(args[-1]))
    try:
        loss = model.train()(**copies).loss
    finally:
        hook.remove()
        model.train(training)
    (logits,) = seen  # (draws * B, l+1): a draw for every instance of every copy
    (each,) = torch.autograd.grad(loss, [logits], allow_unused=True)
    if each is None:  # one draw of one split: nothing depends on the logits
        each = torch.zeros_like(logits)
    return draws * each.view(draws, size, -1).sum(1)  # the loss is a mean over the copies


def exact_position_gradient(model: PromptedModel, batch: dict[str, Tensor]) -> Tensor:
    """The gradient of the expected loss over all l+1 splits, (l+1,): ``pi_j (f_j - sum_k pi_k f_k)``.

    Arguments and errors as for :func:`position_gradients`. One forward pass on l+1 copies of the batch.
    """
    _check(model, batch, 1)
    return position_gradients(_with(model, "exact"), batch, 1)[0]


def compare(
    model: PromptedModel, batch: dict[str, Tensor], estimators: tuple[str, ...] | None = None, draws: int = 64
) -> dict[str, GradientQuality]:
    """Each estimator's gradient of the position logits against the exact one, for the same prompt and logits.

    Parameters
    ----------
    model : as for :func:`position_gradients`.
    batch : as for :func:`position_gradients`.
    estimators : their names, without "exact". None: all that the backbone admits.
    draws : how many estimates of each.

    Source: Yang et al. (2023), section 3.2, for "straight-through"; :mod:`dplearn.estimators` for the others.
    """
    _check(model, batch, draws)
    if estimators is None:
        reach = model.adapter.refuses_position_space() is None
        estimators = tuple(
            name for name in ESTIMATORS if name != "exact" and (reach or name != "position-space")
        )
    exact, qualities = exact_position_gradient(model, batch), {}
    for name in estimators:
        estimates = position_gradients(_with(model, name), batch, draws)
        mean, scale = estimates.mean(0), exact.norm()
        noise = estimates.var(0, correction=min(1, draws - 1)).sum().sqrt() / scale
        cosine = torch.nn.functional.cosine_similarity(mean, exact, dim=0)
        qualities[name] = GradientQuality(cosine.item(), noise.item(), (noise / draws**0.5).item())
    return qualities


def _with(model: PromptedModel, estimator: str) -> PromptedModel:
    """The same prompt on the same backbone with another estimator."""
    samples = model.prompt_config.samples if estimator == model.prompt_config.estimator else None
    config: PromptConfig = replace(model.prompt_config, estimator=estimator, samples=samples)
    other = cast(PromptedModel, prompted(model.backbone, config, vectors=model.prompt.vectors.detach()))
    other.prompt.to(model.prompt.vectors.dtype).load_state_dict(model.prompt.state_dict())
    temperature = model.prompt.choosers()["position"].temperature
    other.prompt.choosers()["position"].set_temperature(float(temperature))
    return other


def _check(model: PromptedModel, batch: dict[str, Tensor], draws: int) -> None:
    position = model.prompt.position
    if not isinstance(position, LearnedDecision) or position.looks_at_input or model.prompt.needs_task:
        given = model.prompt_config.position
        raise ValueError(f"model has position={given!r}, expected 'task' and a single task")
    if "labels" not in batch:
        raise ValueError(f"batch has {sorted(batch)}, expected labels too: the gradient is that of the loss")
    whole("draws", draws)
