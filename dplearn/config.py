"""PromptConfig: what a user writes and what a checkpoint stores. It builds modules from flat arguments."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from dplearn.choice import ESTIMATORS, Chooser
from dplearn.position import make_position, resolve_split
from dplearn.prompt import DynamicPrompt

SUMMARIES = ("embeddings", "encoder")
INITS = ("vocabulary", "uniform")


@dataclass(frozen=True)
class PromptConfig:
    """How a prompt is made.

    Parameters
    ----------
    length : l, the number of prompt vectors, at least 1.
    position : "prefix", "postfix", a fixed split k in 0..length (k vectors before the input), "task" (one learned split
        for the task) or "instance" (a split decided for each input).
    summary : what an instance-level decision looks at: the masked mean of the frozen "embeddings" of the input
        (free), or of the frozen "encoder"'s last hidden states (the paper's choice; an extra encoder pass without
        gradient, cacheable with :meth:`dplearn.PromptedModel.summarize`).
    estimator : how the gradient of a sampled decision is estimated; "straight-through" is the paper's.
    temperature : initial temperature of Gumbel-Softmax; anneal it with :class:`dplearn.Annealing`.
    init : first values of the vectors: rows drawn from the backbone's "vocabulary" embeddings (all drawn rows differ
        where the vocabulary is large enough), or "uniform" in (-0.5, 0.5).
    backbone_dropout : leave the frozen backbone's dropout on while training. Off by default.

    Raises
    ------
    ValueError : an option is unknown or out of range; the message names it, its value and what was expected.

    >>> PromptConfig(length=5, position=2).to_dict()["position"]
    2
    """

    length: int = 20
    position: str | int = "prefix"
    summary: str = "embeddings"
    estimator: str = "straight-through"
    temperature: float = 1.0
    init: str = "vocabulary"
    backbone_dropout: bool = False

    def __post_init__(self):
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 1:
            raise ValueError(f"length={self.length!r} is not valid, expected an integer of at least 1")
        resolve_split(self.position, self.length)
        for name, options in (("summary", SUMMARIES), ("estimator", sorted(ESTIMATORS)), ("init", INITS)):
            if getattr(self, name) not in options:
                expected = ", ".join(repr(option) for option in options)
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown, expected {expected}")
        if not (
            isinstance(self.temperature, (int, float))
            and self.temperature > 0
            and math.isfinite(self.temperature)
        ):
            raise ValueError(
                f"temperature={self.temperature!r} is not valid, expected a positive, finite number"
            )
        if not isinstance(self.backbone_dropout, bool):
            raise ValueError(
                f"backbone_dropout={self.backbone_dropout!r} is not valid, expected True or False"
            )

    def to_dict(self) -> dict:
        """The options as plain JSON values."""
        return asdict(self)

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

    def initial_vectors(self, embedding: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """First values of the prompt, (length, d) in float32, for a backbone with this (vocabulary, d) embedding."""
        rows, width = embedding.shape
        if self.init == "uniform":
            return torch.empty(self.length, width).uniform_(-0.5, 0.5, generator=generator)
        order = torch.randperm(rows, generator=generator)
        picked = order.repeat(-(-self.length // rows))[: self.length]
        return embedding.detach()[picked.to(embedding.device)].float().cpu()

    def build(self, vectors: Tensor, generator: torch.Generator | None = None) -> DynamicPrompt:
        """The prompt module that this config describes, starting from ``vectors`` (length, d).

        ``generator`` feeds the Gumbel noise of a learned position; None uses torch's global generator.
        """
        if vectors.ndim != 2 or vectors.shape[0] != self.length:
            raise ValueError(
                f"vectors has shape {tuple(vectors.shape)}, expected ({self.length}, width): length={self.length}"
            )
        chooser = Chooser(self.estimator, self.temperature, generator=generator)
        position: nn.Module = make_position(self.position, self.length, vectors.shape[1], chooser)
        return DynamicPrompt(vectors, position)
