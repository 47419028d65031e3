"""The loss of a prompted image-text model: of labels or of pairs, and over several draws of its decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dplearn.backbones.image_text.families import Family
from dplearn.checks import explain_range
from dplearn.config import PromptConfig
from dplearn.estimators import ESTIMATORS, draw, surrogate
from dplearn.image_text.towers import Answers, Images, Owners, PromptedTowers, Texts
from dplearn.sampling import Draws, learned

# Scores (N, C) -> a loss for each image, (N,), or None where none is asked for.
Losses = Callable[[Tensor], Tensor | None]


def losses_for(family: Family, labels: Tensor | None, paired: bool | None, number: int) -> Losses:
    """The loss of each of so many images: of labels (N,), or (``paired``) the one that the model was pretrained with,
    which images and their texts have together.

    Raises
    ------
    ValueError : labels and pairs; labels that are not integers (N,); when called, pairs that are none.
    """
    if labels is not None and (labels.shape != (number,) or labels.is_floating_point()):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}, expected integers ({number},)"
        )

    def losses(logits: Tensor) -> Tensor | None:
        if paired:
            if logits.shape[0] != logits.shape[1]:
                raise ValueError(
                    f"return_loss=True with {logits.shape[0]} images and {logits.shape[1]} texts, expected pairs"
                )
            return family.pair_loss(logits).expand(number)
        if labels is None:
            return None
        try:
            return cross_entropy(logits, labels, reduction="none")
        except IndexError as error:
            explain_range({"labels": labels}, error)
            raise

    return losses


class Compared(NamedTuple):
    """A training step over S draws: answers for S copies of the images, (S * N, ...), and the surrogate loss."""

    answers: Answers
    loss: Tensor | None
    penalty: Tensor | None
    draws: Draws


def compare_draws(
    towers: PromptedTowers, texts: Texts, images: Images, owners: Owners, losses: Losses, paired: bool
) -> Compared:
    """Answers under several draws of the decisions, and the loss whose gradient is the estimator's.

    A draw decides for all owners together, and its loss is the mean over the images, unless each image decides for
    itself and has a loss of its own (which it has not where the loss is that of pairs).
    """
    prompt, decisions = towers.prompt, towers.decide(owners)
    each_alone = towers.by_image and all(
        len(learned(decisions[name].logits)) == owners.number for name in _tried(towers, owners)
    )
    if each_alone and paired and owners.number > 1:
        _check_joint(towers.config)
        each_alone = False
    if not each_alone:
        _check_compared(towers.config)
    draws = _drawn(towers, decisions, _tried(towers, owners), each_alone)
    drawn, costs = [], []
    for number in range(len(draws.log_probs)):
        copies = prompt.tried(decisions, draws.only(number))
        answers = towers.answers(texts, images, owners, copies)
        cost = losses(answers.logits)
        if cost is not None:
            costs.append(cost if each_alone else cost.mean().unsqueeze(0))
        drawn.append(answers)
    answers = Answers(*(torch.cat(column) for column in zip(*drawn)))
    penalty, loss = prompt.penalty(decisions), None
    if costs:
        loss = surrogate(torch.stack(costs), draws).mean() + (0.0 if penalty is None else penalty)
    return Compared(answers, loss, penalty, draws)


def _tried(towers: PromptedTowers, owners: Owners) -> list[str]:
    """The decisions whose options are tried; one that was made elsewhere is not."""
    return [name for name in towers.prompt.samples() if name not in owners.given]


def _drawn(towers: PromptedTowers, decisions: dict, names: list[str], each_alone: bool) -> Draws:
    """Draws of the decisions of these names; ``each_alone``: with the probability of each owner's, (S, N), and
    else of all owners' together, (S, 1)."""
    config, prompt = towers.config, towers.prompt
    draws = {
        name: draw(
            {name: learned(decisions[name].logits)}, config.estimator, config.samples, prompt.generator
        )
        for name in names
    }
    parts = [one.log_probs if each_alone else one.log_probs.sum(1, keepdim=True) for one in draws.values()]
    log_probs = sum(parts[1:], parts[0])
    first = next(iter(draws.values()))
    return first._replace(index={name: one.index[name] for name, one in draws.items()}, log_probs=log_probs)


def _check_joint(config: PromptConfig) -> None:
    """Raise ValueError where an estimator cannot try decisions of several owners together."""
    if not ESTIMATORS[config.estimator].joint:
        raise ValueError(
            f"return_loss=True with estimator={config.estimator!r}: the loss of pairs depends on the decisions "
            "of all images together, which are too many to enumerate; expected labels, or "
            "estimator='score-function'"
        )


def _check_compared(config: PromptConfig) -> None:
    """Raise ValueError where one draw of all decisions together has nothing that it could be compared with."""
    row = ESTIMATORS[config.estimator]
    if row.across_instances and (config.samples or row.usual_samples or 0) < 2:
        raise ValueError(
            f"samples={config.samples!r} is not valid with estimator={config.estimator!r} where a draw decides for all "
            "classes or pairs together, expected an integer of at least 2: there is no other instance to compare with"
        )
