"""What is seen of a run besides its scores: curves, the report on its decisions, the share of right splits.

A learned decision gives each input a distribution π over its options. A verdict on it means something only where π
moved; :func:`dplearn.decision_report` says how far, and how the inputs are spread over the options in the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from dplearn.controllers import LearnedDecision
from dplearn.evidence import entropy
from dplearn.experiments.scoring import BATCH, batch_size, label_scores, metrics_of
from dplearn.model import PromptedModel
from dplearn.report import DecisionReport
from dplearn.reporting import decision_report
from dplearn.sampling import Choice
from dplearn.tasks import FAMILIES
from dplearn.tasks.base import Task
from dplearn.training import LabelWordLoss
from dplearn.vector import Mixture

HEADROOM = 9  # splits at which it holds a prompt, at most
REACHED = 0.9


def learned_parts(model: PromptedModel) -> dict[str, LearnedDecision | Mixture]:
    """The decisions of a prompt that are learned, by name."""
    parts = model.prompt.parts.items()
    return {name: part for name, part in parts if isinstance(part, (LearnedDecision, Mixture))}


def distribution(part: LearnedDecision | Mixture, choice: Choice) -> Tensor:
    """π of a decision, (B, options): the weights of a mixture, or the softmax of the logits of a choice."""
    mixed = isinstance(part, Mixture) and part.chooser is None
    return choice.weights if mixed else choice.logits.softmax(-1)


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


@torch.no_grad()
def chosen_splits(
    model: PromptedModel, examples: Sequence[dict], collate: Callable, fields: Sequence[str]
) -> Tensor:
    """The split k of each example, (N,), in evaluation. ``fields`` of a batch are what the model decides about."""
    model.eval()
    found = []
    for start in range(0, len(examples), 256):
        batch = collate([examples[i] for i in range(start, min(start + 256, len(examples)))])
        chosen = model.decide(**{name: batch[name].to(model.device) for name in fields})
        found.append(chosen["position"].index.cpu())
    return torch.cat(found)


def positions(
    model: PromptedModel, examples: Sequence[dict], collate: Callable, fields: Sequence[str]
) -> list[float]:
    """Share of examples whose prompt stands at each split k = 0..l, in evaluation; see :func:`chosen_splits`."""
    chosen = chosen_splits(model, examples, collate, fields)
    counts = torch.bincount(chosen, minlength=model.prompt.length + 1).float()
    return [round(share, 4) for share in (counts / counts.sum()).tolist()]


def right_shares(run: TextRun, splits: Sequence[str]) -> dict:
    """Share of examples at a right split, by the name of the (data) split, as a part of a row; of a task that knows the
    right ones (``share_right`` of its module, from the types of its examples). Nothing on others."""
    if share_right_of(run.task) is None:
        return {}
    return {
        "right_split": {
            split: run.right_share(run.encode(split), run.task.examples(split)) for split in splits
        }
    }


def share_right_of(task) -> Callable | None:
    """The function ``share_right`` of a task's module, if it has one."""
    module = FAMILIES.get(task.name.partition("/")[0])
    return None if module is None else getattr(import_module(module), "share_right", None)


def some(examples: Sequence, count: int) -> list[int]:
    """Indices of at most so many examples, evenly spread over all.

    >>> some("abcdef", 3), some("ab", 3)
    ([0, 2, 4], [0, 1])
    """
    total = len(examples)
    return [i * total // count for i in range(count)] if total > count else list(range(total))


@dataclass(frozen=True)
class TextRun:
    """A model at work on a text task.

    encode : the encoded examples of a split, by its name.
    collate : examples -> a batch.
    loss : over the label words.
    """

    model: nn.Module
    task: Task
    encode: Callable[[str], Sequence[dict]]
    collate: Callable[[list[dict]], Mapping[str, Tensor]]
    loss: LabelWordLoss
    bf16: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a batch that a prompt decides about."""
        behind = () if self.model.config.is_encoder_decoder else ("keep_last",)
        config = getattr(self.model, "prompt_config", None)
        tasks = ("task_ids",) if config is not None and config.tasks else ()
        return ("input_ids", "attention_mask", *behind, *tasks)

    def decided_about(self, split: str) -> list[dict]:
        """The examples of a split without their answers, as a prompt decides about them."""
        return [{name: row[name] for name in self.fields} for row in self.encode(split)]

    def scores(self, rows: Sequence[dict]) -> Tensor:
        """Logits of the label words, (N, labels)."""
        return label_scores(self.model, rows, self.collate, self.loss.scores, self.bf16)

    def scored(self, split: str) -> tuple[dict[str, float], float]:
        """Metrics and cross-entropy of a split."""
        return metrics_of(self.task, split, self.scores(self.encode(split)))

    def right_share(self, rows: Sequence[dict], examples: Sequence[Mapping]) -> float:
        """Share of examples at a right split."""
        chosen = chosen_splits(self.model, rows, self.collate, self.fields)
        known, types = share_right_of(self.task), [example["type"] for example in examples]
        return round(known(self.task.name, types, chosen.tolist(), self.model.prompt.length), 4)


def evidence_of(
    run: TextRun, split: str, count: int, since: DecisionReport | None = None, headroom: bool = False
) -> DecisionReport:
    """The report on the decisions of a run over at most ``count`` examples of a split.

    since : the report of its start, None there: then nothing but distributions is asked for.
    headroom : hold the prompt at (up to nine of) its splits too.
    """
    rows, examples = run.encode(split), run.task.examples(split)
    chosen = some(rows, count)
    rows = [dict(rows[i]) for i in chosen]
    asked = {}
    if since is None:
        for row in rows:
            del row["labels"]
    else:
        known = "type" if "type" in examples[0] else "label"
        asked = {"labels": [examples[i][known] for i in chosen], "since": since}
    if headroom:
        splits = range(run.model.prompt.most + 1)
        asked |= {"headroom": True, "options": [splits[i] for i in some(splits, HEADROOM)]}
    return decision_report(
        run.model,
        rows,
        collate=run.collate,
        batch_size=batch_size(rows),
        loss=run.loss.losses,
        verbose=False,
        **asked,
    )


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
        run: TextRun,
        loss: Callable[[], float],
        steps: int,
        looks: Looks = Looks(),
        splits: Sequence[str] = (),
    ):
        self.run, self.loss, self.splits = run, loss, splits if looks.thirds else ()
        self.points = {round(i * steps / looks.points) for i in range(looks.points + 1)}
        self.third, self.seconds = steps // 3, 0.0
        self.curves: dict[str, list] = {"steps": [], "loss": [], "score": [], "cross_entropy": []}
        self.at_a_third: dict | None = None
        rows, examples = run.encode("validation"), run.task.examples("validation")
        self.rows = [rows[i] for i in some(rows, looks.subset)]
        self.examples = [examples[i] for i in some(examples, looks.subset)]
        self.labels = torch.tensor([example["label"] for example in self.examples])

    def on_train_begin(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **kwargs):
        start = time.perf_counter()
        if state.global_step in self.points:
            self._look(state.global_step)
        if self.splits and state.global_step == self.third:
            self.at_a_third = {split: self.run.scored(split)[0] for split in self.splits}
        self.seconds += time.perf_counter() - start  # not a part of what training costs

    def _look(self, step: int) -> None:
        run, curves, scores = self.run, self.curves, self.run.scores(self.rows)
        curves["steps"].append(step)
        curves["loss"].append(None if step == 0 else round(self.loss(), 4))
        curves["score"].append(round(float((scores.argmax(1) == self.labels).float().mean()), 4))
        curves["cross_entropy"].append(round(float(cross_entropy(scores, self.labels)), 4))
        for name, pi in decided(run.model, self.rows, run.collate, run.fields).items():
            curves.setdefault(f"entropy_{name}", []).append(round(float(entropy(pi).mean()), 4))
        if "entropy_position" in curves and share_right_of(run.task) is not None:
            curves.setdefault("right_split", []).append(run.right_share(self.rows, self.examples))

    def found(self) -> dict:
        """What was seen, as a part of a row; ``steps_to_90`` is the first step on the curve with at least nine of ten
        right answers, or None."""
        pairs = zip(self.curves["steps"], self.curves["score"])
        first = next((step for step, score in pairs if score >= REACHED), None)
        return {"curves": self.curves, "steps_to_90": first, "at_a_third": self.at_a_third}


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
