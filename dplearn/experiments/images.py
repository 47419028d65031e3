"""Train and score one method on one image task: a linear probe, prompts with a trained head, full fine-tuning.

Every method starts from the same frozen backbone with a fresh head for the task's classes, sees the same images in the
same budget of AdamW steps, and is scored in the same way. Images are encoded without augmentation, once where they can
be kept in memory. Choices are made on "validation", "test" is only reported.

A method is any module that takes ``pixel_values`` and ``labels`` and gives a loss and logits; :func:`fit` does the
rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

from dplearn import zoo
from dplearn.backbones import heads
from dplearn.config import PromptConfig
from dplearn.experiments.fitting import Settings, device, passes
from dplearn.experiments.runs import ImageRun, Run
from dplearn.experiments.watching import LOOKS, Looks, OwnLoss, fit_and_watch
from dplearn.linear_probe import LinearProbe
from dplearn.loading import prompted
from dplearn.named_prompts import NamedPrompts
from dplearn.tasks.images import ImageTask

LENGTH, POOL = 8, 4
# Bytes of encoded images of a split that are held in memory; larger splits are read as they are wanted.
KEPT = 2 * 2**30
RANDOM = ", random layers"  # at the end of a method's name: the same on layers that were never trained
PROBE, FULL = "linear probe", "full fine-tuning"
BEFORE, ESTIMATOR = {"entry": "before-positions"}, {"estimator": "straight-through"}
# The prompts by name, each with its own trained head. "deep" has vectors in all layers.
PROMPTS: dict[str, dict] = {
    "VPT-shallow": {},
    "VPT-deep": {"depth": "all"},
    "pool per instance": {"vector": "instance", "pool_size": POOL},
    "one prompt as large as the pool": {"length": POOL * LENGTH},
    "prefix before positions": {"position": "prefix", **BEFORE},
    "postfix before positions": {"position": "postfix", **BEFORE},
    "position per instance before positions": {"position": "instance", **BEFORE, **ESTIMATOR},
    "position per instance, coded": {"position": "instance", "entry": "position-coded", **ESTIMATOR},
}
METHODS = (PROBE, *PROMPTS, FULL, "VPT-shallow" + RANDOM)

# One rate for all that a method trains, as VPT has it. With VPT's SGD in the place of AdamW the validation scores of
# VPT-shallow were the same within the spread of three seeds.
SETTINGS = Settings(steps=400, learning_rate=1e-2, controller_learning_rate=None)


def config_of(method: str | Mapping, layers: int) -> PromptConfig | None:
    """The prompt of a method on a backbone of so many layers; None where the method has none.

    method : a name, or the options of a prompt, whose depth may be "all" of the layers.

    Raises
    ------
    ValueError : an unknown method; the message lists them.

    >>> config_of("VPT-deep", layers=4).depth, config_of({"length": 2, "depth": "all"}, layers=4).shape
    (4, (4, 2))
    """
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method={method!r} is unknown, expected one of {list(METHODS)}")
    if method in (PROBE, FULL):
        return None
    own = PROMPTS[method.removesuffix(RANDOM)] if isinstance(method, str) else method
    options: dict[str, Any] = {"length": LENGTH, "head": "trained", **own}
    if options.get("depth") == "all":
        options["depth"] = layers
    return PromptConfig(**options)


def build(method: str | Mapping, backbone: PreTrainedModel) -> nn.Module:
    """The model that a method trains; the parameters that want gradients are the trained ones."""
    config = config_of(method, backbone.config.num_hidden_layers)
    if method == FULL:
        return backbone.requires_grad_(True)
    return LinearProbe(backbone) if config is None else prompted(backbone, config)


def head_of(model: Any) -> list[nn.Parameter]:
    """The parameters of the head of a model without a prompt; none where it is not known to have one."""
    if hasattr(model, "head_parameters"):
        return model.head_parameters()
    if not isinstance(model, PreTrainedModel):
        return []
    return [parameter for module in heads.head_of(model).values() for parameter in module.parameters()]


def optimizer_of(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW without weight decay on what is trained."""
    if isinstance(model, NamedPrompts):
        groups = settings.groups(model)
    elif settings.head_learning_rate is None:
        groups = settings.groups_without_prompt(model, [])
    else:
        groups = settings.groups_without_prompt(model, head_of(model))
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=0.0)


def train_and_watch(
    run: Run, settings: Settings, seed: int, splits: Sequence[str], looks: Looks = LOOKS
) -> dict:
    """The row of a run whose model computes its own loss; see :func:`dplearn.experiments.watching.fit_and_watch`."""
    loss = OwnLoss(run.model)
    try:
        row = fit_and_watch(run, settings, seed, optimizer_of(run.model, settings), splits, loss.mean, looks)
    finally:
        loss.hook.remove()
    if isinstance(run.model, NamedPrompts):
        row["config"] = run.model.prompt_config.to_dict()
        row["passes"] = passes(run.model.prompt_config)
    return row


def fit(
    model: nn.Module,
    task: ImageTask,
    processor,
    settings: Settings = SETTINGS,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    looks: Looks = LOOKS,
) -> dict:
    """Train a model on an image task and score it; see :func:`dplearn.experiments.watching.fit_and_watch` for what is
    returned.

    model : takes ``pixel_values`` (B, channels, height, width) and ``labels`` (B,), gives ``loss`` and ``logits``.
    processor : turns images into pixel values; it runs once for each image.

    Raises
    ------
    ValueError : a setting that has no effect on images; the message names it.
    """
    settings.check_for_images()
    model.to(device())

    @cache
    def encode(split: str):
        if isinstance(model, LinearProbe):
            return model.cache_images(task.encode(processor, split))
        return task.encode(processor, split, in_memory=KEPT)

    return train_and_watch(ImageRun(model, task, encode, bf16=settings.bf16), settings, seed, splits, looks)


def tune(
    method: str | Mapping,
    task: ImageTask,
    settings: Settings = SETTINGS,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    backbone: str = "vit-mini",
    looks: Looks = LOOKS,
) -> dict:
    """Train one of ``METHODS``, or a prompt with these options, on a backbone of :mod:`dplearn.zoo`, with a fresh head
    for the task, and score it.

    ``seed`` is that of the fresh weights (of all layers in the control), of the prompt and of the order of images.

    Raises
    ------
    ValueError : an unknown method; a setting that has no effect on images. The message names it.
    """
    settings.check_for_images()
    labels = len(task.class_names)
    set_seed(seed)
    model, processor = zoo.load(backbone, num_labels=labels)
    if isinstance(method, str) and method.endswith(RANDOM):
        model = zoo.random_control(backbone, seed, num_labels=labels)
    set_seed(seed)
    return fit(build(method, model), task, processor, settings, seed, splits, looks)
