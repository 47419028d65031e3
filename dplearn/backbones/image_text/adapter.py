"""The adapter of an image-text model with two towers and one score for each pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dplearn.backbones.base import Backbone
from dplearn.backbones.image_text.families import FAMILIES
from dplearn.backbones.image_text.images import Coupling, ImageTower, VisionVectors
from dplearn.backbones.image_text.texts import TextTower
from dplearn.backbones.patches import check_order_matters, image_vectors, patch_uniform
from dplearn.controllers import LEARNED
from dplearn.length import resolve_size
from dplearn.offload import is_offloaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ImageTextBackbone(Backbone):
    """What a prompt needs to know about an image-text model; its passes are those of its towers.

    Attributes
    ----------
    family : what CLIP and SigLIP do differently.
    texts, images : the towers.
    """

    kind, reads = "image-text", "images and texts"

    def __init__(self, model):
        super().__init__(model)
        self.family = FAMILIES[model.config.model_type](model)
        self.texts, self.images = TextTower(model, self.family), ImageTower(model, self.family)
        self.max_positions = self.texts.max_positions

    @staticmethod
    def refusal(model: PreTrainedModel) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        kind = getattr(model.config, "model_type", "")
        if kind not in FAMILIES:
            return f"expected one of the image-text models {sorted(FAMILIES)}, got model_type={kind!r}"
        expected = FAMILIES[kind].model_class
        if not any(ancestor.__name__ == expected for ancestor in type(model).__mro__):
            return f"expected the model with both towers, {expected}, got {type(model).__name__}"
        if any(is_offloaded(module) for module in model.modules()):
            return (
                f"{type(model).__name__} has weights that wait elsewhere (accelerate's offload), expected all of "
                "them on a device: towers are run in pieces"
            )
        return None

    @property
    def embedding(self) -> nn.Embedding:
        """The module that embeds tokens in the text tower."""
        return self.texts.tower.embeddings.token_embedding

    def width_of(self, config) -> int:
        return self.images.width if config.towers == "vision" else self.width

    def summary_width(self, config) -> int:
        return self.family.joint_width if config.summary == "image" else self.width_of(config)

    def describe(self) -> dict:
        patch = list(self.images.projection.weight.shape[1:])
        return super().describe() | {"vision_width": self.images.width, "patch": patch}

    def initial_vectors(self, config, generator: torch.Generator | None = None) -> Tensor:
        """Rows of the vocabulary for a text prompt; for an image prompt VPT's, as in a vision transformer."""
        if config.towers == "vision":
            return image_vectors(self.images.projection, config, generator)
        return super().initial_vectors(config, generator)

    def add_parts(self, prompt, config, generator: torch.Generator | None = None) -> None:
        """Give a prompt for both towers its image part: vectors of its own, or maps from those of the text."""
        super().add_parts(prompt, config, generator)
        if config.towers == "both":
            count = resolve_size(config.size, config.length) or config.length
            first = patch_uniform(self.images.projection, (config.depth, count), generator)
            prompt.attach("vision", VisionVectors(first), "vectors")
        elif config.towers == "coupled":
            prompt.attach("vision", Coupling(config.depth, self.width, self.images.width), "controllers")

    def refuses_kept(self, config) -> str | None:
        return (
            f"{type(self.model).__name__} has images and texts, expected cache_images, which keeps the images"
        )

    def check(self, config) -> None:
        """Raise ValueError where a config asks for what this model cannot do; warn where it asks for what is void."""
        name, towers = type(self.model).__name__, config.towers or "text"
        if config.entry is not None:
            raise ValueError(
                f"entry={config.entry!r} is not for {name}, expected None: an image prompt stands behind the "
                "position vectors, a text prompt in front of them"
            )
        reached = [] if towers == "vision" else [self.texts.tower]
        reached += [] if towers == "text" else [self.images.tower]
        layers = min(len(tower.encoder.layers) for tower in reached)
        if config.depth > layers:
            raise ValueError(f"depth={config.depth} is too deep, expected 1..{layers}: {name}'s layers")
        if towers == "vision":
            check_order_matters(config, name)
        self._check_decisions(config, name, towers)

    def _check_decisions(self, config, name: str, towers: str) -> None:
        """Raise ValueError where decisions and towers do not go together."""
        in_images = towers in ("vision", "coupled")
        refused = {
            "size": (
                config.size in LEARNED and (in_images or not self.family.hides_vectors),
                f"'full' or a number: rows of {name} with towers={towers!r} cannot be hidden",
            ),
            "summary": (
                (config.summary == "encoder" and towers == "vision")
                or (config.summary == "image" and towers in ("both", "coupled")),
                f"'embeddings' with towers={towers!r}",
            ),
            "vector": (
                towers == "coupled" and (config.vector == "instance" or _several(config, "vector")),
                "'single' or one mixture for all: with towers='coupled' an image gets its prompt from "
                "that of the texts, of which there must be one",
            ),
            "estimator": (
                config.estimator == "exact" and not _decides_once(config),
                "'straight-through' or 'score-function': the loss of an image depends on the decisions "
                "for all texts, which are too many to enumerate together",
            ),
        }
        for option, (is_refused, expected) in refused.items():
            if is_refused:
                raise ValueError(
                    f"{option}={getattr(config, option)!r} is not valid here, expected {expected}"
                )


def _decides_once(config) -> bool:
    """Whether no loss depends on the sampled decisions of several instances."""
    if config.towers == "vision" or config.summary == "image":
        return True
    sampled = ["position", "size"] + ["vector"] * (config.mixing == "hard")
    return not any(getattr(config, name) == "instance" or _several(config, name) for name in sampled)


def _several(config, name: str) -> bool:
    """Whether a decision is made for each of several tasks."""
    return getattr(config, name) == "task" and config.tasks is not None and len(config.tasks) > 1
