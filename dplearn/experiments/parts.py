"""What a study is made of: conditions, methods, cells (one table each), and which methods run with which options where.

:mod:`dplearn.experiments.study` reads it from a file and says what the words of a file mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from dplearn.checks import is_number
from dplearn.controllers import LEARNED
from dplearn.experiments import rivals

SPLITS = ("test", "test_wordings")
ON_IMAGES = ("images", "image-text")
WITHOUT_PROMPT = ("linear probe", "full fine-tuning", "zero-shot")  # methods on images, by name
ALL = ("*",)
TRAINED = ("prompt", "full fine-tuning", *ON_IMAGES, *rivals.RIVALS)  # kinds that have a grid


@dataclass(frozen=True)
class Method:
    """One line of a table: what is trained, with which options; where it runs.

    grid : name of the grid whose points it tries; None: "learned" where it learns a decision, else "fixed"; "none".
    seeds : of its reports; None: those of the study.
    of : patterns of method names, for the kind "best of".
    peft : the table of a method of that kind (:mod:`dplearn.experiments.rivals`).
    rival : the same.
    """

    name: str
    kind: str = "prompt"
    prompt: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    control: str | None = None
    grid: str | None = None
    seeds: tuple[int, ...] | None = None
    of: tuple[str, ...] = ()
    peft: dict = field(default_factory=dict)
    rival: dict = field(default_factory=dict)
    tasks: tuple[str, ...] = ALL
    conditions: tuple[str, ...] = ALL
    backbones: tuple[str, ...] = ALL

    def runs_in(self, cell: Cell) -> bool:
        """Whether the method is one of a cell's."""
        places = (
            (cell.task, self.tasks), (cell.backbone, self.backbones), (cell.condition.name, self.conditions)
        )  # fmt: skip
        return all(among(*place) for place in places)


@dataclass(frozen=True)
class Condition:
    """A part of a study in which methods are compared: its options, and where they are others, its grids and tasks."""

    name: str = ""
    prompt: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    grid: dict = field(default_factory=dict)
    cue: str | None = None
    tasks: tuple[str, ...] = ALL
    backbones: tuple[str, ...] = ALL


@dataclass(frozen=True)
class Choice:
    """How values are chosen: over these seeds, on these tasks and conditions (those of the report, where none is named
    that the condition has).

    by : "headline" or "cross_entropy", of the validation split.
    widen : how many values are added to an axis at whose edge the best one lies.
    """

    seeds: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    by: str = "headline"
    widen: int = 0


@dataclass(frozen=True)
class Margins:
    """What is fixed before a verdict: differences of the headline up to ``margin`` do not matter, and a decision whose
    distribution moved by less than ``moved`` (total variation) was not learned; unless ``by_cost`` is set, it started
    the same for all inputs, and dealing it to other inputs costs (95 % interval over the seeds above 0)."""

    margin: float = 0.01
    moved: float = 0.1
    by_cost: bool = False


@dataclass(frozen=True)
class Cell:
    """Where methods are compared: one table."""

    backbone: str
    condition: Condition
    task: str

    @property
    def title(self) -> str:
        """In words, for a heading."""
        return ", ".join(part for part in (self.task, self.condition.name, self.backbone) if part)

    def holds(self, row: Mapping) -> bool:
        """Whether a run belongs to this table; older records do not say which condition or backbone a run had."""
        return (
            row["task"] == self.task
            and row.get("condition", self.condition.name) == self.condition.name
            and row.get("backbone") in (None, self.backbone)
        )


@dataclass(frozen=True)
class Study:
    """What a file of the folder ``studies`` says; see the module."""

    name: str
    title: str
    backbones: tuple[str, ...]
    tasks: tuple[str, ...]
    methods: tuple[Method, ...]
    baseline: str | None = None
    comparisons: tuple[tuple[str, str], ...] = ()
    conditions: tuple[Condition, ...] = (Condition(),)
    settings: dict = field(default_factory=dict)
    prompt: dict = field(default_factory=dict)
    grid: dict = field(default_factory=dict)
    choice: Choice = Choice()
    seeds: tuple[int, ...] = ()
    splits: tuple[str, ...] = SPLITS
    verdict: Margins = Margins()
    cue: str | None = None
    max_length: int | None = None
    headroom: bool = False
    looks: Mapping = field(default_factory=dict)
    exempt: str | None = None
    about: str = ""
    text: str = ""
    source: str = ""
    scales: tuple[str, ...] = ()

    def cells(self) -> Iterator[Cell]:
        """The tables of the study, in order."""
        for backbone in self.backbones:
            for condition in self.conditions:
                if not among(backbone, condition.backbones):
                    continue
                yield from (
                    Cell(backbone, condition, task) for task in self.tasks if among(task, condition.tasks)
                )

    def methods_in(self, cell: Cell) -> list[Method]:
        """The methods that run in a cell, each with the options that it has there."""
        methods: dict[str, Method] = {}
        for method in self.methods:
            if not method.runs_in(cell):
                continue
            for one in expanded(method, self.prompt | cell.condition.prompt | method.prompt):
                if one.name in methods:
                    raise ValueError(
                        f"{self.name}: two methods are called {one.name!r} in {cell.title}, expected names that differ"
                    )
                methods[one.name] = one
        return list(methods.values())

    def options(self, cell: Cell, method: Method) -> tuple[dict, dict]:
        """The prompt options and the settings of a method in a cell, before anything is chosen."""
        prompt = self.prompt | cell.condition.prompt | method.prompt
        settings = self.settings | cell.condition.settings | method.settings
        for options, name, usual in (
            (settings, "steps", self.settings | cell.condition.settings),
            (prompt, "length", self.prompt | cell.condition.prompt),
        ):
            if isinstance(options.get(name), str):  # "4x": four times what the others have
                if name not in usual:
                    raise ValueError(
                        f"{self.name}: method {method.name!r}: {name}={options[name]!r}, expected a number: the study "
                        f"has no {name} for all"
                    )
                options[name] = round(
                    _times(f"{self.name}: method {method.name!r}: {name}", options[name], usual[name])
                )
        if method.kind == "prompt":
            prompt["position"] = split_of(prompt.get("position", "prefix"), prompt.get("length", 20))
        if method.kind == "images" and "position" in prompt and "length" in prompt:
            prompt["position"] = split_of(prompt["position"], prompt["length"])
        if method.kind in ON_IMAGES and method.name in WITHOUT_PROMPT:
            prompt = {}
        return dict(prompt), dict(settings)

    def grid_of(self, cell: Cell, method: Method) -> dict[str, list]:
        """The values that a method tries, by the name of the option: the axes of its grid."""
        name = method.grid
        if name is None:
            usual = "learned" if self.learns(cell, method) else "fixed"
            name = usual if method.kind in TRAINED else "none"
        if name == "none":
            return {}
        grids = self.grid | cell.condition.grid
        if name not in grids:
            if method.grid is None and not grids:
                return {}
            raise ValueError(
                f"{self.name}: method {method.name!r} has no grid {name!r}, expected one of {sorted(grids)}"
            )
        return {option: list(values) for option, values in grids[name].items()}

    def learns(self, cell: Cell, method: Method) -> bool:
        """Whether a method learns a decision: a position, a size or the weights of a pool."""
        if method.kind in rivals.RIVALS:
            return rivals.learns(method.kind, getattr(method, method.kind))
        if method.kind not in ("prompt", *ON_IMAGES):
            return False
        prompt = self.options(cell, method)[0]
        return any(prompt.get(name) in LEARNED for name in ("position", "size", "vector"))

    def pairs(self, cell: Cell) -> list[tuple[str, str]]:
        """(baseline, method) for all comparisons of a cell, the family over which Holm's correction goes.

        The best of a list is not compared with the methods of its list, one of which it is.
        """
        listed = {method.name: method.of for method in self.methods_in(cell)}
        wanted = [(self.baseline, "*"), *self.comparisons]
        pairs = [
            (baseline, name)
            for baseline, pattern in wanted
            for name in listed
            if baseline in listed and baseline != name and fnmatchcase(name, pattern)
        ]
        return [
            (baseline, name) for baseline, name in dict.fromkeys(pairs)
            if not among(name, listed[baseline]) and not among(baseline, listed[name])
        ]  # fmt: skip


def _times(where: str, words: str, usual) -> float:
    """What "4x" means: four times the usual number."""
    try:
        times = float(words.removesuffix("x")) if words.endswith("x") else math.nan
    except ValueError:
        times = math.nan
    if not math.isfinite(times) or not is_number(usual):
        raise ValueError(
            f"{where}={words!r}, expected a number, or how many times that of the study such as '4x'"
        )
    return times * usual


def among(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name fits one of several patterns, as of files."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def split_of(position: str | int, length: int) -> str | int:
    """What a study's word for a position means for a prompt of so many vectors: "surround" is the even split."""
    return length // 2 if position == "surround" else position


def _splits(values, length: int) -> list[int]:
    """The fixed splits that ``each.position`` stands for: "all", or ``{evenly = n}``: n of them, both ends too.

    >>> _splits("all", 2), _splits({"evenly": 3}, 20), _splits({"evenly": 5}, 2)
    ([0, 1, 2], [0, 10, 20], [0, 1, 2])
    """
    if values == "all":
        return list(range(length + 1))
    count = min(values["evenly"], length + 1)
    return sorted({round(i * length / (count - 1)) for i in range(count)})


Entry = TypeVar("Entry", Method, Condition)


def expanded(method: Entry, prompt: Mapping) -> Iterator[Entry]:
    """The methods that one entry stands for: ``each`` (kept in its prompt and settings as ``{"each": ...}``)."""
    each = {}
    for where in ("prompt", "settings"):
        for option, values in getattr(method, where).get("each", {}).items():
            if option == "position" and not isinstance(values, list):
                values = _splits(values, prompt.get("length", 20))
            each[where, option] = values
    options = {
        where: {name: value for name, value in getattr(method, where).items() if name != "each"}
        for where in ("prompt", "settings")
    }
    for values in itertools.product(*each.values()):
        one: dict[str, Any] = {where: dict(options[where]) for where in options}
        for (where, option), value in zip(each, values):
            if option != "named":  # it is in the name alone
                one[where][option] = value
        words = {option: value for (_, option), value in zip(each, values)}
        yield replace(method, name=_named(method.name, words, one["prompt"]), **one)


def _named(name: str, values: Mapping, prompt: Mapping) -> str:
    """A name with values in braces; of a truth value, which of two words: ``{standardize:standardized|raw}``."""

    class Words(dict):
        def __missing__(self, key):
            raise ValueError(
                f"name={name!r} has {{{key}}}, expected some of {list(self)} (what `each` varies)"
            )

    class Word:
        def __init__(self, value):
            self.value = value

        def __format__(self, spec):
            if not spec:
                return str(self.value)
            first, _, second = spec.partition("|")
            return first if self.value else second

    try:
        return name.format_map(Words({option: Word(value) for option, value in values.items()}))
    except ValueError as error:
        if str(error).startswith("name="):
            raise
        raise ValueError(f"name={name!r}: {error}, expected words in braces that `each` varies") from None
