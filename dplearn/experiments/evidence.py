"""Evidence of learning: curves over a run, and what became of the decisions of a prompt between its first and last step.

A learned decision gives each input a distribution π over its options. A verdict on it means something only where π
moved: :func:`evidence_of` says how far, and how the inputs are spread over the options in the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from dplearn.controllers import LearnedDecision
from dplearn.experiments.scoring import BATCH, label_scores, metrics_of
from dplearn.model import PromptedModel
from dplearn.sampling import Choice
from dplearn.tasks import FAMILIES
from dplearn.vector import Mixture

POINTS = 20  # of a curve, besides the start
SUBSET = 64  # inputs of the validation split that curves look at
REACHED = 0.9


def learned_parts(model: PromptedModel) -> dict[str, LearnedDecision | Mixture]:
    """The decisions of a prompt that are learned, by name."""
    parts = model.prompt.parts.items()
    return {name: part for name, part in parts if isinstance(part, (LearnedDecision, Mixture))}


def distribution(part: LearnedDecision | Mixture, choice: Choice) -> Tensor:
    """π of a decision, (B, options): the weights of a mixture, or the softmax of the logits of a choice."""
    mixed = isinstance(part, Mixture) and part.chooser is None
    return choice.weights if mixed else choice.logits.softmax(-1)


def entropy(pi: Tensor) -> Tensor:
    """Entropy in nats of distributions (..., options).

    >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).mul(1000).round()
    tensor([693.,   0.])
    """
    return torch.special.entr(pi).sum(-1)


@torch.no_grad()
def decided(
    model: PromptedModel, examples: Sequence[dict], collate: Callable, fields: Sequence[str]
) -> dict[str, Tensor]:
    """π of each learned decision for each example, name -> (N, options), as evaluation decides.

    fields : of a batch, what the model decides about.
    """
    parts, training = learned_parts(model), model.training
    found: dict[str, list] = {name: [] for name in parts}
    model.eval()
    for start in range(0, len(examples) if parts else 0, BATCH):
        batch = collate([examples[i] for i in range(start, min(start + BATCH, len(examples)))])
        decisions = model.decide(**{name: batch[name].to(model.device) for name in fields})
        for name, part in parts.items():
            found[name].append(distribution(part, decisions[name]).float().cpu())
    model.train(training)
    return {name: torch.cat(pieces) for name, pieces in found.items() if pieces}


def mutual_information(options: Tensor, labels: Tensor) -> float:
    """Of two discrete variables, in nats, from pairs (N,), (N,)."""
    from sklearn.metrics import mutual_info_score

    return float(mutual_info_score(labels.tolist(), options.tolist()))


def compared(first: Tensor, last: Tensor, labels: Mapping[str, Tensor]) -> dict:
    """What became of a decision: ``first`` and ``last`` are its π for the same inputs, (N, options).

    Entropies (nats, means over inputs), the mean total variation between the two, how many options are the most likely
    one for some input (``used``), the share of inputs at the most used one, the share whose most likely option changed,
    the shares of all options, and the mutual information (nats) of the option with each of ``labels``.
    """
    before, after = first.argmax(-1), last.argmax(-1)
    shares = torch.bincount(after, minlength=last.shape[1]) / len(after)
    found = {
        "options": last.shape[1],
        "entropy_start": float(entropy(first).mean()),
        "entropy_end": float(entropy(last).mean()),
        "total_variation": float((first - last).abs().sum(-1).mean() / 2),
        "used": int((shares > 0).sum()),
        "most_used": float(shares.max()),
        "changed": float((before != after).float().mean()),
        "first_option": int(before.mode().values),
        "last_option": int(after.mode().values),
    }
    found |= {f"information_{name}": mutual_information(after, values) for name, values in labels.items()}
    return {name: round(value, 4) for name, value in found.items()} | {
        "shares": [round(share, 4) for share in shares.tolist()]
    }


def right_share(task, examples: Sequence[Mapping], splits: Tensor, length: int) -> float | None:
    """Share of examples whose split (N,) is a right one, on a task that knows them (``share_right`` of its module,
    from the types of its examples); None on others."""
    known = share_right_of(task)
    if known is None:
        return None
    return round(known(task.name, [example["type"] for example in examples], splits.tolist(), length), 4)


def share_right_of(task) -> Callable | None:
    """The function ``share_right`` of a task's module, if it has one."""
    module = FAMILIES.get(task.name.partition("/")[0])
    return None if module is None else getattr(import_module(module), "share_right", None)


def evidence_of(
    model: PromptedModel,
    examples: Sequence[dict],
    collate: Callable,
    fields: Sequence[str],
    first: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
) -> dict:
    """The decision report of a run: for each learned decision what :func:`compared` says, by name."""
    last = decided(model, examples, collate, fields)
    return {name: compared(first[name], last[name], labels) for name in last}


class Watch(TrainerCallback):
    """Looks at a run about twenty times, on the same few validation examples, and once at a third of its steps.

    It draws no random numbers: a run that is watched is the same run.

    Parameters
    ----------
    encode : the examples of a split, by its name.
    read : logits of the model -> scores of the labels.
    fields : what the model decides about.
    loss : gives the mean training loss since it was asked last.
    splits : what is scored at a third of the steps; none: nothing.
    """

    def __init__(
        self, model, task, encode, collate, read, fields, loss, steps, bf16=False, splits=()
    ):  # fmt: skip
        self.model, self.task, self.encode, self.collate = model, task, encode, collate
        self.read, self.fields, self.loss, self.bf16, self.splits = read, fields, loss, bf16, splits
        self.points = {round(i * steps / POINTS) for i in range(POINTS + 1)}
        self.third, self.seconds = steps // 3, 0.0
        self.curves: dict[str, list] = {"steps": [], "loss": [], "score": [], "cross_entropy": []}
        self.at_a_third: dict | None = None
        rows, count = encode("validation"), len(task.examples("validation"))
        self.chosen = [i * count // SUBSET for i in range(SUBSET)] if count > SUBSET else list(range(count))
        self.rows = [rows[i] for i in self.chosen]
        self.examples = [task.examples("validation")[i] for i in self.chosen]
        self.labels = torch.tensor([example["label"] for example in self.examples])

    def on_train_begin(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **kwargs):
        start = time.perf_counter()
        if state.global_step in self.points:
            self._look(state.global_step)
        if self.splits and state.global_step == self.third:
            self.at_a_third = {
                split: metrics_of(self.task, split, self._scores(self.encode(split)))[0]
                for split in self.splits
            }
        self.seconds += time.perf_counter() - start  # not a part of what training costs

    def _scores(self, rows) -> Tensor:
        return label_scores(self.model, rows, self.collate, self.read, self.bf16)

    def _look(self, step: int) -> None:
        scores, curves = self._scores(self.rows), self.curves
        curves["steps"].append(step)
        curves["loss"].append(None if step == 0 else round(self.loss(), 4))
        curves["score"].append(round(float((scores.argmax(1) == self.labels).float().mean()), 4))
        curves["cross_entropy"].append(round(float(cross_entropy(scores, self.labels)), 4))
        pis = decided(self.model, self.rows, self.collate, self.fields)
        for name, pi in pis.items():
            curves.setdefault(f"entropy_{name}", []).append(round(float(entropy(pi).mean()), 4))
        if "position" in pis:
            right = right_share(
                self.task, self.examples, pis["position"].argmax(-1), self.model.prompt.length
            )
            if right is not None:
                curves.setdefault("right_split", []).append(right)

    def reached(self) -> int | None:
        """The first step on the curve with at least nine of ten right answers, or None."""
        pairs = zip(self.curves["steps"], self.curves["score"])
        return next((step for step, score in pairs if score >= REACHED), None)


class Objective:
    """A loss with a bonus for the entropy of learned decisions, which keeps its mean for the curves.

    Parameters
    ----------
    loss : the loss of a batch, called as the Trainer calls ``compute_loss_func``.
    bonus : factor of the mean entropy (nats) that is subtracted, summed over the decisions.
    """

    def __init__(self, loss: Callable, model: PromptedModel, bonus: float = 0.0):
        self.inner, self.bonus = loss, bonus
        self._entropies: list[Tensor] = []
        self._values: list[Tensor] = []
        if bonus:
            for part in learned_parts(model).values():
                part.register_forward_hook(self._keep)

    def _keep(self, part, arguments, choice: Choice) -> None:
        if choice.logits is not None and choice.logits.requires_grad:
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
        values, self._values = self._values, []
        return float(torch.stack(values).mean()) if values else math.nan
