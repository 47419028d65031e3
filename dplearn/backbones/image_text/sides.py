"""One tower alone, with the methods of an adapter: for whoever moves a prompt through it and looks at its rows.

:func:`dplearn.prompted` serves an image-text model whole, with a score for each pair of text and image. The probe
(:mod:`dplearn.theory.sensitivity`) asks about the texts or the images alone. It gets them here, read and run by the
same family and the same towers, and models of a single tower too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dplearn.backbones.base import Backbone
from dplearn.backbones.image_text.captions import Captions
from dplearn.backbones.image_text.families import FAMILIES, Family
from dplearn.backbones.image_text.images import ImageTower
from dplearn.backbones.image_text.texts import TextTower
from dplearn.backbones.mechanisms import ABSOLUTE, Mechanism, padding_mask
from dplearn.backbones.reading import Reading
from dplearn.backbones.rows import with_rows
from dplearn.backbones.views import Changes, below, changed, path_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TextSide(Backbone):
    """Texts alone: the prompt stands where that of a :class:`dplearn.PromptedCLIP` does, and the answer is what the
    model says about a text."""

    def __init__(self, model: PreTrainedModel, family: Family):
        super().__init__(model)
        self.family, self.texts = family, TextTower(model, family)
        self.path = path_of(model, self.texts.tower)
        self.max_positions = self.texts.max_positions
        self.causal, self.reads_own_rows = family.causal_text, family.keep_last > 0

    @property
    def embedding(self) -> nn.Embedding:
        """The module that embeds tokens."""
        return self.texts.tower.embeddings.token_embedding

    def mechanism(self) -> Mechanism:
        return Mechanism(ABSOLUTE, (below(self.path, "embeddings.position_embedding"),), 0)

    def seeing_all(self) -> Changes:
        def forward(usual, *arguments, attention_mask: Tensor, **options):
            last = attention_mask[:, :, -1:]  # what the last row does not see is padding
            return usual(*arguments, attention_mask=last.expand_as(attention_mask), **options)

        return {below(self.path, "encoder"): forward} if self.causal else {}

    def read(self, batch, boundary, config, size=None) -> Reading:
        """Texts as rows.

        Raises
        ------
        ValueError : what :meth:`Family.captions` refuses, or no room for texts and prompt.
        """
        captions = self.family.captions(batch["input_ids"], batch.get("attention_mask"))
        captions = self.texts.columns_read(captions, config.length, truncate=False)
        ids, words = captions.input_ids, self.family.words(captions)
        ends = torch.tensor(captions.ends, device=ids.device)
        given: dict = {"input_ids": ids, "special": captions.special, "ends": ends}
        return Reading(self.embed(ids), captions.mask, words, self.family.keep_last, given)

    def _captions(self, reading: Reading) -> Captions:
        given = reading.given
        ends = tuple(given["ends"].tolist())
        return Captions(given["input_ids"], reading.mask, ends, given["special"], 0)

    def layer_input(self, placed, reading: Reading, entry: str | None):
        """The rows as the tower reads them, which may see padding."""
        placed = self.texts.as_read(placed, self._captions(reading))
        if self.family.hides_vectors:
            return placed
        return placed._replace(mask=torch.ones_like(placed.mask))

    def hidden_states(self, model, inputs: Tensor, mask: Tensor) -> Tensor:
        tower = model.get_submodule(self.path)
        return self.texts.run(inputs, self._attention_mask(mask, inputs.dtype), tower=tower)

    def _attention_mask(self, mask: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What hides padding and later rows, (B, 1, S, S), so that it can be opened; None: the tower hides nothing."""
        if not self.causal:
            return None
        steps = torch.arange(mask.shape[1], device=mask.device)
        later = steps > steps.unsqueeze(1)
        return padding_mask(mask, dtype).masked_fill(later, torch.finfo(dtype).min)

    def run(self, placed, reading: Reading, head=None) -> Tensor:
        """What the model says about each text, (B, p)."""
        states = self.hidden_states(self.model, placed.embeds, placed.mask)
        return self.family.text_answers(states, self._captions(reading), placed.input_positions)


class ImageSide(Backbone):
    """Images alone. The prompt joins the patches after their position vectors, so no mechanism is left behind the
    insertion. CLIP reads its class token's row, SigLIP all rows; a head of the model's own reads as it does."""

    reads, input_name = "images", "pixel_values"
    reads_own_rows = True

    def __init__(self, model: PreTrainedModel, family: Family):
        super().__init__(model)
        self.images = ImageTower(model, family)
        self.path = path_of(model, self.images.tower)
        if not getattr(model.config, "vision_use_head", True):
            raise TypeError(
                f"model={type(model).__name__} answers with nothing: expected vision_use_head=True"
            )

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, in order."""
        return self.images.tower.encoder.layers

    def mechanism(self) -> Mechanism:
        return Mechanism()

    def read(self, batch, boundary, config, size=None) -> Reading:
        rows = self.images.rows(batch["pixel_values"])
        every = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
        return Reading(rows, every, every, 0, batch)

    def hidden_states(self, model, inputs: Tensor, mask: Tensor) -> Tensor:
        states: list[Tensor] = []

        def note(usual, *arguments, **options):
            output = usual(*arguments, **options)
            states.append(output[0])  # SigLIP normalises its last hidden states behind this
            return output

        with changed(model, self._entering(inputs, note)) as view:
            view.get_submodule(self.path)(pixel_values=inputs, return_dict=True)
        return states[0]

    def run(self, placed, reading: Reading, head=None):
        def leave(usual, *arguments, **options):
            return with_rows(usual(*arguments, **options), placed.input_positions)

        with changed(self.model, self._entering(placed.embeds, leave)) as model:
            features = getattr(model, "get_image_features", model)
            return features(pixel_values=placed.embeds, return_dict=True)

    def _entering(self, rows: Tensor, encoder) -> Changes:
        """The changes by which the tower takes rows for pixels, and its layers do what ``encoder`` says."""
        return {below(self.path, "embeddings"): lambda *_, **__: rows, below(self.path, "encoder"): encoder}


def side_of(model: PreTrainedModel, image: bool) -> Backbone | None:
    """The images or the texts of a model of an image-text family, with both towers or with the one; None for others."""
    names = {parent.__name__ for parent in type(model).__mro__}
    for family in FAMILIES.values():
        single = family.image_classes if image else family.text_classes
        if not names.isdisjoint({family.model_class, *single}):
            return (ImageSide if image else TextSide)(model, family(model))
    return None
