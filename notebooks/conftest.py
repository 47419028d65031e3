"""For strict nbval: kernels start without tqdm's advice to install ipywidgets.

The advice is printed to stderr, with a path of the machine, whenever transformers is imported in a kernel. Progress
bars stay plain text, so that one left on in a notebook is seen by the comparison. book/_tools/refresh_notebooks.py
sets the same.
"""

import os

os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
