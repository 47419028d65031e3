"""How many prompt vectors are in use: the size n, from 0 to l.

The order of use is fixed: a size n uses P_1..P_n, of which min(k, n) stand before the input. Vectors that are not in
use are padding to the backbone, so using n vectors equals a true prompt of n vectors. While training, they stay in the
batch, masked, and the size's logits get a gradient; in evaluation they are dropped and the batch shrinks.

The authors' code fills the unused rows with -1e20 and leaves them visible: they turn into vectors of value zero that
still draw attention, and the gradient of the controller overflows.

Paper: Yang et al. (2023), section 3.2 ("adap_ins_len").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dplearn.checks import is_whole, shown
from dplearn.choice import Chooser
from dplearn.controllers import (
    LEARNED,
    Decision,
    FixedDecision,
    LearnedDecision,
    Words,
    learned_in_words,
    make_decision,
)
from dplearn.sampling import Choice, learned


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
    if not is_whole(size):
        raise ValueError(f"size={shown(size)} is a {type(size).__name__}, expected a name or an integer")
    if not 1 <= size <= length:
        raise ValueError(f"size={shown(size)} is outside 1..{length}: the prompt has {length} vectors")
    return size


def expected_share(choice: Choice) -> Tensor:
    """The mean share of the prompt that is in use, E[n] / l, a scalar between 0 and 1 with gradient to the logits.

    The expectation over the controller's distribution is exact; nothing is sampled. It is what a cost on length counts.

    >>> round(expected_share(Choice(torch.tensor([1]), None, torch.zeros(1, 5))).item(), 6)
    0.5
    """
    probabilities = learned(choice.logits).softmax(-1)  # (B, l+1)
    sizes = torch.arange(probabilities.shape[1], device=probabilities.device, dtype=probabilities.dtype)
    return (probabilities @ sizes).mean() / (probabilities.shape[1] - 1)


def in_words(options: Any) -> Words:
    """The size in words; ``options`` are the flat options of a prompt (:class:`dplearn.config.PromptConfig`)."""
    size, length = resolve_size(options.size, options.length), options.length
    if size is None:
        return Words(options.size, f"0 to {length}, {learned_in_words(options.size, options)}")
    if size == length:
        return Words("fixed", f"all {length}")
    rest = length - size
    unused = f"{rest} vector{' is' if rest == 1 else 's are'} not in use"
    return Words("fixed", f"the first {size} of {length}; {unused}")


def build(options: Any, width: int, chooser: Callable[[], Chooser]) -> FixedDecision | LearnedDecision:
    """The module that decides about the size; see :class:`dplearn.controllers.Decision`."""
    return make_decision(resolve_size(options.size, options.length), options.size, width, options, chooser)


SIZE = Decision(
    "how many",
    build,
    in_words,
    sampled=lambda options: options.size in LEARNED,
    check=lambda options: resolve_size(options.size, options.length),
)
