"""Train and score one method on clip-mini: zero-shot, a linear probe, prompts in one or both towers, full fine-tuning.

The classes of a task are split in two halves. All methods learn from images of the base classes; "test_new" has the
new ones, whose images no method sees and whose names are given in the test alone. Text prompts start from the words of
the template, so before the first step they are the zero-shot classifier. Choices are made on "validation" (base
classes), the test splits are only reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import set_seed
from transformers.modeling_outputs import ImageClassifierOutput

from dplearn import zoo
from dplearn.config import PromptConfig
from dplearn.evidence import evidence
from dplearn.experiments import images
from dplearn.experiments.fitting import Settings, device
from dplearn.experiments.runs import ImageRun, distribution, learned_parts, some
from dplearn.experiments.scoring import BATCH
from dplearn.experiments.watching import LOOKS, Looks
from dplearn.image_text import PromptedCLIP
from dplearn.loading import prompted
from dplearn.report import DecisionReport
from dplearn.reporting import evaluating
from dplearn.sampling import Choice
from dplearn.tasks.images import NEW, ImageTask

POOL = 4
DEEPEST = 9  # layers with vectors of their own, where a tower has more (Khattak et al., 2023)
WORDS = "a photo of a "  # what a prompt starts from where a template has no words in front of the class
DEALS = 5  # ways to give classes, or images, the decisions of others
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
    "prefix, all layers": {"depth": "all"},
    "images": {"towers": "vision"},
    "images, all layers": {"towers": "vision", "depth": "all"},
    "both, all layers": {"towers": "both", "depth": "all"},
    "coupled, all layers": {"towers": "coupled", "depth": "all"},
}
METHODS = (ZERO_SHOT, PROBE, *PROMPTS, FULL, "prefix" + images.RANDOM)
SETTINGS = Settings(steps=300, learning_rate=1e-2, controller_learning_rate=None)


def config_of(method: str | Mapping, words: int, layers: int) -> PromptConfig:
    """The prompt of a method that starts from so many words, on towers of so many layers (the smaller number).

    method : a name, or the options of a prompt. Its length is a number of copies of the words, its depth may be "all".

    >>> config_of("one prompt as large as the pool", words=3, layers=3).length
    12
    >>> config_of("images, all layers", words=3, layers=12).depth
    9
    """
    options = dict(PROMPTS[method.removesuffix(images.RANDOM)] if isinstance(method, str) else method)
    if options.get("depth") == "all":
        options["depth"] = min(layers, DEEPEST)
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

    def head_parameters(self) -> list[nn.Parameter]:
        """What is trained: all of it is a head."""
        return list(self.linear.parameters())

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


@dataclass(frozen=True)
class ImageTextRun(ImageRun):
    """An image-text model at work: a prompt decides about the texts of the classes, or about each image.

    ``encode`` of a split sets its classes.
    """

    @property
    def fields(self) -> tuple[str, ...]:
        config = self.model.prompt_config
        if config.summary == "image":
            return ("image_embeds",)
        return ("pixel_values",) if config.towers == "vision" else ()

    def choices(self, rows: Sequence[dict]) -> dict[str, Choice]:
        """As of any run where images decide; else what is decided for each class that is set."""
        if self.fields:
            return super().choices(rows)
        with evaluating(self.model), torch.no_grad():
            return _for_each(self.model.decide(), self.model.class_count)

    def report(
        self, split: str, count: int, since: DecisionReport | None = None, headroom: bool = False
    ) -> DecisionReport:
        """As of any run: how far decisions moved, how classes or images are spread over them, and (not at the start)
        what dealing them out to others costs: the loss of images whose own decision went to another image, or the mean
        over some ways to give each class the decision of another one.
        """
        rows = self.encode(split)
        chosen = some(rows, count)
        rows = [rows[i] for i in chosen]
        made, learned, pis, own = self.choices(rows), {}, {}, None
        if since is not None:
            own = self._losses(rows, {})
        for name, part in learned_parts(self.model).items():
            pis[name] = distribution(part, made[name]).float()
            told: dict[str, Any] = {}
            if since is not None:
                told = {"own": own, "dealt": self._dealt(rows, name, made[name])}
                told |= {"first": since.probabilities[name], "first_chosen": since.chosen[name]}
                if self.fields:
                    told["labels"] = self.labels(split)[chosen]
            learned[name] = evidence(pis[name], made[name].index, **told)
        return DecisionReport(learned, None, pis, {name: made[name].index for name in learned})

    def _dealt(self, rows: Sequence[dict], name: str, choice: Choice) -> Tensor:
        """(N,) losses of images with one decision dealt to the next image, or class; the mean over several turns."""
        count = len(choice.index)
        turns = some(range(1, count), DEALS) if count > 1 else [0]
        dealt = []
        for turn in turns:
            moved = choice.of_each(partial(torch.roll, shifts=turn + 1, dims=0))
            dealt.append(self._losses(rows, {name: moved}))
        return torch.stack(dealt).mean(0)

    @torch.no_grad()
    def _losses(self, rows: Sequence[dict], decisions: dict[str, Choice]) -> Tensor:
        """(N,) cross-entropies of images, in evaluation, with decisions that were made elsewhere."""
        losses, each, device = [], bool(self.fields), self.model.device
        with evaluating(self.model):
            for start in range(0, len(rows), BATCH):
                batch = dict(self.collate(list(rows[start : start + BATCH])))
                labels = batch.pop("labels")
                owners = slice(start, start + BATCH) if each else slice(None)

                def own(part: Tensor, owners: slice = owners) -> Tensor:
                    return part[owners].to(device)

                given = {name: choice.of_each(own) for name, choice in decisions.items()}
                moved = {field: value.to(device) for field, value in batch.items()}
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    logits = self.model(**moved, decisions=given).logits
                losses.append(cross_entropy(logits.cpu().double(), labels, reduction="none"))
        return torch.cat(losses)


def _for_each(made: dict[str, Choice], count: int) -> dict[str, Choice]:
    """Choices with a row for each class, where one holds for all of them."""
    return {
        name: choice.of_each(lambda part: part.detach().expand(count, *part.shape[1:]).cpu())
        for name, choice in made.items()
    }


def tune(
    method: str | Mapping,
    task: ImageTask,
    settings: Settings = SETTINGS,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test", NEW),
    backbone: str = "clip-mini",
    looks: Looks = LOOKS,
) -> dict:
    """Train one of ``METHODS``, or a prompt with these options (:func:`config_of`), on the base classes of ``task`` and
    score it, on the new classes too where it can.

    Returns a row as :func:`dplearn.experiments.watching.fit_and_watch`, with the config of a prompt. ``positions`` is
    the share of texts at each split.

    Raises
    ------
    ValueError : an unknown method; the message lists them. A setting that has no effect on images.
    """
    settings.check_for_images()
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method={method!r} is unknown, expected one of {list(METHODS)}")
    clip, processor = zoo.load(backbone)
    if isinstance(method, str) and method.endswith(images.RANDOM):
        clip = zoo.random_control(backbone, seed)
    if not task.new_names:
        task = task.base_to_new()
    set_seed(seed)

    @cache
    def pixels(split: str):
        return task.encode(processor, split, in_memory=images.KEPT)

    if method == PROBE:
        run, splits = _probe_run(clip, task, pixels), [split for split in splits if split != NEW]
    else:
        run = _run_on_texts(method, clip, processor, task, pixels)
    run = replace(run, bf16=settings.bf16)
    if method == ZERO_SHOT:
        settings = replace(settings, steps=0)
    row = images.train_and_watch(run, settings, seed, splits, looks)
    return row | {"trained_parameters": 0} if method == ZERO_SHOT else row


def _probe_run(clip, task: ImageTask, pixels: Callable[[str], Sequence[dict]]) -> ImageRun:
    """The linear probe, on features of the images that are computed once."""
    scale = float(clip.logit_scale.detach().exp())
    probe = Probe(clip.config.projection_dim, len(task.class_names), scale)
    features = prompted(clip, PromptConfig(length=1)).to(device())
    return ImageRun(probe.to(device()), task, cache(lambda split: features.cache_images(pixels(split))))


def _run_on_texts(
    method: str | Mapping, clip, processor, task: ImageTask, pixels: Callable[[str], Sequence[dict]]
) -> ImageTextRun:
    """A method that compares images with the texts of the classes: zero-shot, a prompt, or full fine-tuning."""
    if method in (ZERO_SHOT, FULL):
        model: Any = WholeModel(clip)
        template, keeps = task.template, False
    else:
        model, template = _prompted(method, clip, processor, task)
        keeps = model.prompt_config.towers is None
    model = model.to(device())

    def texts(split: str) -> dict[str, Tensor]:
        captions = task.captions(NEW if split == NEW else "train", template)
        tokens = processor.tokenizer(captions, padding=True, return_tensors="pt")
        return {name: tokens[name].to(device()) for name in ("input_ids", "attention_mask")}

    @cache
    def examples(split: str):
        return model.cache_images(pixels(split)) if keeps else pixels(split)

    def encode(split: str):
        model.set_classes(**texts(split))  # those of the split that comes next
        return examples(split)

    return ImageTextRun(model, task, encode)


def _prompted(method: str | Mapping, clip, processor, task: ImageTask) -> tuple[PromptedCLIP, str]:
    """The model with the prompt of a method, and the template of the texts that it reads."""
    before, _, after = task.template.partition("{}")
    ids = torch.tensor(processor.tokenizer(before or WORDS).input_ids[1:-1])
    words = clip.text_model.embeddings.token_embedding.weight[ids].detach()
    towers = clip.config.text_config, clip.config.vision_config
    config = config_of(method, len(words), min(tower.num_hidden_layers for tower in towers))
    # A prompt in the images alone leaves the texts as they are in zero-shot classification.
    template = task.template if config.towers == "vision" else "{}" + after
    return cast(PromptedCLIP, prompted(clip, config, vectors=first_vectors(config, words))), template
