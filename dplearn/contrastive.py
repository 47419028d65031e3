"""PromptedCLIP: an image-text model whose texts, images or both carry a trained prompt.

It works like the model that it wraps: texts and images in, a score for each pair out. With classes set
(:meth:`PromptedCLIP.set_classes`) it is an image classifier for `transformers.Trainer`. Frozen work is done once:
features of images that have no prompt, and of texts that have none or that are the same in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dplearn.backbones.base import evaluating
from dplearn.backbones.clip import Captions, unit
from dplearn.choice import Choice
from dplearn.controllers import FixedDecision, TaskController
from dplearn.estimators import ESTIMATORS, draw, surrogate
from dplearn.model import PromptedModel, extended
from dplearn.prompt import PromptedInput
from dplearn.summaries import masked_mean

SHORTCUTS = ("truncate", "share", "classes")


class _Batch(NamedTuple):
    """What one forward pass is about. The owners of decisions are the texts, or the images where these decide."""

    captions: Captions | None  # None: texts without a prompt, whose features are at hand
    texts: Tensor | None  # (C, p) unit vectors of these
    inputs: Tensor | None  # (C, T, d) embedded texts
    pixels: Tensor | None
    options: dict
    images: Tensor | None  # (N, p) unit vectors of images without a prompt
    by_image: bool
    owners: int
    summary: Tensor | None  # (owners, w)
    task: Tensor | None  # (owners,)


class _Kept(NamedTuple):
    """Features of the classes, and what they were computed from."""

    key: tuple
    features: Tensor
    version: int  # of the features, which their user may have changed in place
    parameters: tuple[Tensor, ...]  # held, so that no other parameter takes their place in memory


class PromptedCLIP(PromptedModel):
    """A frozen CLIP or SigLIP with a prompt (``PromptConfig(towers=...)``). Made by :func:`dplearn.prompted`.

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
    _classes: Captions | None = None
    _kept: _Kept | None = None

    @property
    def shortcuts(self) -> frozenset[str]:
        """What is spared, names out of "truncate", "share" and "classes"."""
        return self._shortcuts

    @shortcuts.setter
    def shortcuts(self, names: Collection[str]) -> None:
        unknown = [name for name in names if name not in SHORTCUTS]
        if isinstance(names, str) or unknown:
            raise ValueError(f"shortcuts={names!r} is not valid, expected some of {list(SHORTCUTS)}")
        self._shortcuts, self._kept = frozenset(names), None

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
        captions = self.adapter.captions(input_ids.to(self.device), _on(attention_mask, self.device))
        self.adapter.fit(captions, self._extra(), True)
        self._classes, self._kept = captions, None

    @property
    def class_count(self) -> int | None:
        """How many classes are set; None where there are none."""
        return None if self._classes is None else len(self._classes.ends)

    def _apply(self, fn, recurse=True):
        if self._classes is not None:
            ids, mask = fn(self._classes.input_ids), fn(self._classes.mask)
            self._classes = self._classes._replace(input_ids=ids, mask=mask)
        self._kept = None
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> PromptedCLIP:
        """As in any prompted model; features of the classes under a prompt do not outlive training."""
        if mode and self._kept is not None and self._kept.parameters:
            self._kept = None  # some optimisers write into ``.data``, which no version counts
        return super().train(mode)

    # --- features ---

    def text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        image_embeds: Tensor | None = None,
    ) -> Tensor:
        """Unit vectors (C, p) of texts with their prompt; without ``input_ids``, of the classes.

        Where images decide about the texts' prompt: (N, C, p), for ``image_embeds`` (N, p).
        """
        given = (input_ids, attention_mask, None, image_embeds, task_ids, {})
        batch = self._batch(*given, images_needed=image_embeds is not None)
        return self._texts(batch, self._decide(batch))

    def image_features(
        self, pixel_values: Tensor, task_ids: Tensor | Sequence[int | str] | None = None, **options
    ) -> Tensor:
        """Unit vectors (N, p) of images, with their prompt where they have one.

        Where they have none these never change in training: compute them once (:meth:`cache_images`) and give them as
        ``image_embeds``. ``task_ids``: as in :meth:`forward`. ``options``: ``interpolate_pos_encoding``.
        """
        if self._towers == "text":
            return unit(self.adapter.image_features(pixel_values, **options))
        batch = self._batch(None, None, pixel_values, None, task_ids, options, texts_needed=False)
        return self._images(batch, {} if self._towers == "both" else self._decide(batch, ("vector",)))

    @torch.no_grad()
    def cache_images(self, examples: Iterable[dict], batch_size: int = 256) -> list[dict]:
        """Examples for training without the image tower: each "pixel_values" (channels, height, width) becomes
        "image_embeds" (p,); what else an example holds stays.

        Raises
        ------
        ValueError : images have a prompt, so their features change.
        """
        self._check_frozen_images("cache_images")
        examples = list(examples)
        found = []
        for start in range(0, len(examples), batch_size):
            pixels = torch.stack(
                [example["pixel_values"] for example in examples[start : start + batch_size]]
            )
            found += self.image_features(pixels.to(self.device)).cpu()
        return [
            {name: value for name, value in example.items() if name != "pixel_values"} | {"image_embeds": row}
            for example, row in zip(examples, found)
        ]

    def similarity(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """The model's scores (N, C) of images (N, p) and texts (C, p), unit vectors both: the larger, the better."""
        return self.adapter.scores(text_embeds, image_embeds)

    @torch.no_grad()
    def classify(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        **options,
    ) -> Tensor:
        """Probabilities (N, C) of texts for images, or of the classes: over the texts (CLIP), or of each pair alone
        (SigLIP). Decisions are those of evaluation, whatever the current mode."""
        with evaluating(self) as model:
            if model is not self:  # a view, so that nobody sees the mode change
                model.adapter = type(self.adapter)(model.backbone)
            batch = model._batch(input_ids, attention_mask, pixel_values, image_embeds, task_ids, options)
            return model.adapter.probabilities(model._run(batch)[0])

    # --- the model ---

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        image_embeds: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        return_loss: bool | None = None,
        **options,
    ):
        """Scores of images and texts.

        Parameters
        ----------
        input_ids : (C, T) texts; None takes the classes.
        attention_mask : (C, T), 1 = real; None means that all tokens up to an end token are.
        pixel_values : (N, channels, height, width), or ``image_embeds`` (N, p) from :meth:`image_features` instead,
            where images have no prompt.
        labels : (N,), which text each image belongs to: the loss is the cross-entropy over the texts.
        task_ids : the task of each text, or of each image where these decide: numbers or names.
        return_loss : the loss that the model was pretrained with, over N images and their N texts in the same order.
        options : ``interpolate_pos_encoding``, for images of another size.

        Returns
        -------
        With ``input_ids`` the backbone's own output, with ``logits_per_image`` (N, C), ``logits_per_text`` (C, N),
        ``text_embeds`` and ``image_embeds``; without, an ``ImageClassifierOutput`` with ``logits`` (N, C). While a size
        is learned and costs something, there is a ``penalty``, which is part of the ``loss``. With the estimators
        "score-function" and "exact" the images of a training step are repeated once for each draw.

        Raises
        ------
        ValueError : no texts or no images, or both kinds of either; both kinds of loss; shapes that do not fit.
        """
        self._check_replica()
        if return_loss and labels is not None:
            raise ValueError("labels and return_loss=True, expected one of them: there is one loss")
        batch = self._batch(input_ids, attention_mask, pixel_values, image_embeds, task_ids, options)
        count = len(pixel_values if image_embeds is None else image_embeds)
        if labels is not None and (labels.shape != (count,) or labels.is_floating_point()):
            raise ValueError(
                f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}, expected integers ({count},)"
            )

        def losses(scores: Tensor) -> Tensor | None:
            if return_loss:
                if scores.shape[0] != scores.shape[1]:
                    raise ValueError(
                        f"return_loss=True with {scores.shape[0]} images and {scores.shape[1]} texts, expected pairs"
                    )
                return self.adapter.pair_loss(scores).expand(count)
            return None if labels is None else cross_entropy(scores, labels, reduction="none")

        more = {}
        if self.training and torch.is_grad_enabled() and self.prompt.samples():
            found = self._run_draws(batch, losses, bool(return_loss))
            scores, texts, images, loss, more["penalty"], more["draws"] = found
        else:
            scores, texts, images, penalty = self._run(batch)
            loss = losses(scores)
            loss = None if loss is None else loss.mean()
            if penalty is not None:
                loss = None if loss is None else loss + penalty
                more["penalty"] = penalty
        output = self._output(input_ids is None, loss, scores, texts, images)
        return extended(output, **more) if more else output

    def _output(self, classifies: bool, loss, scores, texts, images):
        if classifies:
            from transformers.modeling_outputs import ImageClassifierOutput

            return ImageClassifierOutput(loss=loss, logits=scores)
        return self.adapter.output_class()(
            loss=loss,
            logits_per_image=scores,
            logits_per_text=scores.T,
            text_embeds=texts,
            image_embeds=images,
        )

    def _run(self, batch: _Batch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Scores (N, C), texts, images, and the cost on length."""
        decisions = self._decide(batch)
        texts, images = self._texts(batch, decisions), self._images(batch, decisions)
        penalty = self.prompt.penalty(decisions)
        return self.adapter.scores(texts, images), texts, images, penalty

    def _run_draws(self, batch: _Batch, losses, paired: bool):
        """As :meth:`_run`, once for each draw (S times): scores (S * N, C), with the surrogate loss and the draws.

        A draw decides for all owners together, and its loss is the mean over the images, unless each image decides for
        itself and has a loss of its own (which it has not where the loss is that of pairs).
        """
        decisions, config = self._decide(batch), self.prompt_config
        found = {
            name: draw(
                {name: decisions[name].logits}, config.estimator, config.samples, self.prompt.generator
            )
            for name in self.prompt.samples()
        }
        first = next(iter(found.values()))
        alone = batch.by_image and all(one.log_probs.shape[1] == batch.owners for one in found.values())
        if alone and paired and batch.owners > 1:
            if not ESTIMATORS[config.estimator].joint:
                raise ValueError(
                    f"return_loss=True with estimator={config.estimator!r}: the loss of pairs depends on the decisions "
                    "of all images together, which are too many to enumerate; expected labels, or "
                    "estimator='score-function'"
                )
            alone = False
        log_probs = sum(
            one.log_probs if alone else one.log_probs.sum(1, keepdim=True) for one in found.values()
        )
        draws = first._replace(
            index={name: one.index[name] for name, one in found.items()}, log_probs=log_probs
        )
        outputs, costs = [], []
        for number in range(len(log_probs)):
            copies = self.prompt.tried(decisions, draws.only(number))
            texts, images = self._texts(batch, copies), self._images(batch, copies)
            scores = self.adapter.scores(texts, images)
            cost = losses(scores)
            if cost is not None:
                costs.append(cost if alone else cost.mean().unsqueeze(0))
            outputs.append((scores, texts, images))
        scores, texts, images = (torch.cat(column) for column in zip(*outputs))
        penalty, loss = self.prompt.penalty(decisions), None
        if costs:
            loss = surrogate(torch.stack(costs), draws).mean() + (0.0 if penalty is None else penalty)
        return scores, texts, images, loss, penalty, draws

    # --- what a pass is about ---

    @property
    def _towers(self) -> str:
        return self.prompt_config.towers or "text"

    def _extra(self) -> int:
        """Vectors in front of, behind and around a text."""
        if self._towers == "vision":
            return 0
        return self.prompt.size.option if isinstance(self.prompt.size, FixedDecision) else self.prompt.length

    def _batch(
        self,
        input_ids,
        attention_mask,
        pixel_values,
        image_embeds,
        task_ids,
        options: dict,
        texts_needed: bool = True,
        images_needed: bool = True,
    ) -> _Batch:
        """Check what was given and look at it: see :meth:`forward`."""
        unknown = [name for name in options if name != "interpolate_pos_encoding"]
        if unknown:
            raise TypeError(
                f"{unknown[0]}={options[unknown[0]]!r} is unknown to {type(self).__name__}.forward"
            )
        towers = self._towers
        if images_needed:
            if (pixel_values is None) == (image_embeds is None):
                both = "none" if pixel_values is None else "both"
                raise ValueError(f"expected one of pixel_values and image_embeds, got {both}")
            if image_embeds is not None:
                self._check_frozen_images("image_embeds")
                wanted = self.adapter.joint_width
                if image_embeds.ndim != 2 or image_embeds.shape[1] != wanted:
                    raise ValueError(
                        f"image_embeds has shape {tuple(image_embeds.shape)}, expected (batch, {wanted})"
                    )
        by_image = towers == "vision" or self.prompt_config.summary == "image"
        if by_image and not images_needed and towers != "vision" and self.prompt.needs_summary:
            raise ValueError("pixel_values=None, expected images: they decide about the texts' prompt")
        captions = self._captions(input_ids, attention_mask) if texts_needed else None
        images = None
        if images_needed and towers == "text":
            if image_embeds is None:
                image_embeds = self.adapter.image_features(pixel_values, **options)
            images = unit(image_embeds.to(self.dtype))  # also where others than image_features made them
        texts = inputs = None
        if captions is not None and towers == "vision":
            texts, captions = self._plain_texts(captions), None
        elif captions is not None:
            captions = self.adapter.fit(captions, self._extra(), "truncate" in self._shortcuts)
            inputs = self.adapter.embed(captions.input_ids)
        if by_image:
            known = pixel_values if images is None else images
            owners = 1 if known is None else len(known)
        else:
            owners = 1 if captions is None else len(captions.ends)
        summary = None
        if self.prompt.needs_summary and (by_image or captions is not None):
            summary = self._summary(captions, inputs, pixel_values, images, options)
        named = input_ids is None  # the classes, of which the i-th may be what the i-th task is about
        if named and task_ids is None and self.prompt.needs_task and not by_image and owners == self._tasks():
            task_ids = list(range(owners))
        task = self.task_numbers(task_ids, owners)
        return _Batch(captions, texts, inputs, pixel_values, options, images, by_image, owners, summary, task)

    def _tasks(self) -> int:
        return 1 if self.prompt_config.tasks is None else len(self.prompt_config.tasks)

    def _captions(self, input_ids, attention_mask) -> Captions:
        if input_ids is not None:
            return self.adapter.captions(input_ids, attention_mask)
        if self._classes is None:
            raise ValueError("input_ids=None, expected texts: give them, or set_classes before")
        if attention_mask is not None:
            raise ValueError(
                "attention_mask without input_ids, expected both or none (set_classes has its own)"
            )
        return self._classes

    def _check_frozen_images(self, name: str) -> None:
        if self._towers != "text":
            raise ValueError(
                f"{name} cannot be used with towers={self._towers!r}: images have a prompt, so their features change; "
                "expected pixel_values"
            )

    def _summary(self, captions, inputs, pixels, images, options) -> Tensor:
        summary = self.prompt_config.summary
        if summary == "image":
            return unit(self.adapter.image_features(pixels, **options)) if images is None else images
        if self._towers == "vision":
            return self.adapter.image_summary(pixels, **options)
        words = captions.mask.clone()  # the end token, which CLIP keeps behind the prompt, is no word
        if self.adapter.causal:
            words[torch.arange(len(words)), list(captions.ends)] = 0
        return (
            self.adapter.encoder_summary(inputs, words)
            if summary == "encoder"
            else masked_mean(inputs, words)
        )

    # --- decisions, texts, images ---

    def _decide(
        self, batch: _Batch, names: Sequence[str] = ("position", "size", "vector")
    ) -> dict[str, Choice]:
        """Each decision for as many as make it: all owners, or one for all of them."""
        if self.prompt.needs_task and batch.task is None:
            raise ValueError(
                "task_ids=None, expected one for each "
                + ("image" if batch.by_image else "text")
                + ": something is decided per task"
            )
        decisions = {}
        for name, part in self.prompt.parts.items():
            if name not in names:
                continue
            several = part.looks_at_input or any(
                isinstance(module, TaskController) and module.tasks > 1 for module in part.modules()
            )
            summary = batch.summary
            if not part.looks_at_input:
                summary = torch.empty(batch.owners if several else 1, 0, device=self.device)
            decisions[name] = part(summary, batch.task if several else None)
        return decisions

    def _texts(self, batch: _Batch, decisions: dict[str, Choice]) -> Tensor:
        """Unit vectors (C, p), or (N, C, p) where each image decides about the texts' prompt."""
        if batch.captions is None:
            return batch.texts

        def compute() -> Tensor:
            placed, split = self._place(batch, decisions), self._shared_split(batch, decisions)
            return unit(self.adapter.text_features(placed, batch.captions, split))

        key = self._key(batch)
        found = compute() if key is None else self._keep(key, compute, tuple(self.prompt.parameters()))
        separate = batch.by_image and (self.prompt.needs_summary or self.prompt.needs_task)
        return found.view(batch.owners, -1, found.shape[1]) if separate else found

    def _place(self, batch: _Batch, decisions: dict[str, Choice]) -> PromptedInput:
        """The texts with their prompt: once, or N times where images decide differently, image by image."""
        count = len(batch.captions.ends)
        differ = batch.by_image and any(
            len(choice.index) == batch.owners > 1 for choice in decisions.values()
        )
        times = batch.owners if differ else 1

        def spread(value: Tensor | None) -> Tensor | None:
            if value is None or len(value) == times * count:
                return value
            if batch.by_image and len(value) == times:
                return value.repeat_interleave(count, 0)
            return value.expand(times * count, *value.shape[1:])

        given = {name: Choice(spread(c.index), spread(c.weights), c.logits) for name, c in decisions.items()}
        inputs, mask = (
            value.repeat(times, *[1] * (value.ndim - 1)) for value in (batch.inputs, batch.captions.mask)
        )
        placed = self.prompt(inputs, mask, None, int(self.adapter.causal), None, given)
        return self.adapter.finish_texts(placed, batch.captions)

    def _shared_split(self, batch: _Batch, decisions: dict[str, Choice]) -> int | None:
        """The split of all texts, where rows in front of them can be computed once; None where they cannot."""
        position, size = decisions["position"], self.prompt.size
        if "share" not in self._shortcuts or not self.adapter.packs or not isinstance(size, FixedDecision):
            return None
        if not batch.by_image and any(len(choice.index) > 1 for choice in decisions.values()):
            return None
        if isinstance(self.prompt.position, FixedDecision):
            split = self.prompt.position.option
        elif len(position.index) > 1 or position.weights is not None or torch.compiler.is_compiling():
            return None  # while it is learned, the gradient belongs to each text's own sequence
        else:
            split = int(position.index[0])
        split = min(split, size.option)
        front = split + batch.captions.shared
        return split if len(batch.captions.ends) > 1 and front > batch.captions.special else None

    def _images(self, batch: _Batch, decisions: dict[str, Choice]) -> Tensor:
        """Unit vectors (N, p)."""
        if self._towers == "text":
            return batch.images
        if self._towers == "both":
            vectors = self.prompt.vision.vectors
        else:
            vectors = self.prompt.every_layer(decisions)
            if vectors.ndim == 4 and len(vectors) == 1:
                vectors = vectors[0]
            if self._towers == "coupled":
                vectors = self.prompt.vision(vectors)
        return unit(self.adapter.image_features(batch.pixels, vectors, **batch.options))

    # --- what is kept ---

    def _key(self, batch: _Batch) -> tuple | None:
        """What the classes' features depend on, or None where they are not kept."""
        keep = "classes" in self._shortcuts and not torch.is_grad_enabled() and not self.training
        if not keep or batch.by_image or batch.task is not None or torch.compiler.is_compiling():
            return None
        if self._classes is None or batch.captions.ends is not self._classes.ends:
            return None
        if any(chooser.sample_in_evaluation for chooser in self.prompt.choosers().values()):
            return None
        return tuple((id(p), p._version, p.data_ptr()) for p in self.prompt.parameters())

    def _keep(self, key: tuple, compute: Callable[[], Tensor], parameters: tuple[Tensor, ...] = ()) -> Tensor:
        """The features that belong to a key: those that are kept, or new ones."""
        kind = self.device.type
        if torch.is_autocast_enabled(kind):  # its features have another dtype
            key = (*key, torch.get_autocast_dtype(kind))
        kept, compiling = self._kept, torch.compiler.is_compiling()
        if kept is not None and kept.key == key and (compiling or kept.features._version == kept.version):
            return kept.features
        if compiling:  # a graph keeps nothing itself
            return compute()
        with torch.inference_mode(False), torch.no_grad():  # training may meet them later
            features = compute()
        self._kept = _Kept(key, features, features._version, parameters)
        return features

    def _plain_texts(self, captions: Captions) -> Tensor:
        """Unit vectors (C, p) of texts without a prompt; those of the classes are computed once."""

        @torch.no_grad()
        def compute() -> Tensor:
            fitted = self.adapter.fit(captions, 0, "truncate" in self._shortcuts)
            return unit(self.adapter.plain_text_features(fitted))

        keep = captions is self._classes and "classes" in self._shortcuts and not self.backbone.training
        return self._keep(("plain",), compute) if keep else compute()

    # --- the rest of what a prompted model offers ---

    def generate(self, *arguments, **options) -> Tensor:
        """There is nothing to generate: NotImplementedError."""
        raise NotImplementedError(f"{type(self.backbone).__name__} does not generate")

    def insert_prompt(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_embeds: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        **options,
    ) -> PromptedInput:
        """The embedded texts (or classes) with their prompt in place and what was decided; no layer runs.

        Images are needed where they decide (``summary="image"``); then there are N * C rows, image by image.

        Raises
        ------
        ValueError : the prompt stands in the images alone.
        """
        if self._towers == "vision":
            raise ValueError("towers='vision' has no prompt in a text; expected decide(pixel_values=...)")
        batch = self._seen(input_ids, attention_mask, pixel_values, image_embeds, task_ids, options)
        return self._place(batch, self._decide(batch))

    def decide(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_embeds: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        **options,
    ) -> dict[str, Choice]:
        """What is decided, by name of the decision: for each text (or class), for each image where images decide, or
        once for all of them (then ``index`` has one entry)."""
        images = pixel_values is not None or image_embeds is not None
        texts = not (images and self.prompt_config.summary == "image")  # without a say in the decisions
        return self._decide(
            self._seen(input_ids, attention_mask, pixel_values, image_embeds, task_ids, options, texts)
        )

    def _seen(
        self, input_ids, attention_mask, pixel_values, image_embeds, task_ids, options, texts: bool = True
    ) -> _Batch:
        images, texts = (
            pixel_values is not None or image_embeds is not None,
            texts and self._towers != "vision",
        )
        given = (input_ids, attention_mask, pixel_values, image_embeds, task_ids, options)
        return self._batch(*given, texts_needed=texts, images_needed=images or not texts)

    @torch.no_grad()
    def summarize(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_embeds: Tensor | None = None,
        **options,
    ) -> Tensor:
        """What instance-level decisions look at: (C, d) of texts, (N, p) or (N, width) of images."""
        texts = self._towers != "vision"
        captions = inputs = images = None
        if texts and self.prompt_config.summary != "image":
            captions = self._captions(input_ids, attention_mask)
            inputs = self.adapter.embed(captions.input_ids)
        elif image_embeds is not None:
            self._check_frozen_images("image_embeds")
            images = image_embeds
        elif pixel_values is None:
            raise ValueError("pixel_values=None, expected images: they decide")
        return self._summary(captions, inputs, pixel_values, images, options)


def _on(value: Tensor | None, device: torch.device) -> Tensor | None:
    return None if value is None else value.to(device)
