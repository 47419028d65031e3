"""The interactive figure of chapter 04: move the split k and watch three small frozen attention heads.

Everything is computed here, for every split, and stored in one piece of HTML. No library and no network are needed, and
the bytes are the same on every machine, so that a notebook's stored output can be compared. Without scripts the same
numbers stand in a table.

heads  the three heads, and the gates and outputs of their input rows at every split
shown  these numbers as they are shown
page   the figure, for the last line of a notebook cell
still  a picture of it at three splits
"""

from dplearn.theory.explorer.heads import (
    HEADS,
    INPUTS,
    PROMPT,
    QUERY,
    VALUE,
    Head,
    Readings,
    head_bias,
    readings,
)
from dplearn.theory.explorer.page import STILL, markup, split_explorer
from dplearn.theory.explorer.shown import numbers
from dplearn.theory.explorer.still import picture

__all__ = [
    "HEADS",
    "INPUTS",
    "PROMPT",
    "QUERY",
    "STILL",
    "VALUE",
    "Head",
    "Readings",
    "head_bias",
    "markup",
    "numbers",
    "picture",
    "readings",
    "split_explorer",
]
