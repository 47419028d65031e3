"""Encoders (BERT, RoBERTa, DeBERTa, ModernBERT, ALBERT and others), with or without a head.

The prompt passes through all layers of the encoder and leaves before the head: pooler, classifier and loss see the rows
of the input tokens alone, each where it would be without a prompt. So the pooler reads [CLS] (libraries that leave the
prompt in place read a prompt vector instead), labels of tokens stay aligned, and a mean over the input's mask leaves
the prompt out.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from dplearn.backbones import position_space
from dplearn.backbones.base import (
    Backbone,
    Boundary,
    Reading,
    evaluating,
    probe_ids,
    probed_scale,
    standing_in,
    take_rows,
    token_positions,
    tolerance,
    with_rows,
)
from dplearn.backbones.causal import is_causal
from dplearn.backbones.text import Entry, right_padded
from dplearn.backbones.views import below, changed, prepare
from dplearn.config import PromptConfig


class EncoderBackbone(Backbone):
    """Adapter of a bidirectional encoder."""

    def __init__(self, model):
        super().__init__(model)
        self.entry: Entry | None = None
        # RoBERTa counts positions from the row behind that of padding.
        self.table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
        padding = getattr(self.table, "padding_idx", None)
        self.first_position = 0 if padding is None else padding + 1
        if isinstance(getattr(model.config, "rope_parameters", None), dict):
            self.max_positions = None

    @staticmethod
    def refusal(model: nn.Module) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        config = model.config
        if config.is_encoder_decoder or getattr(config, "is_decoder", False):
            return f"expected an encoder, model_type={config.model_type!r} is a decoder or has one"
        if not _is_encoder(model):
            return f"expected an encoder of texts, model_type={config.model_type!r} is not known as one"
        if "inputs_embeds" not in inspect.signature(model.base_model.forward).parameters:
            return f"{type(model.base_model).__name__} does not take inputs_embeds"
        return None

    def probe(self) -> str | None:
        name, ids = type(self.model).__name__, probe_ids(self.model, self.vocabulary).to(self.model.device)
        with evaluating(self.model, copies=False):
            try:
                self.entry = Entry.of(self.model, ids)
            except Exception as error:
                return f"{name} fails on {ids.shape[1]} tokens: {type(error).__name__}: {str(error)[:200]}"
        if self.entry is None:
            return f"the head of {name} does not run its base model on embedded tokens"
        found = probed_scale(self.model, self.embedding, self.entry.module, self._states)
        if isinstance(found, str):
            return found
        self.scale = found
        with evaluating(self.model, copies=False), torch.no_grad():
            return self._reads_padding(self.embed(ids))

    def _reads_padding(self, rows: Tensor) -> str | None:
        """Why an input's answer would depend on its batch, or None: convolutions and Fourier transforms look at rows
        that the mask hides."""
        mask = torch.ones(1, rows.shape[1] + 1, dtype=torch.long, device=rows.device)
        mask[:, -1] = 0
        pad = getattr(self.model.config, "pad_token_id", None)
        hidden = rows[:, :1] if pad is None else self.embed(torch.tensor([[pad]], device=rows.device))
        plain = self.hidden_states(self.model, rows, mask[:, :-1]).float()
        found = self.hidden_states(self.model, torch.cat([rows, hidden], 1), mask)[:, :-1].float()
        difference = (found - plain).abs().max()
        if difference <= 10 * tolerance(self.model) * plain.abs().max():
            return None
        return (
            f"{type(self.model).__name__} answers {difference:.2g} differently where padding follows an input, though "
            "the mask hides it"
        )

    def _states(self, **tokens) -> Tensor:
        like = next(iter(tokens.values()))
        mask = torch.ones(like.shape[:2], dtype=torch.long, device=like.device)
        places = self._positions(mask) if "inputs_embeds" in tokens else {}
        return self.entry.module(**tokens, **places, attention_mask=mask, return_dict=True).last_hidden_state

    def refuses_position_space(self) -> str | None:
        if not isinstance(self.table, nn.Embedding):
            return super().refuses_position_space()
        reason, like = position_space.blocks_of(self.model.config), self.embedding.weight.new_empty(0)
        if reason is None:
            with evaluating(self.model, copies=False):
                reason = position_space.refuses_order(self._ordered_states, self.width, like)
        return reason and f"{type(self.model).__name__}: {reason}"

    def _ordered_states(self, rows: Tensor, order: Tensor | None) -> Tensor:
        """Hidden states of rows (1, S, d) that stand at ``order`` (S,); None: as they come."""
        path = below(self.entry.path, "embeddings.position_embeddings")
        changes = (
            {} if order is None else position_space.standing_at(path, self.table, order, self.first_position)
        )
        with changed(self.model, changes) as model:
            mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
            return self.hidden_states(model, rows, mask)

    def check_length(self, total: int) -> None:
        super().check_length(total + self.first_position)

    def read(self, batch: dict, boundary: Boundary, config: PromptConfig, size: int | None = None) -> Reading:
        """Padding moves to the right: not every encoder takes position ids."""
        self._refuse_images(batch)
        ids, mask, rows = self._tokens(batch)
        self.check_length(mask.shape[1] + config.length)
        tokens = {"input_ids": ids} if rows is None else {"inputs_embeds": rows}
        tokens, mask, columns = right_padded(tokens, mask)
        rows = self.embed(tokens["input_ids"]) if rows is None else tokens["inputs_embeds"]
        return Reading(rows, mask, mask, boundary.kept(mask), batch, columns)

    def hidden_states(self, model, inputs: Tensor, mask: Tensor) -> Tensor:
        output = model.get_submodule(self.entry.path)(
            inputs_embeds=inputs, attention_mask=mask, **self._positions(mask), return_dict=True
        )
        return output.last_hidden_state

    def run(self, placed, reading: Reading, head: nn.ModuleDict | None = None):
        """Token types (B, T) are those of the input; prompt vectors get type 0."""
        rows, changes, stack = _rows(placed, reading), standing_in(head), self._stack()
        if placed.moves is not None:
            name = below(self.entry.path, "embeddings.position_embeddings")
            changes[name] = position_space.in_vectors(self.table, placed.moves, self.first_position)
        enter = self.entry(placed, reading, rows if stack is None else None, first=self.first_position)
        if stack is not None:
            full = []

            def leave(usual, *values, **options):
                output = usual(*values, **options)
                full.append(output[0])
                return with_rows(output, rows)

            changes[stack] = leave
            enter = _keeping_all_rows(enter, full)
        elif getattr(self.entry.module, "pooler", None) is not None:

            def pool(usual, states, *values, **options):
                return usual(take_rows(states, rows), *values, **options)

            changes[below(self.entry.path, "pooler")] = pool
        changes[self.entry.path] = enter
        prepare(self.entry.module, reading.given)
        with changed(self.model, changes) as model:
            return model(**reading.given)

    def _stack(self) -> str | None:
        """The path of the module inside of the base model that a pooler reads; None where there is no pooler or no such
        module (only layers)."""
        if getattr(self.entry.module, "pooler", None) is None:
            return None
        for name in ("encoder", "transformer"):
            if isinstance(getattr(self.entry.module, name, None), nn.Module):
                return below(self.entry.path, name)
        return None

    def _positions(self, mask: Tensor) -> dict[str, Tensor]:
        """Position ids that count real tokens, so that padding on the left changes nothing."""
        takes = self.entry.takes_positions
        return {"position_ids": token_positions(mask) + self.first_position} if takes else {}


def _keeping_all_rows(enter, full: list):
    """The states of the last layer hold the rows of the prompt, as those of all other layers do."""

    def forward(usual, *values, **options):
        output = enter(usual, *values, **options)
        states = getattr(output, "hidden_states", None)
        if states is not None and states[-1].shape != full[-1].shape:
            output["hidden_states"] = (*states[:-1], full[-1])
        return output

    return forward


def _rows(placed, reading: Reading) -> Tensor:
    """(B, T): each input token's own row. A pooler reads column 0, so where that is padding (on the left) it holds the
    row of the first real token."""
    own = reading.places(placed)
    first = placed.mask.gather(1, own).long().argmax(1, keepdim=True)
    return torch.cat([own.gather(1, first), own[:, 1:]], 1)


def _is_encoder(model: nn.Module) -> bool:
    """Whether transformers knows the kind as one that classifies texts or fills in words, and not as a decoder."""
    from transformers.models.auto import modeling_auto

    kind = model.config.model_type
    known = (
        kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        or kind in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    )
    return known and not is_causal(model)
