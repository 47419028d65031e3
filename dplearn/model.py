"""PromptedModel: a frozen Hugging Face model with a trained prompt in front, behind or around its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import make_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dplearn import card, checkpoint, fits
from dplearn.backbones import Backbone, adapt
from dplearn.backbones.base import standing_in
from dplearn.by_name import load_backbone
from dplearn.choice import Choice, Chooser
from dplearn.config import PromptConfig
from dplearn.controllers import LearnedDecision, TaskController, masked_mean
from dplearn.estimators import SAMPLED, draw, repeat, surrogate
from dplearn.prompt import DynamicPrompt, PromptedInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Given(NamedTuple):
    """What the prompt needs for a batch, in the order in which it takes it."""

    inputs: Tensor  # (B, T, d)
    mask: Tensor  # (B, T)
    summary: Tensor | None  # (B, d)
    keep_last: int | Tensor
    task: Tensor | None  # (B,)
    positions: (
        Tensor | None
    )  # (1, T + n, d), where an image's prompt, or all of its rows, still get positions


@cache
def _extended_type(kind: type) -> type:
    fields = [(name, object, None) for name in ("penalty", "draws")]
    return make_dataclass(f"Prompted{kind.__name__}", fields, bases=(kind,))


def extended(output, **fields):
    """A transformers output with ``penalty`` and ``draws`` as fields of its own kind.

    Items that its class does not know would be lost or refused where outputs are taken apart and put together again, as
    DistributedDataParallel does.
    """
    return _extended_type(type(output))(**dict(output) | fields)


class PromptedModel(nn.Module):
    """A frozen backbone steered by a :class:`~dplearn.prompt.DynamicPrompt`. Made by :func:`prompted`.

    Only the prompt's parameters (with a trained head, where ``config.head`` asks for one, which is a part of the
    prompt) are trained, saved and loaded: ``state_dict`` holds them and nothing else, so
    ``transformers.Trainer`` writes and resumes small checkpoints without special code. The backbone is frozen, and it
    stays in evaluation mode unless ``config.backbone_dropout`` is set.

    One backbone can hold several prompts by name: :meth:`add_prompt`, :meth:`load_prompt`, :meth:`use_prompt`. All of
    the above is about the one in use; ``model.backbone`` is the model without any prompt.
    """

    # transformers.Trainer reads this: the loss is a mean over the batch, not divided by num_items_in_batch.
    accepts_loss_kwargs = False

    def __init__(self, backbone: PreTrainedModel, prompt: DynamicPrompt, prompt_config: PromptConfig):
        super().__init__()
        self.adapter = adapt(backbone)
        self._check(prompt, prompt_config)
        self._before = _Flags.of(backbone)
        self.backbone = backbone.requires_grad_(False)
        self.prompt = prompt.to(backbone.device)
        self.prompt_config = prompt_config
        # Every prompt by name, those at rest with their config. The one in use is ``prompt``, and None stands here. (A
        # plain dict: prompts at rest are no submodules, so nothing trains or saves them.)
        self._prompts: dict[str, tuple[DynamicPrompt, PromptConfig] | None] = {"default": None}
        self._checkpointing = False
        self.register_state_dict_post_hook(_drop_backbone)
        self.register_load_state_dict_post_hook(_forgive_backbone)
        self.train(backbone.training)

    def _check(self, prompt: DynamicPrompt, config: PromptConfig) -> None:
        """Raise ValueError where a prompt does not fit the backbone; the adapter warns of what cannot help."""
        width = self.adapter.width_of(config)
        if prompt.width != width:
            kind = type(self.adapter.model).__name__
            raise ValueError(f"prompt has width {prompt.width}, but {kind} has width {width}")
        self.adapter.check(config)
        if config.estimator == "position-space" and isinstance(prompt.position, LearnedDecision):
            reason = self.adapter.refuses_position_space()
            if reason is not None:
                raise ValueError(
                    f"estimator='position-space' cannot be used: {reason}; expected another estimator"
                )

    # --- what the tools of the transformers library ask a model for ---

    @property
    def config(self):
        """The backbone's own configuration (the prompt's is ``prompt_config``)."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def main_input_name(self) -> str:
        """What the backbone reads: "input_ids" or "pixel_values"."""
        return self.backbone.main_input_name

    def gradient_checkpointing_enable(self, **options) -> None:
        """Recompute the backbone's activations in the backward pass instead of storing them."""
        if self._checkpointing or self._before.checkpointing:
            self.backbone.disable_input_require_grads()  # a second call would lose track of the first one's hooks
        self.backbone.gradient_checkpointing_enable(**options)
        self._checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.backbone.gradient_checkpointing_disable()
        self.backbone.disable_input_require_grads()  # transformers leaves these hooks on the embeddings
        self._checkpointing = False

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Decoder inputs (B, L) for labels (B, L), as the backbone makes them.

        ``transformers.DataCollatorForSeq2Seq(tokenizer, model)`` calls this; a Trainer with its own loss function
        needs it, since it takes the labels away before the forward pass.
        """
        return self.backbone.prepare_decoder_input_ids_from_labels(labels)

    def train(self, mode: bool = True) -> PromptedModel:
        """Training mode of the prompt; the backbone follows only if ``prompt_config.backbone_dropout``."""
        super().train(mode)
        self.backbone.train(mode and self.prompt_config.backbone_dropout)
        return self

    # --- the model ---

    def insert_prompt(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        summary: Tensor | None = None,
        keep_last: int | Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **embedding,
    ) -> PromptedInput:
        """Embed a batch, decide about the prompt and put it in place; the backbone's layers do not run.

        Parameters
        ----------
        input_ids : (B, T) token ids, or ``inputs_embeds`` (B, T, d) instead.
        attention_mask : (B, T), 1 = real; None means that all tokens are.
        summary : (B, d) from :meth:`summarize`, to spare its computation.
        keep_last : how many last real tokens stay behind the prompt; None asks the adapter: an encoder-decoder keeps an
            end-of-sequence token last where the input ids end with one, a decoder-only model the tokens that have
            ``labels``.
        task_ids : the task of each instance, (B,) numbers or a list of names; needed where tasks decide differently.
        pixel_values : (B, channels, height, width) images, for a backbone that reads them, and nothing else of the
            above but ``summary`` and ``task_ids``.
        embedding : what else the backbone's embeddings take, such as ``interpolate_pos_encoding``.

        Returns
        -------
        PromptedInput with the new embeddings and mask, where every row went, and the decisions.
        """
        given = self._prepare(
            input_ids,
            attention_mask,
            inputs_embeds,
            summary,
            keep_last,
            task_ids,
            labels,
            pixel_values,
            embedding,
        )
        return self._insert(given)

    def _insert(self, given: Given, decisions: dict[str, Choice] | None = None) -> PromptedInput:
        inputs, mask, summary, keep_last, task, positions = given
        placed = self.prompt(inputs, mask, summary, keep_last, task, decisions)
        return self.adapter.finish(placed, positions, self.prompt_config.insert == "position-coded")

    def _prepare(
        self,
        input_ids,
        attention_mask,
        inputs_embeds,
        summary,
        keep_last,
        task_ids,
        labels,
        pixel_values,
        embedding,
    ) -> Given:
        """What the prompt needs, from what the user gave (see :meth:`insert_prompt`)."""
        inputs, mask = self._embed(input_ids, attention_mask, inputs_embeds, pixel_values, embedding)
        self.adapter.check_length(inputs.shape[1] + self.prompt.length)
        if keep_last is None:
            keep_last = self.adapter.keep_last(input_ids, mask, labels)
        if summary is None and self.prompt.needs_summary:
            summary = self._summarize(inputs, mask, keep_last)
        elif summary is not None and summary.shape != (inputs.shape[0], inputs.shape[2]):
            raise ValueError(
                f"summary has shape {tuple(summary.shape)}, expected {(inputs.shape[0], inputs.shape[2])}"
            )
        positions = None
        if self.prompt_config.insert == "before-positions":
            inputs = self.adapter.embed(pixel_values, positions=False, **embedding)
        if self.prompt_config.insert in ("before-positions", "position-coded"):
            positions = self.adapter.positions(pixel_values, self.prompt.size.option)
        return Given(inputs, mask, summary, keep_last, self._task_numbers(task_ids, inputs), positions)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        summary: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        pixel_values: Tensor | None = None,
        **options,
    ):
        """The backbone's own output for the prompted input.

        Takes what the backbone's ``forward`` takes (``options`` are handed on; images go by name, ``pixel_values=``),
        plus ``summary`` and ``task_ids`` as in :meth:`insert_prompt`. ``labels`` have the shape that the backbone wants
        without a prompt: the prompt's rows leave before the head, except in an encoder-decoder, whose decoder is not
        touched. While a size is learned and costs something, the output has a ``penalty``, which is part of its
        ``loss``.
        """
        if decoder_input_ids is not None:
            options["decoder_input_ids"] = decoder_input_ids
        embedding = {name: options.pop(name) for name in self.adapter.embedding_options if name in options}
        given = self._prepare(
            input_ids, attention_mask, inputs_embeds, summary, None, task_ids, labels, pixel_values, embedding
        )
        if self._samples_losses():
            return self._forward_draws(given, labels, options)
        placed = self._insert(given)
        if labels is not None:
            options["labels"] = labels
        output = self._run(placed, options)
        if placed.penalty is None:
            return output
        loss = output.get("loss")
        return extended(output, loss=None if loss is None else loss + placed.penalty, penalty=placed.penalty)

    def _run(self, placed: PromptedInput, options: dict):
        """The backbone's output for a prompted input, answered by the prompt's own head where it has one."""
        with standing_in(self.backbone, self.prompt.head):
            return self.adapter.forward(placed, **options)

    def _samples_losses(self) -> bool:
        """Whether this forward pass tries several decisions for each instance (:mod:`dplearn.estimators`)."""
        sampling = self.training and torch.is_grad_enabled() and self.prompt_config.estimator in SAMPLED
        return sampling and bool(self.prompt.samples())

    def _forward_draws(self, given: Given, labels: Tensor | None, options: dict):
        """The output for S copies of the batch, (S * B, ...), each with its own decisions.

        Its ``loss`` is the surrogate over all copies; ``draws`` holds what other loss functions need to build one.
        """
        batch, config = len(given.inputs), self.prompt_config
        decisions = self.prompt.decide(given.inputs if given.summary is None else given.summary, given.task)
        logits = {name: decisions[name].logits for name in self.prompt.samples()}
        draws = draw(logits, config.estimator, config.samples, self.prompt.generator)
        times = len(draws.log_probs)
        copies = {}
        for name, choice in decisions.items():
            if name in draws.index:
                index = draws.index[name].flatten()
                rows = (
                    torch.nn.functional.one_hot(index, logits[name].shape[1]).float()
                    if name == "vector"
                    else None
                )
                copies[name] = Choice(index, rows)
            else:
                weights = None if choice.weights is None else repeat(choice.weights, times, batch)
                copies[name] = Choice(repeat(choice.index, times, batch), weights)
        several = Given(*(repeat(value, times, batch) for value in given))
        placed = self._insert(several._replace(summary=None, task=None), copies)
        if labels is not None:
            options["labels"] = labels  # an encoder-decoder makes the decoder's input from them
        output = self._run(placed, {k: repeat(v, times, batch) for k, v in options.items()})
        penalty, loss = self.prompt.penalty(decisions), None
        if labels is not None:
            losses = self.adapter.losses(output["logits"], repeat(labels, times, batch)).view(times, batch)
            loss = surrogate(losses, draws).mean() + (0.0 if penalty is None else penalty)
        return extended(output, loss=loss, penalty=penalty, draws=draws)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        summary: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        pixel_values: Tensor | None = None,
        **options,
    ) -> Tensor:
        """Generate from the prompted input with the backbone's ``generate``; ``options`` are handed on.

        Decisions are those of evaluation (argmax) whatever the current mode. A decoder-only model returns the new
        tokens alone, as transformers does for embedded inputs.
        """
        training = self.training
        self.eval()
        try:
            placed = self.insert_prompt(
                input_ids,
                attention_mask,
                inputs_embeds,
                summary,
                task_ids=task_ids,
                pixel_values=pixel_values,
            )
            return self.adapter.generate(placed, **options)
        finally:
            self.train(training)

    def decide(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        pixel_values: Tensor | None = None,
        **embedding,
    ) -> dict[str, Choice]:
        """What the prompt decides for each instance, by name of the decision; the backbone's layers do not run.

        ``decide(...)["position"].index`` is the split of each instance, (B,); "size" and, with a pool, "vector" are
        there too.
        """
        return self.insert_prompt(
            input_ids, attention_mask, task_ids=task_ids, pixel_values=pixel_values, **embedding
        ).decisions

    @torch.no_grad()
    def summarize(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **embedding,
    ) -> Tensor:
        """The summary (B, d) that instance-level decisions look at. It never changes in training, so it can be
        computed once per example and passed to ``forward`` as ``summary``. ``labels`` tell a decoder-only model which
        tokens are the answer, which is left out."""
        inputs, mask = self._embed(input_ids, attention_mask, None, pixel_values, embedding)
        return self._summarize(inputs, mask, self.adapter.keep_last(input_ids, mask, labels))

    def _embed(
        self, input_ids, attention_mask, inputs_embeds, pixel_values=None, embedding=None
    ) -> tuple[Tensor, Tensor]:
        text = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        if self.adapter.input_name == "pixel_values":
            surplus = [name for name, value in text.items() if value is not None]
            if surplus or pixel_values is None:
                raise ValueError(
                    f"{type(self.backbone).__name__} reads images: expected pixel_values=..., "
                    f"got {surplus[0] if surplus else 'none'}"
                )
            inputs = self.adapter.embed(pixel_values, **embedding or {})
            return inputs, self.adapter.full_mask(inputs)
        if pixel_values is not None or embedding:
            name = next(iter(embedding or ()), "pixel_values")
            raise ValueError(f"{name} is for images, but {type(self.backbone).__name__} reads text")
        if (input_ids is None) == (inputs_embeds is None):
            both = "both" if input_ids is not None else "none"
            raise ValueError(f"expected one of input_ids and inputs_embeds, got {both}")
        if input_ids is not None and (input_ids.ndim != 2 or input_ids.is_floating_point()):
            shape, dtype = tuple(input_ids.shape), input_ids.dtype
            raise ValueError(f"input_ids has shape {shape} and dtype {dtype}, expected integers (batch, seq)")
        width = self.adapter.width
        if inputs_embeds is not None and (inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != width):
            raise ValueError(
                f"inputs_embeds has shape {tuple(inputs_embeds.shape)}, expected (batch, seq, {width})"
            )
        shape = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        if attention_mask is not None and attention_mask.shape != shape:
            found = tuple(attention_mask.shape)
            raise ValueError(f"attention_mask has shape {found}, expected {tuple(shape)} as the input")
        inputs = self.adapter.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is None:
            attention_mask = self.adapter.full_mask(inputs)
        return inputs, attention_mask

    def _summarize(self, inputs: Tensor, mask: Tensor, keep_last: int | Tensor) -> Tensor:
        if not self.adapter.summarize_kept and isinstance(keep_last, Tensor):
            rest = mask.long().flip(1).cumsum(1).flip(1)  # real tokens from each one to the end
            mask = mask * (rest > keep_last.unsqueeze(1))
        if self.prompt_config.summary == "encoder":
            return self.adapter.summarize(inputs, mask)
        return masked_mean(inputs, mask)

    def _task_numbers(self, task_ids, inputs: Tensor) -> Tensor | None:
        """Task numbers (B,) from numbers or names."""
        names = self.prompt_config.tasks or ("default",)
        if task_ids is None:
            return None
        if isinstance(task_ids, str):
            raise ValueError(
                f"task_ids={task_ids!r} is one name, expected one for each instance of the batch"
            )
        if not isinstance(task_ids, Tensor):
            unknown = [task for task in task_ids if isinstance(task, str) and task not in names]
            if unknown:
                raise ValueError(f"task_ids holds {unknown[0]!r}, expected some of {list(names)}")
            numbers = [names.index(task) if isinstance(task, str) else task for task in task_ids]
            task_ids = torch.tensor(numbers, device=inputs.device)
        if task_ids.shape != inputs.shape[:1] or task_ids.is_floating_point():
            found = f"shape {tuple(task_ids.shape)} and dtype {task_ids.dtype}"
            raise ValueError(f"task_ids has {found}, expected integers ({inputs.shape[0]},)")
        if task_ids.device.type == "cpu" and not torch.compiler.is_compiling() and len(task_ids):
            if not 0 <= int(task_ids.min()) <= int(task_ids.max()) < len(names):
                raise ValueError(
                    f"task_ids holds {task_ids.min()}..{task_ids.max()}, expected 0..{len(names) - 1}: {list(names)}"
                )
        return task_ids.long()

    def add_task(self, name: str) -> None:
        """Add a task: fresh logits in every task-level decision. Nothing else changes, so other tasks answer as before.

        A model made without ``tasks`` has one that is called "default". Parameters with new rows are new objects: make
        the optimiser afterwards.
        """
        tasks = (*(self.prompt_config.tasks or ("default",)), name)
        config = replace(self.prompt_config, tasks=tasks)  # checks the name
        for module in self.prompt.modules():
            if isinstance(module, TaskController):
                module.add_task()
        self.prompt_config = config

    # --- several prompts on one backbone ---

    @property
    def prompts(self) -> tuple[str, ...]:
        """Names of the prompts that there are. A new model has one, "default"."""
        return tuple(self._prompts)

    @property
    def active_prompt(self) -> str:
        """Name of the prompt in use, which is the module ``prompt``."""
        return next(name for name, at_rest in self._prompts.items() if at_rest is None)

    def add_prompt(
        self,
        name: str,
        config: PromptConfig | None = None,
        vectors: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Add a prompt under a new name; ``config``, ``vectors`` and ``generator`` as in :func:`prompted`.

        The prompt in use stays in use: call :meth:`use_prompt` to change to the new one.

        Raises
        ------
        ValueError : the name is taken or empty; the prompt does not fit the backbone.
        """
        self._check_new(name)
        config = PromptConfig() if config is None else config
        self._add(name, _new_prompt(self.adapter, config, vectors, generator), config)

    def load_prompt(self, name: str, folder: str) -> None:
        """Add a prompt that :meth:`save_pretrained` wrote to ``folder``, under a new name, without using it yet.

        Raises what :func:`from_pretrained` raises, and ValueError where the name is taken or empty.
        """
        self._check_new(name)
        saved = checkpoint.read(folder)
        config = PromptConfig.from_dict(saved.options)
        self._add(name, _restore(folder, saved, config, self.backbone), config)

    def use_prompt(self, name: str) -> None:
        """Put another prompt to use: it answers, is trained and saved from here on. Nothing is loaded or copied.

        Make the optimiser afterwards: one that was made before holds the other prompt's parameters.

        Raises
        ------
        ValueError : there is no prompt of that name.
        """
        self._check_known(name)
        active = self.active_prompt
        if name != active:
            self._prompts[active] = (self.prompt, self.prompt_config)
            (self.prompt, self.prompt_config), self._prompts[name] = self._prompts[name], None
            self.train(self.training)

    def remove_prompt(self, name: str) -> None:
        """Forget a prompt that is not in use.

        Raises
        ------
        ValueError : there is no prompt of that name, or it is the one in use.
        """
        self._check_known(name)
        if name == self.active_prompt:
            raise ValueError(
                f"name={name!r} is in use, expected one that is not: call use_prompt with another first"
            )
        del self._prompts[name]

    def unload(self) -> PreTrainedModel:
        """Give the backbone back as it was before it got a prompt, and end this model.

        ``requires_grad`` of every parameter and the mode of every module are what they were; no hook is left, and
        gradient checkpointing is off if it was turned on through this model. (Weights never change; device and dtype
        stay as they are now.) Save the prompts before: this model cannot be used afterwards.
        """
        backbone = self.backbone
        if self._checkpointing and not self._before.checkpointing:
            self.gradient_checkpointing_disable()
        self._before.restore(backbone)
        del self.backbone
        self.adapter = self.backbone = _Unloaded()
        return backbone

    def _add(self, name: str, prompt: DynamicPrompt, config: PromptConfig) -> None:
        self._check(prompt, config)
        self._prompts[name] = (prompt.to(self.device), config)

    def _check_new(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"name={name!r} is not valid, expected a string that is not empty")
        if name in self._prompts:
            raise ValueError(f"name={name!r} is taken, expected a name other than {list(self._prompts)}")

    def _check_known(self, name: str) -> None:
        if name not in self._prompts:
            raise ValueError(f"name={name!r} is unknown, expected one of {list(self._prompts)}")

    def _apply(self, fn, recurse=True):
        """Prompts at rest move with the model (``to``, ``double``, ``half``)."""
        for at_rest in self._prompts.values():
            if at_rest is not None:
                at_rest[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    # --- what is trained, saved and loaded ---

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Exactly the parameters that are trained, by name: the prompt's own, with its head where that is trained."""
        return {f"prompt.{name}": parameter for name, parameter in self.prompt.named_parameters()}

    def set_temperature(self, temperature: float) -> None:
        """Set the Gumbel-Softmax temperature of every decision."""
        for module in self.prompt.modules():
            if isinstance(module, Chooser):
                module.set_temperature(temperature)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trained, and of how many.

        Vectors that a fixed ``size`` leaves out are not counted as trained; their number follows where there are any.
        """
        counted = card.count(self.prompt, self.backbone)
        text = f"trainable params: {counted.trained:,} || all params: {counted.total:,}"
        text += f" || trainable%: {100 * counted.trained / counted.total:.4f}"
        text += f" || head: trained, {counted.head:,}" if self.prompt.head is not None else ""
        print(text + (f" || not in use: {counted.unused:,}" if counted.unused else ""))

    def summary(self) -> card.Summary:
        """A text of a few lines: the backbone, each decision with its level and parameters, and what is trained.

        Parameters that cannot change any output (vectors that a fixed ``size`` leaves out) are not counted as trained.
        The last line is the size of the checkpoint that :meth:`save_pretrained` writes.
        """
        size = sum(len(data) for data in checkpoint.files(*self._checkpoint(self.active_prompt)).values())
        return card.summarize(self, describe(self.backbone, self.prompt_config), size)

    def save_pretrained(self, folder: str, name: str | None = None) -> None:
        """Write the prompt (safetensors), its configuration (JSON) and a card (README.md) to ``folder``.

        The backbone is not written. A stop at any moment leaves the old or the new checkpoint, never half of one
        (:func:`dplearn.checkpoint.save`).

        Parameters
        ----------
        folder : made where missing. A README.md in it that dplearn did not write stays as it is.
        name : which prompt; None is the one in use.

        Raises
        ------
        ValueError : there is no prompt of that name.
        """
        checkpoint.save(folder, *self._checkpoint(self.active_prompt if name is None else name))

    def _checkpoint(self, name: str) -> tuple[dict[str, Tensor], dict, dict, str]:
        """What :func:`dplearn.checkpoint.save` writes: tensors, options, the backbone's description, the card."""
        self._check_known(name)
        prompt, config = self._prompts[name] or (self.prompt, self.prompt_config)
        backbone = describe(self.backbone, config)
        text = card.write_card(config, card.count(prompt, self.backbone), backbone)
        return prompt.state_dict(), config.to_dict(), backbone, text


class _Flags(NamedTuple):
    """What freezing a backbone changes, by name: parameters that want gradients, modules in training mode."""

    trained: frozenset[str]
    training: frozenset[str]
    checkpointing: bool

    @classmethod
    def of(cls, backbone: nn.Module) -> _Flags:
        return cls(
            frozenset(name for name, parameter in backbone.named_parameters() if parameter.requires_grad),
            frozenset(name for name, module in backbone.named_modules() if module.training),
            any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules()),
        )

    def restore(self, backbone: nn.Module) -> None:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name in self.trained)
        for name, module in backbone.named_modules():
            module.training = name in self.training


class _Unloaded:
    """Stands where the backbone was after :meth:`PromptedModel.unload`; every use is an error that says so."""

    def __getattr__(self, name: str):
        if name.startswith("__"):  # copying and pickling ask for these
            raise AttributeError(name)
        raise RuntimeError(
            "this model was unloaded: its backbone is free; make a new one with dplearn.prompted"
        )


def _drop_backbone(module: PromptedModel, state: dict, prefix: str, metadata: dict) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}backbone.")]:
        del state[name]


def _forgive_backbone(module: PromptedModel, keys) -> None:
    keys.missing_keys[:] = [
        name for name in keys.missing_keys if not name.startswith("backbone.") and ".backbone." not in name
    ]


def describe(backbone: PreTrainedModel, config: PromptConfig) -> dict:
    """What a checkpoint records of its backbone, so that a prompt is never loaded onto another model.

    The number of labels is a part of it where the prompt has its own head.
    """
    return {
        "name_or_path": backbone.name_or_path,
        "class": type(backbone).__name__,
        "model_type": backbone.config.model_type,
        **adapt(backbone).describe(),
        **({"labels": backbone.config.num_labels} if config.head == "trained" else {}),
    }


def prompted(
    backbone: PreTrainedModel,
    config: PromptConfig | None = None,
    *,
    vectors: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> PromptedModel:
    """Freeze a Hugging Face model and give it a trainable prompt.

    Parameters
    ----------
    backbone : a model of transformers with its head: a text model (encoder-decoder, decoder-only or encoder), a vision
        transformer, or an image-text model (CLIP, SigLIP). It is frozen in place.
    config : what kind of prompt; ``PromptConfig()`` is a prefix of 20 vectors.
    vectors : (length, d) first values of the prompt, instead of ``config.init``; (pool_size, length, d) for a pool,
        and with a ``depth`` above 1 that dimension before the length.
    generator : source of the random initial vectors; None uses torch's global generator.

    Raises
    ------
    TypeError : the backbone is of a kind that cannot take a prompt.
    ValueError : ``vectors`` does not have the shape that the config and the backbone's width ask for; a trained head
        is asked for and the backbone has none.
    """
    config = PromptConfig() if config is None else config
    adapter = adapt(backbone)
    return adapter.model_class()(backbone, _new_prompt(adapter, config, vectors, generator), config)


def _new_prompt(
    adapter: Backbone, config: PromptConfig, vectors: Tensor | None, generator: torch.Generator | None
) -> DynamicPrompt:
    width = adapter.width_of(config)
    if vectors is None:
        vectors = adapter.initial_vectors(config, generator)
    elif vectors.shape != (*config.shape, width):
        raise ValueError(
            f"vectors has shape {tuple(vectors.shape)}, expected {(*config.shape, width)}: "
            f"length={config.length}, and {type(adapter.model).__name__} has width {width}"
        )
    return _build(adapter, config, vectors, generator)


def _build(
    adapter: Backbone, config: PromptConfig, vectors: Tensor, generator: torch.Generator | None = None
) -> DynamicPrompt:
    prompt = config.build(vectors, summary_width=adapter.summary_width(config))
    adapter.complete(prompt, config, generator)
    return prompt


def from_pretrained(folder: str, backbone: PreTrainedModel | None = None) -> PromptedModel:
    """Load a prompt written by :meth:`PromptedModel.save_pretrained`.

    Parameters
    ----------
    folder : where ``prompt_config.json`` lies.
    backbone : the model to put the prompt on. None loads the one that the checkpoint names: a backbone of
        :mod:`dplearn.zoo`, or a path or hub name through transformers, with the recorded number of labels where the
        prompt has its own head.

    Raises
    ------
    FileNotFoundError : no checkpoint there.
    ValueError : the checkpoint is damaged, a pickle, of another version, made for another backbone, or made for one
        that cannot be found by name while ``backbone`` is None; the message names which.
    """
    saved = checkpoint.read(folder)
    config = PromptConfig.from_dict(saved.options)
    if backbone is None:
        backbone = load_backbone(folder, saved.backbone)
    return adapt(backbone).model_class()(backbone, _restore(folder, saved, config, backbone), config)


def _restore(
    folder: str, saved: checkpoint.Saved, config: PromptConfig, backbone: PreTrainedModel
) -> DynamicPrompt:
    """The prompt of a checkpoint, for a backbone of the recorded kind."""
    adapter = adapt(backbone)
    fits.check_backbone(folder, saved.backbone, describe(backbone, config))
    fits.check_tensor(folder, saved.tensors, "vectors", (*config.shape, adapter.width_of(config)))
    prompt = _build(adapter, config, saved.tensors["vectors"])
    fits.fill(folder, prompt, saved.tensors)
    return prompt
