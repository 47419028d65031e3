"""A frozen image classifier of which the head alone is trained: a linear probe, on features that are computed once.

    probe = LinearProbe(backbone)                         # a ViT with a fresh head for the task's classes
    kept = probe.cache_images(task.encode(processor, "train"))
    Trainer(probe, arguments, train_dataset=kept).train()

What the head reads of an image never changes while the rest is frozen and the image is not augmented. So it is computed
once (:meth:`LinearProbe.cache_images`), and a step of training runs the head alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dplearn.backbones.heads import head_of
from dplearn.backbones.views import changed, path_of
from dplearn.batches import number_of_batches
from dplearn.checks import whole
from dplearn.progress import told

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LinearProbe(nn.Module):
    """A backbone of which the classification head alone is trained; the rest is frozen and in evaluation mode.

    Parameters
    ----------
    backbone : an image classifier such as ``ViTForImageClassification``; its head is trained in place.

    Raises
    ------
    ValueError : the model has no classification head.

    >>> from dplearn import tasks, zoo
    >>> backbone, processor = zoo.load("vit-mini", num_labels=10)
    >>> probe = LinearProbe(backbone)
    >>> digits = tasks.load("images/digits").few_shot(1, seed=0)
    >>> kept = probe.cache_images(digits.encode(processor, "train"))
    >>> len(kept), kept[0]["features"].shape, sorted(kept[0])
    (10, torch.Size([1, 96]), ['features', 'labels'])
    """

    accepts_loss_kwargs = False  # as PromptedModel: the loss is a mean over the batch

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.head = list(head_of(backbone))
        self.backbone = backbone.requires_grad_(False)
        for parameter in self.head_parameters():
            parameter.requires_grad_(True)

    def head_parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for name in self.head for parameter in getattr(self.backbone, name).parameters()]

    def train(self, mode: bool = True) -> LinearProbe:
        super().train(False)
        for name in self.head:
            getattr(self.backbone, name).train(mode)
        self.training = mode
        return self

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        """What the modules of the head read of images (B, channels, height, width): (B, modules, width)."""
        states = {}

        def noting(name: str) -> Callable:
            def read(usual: Callable, rows: Tensor) -> Tensor:
                states[name] = rows
                return usual(rows)

            return read

        with changed(self.backbone, {name: noting(name) for name in self.head}) as model:
            model(pixel_values=pixel_values)
        return torch.stack([states[name] for name in self.head], 1)

    def cache_images(self, examples: Iterable[dict], batch_size: int = 128) -> list[dict]:
        """Examples for training without the body: each "pixel_values" (channels, height, width) becomes "features"
        (modules, width), on the CPU; what else an example holds stays. They hold for the body's weights as they are.

        Raises
        ------
        ValueError : a ``batch_size`` below 1, an example without "pixel_values".
        """
        whole("batch_size", batch_size)
        kept, rows, device = [], iter(examples), next(self.parameters()).device
        count = number_of_batches(examples, batch_size)
        for some in told(iter(lambda: list(islice(rows, batch_size)), []), "images", count):
            for example in some:
                if "pixel_values" not in example:
                    raise ValueError(
                        f"examples has one with {sorted(example)}, expected 'pixel_values' in each"
                    )
            features = self.features(torch.stack([each["pixel_values"] for each in some]).to(device)).cpu()
            for example, row in zip(some, features):
                rest = {name: value for name, value in example.items() if name != "pixel_values"}
                kept.append({"features": row} | rest)
        return kept

    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, features: Tensor | None = None
    ) -> Any:
        """The backbone's own output.

        Parameters
        ----------
        pixel_values : (B, channels, height, width).
        labels : (B,).
        features : (B, modules, width) of :meth:`features`, in the place of the pixels.
        """
        if features is None:
            return self.backbone(pixel_values=pixel_values, labels=labels)
        # The model's own head, loss included, on a base model that does not run.
        rows = features.new_zeros(len(features), 3, self.backbone.config.hidden_size)
        empty = BaseModelOutputWithPooling(last_hidden_state=rows, pooler_output=rows[:, 0])
        changes: dict[str, Any] = {
            path_of(self.backbone, self.backbone.base_model): lambda usual, *values, **options: empty
        }
        for number, name in enumerate(self.head):
            changes[name] = lambda usual, rows, kept=features[:, number]: usual(kept)
        with changed(self.backbone, changes) as model:
            return model(pixel_values=None, labels=labels)
