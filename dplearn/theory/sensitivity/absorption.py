"""What absolute positions leave to learn: a prompt's own position vectors can be absorbed in its vectors."""

from __future__ import annotations

from torch import Tensor


def absorb(prompt: Tensor, table: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The prompt that has at the positions ``after`` the rows that ``prompt`` has at the positions ``before``.

    A model that adds position vectors sees the sums ``prompt + table[positions]``, so ``p' = p + table[before] -
    table[after]`` keeps them: moving prompt vectors costs nothing that training could not give back. (The input has
    no such freedom: its embeddings are given.)

    Parameters
    ----------
    prompt : (l, d).
    table : (positions, d), the model's position vectors.
    before : (l,) integer positions, and so is ``after``.

    >>> import torch
    >>> absorb(torch.ones(1, 2), torch.tensor([[0.0, 0.0], [3.0, 5.0]]), torch.tensor([1]), torch.tensor([0]))
    tensor([[4., 6.]])
    """
    for name, positions in (("before", before), ("after", after)):
        if positions.shape != prompt.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(positions.shape)}, expected ({len(prompt)},), one per vector"
            )
    return prompt + table[before] - table[after]
