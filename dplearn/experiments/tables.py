"""Tables of records: one line for each method, with its spread over seeds and its difference from a baseline.

:func:`lines_against` is the one comparison; :func:`columns`, :func:`markdown`, :func:`full` and :func:`base_to_new`
write it down.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from dplearn.config import PromptConfig
from dplearn.controllers import LEARNED
from dplearn.evidence import ONE_FOR_ALL, uniform
from dplearn.experiments import verdicts
from dplearn.experiments.parts import Margins
from dplearn.experiments.records import by, headline, interval, paired
from dplearn.experiments.verdicts import Verdict
from dplearn.tasks.metrics import harmonic_mean


class Price(NamedTuple):
    """What another way to report a run would have gained, on validation, as means over ``runs`` runs.

    many : the best of the scores during a run minus the last one.
    noise : the best of the scores with sampled decisions minus the best without; None where nothing is sampled.
    """

    runs: int
    many: float
    noise: float | None


class Line(NamedTuple):
    """One method on one task.

    mean, spread : of the first metric over the seeds; the spread is the standard deviation of one run.
    difference : (mean, half-width of the 95 % interval) of the differences from the baseline, seed by seed; None for
        the baseline itself and below two common seeds. (Alone: verdicts have intervals by Holm.)
    rates : the learning rates of the runs, chosen on validation.
    seconds : of training, the mean over the runs.
    cross_entropy, third, right : means over the runs of the cross-entropy, of the first metric at a third of the steps
        and of the share of inputs at a right split; None where the runs have none.
    evidence : what became of each learned decision, by name (:func:`evidence_over`).
    chosen, tries, edges : the values that were chosen on validation, out of how many, and which lie at an edge.
    to_90 : median step at which nine of ten validation answers were right, and in how many runs.
    passes : forward passes of the backbone in a training step.
    gap : mean over the runs of the loss (nats) at the best one split minus that as decided, on the trained prompt.
    price : of reporting the best of many (noisy) scores; None where runs were not evaluated on their way.
    """

    method: str
    runs: int
    parameters: int
    mean: float
    spread: float
    difference: tuple[float, float] | None
    rates: tuple[float, ...]
    seconds: float
    cross_entropy: float | None = None
    third: float | None = None
    right: float | None = None
    evidence: Mapping[str, Mapping] = {}
    chosen: Mapping = {}
    tries: int = 1
    edges: tuple[str, ...] = ()
    to_90: tuple[float, int] | None = None
    passes: int = 1
    gap: float | None = None
    price: Price | None = None


def lines_against(rows: Iterable[dict], task: str, baseline: str | None, split: str = "test") -> list[Line]:
    """The methods of a record on one task, in order of appearance, each against ``baseline`` (None: against none).

    Raises
    ------
    ValueError : no run of the baseline is reported on the task.
    """
    groups = reports(rows, task)
    if baseline is not None and baseline not in groups:
        raise ValueError(f"baseline={baseline!r} has no runs on {task!r}, expected one of {list(groups)}")
    return [
        _line(method, group, groups.get(baseline or "", []), method == baseline, split)
        for method, group in groups.items()
    ]


def reports(rows: Iterable[dict], task: str) -> dict[str, list[dict]]:
    """The reported runs of each method on a task."""
    reported = [row for row in rows if row["purpose"] == "report" and row["task"] == task]
    return {method: group for (method,), group in by(reported, "method").items()}


def _line(method: str, group: list[dict], others: list[dict], is_baseline: bool, split: str) -> Line:
    scores = [headline(row, split) for row in group]
    gains = [] if is_baseline else paired(group, others, split)
    reached = [row["steps_to_90"] for row in group if row.get("steps_to_90") is not None]
    known = "settings" in group[0]
    return Line(
        method,
        len(group),
        group[0].get("trained_parameters", 0),
        statistics.mean(scores),
        statistics.stdev(scores) if len(scores) > 1 else 0.0,
        interval(gains) if len(gains) > 1 else None,
        tuple(sorted({row["settings"]["learning_rate"] for row in group})) if known else (),
        statistics.mean(row.get("seconds", 0) for row in group),
        cross_entropy=_mean(group, lambda row: row["cross_entropy"][split]),
        third=_mean(group, lambda row: next(iter(row["at_a_third"][split].values()))),
        right=_mean(group, lambda row: row["right_split"][split]),
        evidence=evidence_over(group),
        chosen=group[0].get("chosen", {}),
        tries=group[0].get("tries", 1),
        edges=tuple(group[0].get("edges", ())),
        to_90=(statistics.median(reached), len(reached)) if reached else None,
        passes=_passes(group[0]),
        gap=_mean(
            group, lambda row: row["evidence"]["headroom"]["fixed"] - row["evidence"]["headroom"]["learned"]
        ),
        price=price_of(group),
    )


def _passes(row: dict) -> int:
    """Passes of the backbone in one step; rows of images once had none, but the prompt that says how many."""
    if "passes" in row or not row.get("config"):
        return row.get("passes", 1)
    from dplearn.experiments.fitting import passes

    return passes(PromptConfig.from_saved(row["config"]))


def prices(rows: Iterable[dict], task: str) -> dict[str, Price]:
    """What the best of many scores, and of many noisy ones, is above the last one and the best one, by method: of the
    methods of a record whose runs were evaluated on their way."""
    found = {method: price_of(group) for method, group in reports(rows, task).items()}
    return {method: price for method, price in found.items() if price is not None}


def price_of(group: Sequence[dict]) -> Price | None:
    """The prices of a method, over those of its runs that were evaluated on their way; None: there are none.

    >>> row = {"evaluations": {"best": {"score": 0.5, "noisy": 0.75}, "last": {"score": 0.25, "noisy": 0.25}}}
    >>> price_of([row])
    Price(runs=1, many=0.25, noise=0.25)
    """
    runs = [row["evaluations"] for row in group if row.get("evaluations")]
    many = _mean(runs, lambda run: run["best"]["score"] - run["last"]["score"])
    noise = _mean(runs, lambda run: run["best"]["noisy"] - run["best"]["score"])
    return None if many is None else Price(len(runs), many, noise)


def _mean(group: Sequence[dict], value: Callable[[dict], float]) -> float | None:
    """The mean over the runs that have the value, or None."""
    values = []
    for row in group:
        try:
            values.append(value(row))
        except (KeyError, TypeError):  # not recorded, or recorded as None
            continue
    return statistics.mean(values) if values else None


def evidence_over(group: Sequence[dict]) -> dict[str, dict]:
    """What became of the decisions of a method over its runs, by name.

    Means of the entropies (``start``, ``end``), of the options in use (``used``) and of the share of inputs at the most
    used one; the median total variation (``moved``); in how many runs most inputs get the same option (``agree``); the
    mean cost of dealing decisions to other inputs, in nats, and whether its interval over the runs lies above 0
    (``costs``); whether each input is to decide for itself (``instance``), and in how many runs at least 99 % of the
    inputs share one option all the same (``alike``).
    """
    by_name: dict[str, dict] = {}
    decided = [row["evidence"]["decisions"] for row in group if row.get("evidence")]
    for name in decided[0] if decided else ():
        runs = [each[name] for each in decided]
        most = [max(range(len(run["counts"])), key=run["counts"].__getitem__) for run in runs]
        costs = [run["cost"][0] for run in runs if run["cost"] is not None]
        moved = [run["moved"] for run in runs if run["moved"] is not None]
        by_name[name] = {
            "options": runs[0]["options"],
            "start": _mean(runs, lambda run: run["entropy_first"] + 0.0),
            "end": statistics.mean(run["entropy"] for run in runs),
            "moved": statistics.median(moved) if moved else None,
            "used": statistics.mean(run["used"] for run in runs),
            "share": statistics.mean(run["share"] for run in runs),
            "agree": max(map(most.count, most)),
            "cost": statistics.mean(costs) if costs else None,
            "costs": bool(costs) and (over := verdicts.difference(costs)).mean > over.half,
            "instance": group[0].get("config", {}).get(name) == "instance",
            "alike": sum(run["share"] >= ONE_FOR_ALL for run in runs),
        }
    return by_name


def moved(line_evidence: Mapping[str, Mapping], limits: Margins) -> tuple[bool | None, str]:
    """Whether a method's decisions moved, and which evidence says that they did not; None: nothing is known."""
    known = {name: each["moved"] for name, each in line_evidence.items() if each["moved"] is not None}
    if not known:
        return None, ""
    tells = {
        name: limits.by_cost and each["costs"] and uniform(each["start"], each["options"])
        for name, each in line_evidence.items()
    }
    still = [
        f"{name} moved by {value:.2f} (total variation)"
        for name, value in known.items()
        if value < limits.moved and not tells[name]
    ]
    return not still, "; ".join(still)


def one_for_all(group: Sequence[dict]) -> tuple[bool, str]:
    """Whether decisions that were to be made per input are the same for all inputs in most runs; and where in any.

    Such a method was a decision per task in all but name, so that nothing follows about deciding per input.
    """
    collapsed = {
        name: each["alike"]
        for name, each in evidence_over(group).items()
        if each["instance"] and each["alike"]
    }
    words = [
        f"{name} is one for all inputs in {count} of {len(group)} runs" for name, count in collapsed.items()
    ]
    return any(2 * count > len(group) for count in collapsed.values()), "; ".join(words)


def judged(
    rows: Iterable[dict],
    task: str,
    pairs: Sequence[tuple[str, str]],
    limits: Margins,
    split: str = "test",
    value: Callable[[dict, str], float] = headline,
) -> dict[tuple[str, str], Verdict]:
    """The verdicts of one table, a family for Holm: (baseline, method) -> verdict.

    Parameters
    ----------
    limits : what was fixed before: the margin, and when a decision was not learned.
    value : what is compared of each run; more is better.
    """
    groups = reports(rows, task)
    gains = {
        pair: paired(groups[pair[1]], groups[pair[0]], split, value)
        for pair in pairs
        if pair[0] in groups and pair[1] in groups
    }
    differences = verdicts.family({pair: values for pair, values in gains.items() if values})
    return {pair: _verdict(groups, pair, differences.get(pair), limits) for pair in pairs}


def _verdict(groups: Mapping, pair: tuple[str, str], gain, limits: Margins) -> Verdict:
    margin = limits.margin
    missing = [name for name in pair if name not in groups]
    if missing:
        return verdicts.judge(None, margin, why=f"no runs of {' and '.join(missing)}")
    if gain is None:
        return Verdict("not tested", margin=margin, note=f"{pair[1]} and {pair[0]} have no seed in common")
    notes = []
    for name in pair[::-1]:
        evidence = evidence_over(groups[name])
        if not evidence and _learns(groups[name][0]):
            return Verdict("not tested", gain, margin, note=f"{name} has no report on its decisions")
        learned, why = moved(evidence, limits)
        if learned is False:
            return verdicts.judge(gain, margin, False, f"{name}: {why}")
        in_most, where = one_for_all(groups[name])
        if in_most:
            return verdicts.judge(gain, margin, False, f"{name}: {where}")
        notes += [f"{name}: {where}"] if where else []
    return verdicts.judge(gain, margin)._replace(note="; ".join(notes))


def _learns(row: Mapping) -> bool:
    """Whether a run had a learned decision, by its prompt's options."""
    return any(row.get("config", {}).get(name) in LEARNED for name in ("position", "size", "vector"))


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
        cells = line.method, f"{line.parameters:,}", percent(line.mean, line.spread), _gain(line.difference)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def columns(
    lines: Sequence[Line], verdict_of: Mapping[tuple[str, str], Verdict], baseline: str | None
) -> dict[str, list[str]]:
    """The lines in words: the name of a column -> its cell for each line.

    Scores, verdicts against the baseline, evidence of learning, cost. Columns that no line has anything for are left
    out. Differences are in points, with their half-width at Holm's level, which is the detectable effect at this number
    of seeds.
    """
    cells: dict[str, Callable[[Line], str]] = {
        "method": lambda line: line.method,
        "seeds": lambda line: str(line.runs),
        "parameters": lambda line: f"{line.parameters:,}",
        "mean ± sd, %": lambda line: percent(line.mean, line.spread),
        "cross-entropy": lambda line: _number(line.cross_entropy, "{:.3f}"),
        "at a third of the steps, %": lambda line: _number(line.third, "{:.1f}", 100),
        "right split, %": lambda line: _number(line.right, "{:.1f}", 100),
        f"minus {baseline}": lambda line: _holm(verdict_of.get((baseline or "", line.method))),
        "verdict": lambda line: _said(verdict_of.get((baseline or "", line.method))),
        "entropy of π": lambda line: _each(
            line, lambda e: f"{_number(e['start'], '{:.2f}') or '?'} → {e['end']:.2f}"
        ),
        "moved": lambda line: _each(line, lambda e: _number(e["moved"], "{:.2f}") or "?"),
        "options used": lambda line: _each(line, lambda e: f"{e['used']:.1f} of {e['options']}"),
        "at the most used, %": lambda line: _each(line, lambda e: f"{100 * e['share']:.0f}"),
        "dealt out, nats": lambda line: _each(line, lambda e: _number(e["cost"], "{:+.3f}")),
        "won by deciding, nats": lambda line: _number(line.gap, "{:+.3f}"),
        "best minus last evaluation, %": lambda line: _number(line.price and line.price.many, "{:+.1f}", 100),
        "best noisy minus best, %": lambda line: _number(line.price and line.price.noise, "{:+.1f}", 100),
        "steps to 90 %": lambda line: f"{line.to_90[0]:.0f} ({line.to_90[1]})" if line.to_90 else "",
        "chosen": _chosen,
        "passes": lambda line: str(line.passes),
        "seconds": lambda line: f"{line.seconds:.0f}",
    }
    found = {name: [cell(line) for line in lines] for name, cell in cells.items()}
    return {name: column for name, column in found.items() if any(column)}


def full(lines: Sequence[Line], verdict_of: Mapping[tuple[str, str], Verdict], baseline: str | None) -> str:
    """All :func:`columns` of the lines as a wide Markdown table."""
    cells = columns(lines, verdict_of, baseline)
    rows = ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]
    rows += ["| " + " | ".join(row) + " |" for row in zip(*cells.values())]
    return "\n".join(rows)


def _number(value: float | None, form: str, times: float = 1) -> str:
    return "" if value is None else form.format(times * value)


def _each(line: Line, words: Callable[[Mapping], str]) -> str:
    """Words on each learned decision of a method; names where there are several."""
    several = len(line.evidence) > 1
    said = [(name, words(evidence)) for name, evidence in line.evidence.items()]
    return ", ".join(f"{name} {text}" if several else text for name, text in said if text)


def _chosen(line: Line) -> str:
    """Values that were chosen, those at an edge of the grid marked, and out of how many tries."""
    words = [
        f"{name} {value}{' (edge)' if name in line.edges else ''}" for name, value in line.chosen.items()
    ]
    return f"{', '.join(words)} of {line.tries}" if words else ""


def _holm(verdict: Verdict | None) -> str:
    gain = None if verdict is None else verdict.difference
    if gain is None:
        return ""
    return percent(gain.mean, gain.half, "+") if gain.seeds > 1 else f"{100 * gain.mean:+.1f}"


def _said(verdict: Verdict | None) -> str:
    return "" if verdict is None else verdict.sentence()


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
    return percent(statistics.mean(values), statistics.stdev(values))


def percent(value: float, spread: float, sign: str = "") -> str:
    """A share and its spread in percent, joined by spaces that do not break: a narrow column would split them.

    >>> percent(0.5, 0.0123).replace("\\u00a0", " ")
    '50.0 ± 1.2'
    """
    return f"{100 * value:{sign}.1f}\u00a0±\u00a0{100 * spread:.1f}"


def _gain(difference: tuple[float, float] | None) -> str:
    return "" if difference is None else percent(*difference, "+")
