"""Figures of a study: curves with a band over seeds, and scores over its conditions.

They are made to be printed as they are: as wide as a page's text, at most two panels side by side, the legend below
them. The same runs give the same bytes. Needs matplotlib, which the extra `book` brings.
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
# What a file says of itself besides the drawing: nothing that changes from one run to the next.
WITHOUT = {"svg": ("Creator", "Date", "Format", "Type"), "pdf": ("CreationDate",), "png": ("Software",)}
FORMATS = tuple(WITHOUT)
WIDTH, PANEL, LEGEND = 6.3, 2.9, 9.0  # inches of a figure, inches of a panel's height, points of a letter


def draw(
    study: Study, cells: Sequence[tuple[Cell, list[dict]]], folder: Path, form: str = "svg"
) -> Iterator[Path]:
    """Draw all figures of a study into a folder; yields their paths.

    cells : the tables of the study with their rows.
    form : one of ``FORMATS``.

    Raises
    ------
    ValueError : the study has no runs; an unknown format.
    """
    if not cells:
        raise ValueError(f"{study.name} has no runs, expected some to draw")
    if form not in FORMATS:
        raise ValueError(f"form={form!r}, expected one of {list(FORMATS)}")
    plots.use_style()
    for cell, rows in cells:
        groups = reports(rows, cell.task)
        if any(row.get("curves") for group in groups.values() for row in group):
            name = f"{study.name}-{_plain(cell.title)}.{form}"
            yield save(curves(groups, cell.title), folder / name)
    if len({cell.condition.name for cell, _ in cells}) > 1:
        yield save(over_conditions(cells), folder / f"{study.name}-conditions.{form}")


def form_of(path: Path) -> str:
    """The format that a file's name asks for.

    Raises
    ------
    ValueError : it is none of ``FORMATS``.
    """
    form = path.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise ValueError(
            f"file={str(path)!r}, expected a name that ends in one of {[f'.{one}' for one in FORMATS]}"
        )
    return form


def save(figure, path: Path) -> Path:
    """Write a figure, in the format that its path ends in, and close it; gives the path."""
    import matplotlib.pyplot as plt

    form = form_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format=form, metadata=dict.fromkeys(WITHOUT[form]))
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
    drawn = {
        name: [row["curves"] for row in group if (row.get("curves") or {}).get("steps")]
        for name, group in groups.items()
    }
    drawn = {name: runs for name, runs in drawn.items() if runs}
    panels = [panel for panel in PANELS if any(panel in runs[0] for runs in drawn.values())]
    figure, axes = _panels(len(panels))
    for number, (name, runs) in enumerate(drawn.items()):
        steps = runs[0]["steps"]
        runs = [run for run in runs if run["steps"] == steps]
        for ax, panel in zip(axes, panels):
            if panel not in runs[0]:
                continue
            values = list(zip(*(run[panel] for run in runs)))
            means = [statistics.mean(each) for each in values]
            spreads = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
            look = _look(number)
            ax.plot(steps, means, label=name, markevery=4, **look)
            low, high = zip(*((mean - spread, mean + spread) for mean, spread in zip(means, spreads)))
            ax.fill_between(steps, low, high, color=look["color"], alpha=0.12, linewidth=0)
    for ax, panel in zip(axes, panels):
        ax.set(xlabel="step", ylabel=PANELS[panel])
    _add_title_and_legend(figure, axes, title)
    return figure


def over_conditions(cells: Sequence[tuple[Cell, list[dict]]]):
    """Test scores of each method over the conditions of a study, a panel for each task and backbone; bars are one
    standard deviation over seeds."""
    places = list(dict.fromkeys((cell.task, cell.backbone) for cell, _ in cells))
    order = list(dict.fromkeys(cell.condition.name for cell, _ in cells))
    names = list(dict.fromkeys(name for cell, rows in cells for name in reports(rows, cell.task)))
    figure, axes = _panels(len(places), sharey=True)
    for ax, place in zip(axes, places):
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
        ax.set_xticks(range(len(order)), order, rotation=20, ha="right", rotation_mode="anchor")
        ax.set_xlim(-0.5, len(order) - 0.5)  # as in the other panels, also where a condition is missing
        first = ax.get_subplotspec().is_first_col()
        ax.set(title="\n".join(place), ylabel="score on test" if first else "")
    _add_title_and_legend(figure, axes)
    return figure


def predicted(points: Sequence[Point]):
    """What was gained by a learned position against what a probe of fixed prompts says, both in nats; a point for each
    table and method, with 95 % intervals, on axes that are linear near 0. Hollow: the prompt was given, not trained."""
    plots.use_style()
    figure, axes = _panels(2, sharey=True)
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
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
        ax.set(xlabel=f"{words}, nats", ylabel="gained over best fixed, nats" if ax is axes[0] else "")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(min(low, -0.12), max(high, 0.12))  # at least one number on each side of 0
    _add_title_and_legend(figure, axes)
    return figure


def _panels(count: int, **options):
    """A figure with so many panels, two in a row at most; gives their axes in reading order."""
    import matplotlib.pyplot as plt

    columns = min(count, 2)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(WIDTH, PANEL * lines), squeeze=False, layout="constrained", **options
    )
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, axes.flat[:count]


def _add_title_and_legend(figure, axes, title: str = "") -> None:
    """One legend for all panels, below them, in as many columns as fit; the figure grows by its height."""
    shown: dict = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        shown |= dict(zip(labels, handles))
    if title:
        figure.suptitle(title, fontsize="large")
    for columns in (3, 2, 1):
        legend = figure.legend(
            shown.values(), shown.keys(), loc="outside lower center", ncols=columns, fontsize=LEGEND
        )
        box = legend.get_window_extent(figure.canvas.get_renderer())
        if box.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_size_inches(WIDTH, figure.get_figheight() + box.height / figure.dpi)
