"""Where the logits of a decision come from: a learned vector (task level) or one linear layer (instance level).

A task-level controller makes one decision for the whole task. An instance-level controller looks at a summary of each
input: the masked mean of its frozen input embeddings, or of the frozen encoder's last hidden states.

Paper: Yang et al. (2023), section 3.2 ("adap_pos" and "adap_ins_pos").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens only: (B, T, d), (B, T) -> (B, d), in float32; a row without real tokens gives 0.

    The authors' code averages over padding too, so that the same sentence gives another summary in another batch.

    >>> masked_mean(torch.tensor([[[2.0], [4.0], [99.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[3.]])
    """
    if mask.shape != states.shape[:2]:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, expected {tuple(states.shape[:2])} as the states"
        )
    dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
    weights = mask.to(dtype)
    total = torch.einsum("btd,bt->bd", states.to(dtype), weights)
    return total / weights.sum(1, keepdim=True).clamp_min(1)


class TaskController(nn.Module):
    """Logits that are the same for every input: one learned vector (n,).

    Initialised from U(-0.5, 0.5), as in the authors' code. ``forward(summary)`` reads only the batch size.
    """

    def __init__(self, options: int):
        super().__init__()
        self.logits = nn.Parameter(torch.empty(options).uniform_(-0.5, 0.5))

    def forward(self, summary: Tensor) -> Tensor:
        return self.logits.expand(summary.shape[0], -1)  # (B, n)


class InstanceController(nn.Module):
    """Logits from one linear layer on a summary of the input: (B, d) -> (B, n).

    Two deviations from the authors' code. No ReLU on the logits: where all are negative it gives the uniform
    distribution and no gradient. And the summary is normalised to mean 0 and variance 1 over its d entries (no
    parameters), so that the size of the logits does not depend on the backbone's embedding scale.
    """

    def __init__(self, width: int, options: int):
        super().__init__()
        self.linear = nn.Linear(width, options)

    def forward(self, summary: Tensor) -> Tensor:
        normal = nn.functional.layer_norm(summary.to(self.linear.weight.dtype), summary.shape[-1:])
        return self.linear(normal)  # (B, n)
