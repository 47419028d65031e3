"""DynamicPrompt: the trained vectors and the decisions about them, applied to an embedded input.

Three decisions compose, each fixed, learned for a task or learned for each input: which vectors there are
(:mod:`dplearn.vector`), how many (:mod:`dplearn.length`), and where (:mod:`dplearn.position`). More can be added: what
changes the vectors before they are inserted has a method ``edit``. What is trained with a prompt and decides nothing (a
classification head, the part of a prompt that stands in images) is attached by whoever knows of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad

from dplearn.checks import check_by_name
from dplearn.choice import Chooser
from dplearn.controllers import FixedDecision, LearnedDecision, TaskController, as_choice
from dplearn.estimators import ESTIMATORS
from dplearn.insertion import Inserted, Moves, insert, insert_weighted, rows_at_every_split
from dplearn.length import expected_share
from dplearn.sampling import Choice, Draws, learned
from dplearn.vector import Mixture

GROUPS = ("vectors", "controllers", "head")  # parameters that learn at one rate


class PromptedInput(NamedTuple):
    """An input with its prompt in place, and what was decided. S = T + l, or less where unused vectors are dropped.

    embeds: (B, S, d).  mask: (B, S).  input_positions: (B, T), where each input token went.
    prompt_positions: (B, l), where each prompt vector stands, -1 where it is not in use.
    decisions: choices by name, "position", "size", with a pool "vector", and others that were added.
    penalty: the cost on length, a scalar to add to the loss, or None.
    moves: what the position-space estimator needs, or None (:mod:`dplearn.backbones.position_space`).
    deeper: vectors for the prompt's rows in further layers, (depth - 1, l, d) or (B, depth - 1, l, d), or None.
    masked: whether vectors can be out of use in their rows, so that only the mask hides them (a learned size).
    """

    embeds: Tensor
    mask: Tensor
    input_positions: Tensor
    prompt_positions: Tensor
    decisions: dict[str, Choice]
    penalty: Tensor | None = None
    moves: Moves | None = None
    deeper: Tensor | None = None
    masked: bool = False


class DynamicPrompt(nn.Module):
    """A trained prompt whose place, size and content are fixed or decided per task or per input.

    Parameters
    ----------
    vectors : (l, d), the initial prompt, or (K, l, d), a pool of K prompts; with a ``depth`` above 1, (depth, l, d) or
        (K, depth, l, d). Becomes the parameter ``vectors``, kept in its own dtype (float32 is advised) and cast to the
        input's dtype when it is inserted.
    position : decision of the split k in 0..l.
    size : decision of the number n of vectors in use; None: all.
    vector : mixture over the pool; needed with a pool and only then.
    size_cost : what a prompt of full size costs: ``size_cost * E[n] / l`` is added to the loss while training.
    depth : in how many layers there are vectors; those of the first are inserted, the others are ``deeper``.
    others : further decisions by name, each a module like :class:`~dplearn.controllers.LearnedDecision` with a method
        ``edit(vectors, choice)`` that changes the vectors, (..., l, d) or (B, ..., l, d), before they are inserted.

    Raises
    ------
    ValueError : ``vectors`` is not floating point of one of these shapes, or does not fit ``vector``; the name of
        another decision is taken.
    """

    def __init__(
        self,
        vectors: Tensor,
        position: FixedDecision | LearnedDecision,
        size: FixedDecision | LearnedDecision | None = None,
        vector: Mixture | None = None,
        size_cost: float = 0.0,
        depth: int = 1,
        others: dict[str, nn.Module] | None = None,
    ):
        super().__init__()
        expected = "(length, width)" if depth == 1 else "(depth, length, width)"
        expected = expected if vector is None else f"(pool, {expected[1:]}"
        bad = vectors.ndim != expected.count(",") + 1 or 0 in vectors.shape or not vectors.is_floating_point()
        if bad or (depth > 1 and vectors.shape[-3] != depth):
            raise ValueError(
                f"vectors has shape {tuple(vectors.shape)} and dtype {vectors.dtype}, "
                f"expected {expected} with length >= 1, floating point"
                + (f", depth={depth}" if depth > 1 else "")
            )
        self.vectors = nn.Parameter(vectors.detach().clone())
        self.position = position
        self.size = FixedDecision(vectors.shape[-2]) if size is None else size
        self.vector = vector
        self.size_cost = size_cost
        self.depth = depth
        self._attached: dict[str, str] = {}  # names of attached parts, and the group of each
        others = {} if others is None else others
        self._others = tuple(others)
        for name in self._others:
            if hasattr(self, name):
                raise ValueError(f"others has the name {name!r}, which is taken, expected another")
            self.add_module(name, others[name])

    @property
    def length(self) -> int:
        """l, the number of prompt vectors that there are."""
        return self.vectors.shape[-2]

    @property
    def width(self) -> int:
        """d, the width of a vector."""
        return self.vectors.shape[-1]

    @property
    def parts(self) -> dict[str, Any]:
        """The decisions by name."""
        names = ("position", "size", *(("vector",) if self.vector is not None else ()), *self._others)
        return {name: getattr(self, name) for name in names}

    def attach(self, name: str, module: nn.Module, group: str) -> None:
        """Add a part that is trained with the prompt and decides nothing, such as a classification head of its own.

        Parameters
        ----------
        name : of the part: it is the submodule of this name, trained, saved and loaded with the prompt.
        module : the part.
        group : one of ``GROUPS``, which says at what rate it learns.

        Raises
        ------
        ValueError : the name is taken; an unknown group.
        """
        if hasattr(self, name):
            raise ValueError(f"name={name!r} is taken, expected another")
        if group not in GROUPS:
            raise ValueError(f"group={group!r} is unknown, expected one of {list(GROUPS)}")
        self.add_module(name, module)
        self._attached[name] = group

    @property
    def attached(self) -> dict[str, Any]:
        """The parts that were attached, by name."""
        return {name: getattr(self, name) for name in self._attached}

    def parameters_by_group(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that learn at one rate, by the name of the group, in the order of ``GROUPS``."""
        groups: dict[str, list[nn.Parameter]] = {group: [] for group in GROUPS}
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            groups["vectors" if part == "vectors" else self._attached.get(part, "controllers")].append(
                parameter
            )
        return groups

    @property
    def needs_summary(self) -> bool:
        """Whether a decision looks at the input."""
        return any(part.looks_at_input for part in self.parts.values())

    @property
    def needs_task(self) -> bool:
        """Whether a decision depends on the task: some task-level logits, for more than one task."""
        controllers = [module for module in self.modules() if isinstance(module, TaskController)]
        return any(controller.tasks > 1 for controller in controllers)

    @property
    def most(self) -> int:
        """How many vectors can be in use: l, or a fixed size."""
        return self.size.option if isinstance(self.size, FixedDecision) else self.length

    @property
    def follows_input(self) -> bool:
        """Whether a vector can stand behind the input: not where all that can be in use are fixed in front of it."""
        return not (isinstance(self.position, FixedDecision) and self.position.option >= self.most)

    def entries_in_use(self) -> dict[str, int]:
        """How many entries of each parameter can change an output, by the parameter's name."""
        counts = {name: parameter.numel() for name, parameter in self.named_parameters()}
        counts["vectors"] = counts["vectors"] // self.length * self.most
        for part, module in self.parts.items():
            counts |= {f"{part}.{name}": entries for name, entries in module.entries_in_use().items()}
        return counts

    def decide(
        self,
        summary: Tensor,
        task: Tensor | None = None,
        sampling: bool | None = None,
        given: dict[str, object] | None = None,
    ) -> dict[str, Choice]:
        """What is decided for each instance, by name.

        Parameters
        ----------
        summary : (B, d), or (B, ...) if nothing looks at it.
        task : (B,), needed where ``needs_task``.
        sampling : True samples as training does, False decides as evaluation does, whatever the mode; None follows it.
        given : decisions that were made elsewhere, by name: an option for all, one for each instance (B,), or a Choice.
            The others are made here.

        Raises
        ------
        ValueError : a given decision is none of this prompt's, or no option of it.
        """
        made = self.given(given or {}, summary.shape[0], summary.device)
        if self.needs_summary and summary.ndim != 2:
            raise ValueError("summary=None, expected a (batch, width) tensor: something is decided per input")
        if self.needs_task and task is None:
            raise ValueError("task=None, expected task numbers (batch,): something is decided per task")
        parts = self.parts.items()
        return {name: made[name] if name in made else part(summary, task, sampling) for name, part in parts}

    def given(self, given: dict[str, object], batch: int, device: torch.device | str) -> dict[str, Choice]:
        """Decisions that were made elsewhere, as choices of so many instances on a device; see :meth:`decide`.

        Raises
        ------
        ValueError : a decision is none of this prompt's, or no option of it.
        TypeError : decisions that have no names.
        """
        made = {}
        check_by_name("decisions", given)
        for name, value in given.items():
            if not self.takes(name):
                raise ValueError(
                    f"decisions holds {name!r}, which this prompt does not decide for each instance, expected some of "
                    f"{[each for each in self.parts if self.takes(each)]}"
                )
            options = self.vectors.shape[0] if name == "vector" else self.length + 1
            made[name] = as_choice(name, value, batch, options, device)
            if name == "vector" and made[name].weights is None:
                weights = one_hot(made[name].index, options).to(self.vectors.dtype)
                made[name] = made[name]._replace(weights=weights)
        return made

    def takes(self, name: str) -> bool:
        """Whether a decision can be made elsewhere: any split can, other sizes only where sizes differ."""
        learned = isinstance(self.size, LearnedDecision)
        known = {"position": True, "size": learned, "vector": self.vector is not None}
        return known.get(name, False)

    def tried(self, decisions: dict[str, Choice], draws: Draws) -> dict[str, Choice]:
        """The decisions for S copies of the batch, one copy after the other, (S * B, ...), as they were drawn.

        Parameters
        ----------
        decisions : of the batch, from :meth:`decide`; what was not drawn is repeated.
        draws : S options for each instance (:func:`dplearn.estimators.draw`).
        """
        times, copies = draws.log_probs.shape[0], {}
        for name, choice in decisions.items():
            if name in draws.index:
                copies[name] = self.parts[name].tried(choice, draws.index[name].flatten())
            else:
                weights = None if choice.weights is None else choice.weights.repeat(times, 1)
                copies[name] = Choice(choice.index.repeat(times), weights)
        return copies

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor,
        summary: Tensor | None = None,
        keep_last: int | Tensor = 0,
        task: Tensor | None = None,
        decisions: dict[str, Choice] | None = None,
        sampling: bool | None = None,
    ) -> PromptedInput:
        """Insert the prompt into a batch of embedded inputs.

        Parameters
        ----------
        inputs : (B, T, d) embedded input.
        mask : (B, T), 1 = real.
        summary : (B, d), what instance-level decisions look at; required where ``needs_summary``.
        keep_last : how many last real tokens stay last (1 keeps an end-of-sequence token last); int or (B,).
        task : (B,) task numbers; required where ``needs_task``.
        decisions : choices made before (see :meth:`decide`), instead of new ones.
        sampling : True does what training does, False exactly what evaluation does (best options, rows that no
            instance uses are dropped, no cost on length), whatever the mode; None follows it.
        """
        sampling = self.training if sampling is None else sampling
        if decisions is None:
            decisions = self.decide(inputs if summary is None else summary, task, sampling)
        moves, placing = None, decisions
        if torch.is_grad_enabled() and decisions["position"].weights is not None and self.in_position_space:
            moves = self._moves(mask, keep_last, decisions)
            placing = decisions | {"position": Choice(decisions["position"].index)}
        placed = self._place(inputs, mask, keep_last, placing, sampling)
        if dropped := self.length - placed.prompt_positions.shape[1]:  # by a fixed size
            placed = placed._replace(prompt_positions=pad(placed.prompt_positions, (0, dropped), value=-1))
        penalty, deeper = self.penalty(decisions, sampling), self.deeper(decisions)
        deeper = None if deeper is None else deeper.to(inputs)
        return PromptedInput(
            *placed, decisions, penalty, moves, deeper, isinstance(self.size, LearnedDecision)
        )

    def penalty(self, decisions: dict[str, Choice], sampling: bool | None = None) -> Tensor | None:
        """The cost on length, while training (or ``sampling``) and where a size is learned and costs something."""
        sampling = self.training if sampling is None else sampling
        if not (self.size_cost and sampling) or decisions["size"].logits is None:
            return None
        return self.size_cost * expected_share(decisions["size"])

    def choosers(self) -> dict[str, Chooser]:
        """The choosers of the decisions that pick one option, by name."""
        choosers = {name: getattr(part, "chooser", None) for name, part in self.parts.items()}
        return {name: chooser for name, chooser in choosers.items() if chooser is not None}

    def samples(self) -> list[str]:
        """Names of the decisions whose estimator tries several options and compares their losses."""
        return [
            name for name, chooser in self.choosers().items() if ESTIMATORS[chooser.estimator].compares_losses
        ]

    @property
    def generator(self) -> torch.Generator | None:
        """The source of randomness of the decisions; None is torch's global one."""
        return next((chooser.generator for chooser in self.choosers().values()), None)

    @property
    def in_position_space(self) -> bool:
        """Whether the position's gradient is estimated in the backbone's position information."""
        if not isinstance(self.position, LearnedDecision):
            return False
        return ESTIMATORS[self.position.chooser.estimator].space == "positions"

    def _moves(self, mask: Tensor, keep_last: Tensor | int, decisions: dict[str, Choice]) -> Moves:
        position, length = decisions["position"], self.length
        size: Tensor | None = decisions["size"].index
        if isinstance(self.size, FixedDecision):
            length, size = self.size.option, None
            position = _first(length, self.vectors, position)[1]
        rows = rows_at_every_split(mask, length, position.index, size, keep_last)
        return Moves(learned(position.weights), rows, mask.long().argmax(1, keepdim=True))

    def content(self, decisions: dict[str, Choice]) -> Tensor:
        """The vectors that are inserted: (l, d), or (B, l, d) where they differ between instances, as with a pool."""
        return self._edited(self.vectors if self.depth == 1 else self.vectors.select(-3, 0), decisions)

    def deeper(self, decisions: dict[str, Choice]) -> Tensor | None:
        """The vectors for further layers: (depth - 1, l, d) or (B, depth - 1, l, d), or None."""
        return (
            None if self.depth == 1 else self._edited(self.vectors.narrow(-3, 1, self.depth - 1), decisions)
        )

    def _edited(self, vectors: Tensor, decisions: dict[str, Choice]) -> Tensor:
        for name, part in self.parts.items():
            if hasattr(part, "edit"):
                vectors = part.edit(vectors, decisions[name])
        return vectors

    def every_layer(self, decisions: dict[str, Choice]) -> Tensor:
        """The vectors in use of every layer: (depth, n, d) without a pool, (B, depth, n, d) with one.

        n is l while a size is learned.
        """
        vectors = self.content(decisions).unsqueeze(-3)
        deeper = self.deeper(decisions)
        if deeper is not None:
            vectors = torch.cat([vectors, deeper], -3)
        return vectors[..., : self.most, :]

    def _place(
        self,
        inputs: Tensor,
        mask: Tensor,
        keep_last: Tensor | int,
        decisions: dict[str, Choice],
        sampling: bool,
    ) -> Inserted:
        vectors = self.content(decisions).to(inputs)
        position, size = decisions["position"], decisions["size"]
        if isinstance(self.size, FixedDecision):
            if self.size.option < self.length:
                vectors, position = _first(self.size.option, vectors, position)
            sizes = {}
        else:
            sizes = {"size": size.index}
        if torch.is_grad_enabled() and not (position.weights is None and size.weights is None):
            weights = {"weights": position.weights, "size_weights": size.weights}
            given = sizes if size.weights is None else {}
            if position.weights is None:
                given = given | {"split": position.index}
            return insert_weighted(vectors, inputs, mask, **weights, **given, keep_last=keep_last)
        placed = insert(vectors, inputs, mask, position.index, **sizes, keep_last=keep_last)
        if sizes and not sampling and not torch.compiler.is_compiling():
            return _shrink(placed, inputs.shape[1] + int(size.index.max()))
        return placed


def _first(size: int, vectors: Tensor, position: Choice) -> tuple[Tensor, Choice]:
    """The first ``size`` vectors, and the splits that are left for them: all k >= size are the prefix."""
    weights = position.weights
    if weights is not None:
        weights = torch.cat([weights[:, :size], weights[:, size:].sum(1, keepdim=True)], 1)
    return vectors[..., :size, :], Choice(position.index.clamp(max=size), weights, position.logits)


def _shrink(placed: Inserted, rows: int) -> Inserted:
    """Without the last rows, which hold vectors that no instance uses. (Looks at a value: evaluation only.)"""
    return placed._replace(embeds=placed.embeds[:, :rows], mask=placed.mask[:, :rows])
