"""By what a model's rows know where they stand, and how that is taken away for one pass.

Changes of modules (:mod:`dplearn.backbones.views`), for whoever asks through what the place of a prompt acts on a model
(:mod:`dplearn.theory.sensitivity`). The model itself stays as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dplearn.backbones.views import Changes

ABSOLUTE, RELATIVE, ROTARY = "absolute positions", "relative bias", "rotary angles"


class Mechanism(NamedTuple):
    """The position information of a model, behind the place where a prompt enters.

    name : one of the three above; None: there is none, or none that is known.
    paths : the modules whose outputs are all of it.
    first : where it is one table that position ids look up: the row of position 0.
    unreached : why it cannot be switched off; None: it can, or there is none.
    """

    name: str | None = None
    paths: tuple[str, ...] = ()
    first: int | None = None
    unreached: str | None = None

    def off(self) -> Changes:
        """The changes by which all rows stand nowhere."""
        return dict.fromkeys(self.paths, _silent)

    def standing_at(self, positions: Tensor) -> Changes:
        """The change by which the rows stand at these positions, (B, S), whatever the model counts."""
        if self.first is None:
            raise ValueError(f"{self.name or 'no positions'}: expected one table that position ids look up")
        ids = positions + self.first
        return {self.paths[0]: lambda usual, *arguments, **options: usual(ids)}


def _silent(usual, *arguments, **options):
    """Rotary angles of zero (cosine 1, sine 0), or vectors and biases of zero."""
    output = usual(*arguments, **options)
    if isinstance(output, tuple):
        return torch.ones_like(output[0]), torch.zeros_like(output[1])
    return torch.zeros_like(output)


def padding_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask (B, 1, S, S) to add to scores that hides padding of a mask (B, S) and nothing else."""
    hidden = (mask == 0)[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    return torch.zeros(hidden.shape, dtype=dtype, device=mask.device).masked_fill(
        hidden, torch.finfo(dtype).min
    )


def hiding_padding_alone(usual, *arguments, inputs_embeds: Tensor, attention_mask: Tensor, **options):
    """The change of a decoder by which its rows see later ones too."""
    mask = padding_mask(attention_mask, inputs_embeds.dtype)
    return usual(*arguments, inputs_embeds=inputs_embeds, attention_mask=mask, **options)
