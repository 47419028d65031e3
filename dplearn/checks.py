"""Checks of what users give: each names the argument, its value and what was expected, before any work is done.

An option may be anything (an array, a number of a thousand digits), so a check asks for the type before it compares,
and a value is shown in one short line.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import NamedTuple, NoReturn, Protocol, TypeGuard

import torch

FLOAT32, INT64 = torch.finfo(torch.float32), torch.iinfo(torch.int64)


class Check(Protocol):
    """What an option is checked with: it raises ValueError, and says what it expects."""

    @property
    def expected(self) -> str: ...

    def __call__(self, name: str, value: object) -> None: ...


def shown(value: object) -> str:
    """A value as an error message shows it: its repr in one line of at most 80 characters, without its
    middle where it is longer; of a tensor, its shape.

    >>> shown("task"), shown([[1, 2]] * 20)
    ("'task'", '[[1, 2], [1, 2], [1, 2], [1, 2], [1, 2]...1, 2], [1, 2], [1, 2], [1, 2], [1, 2]]')
    """
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python prints
        text = f"<a {type(value).__name__} too long to show>"
    return text if len(text) <= 80 else f"{text[:39]}...{text[-38:]}"


def is_whole(value: object, least: int | None = None) -> TypeGuard[int]:
    """Whether a value is an integer (True and False are none), of at least ``least`` where that is given.

    >>> is_whole(3), is_whole(True), is_whole(3.0), is_whole(0, least=1)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is an integer or a floating point number of Python (True and False are none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless a value is an integer of at least ``least`` (that int64 holds)."""
    Whole(least)(name, value)


def refuse(name: str, value: object, expected: str) -> NoReturn:
    """Raise the ValueError of a value that is not valid."""
    raise ValueError(f"{name}={shown(value)} is not valid, expected {expected}")


def check_by_name(name: str, value: object) -> None:
    """Raise TypeError unless a value is a dictionary, or the like, of things by their names."""
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} is a {type(value).__name__}, expected a dictionary by name: {{'position': 3}}, say"
        )


def explain_range(batch: Mapping, error: IndexError) -> None:
    """Raise ValueError with the values of a batch's integers where PyTorch has found a token or class out of range.

    Looked up where it has gone wrong: on a device a check of values would have to wait for them.
    """
    if not any(words in str(error) for words in ("out of bounds", "out of range in self")):
        return
    found = [
        f"{name} holds {int(value.min())}..{int(value.max())}"
        for name, value in batch.items()
        if isinstance(value, torch.Tensor) and value.numel() and not value.is_floating_point()
        if name != "input_ids" and "mask" not in name  # these are checked
    ]
    if found:
        raise ValueError(
            f"{', '.join(found)}, expected numbers of tokens or classes that the model has (of labels also -100, "
            f"which is left out): {error}"
        ) from error


def caller_level() -> int:
    """The ``stacklevel`` by which a warning names the line that called the package.

    Frames of PyTorch count as the package's: they stand between ``model(...)`` or ``loss.backward()`` and it.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "dplearn",
        "torch",
    ):
        frame, level = frame.f_back, level + 1
    return level


# --- a check that can also say what it expects: options are checked and documented by the same object ----------------


class Whole(NamedTuple):
    """An integer of at least ``least`` that a tensor's shape or values can hold (int64)."""

    least: int = 1

    @property
    def expected(self) -> str:
        return f"an integer of at least {self.least}"

    def __call__(self, name: str, value: object) -> None:
        if not is_whole(value, self.least):
            refuse(name, value, self.expected)
        if value > INT64.max:
            refuse(name, value, f"{self.expected} that int64 holds")


class OneOf(NamedTuple):
    """One of a few names; None may be among them.

    >>> OneOf((None, "text"))("towers", "tower")
    Traceback (most recent call last):
    ValueError: towers='tower' is unknown, expected None, 'text'
    """

    options: tuple[str | None, ...]

    @property
    def expected(self) -> str:
        return ", ".join(map(repr, self.options))

    def __call__(self, name: str, value: object) -> None:
        if not (value is None or isinstance(value, str)) or value not in self.options:
            raise ValueError(f"{name}={shown(value)} is unknown, expected {self.expected}")


class KeyOf(NamedTuple):
    """A name in a table, which may grow."""

    table: dict

    @property
    def expected(self) -> str:
        return OneOf(tuple(sorted(self.table))).expected

    def __call__(self, name: str, value: object) -> None:
        OneOf(tuple(sorted(self.table)))(name, value)


class Number(NamedTuple):
    """A finite number that float32 holds: positive, or (``positive=False``) of at least 0.

    What a float32 tensor would turn into 0 or infinity is refused as well: a temperature of 1e-50 would divide by 0.
    """

    positive: bool = True

    @property
    def expected(self) -> str:
        return "a positive, finite number" if self.positive else "a finite number of at least 0"

    def __call__(self, name: str, value: object) -> None:
        if not is_number(value) or not 0 <= value < math.inf or (self.positive and value == 0):
            refuse(name, value, self.expected)
        if value > FLOAT32.max or 0 < value < FLOAT32.tiny:
            low = FLOAT32.tiny if self.positive else 0
            refuse(name, value, f"{self.expected} that float32 holds ({low:.3g} to {FLOAT32.max:.3g})")


class Flag(NamedTuple):
    """True or False, and nothing that only counts as such."""

    expected: str = "True or False"

    def __call__(self, name: str, value: object) -> None:
        if not isinstance(value, bool):
            refuse(name, value, self.expected)


class Names(NamedTuple):
    """A list (or tuple) of names that differ, or None. A set has no order, and the order counts.

    >>> Names()("tasks", ["a", "a"])
    Traceback (most recent call last):
    ValueError: tasks=['a', 'a'] is not valid, expected names that differ
    """

    expected: str = "a list of names"

    def __call__(self, name: str, value: object) -> None:
        if value is None:
            return
        if isinstance(value, (set, frozenset)):
            refuse(name, value, f"{self.expected}: a set has no order")
        if not isinstance(value, (list, tuple)) or not value:
            refuse(name, value, self.expected)
        if not all(isinstance(entry, str) and entry for entry in value):
            refuse(name, value, self.expected)
        names = list(value)
        if len(set(names)) < len(names):
            refuse(name, names, "names that differ")


class Later(NamedTuple):
    """What can only be checked together with other options; ``expected`` is for the documentation."""

    expected: str

    def __call__(self, name: str, value: object) -> None:
        return
