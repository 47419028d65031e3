"""New training images from the masks of icons: size, place, rotation, stroke, blur, noise and the two colours vary."""

import torch
from torch.nn import functional as F

from .vision_models import SIZE


def augment(masks: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Coverage masks (B, H, H) uint8 as new training images (B, 3, 28, 28) from -1 to 1.

    Half of the strokes are made thicker, thinner or blurred; then size, aspect, rotation, shear and place change; ink
    and paper get colours (half of the time greys) that differ in brightness; a little noise is added. A ``strength``
    below 1 means smaller changes, and black on white for that much more of the images.
    """
    count = len(masks)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    def around(reach, *shape):
        return strength * uniform(-reach, reach, *shape)

    x = masks.float().div(255).unsqueeze(1)
    kind, mix = uniform(0, 1, 1, 1, 1), uniform(0.3, 1, 1, 1, 1)
    changed = torch.where(kind < 0.2, F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1))
    changed = torch.where(kind < 0.3, changed, F.avg_pool2d(x, 3, 1, 1))
    x = torch.where(kind < 0.5, strength * mix * changed + (1 - strength * mix) * x, x)
    size, aspect, angle, shear = 0.95 + around(0.25) - 0.1 * strength, around(0.1), around(0.2), around(0.1)
    shift = around(0.12, 2)
    wide, high = 1 / (size * torch.exp(aspect)), 1 / (size * torch.exp(-aspect))
    rows = [
        torch.stack([wide * angle.cos(), -high * (angle.sin() + shear), shift[:, 0]], -1),
        torch.stack([wide * angle.sin(), high * angle.cos(), shift[:, 1]], -1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [count, 1, SIZE, SIZE], align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    paper, ink, grey = uniform(0, 1, 3), uniform(0, 1, 3), uniform(0, 1, 1) < 0.5
    paper, ink = (torch.where(grey, colour[:, :1], colour) for colour in (paper, ink))
    bright = paper.mean(1, keepdim=True)
    faint = (ink.mean(1, keepdim=True) - bright).abs() < 0.3
    ink = torch.where(faint, (bright < 0.5).float().expand_as(ink), ink)
    coloured = uniform(0, 1, 1) < strength
    ink = torch.where(coloured, ink, torch.zeros_like(ink))[..., None, None]
    paper = torch.where(coloured, paper, torch.ones_like(paper))[..., None, None]
    image = paper * (1 - x) + ink * x
    image = image + strength * uniform(0, 0.06, 1, 1, 1) * torch.randn(image.shape, generator=generator)
    return image.clamp(0, 1) * 2 - 1
