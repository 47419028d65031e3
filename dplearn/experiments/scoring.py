"""Scores of a model on examples: the logits of the labels, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BATCH = 128  # most examples of a batch
TOKENS = {
    "cpu": 1024,
    "cuda": 32768,
}  # and most tokens of it: a processor gains by little padding, a GPU by much work


def batch_size(rows: Sequence[dict]) -> int:
    """How many of these examples make a batch: at most 128, and fewer where they are long texts. A few that are sorted
    by their length have little padding.

    >>> batch_size([{"input_ids": [0] * 30}]), batch_size([{"input_ids": [0] * 256}])
    (34, 4)
    """
    longest, kind = max(_tokens(row) for row in rows), "cuda" if torch.cuda.is_available() else "cpu"
    return max(1, min(BATCH, TOKENS[kind] // max(longest, 1)))


def by_length(rows: Sequence[dict], chosen: Sequence[int]) -> list[int]:
    """The numbers of some examples, those of short texts first.

    >>> by_length([{"input_ids": [0] * n} for n in (5, 2, 9)], [0, 1, 2])
    [1, 0, 2]
    """
    return sorted(chosen, key=lambda i: _tokens(rows[i]))


def _tokens(row: dict) -> int:
    """The length of a text; an image has none."""
    return len(row.get("input_ids", ()))


@torch.no_grad()
def label_logits(
    model: nn.Module, examples: Sequence[dict], collate: Callable, read: Callable, bf16: bool = False
) -> Tensor:
    """Logits of the labels, (N, labels), float32 on the CPU, in evaluation mode; the mode is put back.

    Parameters
    ----------
    collate : examples -> a batch of tensors, with labels that the model is not given.
    read : logits of the model -> those of the labels (B, labels).
    bf16 : matrix products in bfloat16, as in training.
    """
    training, parts = model.training, []
    model.eval()
    device = next(model.parameters()).device
    size = batch_size(examples)
    order = by_length(examples, range(len(examples)))  # less padding
    for start in range(0, len(order), size):
        batch = collate([examples[i] for i in order[start : start + size]])
        batch = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            parts.append(read(model(**batch)["logits"]).float().cpu())
    model.train(training)
    return torch.cat(parts)[torch.tensor(order).argsort()]


def labels_of(examples: Sequence) -> Tensor:
    """Label indices (N,) of the examples of a split; no image is opened for them."""
    labels = getattr(examples, "labels", None)
    return torch.tensor([example["label"] for example in examples] if labels is None else list(labels))


def metrics_of(task, split: str, logits: Tensor) -> tuple[dict[str, float], float]:
    """The task's metrics on a split and the mean cross-entropy (nats), from logits (N, labels)."""
    labels = labels_of(task.examples(split))
    return task.score(split, logits.argmax(1)), round(float(cross_entropy(logits, labels)), 5)
