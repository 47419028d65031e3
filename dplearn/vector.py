"""Which vectors the prompt has: one prompt for all, or a mixture from a pool of K prompts, per task or per input.

Paper: Yang et al. (2023), section 3.3. The authors' "adap_ins_vec" mixes with softmax(tanh(logits)), which bounds how
far the weights can move from uniform (no weight exceeds e^2 times another); their unified variant mixes with
softmax(logits). Neither samples. A hard choice of one prompt (Gumbel-Softmax, as for the position) is an option here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dplearn.checks import OneOf
from dplearn.choice import Chooser
from dplearn.controllers import LEARNED, Decision, Words, learned_in_words, logits_of, make_controller
from dplearn.sampling import Choice, at_least_float32, learned

VECTORS = ("single", *LEARNED)
MIXINGS = ("softmax", "tanh", "hard")


def mixture_weights(logits: Tensor, mixing: str = "softmax") -> Tensor:
    """Weights over a pool, (B, K) positive rows that sum to 1: ``softmax(logits)`` or ``softmax(tanh(logits))``.

    >>> mixture_weights(torch.tensor([[0.0, 0.0]]), "tanh")
    tensor([[0.5000, 0.5000]])
    """
    return (logits.tanh() if mixing == "tanh" else logits).softmax(-1)


def mix(pool: Tensor, weights: Tensor) -> Tensor:
    """One prompt per input, ``P_b = sum_k weights[b, k] pool[k]``: (K, l, d), (B, K) -> (B, l, d)."""
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
        OneOf(MIXINGS)("mixing", mixing)
        if (mixing == "hard") != (chooser is not None):
            raise ValueError(
                f"chooser={chooser!r} does not fit mixing={mixing!r}: expected one for 'hard' alone"
            )
        self.controller: Any = controller
        self.mixing = mixing
        self.chooser = chooser

    @property
    def looks_at_input(self) -> bool:
        return self.controller.looks_at_input

    def forward(self, summary: Tensor, task: Tensor | None = None, sampling: bool | None = None) -> Choice:
        """A choice whose weights are (B, K), never None, and whose index is the heaviest prompt of the pool.

        ``sampling`` (of one prompt of the pool) as in :class:`~dplearn.choice.Chooser`; a mixture samples nothing.
        """
        logits = at_least_float32(logits_of(self.controller, summary, task, sampling, self.training))
        if self.chooser is None:
            weights = mixture_weights(logits, self.mixing)
            return Choice(weights.argmax(-1), weights, logits)
        choice = self.chooser(logits, sampling)
        # Evaluation and compared losses choose without weights.
        return (
            choice if choice.weights is not None else self.tried(choice, choice.index)._replace(logits=logits)
        )

    def tried(self, choice: Choice, index: Tensor) -> Choice:
        """The choice of other prompts of the pool, ``index`` (N,), than those of ``choice``."""
        logits = learned(choice.logits)
        return Choice(index, nn.functional.one_hot(index, logits.shape[1]).to(logits.dtype))

    def edit(self, vectors: Tensor, choice: Choice) -> Tensor:
        """The prompt of each instance: a pool (K, ..., l, d) -> (B, ..., l, d)."""
        return mix(vectors.flatten(1, -2), learned(choice.weights)).unflatten(1, vectors.shape[1:-1])

    def entries_in_use(self) -> dict[str, int]:
        """How many entries of each parameter can change an output: a pool of one has weight 1 whatever is learned."""
        alone = self.controller.options == 1
        return {name: 0 if alone else parameter.numel() for name, parameter in self.named_parameters()}


def in_words(options: Any) -> Words:
    """The vectors in words; ``options`` are the flat options of a prompt (:class:`dplearn.config.PromptConfig`)."""
    if options.vector == "single":
        return Words("single", "one prompt")
    kind = "one prompt" if options.mixing == "hard" else f"a mixture ({options.mixing})"
    pool = f"out of a pool of {options.pool_size}"
    return Words(options.vector, f"{kind} {pool}, {learned_in_words(options.vector, options)}")


def build(options: Any, width: int, chooser: Callable[[], Chooser]) -> Mixture | None:
    """The module that weighs the pool, or None without one; see :class:`dplearn.controllers.Decision`."""
    if options.vector == "single":
        return None
    controller = make_controller(options.vector, width, options.pool_size, options)
    return Mixture(controller, options.mixing, chooser() if options.mixing == "hard" else None)


VECTOR = Decision(
    "which",
    build,
    in_words,
    sampled=lambda options: options.vector != "single" and options.mixing == "hard",
)
