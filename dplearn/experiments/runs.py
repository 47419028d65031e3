"""A model at work on a task, as it is asked while and after it trains: logits, metrics, decisions, a report on them.

A learned decision gives each input a distribution π over its options. A verdict on it means something only where π
moved; :func:`dplearn.decision_report` says how far, and how the inputs are spread over the options in the end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import default_data_collator

from dplearn.controllers import LearnedDecision
from dplearn.experiments.scoring import BATCH, batch_size, by_length, label_logits, labels_of, metrics_of
from dplearn.named_prompts import NamedPrompts
from dplearn.report import DecisionReport
from dplearn.reporting import decision_report, evaluating
from dplearn.sampling import Choice, learned
from dplearn.tasks import FAMILIES
from dplearn.tasks.base import Task
from dplearn.tasks.images import ImageTask
from dplearn.training import LabelWordLoss
from dplearn.vector import Mixture

HEADROOM = 9  # splits at which it holds a prompt, at most


def learned_parts(model: nn.Module) -> dict[str, LearnedDecision | Mixture]:
    """The decisions of a prompt that are learned, by name; a model without a prompt has none."""
    parts = model.prompt.parts.items() if isinstance(model, NamedPrompts) else ()
    return {name: part for name, part in parts if isinstance(part, (LearnedDecision, Mixture))}


def distribution(part: LearnedDecision | Mixture, choice: Choice) -> Tensor:
    """π of a decision, (B, options): the weights of a mixture, or the softmax of the logits of a choice."""
    mixed = isinstance(part, Mixture) and part.mixing != "hard"
    return learned(choice.weights) if mixed else learned(choice.logits).softmax(-1)


def some(examples: Sequence, count: int) -> list[int]:
    """Indices of at most so many examples, evenly spread over all.

    >>> some("abcdef", 3), some("ab", 3)
    ([0, 2, 4], [0, 1])
    """
    total = len(examples)
    return [i * total // count for i in range(count)] if total > count else list(range(total))


@dataclass(frozen=True)
class Run:
    """A model at work on a task; see its kinds.

    model : gives "logits", and decides where it has a prompt that learns to.
    encode : the encoded examples of a split, by its name.
    collate : examples -> a batch.
    bf16 : matrix products in bfloat16, as in training.
    """

    model: Any  # a prompted model, or a module without a prompt
    task: Task | ImageTask
    encode: Callable[[str], Sequence[dict]]
    collate: Callable[[list[dict]], Mapping[str, Tensor]]
    bf16: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a batch that a prompt decides about."""
        raise NotImplementedError

    @property
    def losses(self) -> Callable | None:
        """(outputs, labels) -> the loss of each example, (B,); None: the model's own loss."""
        return None

    def labels(self, split: str) -> Tensor:
        """Label indices (N,)."""
        return labels_of(self.task.examples(split))

    def logits(self, rows: Sequence[dict]) -> Tensor:
        """Logits of the labels (N, labels), in evaluation."""
        return label_logits(self.model, rows, self.collate, self.label_columns, self.bf16)

    def label_columns(self, logits: Tensor) -> Tensor:
        """Logits of the labels (B, labels) from the model's own."""
        return logits

    def scored(self, split: str) -> tuple[dict[str, float], float]:
        """Metrics and cross-entropy of a split."""
        return metrics_of(self.task, split, self.logits(self.encode(split)))

    @torch.no_grad()
    def choices(self, rows: Sequence[dict]) -> dict[str, Choice]:
        """What is decided for each example in evaluation, by name of the decision."""
        made = []
        with evaluating(self.model):
            for start in range(0, len(rows), BATCH):
                batch = self.collate([rows[i] for i in range(start, min(start + BATCH, len(rows)))])
                decided = self.model.decide(
                    **{name: batch[name].to(self.model.device) for name in self.fields}
                )
                made.append(decided)
        return {name: _joined([each[name] for each in made]) for name in made[0]}

    def distributions(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """π of each learned decision for each example, name -> (N, options)."""
        parts = learned_parts(self.model)
        made = self.choices(rows) if parts else {}
        return {name: distribution(part, made[name]).float() for name, part in parts.items()}

    def splits_chosen(self, rows: Sequence[dict]) -> Tensor:
        """The split k of each example, (N,)."""
        return self.choices(rows)["position"].index

    def positions(self, split: str) -> list[float]:
        """Share of examples whose prompt stands at each split k = 0..l."""
        chosen = self.splits_chosen(self.encode(split))
        counts = torch.bincount(chosen, minlength=self.model.prompt.length + 1).float()
        return [round(share, 4) for share in (counts / counts.sum()).tolist()]

    def report(
        self, split: str, count: int, since: DecisionReport | None = None, headroom: bool = False
    ) -> DecisionReport:
        """The report on the decisions over at most ``count`` examples of a split.

        since : the report of the start, None there: then nothing but distributions is asked for.
        headroom : hold the prompt at (up to nine of) its splits too.
        """
        rows = self.encode(split)
        chosen = by_length(rows, some(rows, count))
        rows = [dict(rows[i]) for i in chosen]
        asked: dict = {}
        if since is None:
            for row in rows:
                del row["labels"]
        else:
            asked = {"labels": self.known(split, chosen), "since": since}
        if headroom:
            splits = range(self.model.prompt.most + 1)
            asked |= {"headroom": True, "options": [splits[i] for i in some(splits, HEADROOM)]}
        given: dict[str, Any] = {
            "collate": self.collate,
            "batch_size": batch_size(rows),
            "loss": self.losses,
            "verbose": False,
        }
        return decision_report(self.model, rows, **given, **asked)

    def known(self, split: str, chosen: Sequence[int]) -> list:
        """What is known of some examples that a decision might depend on: their labels."""
        labels = self.labels(split)
        return [int(labels[i]) for i in chosen]


def _joined(choices: Sequence[Choice]) -> Choice:
    """The choices of batches as those of all examples, on the CPU."""
    index, weights, logits = (
        None if parts[0] is None else torch.cat(parts).cpu() for parts in zip(*choices, strict=True)
    )
    return Choice(cast(Tensor, index), weights, logits)


@dataclass(frozen=True)
class TextRun(Run):
    """A model at work on a text task. loss : over the label words."""

    loss: LabelWordLoss = None  # type: ignore[assignment]  # given by `run_of`

    @property
    def fields(self) -> tuple[str, ...]:
        behind = () if self.model.config.is_encoder_decoder else ("keep_last",)
        config = getattr(self.model, "prompt_config", None)
        tasks = ("task_ids",) if config is not None and config.tasks else ()
        return ("input_ids", "attention_mask", *behind, *tasks)

    @property
    def losses(self) -> Callable:
        return self.loss.losses

    def label_columns(self, logits: Tensor) -> Tensor:
        return self.loss.word_logits(logits)

    def decided_about(self, split: str) -> list[dict]:
        """The examples of a split without their labels, as a prompt decides about them."""
        return [{name: row[name] for name in self.fields} for row in self.encode(split)]

    def known(self, split: str, chosen: Sequence[int]) -> list:
        examples = self.task.examples(split)
        name = "type" if "type" in examples[0] else "label"
        return [examples[i][name] for i in chosen]

    def right_share(self, rows: Sequence[dict], examples: Sequence[Mapping]) -> float:
        """Share of examples at a right split."""
        known = cast(Callable, share_right_of(self.task))
        types = [example["type"] for example in examples]
        chosen = self.splits_chosen(rows).tolist()
        return round(known(self.task.name, types, chosen, self.model.prompt.length), 4)


@dataclass(frozen=True)
class ImageRun(Run):
    """A model at work on an image task."""

    collate: Callable[[list[dict]], Mapping[str, Tensor]] = default_data_collator

    @property
    def fields(self) -> tuple[str, ...]:
        return ("pixel_values",)


def right_shares(run: Run, splits: Sequence[str]) -> dict:
    """Share of examples at a right split, by the name of the (data) split, as a part of a row; of a task that knows the
    right ones (``share_right`` of its module, from the types of its examples). Nothing on others, or without a prompt.
    """
    if share_right_of(run.task) is None or not isinstance(run.model, NamedPrompts):
        return {}
    shares = {
        split: cast(TextRun, run).right_share(run.encode(split), run.task.examples(split)) for split in splits
    }
    return {"right_split": shares}


def share_right_of(task) -> Callable | None:
    """The function ``share_right`` of a task's module, if it has one."""
    module = FAMILIES.get(task.name.partition("/")[0])
    return None if module is None else getattr(import_module(module), "share_right", None)
