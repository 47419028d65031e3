"""Train and score one method on one text task: a prompt, full fine-tuning, the frozen model.

Every method sees the same examples in the same budget and is scored in the same way: cross-entropy over the label words
in training, argmax over them in evaluation. Choices are made on "validation", "test" is only reported.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, set_seed

from dplearn.backbones.rows import last_real, take_rows, token_positions
from dplearn.config import PromptConfig
from dplearn.experiments.fitting import Settings, VectorsFirst, device, fit, passes, scores_of
from dplearn.experiments.runs import TextRun
from dplearn.experiments.watching import LOOKS, Looks, Objective, fit_and_watch
from dplearn.loading import prompted
from dplearn.model import PromptedModel
from dplearn.tasks.base import Task
from dplearn.training import LabelWordLoss

USUAL, FULL = Settings(), Settings(learning_rate=5e-4)
# The name of a split and the model that reads it -> the examples as that model reads them (as Task.encode).
Encode = Callable[[str, nn.Module], Sequence[dict]]


class LastRow(nn.Module):
    """A decoder-only language model that answers with the logits of its last real row alone: (B, 1, vocabulary).

    What :class:`~dplearn.LabelWordLoss` reads, wherever the padding is. (A prompted model answers there by itself.)
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """input_ids, attention_mask: (B, T).  ``labels`` are for a loss outside; the Trainer looks for their name."""
        positions = {"position_ids": token_positions(attention_mask)} if self.takes_positions else {}
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **positions)
        return {"logits": take_rows(hidden.logits, last_real(attention_mask).unsqueeze(1))}


def _answers_in_its_input(model) -> bool:
    """Whether the answer follows the input in one sequence, as in a decoder-only model."""
    return not model.config.is_encoder_decoder


def _answerable(backbone: nn.Module) -> nn.Module:
    """A backbone without a prompt, as a model in whose last column of logits the answer is."""
    return LastRow(backbone) if _answers_in_its_input(backbone) else backbone


def text_for(
    model: nn.Module, tokenizer, task: Task, answer_prefix: str, encode: Encode | None
) -> tuple[Callable, dict]:
    """How the splits of a text task are encoded for a model, each once, and what the Trainer needs for them."""
    loss = LabelWordLoss(task.word_ids(tokenizer, model))
    options = {"data_collator": DataCollatorForSeq2Seq(tokenizer, model), "compute_loss_func": loss}
    if _answers_in_its_input(model):
        options["data_collator"] = DataCollatorForSeq2Seq(tokenizer)  # there are no decoder inputs to make
    if encode is None:
        encode = partial(task.encode, tokenizer, answer_prefix=answer_prefix)
    return cache(lambda split: encode(split, model)), options


def prompted_for(
    backbone: PreTrainedModel, tokenizer, config: PromptConfig, settings: Settings
) -> PromptedModel:
    """The model that a prompt method trains, on the device where it is trained."""
    words = words_of(backbone, tokenizer, config, settings.init_words)
    model = cast(PromptedModel, prompted(backbone, config, vectors=words))
    model.loss_outside = True  # the loss over label words adds what only the model knows of it
    model.prompt.vectors.requires_grad_(settings.train_vectors)
    return model.to(device())


def tune_prompt(
    backbone,
    tokenizer,
    task: Task,
    config: PromptConfig,
    settings: Settings = USUAL,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
    encode: Encode | None = None,
    looks: Looks = LOOKS,
    headroom: bool = False,
) -> dict:
    """Tune a prompt on a frozen backbone and score it.

    Parameters
    ----------
    encode : split and model -> encoded examples; None: ``task.encode`` with ``answer_prefix``.
    looks : how often and at how many examples the run is looked at.
    headroom : measure at the end what other positions would have given.

    Returns a plain dict: task, seed, config, settings, losses (ten means over the run), scores by split and metric,
    cross-entropy by split, trained parameters, seconds of training, passes of the backbone in one step, curves, the
    report on decisions, and for each split the share of instances whose prompt stands at each position
    (:mod:`dplearn.experiments.watching`).
    """
    set_seed(seed)
    model = prompted_for(backbone, tokenizer, config, settings)
    return train_prompt(
        model, tokenizer, task, settings, seed, splits, answer_prefix, encode, looks, headroom
    )


def train_prompt(
    model: PromptedModel,
    tokenizer,
    task: Task,
    settings: Settings = USUAL,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
    encode: Encode | None = None,
    looks: Looks = LOOKS,
    headroom: bool = False,
) -> dict:
    """Train the prompt of a model that is there and score it; parameters and row as of :func:`tune_prompt`."""
    config = model.prompt_config
    if not any(parameter.requires_grad for parameter in model.parameters()):
        settings = replace(settings, steps=0)
    encode, options = text_for(model, tokenizer, task, answer_prefix, encode)
    run = run_of(model, task, encode, options, settings.bf16)
    if settings.fit_summaries:
        model.fit_summaries(run.decided_about("train"), options["data_collator"])
    objective = options["compute_loss_func"] = Objective(run.loss, model, settings.entropy_bonus)
    callbacks = [VectorsFirst(settings.vectors_first)] if settings.vectors_first else []
    row = fit_and_watch(
        run, settings, seed, settings.optimizer_of(model), splits, objective.mean, looks, headroom,
        callbacks, settings.temperatures(config.temperature), **options,
    )  # fmt: skip
    return row | {"config": config.to_dict(), "passes": passes(config)}


def run_of(model: nn.Module, task: Task, encode: Callable, options: dict, bf16: bool = False) -> TextRun:
    """A model at work, with what :func:`text_for` gives for it."""
    return TextRun(model, task, encode, options["data_collator"], bf16, options["compute_loss_func"])


def words_of(backbone: PreTrainedModel, tokenizer, config: PromptConfig, words: str | None) -> Tensor | None:
    """First values of a prompt that starts from words, ``config.shape`` times d; None where it does not."""
    if words is None:
        return None
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"init_words={words!r} has tokens {ids}, expected words that this tokenizer knows")
    rows = backbone.get_input_embeddings()(torch.tensor(ids, device=backbone.device)).detach().float().cpu()
    count = math.prod(config.shape)
    return rows.repeat(-(-count // len(rows)), 1)[:count].view(*config.shape, -1)


def fine_tune(
    backbone,
    tokenizer,
    task: Task,
    settings: Settings = FULL,
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
    encode: Encode | None = None,
) -> dict:
    """Train all weights of ``backbone`` (changed in place) on the task without any prompt, and score it.

    ``encode`` as in :func:`tune_prompt`.
    """
    set_seed(seed)
    backbone.requires_grad_(True)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    encode, options = text_for(backbone, tokenizer, task, answer_prefix, encode)
    model = _answerable(backbone)
    run = run_of(model, task, encode, options, settings.bf16)
    return fit(model, task, encode, settings, seed, optimizer, splits, run.scored, **options)


def zero_shot(
    backbone: nn.Module,
    tokenizer,
    task: Task,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
    encode: Encode | None = None,
) -> dict:
    """Score the frozen backbone on the bare text, with no prompt at all. ``encode`` as in :func:`tune_prompt`."""
    encode, options = text_for(backbone, tokenizer, task, answer_prefix, encode)
    model = _answerable(backbone).to(device())
    run = run_of(model, task, encode, options)
    return {"task": task.name, "trained_parameters": 0} | scores_of(run.scored, splits)
