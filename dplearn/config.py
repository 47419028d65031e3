"""PromptConfig: what a user writes and what a checkpoint stores. It builds modules from flat arguments.

Each option is declared once, by a field of :class:`PromptConfig`: default, check, the kinds of backbone that serve it,
and a line of documentation. ``OPTIONS`` is read off these fields; validation, refusals and :func:`option_rows` use it.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor

from dplearn.authors import variant
from dplearn.checks import (
    Flag,
    KeyOf,
    Later,
    Names,
    Number,
    OneOf,
    Whole,
    caller_level,
    is_whole,
    refuse,
    shown,
)
from dplearn.choice import Chooser
from dplearn.controllers import INITS as CONTROLLER_INITS
from dplearn.controllers import LEARNED, Decision
from dplearn.estimators import ESTIMATORS, comparing_losses
from dplearn.length import SIZE
from dplearn.options import Option, option
from dplearn.position import POSITION
from dplearn.prompt import DynamicPrompt
from dplearn.sampling import Estimator
from dplearn.vector import MIXINGS, VECTOR, VECTORS

# The decisions of a prompt by the name of their option. A new one is a file with its row, its option, and a line here.
DECISIONS: dict[str, Decision] = {"position": POSITION, "size": SIZE, "vector": VECTOR}

SUMMARIES = ("embeddings", "encoder", "image")
INITS = ("vocabulary", "uniform", "normal")
TOWERS = (None, "text", "vision", "both", "coupled")
ENTRIES = (None, "after-positions", "before-positions", "position-coded")
HEADS = ("frozen", "trained")
POOLED = ("pool_size", "mixing")  # only a pool has these


@dataclass(frozen=True)
class PromptConfig:
    """How a prompt is made. Position, size and vector are independent; every combination works.

    Parameters
    ----------
    length : l, the number of prompt vectors, at least 1.
    position : "prefix", "postfix", a fixed split k in 0..length (k vectors before the input), "task" (one learned split
        for the task) or "instance" (a split decided for each input).
    size : how many of the vectors are in use: "full", a fixed number in 1..length, "task" or "instance" (learned).
    size_cost : added to the loss while a size is learned: ``size_cost * E[n] / length``, with the expectation over the
        learned distribution. 0: no cost.
    vector : "single" (one prompt), or a pool of ``pool_size`` prompts with a learned mixture, per "task" or "instance".
    pool_size : K, the number of prompts in the pool. Trained parameters grow K-fold.
    mixing : weights of the pool: "softmax", "tanh" (softmax of tanh, the authors' vector variant), "hard" (one prompt).
    tasks : names of the tasks that share this prompt, or None for one task. Task-level decisions have logits for each
        task; vectors, pool and instance-level controllers are shared.
    summary : what an instance-level decision looks at: the masked mean of the frozen "embeddings" of the input
        (free), or of the frozen "encoder"'s last hidden states (the paper's choice; an extra encoder pass without
        gradient, cacheable with :meth:`dplearn.PromptedModel.summarize`). Image-text models also have "image": the
        frozen model's view of the image decides about the prompt of the texts, which then differs from image to image
        (as in CoCoOp), at the cost of one text pass for each pair.
    standardize : whether instance-level decisions see summaries with mean 0 and variance 1 over the training data. The
        statistics grow with every training step, are fixed in evaluation and are saved; compute them beforehand with
        :meth:`dplearn.PromptedModel.fit_summaries`. Without, what all inputs have in common decides for all of them
        before they can be told apart (:mod:`dplearn.summaries`).
    controller_init : first logits of learned decisions: "zero" (all options equally likely; until something moved,
        evaluation takes the prefix and the whole prompt) or "uniform", random as in the authors' code.
    estimator : how the gradient of a sampled decision is estimated: "score-function", "score-function-batch", "exact"
        (one learned decision), "position-space" (for the position; other decisions by straight-through) or
        "straight-through" (the paper's); see :mod:`dplearn.estimators` and :mod:`dplearn.backbones.position_space`. The
        first three compare losses: of several options (``samples``), or of the instances of a batch; they are unbiased,
        and ask for ``labels`` in training, or for a loss that knows of them (:class:`dplearn.LabelWordLoss`). The other
        two take any loss in one pass. Where the right position is known, on place-mini, only "score-function" and
        "exact" of those in the record estimators-place find it for nearly all inputs, so the default is the cheaper of
        them ("score-function-batch" is younger: chapter 07). On a decoder-only model "position-space" has slopes
        without a bound.
    samples : how many options "score-function" (at least 2; None: 4), "score-function-batch" (None: 1) and "exact"
        (None: all) try for each instance. A training step costs about so many forward and backward passes.
    temperature : initial temperature of Gumbel-Softmax; anneal it with :class:`dplearn.Annealing`.
    init : first values of the vectors: rows drawn from the backbone's "vocabulary" embeddings (all drawn rows differ
        where the vocabulary is large enough), "uniform" in (-0.5, 0.5), or "normal" with standard deviation 0.02 (as
        CoOp). Images have no vocabulary: there the default is VPT's, uniform in (-v, v) with
        v^2 = 6 / (size of a patch + d).
    backbone_dropout : leave the frozen backbone's dropout on while training. Off by default.
    depth : images and image-text models: in how many of the first layers there is a prompt of its own. 1: at the
        input alone (VPT-shallow). More: at the input of each further layer, fresh vectors replace the prompt's rows
        (VPT-deep). All layers share position and size, and the weights of a pool. A learned position or size then
        needs an estimator that runs real sequences.
    from_layer : images only: the first of the layers that have a prompt at their input. Above 1 the layers in front of
        it run on the image alone, so what they give can be kept (:meth:`dplearn.PromptedModel.cache_inputs`).
    entry : images only: where the prompt enters, "after-positions" (behind the position embeddings, as VPT; the
        default, None), "before-positions" or "position-coded". Behind them no position can matter; in front of them the
        split shifts the patches over a grid of positions that is stretched for the prompt; coded, the prompt alone gets
        positions from that grid (:mod:`dplearn.backbones.vit`). (``insert`` is its old name, and still works.)
    towers : image-text models only: the prompt stands in the "text" (the default, None), in the image ("vision"), in
        "both" with vectors of their own, or in both "coupled": the image's vectors are a trained linear map of the
        text's, one map for each layer (as MaPLe). Position and size are those of the text prompt; an image prompt has
        no position that matters (:mod:`dplearn.backbones.image_text`).
    head : classifiers only: "trained" gives the prompt its own copy of the backbone's classification head (all modules
        behind the base model), which is trained with it, as VPT does (Jia et al. 2022). The copy stands in for the
        backbone's head, which never changes. "frozen" (the default) leaves the backbone's head in place.

    Raises
    ------
    ValueError : an option is unknown or out of range; the message names it, its value and what was expected.

    >>> PromptConfig(length=5, position=2).to_dict()["position"]
    2
    """

    length: int = option(20, "l, the number of prompt vectors", Whole())
    position: str | int = option(
        "prefix",
        "where the prompt stands: fixed, or learned per task or per input",
        Later("'prefix', 'postfix', 'task', 'instance' or a split in 0..length"),
    )
    size: str | int = option(
        "full",
        "how many of the vectors are in use: fixed, or learned",
        Later("'full', 'task', 'instance' or a number in 1..length"),
    )
    size_cost: float = option(
        0.0, "what a prompt of full size costs while a size is learned", Number(positive=False)
    )
    vector: str = option("single", "one prompt, or a pool with a learned mixture", OneOf(VECTORS))
    pool_size: int = option(4, "K, the number of prompts in the pool", Whole())
    mixing: str = option("softmax", "how the pool is weighed", OneOf(MIXINGS))
    tasks: tuple[str, ...] | None = option(None, "names of the tasks that share the prompt", Names())
    summary: str = option(
        "embeddings",
        "what instance-level decisions look at",
        OneOf(SUMMARIES),
        only={"image": ("image-text",)},
    )
    standardize: bool = option(
        True,
        "standardize what instance-level decisions look at over the training data",
        Flag(),
        before=False,
    )
    controller_init: str = option(
        "zero", "first logits of learned decisions", OneOf(CONTROLLER_INITS), before="uniform"
    )
    estimator: str = option(
        "score-function",
        "how the gradient of a sampled decision is estimated",
        KeyOf(ESTIMATORS),
        before="straight-through",
    )
    samples: int | None = option(
        None, "how many options an estimator that compares losses tries", Later("None or an integer")
    )
    temperature: float = option(1.0, "first temperature of Gumbel-Softmax", Number())
    init: str = option(
        "vocabulary", "first values of the vectors (beside patches the default is VPT's)", OneOf(INITS)
    )
    backbone_dropout: bool = option(False, "leave the backbone's dropout on while training", Flag())
    depth: int = option(
        1, "in how many of the first layers there are vectors", Whole(), ("vision", "image-text")
    )
    from_layer: int = option(1, "the first of the layers that have vectors", Whole(), ("vision",))
    entry: str | None = option(
        None,
        "where the prompt enters: behind or in front of the position embeddings",
        OneOf(ENTRIES),
        ("vision",),
    )
    towers: str | None = option(
        None, "which towers get a prompt: text, vision, both, or both coupled", OneOf(TOWERS), ("image-text",)
    )
    head: str = option(
        "frozen",
        "classifiers: whether a copy of the classification head is trained with the prompt",
        OneOf(HEADS),
    )

    def __post_init__(self) -> None:
        for name, declared in OPTIONS.items():
            declared.check(name, getattr(self, name))
        for decision in DECISIONS.values():
            decision.check(self)
        if self.tasks is not None:
            object.__setattr__(self, "tasks", tuple(self.tasks))
        self._check_pool()
        self._check_estimator()
        self._check_images()

    @property
    def insert(self) -> str | None:
        """The old name of ``entry``."""
        return self.entry

    def _check_pool(self) -> None:
        """Refuse options of a pool where there is none: they would have no effect."""
        for name in POOLED if self.vector == "single" else ():
            value, usual = getattr(self, name), OPTIONS[name].default
            if value != usual:
                raise ValueError(
                    f"{name}={value!r} has no use with vector='single', expected {usual!r}, or vector='task' or "
                    "'instance': there is no pool"
                )

    def _check_estimator(self) -> None:
        row = ESTIMATORS[self.estimator]
        learned = [name for name, decision in DECISIONS.items() if decision.sampled(self)]
        if not row.joint and len(learned) > 1:
            others = [repr(name) for name in comparing_losses() if ESTIMATORS[name].joint]
            raise ValueError(
                f"estimator={self.estimator!r} enumerates the options of one decision, expected one of {learned} to be "
                f"learned (or estimator={' or '.join(others)}, which takes several)"
            )
        if self.samples is None:
            return
        if not row.compares_losses:
            raise ValueError(
                f"samples={shown(self.samples)} has no use with estimator={self.estimator!r}, expected None"
            )
        if not is_whole(self.samples, row.least_samples):
            refuse("samples", self.samples, Whole(row.least_samples).expected)

    def _check_images(self) -> None:
        if self.from_layer > 1 and self.entry in ("before-positions", "position-coded"):
            raise ValueError(
                f"from_layer={self.from_layer} is not valid with entry={self.entry!r}, expected 1, or "
                "entry='after-positions': positions are added in front of the first layer"
            )
        if self.entry in ("before-positions", "position-coded") and self.size in LEARNED:
            raise ValueError(
                f"size={self.size!r} is not valid with entry={self.entry!r}, expected 'full' or a number: "
                "the grid of positions is stretched for one size"
            )
        # Which mixture of sequences weights on tokens belong to is clear at the input alone.
        row = ESTIMATORS[self.estimator]
        for name in ("position", "size"):
            spaces = (None, "positions") if name == "position" else (None,)
            if self.depth > 1 and getattr(self, name) in LEARNED and _space(row, name) not in spaces:
                others = [other for other, row in ESTIMATORS.items() if _space(row, name) == "positions"]
                raise ValueError(
                    f"estimator={self.estimator!r} is not valid with depth={self.depth} and {name}="
                    f"{getattr(self, name)!r}, expected {' or '.join(map(repr, comparing_losses()))}"
                    + "".join(f", or {other!r}" for other in others)
                )

    def refuse_unserved(self, kind: str, name: str, reads: str) -> None:
        """Raise ValueError where an option asks for what only another kind of backbone serves.

        Parameters
        ----------
        kind : of the backbone, a key of :data:`dplearn.options.KINDS`.
        name : of the backbone's class, for the message.
        reads : what the backbone reads, for the message.
        """
        for option_name, declared in OPTIONS.items():
            declared.refuse_unserved(option_name, getattr(self, option_name), kind, name, reads)

    def to_dict(self) -> dict:
        """The options as plain JSON values."""
        return asdict(self) | {"tasks": None if self.tasks is None else list(self.tasks)}

    @classmethod
    def from_dict(cls, options: dict) -> PromptConfig:
        """The inverse of :meth:`to_dict`; refuses unknown options by name.

        Old names, and options without an effect that checkpoints of before hold, are read in silence.
        """
        if not isinstance(options, dict):
            raise ValueError(f"options={shown(options)} is not valid, expected a dictionary of options")
        options = dict(options)
        if "insert" in options and "entry" not in options:  # its old name
            options["entry"] = options.pop("insert")
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            raise ValueError(
                f"unknown option {unknown[0]!r}={shown(options[unknown[0]])}, expected some of {list(OPTIONS)}"
            )
        # Checkpoints of before may hold options of a pool without one, which had no effect.
        for name in POOLED if options.get("vector", "single") == "single" else ():
            if name in options:
                OPTIONS[name].check(name, options.pop(name))
        return cls(**options)

    @classmethod
    def from_saved(cls, options: dict) -> PromptConfig:
        """The options of a checkpoint, which may be older than some of them; raises what :meth:`from_dict` raises."""
        return cls.from_dict(with_younger_options(options))

    @classmethod
    def authors(cls, name: str, **options: Any) -> PromptConfig:
        """A variant of the authors' code, by its name (:mod:`dplearn.authors`); ``options`` replace or add others.

        Raises
        ------
        ValueError : an unknown name; the message lists the names.

        >>> PromptConfig.authors("adap_ins_vec", length=10).mixing
        'tanh'
        """
        return cls(**variant(name) | options)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the trained vectors without their width: (length,), with the depth (if above 1) and the pool's size
        (if there is a pool) in front: (pool_size, depth, length)."""
        deep = () if self.depth == 1 else (self.depth,)
        pool = () if self.vector == "single" else (self.pool_size,)
        return (*pool, *deep, self.length)

    def initial_vectors(
        self,
        width: int,
        vocabulary: int,
        embed: Callable[[Tensor], Tensor],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """First values of the prompt, ``shape`` times d, in float32 on the CPU.

        Parameters
        ----------
        width : d.
        vocabulary : how many tokens the backbone knows; rows of different ones are drawn while there are enough.
        embed : token ids (N,), int64 on the CPU, -> their rows (N, d) as the backbone embeds them. Asked only where
            ``init`` is "vocabulary".
        generator : source of the random draws; None uses torch's global generator.

        Raises
        ------
        ValueError : ``embed`` returns another shape.
        """
        if self.init == "uniform":
            return torch.empty(*self.shape, width).uniform_(-0.5, 0.5, generator=generator)
        if self.init == "normal":
            return torch.empty(*self.shape, width).normal_(0, 0.02, generator=generator)
        order, count = torch.randperm(vocabulary, generator=generator), math.prod(self.shape)
        rows = embed(order.repeat(-(-count // vocabulary))[:count]).detach()
        if rows.shape != (count, width):
            raise ValueError(f"embed returned the shape {tuple(rows.shape)}, expected {(count, width)}")
        return rows.float().cpu().view(*self.shape, width)

    def build(
        self,
        vectors: Tensor,
        generator: torch.Generator | None = None,
        summary_width: int | None = None,
    ) -> DynamicPrompt:
        """The prompt module that this config describes, starting from ``vectors``, ``shape`` times d.

        ``generator`` feeds the Gumbel noise of learned decisions; None uses torch's global generator.
        ``summary_width`` is the width of what instance-level decisions look at; None: d.
        """
        if vectors.shape[:-1] != self.shape:
            raise ValueError(
                f"vectors has shape {tuple(vectors.shape)}, expected ({', '.join(map(str, self.shape))}, width): "
                f"length={self.length}, vector={self.vector!r}"
                + (f", depth={self.depth}" if self.depth > 1 else "")
            )
        seen = vectors.shape[-1] if summary_width is None else summary_width

        def chooser() -> Chooser:
            return Chooser(self.estimator, self.temperature, generator=generator)

        # The pool's first: the order in which parameters are drawn at random is a part of what a seed means.
        order = sorted(DECISIONS, key=lambda name: name != "vector")
        built = {name: DECISIONS[name].build(self, seen, chooser) for name in order}
        position, size, vector = (cast(Any, built.pop(name)) for name in ("position", "size", "vector"))
        others = {name: part for name, part in built.items() if part is not None}
        return DynamicPrompt(vectors, position, size, vector, self.size_cost, self.depth, others)


OPTIONS: dict[str, Option] = {each.name: each.metadata["option"] for each in fields(PromptConfig)}


def with_younger_options(options: dict) -> dict:
    """Saved options with those that are younger than they are, at the values by which prompts of then worked."""
    younger = {name: row.before for name, row in OPTIONS.items() if row.before is not None}
    return younger | options


def option_rows() -> list[tuple[str, str, str, str, str]]:
    """The options as rows of a table: name, default, what is expected, kinds of backbone that serve it, words.

    >>> option_rows()[0]
    ('length', '20', 'an integer of at least 1', 'all', 'l, the number of prompt vectors')
    """
    return [declared.row(name) for name, declared in OPTIONS.items()]


def _space(row: Estimator, name: str) -> str | None:
    """What the weights of a decision multiply (:class:`dplearn.sampling.Estimator`)."""
    return "tokens" if row.space == "positions" and name != "position" else row.space


def _with_old_name(init: Callable) -> Callable:
    """``entry`` under its old name ``insert``."""

    @functools.wraps(init)
    def __init__(self: Any, *values: Any, **options: Any) -> None:
        if "insert" in options:
            if options.get("entry") is not None:
                raise ValueError(
                    f"insert={shown(options['insert'])} and entry are one option, expected entry alone"
                )
            warnings.warn(
                "PromptConfig(insert=...) is called entry=... now", FutureWarning, stacklevel=caller_level()
            )
            options["entry"] = options.pop("insert")
        init(self, *values, **options)

    return __init__


PromptConfig.__init__ = _with_old_name(PromptConfig.__init__)  # type: ignore[method-assign]
