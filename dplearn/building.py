"""A prompt module for a backbone: new, or from a checkpoint."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dplearn import fits
from dplearn.backbones import Backbone, heads
from dplearn.checkpoint import Saved
from dplearn.checks import caller_level, shown
from dplearn.config import PromptConfig
from dplearn.fingerprint import fingerprint, quantization, warn_of_changes
from dplearn.insertion import values_are_free
from dplearn.kept import adapters_of
from dplearn.offload import is_offloaded
from dplearn.prompt import DynamicPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    ValueError : ``vectors`` does not have the shape that config and backbone ask for, or has values that are not
        finite (looked at on the CPU alone).
    TypeError : ``vectors`` is no tensor.
    """
    width = adapter.width_of(config)
    if vectors is None:
        vectors = adapter.initial_vectors(config, generator)
    elif not isinstance(vectors, Tensor):
        raise TypeError(f"vectors is a {type(vectors).__name__}, expected a tensor {(*config.shape, width)}")
    elif vectors.shape != (*config.shape, width):
        raise ValueError(
            f"vectors has shape {tuple(vectors.shape)}, expected {(*config.shape, width)}: "
            f"length={config.length}, and {type(adapter.model).__name__} has width {width}"
        )
    elif values_are_free(vectors) and not vectors.isfinite().all():
        wrong = int((~vectors.isfinite()).sum())
        raise ValueError(f"vectors has {wrong} values that are not finite, expected none")
    prompt = build(adapter, config, vectors, generator)
    _warn_of_fresh_weights(adapter.model, prompt)
    return prompt


def build(
    adapter: Backbone,
    config: PromptConfig,
    vectors: Tensor,
    generator: torch.Generator | None = None,
    pooler: bool | None = None,
) -> DynamicPrompt:
    """A prompt with these vectors, and with what else of it depends on the backbone.

    pooler : whether a trained head has a pooler of its own; None: where the backbone's is fresh.

    Raises
    ------
    ValueError : a trained head is asked for, and the backbone has none or a language model's.
    """
    prompt = config.build(vectors, summary_width=adapter.summary_width(config))
    adapter.add_parts(prompt, config, generator)
    if config.head == "trained":
        prompt.attach("head", heads.own_head(adapter.model, pooler), "head")
    return prompt


def _warn_of_fresh_weights(model: PreTrainedModel, prompt: DynamicPrompt) -> None:
    """Warn where a prompt is going to depend on frozen weights that were drawn at random when the model was loaded."""
    own = tuple(f"{path}." for path in heads.paths_of(prompt.attached.get("head")))
    fresh = [name for name in heads.fresh_weights(model) if not name.startswith(own)]
    if fresh:
        name, more = fresh[0], f" (and {len(fresh) - 1} more)" if len(fresh) > 1 else ""
        warnings.warn(
            f"{name}{more} was in no checkpoint that this {type(model).__name__} was loaded from: it is freshly "
            "initialised, it is frozen now, and no checkpoint of the prompt will hold it. Use head='trained', which "
            "trains and saves a head with the prompt, or save the model (backbone.save_pretrained) and load it from "
            "there",
            UserWarning,
            stacklevel=caller_level(),
        )


def check_prompt(adapter: Backbone, prompt: DynamicPrompt, config: PromptConfig) -> None:
    """Raise ValueError where a prompt does not fit the backbone; the adapter warns of what cannot help."""
    width, name = adapter.width_of(config), type(adapter.model).__name__
    if prompt.width != width:
        raise ValueError(f"prompt has width {prompt.width}, but {name} has width {width}")
    adapter.check(config)
    if any(is_offloaded(module) for module in adapter.model.modules()):
        _refuse_offloaded(name, prompt, config)
    if prompt.in_position_space:
        reason = adapter.refuses_position_space()
        if reason is not None:
            raise ValueError(
                f"estimator={config.estimator!r} cannot be used: {reason}; expected another estimator"
            )


def _refuse_offloaded(name: str, prompt: DynamicPrompt, config: PromptConfig) -> None:
    """Raise ValueError where a prompt asks for tables of positions, which are not there between calls."""
    options = {"estimator": prompt.in_position_space, "entry": config.entry is not None}
    for option, wants_table in options.items():
        if wants_table:
            raise ValueError(
                f"{option}={getattr(config, option)!r} cannot be used: {name} has weights that wait elsewhere "
                f"(accelerate's offload), expected all of them on a device, or another {option}"
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
    path = heads.pooler_of(adapter.model)
    start = None if path is None else f"head.{heads.key_of(path)}."
    pooler = start is not None and any(name.startswith(start) for name in saved.tensors)
    prompt = build(adapter, config, saved.tensors["vectors"], pooler=pooler)
    fits.fill(folder, prompt, saved.tensors)
    warn_of_changes(folder, saved.backbone, adapter.model)
    _name_labels(folder, saved.backbone.get("label_names"), adapter.model, config.head == "trained")
    return prompt


def _name_labels(folder: str | os.PathLike, names: object, model: PreTrainedModel, own_head: bool) -> None:
    """Give the labels of a prompt's own head their recorded names; warn where the backbone has other names for them."""
    own_names = heads.label_names(model)
    if not isinstance(names, list) or names == own_names or len(names) != model.config.num_labels:
        return
    if own_head and own_names is None:
        heads.set_label_names(model, names)
        return
    warnings.warn(
        f"the prompt in {str(folder)!r} was trained for labels named {shown(names)}, this {type(model).__name__} names "
        f"them {shown(own_names or 'LABEL_0, LABEL_1, ...')}: expected the same classes in the same order",
        UserWarning,
        stacklevel=caller_level(),
    )


def describe(adapter: Backbone, config: PromptConfig, prompt: DynamicPrompt | None = None) -> dict:
    """What a checkpoint records of its backbone, so that a prompt is never loaded onto another model.

    The number of labels and their names are a part of it where there is a classification head, and so is the number of
    layers with adapters of PEFT where there are some. Modules that the prompt
    brings itself are left out of the fingerprint.
    """
    backbone = adapter.model
    own = () if prompt is None else heads.paths_of(prompt.attached.get("head"))
    adapted = len(adapters_of(backbone))
    counted, names = config.head == "trained" or heads.counts_labels(backbone), heads.label_names(backbone)
    return {
        "name_or_path": backbone.name_or_path,
        "class": type(backbone).__name__,
        "model_type": backbone.config.model_type,
        **adapter.describe(),
        **({"labels": backbone.config.num_labels} if counted else {}),
        **({"label_names": names} if counted and names is not None else {}),
        "fingerprint": fingerprint(backbone, own),
        "quantization": quantization(backbone),
        **({"adapters": adapted} if adapted else {}),
    }
