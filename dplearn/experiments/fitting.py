"""One training run with the Trainer of transformers: budget and optimizer, the loop, the scores that become a row.

Texts (:mod:`dplearn.experiments.tuning`), images (:mod:`dplearn.experiments.images`) and image-text models
(:mod:`dplearn.experiments.image_text`) train in the same way.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import torch
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_constant_schedule_with_warmup,
)
from transformers.optimization import Adafactor

from dplearn.checks import Flag, KeyOf, Number, OneOf, Whole, shown
from dplearn.choice import SCHEDULES, schedule
from dplearn.config import DECISIONS, PromptConfig
from dplearn.estimators import ESTIMATORS
from dplearn.experiments.evaluations import KEEPS, Evaluations, choosers_of
from dplearn.named_prompts import NamedPrompts
from dplearn.tasks.base import Task
from dplearn.tasks.images import ImageTask
from dplearn.training import Annealing, parameter_groups

# What only prompts on text models have: runs on images would go on as if nothing had been said.
OF_TEXTS = (
    "optimizer", "schedule", "last_temperature", "entropy_bonus", "vectors_first", "train_vectors", "init_words",
    "fit_summaries", "group_by_length",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The budget and the optimizer of one run.

    steps : optimizer steps; 0 scores the untrained start.
    batch_size : examples of one pass; times ``accumulate``, those of a step.
    learning_rate : of the prompt vectors (Adafactor without relative steps, as Lester et al. 2021), or of all
        weights in full fine-tuning (AdamW). On images AdamW is used for all (:mod:`dplearn.experiments.images`), and
        settings that only text models have (``OF_TEXTS``) are refused.
    controller_learning_rate : of position logits and controllers; None: ``learning_rate``.
    head_learning_rate : of a classification head: one that is trained with a prompt (``head="trained"``), a linear
        probe's, or in full fine-tuning the classifier's. None: a prompt's head as its controllers, others as
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
    group_by_length : put inputs of like length into one batch, which has less padding then; for text.
    fit_summaries : standardize summaries over the whole training split before the first step, instead of as they come.
    accumulate : passes whose gradients make one step; the loss of a step is the mean over all its examples.
    evaluate_every : steps between two scores of the whole validation split, of which there is one after the last step
        too (:mod:`dplearn.experiments.evaluations`); 0: none.
    keep : which weights are reported: the "last", or those of the "best" of these scores, of equal ones the first.
    noisy_evaluation : score a second time each time, with learned decisions sampled as in training, as the authors'
        code does. Nothing else changes by it.
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
    fit_summaries: bool = False
    group_by_length: bool = False
    head_learning_rate: float | None = None
    accumulate: int = 1
    evaluate_every: int = 0
    keep: str = "last"
    noisy_evaluation: bool = False

    def __post_init__(self):
        for name in ("steps", "warmup", "vectors_first"):
            Whole(0)(name, getattr(self, name))
        Whole()("batch_size", self.batch_size)
        Number(positive=False)("learning_rate", self.learning_rate)
        if self.controller_learning_rate is not None:
            Number(positive=False)("controller_learning_rate", self.controller_learning_rate)
        for name in ("clip", "last_temperature"):
            Number()(name, getattr(self, name))
        for name in ("bf16", "train_vectors", "fit_summaries", "group_by_length"):
            Flag()(name, getattr(self, name))
        OneOf(("adafactor", "adam"))("optimizer", self.optimizer)
        KeyOf(SCHEDULES)("schedule", self.schedule)
        Number(positive=False)("entropy_bonus", self.entropy_bonus)
        if self.head_learning_rate is not None:
            Number()("head_learning_rate", self.head_learning_rate)
        self._check_evaluations()

    def _check_evaluations(self):
        Whole()("accumulate", self.accumulate)
        Whole(0)("evaluate_every", self.evaluate_every)
        OneOf(KEEPS)("keep", self.keep)
        Flag()("noisy_evaluation", self.noisy_evaluation)
        for name, usual in (("keep", "last"), ("noisy_evaluation", False)):
            value = getattr(self, name)
            if value != usual and not self.evaluate_every:
                raise ValueError(
                    f"{name}={shown(value)} has no use with evaluate_every=0, expected {usual!r}, or steps between two "
                    "evaluations"
                )

    def check_for_images(self) -> None:
        """Raise ValueError where something is set that has no effect on a run on images; the message names it."""
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in OF_TEXTS and value != each.default:
                raise ValueError(
                    f"{each.name}={value!r} has no effect on images, expected {each.default!r}: it is a setting of "
                    "prompts on text models"
                )

    def groups(self, model: NamedPrompts) -> list[dict]:
        """What an optimizer takes for a prompted model (:func:`dplearn.parameter_groups`)."""
        rate, controllers = self.learning_rate, self.controller_learning_rate
        controllers = rate if controllers is None else controllers
        return parameter_groups(model, rate, controllers, self.head_learning_rate)

    def groups_without_prompt(self, model: nn.Module, head: Sequence[nn.Parameter]) -> list[dict]:
        """What an optimizer takes for a model without a prompt: all that is trained, the head at its own rate if it has
        one. head : its parameters."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.head_learning_rate is None:
            return [{"params": trained, "lr": self.learning_rate}]
        of_head = {id(parameter) for parameter in head}
        parts = {True: self.head_learning_rate, False: self.learning_rate}
        groups = [
            {"params": [p for p in trained if (id(p) in of_head) == is_head], "lr": rate}
            for is_head, rate in parts.items()
        ]
        return [group for group in groups if group["params"]]

    def optimizer_of(self, model: NamedPrompts) -> torch.optim.Optimizer:
        """The optimizer of a prompt: Adafactor without relative steps, or Adam; neither decays weights."""
        return self.optimizer_over(self.groups(model))

    def optimizer_over(self, groups: Sequence[dict]) -> torch.optim.Optimizer:
        """The same optimizer over any groups of parameters, each with its rate."""
        if self.optimizer == "adam":
            return torch.optim.Adam(groups)
        return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False)

    def temperatures(self, first: float) -> Callable[[int], float]:
        """The temperature at each step, from ``first`` on."""
        if self.schedule == "constant":
            return schedule("constant", value=first)
        if self.schedule == "authors":
            return schedule("authors")
        return schedule(self.schedule, start=first, end=self.last_temperature, steps=max(self.steps, 1))


def device() -> str:
    """Where runs are: the accelerator, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def trainer_of(model: nn.Module, settings: Settings, seed: int, folder: str, **options) -> Trainer:
    """The Trainer of one run; ``options`` are its own: data, loss, optimizers, callbacks."""
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=128,
        gradient_accumulation_steps=settings.accumulate,
        max_grad_norm=settings.clip,
        bf16=settings.bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
        logging_steps=max(settings.steps // 10, 1),
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # a run has one GPU: copies of a model on several would see other batches
    trainer = Trainer(model=model, args=arguments, **options)
    trainer.remove_callback(PrinterCallback)  # a study prints its own table
    if settings.accumulate > 1 and trainer.compute_loss_func is not None:
        trainer.compute_loss_func = Share(trainer.compute_loss_func, trainer)
    return trainer


class Share:
    """The part that one of several passes has in the loss of a step: its mean, times its share of the examples.

    The Trainer leaves this to a loss of one's own, and says how many label tokens all passes have: in a decoder-only
    model, whose answer is one token, none (it does not count the first column). There all passes have equal shares.

    Parameters
    ----------
    loss : the mean over a batch, called as the Trainer calls ``compute_loss_func``.
    trainer : knows how many passes the step has.
    """

    def __init__(self, loss: Callable, trainer: Trainer):
        self.mean, self.trainer = loss, trainer

    def __call__(self, outputs, labels, num_items_in_batch=None):
        tokens = 0 if num_items_in_batch is None else int(num_items_in_batch)
        share = labels.numel() / tokens if tokens else 1 / self.trainer.current_gradient_accumulation_steps
        return self.mean(outputs, labels) * share


def fit(
    model: nn.Module,
    task: Task | ImageTask,
    encode: Callable[[str], Sequence[dict]],
    settings: Settings,
    seed: int,
    optimizer: torch.optim.Optimizer,
    splits: Sequence[str],
    scored: Callable[[str], tuple[dict, float]],
    callbacks: Iterable[TrainerCallback] = (),
    **options,
) -> dict:
    """Train a model on a task and score it.

    Parameters
    ----------
    model : a module that takes the fields of the examples by name and gives a loss and logits; it is trained in place
        and left in evaluation mode.
    encode : the examples of a split, by its name.
    scored : metrics and cross-entropy of a split, by its name.
    callbacks : of the Trainer.
    options : others of the Trainer.

    Returns a plain dict: task, seed, settings, losses (ten means over the run), scores by split and metric, the
    cross-entropy by split, trained parameters, seconds of training; and where the settings ask for them the
    "evaluations" during the run (:meth:`dplearn.experiments.evaluations.Evaluations.seen`).
    """
    looks = evaluations(model, settings, seed, scored)
    with tempfile.TemporaryDirectory() as folder:
        schedules = (optimizer, get_constant_schedule_with_warmup(optimizer, settings.warmup))
        options |= {"optimizers": schedules, "callbacks": [*callbacks, *looks]}
        trainer = trainer_of(model, settings, seed, folder, train_dataset=encode("train"), **options)
        start = time.perf_counter()
        if settings.steps:
            trainer.train()
        seconds = time.perf_counter() - start - sum(look.seconds for look in looks)
        model.eval()
        for look in looks:
            look.restore()
        losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
        return {
            "task": task.name,
            "seed": seed,
            "settings": asdict(settings),
            "losses": losses,
            **scores_of(scored, splits),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "seconds": round(seconds, 1),
        } | {name: value for look in looks for name, value in look.seen().items()}


def evaluations(
    model: nn.Module, settings: Settings, seed: int, scored: Callable[[str], tuple[dict, float]]
) -> list[Evaluations]:
    """The callback that scores the whole validation split during a run, where the settings ask for it."""

    def score() -> float:
        return next(iter(scored("validation")[0].values()))

    keep, noisy = settings.keep, settings.noisy_evaluation
    every = settings.evaluate_every
    return [Evaluations(model, score, every, keep, noisy, seed)] if every else []


def scores_of(scored: Callable[[str], tuple[dict, float]], splits: Sequence[str]) -> dict:
    """Metrics and cross-entropies by split, as parts of a row."""
    results = {split: scored(split) for split in splits}
    return {
        "scores": {split: metrics for split, (metrics, _) in results.items()},
        "cross_entropy": {split: value for split, (_, value) in results.items()},
    }


def annealed(model: nn.Module, temperatures: Callable[[int], float] | None = None) -> list[Annealing]:
    """The callbacks that set the temperature of a prompt's learned decisions, if it has any; None: it stays 1."""
    return [Annealing(temperatures or schedule("constant"))] if choosers_of(model) else []


class VectorsFirst(TrainerCallback):
    """Leave everything but the vectors as it began for the first steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step < self.steps:
            for name, parameter in getattr(model, "module", model).trainable_parameters().items():
                if not name.endswith("vectors"):
                    parameter.grad = None


def passes(config: PromptConfig) -> int:
    """Forward passes of the backbone in one training step: the options that an estimator tries."""
    row, learned = ESTIMATORS[config.estimator], [n for n, d in DECISIONS.items() if d.sampled(config)]
    if not row.compares_losses or not learned:
        return 1
    if row.joint:
        return config.samples or row.usual_samples or 1
    options = config.pool_size if learned == ["vector"] else config.length + 1
    return min(config.samples or options, options)
