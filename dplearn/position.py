"""Where the prompt stands: the split k, the number of prompt vectors before the input.

k = l is a prefix, k = 0 a postfix, anything between surrounds the input. The split is fixed, or it is chosen among the
l + 1 options by a task-level or an instance-level controller.

Paper: Yang et al. (2023), section 3.2. Their index counts the vectors AFTER the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dplearn.choice import Choice, Chooser
from dplearn.controllers import InstanceController, TaskController

LEARNED = ("task", "instance")
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


class FixedPosition(nn.Module):
    """The same split for every input; no parameters."""

    needs_summary = False

    def __init__(self, split: int):
        super().__init__()
        self.split = split

    def forward(self, summary: Tensor) -> Choice:
        """summary: any tensor with the batch first; only its batch size and device are read."""
        return Choice(torch.full((summary.shape[0],), self.split, device=summary.device))


class LearnedPosition(nn.Module):
    """A split chosen among 0..length by a controller and a chooser.

    Parameters
    ----------
    controller : maps a summary (B, d) to logits (B, length + 1); entry k belongs to split k.
    chooser : turns logits into a choice.
    """

    def __init__(self, controller: nn.Module, chooser: Chooser):
        super().__init__()
        self.controller = controller
        self.chooser = chooser

    @property
    def needs_summary(self) -> bool:
        return isinstance(self.controller, InstanceController)

    def forward(self, summary: Tensor) -> Choice:
        return self.chooser(self.controller(summary))


def make_position(position: str | int, length: int, width: int, chooser: Chooser) -> nn.Module:
    """Build the module for a position as it is written in a config (see :func:`resolve_split`)."""
    split = resolve_split(position, length)
    if split is not None:
        return FixedPosition(split)
    task = position == "task"
    return LearnedPosition(
        TaskController(length + 1) if task else InstanceController(width, length + 1), chooser
    )
