"""Decoder-only models (GPT-2, Llama, Qwen and others that take `inputs_embeds` and `position_ids`).

Where the input ends is told by the labels: the last tokens that have labels are the answer, which stays behind the
whole prompt; the prompt stands around the tokens before. With no labels (generation) all tokens are the question. The
language-modelling head sees one row per input token, the one that predicts the next token: before the first answer
token that is the last prompt vector of a postfix. So logits and labels have the shapes that they have without a prompt.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from dplearn.backbones.base import Backbone, rows_of, token_positions


class CausalBackbone(Backbone):
    """Adapter of a decoder-only model with or without a head."""

    summarize_kept = False

    @staticmethod
    def refusal(model: nn.Module) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        config = model.config
        if config.is_encoder_decoder:
            return f"expected a decoder-only model, model_type={config.model_type!r} has an encoder"
        if not _is_causal(model):
            return f"expected a decoder-only model, model_type={config.model_type!r} is not known as one"
        parameters = inspect.signature(model.base_model.forward).parameters
        for needed in ("inputs_embeds", "position_ids"):
            if needed not in parameters:
                return f"{type(model.base_model).__name__} does not take {needed}"
        return None

    def keep_last(self, input_ids: Tensor | None, mask: Tensor, labels: Tensor | None) -> int | Tensor:
        """(B,): the real tokens from the first one with a label on; 0 without labels."""
        if labels is None or labels.shape != mask.shape:
            return 0
        labelled = (labels != -100) & (mask != 0)
        return ((labelled.cumsum(1) > 0) & (mask != 0)).sum(1)

    def hidden_states(self, inputs: Tensor, mask: Tensor) -> Tensor:
        output = self.model.base_model(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=token_positions(mask),
            use_cache=False,
            return_dict=True,
        )
        return output.last_hidden_state

    def forward(self, placed, **options):
        positions = token_positions(placed.mask)
        with rows_of(self.model.base_model, self._rows(placed)):
            return self.model(
                inputs_embeds=placed.embeds, attention_mask=placed.mask, position_ids=positions, **options
            )

    def generate(self, placed, **options) -> Tensor:
        """Returns the new tokens alone, as transformers does for ``inputs_embeds``. Padding goes to the left first."""
        order = placed.mask.long().argsort(
            dim=1, stable=True
        )  # padding before real rows, each in their order
        embeds = placed.embeds.gather(1, order.unsqueeze(2).expand_as(placed.embeds))
        return self.model.generate(
            inputs_embeds=embeds, attention_mask=placed.mask.gather(1, order), **options
        )

    def _rows(self, placed) -> Tensor:
        """Which row the head reads: for language models the one before the next input token, for classifiers of the
        whole text the last real one, else each token's own."""
        own, steps = placed.input_positions, torch.arange(placed.mask.shape[1], device=placed.mask.device)
        last = (steps * (placed.mask != 0)).amax(1, keepdim=True)
        if _classifies_text(self.model):
            return last
        if self.model.get_output_embeddings() is None:
            return own
        return torch.cat([own[:, 1:] - 1, last], 1).clamp(min=0)


def _is_causal(model: nn.Module) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from dplearn.backbones.encoder import ENCODERS

    kind = model.config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in ENCODERS


def _classifies_text(model: nn.Module) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    names = set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())
    return any(parent.__name__ in names for parent in type(model).__mro__)
