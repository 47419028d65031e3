"""What an instance-level decision looks at: a mean over the real tokens, standardized over the training data.

The masked mean of embeddings is mostly the same for all inputs of a task. A linear layer on it moves the logits of all
inputs together before it can tell them apart, so that every input soon gets the same option, with any estimator. With
each entry at mean 0 and variance 1 over the training data, what differs between inputs is what the layer sees.

Paper: Yang et al. (2023), section 3.2 (the mean). Standardizing is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from dplearn.sampling import at_least_float32

LEAST = 1e-5  # variance: an entry that is the same for all inputs is not blown up


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


class Standardizer(nn.Module):
    """Brings each entry of a summary to mean 0 and variance 1 over all summaries that were observed.

    The statistics are those of everything seen so far, not of the last batches (no momentum), and not of the batch at
    hand: ``forward`` reads them, :meth:`observe` extends them. They are buffers, so a checkpoint holds them.

    Parameters
    ----------
    width : d, the width of a summary.

    >>> standardizer = Standardizer(1)
    >>> standardizer.observe(torch.tensor([[1.0], [3.0]]))
    >>> standardizer(torch.tensor([[3.0], [4.0]])).round(decimals=3)
    tensor([[1.],
            [2.]])
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def reset(self) -> None:
        """Forget everything that was observed; until there is something new, ``forward`` changes nothing."""
        self.count.zero_()
        self.mean.zero_()
        self.variance.fill_(1)

    @torch.no_grad()
    def observe(self, summaries: Tensor) -> None:
        """Take summaries (B, d) into the statistics.

        Where torch.distributed runs, those of all processes, which then have the same statistics (all processes have to
        call it, as with torch.nn.SyncBatchNorm).
        """
        values = at_least_float32(summaries)
        sums = torch.stack([values.new_full(self.mean.shape, values.shape[0]), values.sum(0)])
        if _several_processes():
            distributed.all_reduce(sums)
        new, mean = sums[0, 0], sums[1] / sums[0, 0]
        squares = (values - mean).square().sum(0)
        if _several_processes():
            distributed.all_reduce(squares)
        # Two sets of values put together (Chan, Golub and LeVeque 1979): exact, and stable for any number of them.
        old, total = self.count.to(values.dtype), self.count + new.long()
        shift = mean - self.mean
        squares = squares + self.variance * old + shift.square() * (old * new / total)
        self.mean.add_(shift * (new / total))
        self.variance.copy_(squares / total)
        self.count.copy_(total)

    def forward(self, summaries: Tensor) -> Tensor:
        """Standardized summaries (B, d)."""
        return (summaries - self.mean) * self.variance.clamp_min(LEAST).rsqrt()


def _several_processes() -> bool:
    """Whether torch.distributed runs with more than one process."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
