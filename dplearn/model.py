"""PromptedModel: a frozen Hugging Face model with a trained prompt in front, behind or around its input."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from dplearn.backbones import SHORTCUTS, Boundary, Reading
from dplearn.checks import caller_level, check_by_name, explain_range, shown
from dplearn.controllers import FixedDecision
from dplearn.conventions import OURS, check_output, extended, losses_named
from dplearn.estimators import comparing_losses, draw, pick, surrogate
from dplearn.named_prompts import NamedPrompts
from dplearn.prompt import PromptedInput
from dplearn.sampling import Choice, learned


def spread(value: Any, back: Tensor, count: int) -> Any:
    """A part of an output of ``count`` instances for all copies (N,) that equal one of them: (N, ...)."""
    if isinstance(value, (tuple, list)):
        return type(value)(spread(each, back, count) for each in value)
    return pick(value, back, count)


class PromptedModel(NamedPrompts):
    """A frozen backbone steered by a :class:`~dplearn.prompt.DynamicPrompt`. Made by :func:`dplearn.prompted`.

    Only the prompt's parameters (with a trained head, where ``config.head`` asks for one, which is a part of the
    prompt) are trained, saved and loaded: ``state_dict`` holds them and nothing else, so
    ``transformers.Trainer`` writes and resumes small checkpoints without special code. The backbone is frozen, and it
    stays in evaluation mode unless ``config.backbone_dropout`` is set.

    One backbone can hold several prompts by name: :meth:`add_prompt`, :meth:`load_prompt`, :meth:`use_prompt`. All of
    the above is about the one in use; ``model.backbone`` is the model without any prompt.

    The class is made for the backbone's class: its ``forward`` has the parameters of the backbone's, and what libraries
    look up by name they find where the backbone has it (:mod:`dplearn.conventions`). Models of images and texts have a
    class of their own (:mod:`dplearn.image_text`).

    Attributes
    ----------
    loss_outside : set it to True where a loss function of your own adds ``output.penalty`` and reads ``output.draws``
        (as :class:`dplearn.LabelWordLoss` does); until then, training without labels is refused where there are any.
    """

    loss_outside = False
    _compared = 0  # in how many steps the losses that an estimator compares were held against the model's own
    _told = False  # whether the warning about decisions in evaluation mode was given

    # --- the model ---

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *arguments: Any,
        **batch: Any,
    ) -> Any:
        """The backbone's own output for the prompted input.

        Takes what the backbone's ``forward`` takes, by name (images: ``pixel_values=``), and more:

        Parameters
        ----------
        input_ids : (B, T) token ids, or ``inputs_embeds`` (B, T, d) instead.
        attention_mask : (B, T), 1 = real; None means that all tokens are.
        labels : as the backbone wants them without a prompt: the prompt's rows leave before the head (an
            encoder-decoder's decoder is not touched). They have no say in where the prompt stands.
        context_length : int or (B,), how many of an instance's real tokens the prompt surrounds, counted from the
            first; what follows, such as an answer or a cue, stays behind the prompt.
        keep_last : int or (B,), the same from the other end: how many last real tokens stay behind the prompt. With
            neither, the prompt surrounds all tokens (an end-of-sequence token that an encoder-decoder's input ends with
            stays last).
        summary : (B, d) from :meth:`summarize`, to spare its computation.
        task_ids : the task of each instance, (B,) numbers or a list of names; needed where tasks decide differently.
        decisions : decisions that were made elsewhere, by name, such as ``{"position": 3}``: an option for all, one for
            each instance (B,), or a Choice from :meth:`decide`. The others are made as usual. (A size, where one is
            learned; a pool's prompt, or its weights in a Choice.)
        position_ids : (B, T), where the tokens do not count from 0; they move up by the vectors in front of them.
        past_key_values : of a decoder-only model: a cache from an earlier output of this model is continued, without
            the prompt, which stands in it.

        Returns
        -------
        The backbone's output. ``logits`` and last hidden states have one row for each token of the input; the states
        of single layers (``hidden_states``) have the prompt's rows too. While a size is learned and costs something,
        the output has a ``penalty``, which is part of its ``loss``; with the estimators "score-function" and "exact" a
        training step has a copy of the batch for each draw, and ``draws``.

        Raises
        ------
        ValueError : shapes that do not fit; no room for the prompt; a decoder-only language model that is trained, or
            given labels, without a word on where its input ends; training without labels where the prompt itself has
            a part of the loss.
        TypeError : an argument that neither the backbone nor a prompt has.
        """
        batch = _named(batch | dict(zip(self.places[2:], arguments)), input_ids, attention_mask)
        self._check_replica()
        if self.adapter.continues(batch):
            self._check_names(batch)
            return self.adapter.proceed(batch)
        learning = self.training and torch.is_grad_enabled()
        reading, summary, task, given = self._read(batch, learning)
        if learning and set(self.prompt.samples()) - set(given):
            return self._forward_draws(reading, summary, task, given)
        placed = self._insert(reading, summary, task, given)
        output = self._run(placed, self.adapter.shortened(placed, reading, learning))
        loss = output.get("loss") if hasattr(output, "get") else None
        if loss is not None and loss.requires_grad and not self.training:
            self._warn_at_backward(loss)
        if placed.penalty is None:
            return output
        check_output(output, self._get_name())
        return extended(output, loss=None if loss is None else loss + placed.penalty, penalty=placed.penalty)

    def _forward_draws(
        self, reading: Reading, summary: Tensor | None, task: Tensor | None, given: dict
    ) -> Any:
        """The output for S copies of the batch, (S * B, ...), each with its own decisions.

        Its ``loss`` is the surrogate over all copies; ``draws`` holds what other loss functions need to build one.
        """
        batch, config = reading.rows.shape[0], self.prompt_config
        decisions = self.prompt.decide(reading.rows if summary is None else summary, task, given=given)
        logits = {
            name: learned(decisions[name].logits) for name in self.prompt.samples() if name not in given
        }
        draws = draw(logits, config.estimator, config.samples, self.prompt.generator)
        times = draws.log_probs.shape[0]
        rows = back = torch.arange(times * batch, device=reading.rows.device)
        if not torch.compiler.is_compiling():  # how many differ is known at run time alone
            # (Copies that agree share the backbone's dropout, where it has any: the estimate stays unbiased.)
            rows, back = draws.distinct()
        several = reading.picked(rows % batch)
        tried = {name: choice.picked(rows) for name, choice in self.prompt.tried(decisions, draws).items()}
        placed = self._insert(several, None, None, {}, tried)
        several = self.adapter.shortened(placed, several, True)
        output = self._run(placed, several)
        check_output(output, self._get_name())
        penalty, loss, labels = self.prompt.penalty(decisions), None, several.given.get("labels")
        if labels is not None:
            self._check_losses(output, several.given)
        if len(rows) < len(back):
            output = type(output)(**{name: spread(value, back, len(rows)) for name, value in output.items()})
        if labels is not None:
            labels = pick(labels, back, len(rows))
            losses = self.adapter.losses(output["logits"], labels).view(times, batch)
            loss = surrogate(losses, draws).mean() + (0.0 if penalty is None else penalty)
        return extended(output, loss=loss, penalty=penalty, draws=draws)

    def insert_prompt(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **batch: Any
    ) -> PromptedInput:
        """Embed a batch, decide about the prompt and put it in place; the backbone's layers do not run.

        Takes what :meth:`forward` takes. Returns a PromptedInput with the new embeddings and mask, where every row
        went, and the decisions. (A text's padding stands on the right there, whatever side it had.)
        """
        return self._insert(*self._read(_named(batch, input_ids, attention_mask)))

    def decide(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **batch: Any
    ) -> dict[str, Choice]:
        """What the prompt decides for each instance, by name of the decision; the backbone's layers do not run.

        Takes what :meth:`forward` takes. ``decide(...)["position"].index`` is the split of each instance, (B,); "size"
        and, with a pool, "vector" are there too.
        """
        return self.insert_prompt(input_ids, attention_mask, **batch).decisions

    @torch.no_grad()
    def summarize(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **batch: Any
    ) -> Tensor:
        """The summary (B, d) that instance-level decisions look at. It never changes in training, so it can be
        computed once per example and passed to ``forward`` as ``summary``. Takes what :meth:`forward` takes; a
        decoder-only model's answer, behind ``context_length``, is left out."""
        batch = _named(batch, input_ids, attention_mask)
        given, boundary = self._taken_apart(batch, sees=True)[:2]
        reading = self.adapter.read(given, boundary, self.prompt_config, self._size())
        return self.adapter.summarize(reading, self.prompt_config)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Generate from the prompted input with the backbone's ``generate``.

        Takes what the backbone's ``generate`` takes, and ``summary``, ``task_ids``, ``keep_last``, ``context_length``
        and ``decisions`` as :meth:`forward` does. Decisions are those of evaluation (argmax) whatever the current
        mode, which no other thread sees change. Without a mask, padding is found as the backbone finds it.
        ``max_length`` counts the tokens of the input, not the prompt. A decoder-only model returns the new tokens
        alone, as transformers does for embedded inputs; and what looks at the tokens so far, such as
        ``repetition_penalty`` or a logits processor, sees the new ones alone.

        Raises
        ------
        ValueError : what :meth:`forward` raises of the input; an ``assistant_model``; no room for a new token.
        """
        self._check_replica()
        self._check_pipeline()
        if options.get("assistant_model") is not None:
            raise ValueError(
                f"assistant_model is a {type(options['assistant_model']).__name__}, expected None: an assistant reads "
                "tokens, and a prompt has none"
            )
        if input_ids is None and options.get("inputs") is not None:  # what transformers calls them here
            input_ids = options.pop("inputs")
        batch = self._with_mask(_named(options, input_ids, attention_mask))
        reading, summary, task, given = self._read(batch, generates=True)
        placed = self._insert(reading, summary, task, given, sampling=False)
        inputs = ("input_ids", "attention_mask", "inputs_embeds")
        options = {name: value for name, value in reading.given.items() if name not in inputs}
        return self.adapter.generate(placed, reading, **options)

    @torch.no_grad()
    def prompt_embeds(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **batch: Any
    ) -> list[Tensor]:
        """Each input with its prompt in place, as an inference engine for the bare backbone takes it.

        Takes what :meth:`generate` takes for the input. Returns one tensor (T + n, d) for each instance, without
        padding, in the backbone's dtype: the embedded tokens with the n vectors that are in use, decided as in
        evaluation. An engine that accepts embedded prompts (vLLM's ``prompt_embeds``, say) answers to them as this
        model does.

        Raises
        ------
        ValueError : not a decoder-only language model: an encoder's rows alone are no prompt for an engine.
        """
        if not self.adapter.reads_answers:
            raise ValueError(
                f"prompt_embeds of {type(self.backbone).__name__}, expected a decoder-only language model"
            )
        batch = self._with_mask(_named(batch, input_ids, attention_mask))
        placed = self._insert(*self._read(batch, generates=True), sampling=False)
        return [rows[real] for rows, real in zip(placed.embeds, placed.mask != 0, strict=True)]

    @property
    def shortcuts(self) -> frozenset[str]:
        """What is not computed again where it is known, a set of names. All are exact up to rounding;
        ``model.shortcuts = ()`` turns them off. The first is for images too, the others are for decoder-only models,
        while no layer has dropout:

        - "inputs": inputs that are kept (:meth:`cache_inputs`).
        - "prefix": keys and values of vectors in front of every input of a batch, in evaluation and generation; for
          each prompt, until it changes.
        - "front": in training with a postfix, rows in front of every vector run without a gradient, and once for all
          draws of an instance, where they are at least half of all rows.
        """
        return self.adapter.shortcuts

    @shortcuts.setter
    def shortcuts(self, names: Collection[str]) -> None:
        if isinstance(names, str) or not set(names) <= set(SHORTCUTS):
            raise ValueError(f"shortcuts={names!r} is not valid, expected some of {list(SHORTCUTS)}")
        self.adapter.shortcuts = frozenset(names)

    # --- from a batch to a prompted input ---

    def _with_mask(self, batch: dict) -> dict:
        """A batch for generation, with the mask that the backbone infers where none is given."""
        ids = batch.get("input_ids")
        if ids is None or batch.get("attention_mask") is not None:
            return batch
        return batch | {"attention_mask": self.adapter.inferred_mask(ids, batch)}

    def _read(
        self, batch: dict, learning: bool = False, generates: bool = False
    ) -> tuple[Reading, Tensor | None, Tensor | None, dict]:
        """The batch as the prompt meets it, what decisions look at, the task of each instance, decisions that are
        given."""
        decisions = batch.get("decisions") or {}
        given, boundary, summary, task_ids = self._taken_apart(batch, learning, generates)
        reading = self.adapter.read(given, boundary, self.prompt_config, self._size())
        if summary is None and self.prompt.needs_summary:
            summary = self.adapter.summarize(reading, self.prompt_config)
        elif summary is not None:
            expected = (reading.rows.shape[0], self.adapter.summary_width(self.prompt_config))
            if summary.shape != expected:
                raise ValueError(f"summary has shape {tuple(summary.shape)}, expected {expected}")
        if task_ids is None and self.prompt.needs_task:
            raise ValueError(
                f"task_ids=None, expected one of {list(self.prompt_config.tasks or ())} (or its number) for each "
                "instance: something is decided per task"
            )
        return reading, summary, self.task_numbers(task_ids, reading.rows.shape[0]), decisions

    def _taken_apart(
        self, batch: dict, learning: bool = False, generates: bool = False, sees: bool = False
    ) -> tuple:
        """What is the backbone's, the boundary, the summary and the tasks; wrong calls are refused here."""
        if not generates:
            self._check_names(batch)
        ours = {name: batch.get(name) for name in OURS}
        # In generation None says something: eos_token_id=None, say, goes on behind an end token.
        given = {n: value for n, value in batch.items() if n not in OURS and (generates or value is not None)}
        if ours["keep_last"] is not None and ours["context_length"] is not None:
            raise ValueError(
                f"keep_last={shown(ours['keep_last'])} and context_length={shown(ours['context_length'])}, expected "
                "at most one of them: both say where the input ends that the prompt surrounds"
            )
        if ours["decisions"] is not None:
            check_by_name("decisions", ours["decisions"])
        boundary = Boundary(ours["keep_last"], ours["context_length"])
        if not generates:
            self._check_boundary(given, boundary, learning, sees or "position" in (ours["decisions"] or {}))
        if learning:
            self._check_loss(given)
        if self.training and self._has_part_of_loss() and not generates:
            usual = getattr(self.backbone.config, "return_dict", True)
            if not given.get("return_dict", usual):
                raise ValueError(
                    "return_dict=False while a part of the loss is the model's own, expected return_dict=True: the "
                    "output has parts of its own then (penalty, draws)"
                )
        return given, boundary, ours["summary"], ours["task_ids"]

    def _check_boundary(self, given: dict, boundary: Boundary, learning: bool, sees: bool) -> None:
        """Raise ValueError where a decoder-only language model may have its answer in front of a prompt vector."""
        matters = sees or self.prompt.follows_input or self.prompt.needs_summary
        if boundary.given or not (self.adapter.reads_answers and matters):
            return
        if learning or losses_named(given):
            why = "labels are given" if losses_named(given) else "the model is training"
            raise ValueError(
                f"context_length=None and keep_last=None while {why}, expected one of them: a decoder-only model reads "
                "the answer in its input, and the prompt must not stand behind it. context_length says how many real "
                "tokens the prompt surrounds (a column of the data set, say), keep_last how many stay behind it; "
                "keep_last=0 puts the prompt around everything"
            )

    def _check_loss(self, given: dict) -> None:
        """Raise ValueError where a loss that is computed outside would lack the prompt's own part."""
        part = self._has_part_of_loss()
        known = "labels" in given if part == "estimator" else losses_named(given)
        if part is not None and not known and not self.loss_outside:
            raise ValueError(
                f"labels=None while training with {part}={getattr(self.prompt_config, part)!r}, expected labels: a "
                "part of the loss is the model's own. (The Trainer takes labels away where it has a compute_loss_func "
                "or a label_smoothing_factor.) Set model.loss_outside = True where your loss adds output.penalty and "
                "reads output.draws, as dplearn.LabelWordLoss does"
                + (
                    f", or take an estimator for any loss: {comparing_losses(False)}"
                    if part == "estimator"
                    else ""
                )
            )

    def _check_losses(self, output: Any, given: dict) -> None:
        """Raise ValueError where the losses that an estimator compares are not those of the model's own loss.

        A model may weigh its classes, or add something. That is seen in the values, and these are waited for: so the
        first steps are looked at (one batch may have a single class, whose weight drops out of a mean).
        """
        config, name = self.prompt_config, self._get_name()
        if "logits" not in output:
            raise ValueError(
                f"estimator={config.estimator!r} compares losses of logits, and the output of {name} has "
                f"none: expected another estimator, or a model with one head (it has {list(output)})"
            )
        others = f"an estimator for any loss: {comparing_losses(False)}"
        if given.get("num_items_in_batch") is not None:
            raise ValueError(
                f"num_items_in_batch={shown(given['num_items_in_batch'])} is not used with estimator="
                f"{config.estimator!r}, whose loss is a mean over the batch: expected None, or {others}"
            )
        loss = output.get("loss")
        if self._compared == 3 or loss is None or self.loss_outside or torch.compiler.is_compiling():
            return
        self._compared += 1
        found = self.adapter.losses(output["logits"].detach(), given["labels"]).mean().item()
        own, near = loss.item(), 1e-3 if output["logits"].dtype.itemsize > 2 else 2e-2
        if math.isfinite(own) and abs(own - found) > near * max(1.0, abs(own)):
            raise ValueError(
                f"estimator={config.estimator!r} compares losses of logits, whose mean is {found:.4g} here, and the "
                f"loss of {name} is {own:.4g}: its loss has weights or parts that are not known here, and training "
                f"would leave them out. Expected {others}; or a loss of your own that reads output.draws, and "
                "model.loss_outside = True"
            )

    def _has_part_of_loss(self) -> str | None:
        """The option by which a part of the loss is the model's own, in training."""
        parts = {
            "size_cost": self.prompt.size_cost > 0 and self._size() is None,
            "estimator": self.prompt.samples(),
        }
        return next((name for name, there in parts.items() if there), None)

    def _check_pipeline(self) -> None:
        """Raise RuntimeError in a text-generation pipeline, which cuts the input off what is generated."""
        callers = [frame.f_globals.get("__name__", "") for frame in _callers(4)]
        if self.adapter.reads_answers and any(name.startswith("transformers.pipelines") for name in callers):
            raise RuntimeError(
                "a pipeline cuts the input off the generated tokens, and a prompted decoder-only model returns the new "
                "tokens alone: call model.generate(**tokenizer(texts, return_tensors='pt', padding=True)) and "
                "tokenizer.batch_decode instead"
            )

    def _size(self) -> int | None:
        """The number of vectors in use, None where it is learned."""
        return self.prompt.size.option if isinstance(self.prompt.size, FixedDecision) else None

    def _insert(
        self,
        reading: Reading,
        summary: Tensor | None,
        task: Tensor | None,
        given: dict,
        decisions: dict[str, Choice] | None = None,
        sampling: bool | None = None,
    ) -> PromptedInput:
        if given:
            seen = reading.rows if summary is None else summary
            decisions = self.prompt.decide(seen, task, sampling, given)
        placed = self.prompt(
            reading.rows, reading.mask, summary, reading.keep_last, task, decisions, sampling
        )
        return self.adapter.layer_input(placed, reading, self.prompt_config.entry)

    def _run(self, placed: PromptedInput, reading: Reading) -> Any:
        """The backbone's output, with the prompt's own head where it has one."""
        head = self.prompt.attached.get("head")
        if torch.compiler.is_compiling():
            return self.adapter.run(placed, reading, head)
        try:
            return self.adapter.run(placed, reading, head)
        except IndexError as error:
            explain_range(reading.given, error)
            raise

    def _warn_at_backward(self, loss: Tensor) -> None:
        """Tell once that decisions are not trained in evaluation mode, when a gradient is asked for."""
        if self._told or torch.compiler.is_compiling() or not self.prompt.choosers():
            return

        def tell(gradient: Tensor) -> None:
            if not self._told:
                self._told = True
                warnings.warn(
                    "gradients are computed in evaluation mode, in which decisions are not sampled and get none: call "
                    "model.train() before training",
                    UserWarning,
                    stacklevel=caller_level(),
                )

        loss.register_hook(tell)


def _callers(count: int) -> Iterator[FrameType]:
    """The frames above the caller of a method, nearest first."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and count:
        yield frame
        frame, count = frame.f_back, count - 1


def _named(batch: dict, input_ids: Tensor | None, attention_mask: Tensor | None) -> dict:
    """A batch with its first two arguments, where they are given."""
    if hasattr(input_ids, "keys"):
        raise TypeError(
            f"the input is a {type(input_ids).__name__}, expected its items by name: call model(**batch)"
        )
    first = {"input_ids": input_ids, "attention_mask": attention_mask}
    return {name: value for name, value in first.items() if value is not None} | batch
