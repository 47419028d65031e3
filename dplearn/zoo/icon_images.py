"""Icons as images: their masks, rendered once per run folder, and the pixels that vit-mini and clip-mini read."""

from pathlib import Path

import numpy as np
import torch

from ..files import replacing
from .icons import Icon, fonts_version, icons, paint, render_all
from .vision_models import image_processor

RENDERED = 40  # pixels of the cached masks, which are reduced to SIZE after they are moved and turned


def rendered(folder: Path, part: str) -> tuple[list[Icon], torch.Tensor]:
    """The icons of a part and their masks (N, 40, 40) uint8, rendered once per run folder."""
    chosen, file = icons(part), folder / f"{part}-{fonts_version()}.npy"
    if not file.exists():
        masks = render_all(chosen, RENDERED)
        with replacing(file) as target:
            np.save(target, masks)
    return chosen, torch.from_numpy(np.load(file))


def pixels_of(name: str, masks: torch.Tensor) -> torch.Tensor:
    """Black on white, through the image processor that ships: (N, 3, 28, 28)."""
    images = [paint(mask) for mask in masks.numpy()]
    return image_processor(name)(images, return_tensors="pt")["pixel_values"]


def held_out_data(folder: Path, name: str) -> dict:
    """{part: (icons, pixels)} for the reports, at most 1,000 icons a part, evenly chosen."""
    result = {}
    for part in ("validation", "icons", "style"):
        chosen, masks = rendered(folder, part)
        step = -(-len(chosen) // 1000)
        result[part] = (chosen[::step], pixels_of(name, masks[::step]))
    return result
