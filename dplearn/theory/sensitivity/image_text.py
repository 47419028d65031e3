"""CLIP and SigLIP, one tower at a time, with the methods of an adapter that the probe asks for.

:func:`dplearn.prompted` serves these models whole, with a score for each pair of text and image. The probe looks at
the text or the image alone, and takes a model of a single tower as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dplearn.backbones.base import Backbone, Reading, with_rows
from dplearn.backbones.mechanisms import ABSOLUTE, Mechanism, padding_mask
from dplearn.backbones.text import moved, right_padded
from dplearn.backbones.views import Changes, below, changed, path_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CLIPText(Backbone):
    """CLIP's text model, with the start token first and the end-of-text token last, as CoOp (Zhou et al., 2022) places
    its prompts; the answer is read from the end-of-text row, wherever that went."""

    reads_own_rows = causal = True

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.base = getattr(model, "text_model", model)
        self.path = path_of(model, self.base)
        self.max_positions = self.base.config.max_position_embeddings

    @property
    def embedding(self) -> nn.Module:
        """The module that embeds tokens."""
        return self.base.embeddings.token_embedding

    @property
    def filler(self) -> int:
        """Stands for what is no token: no text ends with it, so that the model itself finds where a text ends."""
        return int(self.base.config.eos_token_id == 0)

    def mechanism(self) -> Mechanism:
        return Mechanism(ABSOLUTE, (below(self.path, "embeddings.position_embedding"),), 0)

    def seeing_all(self) -> Changes:
        def forward(usual, *arguments, attention_mask: Tensor, **options):
            last = attention_mask[:, :, -1:]  # what the last row does not see is padding
            return usual(*arguments, attention_mask=last.expand_as(attention_mask), **options)

        return {below(self.path, "encoder"): forward}

    def read(self, batch, boundary, config, size=None) -> Reading:
        """Texts as rows, padding on the right.

        Raises
        ------
        ValueError : a text has no end token that is real.
        """
        ids, stop = batch["input_ids"], self.base.config.eos_token_id
        mask = batch.get("attention_mask")
        tokens, mask, columns = right_padded(
            {"input_ids": ids}, torch.ones_like(ids) if mask is None else mask
        )
        rows = self.embed(tokens["input_ids"])
        ids = tokens["input_ids"].masked_fill(mask == 0, self.filler)
        # The library's own rule: the first end token; configurations from before its correction hold a 2 and mean the
        # largest number.
        ends = (ids == (ids.amax(1, keepdim=True) if stop == 2 else stop)) & (mask != 0)
        if not ends.any(1).all():
            row = int((~ends.any(1)).nonzero()[0])
            raise ValueError(
                f"input_ids row {row} has no end token that is real, expected texts with their end token"
            )
        end = ends.int().argmax(1)
        # CLIP's start token is numbered one below its end token, also where the configuration says something else.
        starts = ids[:, 0] == ids.gather(1, end[:, None])[:, 0] - 1
        starts |= ids[:, 0] == self.base.config.bos_token_id
        surrounded, kept = mask.clone(), mask.sum(1) - end
        if ids.shape[1] > 1 and bool(starts.all()):
            surrounded[:, 0] = 0
        return Reading(rows, surrounded, mask, kept, {"input_ids": ids}, columns)

    def finish(self, placed, reading: Reading, entry: str | None):
        """Show the start token, which the prompt stood behind."""
        self.check_length(placed.embeds.shape[1])
        mask = placed.mask.clone()
        mask[:, 0] = 1
        return placed._replace(mask=mask)

    def hidden_states(self, model, inputs: Tensor, mask: Tensor) -> Tensor:
        with changed(model, self._entering(inputs, mask)) as view:
            output = view.get_submodule(self.path)(input_ids=torch.zeros_like(mask), return_dict=True)
        return output.last_hidden_state

    def run(self, placed, reading: Reading, head=None):
        ids = moved(reading.given["input_ids"], placed, placed.input_positions, self.filler)
        with changed(self.model, self._entering(placed.embeds, placed.mask)) as model:
            features = getattr(model, "get_text_features", model)
            return features(input_ids=ids, return_dict=True)

    def _entering(self, embeds: Tensor, mask: Tensor) -> Changes:
        """The changes by which the tower takes rows for tokens, with a mask (B, S) that can be opened."""
        steps = torch.arange(embeds.shape[1], device=embeds.device)
        hidden = padding_mask(mask, embeds.dtype)
        hidden = hidden.masked_fill(steps > steps.unsqueeze(1), torch.finfo(embeds.dtype).min)
        return self._embedded(embeds) | {
            below(self.path, "encoder"): lambda usual, inputs_embeds, **options: usual(
                inputs_embeds=inputs_embeds, attention_mask=hidden
            )
        }

    def _embedded(self, embeds: Tensor) -> Changes:
        return {below(self.path, "embeddings.token_embedding"): lambda *_, **__: embeds}


class SigLIPText(CLIPText):
    """SigLIP's text model: it sees both ways, and its padding too, so the prompt takes the place of padding. The answer
    is read in the last row, which no prompt moves."""

    reads_own_rows = causal = False

    def seeing_all(self) -> Changes:
        return {}

    def read(self, batch, boundary, config, size=None) -> Reading:
        """Texts as rows, padding and all.

        Raises
        ------
        ValueError : a mask hides tokens.
        """
        ids, mask, config = batch["input_ids"], batch.get("attention_mask"), self.base.config
        if mask is not None and not bool((mask != 0).all()):
            raise ValueError(
                "attention_mask hides tokens, expected none: SigLIP is trained to see padding (pass input_ids alone, "
                "padded to max_length)"
            )
        stop = (ids == config.pad_token_id) | (ids == config.eos_token_id)
        words = torch.where(stop.any(1), stop.int().argmax(1), ids.shape[1])
        every = torch.ones_like(ids)
        return Reading(self.embed(ids), every, every, ids.shape[1] - words, {"input_ids": ids})

    def finish(self, placed, reading: Reading, entry: str | None):
        """Padding at the end gives way to the prompt."""
        room, total = self.max_positions, placed.embeds.shape[1]
        self.check_length(total - int(reading.keep_last.min()))
        rows = placed.input_positions.clamp(max=room - 1)  # of padding that is gone: the last row
        return placed._replace(
            embeds=placed.embeds[:, :room], mask=placed.mask[:, :room], input_positions=rows
        )

    def _entering(self, embeds: Tensor, mask: Tensor) -> Changes:
        return self._embedded(embeds)


class TowerOfImages(Backbone):
    """The vision model of CLIP or SigLIP. A prompt joins the patches after their position vectors, as in MaPLe (Khattak
    et al., 2023), so no mechanism is left behind the insertion. CLIP reads its class token's row, SigLIP all rows."""

    reads, input_name = "images", "pixel_values"
    reads_own_rows = True

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        base = model.base_model
        self.base = getattr(base, "vision_model", base)
        self.path = path_of(model, self.base)
        if type(model).__name__ == "SiglipVisionModel" and not hasattr(self.base, "head"):
            raise TypeError("model=SiglipVisionModel answers with nothing: expected vision_use_head=True")

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, in order."""
        return self.base.encoder.layers

    def mechanism(self) -> Mechanism:
        return Mechanism()

    def read(self, batch, boundary, config, size=None) -> Reading:
        with torch.no_grad():
            rows = self.base.embeddings(batch["pixel_values"])
        every = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
        return Reading(rows, every, every, 0, batch)

    def hidden_states(self, model, inputs: Tensor, mask: Tensor) -> Tensor:
        states: list[Tensor] = []

        def note(usual, *arguments, **options):
            output = usual(*arguments, **options)
            states.append(output[0])  # SigLIP normalises its last hidden states behind this
            return output

        with changed(model, self._embedded(inputs) | {below(self.path, "encoder"): note}) as view:
            view.get_submodule(self.path)(pixel_values=inputs, return_dict=True)
        return states[0]

    def run(self, placed, reading: Reading, head=None):
        def leave(usual, *arguments, **options):
            return with_rows(usual(*arguments, **options), placed.input_positions)

        changes = self._embedded(placed.embeds) | {below(self.path, "encoder"): leave}
        with changed(self.model, changes) as model:
            features = getattr(model, "get_image_features", model)
            return features(pixel_values=placed.embeds, return_dict=True)

    def _embedded(self, embeds: Tensor) -> Changes:
        return {below(self.path, "embeddings"): lambda *_, **__: embeds}


# Classes whose answer is read as these read it, for texts (False) and for images (True).
SERVED = {
    False: {
        CLIPText: ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"),
        SigLIPText: ("SiglipTextModel", "SiglipModel"),
    },
    True: {
        TowerOfImages: (
            "CLIPVisionModel",
            "CLIPVisionModelWithProjection",
            "CLIPModel",
            "SiglipVisionModel",
            "SiglipForImageClassification",
            "SiglipModel",
        )
    },
}


def image_text_adapter(model: PreTrainedModel, image: bool) -> Backbone | None:
    """The adapter of one tower of CLIP or SigLIP, for texts or for images; None for any other model."""
    names = {parent.__name__ for parent in type(model).__mro__}
    for adapter, served in SERVED[image].items():
        if not names.isdisjoint(served):
            return adapter(model)
    return None
