"""How many prompt vectors are in use: the size n, from 0 to l.

The order of use is fixed: a size n uses P_1..P_n, of which min(k, n) stand before the input. Vectors that are not in
use are padding to the backbone, so using n vectors equals a true prompt of n vectors. While training, they stay in the
batch, masked, and the size's logits get a gradient; in evaluation they are dropped and the batch shrinks.

The authors' code fills the unused rows with -1e20 and leaves them visible: they turn into vectors of value zero that
still draw attention, and the gradient of the controller overflows.

Paper: Yang et al. (2023), section 3.2 ("adap_ins_len").
"""

from __future__ import annotations

import torch
from torch import Tensor

from dplearn.choice import Choice
from dplearn.controllers import LEARNED


def resolve_size(size: str | int, length: int) -> int | None:
    """The fixed number of vectors that ``size`` names, or None where it is learned ("task", "instance").

    Raises
    ------
    ValueError : an unknown name, or a number outside 1..length.

    >>> [resolve_size(s, 5) for s in ("full", 2, "instance")]
    [5, 2, None]
    """
    if isinstance(size, str):
        if size in LEARNED:
            return None
        if size != "full":
            expected = ", ".join(repr(name) for name in ("full", *LEARNED))
            raise ValueError(f"size={size!r} is unknown, expected {expected} or a number in 1..{length}")
        return length
    if isinstance(size, bool) or not isinstance(size, int):
        raise ValueError(f"size={size!r} is a {type(size).__name__}, expected a name or an integer")
    if not 1 <= size <= length:
        raise ValueError(f"size={size} is outside 1..{length}: the prompt has {length} vectors")
    return size


def expected_share(choice: Choice) -> Tensor:
    """The mean share of the prompt that is in use, E[n] / l, a scalar between 0 and 1 with gradient to the logits.

    The expectation over the controller's distribution is exact; nothing is sampled. It is what a cost on length counts.

    >>> round(expected_share(Choice(torch.tensor([1]), None, torch.zeros(1, 5))).item(), 6)
    0.5
    """
    probabilities = choice.logits.softmax(-1)  # (B, l+1)
    sizes = torch.arange(probabilities.shape[1], device=probabilities.device, dtype=probabilities.dtype)
    return (probabilities @ sizes).mean() / (probabilities.shape[1] - 1)
