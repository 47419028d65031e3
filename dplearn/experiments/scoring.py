"""Scores of a model on examples: the logits of the label words, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BATCH, TOKENS = 128, 8192  # most examples and most tokens of a batch


def batch_size(rows: Sequence[dict]) -> int:
    """How many of these examples make a batch that fits: at most 128, and fewer where they are long.

    >>> batch_size([{"input_ids": [0] * 30}]), batch_size([{"input_ids": [0] * 256}])
    (128, 32)
    """
    longest = max(len(row["input_ids"]) for row in rows)
    return max(1, min(BATCH, TOKENS // max(longest, 1)))


@torch.no_grad()
def label_scores(
    model: nn.Module, examples: Sequence[dict], collate: Callable, read: Callable, bf16: bool = False
) -> Tensor:
    """Logits of the label words, (N, labels), float32 on the CPU, in evaluation mode; the mode is put back.

    Parameters
    ----------
    collate : examples -> a batch of tensors, with labels that the model is not given.
    read : logits of the model -> scores of the labels (B, labels).
    bf16 : matrix products in bfloat16, as in training.
    """
    training, parts = model.training, []
    model.eval()
    device = next(model.parameters()).device
    size = batch_size(examples)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))  # less padding
    for start in range(0, len(order), size):
        batch = collate([examples[i] for i in order[start : start + size]])
        batch = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            parts.append(read(model(**batch)["logits"]).float().cpu())
    model.train(training)
    return torch.cat(parts)[torch.tensor(order).argsort()]


def metrics_of(task, split: str, scores: Tensor) -> tuple[dict[str, float], float]:
    """The task's metrics on a split and the mean cross-entropy (nats), from scores (N, labels)."""
    labels = torch.tensor([example["label"] for example in task.examples(split)])
    return task.score(split, scores.argmax(1)), round(float(cross_entropy(scores, labels)), 5)
