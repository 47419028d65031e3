"""Train and score one method on one image task: a linear probe, prompts with a trained head, full fine-tuning.

Every method starts from the same frozen backbone with a fresh head for the task's classes, sees the same images in the
same budget of AdamW steps, and is scored in the same way. Images are encoded once and kept in memory, without
augmentation. Choices are made on "validation", "test" is only reported.

A method is any module that takes ``pixel_values`` and ``labels`` and gives a loss and logits; :func:`fit` does the
rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import default_data_collator, set_seed
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dplearn import zoo
from dplearn.backbones.heads import head_of
from dplearn.backbones.views import changed, path_of
from dplearn.config import PromptConfig
from dplearn.experiments import fitting
from dplearn.experiments.fitting import Settings
from dplearn.experiments.watching import positions
from dplearn.loading import prompted
from dplearn.named_prompts import NamedPrompts
from dplearn.tasks.images import ImageTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH, POOL = 8, 4
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


class LinearProbe(nn.Module):
    """A backbone of which the classification head alone is trained; the rest is frozen and in evaluation mode.

    So what the head reads of an image never changes: it can be computed once (:meth:`features`) and given in the place
    of the pixels.
    """

    accepts_loss_kwargs = False  # as PromptedModel: the loss is a mean over the batch

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = list(head_of(backbone))
        for name in self.head:
            getattr(backbone, name).requires_grad_(True)

    def train(self, mode: bool = True) -> LinearProbe:
        super().train(False)
        for name in self.head:
            getattr(self.backbone, name).train(mode)
        self.training = mode
        return self

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        """What the modules of the head read, (B, modules, width)."""
        found = {}

        def noting(name: str):
            def read(usual, rows):
                found[name] = rows
                return usual(rows)

            return read

        with changed(self.backbone, {name: noting(name) for name in self.head}) as model:
            model(pixel_values=pixel_values)
        return torch.stack([found[name] for name in self.head], 1)

    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, features: Tensor | None = None
    ):
        """pixel_values: (B, channels, height, width), or the images' ``features`` instead. labels: (B,)."""
        if features is None:
            return self.backbone(pixel_values=pixel_values, labels=labels)
        # The model's own head, loss included, on a base model that does not run.
        rows = features.new_zeros(len(features), 3, self.backbone.config.hidden_size)
        empty = BaseModelOutputWithPooling(last_hidden_state=rows, pooler_output=rows[:, 0])
        changes = {path_of(self.backbone, self.backbone.base_model): lambda usual, *values, **options: empty}
        for number, name in enumerate(self.head):
            changes[name] = lambda usual, rows, kept=features[:, number]: usual(kept)
        with changed(self.backbone, changes) as model:
            return model(pixel_values=None, labels=labels)


def kept_features(probe: LinearProbe, examples: Sequence[dict], batch_size: int = 128) -> list[dict]:
    """Images with labels as what the head of a probe reads of them, each computed once."""
    kept, device = [], next(probe.parameters()).device
    for start in range(0, len(examples), batch_size):
        some = [examples[i] for i in range(start, min(start + batch_size, len(examples)))]
        features = probe.features(torch.stack([each["pixel_values"] for each in some]).to(device)).cpu()
        kept += [{"features": rows, "labels": each["labels"]} for rows, each in zip(features, some)]
    return kept


def config_of(method: str, layers: int) -> PromptConfig | None:
    """The prompt of a method on a backbone of so many layers; None where the method has none.

    Raises
    ------
    ValueError : an unknown method; the message lists them.

    >>> config_of("VPT-deep", layers=4).depth
    4
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown, expected one of {list(METHODS)}")
    if method in (PROBE, FULL):
        return None
    options = {"length": LENGTH, "head": "trained"} | PROMPTS[method.removesuffix(RANDOM)]
    if options.get("depth") == "all":
        options["depth"] = layers
    return PromptConfig(**options)


def build(method: str, backbone: PreTrainedModel) -> nn.Module:
    """The model that a method trains; the parameters that want gradients are the trained ones."""
    config = config_of(method, backbone.config.num_hidden_layers)
    if method == FULL:
        return backbone.requires_grad_(True)
    return LinearProbe(backbone) if config is None else prompted(backbone, config)


def optimizer_of(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW without weight decay on what is trained."""
    if isinstance(model, NamedPrompts):
        groups = settings.groups(model)
    else:
        groups = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=0.0)


def predictions(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Predicted label indices (B,) from logits (B, classes), the first of a model's outputs."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def fit(
    model: nn.Module,
    task: ImageTask,
    processor,
    settings: Settings = SETTINGS,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
) -> dict:
    """Train a model on an image task and score it; see :func:`dplearn.experiments.fitting.fit` for what is returned.

    model : takes ``pixel_values`` (B, channels, height, width) and ``labels`` (B,), gives ``loss`` and ``logits``.
    processor : turns images into pixel values; it runs once for each image.
    """

    probe = isinstance(model, LinearProbe)

    @cache
    def encode(split: str):
        images = task.encode(processor, split, in_memory=not probe)
        return kept_features(model, images) if probe else images

    callbacks = fitting.annealed(model)
    row = fitting.fit(
        model, task, encode, settings, seed, optimizer_of(model, settings), splits,
        callbacks=callbacks, preprocess_logits_for_metrics=predictions,
    )  # fmt: skip
    if isinstance(model, NamedPrompts):
        row["config"] = model.prompt_config.to_dict()
    if callbacks:
        row["positions"] = {
            split: positions(model, encode(split), default_data_collator, ("pixel_values",))
            for split in splits
        }
    return row


def tune(
    method: str,
    task: ImageTask,
    settings: Settings = SETTINGS,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    backbone: str = "vit-mini",
) -> dict:
    """Train one of ``METHODS`` on a backbone of :mod:`dplearn.zoo`, with a fresh head for the task, and score it.

    ``seed`` is that of the fresh weights (of all layers in the control), of the prompt and of the order of images.
    """
    labels = len(task.class_names)
    set_seed(seed)
    model, processor = zoo.load(backbone, num_labels=labels)
    if method.endswith(RANDOM):
        model = zoo.random_control(backbone, seed, num_labels=labels)
    set_seed(seed)
    return fit(build(method, model), task, processor, settings, seed, splits)
