"""Encoders (BERT, RoBERTa, DeBERTa, ModernBERT, ALBERT and others), with or without a head.

The prompt passes through all layers of the encoder and leaves before the head: pooler, classifier and loss see the rows
of the input tokens alone, each where it would be without a prompt. So the pooler reads [CLS] (libraries that leave the
prompt in place read a prompt vector instead), labels of tokens stay aligned, and a mean over the input's mask leaves
the prompt out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dplearn.backbones import mechanisms, position_space
from dplearn.backbones.heads import standing_in
from dplearn.backbones.probing import end_of_layers, first_tensor
from dplearn.backbones.reading import Reading
from dplearn.backbones.rows import take_rows, with_rows
from dplearn.backbones.text import TextBackbone
from dplearn.backbones.views import below, changed, evaluating, prepare


class EncoderBackbone(TextBackbone):
    """Adapter of a bidirectional encoder."""

    reads_own_rows = True

    def __init__(self, model):
        super().__init__(model)
        self.table: Any = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
        # The path of what a pooler reads; None where nothing stands behind the layers.
        self.stack: str | None = None

    def look(self, ids: Tensor) -> None:
        """Find where the rows of the prompt leave."""
        with evaluating(self.model, copies=False):
            inside = end_of_layers(self.entry.module, ids)
        self.stack = None if inside is None else below(self.entry.path, inside)

    def mechanism(self) -> mechanisms.Mechanism:
        reason = self.refuses_position_space()
        if reason is not None:
            return mechanisms.Mechanism(unreached=reason)
        first = self.first_position if type(self.table) is nn.Embedding else None
        return mechanisms.Mechanism(mechanisms.ABSOLUTE, (self._table_path,), first)

    @property
    def _table_path(self) -> str:
        return below(self.entry.path, "embeddings.position_embeddings")

    def refuses_position_space(self) -> str | None:
        if not isinstance(self.table, nn.Embedding):
            return super().refuses_position_space()
        reason = position_space.blocks_of(self.model.config) or position_space.refuses_order(
            self.model, self._ordered_states, self.width
        )
        return reason and f"{type(self.model).__name__}: {reason}"

    def _ordered_states(self, rows: Tensor, order: Tensor | None) -> Tensor:
        """Hidden states of rows (1, S, d) that stand at ``order`` (S,); None: as they come."""
        changes = {}
        if order is not None:
            changes = position_space.standing_at(self._table_path, self.table, order, self.first_position)
        with changed(self.model, changes) as model:
            mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
            return self.hidden_states(model, rows, mask)

    def run(self, placed, reading: Reading, head: nn.ModuleDict | None = None):
        """Token types (B, T) are those of the input; prompt vectors get type 0."""
        rows, changes, stack = _rows(placed, reading), standing_in(head), self.stack
        if placed.moves is not None:
            changes[self._table_path] = position_space.in_vectors(
                self.table, placed.moves, self.first_position
            )
        enter = self.entry(placed, reading, rows if stack is None else None, first=self.first_position)
        if stack is not None:
            full = []

            def leave(usual, *values, **options):
                output = usual(*values, **options)
                full.append(first_tensor(output))
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
    """(B, T): each input token's own row. Some heads read the first column, some the last: where that is padding it
    holds the row of the first or of the last real token."""
    own = reading.places(placed)
    real = placed.mask.gather(1, own) != 0
    steps = torch.arange(own.shape[1], device=own.device)
    first = real.long().argmax(1, keepdim=True)
    last = (steps * real).amax(1, keepdim=True)
    return own.gather(1, torch.minimum(torch.maximum(steps.expand_as(own), first), last))
