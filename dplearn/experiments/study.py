"""A study is data: a small TOML file says what is compared with what, in which budget, with which seeds and margins.

The files are those of the folder ``studies``. :func:`read` checks one; the rest of the package asks a
:class:`~dplearn.experiments.parts.Study` which runs it has (:mod:`dplearn.experiments.jobs`) and what is compared
(:mod:`dplearn.experiments.tables`).

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
- ``[[method]]``: ``name``, ``kind`` ("prompt"; on images what is trained is named, or a prompt by its options),
  ``prompt`` and ``settings`` of its own, ``each`` (options whose values are crossed, one
  method for each; the name has them in braces, and ``each.named`` is for the name alone), ``grid``, and where it runs
  (``tasks``, ``conditions``, ``backbones``, patterns as of files).

A method has a ``kind`` (``KINDS``); without one it is a prompt. Methods of others have a table instead of ``prompt``
(:mod:`dplearn.experiments.rivals` lists types and options): of kind "peft" those of the library of that name, of kind
"rival" those on our own parts:

    [[method]]
    name = "LoRA"
    kind = "peft"
    peft = { type = "lora", r = 8, target_modules = "all-linear" }
    settings.optimizer = "adam"
    grid = "small rates"

    [[method]]
    name = "SMoP"
    kind = "rival"
    rival = { type = "SMoP" }

``[settings]`` as of the authors' protocol are 32 examples a step, the validation split scored every 500 steps, without
and with the noise of sampled decisions, and the weights of the best score reported (the scores of all evaluations are
in the row, so both prices can be told: :func:`dplearn.experiments.tables.prices`):

    batch_size = 8
    accumulate = 4
    evaluate_every = 500
    noisy_evaluation = true
    keep = "best"

A study that was recorded before these rules says so in ``exempt``.

A study can be told at several scales: ``[scale.full]`` has entries of the same names, which stand in the place of those
at the top (tables are merged, lists replaced). ``read("t5", "full")`` is the study "t5-full", with runs and a record of
its own. What a scale is for, and what it wants: its ``about``, one sentence.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dplearn.checks import Check, Flag, Number, Whole, is_number, is_whole, shown
from dplearn.config import OPTIONS
from dplearn.experiments import rivals
from dplearn.experiments.parts import Choice, Condition, Margins, Method, Study, expanded
from dplearn.experiments.study_checks import check, known

FOLDER = Path(__file__).parent / "studies"
# What a method can be. A "prompt" is described by its options, an image or image-text method by its name there;
# "best of" is no run of its own: the method of a list that does best on validation.
KINDS = (
    "prompt", "no prompt", "full fine-tuning", "majority", "bag of words", "MiniLM probe", "state probe",
    "images", "image-text", "best of", *rivals.RIVALS,
)  # fmt: skip


def names() -> tuple[str, ...]:
    """The studies that there are.

    >>> "position" in names()
    True
    """
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read(name: str | Path, scale: str | None = None) -> Study:
    """The study of that name, or that of a file of one's own (a path that ends in .toml).

    scale : one of its scales; None: what the file has at its top.

    Raises
    ------
    ValueError : there is none, or its file says something that is not understood; the message says where.
    """
    path = Path(name) if str(name).endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        if path.parent != FOLDER:
            raise ValueError(f"study={str(name)!r}, expected the path of a .toml file: there is no such file")
        raise ValueError(
            f"study={str(name)!r} is unknown, expected one of {list(names())} or the path of a .toml file"
        )
    text = path.read_text(encoding="utf8")
    try:
        entries = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name} is no TOML: {error}") from None
    scales = entries.pop("scale", {})
    stem, source = path.stem, str(name)
    if scale is not None:
        entries = _scaled(stem, entries, scales, scale)
        stem, source = f"{stem}-{scale}", f"{source} --scale {scale}"
    study = replace(_study(stem, entries, text), source=source, scales=tuple(scales))
    check(study)
    return study


def _scaled(name: str, entries: Mapping, scales: Mapping, scale: str) -> dict:
    """The entries of a study at one of its scales."""
    if scale not in scales:
        raise ValueError(
            f"{name}: scale={scale!r}, expected one of {sorted(scales)}"
            if scales
            else f"{name}: scale={scale!r}, expected none: the study has no other scale"
        )
    return _merged(entries, scales[scale])


def _merged(entries: Mapping, others: Mapping) -> dict:
    """Entries with others in their place; tables are merged, lists replaced.

    >>> _merged({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}, "d": [2]})
    {'a': {'b': 1, 'c': 3}, 'd': [2]}
    """
    tables = {
        key: _merged(entries[key], value) for key, value in others.items()
        if isinstance(value, Mapping) and isinstance(entries.get(key), Mapping)
    }  # fmt: skip
    return {**entries, **others, **tables}


# What an entry has to be: names, seeds, plain values, tables. A string is a list of letters to Python, and a letter may
# be a pattern: `tasks = "world/*"` would mean every task.
NAMES = ("backbones", "tasks", "splits", "conditions", "of")
WORDS = ("title", "about", "baseline", "cue", "exempt", "by")
VALUES: dict[str, Check] = {
    "max_length": Whole(), "headroom": Flag(), "widen": Whole(0), "margin": Number(positive=False),
    "moved": Number(positive=False), "by_cost": Flag(),
}  # fmt: skip
TABLES = ("settings", "prompt", "choice", "report", "grid", "looks", "verdict")
LISTS = ("condition", "method")
PLAIN = ("title", "about", "baseline", "cue", "max_length", "headroom", "looks", "exempt")
TOP = (
    "title", "about", "backbones", "tasks", "splits", "baseline", "comparisons", "cue", "max_length", "exempt",
    "settings", "prompt", "choice", "report", "grid", "headroom", "looks", "verdict", "condition", "method",
)  # fmt: skip


def _check_kinds(where: str, entries: Mapping) -> None:
    """Raise ValueError where an entry is of another kind than its name wants; a choice may have empty lists."""
    for key, value in entries.items():
        expected = None
        if value == [] and where.endswith(": choice"):
            continue
        if key in NAMES and not _differ(value, lambda name: isinstance(name, str)):
            expected = "a list of names that differ"
        elif key == "seeds" and not _differ(value, lambda seed: is_whole(seed, 0)):
            expected = "a list of integers of at least 0 that differ"
        elif key in WORDS and not isinstance(value, str):
            expected = "a string"
        elif key in TABLES and not isinstance(value, Mapping):
            expected = f"a table, [{key}]"
        elif key in LISTS and not (
            isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value)
        ):
            expected = f"one or more tables, each [[{key}]]"
        elif key == "comparisons" and not _are_pairs(value):
            expected = 'a list of pairs such as ["baseline", "method"]'
        if expected:
            raise ValueError(f"{where}: {key}={shown(value)}, expected {expected}")
        if key in VALUES:
            try:
                VALUES[key](key, value)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None


def _differ(values, fits: Callable) -> bool:
    """Whether this is a list of one or more such values, all different."""
    good = isinstance(values, list) and bool(values) and all(map(fits, values))
    return good and len(set(values)) == len(values)


def _are_pairs(values) -> bool:
    return isinstance(values, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
        for pair in values
    )


def _study(name: str, entries: dict, text: str) -> Study:
    """A study from the entries of its file."""
    known(name, entries, TOP)
    for key in ("title", "backbones", "tasks", "report", "method"):
        if key not in entries:
            raise ValueError(f"{name}: {key!r} is missing")
    _check_kinds(name, entries)
    given = {key: entries[key] for key in PLAIN if key in entries}
    given |= {key: tuple(entries[key]) for key in ("backbones", "tasks", "splits") if key in entries}
    for key in ("settings", "prompt"):
        given[key] = _options(name, key, entries.get(key, {}))
    for grid, axes in entries.get("grid", {}).items():
        if not isinstance(axes, Mapping):
            raise ValueError(f"{name}: grid.{grid}={shown(axes)}, expected a table, [grid.{grid}]")
    given["grid"] = {
        grid: _axes(f"{name}: grid.{grid}", axes) for grid, axes in entries.get("grid", {}).items()
    }
    given["choice"] = _record(f"{name}: choice", Choice, entries.get("choice", {}))
    given["verdict"] = _record(f"{name}: verdict", Margins, entries.get("verdict", {}))
    known(f"{name}: report", entries["report"], ("seeds",))
    if "seeds" not in entries["report"]:
        raise ValueError(f"{name}: report: 'seeds' is missing")
    _check_kinds(f"{name}: report", entries["report"])
    given["seeds"] = tuple(entries["report"]["seeds"])
    given["comparisons"] = tuple(tuple(pair) for pair in entries.get("comparisons", ()))
    conditions = [
        one for entry in entries.get("condition", [{}]) for one in expanded(_condition(name, entry), {})
    ]
    methods = [_method(name, entry) for entry in entries["method"]]
    return Study(name, **given, conditions=tuple(conditions), methods=tuple(methods), text=text)


def _record(where: str, kind: type, entries: Mapping):
    known(where, entries, [each.name for each in fields(kind)])
    _check_kinds(where, entries)
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()})


def _settings_fields() -> tuple[str, ...]:
    from dplearn.experiments.fitting import Settings

    return tuple(each.name for each in fields(Settings))


def _options(where: str, kind: str, options: Mapping) -> dict:
    """Options of a prompt, or settings of a run, by known names."""
    known(f"{where}: {kind}", options, tuple(OPTIONS) if kind == "prompt" else _settings_fields())
    return dict(options)


def _axes(where: str, axes: Mapping) -> dict[str, list]:
    known(where, axes, (*_settings_fields(), *OPTIONS))
    for option, values in axes.items():
        if not isinstance(values, list) or not values or len(set(values)) < len(values):
            raise ValueError(f"{where}: {option}={shown(values)}, expected a list of values that differ")
        if all(map(is_number, values)) and sorted(values) != values:
            raise ValueError(f"{where}: {option}={shown(values)}, expected numbers from small to large")
    return dict(axes)


def _with_each(where: str, entry: Mapping) -> dict[str, dict]:
    """``prompt`` and ``settings`` of an entry, with the options of its ``each`` sorted into the two."""
    options = {kind: _options(where, kind, entry.get(kind, {})) for kind in ("prompt", "settings")}
    for option, values in entry.get("each", {}).items():
        kind = "prompt" if option in OPTIONS or option == "named" else "settings"
        if kind == "settings" and option not in _settings_fields():
            raise ValueError(
                f"{where}: each.{option} is neither an option of a prompt nor a setting of a run"
            )
        short = option == "position" and (values == "all" or _is_evenly(values))
        if not short and (not isinstance(values, list) or not values):
            others = ", 'all', or {evenly = n} with n of at least 2" if option == "position" else ""
            raise ValueError(f"{where}: each.{option}={shown(values)}, expected a list of values{others}")
        options[kind].setdefault("each", {})[option] = values
    return options


def _is_evenly(values) -> bool:
    """Whether this is ``{evenly = n}``: n positions, both ends among them."""
    return isinstance(values, Mapping) and set(values) == {"evenly"} and is_whole(values["evenly"], 2)


def _condition(study: str, entry: Mapping) -> Condition:
    where = f"{study}: condition {entry.get('name', '')!r}"
    known(where, entry, (*(each.name for each in fields(Condition)), "each"))
    _check_kinds(where, entry)
    given: dict[str, Any] = {key: tuple(entry[key]) for key in ("tasks", "backbones") if key in entry}
    grid = {name: _axes(f"{where}: grid.{name}", axes) for name, axes in entry.get("grid", {}).items()}
    given |= {key: entry[key] for key in ("cue",) if key in entry}
    given |= _with_each(where, entry)
    return Condition(entry.get("name", ""), grid=grid, **given)


def _method(study: str, entry: Mapping) -> Method:
    where = f"{study}: method {entry.get('name', '')!r}"
    known(where, entry, (*(each.name for each in fields(Method)), "each"))
    _check_kinds(where, {key: value for key, value in entry.items() if key != "grid"})
    if not isinstance(entry.get("grid", ""), str):
        raise ValueError(f"{where}: grid={shown(entry['grid'])}, expected the name of a grid, or 'none'")
    if not isinstance(entry.get("name"), str) or not entry["name"] or "/" in entry["name"]:
        raise ValueError(f"{where}: expected a name, without '/'")
    kind = entry.get("kind", "prompt")
    if kind not in KINDS:
        raise ValueError(f"{where}: kind={kind!r}, expected one of {list(KINDS)}")
    if (kind == "best of") != ("of" in entry):
        raise ValueError(f"{where}: expected 'of', a list of methods, with kind 'best of' and with no other")
    _check_tables(where, kind, entry)
    plain = ("name", "kind", "control", "grid", *rivals.RIVALS)
    given: dict[str, Any] = {key: entry[key] for key in plain if key in entry}
    given |= {
        key: tuple(entry[key]) for key in ("seeds", "of", "tasks", "conditions", "backbones") if key in entry
    }
    return Method(**given | _with_each(where, entry))


def _check_tables(where: str, kind: str, entry: Mapping) -> None:
    """A rival has its table, and nobody else has one."""
    for name in rivals.RIVALS:
        if (name == kind) != isinstance(entry.get(name), dict) or (name != kind and name in entry):
            raise ValueError(
                f"{where}: {name}={shown(entry.get(name))}, expected a table with its type for a method of kind "
                f"{name!r}, and none for others"
            )
