"""PromptConfig: what a user writes and what a checkpoint stores. It builds modules from flat arguments."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from dplearn.choice import ESTIMATORS, Chooser
from dplearn.controllers import LEARNED, FixedDecision, LearnedDecision, make_controller
from dplearn.length import resolve_size
from dplearn.position import resolve_split
from dplearn.prompt import DynamicPrompt
from dplearn.vector import MIXINGS, VECTORS, Mixture

SUMMARIES = ("embeddings", "encoder", "image")
INITS = ("vocabulary", "uniform", "normal")
TOWERS = (None, "text", "vision", "both", "coupled")
INSERTS = (None, "after-positions", "before-positions", "position-coded")
HEADS = ("frozen", "trained")

# The variants of the authors' code, by the names of its scripts: what differs from the defaults.
AUTHORS: dict[str, dict] = {
    "adap_pos": {"position": "task"},
    "adap_ins_pos": {"position": "instance"},
    "adap_ins_len": {"size": "instance"},
    "adap_ins_vec": {"vector": "instance", "mixing": "tanh"},
    "adap_ins_vec_pos": {"vector": "instance", "position": "instance", "init": "uniform"},
    "adap_pos_ins_vec": {"vector": "instance", "position": "task", "init": "uniform"},
}


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
    estimator : how the gradient of a sampled decision is estimated: "straight-through" (the paper's), "position-space"
        (for the position; other decisions by straight-through), "score-function" or "exact" (one learned decision);
        see :mod:`dplearn.estimators` and :mod:`dplearn.backbones.position_space`. The default is the cheapest: on
        t5-mini no other one was better on both tasks tried. Where the position is known to matter, "position-space" is
        nearer to the exact gradient, on T5 (much) and on BERT; on a decoder-only model prefer "score-function", since
        the slope of a key that is not visible yet has no bound.
    samples : how many options "score-function" (at least 2; None: 4) and "exact" (None: all) try for each instance. A
        training step costs about so many forward and backward passes.
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
    insert : images only: whether the prompt enters "after-positions" (behind the position embeddings, as VPT; the
        default, None), "before-positions" or "position-coded". Behind them no position can matter; in front of them the
        split shifts the patches over a grid of positions that is stretched for the prompt; coded, the prompt alone gets
        positions from that grid (:mod:`dplearn.backbones.vit`).
    towers : image-text models only: the prompt stands in the "text" (the default, None), in the image ("vision"), in
        "both" with vectors of their own, or in both "coupled": the image's vectors are a trained linear map of the
        text's, one map for each layer (as MaPLe). Position and size are those of the text prompt; an image prompt has
        no position that matters (:mod:`dplearn.backbones.clip`).
    head : classifiers only: "trained" gives the prompt its own copy of the backbone's classification head (all modules
        behind the base model), which is trained with it, as VPT does (Jia et al. 2022). The copy stands in for the
        backbone's head, which never changes. "frozen" (the default) leaves the backbone's head in place.

    Raises
    ------
    ValueError : an option is unknown or out of range; the message names it, its value and what was expected.

    >>> PromptConfig(length=5, position=2).to_dict()["position"]
    2
    """

    length: int = 20
    position: str | int = "prefix"
    size: str | int = "full"
    size_cost: float = 0.0
    vector: str = "single"
    pool_size: int = 4
    mixing: str = "softmax"
    tasks: tuple[str, ...] | None = None
    summary: str = "embeddings"
    estimator: str = "straight-through"
    samples: int | None = None
    temperature: float = 1.0
    init: str = "vocabulary"
    backbone_dropout: bool = False
    depth: int = 1
    insert: str | None = None
    towers: str | None = None
    head: str = "frozen"

    def __post_init__(self):
        for name in ("length", "pool_size", "depth"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not valid, expected an integer of at least 1")
        resolve_split(self.position, self.length)
        resolve_size(self.size, self.length)
        choices = {
            "vector": VECTORS, "mixing": MIXINGS, "summary": SUMMARIES, "estimator": sorted(ESTIMATORS), "init": INITS,
            "insert": INSERTS, "towers": TOWERS, "head": HEADS,
        }  # fmt: skip
        for name, options in choices.items():
            if getattr(self, name) not in options:
                expected = ", ".join(repr(option) for option in options)
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown, expected {expected}")
        _check_number("temperature", self.temperature, "a positive, finite number", self.temperature != 0)
        _check_number("size_cost", self.size_cost, "a finite number of at least 0")
        if not isinstance(self.backbone_dropout, bool):
            raise ValueError(
                f"backbone_dropout={self.backbone_dropout!r} is not valid, expected True or False"
            )
        self._check_estimator()
        self._check_images()
        if self.tasks is not None:
            object.__setattr__(self, "tasks", _task_names(self.tasks))

    def _check_estimator(self):
        hard = {"position": self.position in LEARNED, "size": self.size in LEARNED}
        hard["vector"] = self.vector != "single" and self.mixing == "hard"
        learned = [name for name, is_learned in hard.items() if is_learned]
        if self.estimator == "exact" and len(learned) > 1:
            raise ValueError(
                f"estimator='exact' enumerates the options of one decision, expected one of {learned} to be learned "
                "(or estimator='score-function', which takes several)"
            )
        if self.samples is None:
            return
        least = {"score-function": 2, "exact": 1}.get(self.estimator)
        if least is None:
            raise ValueError(
                f"samples={self.samples!r} has no use with estimator={self.estimator!r}, expected None"
            )
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < least:
            raise ValueError(
                f"samples={self.samples!r} is not valid, expected an integer of at least {least}"
            )

    def _check_images(self):
        if self.insert in ("before-positions", "position-coded") and self.size in LEARNED:
            raise ValueError(
                f"size={self.size!r} is not valid with insert={self.insert!r}, expected 'full' or a number: "
                "the grid of positions is stretched for one size"
            )
        # Which mixture of sequences straight-through gradients belong to is clear at the input alone.
        rough = {"straight-through": ("position", "size"), "position-space": ("size",)}
        for name in rough.get(self.estimator, ()):
            if self.depth > 1 and getattr(self, name) in LEARNED:
                raise ValueError(
                    f"estimator={self.estimator!r} is not valid with depth={self.depth} and {name}="
                    f"{getattr(self, name)!r}, expected 'score-function' or 'exact'"
                    + (", or 'position-space'" if name == "position" else "")
                )

    def to_dict(self) -> dict:
        """The options as plain JSON values."""
        return asdict(self) | {"tasks": None if self.tasks is None else list(self.tasks)}

    @classmethod
    def from_dict(cls, options: dict) -> PromptConfig:
        """The inverse of :meth:`to_dict`; refuses unknown options by name."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(
                f"unknown option {unknown[0]!r}={options[unknown[0]]!r}, expected some of {known}"
            )
        return cls(**options)

    @classmethod
    def authors(cls, name: str, **options) -> PromptConfig:
        """A variant of the authors' code, by its name there; ``options`` replace or add others.

        - ``adap_pos``: one learned split for the task;
        - ``adap_ins_pos``: a split for each input;
        - ``adap_ins_len``: a prefix with a size for each input;
        - ``adap_ins_vec``: a prefix from a pool of 4, mixed by softmax of tanh for each input;
        - ``adap_ins_vec_pos``: split and mixture (plain softmax) for each input;
        - ``adap_pos_ins_vec``: one split for the task, mixture (plain softmax) for each input.

        Length, pool, summary by the encoder, Gumbel-Softmax with straight-through gradients, first temperature and
        parameter counts are theirs (adap_ins_len lacks their second controller, which does nothing). On purpose these
        differ: evaluation is argmax without noise; a task's split is sampled for each instance, not once per batch; the
        summary leaves padding out and is normalised; logits pass no ReLU; the order of the vectors is kept for every
        split (theirs rotates); vectors that are not in use are dropped, not set to -1e20; a prompt starts from random
        rows of the vocabulary, not from its first ones.

        Raises
        ------
        ValueError : an unknown name; the message lists the names.

        >>> PromptConfig.authors("adap_ins_vec", length=10).mixing
        'tanh'
        """
        if name not in AUTHORS:
            raise ValueError(f"name={name!r} is unknown, expected one of {list(AUTHORS)}")
        return cls(**({"summary": "encoder"} | AUTHORS[name] | options))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the trained vectors without their width: (length,), with the depth (if above 1) and the pool's size
        (if there is a pool) in front: (pool_size, depth, length)."""
        deep = () if self.depth == 1 else (self.depth,)
        pool = () if self.vector == "single" else (self.pool_size,)
        return (*pool, *deep, self.length)

    def initial_vectors(self, embedding: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """First values of the prompt, ``shape`` times d in float32, for a backbone with this (vocabulary, d)
        embedding."""
        rows, width = embedding.shape
        if self.init == "uniform":
            return torch.empty(*self.shape, width).uniform_(-0.5, 0.5, generator=generator)
        if self.init == "normal":
            return torch.empty(*self.shape, width).normal_(0, 0.02, generator=generator)
        order, count = torch.randperm(rows, generator=generator), math.prod(self.shape)
        picked = order.repeat(-(-count // rows))[:count]
        return embedding.detach()[picked.to(embedding.device)].float().cpu().view(*self.shape, width)

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
        tasks = 1 if self.tasks is None else len(self.tasks)
        seen = vectors.shape[-1] if summary_width is None else summary_width

        def chooser():
            return Chooser(self.estimator, self.temperature, generator=generator)

        def decision(option: int | None, level) -> nn.Module:
            if option is not None:
                return FixedDecision(option)
            return LearnedDecision(make_controller(level, seen, self.length + 1, tasks), chooser())

        vector = None
        if self.vector != "single":
            controller = make_controller(self.vector, seen, self.pool_size, tasks)
            vector = Mixture(controller, self.mixing, chooser() if self.mixing == "hard" else None)
        return DynamicPrompt(
            vectors,
            decision(resolve_split(self.position, self.length), self.position),
            decision(resolve_size(self.size, self.length), self.size),
            vector,
            self.size_cost,
            self.depth,
        )


def _check_number(name: str, value, expected: str, allowed: bool = True) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (0 <= value < math.inf and allowed)
    ):
        raise ValueError(f"{name}={value!r} is not valid, expected {expected}")


def _task_names(tasks) -> tuple[str, ...]:
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if isinstance(tasks, str) or not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"tasks={tasks!r} is not valid, expected a list of names")
    if len(set(names)) < len(names):
        raise ValueError(f"tasks={list(names)} is not valid, expected names that differ")
    return names
