"""Figures in one style: legible on a light and a dark page, colour-blind safe, no meaning by colour alone.

Needs matplotlib, which the extra `book` brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Okabe and Ito's palette, black first; each colour goes with a marker of its own.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def use_style() -> None:
    """Set matplotlib's defaults for the figures of the book: white ground, so that a dark page frames it."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (7.0, 3.4),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "font.size": 10.5,
            "legend.frameon": False,
            "lines.markersize": 6,
        }
    )


def strip(ax, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """One point per run: ``groups[method][task]`` are the runs' scores; a bar marks the mean of each strip.

    Methods stand side by side within a task and differ by marker and colour.
    """
    tasks = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for m, (method, scores) in enumerate(groups.items()):
        for t, task in enumerate(tasks):
            centre = t + (m - (len(groups) - 1) / 2) * width
            values = scores[task]
            spread = [centre + width * 0.25 * (i / max(len(values) - 1, 1) - 0.5) for i in range(len(values))]
            ax.scatter(
                spread,
                values,
                marker=MARKERS[m],
                color=COLOURS[m],
                s=26,
                linewidths=0.5,
                edgecolors="white",
                label=method if t == 0 else None,
                zorder=3,
            )
            mean = sum(values) / len(values)
            ax.plot([centre - width * 0.3, centre + width * 0.3], [mean, mean], color=COLOURS[m], lw=1.5)
    ax.set_xticks(range(len(tasks)), tasks)
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=min(len(groups), 4), loc="lower center", bbox_to_anchor=(0.5, 1.0))
