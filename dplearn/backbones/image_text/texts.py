"""The text tower: texts with a prompt around their words, or without, to what the model says about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dplearn.backbones.deep import receiving
from dplearn.backbones.image_text.captions import Captions
from dplearn.backbones.image_text.families import Family, text_tower
from dplearn.backbones.image_text.packing import Packer
from dplearn.backbones.views import Changes, changed, evaluating
from dplearn.prompt import PromptedInput
from dplearn.summaries import masked_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TextTower:
    """The text tower of a frozen model, read as its family reads it."""

    def __init__(self, model: PreTrainedModel, family: Family):
        self.tower, self.family = text_tower(model), family
        self.max_positions = self.tower.config.max_position_embeddings
        self.packer = Packer()

    def columns_read(self, captions: Captions, vectors: int, truncate: bool) -> Captions:
        """The columns of the texts that the tower reads with so many prompt vectors beside them; ``truncate``: as few
        as give the same answers.

        Raises
        ------
        ValueError : there is no room for prompt and texts.
        """
        longest = captions.longest
        if longest + vectors > self.max_positions:
            raise ValueError(
                f"the longest text has {longest} tokens, with {vectors} prompt vectors {longest + vectors}, expected "
                f"at most {self.max_positions} positions: shorten the texts or the prompt"
            )
        return self.family.columns_read(captions, self.max_positions - vectors, truncate)

    def summary(self, inputs: Tensor, words: Tensor) -> Tensor:
        """(C, d): the mean of the last hidden states of the words (C, T), without gradient or dropout."""
        with torch.no_grad(), evaluating(self.tower) as tower:
            return masked_mean(self.run(inputs, tower=tower), words)

    def as_read(self, placed: PromptedInput, captions: Captions) -> PromptedInput:
        """Texts with their prompt as the tower reads them: the start token, which the prompt stood behind, is shown,
        and padding that there is no room for gives way."""
        mask = placed.mask.clone()
        mask[:, : captions.special] = 1
        room = self.max_positions
        rows = placed.input_positions.clamp(max=room - 1)  # of padding that is gone: the last row
        return placed._replace(embeds=placed.embeds[:, :room], mask=mask[:, :room], input_positions=rows)

    def plain_features(self, inputs: Tensor, captions: Captions) -> Tensor:
        """What the model says about embedded texts (C, T, d) without a prompt: (C, p), not normalised."""
        return self.family.text_answers(self.run(inputs), captions)

    def features(self, placed: PromptedInput, captions: Captions, split: int | None = None) -> Tensor:
        """What the model says about texts with their prompt: (B, p), not normalised.

        Parameters
        ----------
        placed : the C texts once, or B = N * C rows with the C texts once for each of N prompts.
        captions : the C texts.
        split : all N prompts stand around all texts with so many vectors in front, and rows that the C texts of a
            prompt share are computed once (where ``shares_rows``); None: each text is computed by itself.
        """
        if split is not None:
            return self._packed_features(placed, captions, split)
        states = self.run(placed.embeds, deeper=placed.deeper, rows=placed.prompt_positions)
        return self.family.text_answers(states, captions, placed.input_positions)

    @property
    def shares_rows(self) -> bool:
        """Whether texts can share rows: a causal tower whose attention takes any mask."""
        return self.family.causal_text and self.tower.config._attn_implementation in ("sdpa", "eager")

    def _packed_features(self, placed: PromptedInput, captions: Captions, split: int) -> Tensor:
        """The same with shared rows computed once (:mod:`dplearn.backbones.image_text.packing`)."""
        texts, (_, rows, width) = len(captions.ends), placed.embeds.shape
        several = placed.embeds.view(-1, texts * rows, width)
        answers = []
        for pack in self.packer.packs(captions, split, rows, several.device):
            deep: dict[str, Any] = {}
            if placed.deeper is not None:
                deeper = placed.deeper if placed.deeper.ndim == 3 else placed.deeper[::texts]
                deep["deeper"] = deeper.index_select(-2, pack.vectors)
                deep["rows"] = pack.holders.expand(len(several), -1)
            mask = pack.attention_mask(several.dtype)
            states = self.run(several.index_select(1, pack.source), mask, pack.place, **deep)
            answers.append(
                self.family.answers_at(states, pack.reads.expand(len(several), -1))
            )  # (N, chosen, p)
        return torch.cat(answers, 1).flatten(0, 1)

    def run(
        self,
        embeds: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        deeper: Tensor | None = None,
        rows: Tensor | None = None,
        tower: PreTrainedModel | None = None,
    ) -> Tensor:
        """Last hidden states (B, S, d) of rows (B, S, d) that have no positions yet.

        Parameters
        ----------
        mask : added to the attention's scores; None: the tower's own.
        positions : (S,), of the rows; None: they are counted from 0.
        deeper : vectors for the ``rows`` (B, l) of further layers (:func:`dplearn.backbones.deep.receiving`).
        tower : a view of the tower that runs in its place.
        """
        tower = self.tower if tower is None else tower
        if positions is None:
            positions = torch.arange(embeds.shape[1], device=embeds.device)
        # Not through the tower's own embeddings: they refuse packed sequences that are longer than their table.
        embeds = embeds + tower.embeddings.position_embedding(positions)
        # The tower wants ids; only their shape is used. (It reads an answer from them that is not used either.)
        ids = torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        changes: Changes = {"embeddings": lambda *_, **__: embeds}
        if deeper is not None:
            changes |= receiving(self.tower, self.tower.encoder.layers, deeper, cast(Tensor, rows))
        with changed(tower, changes) as view:
            return view(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
