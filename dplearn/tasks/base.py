"""What a text task is: examples in fixed splits, one template, one answer word per label, one metric.

A task follows the word-level protocol of the paper: the filled template goes into the frozen model, the
logits of the label words are read at the answer position (the last label position), cross-entropy is taken
over these words alone, and the prediction is the argmax over them. This module holds the data side of it;
losses live in `dplearn.training`.
"""

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dplearn.checks import is_whole
from dplearn.tasks.metrics import METRICS


def template_fields(template: str) -> tuple[str, ...]:
    """The field names of a format string, in order, each once.

    >>> template_fields("question: {question} answer: {answer}. text: {text}")
    ('question', 'answer', 'text')
    """
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    return tuple(dict.fromkeys(names))


def cut(text: str, length: int) -> str:
    """The longest start of `text` with at most `length` characters that does not end inside a word.

    A first word that is itself too long is cut inside, so that something of it is kept.

    >>> cut("a red ball", 9), cut("a red ball", 5), cut("unbelievable", 2)
    ('a red', 'a red', 'un')
    """
    if len(text) <= length:
        return text
    head = text[:length]
    inside_word = not text[length].isspace() and not head[-1:].isspace()
    if inside_word and len(head.split()) > 1:
        head = head.rsplit(maxsplit=1)[0]
    return head.rstrip()


def _is_index(value, size: int) -> bool:
    return is_whole(value, 0) and value < size


def _check_positive(argument: str, value):
    if not is_whole(value, 1):
        raise ValueError(f"{argument}={value!r}: expected an integer of at least 1")


def _known_tokens(tokenizer, text: str, what: str) -> list[int]:
    """The tokens of a label word or an answer prefix; an unknown token among them is an error."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"{what} {text!r} has tokens {ids}: expected text that this tokenizer knows")
    return ids


@dataclass(frozen=True)
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
    """

    name: str
    labels: tuple[str, ...]
    words: tuple[str, ...]
    template: str
    splits: Mapping[str, Sequence[Mapping]]
    metric: str
    source: str

    def __post_init__(self):
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
        if self.metric not in METRICS:
            raise ValueError(f"{self.name}: metric={self.metric!r}: expected one of {sorted(METRICS)}")
        if "train" not in self.splits:
            raise ValueError(f"{self.name}: splits={list(self.splits)}: expected one named 'train'")
        for split, examples in self.splits.items():
            if len(examples) == 0:
                raise ValueError(f"{self.name}: split {split!r} is empty: expected at least one example")
            for number, example in enumerate(examples):
                self._check_example(example, f"{self.name}: example {number} of split {split!r}")

    def _check_example(self, example, where):
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
        missing = [field for field in self.fields if field not in example]
        if missing:
            raise ValueError(
                f"{self.name}: example with fields {sorted(example)} lacks {missing}: expected all fields "
                f"of the template, {list(self.fields)}"
            )
        return self.template.format_map({field: example[field] for field in self.fields})

    def word_ids(self, tokenizer) -> list[int]:
        """The first token id of each label word, in label order; they must be known and distinct."""
        ids = []
        for word in self.words:
            first = _known_tokens(tokenizer, word, f"{self.name}: word")[0]
            if first in ids:
                raise ValueError(
                    f"{self.name}: words {self.words[ids.index(first)]!r} and {word!r} both start with token "
                    f"{first}: expected a distinct first token for each word"
                )
            ids.append(first)
        return ids

    def encode(self, tokenizer, split: str, max_length: int = 480, answer_prefix: str = "") -> list[dict]:
        """Token ids of a split: dicts with "input_ids", "attention_mask" and "labels", not padded.

        labels = tokens of `answer_prefix` (for T5 "<extra_id_0>") followed by the first token of the label
        word, so the answer position is the last one. max_length counts all tokens, the end-of-sequence token
        too. Where an input is longer, its longest text field is cut at a word (then the two longest to the
        same number of characters, and so on). The template itself stays whole, its end included.
        """
        _check_positive("max_length", max_length)
        examples = self.examples(split)
        words = self.word_ids(tokenizer)
        prefix = _known_tokens(tokenizer, answer_prefix, "answer_prefix") if answer_prefix else []
        inputs = tokenizer([self.text(example) for example in examples], verbose=False)["input_ids"]
        rows = []
        for example, ids in zip(examples, inputs):
            if len(ids) > max_length:
                ids = self._shorten(tokenizer, example, max_length)
            answer = [*prefix, words[example["label"]]]
            rows.append({"input_ids": list(ids), "attention_mask": [1] * len(ids), "labels": answer})
        return rows

    def _shorten(self, tokenizer, example, max_length):
        """Token ids of the template, every field cut to the largest number of characters that fits."""

        def tokens(limit):
            short = {field: cut(example[field], limit) for field in self.fields}
            return tokenizer(self.text(short), verbose=False)["input_ids"]

        low, high = 0, max(len(example[field]) for field in self.fields)
        best = tokens(low)
        if len(best) > max_length:
            raise ValueError(
                f"{self.name}: max_length={max_length}: expected at least {len(best)}, the tokens of the "
                f"template {self.template!r} with empty fields"
            )
        while low + 1 < high:  # `low` fits, `high` does not: halve the gap
            middle = (low + high) // 2
            ids = tokens(middle)
            if len(ids) <= max_length:
                low, best = middle, ids
            else:
                high = middle
        return best

    def few_shot(self, per_label: int, seed: int) -> "Task":
        """The same task with `per_label` training examples of each label, drawn without replacement.

        Only "train" is reduced, the other splits are the same objects. The examples keep their order. The
        draw uses `random.Random(seed).random()` alone, which Python keeps the same between versions.
        """
        _check_positive("per_label", per_label)
        train = self.splits["train"]
        generator = random.Random(seed)
        keys = [generator.random() for _ in train]
        chosen = []
        for label, name in enumerate(self.labels):
            members = [i for i, example in enumerate(train) if example["label"] == label]
            if len(members) < per_label:
                raise ValueError(
                    f"{self.name}: per_label={per_label}: expected at most {len(members)}, the training "
                    f"examples of label {name!r}"
                )
            chosen += sorted(members, key=keys.__getitem__)[:per_label]
        splits = {**self.splits, "train": tuple(train[i] for i in sorted(chosen))}
        return replace(
            self, splits=splits, source=f"{self.source}; train: {per_label} per label, seed {seed}"
        )

    def score(self, split: str, predictions) -> dict[str, float]:
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
