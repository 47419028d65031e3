"""DynamicPrompt: the trained vectors and the decisions about them, applied to an embedded input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dplearn.choice import Choice
from dplearn.insertion import insert, insert_weighted


class PromptedInput(NamedTuple):
    """An input with its prompt in place, and what was decided.

    embeds: (B, T + l, d).  mask: (B, T + l).  input_positions: (B, T), where each input token went.
    prompt_positions: (B, l), where each prompt vector stands.  decisions: choices by name, here "position".
    """

    embeds: Tensor
    mask: Tensor
    input_positions: Tensor
    prompt_positions: Tensor
    decisions: dict[str, Choice]


class DynamicPrompt(nn.Module):
    """A trained prompt whose place around the input is fixed or decided per task or per input.

    Parameters
    ----------
    vectors : (l, d), the initial prompt. Becomes the parameter ``vectors``, kept in its own dtype (float32 is
        advised) and cast to the input's dtype when it is inserted.
    position : module from a summary (B, d) to a :class:`~dplearn.choice.Choice` of split
        (:mod:`dplearn.position`).

    Raises
    ------
    ValueError : ``vectors`` is not a floating-point (l, d) tensor with l >= 1.
    """

    def __init__(self, vectors: Tensor, position: nn.Module):
        super().__init__()
        if vectors.ndim != 2 or vectors.shape[0] < 1 or not vectors.is_floating_point():
            raise ValueError(
                f"vectors has shape {tuple(vectors.shape)} and dtype {vectors.dtype}, "
                "expected (length, width) with length >= 1, floating point"
            )
        self.vectors = nn.Parameter(vectors.detach().clone())
        self.position = position

    @property
    def length(self) -> int:
        """l, the number of prompt vectors."""
        return self.vectors.shape[0]

    @property
    def needs_summary(self) -> bool:
        """Whether a decision looks at the input."""
        return self.position.needs_summary

    def forward(
        self, inputs: Tensor, mask: Tensor, summary: Tensor | None = None, keep_last: int | Tensor = 0
    ) -> PromptedInput:
        """Insert the prompt into a batch of embedded inputs.

        Parameters
        ----------
        inputs : (B, T, d) embedded input.
        mask : (B, T), 1 = real.
        summary : (B, d), what instance-level decisions look at; required where ``needs_summary``.
        keep_last : how many last real tokens stay last (1 keeps an end-of-sequence token last); int or (B,).
        """
        if self.needs_summary and summary is None:
            raise ValueError(
                "summary=None, expected a (batch, width) tensor: the position is decided per instance"
            )
        choice = self.position(inputs if summary is None else summary)
        vectors = self.vectors.to(inputs.dtype)
        if choice.weights is not None and torch.is_grad_enabled():
            placed = insert_weighted(vectors, inputs, mask, choice.weights, keep_last=keep_last)
        else:
            placed = insert(vectors, inputs, mask, choice.index, keep_last=keep_last)
        return PromptedInput(
            placed.embeds, placed.mask, placed.input_positions, placed.prompt_positions, {"position": choice}
        )
