"""Baselines without a prompt and without a backbone of their own: linear probes on words and on sentence vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dplearn import shelf
from dplearn.summaries import masked_mean
from dplearn.tasks.base import Task


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
