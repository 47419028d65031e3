"""Baselines without a prompt: the most frequent label, linear probes on words, sentence vectors and frozen states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from dplearn import shelf
from dplearn.backbones.rows import last_real, take_rows, token_positions
from dplearn.experiments.scoring import batch_size
from dplearn.summaries import masked_mean
from dplearn.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def majority(task: Task, splits: Sequence[str] = ("validation", "test")) -> dict:
    """The label that is most frequent in a split, said of all its examples: what a constant answer can reach there."""

    def constant(split):
        labels = [example["label"] for example in task.examples(split)]
        return task.score(split, [max(sorted(set(labels)), key=labels.count)] * len(labels))

    return {"task": task.name, "scores": {split: constant(split) for split in splits}}


def bag_of_words(task: Task, splits: Sequence[str] = ("validation", "test")) -> dict:
    """Logistic regression on counts of words and word pairs of each text field.

    What it solves needs no pretrained model. Fields have vocabularies of their own, so that it knows which text a word
    stood in. Its strength is chosen on validation.
    """
    import numpy as np
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import CountVectorizer

    counters = {}
    for field in task.fields:
        counter = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+")
        counters[field] = counter.fit([example[field] for example in task.examples("train")])

    def features(split):
        columns = [
            counter.transform([e[field] for e in task.examples(split)]) for field, counter in counters.items()
        ]
        return hstack(columns).tocsr().astype(np.float64)

    return _probe(task, features, splits)


def minilm_probe(task: Task, splits: Sequence[str] = ("validation", "test")) -> dict:
    """Logistic regression on sentence vectors of MiniLM, a real encoder of 22 million parameters.

    A text field becomes the masked mean of the encoder's last hidden states; two fields u, v are joined as
    (u, v, |u - v|, u v). Needs the extra ``real``, a package that carries the weights; strength chosen on validation.

    Raises
    ------
    ModuleNotFoundError : the extra is not installed.
    """
    import numpy as np

    encoder, tokenizer = shelf.load("minilm-l6")

    @torch.no_grad()
    def vectors(texts):
        parts = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                texts[start : start + 64], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            parts.append(masked_mean(encoder(**batch).last_hidden_state, batch["attention_mask"]))
        return torch.nn.functional.normalize(torch.cat(parts), dim=1).numpy()

    def features(split):
        columns = [vectors([example[field] for example in task.examples(split)]) for field in task.fields]
        if len(columns) == 2:
            columns += [np.abs(columns[0] - columns[1]), columns[0] * columns[1]]
        return np.concatenate(columns, axis=1)

    return _probe(task, features, splits, strengths=(1.0, 10.0, 100.0))


def state_probe(
    backbone: PreTrainedModel,
    task: Task,
    encode: Callable[[str, nn.Module], Sequence[dict]],
    collate: Callable,
    splits: Sequence[str] = ("validation", "test"),
) -> dict:
    """Logistic regression on what the frozen backbone itself makes of an input: the last layer's state of the last
    token in a decoder-only model, else the masked mean of the encoder's states. Standardized over the training split;
    strength chosen on validation.

    Parameters
    ----------
    encode : the name of a split and the backbone -> encoded examples, as :meth:`dplearn.tasks.base.Task.encode`.
    collate : examples -> a batch.
    """
    import numpy as np

    both = backbone.config.is_encoder_decoder
    reader = backbone.get_encoder() if both else backbone.base_model

    @torch.no_grad()
    def features(split):
        rows, parts = encode(split, backbone), []
        size = batch_size(rows)
        for start in range(0, len(rows), size):
            examples = [dict(rows[i]) for i in range(start, min(start + size, len(rows)))]
            batch = collate(
                [{name: row[name] for name in ("input_ids", "attention_mask")} for row in examples]
            )
            mask = batch["attention_mask"]
            given = {} if both else {"position_ids": token_positions(mask)}
            states = reader(input_ids=batch["input_ids"], attention_mask=mask, **given).last_hidden_state
            last = take_rows(states, last_real(mask).unsqueeze(1))[:, 0]
            parts.append(masked_mean(states, mask) if both else last)
        return torch.cat(parts).double().numpy()

    train = features("train")
    middle, spread = train.mean(0), np.maximum(train.std(0), 1e-6)
    return _probe(task, lambda split: (features(split) - middle) / spread, splits, (0.001, 0.01, 0.1))


def _probe(
    task: Task, features, splits: Sequence[str], strengths: Sequence[float] = (0.01, 0.1, 1.0)
) -> dict:
    """Fit a linear classifier on ``features(split)``; the inverse penalty is chosen on validation."""
    from sklearn.linear_model import LogisticRegression

    matrices = {split: features(split) for split in {"train", "validation", *splits}}
    labels = [example["label"] for example in task.examples("train")]

    def score(model, split):
        return task.score(split, model.predict(matrices[split]))

    models = [
        LogisticRegression(C=strength, max_iter=2000).fit(matrices["train"], labels) for strength in strengths
    ]
    best = max(models, key=lambda model: next(iter(score(model, "validation").values())))
    return {"task": task.name, "scores": {split: score(best, split) for split in splits}}
