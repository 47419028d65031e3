"""Train and score one method on one task: a prompt, full fine-tuning, the frozen model, a bag of words.

Every method sees the same examples in the same budget and is scored in the same way: cross-entropy over the label words
in training, argmax over them in evaluation. Choices are made on "validation", "test" is only reported.
"""

from __future__ import annotations

import inspect
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_constant_schedule_with_warmup,
    set_seed,
)
from transformers.optimization import Adafactor

from dplearn.backbones.base import token_positions
from dplearn.checks import KeyOf, Number, OneOf
from dplearn.choice import SCHEDULES, Chooser, schedule
from dplearn.config import DECISIONS, PromptConfig
from dplearn.estimators import ESTIMATORS
from dplearn.experiments.evidence import (
    Objective,
    Watch,
    decided,
    evidence_of,
    learned_parts,
    right_share,
    share_right_of,
)
from dplearn.experiments.scoring import label_scores, metrics_of
from dplearn.loading import prompted
from dplearn.model import PromptedModel
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
    optimizer : of a prompt on a text model, "adafactor" or "adam".
    schedule : of the temperature (:func:`dplearn.schedule`), from the prompt's ``temperature`` to
        ``last_temperature`` over the run; the authors' schedule has values of its own.
    entropy_bonus : times the mean entropy of each learned decision (nats), subtracted from the loss.
    vectors_first : first steps in which the vectors alone are trained and decisions stay as they began.
    train_vectors : False leaves the vectors as they began.
    init_words : words of the backbone's vocabulary whose rows are the first values of the vectors, again and again
        where there are more vectors; None: as the prompt's ``init`` says.
    """

    steps: int = 60
    batch_size: int = 32
    learning_rate: float = 0.3
    controller_learning_rate: float | None = 0.03
    warmup: int = 10
    clip: float = 1.0
    bf16: bool = False
    optimizer: str = "adafactor"
    schedule: str = "constant"
    last_temperature: float = 0.5
    entropy_bonus: float = 0.0
    vectors_first: int = 0
    train_vectors: bool = True
    init_words: str | None = None

    def __post_init__(self):
        OneOf(("adafactor", "adam"))("optimizer", self.optimizer)
        KeyOf(SCHEDULES)("schedule", self.schedule)
        Number(positive=False)("entropy_bonus", self.entropy_bonus)

    def groups(self, model: PromptedModel) -> list[dict]:
        """What an optimiser takes for a prompted model (:func:`dplearn.parameter_groups`)."""
        rate, controllers = self.learning_rate, self.controller_learning_rate
        return parameter_groups(model, rate, rate if controllers is None else controllers)

    def optimizer_of(self, model: PromptedModel) -> torch.optim.Optimizer:
        """The optimiser of a prompt: Adafactor without relative steps, or Adam; neither decays weights."""
        if self.optimizer == "adam":
            return torch.optim.Adam(self.groups(model))
        return Adafactor(self.groups(model), scale_parameter=False, relative_step=False, warmup_init=False)

    def temperatures(self, first: float) -> Callable[[int], float]:
        """The temperature at each step, from ``first`` on."""
        if self.schedule == "constant":
            return schedule("constant", value=first)
        if self.schedule == "authors":
            return schedule("authors")
        return schedule(self.schedule, start=first, end=self.last_temperature, steps=max(self.steps, 1))


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
    """The task's metrics of the Trainer's predictions, by split, as a part of a row."""
    return {"scores": {s: task.score(s, trainer.predict(encode(s)).predictions) for s in splits}}


def fit(
    model: nn.Module,
    task: Task | ImageTask,
    encode: Callable[[str], Sequence[dict]],
    settings: Settings,
    seed: int,
    optimizer: torch.optim.Optimizer,
    splits: Sequence[str],
    scored: Callable[[str], tuple[dict, float]] | None = None,
    **options,
) -> dict:
    """Train a model on a task and score it.

    Parameters
    ----------
    model : a module that takes the fields of the examples by name and gives a loss and logits; it is trained in place.
    encode : the examples of a split, by its name.
    scored : metrics and cross-entropy of a split, by its name; None: the metrics of what the Trainer predicts.
    options : of the Trainer, among them ``preprocess_logits_for_metrics``, which gives label indices (B,).

    Returns a plain dict: task, seed, settings, losses (ten means over the run), scores by split and metric, the
    cross-entropy by split where ``scored`` gives it, trained parameters, seconds of training.
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
            **(score(trainer, task, encode, splits) if scored is None else _both(scored, splits)),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "seconds": round(seconds, 1),
        }


def _both(scored: Callable[[str], tuple[dict, float]], splits: Sequence[str]) -> dict:
    """Metrics and cross-entropies by split, as parts of a row."""
    found = {split: scored(split) for split in splits}
    return {
        "scores": {split: metrics for split, (metrics, _) in found.items()},
        "cross_entropy": {split: value for split, (_, value) in found.items()},
    }


def annealed(
    model: nn.Module, temperatures: Callable[[int], float] = schedule("constant")
) -> list[Annealing]:
    """The callbacks that set the temperature of a prompt's learned decisions, if it has any."""
    learned = any(isinstance(module, Chooser) for module in model.modules())
    return [Annealing(temperatures)] if learned else []


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


def _one_sequence(rows: list[dict], prompted: bool) -> list[dict]:
    """Examples for a decoder-only model: what stands before the answer word is input, and behind a prompt."""
    joined = []
    for row in rows:
        cue, answer = row["labels"][:-1], row["labels"][-1:]
        ids = [*row["input_ids"], *cue]
        joined.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": answer})
        if prompted:
            joined[-1]["keep_last"] = len(cue)
    return joined


def _text(model, tokenizer, task: Task, encode: Callable) -> tuple[Callable, dict]:
    """How the splits of a text task are encoded for a model, and what the Trainer needs for them."""
    loss = LabelWordLoss(task.word_ids(tokenizer))
    options = {"data_collator": DataCollatorForSeq2Seq(tokenizer, model), "compute_loss_func": loss}
    if not _answers_in_its_input(model):
        return encode, options
    options["data_collator"] = DataCollatorForSeq2Seq(tokenizer)  # there are no decoder inputs to make
    given = isinstance(model, PromptedModel)
    return cache(lambda split: _one_sequence(encode(split), given)), options


def _encoder(task: Task, tokenizer, answer_prefix: str, encode: Callable | None) -> Callable:
    """How the splits of a task are encoded, each once, where nothing else is said."""
    return cache(partial(task.encode, tokenizer, answer_prefix=answer_prefix)) if encode is None else encode


def _scorer(model, task: Task, encode: Callable, options: dict, bf16: bool = False) -> Callable:
    """Metrics and cross-entropy of a model on a split, by its name; ``options`` are those of :func:`_text`."""
    read, collate = options["compute_loss_func"].scores, options["data_collator"]
    return lambda split: metrics_of(task, split, label_scores(model, encode(split), collate, read, bf16))


def tune_prompt(
    backbone,
    tokenizer,
    task: Task,
    config: PromptConfig,
    settings: Settings = Settings(),
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
    encode: Callable[[str], list[dict]] | None = None,
    thirds: bool = False,
) -> dict:
    """Tune a prompt on a frozen backbone and score it.

    Parameters
    ----------
    encode : the encoded examples of a split, by its name; None: ``task.encode`` with ``answer_prefix``.
    thirds : score the splits at a third of the steps too.

    Returns a plain dict: task, seed, config, settings, losses (ten means over the run), scores by split and metric,
    cross-entropy by split, trained parameters, seconds of training, passes (of the backbone in one step), the curves and the
    decision report of :mod:`dplearn.experiments.evidence`, and for each split the share of instances whose prompt
    stands at each position.
    """
    set_seed(seed)
    model = prompted(backbone, config, vectors=_words(backbone, tokenizer, config, settings.init_words))
    model.loss_outside = True  # the loss over label words adds what only the model knows of it
    if not settings.train_vectors:
        model.prompt.vectors.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        settings = replace(settings, steps=0)
    encode, options = _text(model, tokenizer, task, _encoder(task, tokenizer, answer_prefix, encode))
    scored = _scorer(model, task, encode, options, settings.bf16)
    read, collate = options["compute_loss_func"].scores, options["data_collator"]
    options["compute_loss_func"] = objective = Objective(
        options["compute_loss_func"], model, settings.entropy_bonus
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    seen = (DataCollatorForSeq2Seq(tokenizer), _decided_fields(model))
    first = decided(model, encode(splits[0]), *seen)
    watch = Watch(
        model, task, encode, collate, read, seen[1], objective.mean, settings.steps, settings.bf16,
        splits if thirds else (),
    )  # fmt: skip
    callbacks = [*annealed(model, settings.temperatures(config.temperature)), watch]
    if settings.vectors_first:
        callbacks.append(VectorsFirst(settings.vectors_first))
    optimizer = settings.optimizer_of(model)
    row = fit(model, task, encode, settings, seed, optimizer, splits, scored, callbacks=callbacks, **options)
    row |= {"config": config.to_dict(), "passes": passes(config), "curves": watch.curves}
    row["seconds"] = round(max(row["seconds"] - watch.seconds, 0.0), 1)
    row |= {"steps_to_90": watch.reached(), "at_a_third": watch.at_a_third}
    if learned_parts(model):
        labels = _labels(task, splits[0])
        row["evidence"] = {"split": splits[0]} | evidence_of(model, encode(splits[0]), *seen, first, labels)
    if annealed(model):
        row["positions"] = {split: positions(model, encode(split), *seen) for split in splits}
    right = _right(model, task, encode, seen, splits)
    return row if right is None else row | {"right_split": right}


def _decided_fields(model: PromptedModel) -> tuple[str, ...]:
    """The fields of a batch of texts that a prompt decides about."""
    return ("input_ids", "attention_mask", *(["keep_last"] if _answers_in_its_input(model) else []))


def _labels(task: Task, split: str) -> dict[str, Tensor]:
    """What decisions may depend on: the labels of the examples and, where the task has such, their known types."""
    examples = task.examples(split)
    names = {"labels": "label"} | ({"types": "type"} if "type" in examples[0] else {})
    return {name: torch.tensor([int(e[field]) for e in examples]) for name, field in names.items()}


def _right(model, task: Task, encode: Callable, seen, splits: Sequence[str]) -> dict | None:
    """Share of examples at a right split, by the name of the (data) split, on tasks that know the right ones."""
    if share_right_of(task) is None:
        return None
    found = {}
    for split in splits:
        chosen = chosen_splits(model, encode(split), *seen)
        found[split] = right_share(task, task.examples(split), chosen, model.prompt.length)
    return found


def _words(backbone, tokenizer, config: PromptConfig, words: str | None) -> Tensor | None:
    """First values of a prompt that starts from words, ``config.shape`` times d; None where it does not."""
    if words is None:
        return None
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"init_words={words!r} has tokens {ids}, expected words that this tokenizer knows")
    rows = backbone.get_input_embeddings()(torch.tensor(ids, device=backbone.device)).detach().float().cpu()
    count = math.prod(config.shape)
    return rows.repeat(-(-count // len(rows)), 1)[:count].view(*config.shape, -1)


def passes(config: PromptConfig) -> int:
    """Forward passes of the backbone in one training step: the options that an estimator tries."""
    row, learned = ESTIMATORS[config.estimator], [n for n, d in DECISIONS.items() if d.sampled(config)]
    if not row.compares_losses or not learned:
        return 1
    if row.joint:
        return config.samples or row.usual_samples
    options = config.pool_size if learned == ["vector"] else config.length + 1
    return min(config.samples or options, options)


class VectorsFirst(TrainerCallback):
    """Leave everything but the vectors as it began for the first steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step < self.steps:
            for name, parameter in getattr(model, "module", model).trainable_parameters().items():
                if not name.endswith("vectors"):
                    parameter.grad = None


@torch.no_grad()
def chosen_splits(
    model: PromptedModel, examples: Sequence[dict], collate: Callable, fields: Sequence[str]
) -> Tensor:
    """The split k of each example, (N,), in evaluation. ``fields`` of a batch are what the model decides about."""
    model.eval()
    found = []
    for start in range(0, len(examples), 256):
        batch = collate([examples[i] for i in range(start, min(start + 256, len(examples)))])
        chosen = model.decide(**{name: batch[name].to(model.device) for name in fields})
        found.append(chosen["position"].index.cpu())
    return torch.cat(found)


def positions(
    model: PromptedModel, examples: Sequence[dict], collate: Callable, fields: Sequence[str]
) -> list[float]:
    """Share of examples whose prompt stands at each split k = 0..l, in evaluation; see :func:`chosen_splits`."""
    chosen = chosen_splits(model, examples, collate, fields)
    counts = torch.bincount(chosen, minlength=model.prompt.length + 1).float()
    return [round(share, 4) for share in (counts / counts.sum()).tolist()]


def fine_tune(
    backbone,
    tokenizer,
    task: Task,
    settings: Settings = Settings(learning_rate=5e-4),
    seed: int = 0,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
    encode: Callable[[str], list[dict]] | None = None,
) -> dict:
    """Train all weights of ``backbone`` (changed in place) on the task without any prompt, and score it.

    ``encode`` as in :func:`tune_prompt`.
    """
    set_seed(seed)
    backbone.requires_grad_(True)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    encode, options = _text(backbone, tokenizer, task, _encoder(task, tokenizer, answer_prefix, encode))
    model = _answerable(backbone)
    scored = _scorer(model, task, encode, options, settings.bf16)
    return fit(model, task, encode, settings, seed, optimizer, splits, scored, **options)


def zero_shot(
    backbone: nn.Module,
    tokenizer,
    task: Task,
    splits: Sequence[str] = ("validation", "test"),
    answer_prefix: str = "",
    encode: Callable[[str], list[dict]] | None = None,
) -> dict:
    """Score the frozen backbone on the bare text, with no prompt at all. ``encode`` as in :func:`tune_prompt`."""
    encode, options = _text(backbone, tokenizer, task, _encoder(task, tokenizer, answer_prefix, encode))
    model = _answerable(backbone).to("cuda" if torch.cuda.is_available() else "cpu")
    return {"task": task.name, "trained_parameters": 0} | _both(_scorer(model, task, encode, options), splits)
