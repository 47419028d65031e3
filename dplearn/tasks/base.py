"""What a text task is: examples in fixed splits, one template, one answer word per label, one metric.

A task follows the word-level protocol of the paper: the filled template goes into the frozen model, the
logits of the label words are read at the answer position (the last label position), cross-entropy is taken
over these words alone, and the prediction is the argmax over them. This module holds the data side of it;
losses live in `dplearn.training`.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from dplearn.checks import is_whole
from dplearn.tasks.encoding import CLASSIFIER, Encoded, encode, fill, form_of, template_fields, word_id
from dplearn.tasks.metrics import METRICS


def _is_index(value: object, size: int) -> bool:
    return is_whole(value, 0) and value < size


def _check_positive(argument: str, value: object) -> None:
    if not is_whole(value, 1):
        raise ValueError(f"{argument}={value!r}: expected an integer of at least 1")


def shown_task(kind: str, name: str, count: str, splits: Mapping[str, Sequence], metric: str) -> str:
    """A task in one line, without its data.

    >>> shown_task("Task", "world/rte", "2 labels", {"train": "abc", "test": "ab"}, "accuracy")
    "Task('world/rte', 2 labels, train 3, test 2 examples, metric 'accuracy')"
    """
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items())
    return f"{kind}({name!r}, {count}, {sizes} examples, metric {metric!r})"


@dataclass(frozen=True, repr=False)
class Task:
    """One task with its data. All fields are checked when the task is made.

    name      for example "world/rte"
    labels    label names; an example's "label" is an index into them
    words     the answer word of each label, for example ("no", "yes")
    template  format string over the text fields of an example
    splits    split name -> examples; "train" must exist. An example is a dict with the text fields, "label"
              (an int) and, where the metric groups examples, "group"
    metric    a key of `dplearn.tasks.metrics.METRICS`
    source    where the data is from, with its version or hash
    cuttable  the fields that `encode` may shorten, such as the passage of a question; (): any
    pair      for classifiers, format strings over fields of the template: one text, or two that are read as a pair;
              (): the filled template
    """

    name: str
    labels: tuple[str, ...]
    words: tuple[str, ...]
    template: str
    splits: Mapping[str, Sequence[Mapping]]
    metric: str
    source: str
    cuttable: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return shown_task("Task", self.name, f"{len(self.labels)} labels", self.splits, self.metric)

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"{self.name}: labels={self.labels!r}: expected two or more distinct names")
        if len(self.words) != len(self.labels) or len(set(self.words)) != len(self.words):
            raise ValueError(
                f"{self.name}: words={self.words!r}: expected one distinct word for each of the labels "
                f"{self.labels!r}"
            )
        if not self.fields or not all(field.isidentifier() for field in self.fields):
            raise ValueError(
                f"{self.name}: template={self.template!r}: expected a format string with named "
                "fields, such as 'premise: {premise}'"
            )
        self._check_parts()
        if self.metric not in METRICS:
            raise ValueError(f"{self.name}: metric={self.metric!r}: expected one of {sorted(METRICS)}")
        if "train" not in self.splits:
            raise ValueError(f"{self.name}: splits={list(self.splits)}: expected one named 'train'")
        for split, examples in self.splits.items():
            if len(examples) == 0:
                raise ValueError(f"{self.name}: split {split!r} is empty: expected at least one example")
            for number, example in enumerate(examples):
                self._check_example(example, f"{self.name}: example {number} of split {split!r}")

    def _check_parts(self) -> None:
        unknown = [field for field in self.cuttable if field not in self.fields]
        if unknown:
            raise ValueError(
                f"{self.name}: cuttable={self.cuttable!r}: expected fields of the template, {list(self.fields)}"
            )
        named = [template_fields(part) for part in self.pair]
        if len(named) > 2 or not all(names and set(names) <= set(self.fields) for names in named):
            raise ValueError(
                f"{self.name}: pair={self.pair!r}: expected at most two format strings over fields of the template, "
                f"{list(self.fields)}"
            )

    def _check_example(self, example: Any, where: str) -> None:
        for field in self.fields:
            value = example.get(field)
            if value is None or not isinstance(value, str):
                raise ValueError(
                    f"{where}: field {field!r} is {value!r}: expected text, the template uses it"
                )
        label = example.get("label")
        if not _is_index(label, len(self.labels)):
            raise ValueError(
                f"{where}: label {label!r}: expected an int in 0..{len(self.labels) - 1}, an index into "
                f"{self.labels!r}"
            )
        if METRICS[self.metric].grouped and example.get("group") is None:
            raise ValueError(f"{where}: no 'group': metric {self.metric!r} expects one for each example")

    @property
    def fields(self) -> tuple[str, ...]:
        """The text fields that the template uses, in its order."""
        return template_fields(self.template)

    def examples(self, split: str) -> Sequence[Mapping]:
        """The examples of a split; an unknown name is an error that lists the names."""
        if split not in self.splits:
            raise ValueError(
                f"{self.name}: split={split!r}: expected one of {list(self.splits)} (data: {self.source})"
            )
        return self.splits[split]

    def text(self, example: Mapping) -> str:
        """The filled template."""
        return fill(self.name, self.template, example)

    def word_ids(self, tokenizer: Any, model: Any = None) -> list[int]:
        """The token id of each label word, in label order; they must be known and distinct.

        Encoder-decoder (and `model` None): the word's first token. Decoder-only: the word with the space before it, as
        it follows a text, which must be one token.
        """
        ids: list[int] = []
        form = form_of(model)
        if form == CLASSIFIER:
            raise ValueError(f"{self.name}: model is a classifier: expected one that answers with a word")
        for word in self.words:
            first = word_id(tokenizer, word, f"{self.name}: word", form)
            if first in ids:
                raise ValueError(
                    f"{self.name}: words {self.words[ids.index(first)]!r} and {word!r} both start with token "
                    f"{first}: expected a distinct first token for each word"
                )
            ids.append(first)
        return ids

    def encode(
        self, tokenizer: Any, split: str, model: Any = None, *, max_length: int = 480, answer_prefix: str = ""
    ) -> Encoded:
        """The examples of a split as a model reads them: a list of dicts of token ids, not padded.

        tokenizer      of the model
        split          name of a split
        model          who reads them, bare or with a prompt; None: an encoder-decoder
        max_length     most tokens of an input, special ones and the cue too. Where an input is longer, the longest of
                       the `cuttable` fields is cut at a word (then the two longest to the same number of characters,
                       and so on); everything else stays whole. How many were cut is the result's `cut`, and logged
        answer_prefix  what stands before the answer word

        Encoder-decoder: "input_ids", "attention_mask" and "labels", the tokens of `answer_prefix` (for T5
        "<extra_id_0>") followed by the first token of the label word, so the answer position is the last one.

        Decoder-only: `answer_prefix` is a cue that ends the input, such as " answer:", and may have fields itself
        (" question: {question} answer:"). "labels" is the label word alone, with the space before it. For a prompted
        model "keep_last" is the number of tokens of the cue: the prompt surrounds the template, the cue stays behind.

        Classifier (...ForSequenceClassification): what the tokenizer gives for the texts of `pair`, and "labels", the
        index of the label.

        Batches: `DataCollatorForSeq2Seq` for the first two, `DataCollatorWithPadding` for a classifier. Loss and
        predictions of the first two: `LabelWordLoss(task.word_ids(tokenizer, model))`.

        Raises ValueError for an unknown split, a `max_length` that the uncut parts exceed, a word that the tokenizer
        does not know or (decoder-only) splits, and an `answer_prefix` that does not suit the model; TypeError for a
        model without a head that could answer.
        """
        _check_positive("max_length", max_length)
        return encode(self, tokenizer, split, model, max_length, answer_prefix)

    def few_shot(self, per_label: int | None = None, seed: int = 0, *, total: int | None = None) -> "Task":
        """The same task with fewer training examples, drawn without replacement.

        per_label  so many of each label
        total      or so many in all, whatever their labels; where the metric groups examples, so many groups with all
                   their examples. Of a fixed set of that size, such as FewGLUE's 32, it is all of them
        seed       of the draw, which uses `random.Random(seed).random()` alone: Python keeps it the same

        Only "train" is reduced, the other splits are the same objects. The examples keep their order.
        """
        if (per_label is None) == (total is None):
            raise ValueError(f"per_label={per_label!r} and total={total!r}: expected one of them")
        train, generator = self.splits["train"], random.Random(seed)
        keys = [generator.random() for _ in train]
        if per_label is not None:
            _check_positive("per_label", per_label)
            chosen, how = self._of_each_label(per_label, keys), f"{per_label} per label"
        else:
            _check_positive("total", total)
            chosen, how = self._in_all(cast(int, total), keys), f"{total} in all"
        splits = {**self.splits, "train": tuple(train[i] for i in sorted(chosen))}
        return replace(self, splits=splits, source=f"{self.source}; train: {how}, seed {seed}")

    def _of_each_label(self, per_label: int, keys: Sequence) -> list[int]:
        chosen = []
        for label, name in enumerate(self.labels):
            members = [i for i, example in enumerate(self.splits["train"]) if example["label"] == label]
            if len(members) < per_label:
                raise ValueError(
                    f"{self.name}: per_label={per_label}: expected at most {len(members)}, the training "
                    f"examples of label {name!r} (total= counts all labels together)"
                )
            chosen += sorted(members, key=keys.__getitem__)[:per_label]
        return chosen

    def _in_all(self, total: int, keys: Sequence) -> list[int]:
        train = self.splits["train"]
        grouped = METRICS[self.metric].grouped
        units: dict = {}
        for i, example in enumerate(train):
            units.setdefault(example["group"] if grouped else i, []).append(i)
        if len(units) < total:
            raise ValueError(
                f"{self.name}: total={total}: expected at most {len(units)}, the "
                f"{'groups' if grouped else 'examples'} of train"
            )
        drawn = sorted(units.values(), key=lambda members: keys[members[0]])[:total]
        return [i for members in drawn for i in members]

    def score(self, split: str, predictions: Sequence[int]) -> dict[str, float]:
        """The metric for one predicted label index per example; the first value is the headline."""
        examples = self.examples(split)
        predictions = predictions.tolist() if hasattr(predictions, "tolist") else list(predictions)
        if len(predictions) != len(examples):
            raise ValueError(
                f"{self.name}: {len(predictions)} predictions: expected {len(examples)}, one for each "
                f"example of split {split!r}"
            )
        for number, value in enumerate(predictions):
            if not _is_index(value, len(self.labels)):
                raise ValueError(
                    f"{self.name}: predictions[{number}]={value!r}: expected a label index in "
                    f"0..{len(self.labels) - 1}"
                )
        metric = METRICS[self.metric]
        labels = [example["label"] for example in examples]
        groups = [example["group"] for example in examples] if metric.grouped else None
        return metric(labels, predictions, groups)
