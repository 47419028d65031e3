"""Where the prompt stands: the split k, the number of prompt vectors before the input.

k = l is a prefix, k = 0 a postfix, anything between surrounds the input. The split is fixed, or it is chosen among the
l + 1 options by a task-level or an instance-level controller.

Paper: Yang et al. (2023), section 3.2. Their index counts the vectors AFTER the input.
"""

from __future__ import annotations

from dplearn.controllers import LEARNED

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
    if isinstance(position, bool) or not isinstance(position, int):
        raise ValueError(
            f"position={position!r} is a {type(position).__name__}, expected a name or an integer split"
        )
    if not 0 <= position <= length:
        raise ValueError(
            f"position={position} is outside 0..{length}: the prompt has {length} vectors "
            f"(0 is postfix, {length} is prefix)"
        )
    return position
