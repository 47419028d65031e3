"""The runs of a study: what each is made of, which can start, and which values the choices of a method lead to.

A job has labels (study, method, condition) and a ``spec``: all that its result depends on, and nothing else. The hash
of the spec is the job's key, under which its result is kept: a study that is edited keeps the runs that it still has.
Reports depend on choices: they are known when the choices of their method are done (:func:`jobs`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

from dplearn.checks import is_number
from dplearn.config import OPTIONS
from dplearn.experiments import rivals
from dplearn.experiments.parts import ON_IMAGES, Cell, Method, Study, among
from dplearn.experiments.records import headline

CHOICE_SPLITS = ("validation",)
NEEDS_NO_BACKBONE = ("bag of words", "MiniLM probe", "majority")


@dataclass(frozen=True)
class Job:
    """One run. ``labels`` say where it stands in its study, ``spec`` what is done, ``tried`` with which values.

    source : by what the study is called on the command line, its name or the path of its file.
    several : whether the study has other backbones too.
    """

    labels: Mapping
    spec: Mapping
    tried: Mapping = field(default_factory=dict)
    source: str = ""
    several: bool = False

    @cached_property
    def key(self) -> str:
        """The name under which the result is kept: a hash of the spec."""
        text = json.dumps(self.spec, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def purpose(self) -> str:
        """ "choice" or "report"."""
        return self.spec["purpose"]

    def __str__(self) -> str:
        labels, spec = self.labels, self.spec
        where = ", ".join(part for part in (labels["condition"], spec["backbone"]) if part)
        tried = " ".join(f"{option} {value}" for option, value in self.tried.items())
        words = (labels["task"], where, labels["method"], tried if self.purpose == "choice" else "")
        return f"{self.purpose:6} {' · '.join(word for word in words if word)} · seed {spec['seed']}"

    def command(self) -> str:
        """The command that runs this job again, whether it is recorded or not."""
        backbone = self.spec["backbone"] if self.several else None
        return command_again(self.source, self.labels, self.spec["seed"], self.purpose, backbone)

    def matches(
        self,
        only: Sequence[str] | None = None,
        condition: Sequence[str] | None = None,
        purpose: str | None = None,
        backbone: Sequence[str] | None = None,
    ) -> bool:
        """Whether the job is asked for: it fits one of the patterns METHOD/TASK/SEED, one of CONDITION and one of
        BACKBONE, where any were given, and it has the purpose."""
        own = f"{self.labels['method']}/{self.labels['task']}/{self.spec['seed']}"
        return (
            _fits(own, only and [_pattern(one) for one in only])
            and _fits(self.labels["condition"], condition)
            and _fits(self.spec["backbone"] or "", backbone)
            and purpose in (None, self.purpose)
        )


def _fits(value: str, patterns: Sequence[str] | None) -> bool:
    """Whether the value fits one of the patterns; without any, all values do."""
    return not patterns or any(fnmatchcase(value, pattern) for pattern in patterns)


def command_again(source: str, labels: Mapping, seed: int, purpose: str, backbone: str | None = None) -> str:
    """The command that runs one job of a study again, by the job's labels, seed and purpose, and in a study of several
    backbones by that.

    >>> command_again("gates", {"method": "prefix", "task": "world/color", "condition": ""}, 1, "report")
    "python -m dplearn.experiments run gates --only 'prefix/world/color/1' --purpose report --again"
    """
    only = f"{labels['method']}/{labels['task']}/{seed}"
    parts = ["python -m dplearn.experiments run", source, f"--only {only!r}"]
    if labels["condition"]:
        parts.append(f"--condition {labels['condition']!r}")
    if backbone:
        parts.append(f"--backbone {backbone!r}")
    return " ".join([*parts, f"--purpose {purpose}", "--again"])


def _pattern(only: str) -> str:
    """METHOD/TASK/SEED as a pattern; a method alone means all of its runs.

    >>> _pattern("prefix"), _pattern("prefix/world/color/3"), _pattern("/place/*")
    ('prefix/*', 'prefix/world/color/3', '*/place/*')
    """
    method, slash, rest = only.partition("/")
    return f"{method or '*'}/{rest if slash else '*'}"


class Chosen(dict):
    """Values that a method chose, by the name of the option.

    tries : how many points of its grid were tried.  edges : names of the options whose value lies at the edge.
    """

    def __init__(self, values: Mapping, tries: int = 1, edges: Sequence[str] = ()):
        super().__init__(values)
        self.tries, self.edges = tries, tuple(edges)


def job_of(study: Study, cell: Cell, method: Method, seed: int, purpose: str, values: Mapping) -> Job:
    """The run of a method in a cell with one seed, and with these values of its grid."""
    prompt, settings = study.options(cell, method)
    for option, value in values.items():
        (prompt if option in OPTIONS else settings)[option] = value
    spec = {
        "backbone": None if method.kind in NEEDS_NO_BACKBONE else cell.backbone,
        "task": cell.task.replace("draw=seed", f"draw={seed}"),
        "kind": method.kind,
        "settings": settings,
        "seed": seed,
        "purpose": purpose,
        "splits": list(CHOICE_SPLITS if purpose == "choice" else study.splits),
    }
    if method.kind == "prompt" or (method.kind in ON_IMAGES and prompt):
        spec["prompt"] = prompt
    elif method.kind in ON_IMAGES:
        spec["named"] = method.name
    elif method.kind in ("peft", "rival"):
        spec[method.kind] = rivals.with_length(
            method.kind, getattr(method, method.kind), prompt.get("length")
        )
    if method.kind == "prompt" and study.headroom and purpose == "report":
        spec["headroom"] = True
    if method.control:
        spec["control"] = method.control
    cue = study.cue if cell.condition.cue is None else cell.condition.cue
    given = {"cue": cue, "max_length": study.max_length, "looks": dict(study.looks) or None}
    spec |= {name: value for name, value in given.items() if value is not None}
    labels = {"study": study.name, "method": method.name, "condition": cell.condition.name, "task": cell.task}
    return Job(labels, spec, values, study.source, len(study.backbones) > 1)


def choice_jobs(study: Study, cell: Cell, method: Method, values: Mapping) -> list[Job]:
    """The runs that judge one point of a method's grid, for a report in ``cell``."""
    conditions = [
        one for one in study.conditions
        if (one.name in study.choice.conditions if study.choice.conditions else one is cell.condition)
    ]  # fmt: skip
    places = [
        Cell(cell.backbone, condition, task)
        for condition in conditions
        for task in [task for task in study.choice.tasks if among(task, condition.tasks)] or [cell.task]
    ]
    return [
        job_of(study, place, method, seed, "choice", values)
        for place in places for seed in study.choice.seeds
    ]  # fmt: skip


def points_of(axes: Mapping[str, Sequence]) -> list[dict]:
    """All points of a grid, the first axis slowest; no axes: one point without values.

    >>> points_of({"a": [1, 2], "b": [3]}), points_of({})
    ([{'a': 1, 'b': 3}, {'a': 2, 'b': 3}], [{}])
    """
    return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]


def best_point(axes: Mapping[str, Sequence], scores: Sequence[tuple[dict, float]]) -> dict:
    """The point with the best score; of equals the one nearest to the middle of the grid, then the first.

    >>> axes = {"rate": [0.1, 0.2, 0.3]}
    >>> best_point(axes, [({"rate": 0.1}, 1.0), ({"rate": 0.2}, 1.0), ({"rate": 0.3}, 0.5)])
    {'rate': 0.2}
    """

    def from_middle(point: Mapping) -> float:
        return sum(
            abs(axes[name].index(value) - (len(axes[name]) - 1) / 2) / max(len(axes[name]) - 1, 1)
            for name, value in point.items()
        )

    most = max(score for _, score in scores)
    return min((point for point, score in scores if score >= most - 1e-9), key=from_middle)


def edges_of(axes: Mapping[str, Sequence], point: Mapping) -> list[str]:
    """Names of the numeric options whose value is the smallest or the largest of two or more that were tried."""
    return [
        name for name, value in point.items()
        if len(axes[name]) > 1 and is_number(value) and value in (axes[name][0], axes[name][-1])
    ]  # fmt: skip


def _beyond(values: Sequence[float], value: float) -> float:
    """The next value on the other side of the edge, in the ratio of the last two.

    >>> _beyond([0.1, 0.2, 0.6], 0.6), _beyond([0.1, 0.2, 0.6], 0.1)
    (1.8, 0.05)
    """
    inner = values[1] if value == values[0] else values[-2]
    return float(f"{value * value / inner:.4g}")


def judged(row: dict, by: str) -> float:
    """What a choice maximises: the headline on validation, or minus the cross-entropy there."""
    return headline(row, "validation") if by == "headline" else -row["cross_entropy"]["validation"]


def choose(
    study: Study, cell: Cell, method: Method, rows: Mapping[str, dict]
) -> tuple[Chosen | None, list[Job]]:
    """What a method chooses in a cell by the rows that there are (key -> row): values, or None while runs are missing,
    and the choice runs that this takes."""
    chosen, wanted = _point(study, cell, method, rows)
    if chosen is None or not _compared(study, method):
        return chosen, wanted
    # A "best of" method asks which of a list is best here, wherever their values were chosen.
    own = _own_choices(study, cell, method, chosen)
    return (chosen if all(job.key in rows for job in own) else None), [*wanted, *own]


def _own_choices(study: Study, cell: Cell, method: Method, chosen: Mapping) -> list[Job]:
    """The choice runs of a method in its own cell, with the values that it has chosen."""
    return [job_of(study, cell, method, seed, "choice", chosen) for seed in study.choice.seeds]


def _point(
    study: Study, cell: Cell, method: Method, rows: Mapping[str, dict]
) -> tuple[Chosen | None, list[Job]]:
    """As :func:`choose`, without what "best of" methods look at."""
    axes = study.grid_of(cell, method)
    if len(points_of(axes)) == 1:
        return Chosen(points_of(axes)[0]), []
    points, widened, wanted, scores = points_of(axes), dict.fromkeys(axes, 0), [], []
    while True:
        for point in points:
            runs = choice_jobs(study, cell, method, point)
            wanted += runs
            if all(run.key in rows for run in runs):
                values = [judged(rows[run.key], study.choice.by) for run in runs]
                scores.append((point, statistics.mean(values)))
        if len({id(point) for point, _ in scores}) < len(wanted) // max(len(runs), 1):
            return None, wanted
        best = best_point(axes, scores)
        edges = edges_of(axes, best)
        wider = [name for name in edges if widened[name] < study.choice.widen and best[name] > 0]
        if not wider:
            return Chosen(best, len(scores), edges), wanted
        points = []
        for name in wider:
            widened[name] += 1
            more = _beyond(axes[name], best[name])
            axes[name] = sorted([*axes[name], more])
            points.append(best | {name: more})


def _compared(study: Study, method: Method) -> bool:
    """Whether a "best of" method looks at the validation scores of this one."""
    return any(fnmatchcase(method.name, pattern) for other in study.methods for pattern in other.of)


def seeds_of(study: Study, method: Method) -> tuple[int, ...]:
    """The seeds of a method's reports."""
    return study.seeds if method.seeds is None else method.seeds


def jobs(study: Study, rows: Mapping[str, dict]) -> list[Job]:
    """The runs that are known by now, choices first: reports follow when the choices of their method are done.

    rows : key -> row of the runs that are done.
    """
    choices: dict[str, Job] = {}
    reports: list[Job] = []
    for cell in study.cells():
        for method in study.methods_in(cell):
            if method.kind == "best of":
                continue
            chosen, wanted = choose(study, cell, method, rows)
            choices |= {job.key: job for job in wanted}
            if chosen is not None:
                reports += [
                    job_of(study, cell, method, seed, "report", chosen) for seed in seeds_of(study, method)
                ]
    # Seeds outermost: a study that is stopped has all methods on fewer seeds.
    order = {seed: number for number, seed in enumerate(dict.fromkeys(job.spec["seed"] for job in reports))}
    reports.sort(key=lambda job: order[job.spec["seed"]])
    return list({job.key: job for job in (*choices.values(), *reports)}.values())


def first_of_each(study: Study) -> list[tuple[Job, int]]:
    """A report of each method in each table, with the first seed and the first values of its grid; and how many seeds
    the method has."""
    found = []
    for cell in study.cells():
        for method in study.methods_in(cell):
            if method.kind != "best of":
                seeds, values = seeds_of(study, method), points_of(study.grid_of(cell, method))[0]
                found.append((job_of(study, cell, method, seeds[0], "report", values), len(seeds)))
    return found


def trials(study: Study, wanted: Callable[[Job], bool]) -> list[Job]:
    """Of the wanted among :func:`first_of_each` so many that each method of each backbone is there, and each table."""
    kept: list[Job] = []
    seen: set = set()
    for job in (job for job, _ in first_of_each(study) if wanted(job)):
        backbone, labels = job.spec["backbone"], job.labels
        new = {(backbone, labels["method"]), (backbone, labels["task"], labels["condition"])} - seen
        if new:
            kept.append(job)
            seen |= new
    return kept


def count(study: Study) -> dict[str, int]:
    """How many runs a study has, by purpose, before any axis is widened."""
    known, reports = jobs(study, {}), 0
    for cell in study.cells():
        for method in study.methods_in(cell):
            reports += 0 if method.kind == "best of" else len(seeds_of(study, method))
    return {"choice": sum(job.purpose == "choice" for job in known), "report": reports}


def labelled(study: Study, rows: Mapping[str, dict]) -> Iterator[dict]:
    """The rows of a study as its tables read them: with labels, with chosen values, and with those of "best of"."""
    for cell in study.cells():
        reports, scores = {}, {}
        for method in study.methods_in(cell):
            if method.kind == "best of":
                continue
            chosen, wanted = choose(study, cell, method, rows)
            for job in wanted:
                if job.key in rows:
                    yield {**rows[job.key], **job.labels, "key": job.key}
            if chosen is None:
                continue
            own = [job_of(study, cell, method, seed, "report", chosen) for seed in seeds_of(study, method)]
            extra = {"chosen": dict(chosen), "tries": chosen.tries, "edges": list(chosen.edges)}
            reports[method.name] = [
                {**rows[job.key], **job.labels, **extra, "key": job.key} for job in own if job.key in rows
            ]
            runs = _own_choices(study, cell, method, chosen)
            if _compared(study, method) and all(run.key in rows for run in runs):
                scores[method.name] = statistics.mean(judged(rows[run.key], study.choice.by) for run in runs)
            yield from reports[method.name]
        for method in study.methods_in(cell):
            if method.kind == "best of":
                yield from _best_of(study, method, reports, scores)


def _best_of(study: Study, method: Method, reports: Mapping, scores: Mapping) -> Iterator[dict]:
    """The reports of the method that is best on validation, out of a list, under another name."""
    listed = [name for name in reports if any(fnmatchcase(name, pattern) for pattern in method.of)]
    if not listed or any(name not in scores for name in listed):
        return
    point = best_point({"method": listed}, [({"method": name}, scores[name]) for name in listed])
    for row in reports[point["method"]]:
        yield row | {
            "method": method.name,
            "chosen": point | row["chosen"],
            "tries": len(listed) * row["tries"],
        }
