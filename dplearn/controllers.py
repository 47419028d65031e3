"""Where the logits of a decision come from: a learned vector (task level) or one linear layer (instance level).

A task-level controller makes one decision for the whole task. An instance-level controller looks at a summary of each
input: the masked mean of its frozen input embeddings, or of the frozen encoder's last hidden states. A decision
(:class:`FixedDecision`, :class:`LearnedDecision`) turns either into a :class:`~dplearn.choice.Choice`; position, size
and hard vectors all are such decisions.

Paper: Yang et al. (2023), section 3.2 ("adap_pos" and "adap_ins_pos").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dplearn.choice import Chooser
from dplearn.sampling import Choice

LEARNED = ("task", "instance")


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
    build: Callable[[object, int, Callable[[], Chooser]], nn.Module | None]
    words: Callable[[object], Words]
    sampled: Callable[[object], bool]
    check: Callable[[object], object] = lambda options: None


def learned_in_words(level: str, options) -> str:
    """How a learned decision comes about, for a card; ``options`` are the flat options of a prompt."""
    if level == "instance":
        seen = {"encoder": "the encoder's view", "image": "the model's view of it"}
        looked_at = seen.get(options.summary, "the mean of its embeddings")
        what = "image" if options.summary == "image" or options.towers == "vision" else "input"
        return f"decided for each {what} from {looked_at}"
    return "learned for each task" if options.tasks and len(options.tasks) > 1 else "learned for the task"


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens only: (B, T, d), (B, T) -> (B, d), in float32; a row without real tokens gives 0.

    The authors' code averages over padding too, so that the same sentence gives another summary in another batch.

    >>> masked_mean(torch.tensor([[[2.0], [4.0], [99.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[3.]])
    """
    if mask.shape != states.shape[:2]:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, expected {tuple(states.shape[:2])} as the states"
        )
    dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
    weights = mask.to(dtype)
    total = torch.einsum("btd,bt->bd", states.to(dtype), weights)
    return total / weights.sum(1, keepdim=True).clamp_min(1)


class TaskController(nn.Module):
    """Logits that are the same for every input of a task: one learned vector (n,) for each task.

    Initialised from U(-0.5, 0.5), as in the authors' code (which has one task).
    """

    looks_at_input = False

    def __init__(self, options: int, tasks: int = 1):
        super().__init__()
        self.logits = nn.Parameter(torch.empty(tasks, options).uniform_(-0.5, 0.5))

    def forward(self, summary: Tensor, task: Tensor | None = None) -> Tensor:
        """Logits (B, n) for summaries (B, ...), of which only the batch size is read, and task numbers (B,)."""
        if task is None:
            return self.logits[:1].expand(summary.shape[0], -1)
        return self.logits.index_select(0, task)

    def add_task(self) -> None:
        """Append the logits of one more task; those of the others keep their values."""
        fresh = torch.empty_like(self.logits[:1]).uniform_(-0.5, 0.5)
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

    Two deviations from the authors' code. No ReLU on the logits: where all are negative it gives the uniform
    distribution and no gradient. And the summary is normalised to mean 0 and variance 1 over its d entries (no
    parameters), so that the size of the logits does not depend on the backbone's embedding scale.
    """

    looks_at_input = True

    def __init__(self, width: int, options: int):
        super().__init__()
        self.linear = nn.Linear(width, options)

    @property
    def options(self) -> int:
        """n, how many options there are."""
        return self.linear.out_features

    def forward(self, summary: Tensor, task: Tensor | None = None) -> Tensor:
        """Logits (B, n); ``task`` is not used."""
        normal = nn.functional.layer_norm(summary.to(self.linear.weight.dtype), summary.shape[-1:])
        return self.linear(normal)


def make_controller(level: str, width: int, options: int, tasks: int = 1) -> nn.Module:
    """The controller of a level, "task" or "instance"."""
    return TaskController(options, tasks) if level == "task" else InstanceController(width, options)


def make_decision(
    option: int | None, level: str | int, width: int, options, chooser: Callable[[], Chooser]
) -> FixedDecision | LearnedDecision:
    """The decision for one of the l + 1 counts of prompt vectors: fixed at ``option``, or (None) learned at a level."""
    if option is not None:
        return FixedDecision(option)
    tasks = 1 if options.tasks is None else len(options.tasks)
    return LearnedDecision(make_controller(level, width, options.length + 1, tasks), chooser())


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
        self.controller = controller
        self.chooser = chooser

    @property
    def looks_at_input(self) -> bool:
        return self.controller.looks_at_input

    def forward(self, summary: Tensor, task: Tensor | None = None, sampling: bool | None = None) -> Choice:
        """The choice for each instance; ``sampling`` as in :class:`~dplearn.choice.Chooser`."""
        return self.chooser(self.controller(summary, task), sampling)

    def tried(self, choice: Choice, index: Tensor) -> Choice:
        """The choice of other options, ``index`` (N,), than those of ``choice``."""
        return Choice(index)

    def entries_in_use(self) -> dict[str, int]:
        """How many entries of each parameter can change an output: all."""
        return {name: parameter.numel() for name, parameter in self.named_parameters()}
