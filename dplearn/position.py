"""Where the prompt stands: the split k, the number of prompt vectors before the input.

k = l is a prefix, k = 0 a postfix, anything between surrounds the input. The split is fixed, or it is chosen among the
l + 1 options by a task-level or an instance-level controller.

Paper: Yang et al. (2023), section 3.2. Their index counts the vectors AFTER the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dplearn.checks import is_whole, shown
from dplearn.choice import Chooser
from dplearn.controllers import (
    LEARNED,
    Decision,
    FixedDecision,
    LearnedDecision,
    Words,
    learned_in_words,
    make_decision,
)
from dplearn.length import resolve_size

NAMED = ("prefix", "postfix")


def resolve_split(position: str | int, length: int) -> int | None:
    """The fixed split that ``position`` names, or None where it is learned ("task", "instance").

    Raises
    ------
    ValueError : an unknown name, or a number outside 0..length.

    >>> [resolve_split(p, 5) for p in ("prefix", "postfix", 2, "task")]
    [5, 0, 2, None]
    """
    if isinstance(position, str):
        if position in LEARNED:
            return None
        if position not in NAMED:
            expected = ", ".join(repr(name) for name in (*NAMED, *LEARNED))
            raise ValueError(
                f"position={position!r} is unknown, expected {expected} or a split in 0..{length}"
            )
        return length if position == "prefix" else 0
    if not is_whole(position):
        what = f"position={shown(position)} is a {type(position).__name__}"
        raise ValueError(f"{what}, expected a name or an integer split")
    if not 0 <= position <= length:
        raise ValueError(
            f"position={shown(position)} is outside 0..{length}: the prompt has {length} vectors "
            f"(0 is postfix, {length} is prefix)"
        )
    return position


def in_words(options: Any) -> Words:
    """The position in words; ``options`` are the flat options of a prompt (:class:`dplearn.config.PromptConfig`)."""
    said = _in_words(options)
    if options.entry is None:
        return said
    side = options.entry.split("-")[0]
    words = "with positions of its own" if side == "position" else f"{side} the position embeddings"
    return said._replace(words=f"{said.words}, {words}")


def _in_words(options: Any) -> Words:
    position, length = options.position, options.length
    if options.towers == "vision":
        level = position if position in LEARNED else "fixed"
        return Words(level, "in the image, behind the patches, where no order matters")
    split, size = resolve_split(position, length), resolve_size(options.size, length)
    most = length if size is None else size  # how many vectors there can be to place
    if split is None:
        words = (
            f"a split in 0..{most} (so many vectors before the input), {learned_in_words(position, options)}"
        )
        return Words(position, words)
    if split == 0:
        return Words("fixed", "after the input (postfix)")
    if split >= most:
        return Words("fixed", "before the input (prefix)")
    return Words("fixed", f"around the input: the first {split} before it, the rest after it")


def build(options: Any, width: int, chooser: Callable[[], Chooser]) -> FixedDecision | LearnedDecision:
    """The module that decides about the split; see :class:`dplearn.controllers.Decision`."""
    split = resolve_split(options.position, options.length)
    return make_decision(split, options.position, width, options, chooser)


POSITION = Decision(
    "where",
    build,
    in_words,
    sampled=lambda options: options.position in LEARNED,
    check=lambda options: resolve_split(options.position, options.length),
)
