"""Encoder-decoder models (T5, Flan-T5, BART and any other whose encoder takes `inputs_embeds`).

The prompt enters the encoder's input. The decoder reads the encoder's rows through cross-attention and the mask, so the
labels stay as they are. Where an input ends with the end-of-sequence token, that token stays last.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dplearn.controllers import masked_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Seq2SeqBackbone:
    """What a prompt needs to know about an encoder-decoder model. Holds a reference, owns no parameters."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.eos_token_id = model.config.eos_token_id
        # Learned absolute positions have a last row; relative ones (T5) have none.
        self.max_positions = getattr(model.config, "max_position_embeddings", None)

    @staticmethod
    def refusal(model: nn.Module) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        from transformers import PreTrainedModel  # slow to import, and a model at hand has imported it

        if not isinstance(model, PreTrainedModel):
            return f"expected a transformers PreTrainedModel, got {type(model).__module__}.{type(model).__name__}"
        if not model.config.is_encoder_decoder:
            return f"expected an encoder-decoder model, model_type={model.config.model_type!r} is not one"
        if "inputs_embeds" not in inspect.signature(model.get_encoder().forward).parameters:
            return "its encoder does not take inputs_embeds"
        if not hasattr(model, "prepare_inputs_for_generation") or model.get_output_embeddings() is None:
            return f"expected a model with a language-modelling head, {type(model).__name__} has none"
        return None

    @property
    def embedding(self) -> Tensor:
        """The token embedding matrix, (vocabulary, d)."""
        return self.model.get_input_embeddings().weight

    @property
    def width(self) -> int:
        """d, the width of the input embeddings."""
        return self.embedding.shape[1]

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, d) frozen embeddings, scaled as the model does it."""
        with torch.no_grad():
            return self.model.get_input_embeddings()(input_ids)

    def keep_last(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(B,): 1 where the last real token is the end-of-sequence token, which then stays last; else 0."""
        if self.eos_token_id is None:
            return torch.zeros_like(input_ids[:, 0])
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (steps * (mask != 0)).argmax(1, keepdim=True)
        real = (mask != 0).any(1)
        eos = torch.as_tensor(self.eos_token_id, device=input_ids.device).reshape(1, -1)
        return ((input_ids.gather(1, last) == eos).any(1) & real).long()

    def check_length(self, total: int) -> None:
        """Raise ValueError where input plus prompt exceed the model's position table."""
        if self.max_positions is not None and total > self.max_positions:
            raise ValueError(
                f"input plus prompt have {total} positions, but max_position_embeddings={self.max_positions}: "
                "truncate the input or shorten the prompt"
            )

    @torch.no_grad()
    def summarize(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Masked mean of the frozen encoder's last hidden states: (B, T, d), (B, T) -> (B, d).

        Runs the encoder alone, without gradient; the authors' code runs the decoder too, where it has no effect.
        """
        states = self.model.get_encoder()(
            inputs_embeds=inputs, attention_mask=mask, return_dict=True
        ).last_hidden_state
        return masked_mean(states, mask)
