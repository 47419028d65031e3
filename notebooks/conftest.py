"""For strict nbval: kernels start without tqdm's advice to install ipywidgets, and figures are not compared.

The advice is printed to stderr, with a path of the machine, whenever transformers is imported in a kernel. Progress
bars stay plain text, so that one left on in a notebook is seen by the comparison. book/_tools/refresh_notebooks.py
sets the same.

Figures are SVG: the same bytes on the same machine, not on another, where the last digit of a coordinate differs. nbval
leaves out PNG for that reason. What it compares is the text beside a figure (its size) and the numbers printed below.
"""

import os

os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")


def pytest_collectstart(collector):
    """Leave the figures of a notebook out of the comparison."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("image/svg+xml",)
