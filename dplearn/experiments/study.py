"""A study is data: a small TOML file says what is compared with what, in which budget, with which seeds and margins.

The files are those of the folder ``studies``. :func:`read` checks one and expands it; the rest of the package asks a
:class:`Study` which runs it has (:mod:`dplearn.experiments.jobs`) and what is compared (:mod:`.tables`).

A file has, in this order of reading:

- ``title``, ``backbones``, ``tasks``; ``splits`` (reported ones; default test and test_wordings where there are such),
  ``baseline`` (every method is compared with it) and ``comparisons`` (further pairs, baseline first), ``cue`` (what a
  model reads before the answer word; of a condition, too), ``max_length`` (most tokens of an input), ``headroom``
  (whether reports of prompts measure what other positions give), ``looks`` (how closely runs are looked at:
  :class:`dplearn.experiments.watching.Looks`);
- ``[settings]`` of all runs (:class:`dplearn.experiments.fitting.Settings`), ``[prompt]`` of all prompts
  (:class:`dplearn.PromptConfig`);
- ``[choice]`` and ``[report]`` with their ``seeds``; ``[grid.learned]`` and ``[grid.fixed]`` with the values that are
  tried (of settings and prompt options), ``[verdict]`` with its margins;
- ``[[condition]]``: every method runs in each of them, and is compared within it alone;
- ``[[method]]``: ``name``, ``prompt`` and ``settings`` of its own, ``each`` (options whose values are crossed, one
  method for each; the name has them in braces), ``grid``, and where it runs (``tasks``, ``conditions``, ``backbones``,
  patterns as of files).

A study that was recorded before these rules says so in ``exempt``.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

from dplearn.checks import is_number, is_whole, shown
from dplearn.config import OPTIONS, PromptConfig
from dplearn.controllers import LEARNED

FOLDER = Path(__file__).parent / "studies"
# What a method can be. A "prompt" is described by its options, an image or image-text method by its name there;
# "best of" is no run of its own: the method of a list that does best on validation.
KINDS = (
    "prompt", "no prompt", "full fine-tuning", "bag of words", "MiniLM probe", "images", "image-text", "best of",
)  # fmt: skip
LEAST_CHOICE_SEEDS = 3
SPLITS = ("test", "test_wordings")
ALL = ("*",)


@dataclass(frozen=True)
class Method:
    """One line of a table: what is trained, with which options; where it runs.

    grid : name of the grid whose points it tries; None: "learned" where it learns a decision, else "fixed"; "none".
    seeds : of its reports; None: those of the study.
    of : patterns of method names, for the kind "best of".
    """

    name: str
    kind: str = "prompt"
    prompt: Mapping = field(default_factory=dict)
    settings: Mapping = field(default_factory=dict)
    control: str | None = None
    grid: str | None = None
    seeds: tuple[int, ...] | None = None
    of: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ALL
    conditions: tuple[str, ...] = ALL
    backbones: tuple[str, ...] = ALL


@dataclass(frozen=True)
class Condition:
    """A part of a study in which methods are compared: its options, and where they are others, its grids and tasks."""

    name: str = ""
    prompt: Mapping = field(default_factory=dict)
    settings: Mapping = field(default_factory=dict)
    grid: Mapping = field(default_factory=dict)
    cue: str | None = None
    tasks: tuple[str, ...] = ALL
    backbones: tuple[str, ...] = ALL


@dataclass(frozen=True)
class Choice:
    """How values are chosen: over these seeds, on these tasks and conditions (those of the report, where not named).

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
    distribution moved by less than ``moved`` (total variation) was not learned."""

    margin: float = 0.01
    moved: float = 0.1


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
    settings: Mapping = field(default_factory=dict)
    prompt: Mapping = field(default_factory=dict)
    grid: Mapping = field(default_factory=dict)
    choice: Choice = Choice()
    seeds: tuple[int, ...] = ()
    splits: tuple[str, ...] = SPLITS
    verdict: Margins = Margins()
    cue: str | None = None
    max_length: int | None = None
    headroom: bool = False
    looks: Mapping = field(default_factory=dict)
    exempt: str | None = None
    text: str = ""

    def cells(self) -> Iterator[Cell]:
        """The tables of the study, in order."""
        for backbone in self.backbones:
            for condition in self.conditions:
                if not _among(backbone, condition.backbones):
                    continue
                yield from (
                    Cell(backbone, condition, task) for task in self.tasks if _among(task, condition.tasks)
                )

    def methods_in(self, cell: Cell) -> list[Method]:
        """The methods that run in a cell, each with the options that it has there."""
        found: dict[str, Method] = {}
        for method in self.methods:
            places = {cell.task: method.tasks, cell.backbone: method.backbones}
            if not all(
                _among(*place) for place in (*places.items(), (cell.condition.name, method.conditions))
            ):
                continue
            for one in _expanded(method, self.prompt | cell.condition.prompt | method.prompt):
                if one.name in found:
                    raise ValueError(
                        f"{self.name}: two methods are called {one.name!r} in {cell.title}, expected names that differ"
                    )
                found[one.name] = one
        return list(found.values())

    def options(self, cell: Cell, method: Method) -> tuple[dict, dict]:
        """The prompt options and the settings of a method in a cell, before anything is chosen."""
        prompt = self.prompt | cell.condition.prompt | method.prompt
        settings = self.settings | cell.condition.settings | method.settings
        steps = settings.get("steps")
        if isinstance(steps, str):  # "4x": four times what the others have
            usual = (self.settings | cell.condition.settings)["steps"]
            settings["steps"] = round(float(steps.removesuffix("x")) * usual)
        if method.kind == "prompt":
            prompt["position"] = split_of(prompt.get("position", "prefix"), prompt.get("length", 20))
        return dict(prompt), dict(settings)

    def grid_of(self, cell: Cell, method: Method) -> dict[str, list]:
        """The values that a method tries, by the name of the option: the axes of its grid."""
        name = method.grid
        if name is None:
            usual = "learned" if self.learns(cell, method) else "fixed"
            name = usual if method.kind in ("prompt", "full fine-tuning", "images", "image-text") else "none"
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
        if method.kind != "prompt":
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
            if not _among(name, listed[baseline]) and not _among(baseline, listed[name])
        ]  # fmt: skip


def _among(name: str, patterns: Sequence[str]) -> bool:
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


def _expanded(method: Method, prompt: Mapping) -> Iterator[Method]:
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
        one = {where: dict(options[where]) for where in options}
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

    return name.format_map(Words({option: Word(value) for option, value in values.items()}))


# --- from a file -----------------------------------------------------------------------------------------------------


def names() -> tuple[str, ...]:
    """The studies that there are.

    >>> "position" in names()
    True
    """
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read(name: str | Path) -> Study:
    """The study of that name, or that of a file of one's own (a path that ends in .toml).

    Raises
    ------
    ValueError : there is none, or its file says something that is not understood; the message says where.
    """
    path = Path(name) if str(name).endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ValueError(
            f"study={str(name)!r} is unknown, expected one of {list(names())} or the path of a .toml file"
        )
    text = path.read_text(encoding="utf8")
    try:
        entries = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name} is no TOML: {error}") from None
    study = _study(path.stem, entries, text)
    _check(study)
    return study


PLAIN = ("title", "baseline", "cue", "max_length", "headroom", "looks", "exempt")
TOP = (
    "title", "backbones", "tasks", "splits", "baseline", "comparisons", "cue", "max_length", "exempt", "settings",
    "prompt", "choice", "report", "grid", "headroom", "looks", "verdict", "condition", "method",
)  # fmt: skip


def _known(where: str, entries: Mapping, expected: Sequence[str]) -> None:
    for key in entries:
        if key not in expected:
            raise ValueError(f"{where}: {key!r} is unknown, expected some of {list(expected)}")


def _study(name: str, entries: dict, text: str) -> Study:
    """A study from the entries of its file."""
    _known(name, entries, TOP)
    for key in ("title", "backbones", "tasks", "report", "method"):
        if key not in entries:
            raise ValueError(f"{name}: {key!r} is missing")
    given = {key: entries[key] for key in PLAIN if key in entries}
    given |= {key: tuple(entries[key]) for key in ("backbones", "tasks", "splits") if key in entries}
    for key in ("settings", "prompt"):
        given[key] = _options(name, key, entries.get(key, {}))
    given["grid"] = {
        grid: _axes(f"{name}: grid.{grid}", axes) for grid, axes in entries.get("grid", {}).items()
    }
    given["choice"] = _record(f"{name}: choice", Choice, entries.get("choice", {}))
    given["verdict"] = _record(f"{name}: verdict", Margins, entries.get("verdict", {}))
    _known(f"{name}: report", entries["report"], ("seeds",))
    given["seeds"] = tuple(entries["report"]["seeds"])
    given["comparisons"] = tuple(tuple(pair) for pair in entries.get("comparisons", ()))
    conditions = [
        one for entry in entries.get("condition", [{}]) for one in _expanded(_condition(name, entry), {})
    ]
    methods = [_method(name, entry) for entry in entries["method"]]
    return Study(name, **given, conditions=tuple(conditions), methods=tuple(methods), text=text)


def _record(where: str, kind: type, entries: Mapping):
    _known(where, entries, [each.name for each in fields(kind)])
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()})


def _settings_fields() -> tuple[str, ...]:
    from dplearn.experiments.fitting import Settings

    return tuple(each.name for each in fields(Settings))


def _options(where: str, kind: str, options: Mapping) -> dict:
    """Options of a prompt, or settings of a run, by known names."""
    _known(f"{where}: {kind}", options, tuple(OPTIONS) if kind == "prompt" else _settings_fields())
    return dict(options)


def _axes(where: str, axes: Mapping) -> dict[str, list]:
    _known(where, axes, (*_settings_fields(), *OPTIONS))
    for option, values in axes.items():
        if not isinstance(values, list) or not values or len(set(values)) < len(values):
            raise ValueError(f"{where}: {option}={shown(values)}, expected a list of values that differ")
        if all(map(is_number, values)) and sorted(values) != values:
            raise ValueError(f"{where}: {option}={shown(values)}, expected numbers from small to large")
    return dict(axes)


def _with_each(where: str, entry: Mapping) -> dict[str, dict]:
    """``prompt`` and ``settings`` of an entry, with the options of its ``each`` sorted into the two."""
    found = {kind: _options(where, kind, entry.get(kind, {})) for kind in ("prompt", "settings")}
    for option, values in entry.get("each", {}).items():
        kind = "prompt" if option in OPTIONS or option == "named" else "settings"
        if kind == "settings" and option not in _settings_fields():
            raise ValueError(
                f"{where}: each.{option} is neither an option of a prompt nor a setting of a run"
            )
        short = option == "position" and (values == "all" or set(values) == {"evenly"})
        if not short and (not isinstance(values, list) or not values):
            raise ValueError(f"{where}: each.{option}={shown(values)}, expected a list of values")
        found[kind].setdefault("each", {})[option] = values
    return found


def _condition(study: str, entry: Mapping) -> Condition:
    where = f"{study}: condition {entry.get('name', '')!r}"
    _known(where, entry, (*(each.name for each in fields(Condition)), "each"))
    given = {key: tuple(entry[key]) for key in ("tasks", "backbones") if key in entry}
    grid = {name: _axes(f"{where}: grid.{name}", axes) for name, axes in entry.get("grid", {}).items()}
    given |= {key: entry[key] for key in ("cue",) if key in entry}
    return Condition(entry.get("name", ""), **_with_each(where, entry), grid=grid, **given)


def _method(study: str, entry: Mapping) -> Method:
    where = f"{study}: method {entry.get('name', '')!r}"
    _known(where, entry, (*(each.name for each in fields(Method)), "each"))
    if not isinstance(entry.get("name"), str) or "/" in entry["name"]:
        raise ValueError(f"{where}: expected a name without '/'")
    kind = entry.get("kind", "prompt")
    if kind not in KINDS:
        raise ValueError(f"{where}: kind={kind!r}, expected one of {list(KINDS)}")
    if (kind == "best of") != ("of" in entry):
        raise ValueError(f"{where}: expected 'of', a list of methods, with kind 'best of' and with no other")
    given = {key: entry[key] for key in ("name", "kind", "control", "grid") if key in entry}
    given |= {
        key: tuple(entry[key]) for key in ("seeds", "of", "tasks", "conditions", "backbones") if key in entry
    }
    return Method(**given, **_with_each(where, entry))


# --- what a study has to keep to -------------------------------------------------------------------------------------


def _check(study: Study) -> None:
    """Raise ValueError where a study breaks the protocol, or asks for what no prompt has."""
    from dplearn.experiments.watching import Looks

    _known(f"{study.name}: looks", study.looks, [each.name for each in fields(Looks)])
    both = set(study.seeds) & set(study.choice.seeds)
    if both or not study.seeds or not all(is_whole(s, 0) for s in (*study.seeds, *study.choice.seeds)):
        raise ValueError(
            f"{study.name}: report seeds {shown(study.seeds)} and choice seeds {shown(study.choice.seeds)}, expected "
            "integers of at least 0, and no seed in both"
        )
    if study.choice.by not in ("headline", "cross_entropy"):
        raise ValueError(
            f"{study.name}: choice.by={study.choice.by!r}, expected 'headline' or 'cross_entropy'"
        )
    if study.grid and not study.exempt and len(set(study.choice.seeds)) < LEAST_CHOICE_SEEDS:
        raise ValueError(
            f"{study.name}: choice.seeds={shown(study.choice.seeds)}, expected at least {LEAST_CHOICE_SEEDS}"
        )
    seen = set()
    for cell in study.cells():
        methods = study.methods_in(cell)
        seen |= {method.name for method in methods}
        _check_tries(study, cell, methods)
        for method in methods:
            if method.kind == "prompt":
                _check_prompt(study, cell, method)
    wanted = ({study.baseline} - {None}) | {baseline for baseline, _ in study.comparisons}
    if missing := wanted - seen:
        raise ValueError(
            f"{study.name}: {sorted(missing)} is compared with and is no method, of {sorted(seen)}"
        )


def _check_tries(study: Study, cell: Cell, methods: Sequence[Method]) -> None:
    """Nobody may win by having had more tries."""
    tries = {}
    for method in methods:
        if axes := study.grid_of(cell, method):
            count = 1
            for values in axes.values():
                count *= len(values)
            tries[method.name] = count
    if len(set(tries.values())) > 1 and not study.exempt:
        raise ValueError(
            f"{study.name}: methods of {cell.title} try {shown(tries)} values, expected equally many for all that try"
        )


def _check_prompt(study: Study, cell: Cell, method: Method) -> None:
    """The prompt can be made, with every value of its grid."""
    prompt = study.options(cell, method)[0]
    axes = study.grid_of(cell, method)
    for option, values in ({"length": [prompt.get("length", 20)]} | axes).items():
        for value in values:
            try:
                PromptConfig(**prompt | ({option: value} if option in OPTIONS else {}))
            except ValueError as error:
                raise ValueError(f"{study.name}: method {method.name!r} in {cell.title}: {error}") from None
