"""Where the logits of a decision come from: a learned vector (task level) or one linear layer (instance level).

A task-level controller makes one decision for the whole task. An instance-level controller looks at a summary of each
input: the masked mean of its frozen input embeddings, or of the frozen encoder's last hidden states, standardized over
the training data (:mod:`dplearn.summaries`). A decision (:class:`FixedDecision`, :class:`LearnedDecision`) turns either
into a :class:`~dplearn.choice.Choice`; position, size and hard vectors all are such decisions.

Paper: Yang et al. (2023), section 3.2 ("adap_pos" and "adap_ins_pos").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dplearn.checks import OneOf, is_whole, shown
from dplearn.choice import Chooser
from dplearn.sampling import Choice
from dplearn.summaries import Standardizer

LEARNED = ("task", "instance")
INITS = ("zero", "uniform")  # first values of a controller


class Words(NamedTuple):
    """A decision in words, for a card: where it is made ("fixed", "task", "instance", ...) and what it is."""

    level: str
    words: str


class Decision(NamedTuple):
    """What is to be known of a decision: a row of :data:`dplearn.config.DECISIONS`. Each takes the flat options.

    title: the question that it answers, as a card asks it.
    build: options, width of what instance-level controllers look at, maker of choosers -> the module, or None where
        there is nothing to decide.
    words: options -> the decision in words.
    sampled: options -> whether one of many is sampled (so that an estimator matters).
    check: options -> ValueError where they do not fit each other.
    """

    title: str
    build: Callable[[Any, int, Callable[[], Chooser]], nn.Module | None]
    words: Callable[[Any], Words]
    sampled: Callable[[Any], bool]
    check: Callable[[Any], object] = lambda options: None


def learned_in_words(level: str, options: Any) -> str:
    """How a learned decision comes about, for a card; ``options`` are the flat options of a prompt."""
    if level == "instance":
        seen = {"encoder": "the encoder's view", "image": "the model's view of it"}
        looked_at = seen.get(options.summary, "the mean of its embeddings")
        what = "image" if options.summary == "image" or options.towers == "vision" else "input"
        return f"decided for each {what} from {looked_at}"
    return "learned for each task" if options.tasks and len(options.tasks) > 1 else "learned for the task"


class TaskController(nn.Module):
    """Logits that are the same for every input of a task: one learned vector (n,) for each task.

    Parameters
    ----------
    options : n, how many options there are.
    tasks : how many tasks.
    init : "zero" (every option equally likely) or "uniform", in (-0.5, 0.5) as in the authors' code (which has one
        task).
    """

    looks_at_input = False

    def __init__(self, options: int, tasks: int = 1, init: str = "zero"):
        super().__init__()
        OneOf(INITS)("init", init)
        self.init = init
        self.logits = nn.Parameter(self._first(tasks, options))

    def _first(self, tasks: int, options: int) -> Tensor:
        first = torch.zeros(tasks, options)
        return first if self.init == "zero" else first.uniform_(-0.5, 0.5)

    def forward(self, summary: Tensor, task: Tensor | None = None) -> Tensor:
        """Logits (B, n) for summaries (B, ...), of which only the batch size is read, and task numbers (B,)."""
        if task is None:
            return self.logits[:1].expand(summary.shape[0], -1)
        return self.logits.index_select(0, task)

    def add_task(self) -> None:
        """Append the logits of one more task; those of the others keep their values."""
        fresh = self._first(1, self.options).to(self.logits)
        self.logits = nn.Parameter(torch.cat([self.logits.detach(), fresh]))

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return self.logits.shape[0]

    @property
    def options(self) -> int:
        """n, how many options there are."""
        return self.logits.shape[1]


class InstanceController(nn.Module):
    """Logits from one linear layer on a summary of the input, shared by all tasks: (B, d) -> (B, n).

    Deviations from the authors' code. No ReLU on the logits: where all are negative it gives the uniform distribution
    and no gradient. The summary is normalised to mean 0 and variance 1 over its d entries (no parameters), so that the
    size of the logits does not depend on the backbone's embedding scale. Then each entry is standardized over the
    training data, so that what all inputs have in common has no say (:class:`~dplearn.summaries.Standardizer`).

    Parameters
    ----------
    width : d, the width of a summary.
    options : n, how many options there are.
    standardize : whether summaries are standardized over the training data.
    init : "zero" (every option equally likely for every input) or "uniform", torch's usual first values of a layer.
    """

    looks_at_input = True

    def __init__(self, width: int, options: int, standardize: bool = True, init: str = "zero"):
        super().__init__()
        OneOf(INITS)("init", init)
        self.linear = nn.Linear(width, options)
        if init == "zero":
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        self.standardizer = Standardizer(width) if standardize else None

    @property
    def options(self) -> int:
        """n, how many options there are."""
        return self.linear.out_features

    def forget(self) -> None:
        """Forget the statistics by which summaries are standardized."""
        if self.standardizer is not None:
            self.standardizer.reset()

    def observe(self, summary: Tensor) -> None:
        """Take summaries (B, d) of training inputs into the statistics by which summaries are standardized."""
        if self.standardizer is not None:
            self.standardizer.observe(self._normalized(summary))

    def forward(self, summary: Tensor, task: Tensor | None = None) -> Tensor:
        """Logits (B, n); ``task`` is not used."""
        seen = self._normalized(summary)
        return self.linear(seen if self.standardizer is None else self.standardizer(seen))

    def _normalized(self, summary: Tensor) -> Tensor:
        return nn.functional.layer_norm(summary.to(self.linear.weight.dtype), summary.shape[-1:])


def make_controller(level: str, width: int, options: int, config: Any) -> nn.Module:
    """The controller of a level, "task" or "instance", of n = ``options``; ``config`` holds a prompt's flat options."""
    if level == "task":
        tasks = 1 if config.tasks is None else len(config.tasks)
        return TaskController(options, tasks, config.controller_init)
    return InstanceController(width, options, config.standardize, config.controller_init)


def logits_of(
    controller: nn.Module, summary: Tensor, task: Tensor | None, sampling: bool | None, training: bool
) -> Tensor:
    """A controller's logits (B, n). While training (or ``sampling``), it observes the summaries first."""
    if (training if sampling is None else sampling) and isinstance(controller, InstanceController):
        controller.observe(summary)
    return controller(summary, task)


def as_choice(name: str, value: object, batch: int, options: int, device: torch.device | str) -> Choice:
    """A choice that was made elsewhere: an option for all, one for each instance (B,), or a Choice.

    Raises
    ------
    ValueError : not an option in 0..options-1, or not one for each instance.
    """
    expected = f"expected a number in 0..{options - 1}, one for each of the {batch} instances, or a Choice"
    index: Any = value.index if isinstance(value, Choice) else value
    if is_whole(index):
        index = torch.full((batch,), index)
    if not isinstance(index, Tensor) or index.is_floating_point() or index.shape != (batch,):
        what = f"shape {tuple(index.shape)}" if isinstance(index, Tensor) else shown(index)
        raise ValueError(f"decisions[{name!r}] has {what}, {expected}")
    if index.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        if not 0 <= int(index.min()) <= int(index.max()) < options:
            raise ValueError(f"decisions[{name!r}] holds {index.min()}..{index.max()}, {expected}")
    index = index.to(device, torch.int64)
    return value._replace(index=index) if isinstance(value, Choice) else Choice(index)


def make_decision(
    option: int | None, level: Any, width: int, options: Any, chooser: Callable[[], Chooser]
) -> FixedDecision | LearnedDecision:
    """The decision for one of the l + 1 counts of prompt vectors: fixed at ``option``, or (None) learned at a level."""
    if option is not None:
        return FixedDecision(option)
    return LearnedDecision(make_controller(level, width, options.length + 1, options), chooser())


class FixedDecision(nn.Module):
    """The same option for every input; no parameters."""

    looks_at_input = False

    def __init__(self, option: int):
        super().__init__()
        self.option = option

    def forward(self, summary: Tensor, task: Tensor | None = None, sampling: bool | None = None) -> Choice:
        """summary: any tensor with the batch first; only its batch size and device are read."""
        return Choice(torch.full((summary.shape[0],), self.option, device=summary.device))

    def entries_in_use(self) -> dict[str, int]:
        """How many entries of each parameter can change an output: there are none."""
        return {}


class LearnedDecision(nn.Module):
    """One of n options, by a controller's logits and a chooser.

    Parameters
    ----------
    controller : maps a summary (B, d) and task numbers (B,) to logits (B, n).
    chooser : turns logits into a choice: sampled in training, argmax in evaluation.
    """

    def __init__(self, controller: nn.Module, chooser: Chooser):
        super().__init__()
        self.controller: Any = controller
        self.chooser = chooser

    @property
    def looks_at_input(self) -> bool:
        return self.controller.looks_at_input

    def forward(self, summary: Tensor, task: Tensor | None = None, sampling: bool | None = None) -> Choice:
        """The choice for each instance; ``sampling`` as in :class:`~dplearn.choice.Chooser`."""
        return self.chooser(logits_of(self.controller, summary, task, sampling, self.training), sampling)

    def tried(self, choice: Choice, index: Tensor) -> Choice:
        """The choice of other options, ``index`` (N,), than those of ``choice``."""
        return Choice(index)

    def entries_in_use(self) -> dict[str, int]:
        """How many entries of each parameter can change an output: all."""
        return {name: parameter.numel() for name, parameter in self.named_parameters()}
