"""Sphinx extension: put MathJax into the built site, so that no page loads anything from elsewhere.

The files come from the wheel sphinx-mathjax-offline (MathJax 3.2.2, Apache-2.0). Its own extension copies
24 MB; one component and its fonts (1.7 MB) draw everything. It must be the "full" component: the smaller ones
load packages such as boldsymbol on demand, from files that would not be there.
"""

import importlib.metadata
import shutil
from pathlib import Path

FILES = ("tex-chtml-full.js", "output/chtml/fonts/woff-v2/")


def mathjax_files():
    """Yield (source, path below _static/mathjax) for every file that the pages need."""
    root = "sphinx-mathjax-offline/static/mathjax/"
    for file in importlib.metadata.files("sphinx-mathjax-offline") or []:
        name = file.as_posix().removeprefix(root)
        if name.startswith(FILES):
            yield Path(file.locate()), name


def copy_mathjax(app, exception):
    """Copy the files after a successful HTML build."""
    if exception is not None or app.builder.format != "html":
        return
    copied = 0
    for source, name in mathjax_files():
        target = Path(app.outdir) / "_static" / "mathjax" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        copied += 1
    if copied < 2:
        raise RuntimeError(
            f"sphinx-mathjax-offline holds {copied} of the files {FILES}; expected the fonts too"
        )


def setup(app):
    """Register the copy with Sphinx."""
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
