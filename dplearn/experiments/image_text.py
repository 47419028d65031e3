"""Train and score one method on clip-mini: zero-shot, a linear probe, prompts in one or both towers, full fine-tuning.

The classes of a task are split in two halves. All methods learn from images of the base classes; "test_new" has the
new ones, whose images no method sees and whose names are given in the test alone. Text prompts start from the words of
the template, so before the first step they are the zero-shot classifier. Choices are made on "validation" (base
classes), the test splits are only reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import set_seed
from transformers.modeling_outputs import ImageClassifierOutput

from dplearn import zoo
from dplearn.config import PromptConfig
from dplearn.experiments import fitting, images
from dplearn.experiments.fitting import Settings
from dplearn.loading import prompted
from dplearn.tasks.images import NEW, ImageTask

POOL, DEPTH = 4, 3  # the text tower has three layers
NOISE = 0.01  # around the words, where they start several prompts that have to become different
ZERO_SHOT, PROBE, FULL = "zero-shot", "linear probe", "full fine-tuning"
# The prompts by name; the words of the template are their first vectors, so l = 3 ("an icon of").
PROMPTS: dict[str, dict] = {
    "prefix": {"position": "prefix"},
    "middle": {"position": 1},
    "postfix": {"position": "postfix"},
    "position per task": {"position": "task", "estimator": "straight-through"},
    "position per task, score-function": {"position": "task", "estimator": "score-function"},
    "position per class": {"position": "instance", "estimator": "straight-through"},
    "pool per class": {"vector": "instance", "pool_size": POOL},
    "one prompt as large as the pool": {"length": POOL},  # times the words
    "pool per image": {"vector": "instance", "pool_size": POOL, "summary": "image"},
    "prefix, all layers": {"depth": DEPTH},
    "images": {"towers": "vision"},
    "images, all layers": {"towers": "vision", "depth": DEPTH},
    "both, all layers": {"towers": "both", "depth": DEPTH},
    "coupled, all layers": {"towers": "coupled", "depth": DEPTH},
}
METHODS = (ZERO_SHOT, PROBE, *PROMPTS, FULL, "prefix" + images.RANDOM)
SETTINGS = Settings(steps=300, learning_rate=1e-2, controller_learning_rate=None)


def config_of(method: str, words: int) -> PromptConfig:
    """The prompt of a method that starts from so many words.

    >>> config_of("one prompt as large as the pool", words=3).length
    12
    """
    options = dict(PROMPTS[method.removesuffix(images.RANDOM)])
    return PromptConfig(**options | {"length": words * options.get("length", 1)})


def first_vectors(config: PromptConfig, words: Tensor) -> Tensor | None:
    """First values of a text prompt: the words (n, d) in the first layer, again and again in a longer prompt.

    Several prompts of a pool, and copies of the words, get a little noise, without which they would stay alike. Vectors
    of further layers are normal with standard deviation 0.02, as in MaPLe. None for a prompt in the images alone, which
    starts as VPT does.
    """
    if config.towers == "vision":
        return None
    vectors = torch.empty(*config.shape, words.shape[1]).normal_(0, 0.02)
    first = vectors if config.depth == 1 else vectors.select(-3, 0)
    copies = words.repeat(config.length // len(words), 1).expand_as(first)
    several = config.vector != "single" or config.length > len(words)
    first.copy_(copies + (torch.randn_like(copies) * NOISE if several else 0))
    return vectors


class Probe(nn.Module):
    """A linear layer on the frozen unit vectors of images (N, p); it has no way to name a new class."""

    accepts_loss_kwargs = False

    def __init__(self, width: int, classes: int, scale: float):
        super().__init__()
        self.linear, self.scale = nn.Linear(width, classes), scale

    def forward(self, image_embeds: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        return _classified(self.linear(image_embeds * self.scale), labels)


class WholeModel(nn.Module):
    """All of an image-text model, trained as a classifier on the texts of the classes."""

    accepts_loss_kwargs = False

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone.requires_grad_(True)

    def set_classes(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        self.texts = {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        return _classified(self.backbone(pixel_values=pixel_values, **self.texts).logits_per_image, labels)


def _classified(logits: Tensor, labels: Tensor | None) -> ImageClassifierOutput:
    return ImageClassifierOutput(None if labels is None else cross_entropy(logits, labels), logits)


def tune(
    method: str,
    task: ImageTask,
    settings: Settings = SETTINGS,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test", NEW),
    backbone: str = "clip-mini",
) -> dict:
    """Train one of ``METHODS`` on the base classes of ``task`` and score it, on the new classes too where it can.

    Returns a row as :func:`dplearn.experiments.fitting.fit`, with the config of a prompt and, where a position was
    learned, ``positions``: the share of texts at each split.

    Raises
    ------
    ValueError : an unknown method; the message lists them.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown, expected one of {list(METHODS)}")
    clip, processor = zoo.load(backbone)
    if method.endswith(images.RANDOM):
        clip = zoo.random_control(backbone, seed)
    if not task.new_names:
        task = task.base_to_new()
    set_seed(seed)

    @cache
    def pixels(split: str):
        return task.encode(processor, split, in_memory=True)

    def texts(split: str, template: str) -> dict[str, Tensor]:
        captions = task.captions(NEW if split == NEW else "train", template)
        found = processor.tokenizer(captions, padding=True, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    if method == PROBE:
        model, splits = _probe(clip, task), [split for split in splits if split != NEW]
        features = prompted(clip, PromptConfig(length=1))

        @cache
        def encode(split: str):
            return features.cache_images(pixels(split))

        return fitting.fit(
            model, task, encode, settings, seed, images.optimizer_of(model, settings), splits,
            preprocess_logits_for_metrics=images.predictions,
        )  # fmt: skip
    before, _, after = task.template.partition("{}")
    if method in (ZERO_SHOT, FULL):
        model, template, keeps = WholeModel(clip), task.template, False
    else:
        ids = torch.tensor(processor.tokenizer(before).input_ids[1:-1])
        words = clip.text_model.embeddings.token_embedding.weight[ids].detach()
        config = config_of(method, len(words))
        # A prompt in the images alone leaves the texts as they are in zero-shot classification.
        template = task.template if config.towers == "vision" else "{}" + after
        keeps = config.towers is None
        model = prompted(clip, config, vectors=first_vectors(config, words))

    @cache
    def examples(split: str):
        return model.cache_images(pixels(split)) if keeps else pixels(split)

    def encode(split: str):
        model.set_classes(**texts(split, template))  # those of the split that comes next
        return examples(split)

    if method == ZERO_SHOT:
        settings = replace(settings, steps=0)
    row = fitting.fit(
        model, task, encode, settings, seed, images.optimizer_of(model, settings), splits,
        callbacks=fitting.annealed(model), preprocess_logits_for_metrics=images.predictions,
    )  # fmt: skip
    if method == ZERO_SHOT:
        row["trained_parameters"] = 0
    if method not in (ZERO_SHOT, FULL):
        row["config"] = model.prompt_config.to_dict()
        if model.prompt_config.position in ("task", "instance"):
            row["positions"] = {split: _positions(model, texts(split, template)) for split in splits}
    return row


def _probe(clip, task: ImageTask) -> Probe:
    return Probe(clip.config.projection_dim, len(task.class_names), float(clip.logit_scale.detach().exp()))


@torch.no_grad()
def _positions(model, texts: dict[str, Tensor]) -> list[float]:
    """Share of texts at each split k = 0..l, in evaluation."""
    index = model.eval().decide(**texts)["position"].index.expand(len(texts["input_ids"]))
    counts = torch.bincount(index, minlength=model.prompt.length + 1)
    return [round(share, 4) for share in (counts / counts.sum()).tolist()]
