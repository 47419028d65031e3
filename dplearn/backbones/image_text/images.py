"""The image tower: images with a prompt behind their patches, or without, to what the model says about them.

A prompt for both towers has a part of its own for the images: vectors, or maps from those of the texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dplearn.backbones.deep import receiving
from dplearn.backbones.image_text.families import Family, image_tower
from dplearn.backbones.patches import check_pixels
from dplearn.backbones.rows import with_rows
from dplearn.backbones.views import Changes, changed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ImageTower:
    """The image tower of a frozen model, read as its family reads it."""

    def __init__(self, model: PreTrainedModel, family: Family):
        self.tower, self.family = image_tower(model), family

    @property
    def projection(self) -> nn.Conv2d:
        """The module that embeds patches."""
        return self.tower.embeddings.patch_embedding

    @property
    def width(self) -> int:
        """The width of the embedded patches."""
        return self.tower.config.hidden_size

    def rows(self, pixel_values: Tensor, **options) -> Tensor:
        """(N, channels, height, width) -> (N, T, width): embedded patches with their positions, [CLS] first."""
        check_pixels(pixel_values, self.projection)
        with torch.no_grad():
            return self.tower.embeddings(pixel_values, **options)

    def summary(self, pixel_values: Tensor, **options) -> Tensor:
        """(N, width): the mean of the embedded patches, which an image prompt's decisions look at."""
        return self.rows(pixel_values, **options)[:, self.family.special_rows :].mean(1)

    def features(self, pixel_values: Tensor, vectors: Tensor | None = None, **options) -> Tensor:
        """What the model says about images: (N, p), not normalised, without gradient where there is no prompt.

        Parameters
        ----------
        pixel_values : (N, channels, height, width).
        vectors : (depth, l, width) or (N, depth, l, width), a prompt for the first layers.
        options : those of the tower's embeddings, ``interpolate_pos_encoding``.
        """
        rows = self.rows(pixel_values, **options)
        if vectors is None:
            with torch.no_grad():
                return self._answers(pixel_values, rows)
        batch, count, length = *rows.shape[:2], vectors.shape[-2]
        vectors = vectors.to(rows.dtype)
        rows = torch.cat([rows, vectors.select(-3, 0).expand(batch, -1, -1)], 1)
        own = torch.arange(count, device=rows.device).expand(batch, -1)
        changes: Changes = {
            "encoder": lambda usual, *values, **options: with_rows(usual(*values, **options), own)
        }
        if vectors.shape[-3] > 1:
            deeper = vectors.narrow(-3, 1, vectors.shape[-3] - 1)
            holders = torch.arange(count, count + length, device=rows.device).expand(batch, -1)
            changes |= receiving(self.tower, self.tower.encoder.layers, deeper, holders)
        return self._answers(pixel_values, rows, changes)

    def _answers(self, pixel_values: Tensor, rows: Tensor, changes: Changes | None = None) -> Tensor:
        """What the model says about embedded rows: (N, p)."""
        with changed(self.tower, {**(changes or {}), "embeddings": lambda *_, **__: rows}) as tower:
            pooled = tower(pixel_values=pixel_values, return_dict=True).pooler_output
        return self.family.image_answers(pooled)


class VisionVectors(nn.Module):
    """Trained vectors of an image prompt beside a text prompt, (depth, l, width)."""

    def __init__(self, vectors: Tensor):
        super().__init__()
        self.vectors = nn.Parameter(vectors)


class Coupling(nn.Module):
    """An image prompt that follows from the text prompt by one linear map for each layer, as in MaPLe (section 3.2)."""

    def __init__(self, depth: int, width: int, vision_width: int):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, vision_width) for _ in range(depth))

    def forward(self, text: Tensor) -> Tensor:
        """(depth, l, d) or (N, depth, l, d) -> the same with the images' width."""
        text = text.to(next(self.parameters()).dtype)
        return torch.stack([layer(text.select(-3, number)) for number, layer in enumerate(self.maps)], -3)
