"""What is seen of a run besides its scores: curves, the report on its decisions, the share of right splits.

Texts, images and image-text models are looked at in the same way (:func:`~dplearn.experiments.watching.fit_and_watch`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from dplearn.evidence import entropy
from dplearn.experiments.fitting import Settings, annealed, fit
from dplearn.experiments.runs import (
    Run,
    TextRun,
    distribution,
    learned_parts,
    right_shares,
    share_right_of,
    some,
)
from dplearn.sampling import Choice

REACHED = 0.9


@dataclass(frozen=True)
class Looks:
    """How closely a run is looked at; less where a model is large.

    points : of a curve, besides the start.  subset : validation examples that curves look at, always the same.
    report : most examples of the report on decisions.  thirds : score the splits at a third of the steps too.
    """

    points: int = 20
    subset: int = 64
    report: int = 256
    thirds: bool = False


LOOKS = Looks()


class Watch(TrainerCallback):
    """Looks at a run a few times, on the same few validation examples, and once at a third of its steps.

    It draws no random numbers: a run that is watched is the same run.

    Parameters
    ----------
    loss : gives the mean training loss since it was asked last.
    splits : what is scored at a third of the steps.
    """

    def __init__(
        self,
        run: Run,
        loss: Callable[[], float],
        steps: int,
        looks: Looks = LOOKS,
        splits: Sequence[str] = (),
    ):
        self.run, self.loss, self.splits = run, loss, splits if looks.thirds else ()
        self.points = {round(i * steps / looks.points) for i in range(looks.points + 1)}
        self.third, self.seconds = steps // 3, 0.0
        self.curves: dict[str, list] = {"steps": [], "loss": [], "score": [], "cross_entropy": []}
        self.at_a_third: dict | None = None
        rows = run.encode("validation")
        self.chosen = some(rows, looks.subset)
        self.rows = [rows[i] for i in self.chosen]
        self.labels = run.labels("validation")[self.chosen]

    def on_train_begin(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **kwargs):
        start = time.perf_counter()
        if state.global_step in self.points:
            self._look(state.global_step)
        if self.splits and state.global_step == self.third:
            self.at_a_third = {split: self.run.scored(split)[0] for split in self.splits}
            self.run.encode("train")  # an image-text model has the classes of the split that was encoded last
        self.seconds += time.perf_counter() - start  # not a part of what training costs

    def _look(self, step: int) -> None:
        run, curves, logits = self.run, self.curves, self.run.logits(self.rows)
        curves["steps"].append(step)
        curves["loss"].append(None if step == 0 else round(self.loss(), 4))
        curves["score"].append(round(float((logits.argmax(1) == self.labels).float().mean()), 4))
        curves["cross_entropy"].append(round(float(cross_entropy(logits, self.labels)), 4))
        for name, pi in run.distributions(self.rows).items():
            curves.setdefault(f"entropy_{name}", []).append(round(float(entropy(pi).mean()), 4))
        if "entropy_position" in curves and share_right_of(run.task) is not None:
            examples = run.task.examples("validation")
            share = cast(TextRun, run).right_share(self.rows, [examples[i] for i in self.chosen])
            curves.setdefault("right_split", []).append(share)

    def seen(self) -> dict:
        """What was seen, as a part of a row; ``steps_to_90`` is the first step on the curve with at least nine of ten
        right answers, or None."""
        pairs = zip(self.curves["steps"], self.curves["score"])
        first = next((step for step, score in pairs if score >= REACHED), None)
        return {"curves": self.curves, "steps_to_90": first, "at_a_third": self.at_a_third}


class OwnLoss:
    """Keeps the mean of the loss that a model computes itself while it trains, for the curves."""

    def __init__(self, model: nn.Module):
        self._values: list[Tensor] = []
        self.hook = model.register_forward_hook(self._keep)

    def _keep(self, model: nn.Module, arguments, output) -> None:
        if model.training and output["loss"] is not None:
            self._values.append(output["loss"].detach())

    def mean(self) -> float:
        """The mean loss since the last call."""
        return _mean_of(self._values)


class Objective:
    """A loss with a bonus for the entropy of learned decisions, which keeps its mean for the curves.

    Parameters
    ----------
    loss : the loss of a batch, called as the Trainer calls ``compute_loss_func``.
    bonus : factor of the mean entropy (nats) that is subtracted, summed over the decisions.
    """

    def __init__(self, loss: Callable, model: nn.Module, bonus: float = 0.0):
        self.inner, self.bonus = loss, bonus
        self._entropies: list[Tensor] = []
        self._values: list[Tensor] = []
        if bonus:
            for part in learned_parts(model).values():
                part.register_forward_hook(self._keep)

    def _keep(self, part, arguments, choice: Choice) -> None:
        # Not of a look at the run. (A view of a parameter requires a gradient even where none is recorded.)
        if torch.is_grad_enabled() and choice.logits is not None and choice.logits.requires_grad:
            self._entropies.append(entropy(distribution(part, choice)).mean())

    def __call__(self, outputs, labels, num_items_in_batch=None):
        loss = self.inner(outputs, labels, num_items_in_batch)
        self._values.append(loss.detach())
        if self._entropies:
            loss = loss - self.bonus * sum(self._entropies)
            self._entropies.clear()
        return loss

    def mean(self) -> float:
        """The mean loss (without the bonus) since the last call."""
        return _mean_of(self._values)


def _mean_of(values: list[Tensor]) -> float:
    """The mean of losses, of which none is left in the list."""
    mean = float(torch.stack(values).mean()) if values else math.nan
    values.clear()
    return mean


def fit_and_watch(
    run: Run,
    settings: Settings,
    seed: int,
    optimizer: torch.optim.Optimizer,
    splits: Sequence[str],
    mean_loss: Callable[[], float],
    looks: Looks = LOOKS,
    headroom: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    temperatures: Callable[[int], float] | None = None,
    **options,
) -> dict:
    """Train the model of a run and score it, as :func:`dplearn.experiments.fitting.fit` does, and say what was seen.

    Parameters
    ----------
    mean_loss : gives the mean training loss since it was asked last.
    looks : how closely the run is looked at.
    headroom : measure at the end what other positions would have given.
    callbacks : of the Trainer, besides those that look and that anneal.
    temperatures : of the learned decisions at each step; None: 1.
    options : of the Trainer.

    Returns the row of ``fit`` with the curves, and where something is decided the report on it ("evidence") and the
    share of examples at each position, for each split. (Curves are of the run; scores, report and shares of the weights
    that it keeps.)
    """
    model, reported = run.model, bool(learned_parts(run.model)) or headroom
    first = run.report(splits[0], looks.report) if reported else None
    watch = Watch(run, mean_loss, settings.steps, looks, splits)
    annealing = annealed(model, temperatures)
    callbacks = [*annealing, watch, *callbacks]
    row = fit(
        model,
        run.task,
        run.encode,
        settings,
        seed,
        optimizer,
        splits,
        run.scored,
        callbacks=callbacks,
        **options,
    )
    row |= watch.seen()
    row["seconds"] = round(max(row["seconds"] - watch.seconds, 0.0), 1)
    if reported:
        evidence = run.report(splits[0], looks.report, first, headroom).to_dict()
        row["evidence"] = {"split": splits[0]} | rounded(evidence)
    if annealing:
        row["positions"] = {split: run.positions(split) for split in splits}
    return row | right_shares(run, splits)


def rounded(value, digits: int = 4):
    """Plain JSON values with every float rounded.

    >>> rounded({"a": [0.123456, 1], "b": None})
    {'a': [0.1235, 1], 'b': None}
    """
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {name: rounded(each, digits) for name, each in value.items()}
    return [rounded(each, digits) for each in value] if isinstance(value, (list, tuple)) else value
