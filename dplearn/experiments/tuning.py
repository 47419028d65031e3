"""Train and score one method on one task: a prompt, full fine-tuning, the frozen model, a bag of words.

Every method sees the same examples in the same budget and is scored in the same way: cross-entropy over the label words
in training, argmax over them in evaluation. Choices are made on "validation", "test" is only reported.
"""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    get_constant_schedule_with_warmup,
    set_seed,
)
from transformers.optimization import Adafactor

from dplearn import shelf
from dplearn.backbones.base import token_positions
from dplearn.choice import Chooser, schedule
from dplearn.config import PromptConfig
from dplearn.loading import prompted
from dplearn.model import PromptedModel
from dplearn.summaries import masked_mean
from dplearn.tasks.base import Task
from dplearn.tasks.images import ImageTask
from dplearn.training import Annealing, LabelWordLoss, parameter_groups


@dataclass(frozen=True)
class Settings:
    """The budget and the optimiser of one run.

    steps : optimiser steps; 0 scores the untrained start.
    batch_size : examples in each step.
    learning_rate : of the prompt vectors (Adafactor without relative steps, as Lester et al. 2021), or of all
        weights in full fine-tuning (AdamW). On images AdamW is used for all (:mod:`dplearn.experiments.images`).
    controller_learning_rate : of position logits and controllers, and of a head that is trained with a prompt; None:
        ``learning_rate``.
    warmup : steps of linear warm-up, then constant.
    clip : largest gradient norm.
    bf16 : matrix products in bfloat16 (autocast); the trained parameters stay in float32.
    """

    steps: int = 60
    batch_size: int = 32
    learning_rate: float = 0.3
    controller_learning_rate: float | None = 0.03
    warmup: int = 10
    clip: float = 1.0
    bf16: bool = False

    def groups(self, model: PromptedModel) -> list[dict]:
        """What an optimiser takes for a prompted model (:func:`dplearn.parameter_groups`)."""
        rate, controllers = self.learning_rate, self.controller_learning_rate
        return parameter_groups(model, rate, rate if controllers is None else controllers)


def trainer_of(model: nn.Module, settings: Settings, seed: int, folder: str, **options) -> Trainer:
    """The Trainer of one run; ``options`` are its own: data, loss, optimisers, callbacks."""
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=128,
        max_grad_norm=settings.clip,
        bf16=settings.bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        logging_steps=max(settings.steps // 10, 1),
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, **options)
    trainer.remove_callback(PrinterCallback)  # a study prints its own table
    return trainer


def score(trainer: Trainer, task: Task | ImageTask, encode: Callable, splits: Sequence[str]) -> dict:
    """The task's metrics of the Trainer's predictions, by split."""
    return {split: task.score(split, trainer.predict(encode(split)).predictions) for split in splits}


def fit(
    model: nn.Module,
    task: Task | ImageTask,
    encode: Callable[[str], Sequence[dict]],
    settings: Settings,
    seed: int,
    optimizer: torch.optim.Optimizer,
    splits: Sequence[str],
    **options,
) -> dict:
    """Train a model on a task and score it.

    Parameters
    ----------
    model : a module that takes the fields of the examples by name and gives a loss and logits; it is trained in place.
    encode : the examples of a split, by its name.
    options : of the Trainer, among them ``preprocess_logits_for_metrics``, which gives label indices (B,).

    Returns a plain dict: task, seed, settings, losses (ten means over the run), scores by split and metric, trained
    parameters, seconds of training.
    """
    with tempfile.TemporaryDirectory() as folder:
        schedules = (optimizer, get_constant_schedule_with_warmup(optimizer, settings.warmup))
        trainer = trainer_of(
            model, settings, seed, folder, train_dataset=encode("train"), optimizers=schedules, **options
        )
        start = time.perf_counter()
        if settings.steps:
            trainer.train()
        seconds = time.perf_counter() - start
        losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
        return {
            "task": task.name,
            "seed": seed,
            "settings": asdict(settings),
            "losses": losses,
            "scores": score(trainer, task, encode, splits),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "seconds": round(seconds, 1),
        }


def annealed(model: nn.Module, temperature: str = "constant") -> list[Annealing]:
    """The callbacks that set the temperature of a prompt's learned decisions, if it has any."""
    learned = any(isinstance(module, Chooser) for module in model.modules())
    return [Annealing(schedule(temperature))] if learned else []


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
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (steps * (attention_mask != 0)).argmax(1)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        return {"logits": hidden.logits[rows, last].unsqueeze(1)}


def _answers_in_its_input(model) -> bool:
    """Whether the answer follows the input in one sequence, as in a decoder-only model."""
    return not model.config.is_encoder_decoder


def _answerable(backbone: nn.Module) -> nn.Module:
    """A backbone without a prompt, as a model in whose last column of logits the answer is."""
    return LastRow(backbone) if _answers_in_its_input(backbone) else backbone


def _text(model, tokenizer, task: Task, answer_prefix: str) -> tuple[Callable, dict]:
    """How the splits of a text task are encoded, and what the Trainer needs for them."""
    loss = LabelWordLoss(task.word_ids(tokenizer, model))
    options = {
        "data_collator": DataCollatorForSeq2Seq(tokenizer, model),
        "compute_loss_func": loss,
        "preprocess_logits_for_metrics": loss.predictions,
    }
    if _answers_in_its_input(model):
        options["data_collator"] = DataCollatorForSeq2Seq(tokenizer)  # there are no decoder inputs to make
    return partial(task.encode, tokenizer, model=model, answer_prefix=answer_prefix), options


def tune_prompt(
    backbone,
    tokenizer,
    task: Task,
    config: PromptConfig,
    settings: Settings = Settings(),
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
    temperature: str = "constant",
) -> dict:
    """Tune a prompt on a frozen backbone and score it.

    ``temperature`` names the annealing schedule of learned decisions (:func:`dplearn.schedule`).

    Returns a plain dict: task, seed, config, settings, losses (ten means over the run), scores by split and metric,
    trained parameters, seconds, and for each split the share of instances whose prompt stands at each position.
    """
    set_seed(seed)
    model = prompted(backbone, config)
    model.loss_outside = True  # the loss over label words adds what only the model knows of it
    optimizer = Adafactor(
        settings.groups(model),
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )
    encode, options = _text(model, tokenizer, task, answer_prefix)
    callbacks = annealed(model, temperature)
    row = fit(model, task, encode, settings, seed, optimizer, splits, callbacks=callbacks, **options)
    row["config"] = config.to_dict()
    if callbacks:
        collate = DataCollatorForSeq2Seq(tokenizer)
        fields = ("input_ids", "attention_mask", *(["keep_last"] if _answers_in_its_input(model) else []))
        row["positions"] = {split: positions(model, encode(split), collate, fields) for split in splits}
    return row


@torch.no_grad()
def positions(
    model: PromptedModel, examples: Sequence[dict], collate: Callable, fields: Sequence[str]
) -> list[float]:
    """Share of examples whose prompt stands at each split k = 0..l, in evaluation.

    ``fields`` of a batch are what the model decides about.
    """
    model.eval()
    counts = torch.zeros(model.prompt.length + 1)
    for start in range(0, len(examples), 256):
        batch = collate([examples[i] for i in range(start, min(start + 256, len(examples)))])
        chosen = model.decide(**{name: batch[name].to(model.device) for name in fields})
        counts += torch.bincount(chosen["position"].index.cpu(), minlength=len(counts))
    return [round(share, 4) for share in (counts / counts.sum()).tolist()]


def fine_tune(
    backbone,
    tokenizer,
    task: Task,
    settings: Settings = Settings(learning_rate=5e-4),
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
) -> dict:
    """Train all weights of ``backbone`` (changed in place) on the task without any prompt, and score it."""
    set_seed(seed)
    backbone.requires_grad_(True)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    encode, options = _text(backbone, tokenizer, task, answer_prefix)
    return fit(_answerable(backbone), task, encode, settings, seed, optimizer, splits, **options)


def zero_shot(
    backbone: nn.Module,
    tokenizer,
    task: Task,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
) -> dict:
    """Score the frozen backbone on the bare text, with no prompt at all."""
    encode, options = _text(backbone, tokenizer, task, answer_prefix)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(_answerable(backbone.eval()), Settings(), 0, folder, **options)
        return {
            "task": task.name,
            "scores": score(trainer, task, encode, splits),
            "trained_parameters": 0,
        }


def bag_of_words(task: Task, splits: Sequence[str] = ("validation", "test")) -> dict:
    """Logistic regression on counts of words and word pairs of each text field.

    What it solves needs no pretrained model. Fields have vocabularies of their own, so that it knows which text a word
    stood in. Its strength is chosen on validation.
    """
    import numpy as np
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import CountVectorizer

    counters = {}
    for field in task.fields:
        counter = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+")
        counters[field] = counter.fit([example[field] for example in task.examples("train")])

    def features(split):
        columns = [
            counter.transform([e[field] for e in task.examples(split)]) for field, counter in counters.items()
        ]
        return hstack(columns).tocsr().astype(np.float64)

    return _probe(task, features, splits)


def minilm_probe(task: Task, splits: Sequence[str] = ("validation", "test")) -> dict:
    """Logistic regression on sentence vectors of MiniLM, a real encoder of 22 million parameters.

    A text field becomes the masked mean of the encoder's last hidden states; two fields u, v are joined as
    (u, v, |u - v|, u v). Needs the extra ``real``, a package that carries the weights; strength chosen on validation.

    Raises
    ------
    ModuleNotFoundError : the extra is not installed.
    """
    import numpy as np

    encoder, tokenizer = shelf.load("minilm-l6")

    @torch.no_grad()
    def vectors(texts):
        parts = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                texts[start : start + 64], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            parts.append(masked_mean(encoder(**batch).last_hidden_state, batch["attention_mask"]))
        return torch.nn.functional.normalize(torch.cat(parts), dim=1).numpy()

    def features(split):
        columns = [vectors([example[field] for example in task.examples(split)]) for field in task.fields]
        if len(columns) == 2:
            columns += [np.abs(columns[0] - columns[1]), columns[0] * columns[1]]
        return np.concatenate(columns, axis=1)

    return _probe(task, features, splits, strengths=(1.0, 10.0, 100.0))


def _probe(
    task: Task, features, splits: Sequence[str], strengths: Sequence[float] = (0.01, 0.1, 1.0)
) -> dict:
    """Fit a linear classifier on ``features(split)``; the inverse penalty is chosen on validation."""
    from sklearn.linear_model import LogisticRegression

    matrices = {split: features(split) for split in {"train", "validation", *splits}}
    labels = [example["label"] for example in task.examples("train")]

    def score(model, split):
        return task.score(split, model.predict(matrices[split]))

    models = [
        LogisticRegression(C=strength, max_iter=2000).fit(matrices["train"], labels) for strength in strengths
    ]
    best = max(models, key=lambda model: next(iter(score(model, "validation").values())))
    return {"task": task.name, "scores": {split: score(best, split) for split in splits}}
