"""Both towers of a frozen model with one prompt: from texts and images over decisions to unit vectors and logits.

Those who decide are the texts, or the images where these decide (about their own prompt, or about that of the texts).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from dplearn.backbones import ImageTextBackbone
from dplearn.backbones.image_text.captions import Captions
from dplearn.backbones.image_text.families import unit
from dplearn.config import PromptConfig
from dplearn.controllers import FixedDecision, TaskController
from dplearn.image_text.classes import Classes
from dplearn.kept import adapters_of
from dplearn.prompt import DynamicPrompt, PromptedInput
from dplearn.sampling import Choice
from dplearn.summaries import masked_mean


class Images(NamedTuple):
    """Images of a call."""

    pixels: Tensor | None  # (N, channels, height, width)
    vectors: Tensor | None  # (N, p), unit vectors of images without a prompt; None: they have one
    options: dict  # of the image tower's embeddings

    @property
    def number(self) -> int:
        """N."""
        return len(cast(Tensor, self.pixels if self.vectors is None else self.vectors))


class Texts(NamedTuple):
    """Texts of a call: embedded, for a prompt around them, or what the model says about them without one."""

    captions: Captions | None = None
    inputs: Tensor | None = None  # (C, T, d)
    vectors: Tensor | None = None  # (C, p), unit vectors of texts without a prompt
    classes: Classes | None = None  # where these are the texts of the classes

    @property
    def read(self) -> Captions:
        """The captions of texts around which a prompt stands."""
        return cast("Captions", self.captions)


class Owners(NamedTuple):
    """Who decides, texts or images, and what there is to decide by."""

    number: int
    summary: Tensor | None  # (number, w)
    task: Tensor | None  # (number,)
    given: Mapping[str, Choice] = {}  # decisions that were made elsewhere


class Answers(NamedTuple):
    """What the model says: logits (N, C), and unit vectors of texts (C, p) or (N, C, p) and of images (N, p)."""

    logits: Tensor
    texts: Tensor
    images: Tensor


class PromptedTowers:
    """A frozen model's towers with one prompt, for one call.

    Parameters
    ----------
    adapter : of the frozen model.
    prompt : in use.
    config : of the prompt.
    shortcuts : what is not computed again (:class:`dplearn.PromptedCLIP`).
    keeps : whether features of the classes under the prompt may be kept: not while it is trained.
    """

    def __init__(
        self,
        adapter: ImageTextBackbone,
        prompt: DynamicPrompt,
        config: PromptConfig,
        shortcuts: Collection[str],
        keeps: bool,
    ):
        self.adapter, self.prompt, self.config, self.shortcuts = adapter, prompt, config, shortcuts
        self.keeps = keeps and "classes" in shortcuts

    @property
    def where(self) -> str:
        """Which towers have a prompt: "text", "vision", "both" or "coupled"."""
        return self.config.towers or "text"

    @property
    def by_image(self) -> bool:
        """Whether images decide."""
        return self.where == "vision" or self.config.summary == "image"

    # --- what is given ---

    def check_frozen_images(self, name: str) -> None:
        """Raise ValueError where images have a prompt, so that ``name``, which keeps their features, is no use."""
        if self.where != "text":
            raise ValueError(
                f"{name} cannot be used with towers={self.where!r}: images have a prompt, so their features change; "
                "expected pixel_values"
            )

    def read_images(self, pixel_values: Tensor | None, image_embeds: Tensor | None, options: dict) -> Images:
        """Images, as pixels or as the features that :meth:`dplearn.PromptedCLIP.image_features` gives."""
        if (pixel_values is None) == (image_embeds is None):
            both = "none" if pixel_values is None else "both"
            raise ValueError(f"expected one of pixel_values and image_embeds, got {both}")
        if image_embeds is not None:
            self.check_frozen_images("image_embeds")
            expected = self.adapter.family.joint_width
            if image_embeds.ndim != 2 or image_embeds.shape[1] != expected:
                raise ValueError(
                    f"image_embeds has shape {tuple(image_embeds.shape)}, expected (batch, {expected})"
                )
        if self.where != "text":
            return Images(pixel_values, None, options)
        if image_embeds is None:
            image_embeds = self.adapter.images.features(cast(Tensor, pixel_values), **options)
        # Of length 1 also where others than image_features made them.
        return Images(pixel_values, unit(image_embeds.to(self.adapter.model.dtype)), options)

    def read_texts(self, captions: Captions, classes: Classes | None) -> Texts:
        """Texts, embedded where a prompt stands around them; ``classes``: where they are the classes'."""
        if self.where == "vision":
            return Texts(vectors=self._plain_texts(captions, classes), classes=classes)
        captions = self.columns_read(captions)
        return Texts(captions, self.adapter.embed(captions.input_ids), classes=classes)

    def columns_read(self, captions: Captions) -> Captions:
        """The columns that the tower reads; ValueError where there is no room for the prompt."""
        vectors = 0 if self.where == "vision" else self.prompt.most
        return self.adapter.texts.columns_read(captions, vectors, "truncate" in self.shortcuts)

    def _plain_texts(self, captions: Captions, classes: Classes | None) -> Tensor:
        """Unit vectors (C, p) of texts without a prompt; those of the classes are computed once."""

        @torch.no_grad()
        def compute() -> Tensor:
            read = self.columns_read(captions)
            return unit(self.adapter.texts.plain_features(self.adapter.embed(read.input_ids), read))

        if classes is None or "classes" not in self.shortcuts or self.adapter.model.training:
            return compute()
        switched = () if torch.compiler.is_compiling() else adapters_of(self.adapter.model)
        return classes.features(("plain", *switched), compute)

    # --- decisions ---

    def number_of_owners(self, texts: Texts | None, images: Images | None) -> int:
        """How many decide: as many as there are texts, or images; 1 where these are not there."""
        if self.by_image:
            if images is None and self.where != "vision" and self.prompt.needs_summary:
                raise ValueError("pixel_values=None, expected images: they decide about the texts' prompt")
            return 1 if images is None else images.number
        return 1 if texts is None else len(texts.read.ends)

    def summary(self, texts: Texts | None, images: Images | None) -> Tensor:
        """What decisions look at: (C, d) of texts, (N, p) or (N, width) of images."""
        if self.by_image:
            images = cast(Images, images)
            if self.where == "vision" and self.config.summary != "image":
                return self.adapter.images.summary(cast(Tensor, images.pixels), **images.options)
            if images.vectors is not None:
                return images.vectors
            return unit(self.adapter.images.features(cast(Tensor, images.pixels), **images.options))
        texts = cast(Texts, texts)
        words, inputs = self.adapter.family.words(texts.read), cast(Tensor, texts.inputs)
        if self.config.summary == "encoder":
            return self.adapter.texts.summary(inputs, words)
        return masked_mean(inputs, words)

    def given(self, decisions: Mapping[str, object], number: int) -> dict[str, Choice]:
        """Decisions that were made elsewhere, one for each of so many owners; one entry holds for all.

        Raises
        ------
        ValueError : a decision that this prompt does not make, a place in images, or no option of it.
        """
        if self.where == "vision" and "position" in decisions:
            raise ValueError(
                "decisions holds 'position' with towers='vision', expected decisions about a prompt's vectors: "
                "it has one place in an image"
            )

        def of_all(value: object) -> object:
            if not isinstance(value, Choice) or len(value.index) != 1:
                return value
            return value.of_each(lambda part: part.expand(number, *part.shape[1:]))

        device = self.prompt.vectors.device
        return self.prompt.given({name: of_all(value) for name, value in decisions.items()}, number, device)

    def decide(self, owners: Owners, names: Collection[str] | None = None) -> dict[str, Choice]:
        """Decisions by name, of ``names`` or all: each for as many as make it, all owners or one for all of them."""
        if self.prompt.needs_task and owners.task is None:
            raise ValueError(
                f"task_ids=None, expected one for each {'image' if self.by_image else 'text'}: something is decided "
                "per task"
            )
        decisions = {}
        for name, part in self.prompt.parts.items():
            if names is not None and name not in names:
                continue
            if name in owners.given:
                decisions[name] = owners.given[name]
                continue
            several = part.looks_at_input or any(
                isinstance(module, TaskController) and module.tasks > 1 for module in part.modules()
            )
            summary = owners.summary
            if not part.looks_at_input:
                device = self.prompt.vectors.device
                summary = torch.empty(owners.number if several else 1, 0, device=device)
            decisions[name] = part(summary, owners.task if several else None)
        return decisions

    # --- through the towers ---

    def answers(self, texts: Texts, images: Images, owners: Owners, decisions: dict[str, Choice]) -> Answers:
        """Scores of all pairs, under these decisions."""
        text_vectors = self.text_vectors(texts, owners, decisions)
        image_vectors = self.image_vectors(images, decisions)
        return Answers(self.adapter.family.logits(image_vectors, text_vectors), text_vectors, image_vectors)

    def text_vectors(self, texts: Texts, owners: Owners, decisions: dict[str, Choice]) -> Tensor:
        """Unit vectors (C, p), or (N, C, p) where each image decides about the texts' prompt."""
        if texts.vectors is not None:
            return texts.vectors

        def compute() -> Tensor:
            placed = self.place(texts, owners, decisions)
            split = None if owners.given else self._shared_split(texts.read, decisions)
            return unit(self.adapter.texts.features(placed, texts.read, split))

        key = self._key(texts, owners)
        if key is None or texts.classes is None:
            vectors = compute()
        else:
            vectors = texts.classes.features(key, compute, tuple(self.prompt.parameters()))
        separate = self.by_image and (self.prompt.needs_summary or self.prompt.needs_task or owners.given)
        return vectors.view(owners.number, -1, vectors.shape[1]) if separate else vectors

    def _key(self, texts: Texts, owners: Owners) -> tuple | None:
        """What the features of the classes under the prompt depend on, or None where they are not kept."""
        if (
            texts.classes is None
            or not self.keeps
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
        ):
            return None
        if self.by_image or owners.task is not None or owners.given:
            return None
        if any(chooser.sample_in_evaluation for chooser in self.prompt.choosers().values()):
            return None
        vectors = tuple((id(p), p._version, p.data_ptr()) for p in self.prompt.parameters())
        return *vectors, *adapters_of(self.adapter.model)

    def place(self, texts: Texts, owners: Owners, decisions: dict[str, Choice]) -> PromptedInput:
        """The texts with their prompt: once, or N times where images decide differently, image by image."""
        captions, count = texts.read, len(texts.read.ends)
        differ = self.by_image and any(
            len(choice.index) == owners.number > 1 for choice in decisions.values()
        )
        times = owners.number if differ else 1

        def for_each_text(value: Tensor) -> Tensor:
            if len(value) == times * count:
                return value
            if self.by_image and len(value) == times:
                return value.repeat_interleave(count, 0)
            return value.expand(times * count, *value.shape[1:])

        decisions = {
            name: choice._replace(
                index=for_each_text(choice.index),
                weights=None if choice.weights is None else for_each_text(choice.weights),
            )
            for name, choice in decisions.items()
        }
        inputs, mask = cast(Tensor, texts.inputs).repeat(times, 1, 1), captions.mask.repeat(times, 1)
        placed = self.prompt(inputs, mask, None, self.adapter.family.keep_last, None, decisions)
        return self.adapter.texts.as_read(placed, captions)

    def _shared_split(self, captions: Captions, decisions: dict[str, Choice]) -> int | None:
        """The split of all texts, where rows in front of them can be computed once; None where they cannot."""
        position, size = decisions["position"], self.prompt.size
        shares = "share" in self.shortcuts and self.adapter.texts.shares_rows
        if not shares or not isinstance(size, FixedDecision):
            return None
        if not self.by_image and any(len(choice.index) > 1 for choice in decisions.values()):
            return None
        if isinstance(self.prompt.position, FixedDecision):
            split = self.prompt.position.option
        elif len(position.index) > 1 or position.weights is not None or torch.compiler.is_compiling():
            return None  # while it is learned, the gradient belongs to each text's own sequence
        else:
            split = int(position.index[0])
        split = min(split, size.option)
        front = split + captions.shared
        return split if len(captions.ends) > 1 and front > captions.special else None

    def image_vectors(self, images: Images, decisions: dict[str, Choice] | None = None) -> Tensor:
        """Unit vectors (N, p); decisions about the vectors are needed unless the images' prompt has none."""
        if images.vectors is not None:
            return images.vectors
        if self.where == "both":
            vectors = self.prompt.attached["vision"].vectors
        else:
            vectors = self.prompt.every_layer(decisions or {})
            if vectors.ndim == 4 and len(vectors) == 1:
                vectors = vectors[0]
            if self.where == "coupled":
                vectors = self.prompt.attached["vision"](vectors)
        return unit(self.adapter.images.features(cast(Tensor, images.pixels), vectors, **images.options))
