"""A batch as a prompt meets it: rows, which of them are real, where the input ends that the prompt surrounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dplearn.checks import is_whole
from dplearn.estimators import pick
from dplearn.insertion import values_are_free
from dplearn.prompt import PromptedInput

if TYPE_CHECKING:
    from dplearn.backbones.fronts import Front


class Reading(NamedTuple):
    """A batch as a prompt meets it."""

    rows: Tensor  # (B, T, d), as the model itself embeds the input
    mask: Tensor  # (B, T), 1 = real
    seen: Tensor  # (B, T), 1 = decisions look at it
    keep_last: int | Tensor  # how many last real rows stay behind the prompt: an int or (B,)
    given: dict  # what the model was given, by name
    # (B, T), the row that holds each column of what was given; None: the same. (Padding on the left may have moved.)
    columns: Tensor | None = None
    # (1, T + n, d), position vectors for an image's prompt, or for all of its rows; None: there are none to add
    codes: Tensor | None = None
    front: Front | None = None  # the rows in front of the prompt, where they do not run
    # (N,), of which instance of a batch each one is a copy; None: there are none
    copies: Tensor | None = None
    passed: int = 0  # layers that an image's rows have passed already

    def picked(self, instances: Tensor) -> Reading:
        """The batch of these instances, (N,) numbers of 0..B - 1, any of them any number of times."""
        batch = self.rows.shape[0]
        given = {name: pick(value, instances, batch) for name, value in self.given.items()}
        fields: dict[str, Any] = {
            name: pick(value, instances, batch) for name, value in self._asdict().items() if name != "codes"
        }
        return self._replace(**fields | {"given": given, "copies": instances})

    def places(self, placed: PromptedInput) -> Tensor:
        """(B, T): the row of the prompted input that holds each column of what was given."""
        return (
            placed.input_positions if self.columns is None else placed.input_positions.gather(1, self.columns)
        )


class Boundary(NamedTuple):
    """Where the input ends that a prompt surrounds, as the user says it: at most one of the two is not None.

    keep_last : how many last real tokens stay behind the prompt.  context_length : how many first ones it surrounds.
    Both: an int or (B,).
    """

    keep_last: int | Tensor | None = None
    context_length: int | Tensor | None = None

    @property
    def given(self) -> bool:
        return self.keep_last is not None or self.context_length is not None

    def kept(self, mask: Tensor, otherwise: int | Tensor = 0) -> int | Tensor:
        """How many last real tokens stay behind the prompt, for a mask (B, T); ``otherwise`` where nothing is said.

        Raises
        ------
        ValueError : not whole numbers of at least 0, or not one for each instance; a context of more tokens than there
            are, where values can be looked at (on a CPU, outside of compiled code).
        """
        if self.keep_last is not None:
            return _whole("keep_last", self.keep_last, mask)
        if self.context_length is None:
            return otherwise
        behind = (mask != 0).sum(1) - _whole("context_length", self.context_length, mask)
        if values_are_free(behind) and (behind < 0).any():
            number = int(behind.argmin())
            real = int((mask[number] != 0).sum())
            raise ValueError(
                f"context_length is {real - int(behind[number])} for instance {number}, which has {real} real tokens: "
                "expected at most that many (was the input cut, or counted with other tokens?)"
            )
        return behind.clamp(min=0)


def _whole(name: str, value: int | Tensor, mask: Tensor) -> int | Tensor:
    if isinstance(value, Tensor):
        if value.shape != mask.shape[:1] or value.is_floating_point() or value.dtype == torch.bool:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}, expected an integer or integers "
                f"({mask.shape[0]},), one for each instance"
            )
        if (
            value.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and value.numel()
            and value.min() < 0
        ):
            raise ValueError(f"{name} holds {int(value.min())}, expected integers of at least 0")
        return value.to(mask.device)
    if not is_whole(value, 0):
        raise ValueError(
            f"{name}={value!r} is not valid, expected an integer of at least 0, or a tensor of one for each "
            "instance"
        )
    return value
