"""Which vectors the prompt has: one prompt for all, or a mixture from a pool of K prompts, per task or per instance.

Paper: Yang et al. (2023), section 3.3. The authors' "adap_ins_vec" mixes with softmax(tanh(logits)), which bounds how
far the weights can move from uniform (no weight exceeds e^2 times another); their unified variant mixes with
softmax(logits). Neither samples. A hard choice of one prompt (Gumbel-Softmax, as for the position) is an option here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dplearn.choice import Choice, Chooser, at_least_float32
from dplearn.controllers import LEARNED

VECTORS = ("single", *LEARNED)
MIXINGS = ("softmax", "tanh", "hard")


def mixture_weights(logits: Tensor, mixing: str = "softmax") -> Tensor:
    """Weights over a pool, (B, K) positive rows that sum to 1: ``softmax(logits)`` or ``softmax(tanh(logits))``.

    >>> mixture_weights(torch.tensor([[0.0, 0.0]]), "tanh")
    tensor([[0.5000, 0.5000]])
    """
    return (logits.tanh() if mixing == "tanh" else logits).softmax(-1)


def mix(pool: Tensor, weights: Tensor) -> Tensor:
    """One prompt per instance, ``P_b = sum_k weights[b, k] pool[k]``: (K, l, d), (B, K) -> (B, l, d)."""
    return torch.einsum("bk,kld->bld", weights.to(pool.dtype), pool)


class Mixture(nn.Module):
    """Decides the weights of a pool.

    Parameters
    ----------
    controller : maps a summary (B, d) and task numbers (B,) to logits (B, K).
    mixing : "softmax", "tanh" (softmax of the tanh of the logits) or "hard" (one prompt of the pool, by ``chooser``).
    chooser : for "hard" only.
    """

    def __init__(self, controller: nn.Module, mixing: str = "softmax", chooser: Chooser | None = None):
        super().__init__()
        if mixing not in MIXINGS:
            raise ValueError(f"mixing={mixing!r} is unknown, expected one of {list(MIXINGS)}")
        if (mixing == "hard") != (chooser is not None):
            raise ValueError(
                f"chooser={chooser!r} does not fit mixing={mixing!r}: expected one for 'hard' alone"
            )
        self.controller = controller
        self.mixing = mixing
        self.chooser = chooser

    @property
    def looks_at_input(self) -> bool:
        return self.controller.looks_at_input

    def forward(self, summary: Tensor, task: Tensor | None = None) -> Choice:
        """A choice whose weights are (B, K), never None, and whose index is the heaviest prompt of the pool."""
        logits = at_least_float32(self.controller(summary, task))
        if self.chooser is None:
            weights = mixture_weights(logits, self.mixing)
            return Choice(weights.argmax(-1), weights, logits)
        choice = self.chooser(logits)
        if choice.weights is None:  # evaluation
            return choice._replace(
                weights=nn.functional.one_hot(choice.index, logits.shape[1]).to(logits.dtype)
            )
        return choice
