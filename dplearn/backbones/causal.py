"""Decoder-only models (GPT-2, Llama, Qwen and others that take `inputs_embeds` and `position_ids`).

Where the input ends is told by the labels: the last tokens that have labels are the answer, which stays behind the
whole prompt; the prompt stands around the tokens before. With no labels (generation) all tokens are the question. The
language-modelling head sees one row per input token, the one that predicts the next token: before the first answer
token that is the last prompt vector of a postfix. So logits and labels have the shapes that they have without a prompt.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dplearn.backbones import position_space
from dplearn.backbones.base import Backbone, rows_of, token_positions
from dplearn.estimators import instance_losses


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
        if labels is None or labels.shape != mask.shape or not self._predicts_next():
            return 0  # labels of a classifier, of tokens or of the text, are no answer in the input
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
        positions, mask, carrying = token_positions(placed.mask), placed.mask, nullcontext()
        if placed.moves is not None:
            mask = position_space.visibility(placed.moves, placed.mask, placed.embeds.dtype)
            kind, module = self._positions()
            carrying = getattr(position_space, kind)(module, placed.moves)
        with rows_of(self.model.base_model, self._rows(placed)), carrying:
            return self.model(
                inputs_embeds=placed.embeds, attention_mask=mask, position_ids=positions, **options
            )

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return instance_losses(logits, labels, shift=self._predicts_next())

    def _predicts_next(self) -> bool:
        """Whether the head is a language model's, whose labels are the input's own tokens."""
        return self.model.get_output_embeddings() is not None and not _classifies_text(self.model)

    def _positions(self) -> tuple[str, nn.Module] | None:
        """How position information enters: learned vectors (GPT-2) or rotary angles (Llama), and the module."""
        for name, how in (("wpe", "in_vectors"), ("rotary_emb", "in_rotary_angles")):
            if isinstance(getattr(self.model.base_model, name, None), nn.Module):
                return how, getattr(self.model.base_model, name)
        return None

    def refuses_position_space(self) -> str | None:
        return None if self._positions() is not None else super().refuses_position_space()

    def generate(self, placed, **options) -> Tensor:
        """Returns the new tokens alone, as transformers does for ``inputs_embeds``. Padding goes to the left first."""
        if not self.model.can_generate():
            return super().generate(placed, **options)
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
        if not self._predicts_next():
            return own
        return torch.cat([own[:, 1:] - 1, last], 1).clamp(min=0)


def _is_causal(model: nn.Module) -> bool:
    from transformers.models.auto import modeling_auto

    kind = model.config.model_type
    # Encoders that can be made decoders (BERT, ERNIE, RemBERT) are listed as both; as they come, they look both ways.
    return (
        kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def _classifies_text(model: nn.Module) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    names = set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())
    return any(parent.__name__ in names for parent in type(model).__mro__)
