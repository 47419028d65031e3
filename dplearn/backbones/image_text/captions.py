"""Texts as a text tower reads them: where they start and end, and what they share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Captions(NamedTuple):
    """Texts as a text tower reads them. What decides about shapes is plain integers, known before the model runs."""

    input_ids: Tensor  # (C, T), real tokens first
    mask: Tensor  # (C, T), 1 = tokens that the prompt surrounds, and CLIP's end token, which stays behind it
    ends: tuple[int, ...]  # CLIP: the column of the end token; SigLIP: the first one behind the words
    special: int  # columns in front of the prompt: 1 where there is a start token
    shared: int  # columns, counted from the front, in which all texts are alike

    @property
    def longest(self) -> int:
        """The tokens of the longest text, an end token or one column of padding included."""
        return max(self.ends) + 1

    def first_columns(self, number: int) -> Captions:
        """The texts without their columns behind the first ``number``."""
        return self._replace(input_ids=self.input_ids[:, :number], mask=self.mask[:, :number])


def check_texts(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Raise TypeError where these are no tensors, ValueError where they are no token ids (C, T) with a mask of the same
    shape, or none."""
    for name, value in (("input_ids", input_ids), ("attention_mask", attention_mask)):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"{name} is a {type(value).__name__}, expected a tensor: "
                "processor(text=captions, padding=True, return_tensors='pt') makes them of captions"
            )
    if input_ids.ndim != 2 or input_ids.is_floating_point() or 0 in input_ids.shape:
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)} and dtype {input_ids.dtype}, expected integers (texts, seq)"
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected {tuple(input_ids.shape)} as input_ids"
        )


def alike_columns(input_ids: Tensor) -> int:
    """In how many columns, counted from the front, all rows are alike.

    >>> import torch
    >>> alike_columns(torch.tensor([[9, 4, 5], [9, 4, 6]]))
    2
    """
    return int((input_ids == input_ids[:1]).all(0).int().cumprod(0).sum())
