"""What a study has to keep to: the protocol, and options that there are.

The protocol: choice seeds that no report uses, the same number of tries for each method, unless a study says why it is
exempt. The options of every method are tried, so that a wrong one is found before the first run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase

from dplearn.checks import is_whole, shown
from dplearn.config import OPTIONS, PromptConfig
from dplearn.experiments import rivals
from dplearn.experiments.execution import TEXTS
from dplearn.experiments.parts import ON_IMAGES, Cell, Method, Study
from dplearn.tasks import FAMILIES

LEAST_CHOICE_SEEDS = 3


def known(where: str, entries: Mapping, expected: Sequence[str]) -> None:
    """Raise ValueError where an entry has a name that is not expected."""
    for key in entries:
        if key not in expected:
            raise ValueError(f"{where}: {key!r} is unknown, expected some of {list(expected)}")


def check(study: Study) -> None:
    """Raise ValueError where a study breaks the protocol, or asks for what no prompt has."""
    from dplearn.experiments.watching import Looks

    known(f"{study.name}: looks", study.looks, [each.name for each in fields(Looks)])
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
    if not study.choice.seeds and any(method.kind == "best of" for method in study.methods):
        raise ValueError(
            f'{study.name}: choice.seeds=[] and a method "best of", expected choice seeds: they tell what is best on '
            "validation"
        )
    _check_places(study)
    _check_seeds(study)
    _check_comparisons(study)
    seen = set()
    for cell in study.cells():
        methods = study.methods_in(cell)
        seen |= {method.name for method in methods}
        _check_tries(study, cell, methods)
        for method in methods:
            _check_family(study, cell, method)
            if method.kind == "best of":
                _check_best(study, cell, method, methods)
            if method.kind in ("prompt", "full fine-tuning", *rivals.RIVALS):
                _check_settings(study, cell, method)
            if method.kind == "prompt":
                _check_prompt(study, cell, method)
            elif method.kind in ("images", "image-text"):
                _check_on_images(study, cell, method)
            elif method.kind in rivals.RIVALS:
                _check_rival(study, cell, method)
    wanted = {baseline for baseline, _ in study.comparisons}
    wanted |= set() if study.baseline is None else {study.baseline}
    if missing := wanted - seen:
        raise ValueError(
            f"{study.name}: {sorted(missing)} is compared with and is no method, of {sorted(seen)}"
        )


def _check_places(study: Study) -> None:
    """Tables have names that differ, every method runs somewhere, and choices are made on tasks that there are."""
    titles = [cell.title for cell in study.cells()]
    for title in titles:
        if titles.count(title) > 1:  # their runs would be put together
            raise ValueError(
                f"{study.name}: two tables are {title!r}, expected conditions whose names differ"
            )
    for method in study.methods:
        if not any(method.runs_in(cell) for cell in study.cells()):
            raise ValueError(
                f"{study.name}: method {method.name!r} runs in no table, expected tasks, conditions and backbones of "
                "the study"
            )
    for task in study.choice.tasks:
        if task not in study.tasks:
            raise ValueError(f"{study.name}: choice.tasks has {task!r}, expected some of {list(study.tasks)}")


def _check_seeds(study: Study) -> None:
    """A method with report seeds of its own uses none of the choices' seeds."""
    for method in study.methods:
        if both := set(method.seeds or ()) & set(study.choice.seeds):
            raise ValueError(
                f"{study.name}: method {method.name!r}: seeds={shown(method.seeds)}, expected none of the choices, "
                f"which have {sorted(both)}"
            )


def _check_comparisons(study: Study) -> None:
    """A comparison that no table has would be left out without a word."""
    tables = [{method.name for method in study.methods_in(cell)} for cell in study.cells()]
    for baseline, pattern in study.comparisons:
        if not any(baseline in names and _fits_some(pattern, names - {baseline}) for names in tables):
            raise ValueError(
                f"{study.name}: comparisons has {[baseline, pattern]}, expected a baseline and a method (or pattern) "
                f"of one table, of {sorted(set().union(*tables))}"
            )


def _fits_some(pattern: str, names: Iterable[str]) -> bool:
    """Whether a pattern fits one of several names."""
    return any(fnmatchcase(name, pattern) for name in names)


def _check_best(study: Study, cell: Cell, method: Method, methods: Sequence[Method]) -> None:
    """The best of a list is the best of some methods of its table."""
    others = [other.name for other in methods if other.kind != "best of"]
    if not any(_fits_some(pattern, others) for pattern in method.of):
        raise ValueError(
            f"{study.name}: method {method.name!r} in {cell.title}: of={shown(list(method.of))}, expected some of "
            f"{others}"
        )


def _check_family(study: Study, cell: Cell, method: Method) -> None:
    """Methods of kinds for images run on tasks of images, the others on texts."""
    families = {name.partition("/")[0] for name in cell.task.split("+")} & set(FAMILIES)
    wanted = families - set(TEXTS) if method.kind in ON_IMAGES else families & set(TEXTS)
    if method.kind != "best of" and families != wanted:
        expected = (
            "a task of texts for this kind"
            if method.kind in ON_IMAGES
            else f"kind {' or '.join(map(repr, ON_IMAGES))} for a task of images"
        )
        raise ValueError(
            f"{study.name}: method {method.name!r} in {cell.title}: kind={method.kind!r}, expected {expected}"
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


def _check_on_images(study: Study, cell: Cell, method: Method) -> None:
    """The method is a known one or a prompt that can be made, and nothing is said that its runs would pass over."""
    from dplearn.experiments.fitting import Settings

    where = f"{study.name}: method {method.name!r} in {cell.title}"
    (prompt, settings), axes = study.options(cell, method), study.grid_of(cell, method)
    given = {"control": method.control, "max_length": study.max_length, "headroom": study.headroom or None}
    given["cue"] = study.cue if cell.condition.cue is None else cell.condition.cue
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{where}: {name}={shown(value)} has no effect on images, expected none")
    for option, values in ({"steps": [settings.get("steps", 1)]} | axes).items():
        for value in values:
            own = {option: value} if option in OPTIONS else {}
            try:
                Settings(**settings | ({} if own else {option: value})).check_for_images()
                _make_on_images(method, prompt | own)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None


def _make_on_images(method: Method, prompt: Mapping) -> None:
    """Raise ValueError where a method on images is neither a known name nor a prompt that can be made.

    The numbers of words and of layers are those of the run; here some stand for them.
    """
    from dplearn.experiments import image_text, images

    known = images if method.kind == "images" else image_text
    if not prompt or (method.name in known.METHODS and not method.prompt):
        if method.name not in known.METHODS:
            raise ValueError(f"expected options of a prompt, or one of the names {list(known.METHODS)}")
        if prompt:
            raise ValueError(
                f"{shown(dict(prompt))} has no effect on images, expected none: this name says all"
            )
    elif known is images:
        images.config_of(prompt, layers=4)
    else:
        image_text.config_of(prompt, words=1, layers=4)


def _check_settings(study: Study, cell: Cell, method: Method) -> None:
    """The settings of a run on texts are valid, with every value of its grid."""
    from dplearn.experiments.fitting import Settings

    settings, axes = study.options(cell, method)[1], study.grid_of(cell, method)
    tried = {option: values for option, values in axes.items() if option not in OPTIONS}
    for option, values in ({"steps": [settings.get("steps", 1)]} | tried).items():
        for value in values:
            try:
                Settings(**settings | {option: value})
            except ValueError as error:
                raise ValueError(f"{study.name}: method {method.name!r} in {cell.title}: {error}") from None


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


def _check_rival(study: Study, cell: Cell, method: Method) -> None:
    """Nothing is said of a rival that is wrong, or that its runs would pass over."""
    said = {**method.prompt, **method.settings, **study.grid_of(cell, method)}
    try:
        rivals.check(method.kind, getattr(method, method.kind), said)
    except ValueError as error:
        raise ValueError(f"{study.name}: method {method.name!r} in {cell.title}: {error}") from None
