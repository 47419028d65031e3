"""Progress of what takes long: a bar with the time left, in a terminal, once ten seconds have passed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

DELAY = 10.0  # seconds of silence
Item = TypeVar("Item")


def told(items: Iterable[Item], words: str, total: int | None = None, verbose: bool = True) -> Iterator[Item]:
    """The items, one after the other; how far it is and what is left is shown on standard error.

    Nothing is shown in the first ten seconds, nor where standard error is no terminal, as in a notebook or a log.

    Parameters
    ----------
    words : what is done, in front of the bar.
    total : how many items there are; None: as many as ``items`` has, where it knows.
    verbose : False shows nothing.

    >>> list(told([1, 2], "counting"))
    [1, 2]
    """
    from tqdm import tqdm

    total = len(items) if total is None and isinstance(items, Sized) else total
    # disable=None: tqdm's word for "where it is no terminal".
    yield from tqdm(items, words, total, leave=False, delay=DELAY, disable=None if verbose else True)
