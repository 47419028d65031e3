"""Encoder-decoder models (T5, Flan-T5, BART and any other whose encoder takes `inputs_embeds`).

The prompt enters the encoder's input. The decoder reads the encoder's rows through cross-attention and the mask, so the
labels stay as they are. Where an input ends with the end-of-sequence token, that token stays last. Padding moves to the
right before the encoder runs: some encoders number their rows themselves.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from dplearn.backbones import mechanisms, position_space
from dplearn.backbones.base import Backbone
from dplearn.backbones.probing import Refused, tried
from dplearn.backbones.reading import Boundary, Reading
from dplearn.backbones.text import moved, no_table, right_padded
from dplearn.backbones.views import Changes, below, changed, evaluating, path_of
from dplearn.config import PromptConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What gives the decoder something to read.
DECODED = ("labels", "decoder_input_ids", "decoder_inputs_embeds")


class Seq2SeqBackbone(Backbone):
    """Adapter of an encoder-decoder model with a language-modelling head."""

    def __init__(self, model):
        super().__init__(model)
        # Two models in one name the token in their own.
        configs = (model.config, getattr(model.get_encoder(), "config", None))
        tokens = [getattr(config, "eos_token_id", None) for config in configs]
        self.eos_token_id = next((token for token in tokens if token is not None), None)
        self.names = set(inspect.signature(model.forward).parameters)

    @staticmethod
    def refusal(model: PreTrainedModel) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        if not model.config.is_encoder_decoder:
            return f"expected an encoder-decoder model, model_type={model.config.model_type!r} is not one"
        if "inputs_embeds" not in inspect.signature(model.get_encoder().forward).parameters:
            return "its encoder does not take inputs_embeds"
        if not hasattr(model, "prepare_inputs_for_generation") or model.get_output_embeddings() is None:
            return f"expected a model with a language-modelling head, {type(model).__name__} has none"
        if "inputs_embeds" not in inspect.signature(model.forward).parameters:
            return f"{type(model).__name__} does not take inputs_embeds"
        return no_table(model)

    def probe(self) -> str | None:
        encoder = self.model.get_encoder()

        def states(mask, first=0, **tokens):
            return encoder(**tokens, attention_mask=mask, return_dict=True).last_hidden_state

        try:
            self.scale = tried(self.model, self.embedding, encoder, states).scale
        except Refused as reason:
            return str(reason)
        return None

    def read(self, batch: dict, boundary: Boundary, config: PromptConfig, size: int | None = None) -> Reading:
        if batch.get("encoder_outputs") is not None:
            raise ValueError(
                "encoder_outputs is given, expected input_ids or inputs_embeds: the prompt enters before the encoder"
            )
        self._refuse_images(batch)
        ids, mask, rows = self._tokens(batch)
        self.check_shapes(batch, tuple(mask.shape))
        self.check_length(mask.shape[1] + config.length)
        tokens = {"input_ids": ids} if rows is None else {"inputs_embeds": rows}
        tokens, mask, columns = right_padded(tokens, mask)
        ids, rows = tokens.get("input_ids"), tokens.get("inputs_embeds")
        keep_last = boundary.kept(mask, self.keep_last(ids, mask))
        rows = self.embed(cast(Tensor, ids)) if rows is None else rows
        return Reading(rows, mask, mask, keep_last, batch, columns)

    def shape_of(self, name: str, batch: dict, shape: tuple[int, ...]) -> tuple[int | None, ...]:
        """What the decoder reads has a length of its own, which its labels and its mask share."""
        if name != "labels" and not name.startswith("decoder_"):
            return super().shape_of(name, batch, shape)
        length = None
        if name != "labels" and isinstance(batch.get("labels"), Tensor) and batch["labels"].ndim == 2:
            length = batch["labels"].shape[1]
        return shape[0], length

    def keep_last(self, input_ids: Tensor | None, mask: Tensor) -> int | Tensor:
        """(B,): 1 where the last real token is the end-of-sequence token, which then stays last; else 0."""
        if self.eos_token_id is None or input_ids is None:
            return 0
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (steps * (mask != 0)).argmax(1, keepdim=True)
        real = (mask != 0).any(1)
        eos = torch.as_tensor(self.eos_token_id, device=input_ids.device).reshape(1, -1)
        return ((input_ids.gather(1, last) == eos).any(1) & real).long()

    def hidden_states(self, model, inputs: Tensor, mask: Tensor) -> Tensor:
        """The encoder's; the authors' code runs the decoder too, where it has no effect."""
        return model.get_encoder()(
            inputs_embeds=inputs, attention_mask=mask, return_dict=True
        ).last_hidden_state

    def mechanism(self) -> mechanisms.Mechanism:
        reason, encoder = self.refuses_position_space(), self.model.get_encoder()
        if reason is not None:
            return mechanisms.Mechanism(unreached=reason)
        path, biases = path_of(self.model, encoder), position_space.relative_biases(encoder)
        if biases:
            paths = tuple(below(path, f"{name}.relative_attention_bias") for name in biases)
            return mechanisms.Mechanism(mechanisms.RELATIVE, paths)
        return mechanisms.Mechanism(mechanisms.ABSOLUTE, (below(path, "embed_positions"),))

    def refuses_position_space(self) -> str | None:
        if not position_space.relative_biases(self.model.get_encoder()) and self.position_table() is None:
            return f"{type(self.model).__name__}'s encoder has neither a relative bias nor learned positions"
        reason = position_space.blocks_of(self.model.config) or position_space.refuses_order(
            self.model, self._ordered_states, self.width
        )
        return reason and f"{type(self.model).__name__}'s encoder: {reason}"

    def _ordered_states(self, rows: Tensor, order: Tensor | None) -> Tensor:
        """Hidden states of rows (1, S, d) that stand at ``order`` (S,); None: as they come."""
        changes: Changes = {}
        encoder = self.model.get_encoder()
        path, biases = path_of(self.model, encoder), position_space.relative_biases(encoder)
        if order is not None and biases:
            changes = {
                f"{below(path, n)}:compute_bias": position_space.bias_standing_at(order) for n in biases
            }
        elif order is not None:
            table = cast(nn.Embedding, self.position_table())
            changes = position_space.standing_at(
                below(path, "embed_positions"), table, order, getattr(table, "offset", 0)
            )
        with changed(self.model, changes) as model:
            mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
            return self.hidden_states(model, rows, mask)

    def position_table(self) -> nn.Embedding | None:
        """The encoder's learned position vectors (BART); None for relative biases."""
        table = getattr(self.model.get_encoder(), "embed_positions", None)
        return table if isinstance(table, nn.Embedding) else None

    def _carrying(self, moves) -> dict:
        """The changes of the encoder by which its position information carries a mixture over splits."""
        encoder = self.model.get_encoder()
        path, attentions = path_of(self.model, encoder), position_space.relative_biases(encoder)
        if not attentions:
            table = cast(nn.Embedding, self.position_table())
            change = position_space.in_vectors(table, moves, getattr(table, "offset", 0))
            return {below(path, "embed_positions"): change}
        if any(getattr(module, "gradient_checkpointing", False) for module in encoder.modules()):
            raise ValueError(
                "estimator='position-space' does not work with gradient checkpointing on a relative bias, which is "
                "made anew in the backward pass: expected gradient checkpointing off or another estimator"
            )
        change = position_space.in_relative_bias(moves)
        return {f"{below(path, name)}:compute_bias": change for name in attentions}

    def run(self, placed, reading: Reading, head: nn.ModuleDict | None = None):
        if self.model.can_generate() and all(reading.given.get(name) is None for name in DECODED):
            raise ValueError(
                f"labels=None and decoder_input_ids=None, expected one of them: the decoder of "
                f"{type(self.model).__name__} has nothing to read (generate needs neither)"
            )
        with changed(self.model, {} if placed.moves is None else self._carrying(placed.moves)) as model:
            return model(**self._given(placed, reading, reading.given))

    def generate(self, placed, reading: Reading, **options) -> Tensor:
        options = self._given(placed, reading, options)
        with evaluating(self.model) as model:
            return model.generate(**options)

    def _given(self, placed, reading: Reading, given: dict) -> dict:
        """What the model gets: the prompted rows, and values of the input's tokens where these went."""
        places, kept = reading.places(placed), {}
        for name, value in given.items():
            if name in ("input_ids", "inputs_embeds", "attention_mask"):
                continue
            of_tokens = name in ("token_type_ids", "global_attention_mask", "langs", "position_ids")
            kept[name] = moved(value, placed, places) if of_tokens and value is not None else value
        return kept | {"inputs_embeds": placed.embeds, "attention_mask": placed.mask}
