"""A prompt beside embedded patches: its first values, and the warning where its place cannot matter."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from dplearn.checks import caller_level
from dplearn.controllers import LEARNED


def check_order_matters(config, name: str, otherwise: str = "") -> None:
    """Warn where a position is to be learned behind the position embeddings. (To be called by an adapter's check.)"""
    if config.position in LEARNED:
        warnings.warn(
            f"position={config.position!r} has nothing to learn on {name}: behind the position embeddings order "
            "does not matter, every split gives the same output (the order-blindness theorem, chapter 04 of the "
            "book), and a split that moves in training does so by chance or by the estimator's error. Expected a "
            f"fixed position{otherwise}",
            UserWarning,
            stacklevel=caller_level(),
        )


def check_pixels(pixel_values: Tensor, projection: nn.Conv2d) -> None:
    """Raise ValueError where these are no images (N, channels, height, width) for a projection of patches."""
    if pixel_values.ndim != 4 or not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)} and dtype {pixel_values.dtype}, "
            f"expected floating point (batch, {projection.weight.shape[1]}, height, width)"
        )


def patch_uniform(
    projection: nn.Conv2d, shape: tuple[int, ...], generator: torch.Generator | None = None
) -> Tensor:
    """VPT's first values of prompt vectors beside embedded patches, ``shape`` times d: uniform in (-v, v) with
    v^2 = 6 / (size of a patch + d)."""
    width, *patch = projection.weight.shape
    bound = math.sqrt(6 / (math.prod(patch) + width))
    return torch.empty(*shape, width).uniform_(-bound, bound, generator=generator)


def image_vectors(projection: nn.Conv2d, config, generator: torch.Generator | None = None) -> Tensor:
    """First values of a prompt beside embedded patches, ``config.shape`` times d, in float32.

    There is no vocabulary to draw from: the default is VPT's (:func:`patch_uniform`); ``init="uniform"`` and "normal"
    are those of a text.
    """
    if config.init == "vocabulary":
        return patch_uniform(projection, config.shape, generator)
    return config.initial_vectors(len(projection.weight), 1, None, generator)
