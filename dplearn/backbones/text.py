"""What text models share whose prompt enters at the base model: rows go in, and the input's own rows come out.

The head never learns of the prompt. The base model inside of it is replaced, for one call, by one that takes the
prompted rows and gives back the rows of the input (:class:`Entry`). So what stands behind it (pooler, classifier,
language-modelling head, the search for the last token, the loss) reads the tokens, masks and labels that the user gave,
each hidden state where it would be without a prompt.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dplearn.backbones.base import Reading, token_positions, with_rows
from dplearn.backbones.views import Change, below, changed, path_of
from dplearn.prompt import PromptedInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the base model is told anew; everything else that has a value for each token moves with its token.
PLACED = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")


class Entry:
    """The module of a model that a prompted input enters, and whose last hidden states the head reads.

    path : of the module inside of the model, "" where it is the model itself.
    """

    def __init__(self, model: PreTrainedModel, path: str):
        self.path = path
        self.module = model.get_submodule(path)
        self.names = list(inspect.signature(self.module.forward).parameters)
        self.takes_positions = "position_ids" in self.names

    @classmethod
    def of(cls, model: PreTrainedModel, ids: Tensor) -> Entry | None:
        """The base model, or its decoder where the head calls that directly (OPT); None where the head calls neither.

        ids : (1, T) tokens to try it with.
        """
        base = model.base_model
        path = path_of(model, base)
        for candidate in (path, below(path, "decoder")):
            try:
                module = model.get_submodule(candidate)
            except AttributeError:
                continue
            if "inputs_embeds" in inspect.signature(module.forward).parameters and _calls(
                model, candidate, ids
            ):
                return cls(model, candidate)
        return None

    def arguments(self, values: tuple, options: dict) -> dict:
        """What the module was called with, by name, without those that are None."""
        named = dict(zip(self.names, values)) | options
        return {name: value for name, value in named.items() if value is not None}

    def __call__(
        self,
        placed: PromptedInput,
        reading: Reading,
        rows: Tensor | None,
        mask: Tensor | None = None,
        first: int = 0,
    ) -> Change:
        """The change by which the module gets a prompted input and gives back ``rows`` (B, N) of its last states.

        rows : None: the states as they are (they were picked inside).
        mask : another one than the prompted input's, such as (B, 1, S, S).
        first : the position of the first token.
        """

        def forward(usual, *values, **options):
            inner = self.arguments(values, options)
            positions = inner.get("position_ids")
            places = reading.places(placed)
            shape, kept = places.shape, {}
            for name, value in inner.items():
                if name not in PLACED:
                    # What is about an encoder's rows (cross-attention) may have the input's shape by chance.
                    beside = name.startswith("encoder_") or not isinstance(value, Tensor)
                    per_token = not beside and value.shape[:2] == shape
                    kept[name] = moved(value, placed, places) if per_token else value
            if self.takes_positions:
                counted = token_positions(placed.mask) + first
                if positions is not None:
                    refuse_packed(positions, inner)
                    counted = continued_positions(positions.expand(shape), placed, reading, places)
                kept["position_ids"] = counted
            output = usual(
                inputs_embeds=placed.embeds, attention_mask=placed.mask if mask is None else mask, **kept
            )
            return output if rows is None else with_rows(output, rows)

        return forward


def _calls(model: PreTrainedModel, path: str, ids: Tensor) -> bool:
    calls = []

    def recording(usual, *values, **options):
        calls.append(path)
        return usual(*values, **options)

    with torch.no_grad(), changed(model, {path: recording}) as view:
        view(ids)
    return bool(calls)


def moved(values: Tensor, placed: PromptedInput, places: Tensor, fill: float = 0) -> Tensor:
    """Values of tokens, (B, T, ...), in the rows where they went, and ``fill`` in those of the prompt: (B, S, ...)."""
    batch, count = placed.mask.shape
    index = places.view(*places.shape, *[1] * (values.ndim - 2)).expand_as(values)
    return values.new_full((batch, count, *values.shape[2:]), fill).scatter(1, index, values)


def continued_positions(positions: Tensor, placed: PromptedInput, reading: Reading, places: Tensor) -> Tensor:
    """Position ids (B, S) for tokens with ids of their own, (B, T): each moves up by the number of vectors in front of
    it, and vectors continue the count of the row in front of them (or precede that of the first token)."""
    is_token = moved(torch.ones_like(positions), placed, places)
    real = moved((_columns(reading, reading.mask) != 0).to(positions.dtype), placed, places)
    vector = (1 - is_token) * (placed.mask != 0)
    before = vector.cumsum(1)  # vectors up to each row
    own = moved(positions, placed, places) + before
    steps = torch.arange(own.shape[1], device=own.device)
    known = (
        torch.where((real * is_token) > 0, steps, -1).cummax(1).values
    )  # the last real token up to each row
    first = (real * is_token).argmax(1, keepdim=True)
    start = own.gather(1, first) - before.gather(1, first)  # the first token's own id
    behind = own.gather(1, known.clamp(min=0)) + steps - known
    front = start + before - 1
    return torch.where(is_token > 0, own, torch.where(known >= 0, behind, front)) * (placed.mask != 0)


def refuse_packed(positions: Tensor, given: dict) -> None:
    """Raise ValueError where position ids without a mask start again inside of a row: several texts in one row, which
    attention keeps apart where it sees this (flash attention, or no cache). One prompt cannot stand in all of them."""
    if given.get("attention_mask") is None and not torch.compiler.is_compiling():
        if bool((positions.diff(dim=1) < 1).any()):
            raise ValueError(
                "position_ids start again inside of a row and there is no attention_mask, which means several texts in "
                "one row (packed), expected one text in each row"
            )


def _columns(reading: Reading, values: Tensor) -> Tensor:
    """Values of rows, (B, T), in the user's columns."""
    return values if reading.columns is None else values.gather(1, reading.columns)


def right_padded(reading_of: dict, mask: Tensor) -> tuple[dict, Tensor, Tensor]:
    """Ids or rows with padding on the right, their mask (B, T), and the row that holds each given column (B, T)."""
    # The rows move around by the padding in front; what else the mask hides stays where it is.
    steps, first = torch.arange(mask.shape[1], device=mask.device), (mask != 0).long().argmax(1, keepdim=True)
    order = (steps + first) % mask.shape[1]
    taken = {}
    for name, value in reading_of.items():
        index = order if value.ndim == 2 else order.unsqueeze(2).expand_as(value)
        taken[name] = value.gather(1, index)
    return taken, mask.gather(1, order), (steps - first) % mask.shape[1]
