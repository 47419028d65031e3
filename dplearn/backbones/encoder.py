"""Encoders (BERT, RoBERTa, DistilBERT, MiniLM and others of their shape), with or without a head.

The prompt passes through all layers of the encoder and leaves before the head: pooler, classifier and loss see the rows
of the input tokens alone, each where it would be without a prompt. So the pooler reads [CLS] (libraries that leave the
prompt in place read a prompt vector instead), labels of tokens stay aligned, and a mean over the input's mask leaves
the prompt out.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dplearn.backbones import position_space
from dplearn.backbones.base import Backbone, rows_of, token_positions


class EncoderBackbone(Backbone):
    """Adapter of a bidirectional encoder whose layers live in one module, ``encoder`` or ``transformer``."""

    def __init__(self, model):
        super().__init__(model)
        self.stack = _stack(model)
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        # RoBERTa counts positions from the row behind that of padding.
        self.table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
        padding = getattr(self.table, "padding_idx", None)
        self.first_position = 0 if padding is None else padding + 1

    @staticmethod
    def refusal(model: nn.Module) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        config = model.config
        if config.is_encoder_decoder or getattr(config, "is_decoder", False):
            return f"expected an encoder, model_type={config.model_type!r} is a decoder or has one"
        if getattr(config, "model_type", "") not in ENCODERS:
            return f"expected one of the encoders {sorted(ENCODERS)}, got model_type={config.model_type!r}"
        if _stack(model) is None:
            return f"{type(model).__name__} has no module that holds its layers"
        return None

    def refuses_position_space(self) -> str | None:
        return None if isinstance(self.table, nn.Embedding) else super().refuses_position_space()

    def check_length(self, total: int) -> None:
        super().check_length(total + self.first_position)

    def hidden_states(self, inputs: Tensor, mask: Tensor) -> Tensor:
        output = self.model.base_model(
            inputs_embeds=inputs, attention_mask=mask, **self._positions(mask), return_dict=True
        )
        return output.last_hidden_state

    def forward(self, placed, **options):
        """``token_type_ids`` (B, T) are those of the input; prompt vectors get type 0."""
        types = options.pop("token_type_ids", None)
        if types is not None:
            options["token_type_ids"] = types.new_zeros(placed.mask.shape).scatter_(
                1, placed.input_positions, types
            )
        carrying = nullcontext()
        if placed.moves is not None:
            carrying = position_space.in_vectors(self.table, placed.moves, self.first_position)
        with rows_of(self.stack, _rows(placed)), carrying:
            return self.model(
                inputs_embeds=placed.embeds,
                attention_mask=placed.mask,
                **self._positions(placed.mask),
                **options,
            )

    def _positions(self, mask: Tensor) -> dict[str, Tensor]:
        """Position ids that count real tokens, so that padding on the left changes nothing."""
        return {"position_ids": token_positions(mask) + self.first_position} if self.takes_positions else {}


# Kinds whose layers were looked at: one stack, absolute positions, a pooler or head behind the stack.
ENCODERS = {"bert", "roberta", "distilbert", "xlm-roberta", "camembert", "electra"}


def _rows(placed) -> Tensor:
    """(B, T): each input token's own row. A pooler reads column 0, so where that is padding (on the left) it holds the
    row of the first real token."""
    own = placed.input_positions
    first = placed.mask.gather(1, own).long().argmax(1, keepdim=True)
    return torch.cat([own.gather(1, first), own[:, 1:]], 1)


def _stack(model: nn.Module) -> nn.Module | None:
    """The module that runs all layers and whose output the pooler or head reads."""
    base = model.base_model
    for name in ("encoder", "transformer"):
        if isinstance(getattr(base, name, None), nn.Module):
            return getattr(base, name)
    return None
