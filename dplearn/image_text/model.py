"""PromptedCLIP: an image-text model whose texts, images or both carry a trained prompt.

It works like the model that it wraps: texts and images in, a score for each pair out. With classes set
(:meth:`PromptedCLIP.set_classes`) it is an image classifier for `transformers.Trainer`. Frozen work is done once:
features of images that have no prompt, and of texts that have none or that are the same in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from dplearn.backbones.image_text.captions import Captions, check_texts
from dplearn.backbones.image_text.families import unit
from dplearn.backbones.views import evaluating
from dplearn.conventions import extended
from dplearn.image_text.classes import Classes
from dplearn.image_text.losses import compare_draws, losses_for
from dplearn.image_text.towers import Answers, Images, Owners, PromptedTowers, Texts
from dplearn.named_prompts import NamedPrompts
from dplearn.progress import told
from dplearn.prompt import PromptedInput
from dplearn.sampling import Choice

SHORTCUTS = ("truncate", "share", "classes")


class PromptedCLIP(NamedPrompts):
    """A frozen CLIP or SigLIP with a prompt (``PromptConfig(towers=...)``). Made by :func:`dplearn.prompted`.

    Prompts have names, are trained, saved and loaded as those of a :class:`dplearn.PromptedModel`; what this model does
    with texts and images is its own. Arguments have one order in all methods, that of transformers' models with ours
    behind: texts, images, the texts' mask, features of images, tasks.

    The "instance" of a decision is a text: each class can have its own split, size and mixture. With
    ``summary="image"`` or ``towers="vision"`` it is an image. What is decided once for all is drawn once in training
    too, so that all classes of a batch are compared under the same prompt.

    Two things can be spared by giving ``image_embeds`` from :meth:`image_features` instead of ``pixel_values``, where
    images have no prompt (their augmentation is then fixed), and by the attribute ``shortcuts``, a set of names:

    truncate  texts end at the last end token of the batch (CLIP).
    share     what stands in front of all texts alike is computed once (CLIP, where one prompt and one fixed split serve
              all texts, or all texts of an image).
    classes   in evaluation, and for texts without a prompt, the features of the classes are kept until a parameter of
              the prompt changes.

    All are exact up to rounding; ``model.shortcuts = ()`` turns them off. (One gradient depends on what stands behind
    a text's end token, and so on "truncate": that of a learned size by the estimator "straight-through".)
    """

    _shortcuts: frozenset[str] = frozenset(SHORTCUTS)
    _classes: Classes | None = None

    @property
    def shortcuts(self) -> frozenset[str]:
        """What is spared, names out of "truncate", "share" and "classes"."""
        return self._shortcuts

    @shortcuts.setter
    def shortcuts(self, names: Collection[str]) -> None:
        unknown = [name for name in names if name not in SHORTCUTS]
        if isinstance(names, str) or unknown:
            raise ValueError(f"shortcuts={names!r} is not valid, expected some of {list(SHORTCUTS)}")
        self._shortcuts = frozenset(names)
        if self._classes is not None:
            self._classes.forget()

    @property
    def main_input_name(self) -> str:
        return "pixel_values"

    # --- classes ---

    def set_classes(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Set the texts that images are compared with where a call gives none: one for each class, in label order.

        ``model.set_classes(**processor(text=captions, padding=True, return_tensors="pt"))``; SigLIP wants
        ``padding="max_length"``. With several ``tasks`` in the config, as many as classes, class i has the decisions of
        task i. The classes are no part of a checkpoint.

        Raises
        ------
        ValueError : wrong shapes, a text without an end token, or no room for the prompt.
        """
        check_texts(input_ids, attention_mask)
        mask = None if attention_mask is None else attention_mask.to(self.device)
        captions = self.adapter.family.captions(input_ids.to(self.device), mask)
        self._towers().columns_read(captions)
        self._classes = Classes(captions)

    @property
    def class_count(self) -> int | None:
        """How many classes are set; None where there are none."""
        return None if self._classes is None else len(self._classes)

    def _apply(self, fn: Callable, recurse: bool = True) -> PromptedCLIP:
        if self._classes is not None:
            self._classes = self._classes.moved(fn)
        super()._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> PromptedCLIP:
        """As in any prompted model; features of the classes under a prompt do not outlive training."""
        if mode and self._classes is not None:
            self._classes.forget_prompted()  # some optimizers write into ``.data``, which no version counts
        super().train(mode)
        return self

    # --- features ---

    def text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        decisions: Mapping[str, object] | None = None,
    ) -> Tensor:
        """Unit vectors (C, p) of texts with their prompt; without ``input_ids``, of the classes.

        Where images decide about the texts' prompt: (N, C, p), for ``image_embeds`` (N, p). ``decisions``: as in
        :meth:`forward`.
        """
        towers = self._towers()
        images = None if image_embeds is None else towers.read_images(None, image_embeds, {})
        texts = self._read_texts(towers, input_ids, attention_mask)
        if texts.captions is None:  # they have no prompt, so nothing is to be decided
            return cast(Tensor, texts.vectors)
        owners = self._owners(towers, texts, images, task_ids, decisions)
        return towers.text_vectors(texts, owners, towers.decide(owners))

    def image_features(
        self,
        pixel_values: Tensor,
        task_ids: Tensor | Sequence[int | str] | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Tensor:
        """Unit vectors (N, p) of images, with their prompt where they have one.

        Where they have none these never change in training: compute them once (:meth:`cache_images`) and give them as
        ``image_embeds``. ``task_ids`` and ``interpolate_pos_encoding``: as in :meth:`forward`.
        """
        towers, options = self._towers(), _options(interpolate_pos_encoding)
        if towers.where == "text":
            return unit(self.adapter.images.features(pixel_values, **options))
        images = towers.read_images(pixel_values, None, options)
        owners = self._owners(towers, None, images, task_ids)
        # Vectors of both towers follow from no decision; others from those that change vectors.
        editing = [name for name, part in self.prompt.parts.items() if hasattr(part, "edit")]
        return towers.image_vectors(
            images, None if towers.where == "both" else towers.decide(owners, editing)
        )

    @torch.no_grad()
    def cache_images(self, examples: Iterable[dict], batch_size: int = 256) -> list[dict]:
        """Examples for training without the image tower: each "pixel_values" (channels, height, width) becomes
        "image_embeds" (p,); what else an example holds stays.

        Raises
        ------
        ValueError : images have a prompt, so their features change.
        """
        self._towers().check_frozen_images("cache_images")
        embeds: list[Tensor] = []
        examples = list(examples)
        for start in told(range(0, len(examples), batch_size), "images"):
            pixels = torch.stack(
                [example["pixel_values"] for example in examples[start : start + batch_size]]
            )
            embeds += self.image_features(pixels.to(self.device)).cpu()
        return [
            {name: value for name, value in example.items() if name != "pixel_values"} | {"image_embeds": row}
            for example, row in zip(examples, embeds)
        ]

    def similarity(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """The model's scores (N, C) of images (N, p) and texts (C, p), unit vectors both: the larger, the better."""
        return self.adapter.family.logits(image_embeds, text_embeds)

    @torch.no_grad()
    def classify(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        interpolate_pos_encoding: bool = False,
        decisions: Mapping[str, object] | None = None,
    ) -> Tensor:
        """Probabilities (N, C) of texts for images, or of the classes: over the texts (CLIP), or of each pair alone
        (SigLIP). Decisions are those of evaluation, whatever the current mode, or ``decisions`` (:meth:`forward`)."""
        with evaluating(self) as model:
            adapter = self.adapter
            if model is not self:  # a view, so that nobody sees the mode change
                adapter = type(adapter)(model.backbone)
            towers = PromptedTowers(
                adapter, model.prompt, self.prompt_config, self._shortcuts, keeps=not self.training
            )
            images = towers.read_images(pixel_values, image_embeds, _options(interpolate_pos_encoding))
            texts = self._read_texts(towers, input_ids, attention_mask)
            owners = self._owners(towers, texts, images, task_ids, decisions)
            answers = towers.answers(texts, images, owners, towers.decide(owners))
            return adapter.family.probabilities(answers.logits)

    # --- the model ---

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        labels: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        decisions: Mapping[str, object] | None = None,
    ) -> Any:
        """Scores of images and texts.

        Parameters
        ----------
        input_ids : (C, T) texts; None takes the classes.
        pixel_values : (N, channels, height, width), or ``image_embeds`` instead.
        attention_mask : (C, T), 1 = real; None means that all tokens up to an end token are.
        image_embeds : (N, p) from :meth:`image_features`, where images have no prompt.
        task_ids : the task of each text, or of each image where these decide: numbers or names.
        labels : (N,), which text each image belongs to: the loss is the cross-entropy over the texts.
        return_loss : the loss that the model was pretrained with, over N images and their N texts in the same order.
        interpolate_pos_encoding : for images of another size.
        decisions : decisions that were made elsewhere, by name, such as ``{"position": 3}``: an option for all, one for
            each text (or class, or image where images decide), or a Choice from :meth:`decide`. The others are made
            as usual.

        Returns
        -------
        With ``input_ids`` the backbone's own output, with ``logits_per_image`` (N, C), ``logits_per_text`` (C, N),
        ``text_embeds`` and ``image_embeds``; without, an ``ImageClassifierOutput`` with ``logits`` (N, C). While a size
        is learned and costs something, there is a ``penalty``, which is part of the ``loss``. With the estimators
        "score-function" and "exact" the images of a training step are repeated once for each draw.

        Raises
        ------
        ValueError : no texts or no images, or both kinds of either; both kinds of loss; shapes that do not fit; a given
            decision that this prompt does not make, or no option of it.
        """
        self._check_replica()
        if return_loss and labels is not None:
            raise ValueError("labels and return_loss=True, expected one of them: there is one loss")
        towers = self._towers()
        images = towers.read_images(pixel_values, image_embeds, _options(interpolate_pos_encoding))
        texts = self._read_texts(towers, input_ids, attention_mask)
        owners = self._owners(towers, texts, images, task_ids, decisions)
        losses = losses_for(self.adapter.family, labels, return_loss, images.number)
        if self.training and torch.is_grad_enabled() and set(self.prompt.samples()) - set(owners.given):
            step = compare_draws(towers, texts, images, owners, losses, bool(return_loss))
            output = self._output(input_ids is None, step.loss, step.answers)
            return extended(output, penalty=step.penalty, draws=step.draws)
        made = towers.decide(owners)
        answers = towers.answers(texts, images, owners, made)
        loss, penalty = losses(answers.logits), self.prompt.penalty(made)
        loss = None if loss is None else loss.mean()
        if penalty is None:
            return self._output(input_ids is None, loss, answers)
        loss = None if loss is None else loss + penalty
        return extended(self._output(input_ids is None, loss, answers), penalty=penalty)

    def _output(self, classifies: bool, loss: Tensor | None, answers: Answers) -> Any:
        if classifies:
            from transformers.modeling_outputs import ImageClassifierOutput

            return ImageClassifierOutput(loss=loss, logits=answers.logits)
        return self.adapter.family.output(
            loss=loss,
            logits_per_image=answers.logits,
            logits_per_text=answers.logits.T,
            text_embeds=answers.texts,
            image_embeds=answers.images,
        )

    def insert_prompt(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        interpolate_pos_encoding: bool = False,
        decisions: Mapping[str, object] | None = None,
    ) -> PromptedInput:
        """The embedded texts (or classes) with their prompt in place and what was decided; no layer runs.

        Images are needed where they decide (``summary="image"``); then there are N * C rows, image by image.
        ``decisions``: as in :meth:`forward`.

        Raises
        ------
        ValueError : the prompt stands in the images alone.
        """
        towers, images = self._towers(), None
        if towers.where == "vision":
            raise ValueError("towers='vision' has no prompt in a text; expected decide(pixel_values=...)")
        if pixel_values is not None or image_embeds is not None:
            images = towers.read_images(pixel_values, image_embeds, _options(interpolate_pos_encoding))
        texts = self._read_texts(towers, input_ids, attention_mask)
        owners = self._owners(towers, texts, images, task_ids, decisions)
        return towers.place(texts, owners, towers.decide(owners))

    def decide(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> dict[str, Choice]:
        """What is decided, by name of the decision: for each text (or class), for each image where images decide, or
        once for all of them (then ``index`` has one entry)."""
        towers, images, texts = self._towers(), None, None
        given = pixel_values is not None or image_embeds is not None
        # Texts have no say where the images that decide about them are there.
        reads_texts = towers.where != "vision" and not (given and towers.by_image)
        if given or not reads_texts:
            images = towers.read_images(pixel_values, image_embeds, _options(interpolate_pos_encoding))
        if reads_texts:
            texts = self._read_texts(towers, input_ids, attention_mask)
        return towers.decide(self._owners(towers, texts, images, task_ids))

    @torch.no_grad()
    def summarize(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **others: Any,
    ) -> Tensor:
        """What instance-level decisions look at: (C, d) of texts, (N, p) or (N, width) of images.

        ``others``: what else :meth:`forward` takes; it has no say.
        """
        self._check_names(others)
        towers = self._towers()
        if not towers.by_image:
            captions = self._captions(input_ids, attention_mask)
            return towers.summary(Texts(captions, self.adapter.embed(captions.input_ids)), None)
        if pixel_values is None and image_embeds is None:
            raise ValueError("pixel_values=None, expected images: they decide")
        images = towers.read_images(pixel_values, image_embeds, _options(interpolate_pos_encoding))
        return towers.summary(None, images)

    # --- what a call is about ---

    def _towers(self) -> PromptedTowers:
        """The towers with the prompt in use, for one call."""
        keeps = not self.training
        return PromptedTowers(self.adapter, self.prompt, self.prompt_config, self._shortcuts, keeps)

    def _read_texts(
        self, towers: PromptedTowers, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Texts:
        """The texts that were given, or the classes."""
        captions = self._captions(input_ids, attention_mask)
        return towers.read_texts(captions, self._classes if input_ids is None else None)

    def _captions(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> Captions:
        if input_ids is not None:
            return self.adapter.family.captions(input_ids, attention_mask)
        if self._classes is None:
            raise ValueError("input_ids=None, expected texts: give them, or set_classes before")
        if attention_mask is not None:
            raise ValueError(
                "attention_mask without input_ids, expected both or none (set_classes has its own)"
            )
        return self._classes.captions

    def _owners(
        self,
        towers: PromptedTowers,
        texts: Texts | None,
        images: Images | None,
        task_ids: Any,
        decisions: Mapping[str, object] | None = None,
    ) -> Owners:
        """Who decides, and what was decided elsewhere. Where there are as many classes as tasks, class i is about task
        i."""
        prompt, number = towers.prompt, towers.number_of_owners(texts, images)
        are_classes = texts is not None and texts.classes is not None and not towers.by_image
        if task_ids is None and are_classes and prompt.needs_task:
            tasks = len(self.prompt_config.tasks or ())
            task_ids = list(range(number)) if number == tasks else None
        looks = prompt.needs_summary and (towers.by_image or texts is not None)
        summary = towers.summary(texts, images) if looks else None
        given = towers.given(decisions or {}, number)
        return Owners(number, summary, self.task_numbers(task_ids, number), given)


def _options(interpolate_pos_encoding: bool) -> dict:
    """Options of the image tower's embeddings."""
    return {"interpolate_pos_encoding": interpolate_pos_encoding}
