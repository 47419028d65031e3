"""Encoder-decoder models (T5, Flan-T5, BART and any other whose encoder takes `inputs_embeds`).

The prompt enters the encoder's input. The decoder reads the encoder's rows through cross-attention and the mask, so the
labels stay as they are. Where an input ends with the end-of-sequence token, that token stays last.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dplearn.backbones import position_space
from dplearn.backbones.base import Backbone


class Seq2SeqBackbone(Backbone):
    """Adapter of an encoder-decoder model with a language-modelling head."""

    def __init__(self, model):
        super().__init__(model)
        self.eos_token_id = model.config.eos_token_id

    @staticmethod
    def refusal(model: nn.Module) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        if not model.config.is_encoder_decoder:
            return f"expected an encoder-decoder model, model_type={model.config.model_type!r} is not one"
        if "inputs_embeds" not in inspect.signature(model.get_encoder().forward).parameters:
            return "its encoder does not take inputs_embeds"
        if not hasattr(model, "prepare_inputs_for_generation") or model.get_output_embeddings() is None:
            return f"expected a model with a language-modelling head, {type(model).__name__} has none"
        return None

    def keep_last(self, input_ids: Tensor | None, mask: Tensor, labels: Tensor | None) -> int | Tensor:
        """(B,): 1 where the last real token is the end-of-sequence token, which then stays last; else 0."""
        if self.eos_token_id is None or input_ids is None:
            return 0
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (steps * (mask != 0)).argmax(1, keepdim=True)
        real = (mask != 0).any(1)
        eos = torch.as_tensor(self.eos_token_id, device=input_ids.device).reshape(1, -1)
        return ((input_ids.gather(1, last) == eos).any(1) & real).long()

    def hidden_states(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """The encoder's; the authors' code runs the decoder too, where it has no effect."""
        encoder = self.model.get_encoder()
        return encoder(inputs_embeds=inputs, attention_mask=mask, return_dict=True).last_hidden_state

    def refuses_position_space(self) -> str | None:
        if position_space.relative_bias_of(self.model) is None and self._table() is None:
            return f"{type(self.model).__name__}'s encoder has neither a relative bias nor learned positions"
        return None

    def _table(self) -> nn.Module | None:
        """The encoder's learned position vectors (BART); None for relative biases."""
        table = getattr(self.model.get_encoder(), "embed_positions", None)
        return table if isinstance(table, nn.Embedding) else None

    def _carrying(self, moves):
        attention = position_space.relative_bias_of(self.model)
        if attention is None:
            table = self._table()
            return position_space.in_vectors(table, moves, getattr(table, "offset", 0))
        if any(
            getattr(module, "gradient_checkpointing", False) for module in self.model.get_encoder().modules()
        ):
            raise ValueError(
                "estimator='position-space' does not work with gradient checkpointing on a relative bias, which is "
                "made anew in the backward pass: expected gradient checkpointing off or another estimator"
            )
        return position_space.in_relative_bias(attention, moves)

    def forward(self, placed, **options):
        with nullcontext() if placed.moves is None else self._carrying(placed.moves):
            return self.model(inputs_embeds=placed.embeds, attention_mask=placed.mask, **options)

    def generate(self, placed, **options) -> Tensor:
        return self.model.generate(inputs_embeds=placed.embeds, attention_mask=placed.mask, **options)
