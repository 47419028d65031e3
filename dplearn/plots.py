"""Figures in one style: legible on a light and a dark page, colour-blind safe, no meaning by colour alone.

Needs matplotlib, which the extra `book` brings.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Okabe and Ito's palette, black first; each colour goes with a marker of its own. Brown and violet stand for their
# orange and sky blue, which are too pale for a line on white (2.3 : 1); these are as far apart for the colour-blind.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5200", "#8a3ffc")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# What is there to compare with: the loss of a coin, no difference.
QUIET = "#666666"


def use_style() -> None:
    """Set matplotlib's defaults for the figures of the book, and make notebooks store figures as SVG.

    Figures have a white ground, which the book takes away (`book/_ext/figures.py`): a notebook is legible in a dark
    editor as well. The size is one at which the text can be read on a phone.
    """
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (5.4, 3.2),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlesize": "medium",
            "grid.color": "#dddddd",
            "font.size": 10.5,
            "legend.frameon": False,
            "lines.markersize": 6,
            # Text as outlines: a figure looks the same on a machine without the font. It has its words in the book.
            "svg.fonttype": "path",
            # The names of its parts are the same in each run.
            "svg.hashsalt": "dplearn",
        }
    )
    _store_as_svg()


def _store_as_svg() -> None:
    """In a notebook, or wherever else IPython runs: figures are SVG, without the date."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return
    from matplotlib_inline.config import InlineBackend

    settings = InlineBackend.instance(parent=shell)
    without = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    saving: Any = {"bbox_inches": "tight", "metadata": without}  # the trait's type is that of its default
    settings.print_figure_kwargs = saving
    settings.figure_formats = {"svg"}


def strip(ax: Any, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
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
