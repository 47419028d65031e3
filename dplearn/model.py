"""PromptedModel: a frozen Hugging Face model with a trained prompt in front, behind or around its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dplearn import checkpoint
from dplearn.backbones import adapt
from dplearn.choice import Choice, Chooser
from dplearn.config import PromptConfig
from dplearn.controllers import TaskController, masked_mean
from dplearn.prompt import DynamicPrompt, PromptedInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PromptedModel(nn.Module):
    """A frozen backbone steered by a :class:`~dplearn.prompt.DynamicPrompt`. Made by :func:`prompted`.

    Only the prompt's parameters are trained, saved and loaded: ``state_dict`` holds them and nothing else, so
    ``transformers.Trainer`` writes and resumes small checkpoints without special code. The backbone is frozen, and it
    stays in evaluation mode unless ``config.backbone_dropout`` is set.
    """

    # transformers.Trainer reads this: the loss is a mean over the batch, not divided by num_items_in_batch.
    accepts_loss_kwargs = False

    def __init__(self, backbone: PreTrainedModel, prompt: DynamicPrompt, prompt_config: PromptConfig):
        super().__init__()
        self.adapter = adapt(backbone)
        if prompt.width != self.adapter.width:
            raise ValueError(
                f"prompt has width {prompt.width}, but {type(backbone).__name__} has width {self.adapter.width}"
            )
        self.backbone = backbone.requires_grad_(False)
        self.prompt = prompt.to(backbone.device)
        self.prompt_config = prompt_config
        self.register_state_dict_post_hook(_drop_backbone)
        self.register_load_state_dict_post_hook(_forgive_backbone)
        self.train(backbone.training)

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

    def gradient_checkpointing_enable(self, **options) -> None:
        """Recompute the backbone's activations in the backward pass instead of storing them."""
        self.backbone.gradient_checkpointing_enable(**options)

    def gradient_checkpointing_disable(self) -> None:
        self.backbone.gradient_checkpointing_disable()

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

        Returns
        -------
        PromptedInput with the new embeddings and mask, where every row went, and the decisions.
        """
        inputs, mask = self._embed(input_ids, attention_mask, inputs_embeds)
        self.adapter.check_length(inputs.shape[1] + self.prompt.length)
        if keep_last is None:
            keep_last = self.adapter.keep_last(input_ids, mask, labels)
        if summary is None and self.prompt.needs_summary:
            summary = self._summarize(inputs, mask, keep_last)
        elif summary is not None and summary.shape != (inputs.shape[0], inputs.shape[2]):
            raise ValueError(
                f"summary has shape {tuple(summary.shape)}, expected {(inputs.shape[0], inputs.shape[2])}"
            )
        return self.prompt(inputs, mask, summary, keep_last, self._task_numbers(task_ids, inputs))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        summary: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        **options,
    ):
        """The backbone's own output for the prompted input.

        Takes what the backbone's ``forward`` takes (``options`` are handed on), plus ``summary`` and ``task_ids`` as in
        :meth:`insert_prompt`. ``labels`` have the shape that the backbone wants without a prompt: the prompt's rows
        leave before the head, except in an encoder-decoder, whose decoder is not touched. While a size is learned and
        costs something, the output has a ``penalty``, which is part of its ``loss``.
        """
        placed = self.insert_prompt(
            input_ids, attention_mask, inputs_embeds, summary, task_ids=task_ids, labels=labels
        )
        if decoder_input_ids is not None:
            options["decoder_input_ids"] = decoder_input_ids
        if labels is not None:
            options["labels"] = labels
        output = self.adapter.forward(placed, **options)
        if placed.penalty is not None:
            output["penalty"] = placed.penalty
            if output.get("loss") is not None:
                output["loss"] = output["loss"] + placed.penalty
        return output

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        summary: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
        **options,
    ) -> Tensor:
        """Generate from the prompted input with the backbone's ``generate``; ``options`` are handed on.

        Decisions are those of evaluation (argmax) whatever the current mode. A decoder-only model returns the new
        tokens alone, as transformers does for embedded inputs.
        """
        training = self.training
        self.eval()
        try:
            placed = self.insert_prompt(input_ids, attention_mask, inputs_embeds, summary, task_ids=task_ids)
            return self.adapter.generate(placed, **options)
        finally:
            self.train(training)

    def decide(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        task_ids: Tensor | Sequence[int | str] | None = None,
    ) -> dict[str, Choice]:
        """What the prompt decides for each instance, by name of the decision; the backbone's layers do not run.

        ``decide(...)["position"].index`` is the split of each instance, (B,); "size" and, with a pool, "vector" are
        there too.
        """
        return self.insert_prompt(input_ids, attention_mask, task_ids=task_ids).decisions

    @torch.no_grad()
    def summarize(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The summary (B, d) that instance-level decisions look at. It never changes in training, so it can be
        computed once per example and passed to ``forward`` as ``summary``. ``labels`` tell a decoder-only model which
        tokens are the answer, which is left out."""
        inputs, mask = self._embed(input_ids, attention_mask, None)
        return self._summarize(inputs, mask, self.adapter.keep_last(input_ids, mask, labels))

    def _embed(self, input_ids, attention_mask, inputs_embeds) -> tuple[Tensor, Tensor]:
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
            attention_mask = torch.ones(shape, dtype=torch.long, device=inputs.device)
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

    # --- what is trained, saved and loaded ---

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Exactly the parameters that are trained, by name: the prompt's own."""
        return {f"prompt.{name}": parameter for name, parameter in self.prompt.named_parameters()}

    def set_temperature(self, temperature: float) -> None:
        """Set the Gumbel-Softmax temperature of every decision."""
        for module in self.prompt.modules():
            if isinstance(module, Chooser):
                module.set_temperature(temperature)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trained, and of how many."""
        trained = sum(parameter.numel() for parameter in self.trainable_parameters().values())
        total = trained + sum(parameter.numel() for parameter in self.backbone.parameters())
        print(
            f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}"
        )

    def save_pretrained(self, folder: str) -> None:
        """Write the prompt (safetensors) and its configuration (JSON) to ``folder``; the backbone is not written.

        A stop at any moment leaves the old or the new checkpoint, never half of one
        (:func:`dplearn.checkpoint.save`).
        """
        checkpoint.save(
            folder, self.prompt.state_dict(), self.prompt_config.to_dict(), describe(self.backbone)
        )


def _drop_backbone(module: PromptedModel, state: dict, prefix: str, metadata: dict) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}backbone.")]:
        del state[name]


def _forgive_backbone(module: PromptedModel, keys) -> None:
    keys.missing_keys[:] = [
        name for name in keys.missing_keys if not name.startswith("backbone.") and ".backbone." not in name
    ]


def describe(backbone: PreTrainedModel) -> dict:
    """What a checkpoint records of its backbone, so that a prompt is never loaded onto another model."""
    embedding = backbone.get_input_embeddings().weight
    return {
        "name_or_path": backbone.name_or_path,
        "class": type(backbone).__name__,
        "model_type": backbone.config.model_type,
        "vocabulary": embedding.shape[0],
        "width": embedding.shape[1],
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
    backbone : a text model of transformers: encoder-decoder, decoder-only or encoder, with its head. It is frozen in
        place.
    config : what kind of prompt; ``PromptConfig()`` is a prefix of 20 vectors.
    vectors : (length, d) first values of the prompt, instead of ``config.init``; (pool_size, length, d) for a pool.
    generator : source of the random initial vectors; None uses torch's global generator.

    Raises
    ------
    TypeError : the backbone is of a kind that cannot take a prompt.
    ValueError : ``vectors`` does not have the shape that the config and the backbone's width ask for.
    """
    config = PromptConfig() if config is None else config
    adapter = adapt(backbone)
    if vectors is None:
        vectors = config.initial_vectors(adapter.embedding, generator)
    elif vectors.shape != (*config.shape, adapter.width):
        raise ValueError(
            f"vectors has shape {tuple(vectors.shape)}, expected {(*config.shape, adapter.width)}: "
            f"length={config.length}, and {type(backbone).__name__} has width {adapter.width}"
        )
    return PromptedModel(backbone, config.build(vectors), config)


def from_pretrained(folder: str, backbone: PreTrainedModel | None = None) -> PromptedModel:
    """Load a prompt written by :meth:`PromptedModel.save_pretrained`.

    Parameters
    ----------
    folder : where ``prompt_config.json`` lies.
    backbone : the model to put the prompt on. None loads the one that the checkpoint names: a backbone of
        :mod:`dplearn.zoo`, or a path or hub name through transformers.

    Raises
    ------
    FileNotFoundError : no checkpoint there.
    ValueError : the checkpoint is damaged, of another version, or made for another backbone; the message names which.
    """
    saved = checkpoint.read(folder)
    config = PromptConfig.from_dict(saved.options)
    if backbone is None:
        backbone = _load_backbone(saved.backbone)
    checkpoint.check_backbone(folder, saved.backbone, describe(backbone))
    checkpoint.check_tensor(folder, saved.tensors, "vectors", (*config.shape, adapt(backbone).width))
    prompt = config.build(saved.tensors["vectors"])
    checkpoint.fill(folder, prompt, saved.tensors)
    return PromptedModel(backbone, prompt, config)


def _load_backbone(description: dict) -> PreTrainedModel:
    import transformers

    from dplearn import zoo

    name = description["name_or_path"]
    if name in zoo.names():
        return zoo.load(name)[0]
    return getattr(transformers, description["class"]).from_pretrained(name)
