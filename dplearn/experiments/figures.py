"""Figures of a study: curves with a band over seeds, and scores over its conditions.

Needs matplotlib, which the extra `book` brings.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dplearn import plots
from dplearn.experiments.parts import Cell, Study
from dplearn.experiments.predictions import Point
from dplearn.experiments.records import headline
from dplearn.experiments.tables import reports

PANELS = {
    "score": "score on validation",
    "cross_entropy": "cross-entropy",
    "entropy_position": "entropy of π, nats",
}
STYLES = ("-", "--", ":")


def draw(study: Study, cells: Sequence[tuple[Cell, list[dict]]], folder: Path) -> Iterator[Path]:
    """Draw all figures of a study into a folder, as PNG; yields their paths.

    cells : the tables of the study with their rows.

    Raises
    ------
    ValueError : the study has no runs.
    """
    import matplotlib.pyplot as plt

    if not cells:
        raise ValueError(f"{study.name} has no runs, expected some to draw")
    plots.use_style()
    folder.mkdir(parents=True, exist_ok=True)
    for cell, rows in cells:
        groups = reports(rows, cell.task)
        if any(row.get("curves") for group in groups.values() for row in group):
            yield _saved(curves(groups, cell.title), folder / f"{study.name}-{_plain(cell.title)}.png", plt)
    if len({cell.condition.name for cell, _ in cells}) > 1:
        yield _saved(over_conditions(cells), folder / f"{study.name}-conditions.png", plt)


def _saved(figure, path: Path, plt) -> Path:
    figure.savefig(path)
    plt.close(figure)
    return path


def _plain(title: str) -> str:
    """A title as a part of a file's name.

    >>> _plain("place/mixed, l = 1, place-mini")
    'place-mixed-l-1-place-mini'
    """
    return re.sub(r"[^\w]+", "-", title).strip("-")


def _look(number: int) -> dict:
    """Colour, marker and line of the method with this number; no two of the first twenty look alike."""
    count = len(plots.COLOURS)
    return {
        "color": plots.COLOURS[number % count],
        "marker": plots.MARKERS[(number + number // count) % count],
        "linestyle": STYLES[number // count % len(STYLES)],
        "markersize": 4,
    }


def curves(groups: Mapping[str, Sequence[dict]], title: str):
    """Score, cross-entropy and entropy of π against steps: the mean over seeds, with a band of one standard deviation.

    groups : method -> rows; those without curves are left out.
    """
    import matplotlib.pyplot as plt

    drawn = {
        name: [row["curves"] for row in group if (row.get("curves") or {}).get("steps")]
        for name, group in groups.items()
    }
    drawn = {name: runs for name, runs in drawn.items() if runs}
    panels = [panel for panel in PANELS if any(panel in runs[0] for runs in drawn.values())]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.2), squeeze=False)
    for number, (name, runs) in enumerate(drawn.items()):
        steps = runs[0]["steps"]
        runs = [run for run in runs if run["steps"] == steps]
        for ax, panel in zip(axes[0], panels):
            if panel not in runs[0]:
                continue
            values = list(zip(*(run[panel] for run in runs)))
            means = [statistics.mean(each) for each in values]
            spreads = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
            look = _look(number)
            ax.plot(steps, means, label=name, markevery=4, **look)
            low, high = zip(*((mean - spread, mean + spread) for mean, spread in zip(means, spreads)))
            ax.fill_between(steps, low, high, color=look["color"], alpha=0.12, linewidth=0)
    for ax, panel in zip(axes[0], panels):
        ax.set(xlabel="step", ylabel=PANELS[panel])
    _add_title_and_legend(figure, axes[0], title)
    return figure


def over_conditions(cells: Sequence[tuple[Cell, list[dict]]]):
    """Test scores of each method over the conditions of a study, a panel for each task and backbone; bars are one
    standard deviation over seeds."""
    import matplotlib.pyplot as plt

    places = list(dict.fromkeys((cell.task, cell.backbone) for cell, _ in cells))
    order = list(dict.fromkeys(cell.condition.name for cell, _ in cells))
    names = list(dict.fromkeys(name for cell, rows in cells for name in reports(rows, cell.task)))
    figure, axes = plt.subplots(1, len(places), figsize=(4.2 * len(places), 4.4), squeeze=False, sharey=True)
    for ax, place in zip(axes[0], places):
        here = [
            (cell, reports(rows, cell.task)) for cell, rows in cells if (cell.task, cell.backbone) == place
        ]
        for number, name in enumerate(names):
            points = [
                (order.index(cell.condition.name), [headline(row) for row in groups[name]])
                for cell, groups in here
                if name in groups
            ]
            if points:
                x = [at + 0.04 * (number - len(names) / 2) for at, _ in points]
                means = [statistics.mean(scores) for _, scores in points]
                spreads = [statistics.stdev(scores) if len(scores) > 1 else 0.0 for _, scores in points]
                ax.errorbar(x, means, spreads, label=name, elinewidth=0.8, **_look(number))
        ax.set_xticks(range(len(order)), order, rotation=20)
        ax.set(title=", ".join(place), ylabel="score on test" if ax is axes[0, 0] else "")
    _add_title_and_legend(figure, axes[0])
    return figure


def predicted(points: Sequence[Point]):
    """What was gained by a learned position against what a probe of fixed prompts says, both in nats; a point for each
    table and method, with 95 % intervals, on axes that are linear near 0. Hollow: the prompt was given, not trained."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), sharey=True)
    methods = list(dict.fromkeys(point.method for point in points))
    panels = {"deviation": "losses differ over splits by", "headroom": "headroom per input"}
    for ax, (name, words) in zip(axes, panels.items()):
        for number, method in enumerate(methods):
            look = _look(number) | {"linestyle": "none", "elinewidth": 0.8}
            ax.errorbar([], [], [], label=method, **look)
            for trained, face in ((True, look["color"]), (False, "none")):
                own = [point for point in points if (point.method, point.trained) == (method, trained)]
                x, y = [getattr(point, name) for point in own], [point.gain for point in own]
                ax.errorbar(x, y, [point.half for point in own], markerfacecolor=face, **look)
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.set_xscale("symlog", linthresh=0.01)
        ax.set_yscale("symlog", linthresh=0.1)
        ax.set_xlim(-0.003, 1.5 * max(0.01, *(getattr(point, name) for point in points)))
        ax.set(xlabel=f"{words}, nats", ylabel="gained over best fixed, nats" if ax is axes[0] else "")
    _add_title_and_legend(figure, axes)
    return figure


def _add_title_and_legend(figure, axes, title: str = "") -> None:
    """One legend for all panels, below them."""
    shown: dict = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        shown |= dict(zip(labels, handles))
    if title:
        figure.suptitle(title)
    columns = 2 if len(axes) < 3 else 3
    height = 0.045 * -(-len(shown) // columns) + 0.02
    figure.legend(shown.values(), shown.keys(), loc="lower center", ncols=columns, fontsize=8)
    figure.tight_layout(rect=(0, min(height, 0.5), 1, 1))
