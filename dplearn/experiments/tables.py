"""Tables of records: one line for each method, with its spread over seeds and its difference from a baseline."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dplearn.experiments.records import by, headline, interval, paired
from dplearn.tasks.metrics import harmonic_mean


class Line(NamedTuple):
    """One method on one task.

    mean, spread : of the first metric over the seeds; the spread is the standard deviation of one run.
    difference : (mean, half-width of the 95 % interval) of the differences from the baseline, seed by seed; None for
        the baseline itself and below two common seeds.
    rates : the learning rates of the runs, chosen on validation.
    seconds : of training, the mean over the runs.
    """

    method: str
    runs: int
    parameters: int
    mean: float
    spread: float
    difference: tuple[float, float] | None
    rates: tuple[float, ...]
    seconds: float


def compare(rows: Iterable[dict], task: str, baseline: str, split: str = "test") -> list[Line]:
    """The methods of a record on one task, in order of appearance, each against ``baseline``.

    Raises
    ------
    ValueError : no run of the baseline is reported on the task.
    """
    reports = [row for row in rows if row["purpose"] == "report" and row["task"] == task]
    groups = {method: group for (method,), group in by(reports, "method").items()}
    if baseline not in groups:
        raise ValueError(f"baseline={baseline!r} has no runs on {task!r}, expected one of {list(groups)}")
    lines = []
    for method, group in groups.items():
        scores = [headline(row, split) for row in group]
        gains = [] if method == baseline else paired(group, groups[baseline], split)
        lines.append(
            Line(
                method,
                len(group),
                group[0]["trained_parameters"],
                statistics.mean(scores),
                statistics.stdev(scores) if len(scores) > 1 else 0.0,
                interval(gains) if len(gains) > 1 else None,
                tuple(sorted({row["settings"]["learning_rate"] for row in group})),
                statistics.mean(row["seconds"] for row in group),
            )
        )
    return lines


def markdown(lines: Sequence[Line], baseline: str) -> str:
    """The lines as a Markdown table; scores in percent.

    >>> line = Line("probe", 5, 970, 0.5, 0.0123, (-0.1, 0.04), (0.01,), 3.0)
    >>> markdown([line], "prompt").splitlines()[-1].replace("\\u00a0", " ")
    '| probe | 970 | 50.0 ± 1.2 | -10.0 ± 4.0 |'
    """
    rows = [
        f"| method | trained parameters | mean ± spread, % | minus {baseline} (95 % interval) |",
        "|---|---|---|---|",
    ]
    for line in lines:
        cells = line.method, f"{line.parameters:,}", _percent(line.mean, line.spread), _gain(line.difference)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def base_to_new(rows: Iterable[dict], task: str, methods: Sequence[str], baseline: str) -> str:
    """A Markdown table of the methods on base and new classes (splits "test" and "test_new"), in percent.

    The harmonic mean is taken run by run; a method that cannot name new classes has none. The last column is the
    difference on base classes from ``baseline``, paired by seed, with its 95 % interval.
    """
    reports = [row for row in rows if row["purpose"] == "report" and row["task"] == task]
    groups = {method: group for (method,), group in by(reports, "method").items()}
    lines = [
        f"| method | trained parameters | base | new | harmonic mean | base minus {baseline} |",
        "|---|---|---|---|---|---|",
    ]
    for method in methods:
        group = groups[method]
        cells = [method, f"{group[0]['trained_parameters']:,}", _spread([headline(row) for row in group])]
        if all("test_new" in row["scores"] for row in group):
            pairs = [(headline(row), headline(row, "test_new")) for row in group]
            cells += [_spread([new for _, new in pairs]), _spread([harmonic_mean(*pair) for pair in pairs])]
        else:
            cells += ["–", "–"]
        gains = [] if method == baseline else paired(group, groups[baseline], "test")
        gain = interval(gains) if len(gains) > 1 else None
        cells.append(_gain(gain))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation of one run, in percent."""
    return _percent(statistics.mean(values), statistics.stdev(values))


def _percent(value: float, spread: float, sign: str = "") -> str:
    # Spaces that do not break: a narrow column would split the two numbers.
    return f"{100 * value:{sign}.1f}\u00a0±\u00a0{100 * spread:.1f}"


def _gain(difference: tuple[float, float] | None) -> str:
    return "" if difference is None else _percent(*difference, "+")
