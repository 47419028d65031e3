"""A report on the decisions of a prompt: what they did over a data set, and what there was to win.

    report = dplearn.decision_report(model, trainer.get_eval_dataloader(), headroom=True)
    print(report)

Every claim about a learned decision rests on these two questions: did the decision move at all, and would any decision
have helped? The numbers are explained in :mod:`dplearn.evidence`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dplearn.batches import batches_of
from dplearn.checks import is_whole, refuse, shown
from dplearn.controllers import LearnedDecision
from dplearn.evidence import Evidence, evidence
from dplearn.evidence import headroom as headroom_of
from dplearn.model import PromptedModel
from dplearn.progress import told
from dplearn.report import DecisionReport
from dplearn.sampling import Choice, learned
from dplearn.vector import Mixture


def decision_report(
    model: PromptedModel,
    data: Iterable[dict] | Sequence[dict],
    *,
    collate: Callable[[list[dict]], dict] | None = None,
    batch_size: int = 64,
    labels: Sequence[int] | Tensor | None = None,
    groups: Sequence[int] | Tensor | None = None,
    since: DecisionReport | None = None,
    headroom: bool | str = False,
    options: Sequence[int] | None = None,
    loss: Callable | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> DecisionReport:
    """What the decisions of ``model`` do over ``data``, in evaluation, and what there is to win.

    Nothing is trained or changed. Without labels in the data, losses are left out.

    Parameters
    ----------
    model : a prompted model (:func:`dplearn.prompted`).
    data : examples, or batches as a DataLoader gives them, such as ``trainer.get_eval_dataloader()``.
    collate : examples become a batch by it (:func:`dplearn.batches.batches_of`).
    batch_size : examples in each batch.
    labels : (N,) integers that an option might depend on, such as the class or the known type of each input, in the
        order of the data: for the mutual information.
    groups : (N,) integers that are known without the answer, such as the type of each input or which texts are
        paraphrases: the headroom then has the best option of each group, cross-fitted.
    since : a report on the same data from before the training. None: the start is known where decisions start without a
        preference (``controller_init="zero"``), and else is left out.
    headroom : run every input at every option of one decision (True: of the position) and measure the losses. Costs as
        many passes over the data as there are options; the number is told before it starts.
    options : which ones to try; None: all. The options of a position are the splits 0..l, those of a size 1..l, those
        of a pool its prompts.
    loss : (outputs, labels) -> (B,) losses, such as :meth:`dplearn.LabelWordLoss.losses`, which gets the batch's
        "labels"; they are not shown to the model then. None: of the logits, as transformers computes them (a model's
        own weights of classes are not in them).
    seed : of shuffling and of halves.
    verbose : tell the cost, and show the progress of what takes long (on standard error).

    Raises
    ------
    TypeError : the model is no PromptedModel for one text or image (image-text models: use their own ``decide``).
    ValueError : ``labels``, ``groups`` or ``since`` do not fit the data; a decision that the prompt does not have;
        headroom of data without labels.

    A prompt that was not trained yet, on three texts; no losses are asked for:

    >>> from dplearn import PromptConfig, prompted, zoo
    >>> backbone, tokenizer = zoo.load("t5-mini")
    >>> model = prompted(backbone, PromptConfig(length=4, position="instance"))
    >>> texts = [dict(tokenizer(text)) for text in ("anna has a cat", "pat sees kim", "a red ball")]
    >>> print(decision_report(model, texts, collate=lambda rows: tokenizer.pad(rows, return_tensors="pt")))
    position: 5 options, 3 inputs: NOT LEARNED
      entropy (nats)      1.609 -> 1.609
      options used        1; 100.0% of the inputs share one
      total variation     0.000; 0.0% of the inputs changed their option
    """
    if not isinstance(model, PromptedModel):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a PromptedModel that reads a text or an image"
        )
    asked = _asked(model, headroom, options)
    with evaluating(model), torch.no_grad():
        run = _Run(model, data, collate, batch_size, loss, verbose)
        made, summaries = run.decide()
        count = len(next(iter(made.values())).index)
        labels, groups = _integers("labels", labels, count), _integers("groups", groups, count)
        first = _first(model, made, since, count)
        own = run.losses({}, "losses as decided") if made else None
        if asked is not None and own is None:
            raise ValueError("headroom needs losses, expected data with labels")
        of_decisions = run.evidence(made, first, labels, own, seed)
        room, table = None, None
        if asked is not None:
            tried = _options(model, asked, options)
            table = run.at_each(asked, tried)
            chosen = made[asked].index if asked in of_decisions else None
            chosen = chosen if chosen is None or set(chosen.tolist()) <= set(tried) else None
            room = headroom_of(table, tried, chosen, groups, summaries, seed)
    probabilities = {name: _probabilities(model, name, made[name]) for name in of_decisions}
    indices = {name: made[name].index for name in of_decisions}
    return DecisionReport(of_decisions, room, probabilities, indices, table, asked)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, and the mode of before afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _Run:
    """Passes over the data; batches are read once and kept."""

    def __init__(
        self,
        model: PromptedModel,
        data: Iterable[dict] | Sequence[dict],
        collate: Callable[[list[dict]], dict] | None,
        batch_size: int,
        loss: Callable | None,
        verbose: bool,
    ):
        if not is_whole(batch_size, 1):
            refuse("batch_size", batch_size, "an integer of at least 1")
        self.model, self.loss, self.verbose = model, loss, verbose
        self.batches = [model.accepted(batch) for batch in batches_of(data, collate, batch_size)]
        if not self.batches:
            raise ValueError("data is empty, expected at least one example")

    def _batch(self, batch: dict) -> tuple[dict, Tensor | None]:
        """The batch on the model's device, and the labels that its loss outside gets."""
        moved = {n: v.to(self.model.device) if isinstance(v, Tensor) else v for n, v in batch.items()}
        return moved, moved.pop("labels", None) if self.loss is not None else moved.get("labels")

    def decide(self) -> tuple[dict[str, Choice], Tensor | None]:
        """The choices for all inputs, and what instance-level decisions look at, if any does."""
        made, summaries = [], []
        for batch in told(self.batches, "deciding", verbose=self.verbose):
            batch, _ = self._batch(batch)
            if self.model.prompt.needs_summary:
                batch["summary"] = self.model.summarize(**batch)
                summaries.append(batch["summary"].cpu())
            made.append(self.model.decide(**batch))
        choices = {}
        for name in made[0]:
            choices[name] = _one_after_the_other([each[name] for each in made])
        return choices, torch.cat(summaries) if summaries else None

    def losses(self, decisions: dict[str, Choice], words: str | None = None) -> Tensor | None:
        """(N,) losses with these decisions, rows in the order of the data; None where the data has no labels.

        ``words`` : what is done, for the progress; None: what calls this tells it.
        """
        losses, start = [], 0
        for batch in told(self.batches, words or "", verbose=self.verbose and words is not None):
            batch, labels = self._batch(batch)
            if labels is None:
                return None
            count = len(labels)
            rows = slice(start, start + count)
            take = partial(_rows_on, rows, self.model.device)
            given = {name: choice.of_each(take) for name, choice in decisions.items()}
            outputs = self.model(**batch, decisions=given)
            measured = self._measured(outputs, labels)
            losses.append(measured.double().cpu())
            start += count
        return torch.cat(losses)

    def _measured(self, outputs: Any, labels: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(outputs, labels)
        return self.model.adapter.losses(outputs["logits"], labels)

    def evidence(
        self, made: dict[str, Choice], first: dict, labels: Tensor | None, own: Tensor | None, seed: int
    ) -> dict[str, Evidence]:
        """What each learned decision did, by name.

        Parameters
        ----------
        made : the decisions for all inputs, N of them.
        first : distributions and choices of the start, by name.
        labels : (N,) integers that a decision might depend on.
        own : (N,) losses under these decisions; None: there are none.
        """
        order = torch.randperm(
            len(next(iter(made.values())).index), generator=torch.Generator().manual_seed(seed)
        )
        of_decisions = {}
        for name in _learned(self.model):
            choice = made[name]
            dealt = None if own is None else self.losses({name: choice.picked(order)}, f"{name} of others")
            pi = _probabilities(self.model, name, choice)
            start, start_chosen = first[name]
            of_decisions[name] = evidence(pi, choice.index, start, start_chosen, labels, own, dealt, seed)
        return of_decisions

    def at_each(self, name: str, options: Sequence[int]) -> Tensor:
        """(N, n) losses with one decision held at each of the options."""
        count = sum(len(next(iter(batch.values()))) for batch in self.batches)
        if self.verbose:
            print(
                f"headroom of the {name}: {len(options)} options x {count} inputs, "
                f"{len(options) * len(self.batches)} batches to run",
                file=sys.stderr,
            )
        columns = []
        for option in told(options, f"headroom of the {name}", verbose=self.verbose):
            index = torch.full((count,), option)
            weights = None
            if name == "vector":
                weights = one_hot(index, self.model.prompt.vectors.shape[0]).to(
                    self.model.prompt.vectors.dtype
                )
            columns.append(self.losses({name: Choice(index, weights)}))
        return torch.stack([column for column in columns if column is not None], 1)


def _rows_on(rows: slice, device: torch.device, values: Tensor) -> Tensor:
    return values[rows].to(device)


def _one_after_the_other(choices: list[Choice]) -> Choice:
    """The choices for all batches as one, on the CPU."""

    def joined(parts: list[Tensor | None]) -> Tensor | None:
        there = [part.cpu() for part in parts if part is not None]
        return torch.cat(there) if there else None

    index = torch.cat([choice.index.cpu() for choice in choices])
    return Choice(index, *(joined([getattr(one, name) for one in choices]) for name in ("weights", "logits")))


def _asked(model: PromptedModel, headroom: bool | str, options: Sequence[int] | None) -> str | None:
    """The decision whose headroom is measured, or None."""
    if not headroom:
        if options is not None:
            refuse("options", options, "None without headroom")
        return None
    name = "position" if headroom is True else headroom
    known = [part for part in model.prompt.parts if model.prompt.takes(part)]
    if name not in known:
        refuse("headroom", headroom, f"a decision that this prompt can make for each input, one of {known}")
    return name


def _options(model: PromptedModel, name: str, options: Sequence[int] | None) -> tuple[int, ...]:
    prompt = model.prompt
    ranges = {
        "position": range(prompt.most + 1),
        "size": range(1, prompt.length + 1),
        "vector": range(len(prompt.vectors)),
    }
    every = tuple(ranges[name])
    if options is None:
        return every
    if not options or any(not is_whole(k) or k not in every for k in options):
        refuse("options", options, f"some of {every[0]}..{every[-1]}")
    return tuple(options)


def _learned(model: PromptedModel) -> list[str]:
    return [n for n, part in model.prompt.parts.items() if isinstance(part, (LearnedDecision, Mixture))]


def _probabilities(model: PromptedModel, name: str, choice: Choice) -> Tensor:
    """(N, n), what is sampled from in training, or the weights of a mixture."""
    part = model.prompt.parts[name]
    if isinstance(part, Mixture) and part.mixing != "hard":
        return learned(choice.weights).float()
    return learned(choice.logits).float().softmax(-1)


def _first(
    model: PromptedModel, made: dict[str, Choice], since: DecisionReport | None, count: int
) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Distributions and choices of the start, by name of the decision; None where nobody knows them."""
    if since is not None:
        for name in _learned(model):
            shape = tuple(since.probabilities[name].shape) if name in since.probabilities else None
            wanted = (count, learned(made[name].logits).shape[1])
            if shape != wanted:
                raise ValueError(
                    f"since has {shape} for {name!r}, expected a report of this model on the same data: {wanted}"
                )
        return {name: (since.probabilities[name], since.chosen[name]) for name in _learned(model)}
    if model.prompt_config.controller_init != "zero":
        return dict.fromkeys(_learned(model), (None, None))
    firsts: dict[str, tuple[Tensor | None, Tensor | None]] = {}
    for name in _learned(model):
        n = learned(made[name].logits).shape[1]
        even = torch.full((count, n), 1 / n)
        # Weights of a mixture have no option that evaluation takes; of equals it takes the last.
        part = model.prompt.parts[name]
        mixes = isinstance(part, Mixture) and part.mixing != "hard"
        firsts[name] = (even, None if mixes else torch.full((count,), n - 1))
    return firsts


def _integers(name: str, values: Any, count: int) -> Tensor | None:
    """Integers of at least 0, one for each input."""
    if values is None:
        return None
    labels = torch.as_tensor(values)
    if labels.shape != (count,) or labels.is_floating_point() or bool((labels < 0).any()):
        raise ValueError(
            f"{name}={shown(labels.tolist())} has shape {tuple(labels.shape)} and dtype {labels.dtype}, expected "
            f"integers of at least 0, one for each of the {count} inputs"
        )
    return labels.cpu().long()
