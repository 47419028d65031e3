"""Texts that begin alike as one sequence, in which the rows that they share are there once.

A row of a causal tower sees the rows in front of it alone. So the start token, the vectors in front of all texts and
the words that they have in common are computed once; each text's own rows follow, one text after the other, and see the
shared rows and their own text's earlier ones. Every row keeps the position that it has in its own text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dplearn.backbones.image_text.captions import Captions

PACKED = 512  # rows of one packed sequence at most: its attention is quadratic in them


class Pack(NamedTuple):
    """Some texts as one sequence of R rows."""

    source: Tensor  # (R,), which row of the texts, one behind the other, each is
    place: Tensor  # (R,), its position in its own text
    visible: Tensor  # (R, R), which rows a row sees
    holders: Tensor  # (V,), the rows that hold prompt vectors
    vectors: Tensor  # (V,), which vectors these are
    reads: Tensor  # (texts,), the rows of their end tokens

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """(1, 1, R, R), added to the attention's scores: 0 where a row sees a row."""
        mask = torch.zeros(self.visible.shape, dtype=dtype, device=self.visible.device)
        return mask.masked_fill(~self.visible, torch.finfo(dtype).min)[None, None]


class Packer:
    """Makes packs. Those of the last call are kept: every step of a training asks for the same, and a device would have
    to wait for them."""

    def __init__(self):
        self._latest: tuple[tuple, list[Pack]] | None = None

    def packs(self, captions: Captions, split: int, rows: int, device: torch.device) -> list[Pack]:
        """Texts with their prompt as few sequences in which shared rows occur once.

        Parameters
        ----------
        split : how many vectors stand in front of all texts.
        rows : of each text with its prompt, T + l.
        device : where the packs are needed.
        """
        length = rows - captions.input_ids.shape[1]
        key = (captions.ends, captions.special, captions.shared, split, rows, length, PACKED)
        if torch.compiler.is_compiling():
            return _pack(*key, device)
        latest = self._latest
        if latest is None or latest[0] != (key, device):
            latest = self._latest = (key, device), _pack(*key, device)
        return latest[1]


def _pack(
    ends: tuple[int, ...],
    special: int,
    alike: int,
    split: int,
    rows: int,
    length: int,
    room: int,
    device: torch.device,
) -> list[Pack]:
    """ends, special, alike: of :class:`Captions`.  split: vectors in front.  rows: of each text with its prompt, of
    which ``length`` hold vectors.  room: rows of a sequence, at most.
    """
    # Alike are the start token, the vectors in front, and as many words as the texts have in common.
    shared = alike + split if alike >= special else alike
    packs = []
    for chosen in _groups([end + length + 1 - shared for end in ends], room - shared):
        seats = [(chosen[0], row) for row in range(shared)]
        seats += [(text, row) for text in chosen for row in range(shared, ends[text] + length + 1)]
        held = [_vector_in(row, special, split, ends[text], length) for text, row in seats]
        holders = [seat for seat, vector in enumerate(held) if vector is not None]
        last = {seat: number for number, seat in enumerate(seats)}
        columns = (
            [text * rows + row for text, row in seats],
            [row for _, row in seats],
            [text if row >= shared else -1 for text, row in seats],
            holders,
            [held[seat] for seat in holders],
            [last[text, ends[text] + length] for text in chosen],
        )
        source, place, owner, *rest = (torch.tensor(column, device=device) for column in columns)
        visible = (place <= place[:, None]) & ((owner == -1) | (owner == owner[:, None]))
        packs.append(Pack(source, place, visible, *rest))
    return packs


def _groups(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Numbers 0..n-1 in order, in groups whose sizes add up to at most ``room`` (or of one).

    >>> _groups([3, 2, 4, 9, 1], 6)
    [[0, 1], [2], [3], [4]]
    """
    groups: list[list[int]] = []
    used = 0
    for number, size in enumerate(sizes):
        if not groups or used + size > room:
            groups.append([])
            used = 0
        groups[-1].append(number)
        used += size
    return groups


def _vector_in(row: int, special: int, split: int, end: int, length: int) -> int | None:
    """Which prompt vector stands in a row of a text whose end token was in column ``end``, or None."""
    if special <= row < special + split:
        return row - special
    return row - end if end + split <= row < end + length else None
