"""Deep prompts: at the input of each further layer, fresh vectors replace the prompt's rows (VPT-deep, MaPLe).

Rows are followed to where they stand, in any tower whose layers stand in one list.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dplearn.backbones.views import Change, Changes, below, path_of


def receiving(
    model: nn.Module, layers: nn.ModuleList, deeper: Tensor, rows: Tensor, passed: int = 0
) -> Changes:
    """The changes by which the layers behind the first one find fresh prompt vectors in the given rows of their input.

    deeper: (n, l, d) or (B, n, l, d), for the n layers behind the first one with a prompt.  rows: (B, l), -1 where
    there is none.  passed: the layers in front of that one.
    """
    _check_recomputing(layers)
    path, count = path_of(model, layers), min(deeper.shape[-3], len(layers) - 1)
    return {
        below(path, str(passed + number + 1)): _receiving(deeper.select(-3, number), rows)
        for number in range(count)
    }


def _receiving(vectors: Tensor, rows: Tensor) -> Change:
    """The same for one layer and its vectors (l, d) or (B, l, d)."""

    def forward(usual, states, *arguments, **options):
        return usual(replace_rows(states, vectors, rows), *arguments, **options)

    return forward


def replace_rows(states: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
    """Other vectors in some rows of each instance.

    states: (B, S, d).  vectors: (l, d) or (B, l, d).  rows: (B, l), the row that each vector takes, -1: none.
    Returns (B, S, d).

    >>> replace_rows(torch.zeros(1, 3, 1), torch.tensor([[7.0], [8.0]]), torch.tensor([[2, -1]])).flatten().tolist()
    [0.0, 0.0, 7.0]
    """
    batch, count, width = states.shape
    rows = torch.where(rows < 0, count, rows)  # one row more, for the vectors that are not in use
    rows = rows.unsqueeze(2).expand(-1, -1, width)
    vectors = vectors.to(states.dtype).expand(batch, *rows.shape[1:])
    return pad(states, (0, 0, 0, 1)).scatter(1, rows, vectors)[:, :count]


RECOMPUTING = "GradientCheckpointingLayer"


def _check_recomputing(layers: nn.ModuleList) -> None:
    """Older versions of transformers recompute a layer without what is done to its input here."""
    kind = next((base for base in type(layers[0]).__mro__ if base.__name__ == RECOMPUTING), None)
    if kind is None or "__call__" not in vars(kind):
        return
    if any(layer.gradient_checkpointing and layer.training for layer in layers):
        raise ValueError(
            "depth > 1 with gradient checkpointing and backbone_dropout=True needs a newer transformers; "
            "expected one of them to be off"
        )
