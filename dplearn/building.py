"""A prompt module for a backbone: new, or from a checkpoint."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from dplearn import fits
from dplearn.backbones import Backbone
from dplearn.checkpoint import Saved
from dplearn.config import PromptConfig
from dplearn.fingerprint import fingerprint, quantization, warn_of_changes
from dplearn.prompt import DynamicPrompt


def as_config(config: PromptConfig | None) -> PromptConfig:
    """The config that is meant by ``config``.

    Raises
    ------
    TypeError : it is none.
    """
    if config is None:
        return PromptConfig()
    if not isinstance(config, PromptConfig):
        advice = "PromptConfig(**config)" if isinstance(config, dict) else "a PromptConfig"
        raise TypeError(f"config is a {type(config).__name__}, expected {advice}")
    return config


def new_prompt(
    adapter: Backbone,
    config: PromptConfig,
    vectors: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> DynamicPrompt:
    """A prompt with its first values; ``vectors`` and ``generator`` as in :func:`dplearn.prompted`.

    Raises
    ------
    ValueError : ``vectors`` does not have the shape that config and backbone ask for.
    """
    width = adapter.width_of(config)
    if vectors is None:
        vectors = adapter.initial_vectors(config, generator)
    elif vectors.shape != (*config.shape, width):
        raise ValueError(
            f"vectors has shape {tuple(vectors.shape)}, expected {(*config.shape, width)}: "
            f"length={config.length}, and {type(adapter.model).__name__} has width {width}"
        )
    return build(adapter, config, vectors, generator)


def build(
    adapter: Backbone, config: PromptConfig, vectors: Tensor, generator: torch.Generator | None = None
) -> DynamicPrompt:
    """A prompt with these vectors, and with what else of it depends on the backbone."""
    prompt = config.build(vectors, summary_width=adapter.summary_width(config))
    adapter.complete(prompt, config, generator)
    return prompt


def check_prompt(adapter: Backbone, prompt: DynamicPrompt, config: PromptConfig) -> None:
    """Raise ValueError where a prompt does not fit the backbone; the adapter warns of what cannot help."""
    width, name = adapter.width_of(config), type(adapter.model).__name__
    if prompt.width != width:
        raise ValueError(f"prompt has width {prompt.width}, but {name} has width {width}")
    adapter.check(config)
    if prompt.in_position_space:
        reason = adapter.refuses_position_space()
        if reason is not None:
            raise ValueError(
                f"estimator={config.estimator!r} cannot be used: {reason}; expected another estimator"
            )


def restore(
    folder: str | os.PathLike, saved: Saved, config: PromptConfig, adapter: Backbone
) -> DynamicPrompt:
    """The prompt of a checkpoint, for a backbone of the recorded kind.

    Raises
    ------
    ValueError : the backbone is of another kind, or a tensor is missing or of another shape.
    """
    fits.check_backbone(folder, saved.backbone, describe(adapter, config))
    fits.check_tensor(folder, saved.tensors, "vectors", (*config.shape, adapter.width_of(config)))
    prompt = build(adapter, config, saved.tensors["vectors"])
    fits.fill(folder, prompt, saved.tensors)
    warn_of_changes(folder, saved.backbone, adapter.model)
    return prompt


def describe(adapter: Backbone, config: PromptConfig) -> dict:
    """What a checkpoint records of its backbone, so that a prompt is never loaded onto another model.

    The number of labels and their names are a part of it where the prompt has its own head.
    """
    backbone, own_head = adapter.model, config.head == "trained"
    return {
        "name_or_path": backbone.name_or_path,
        "class": type(backbone).__name__,
        "model_type": backbone.config.model_type,
        **adapter.describe(),
        **({"labels": backbone.config.num_labels} if own_head else {}),
        "fingerprint": fingerprint(backbone, head=not own_head),
        "quantization": quantization(backbone),
    }
