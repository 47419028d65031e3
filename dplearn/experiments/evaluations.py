"""Scores of the whole validation split during a run, and which weights of it are reported.

The authors' code scores the validation split every 500 of 20,000 steps, draws the noise of learned positions there
too, and reports the best of the 40 scores. Beside ours (the last weights, decisions by argmax) that has two prices,
which one run tells apart (:func:`dplearn.experiments.tables.prices`): the best of many scores is at least the last one,
and the best of many noisy scores is another number than the best of those without noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from dplearn.choice import Chooser

KEEPS = ("last", "best")  # which weights of a run are reported


@contextmanager
def sampling_in_evaluation(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Learned decisions are sampled in evaluation too, from a generator of their own; as before afterwards."""
    choosers = choosers_of(model)
    before = [(chooser.sample_in_evaluation, chooser.generator) for chooser in choosers]
    for chooser in choosers:
        chooser.sample_in_evaluation, chooser.generator = True, generator
    try:
        yield
    finally:
        for chooser, (samples, source) in zip(choosers, before):
            chooser.sample_in_evaluation, chooser.generator = samples, source


def choosers_of(model: nn.Module) -> list[Chooser]:
    """The modules of a model that sample a decision while training."""
    return [module for module in model.modules() if isinstance(module, Chooser)]


def noise_of(model: nn.Module, seed: int, step: int) -> torch.Generator:
    """The source of the noise of one evaluation, on the model's device: another one at each seed and step."""
    device = next(model.parameters()).device
    return torch.Generator(device).manual_seed(1_000_003 * seed + step)


class Evaluations(TrainerCallback):
    """Scores a run every so many steps and after the last one.

    It draws no random numbers but those of its own generators: a run that is evaluated is the same run.

    Parameters
    ----------
    model : what is trained.
    score : gives the score of the validation split as the model is now.
    every : optimizer steps between two scores.
    keep : "best" remembers the trained parameters and the buffers of the best score (of equal ones the first), on the
        CPU.
    noisy : score a second time with learned decisions sampled; nothing where the model samples none.
    seed : of that noise.
    """

    def __init__(
        self,
        model: nn.Module,
        score: Callable[[], float],
        every: int,
        keep: str = "last",
        noisy: bool = False,
        seed: int = 0,
    ):
        self.model, self.score, self.every, self.keep, self.seed = model, score, every, keep, seed
        self.steps: list[int] = []
        self.scores: dict[str, list[float]] = {"score": []}
        if noisy and choosers_of(model):
            self.scores["noisy"] = []
        self.state: dict[str, Tensor] = {}
        self.seconds = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            start = time.perf_counter()
            self._look(state.global_step)
            self.seconds += time.perf_counter() - start  # not a part of what training costs

    def _look(self, step: int) -> None:
        score = self.score()
        if self.keep == "best" and score > max(self.scores["score"], default=float("-inf")):
            self.state = {name: value.to("cpu", copy=True) for name, value in _changing(self.model).items()}
        self.steps.append(step)
        self.scores["score"].append(score)
        if "noisy" in self.scores:
            with sampling_in_evaluation(self.model, noise_of(self.model, self.seed, step)):
                self.scores["noisy"].append(self.score())

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model the weights that are to be reported."""
        for name, value in _changing(self.model).items():
            if name in self.state:
                value.copy_(self.state[name])

    def seen(self) -> dict:
        """What was seen, as a part of a row: steps and scores, the best and the last of each kind, the steps of the
        best ones, and the step whose weights are reported; nothing where no step was made."""
        if not self.steps:
            return {}
        best = {name: max(values) for name, values in self.scores.items()}
        steps = {name: self.steps[values.index(best[name])] for name, values in self.scores.items()}
        last = {name: values[-1] for name, values in self.scores.items()}
        kept = steps["score"] if self.keep == "best" else self.steps[-1]
        found = {"steps": self.steps, **self.scores, "best": best, "best_step": steps, "last": last}
        return {"evaluations": found | {"kept_step": kept}}


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """What a run can change of a model, by name: trained parameters and buffers, as they are and not copied."""
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    return trained | dict(model.named_buffers())
