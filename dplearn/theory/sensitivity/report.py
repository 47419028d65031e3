"""What the probe measured: numbers, a table of them, and a sentence for whoever wonders whether to learn a position."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import NamedTuple

CAUSAL, READOUT = "causal visibility", "readout"


class Change(NamedTuple):
    """Relative changes, ||now - before|| / ||before||, the largest over splits."""

    rows: float  # of the last hidden states of the input's tokens between the prompt's parts, each followed as it moves
    readout: float  # of what the model answers with
    fixed: float | None  # of what a reader that does not follow the move answers with; None: no such reader


@dataclass(frozen=True)
class Sensitivity:
    """What :func:`~dplearn.theory.sensitivity.probe.position_sensitivity` measured.

    ``print`` shows it as a table with a verdict.
    """

    model: str  # name of the class
    length: int  # l
    splits: tuple[int, ...]
    positions: str | None  # the mechanism by which rows know where they stand, behind the insertion
    causal: bool
    unreached: str | None  # why position information could not be switched off
    full: Change  # the model as it is
    position_off: Change | None  # None: not there, or not reached
    mask_off: Change | None
    both_off: Change | None  # all that is there switched off: zero on the rows, or the probe missed something
    prompt_moves: Change | None  # absolute positions, mask off: the prompt vectors' move, the input's stay
    input_moves: Change | None  # and the other way round
    redrawn: Change  # new prompt vectors at k = l: a scale for all of the above
    tolerance: float  # at or below this, a change is rounding

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """Through what the split was seen to act, of what could be switched off."""
        alone = [(self.positions, self.mask_off if self.causal else self.full), (CAUSAL, self.position_off)]
        acting = [
            name
            for name, change in alone
            if change is not None and name is not None and self._acts(change.rows)
        ]
        if (
            self.both_off is not None
            and not self._acts(self.both_off.rows)
            and self._acts(self.both_off.readout)
        ):
            acting.append(READOUT)
        return tuple(acting if self.unreached is None else [])

    @property
    def order_blind(self) -> bool:
        """Whether the split changed neither the rows of the input nor the answer."""
        return not (self._acts(self.full.rows) or self._acts(self.full.readout))

    @property
    def accounts_for_all(self) -> bool:
        """Whether nothing is left on the rows once everything known is switched off."""
        return self.unreached is None and not self._acts((self.both_off or self.full).rows)

    @property
    def verdict(self) -> str:
        """One sentence for someone who wonders whether to learn a position."""
        scale = f"the answer changes by {_number(self.full.readout)} (new vectors: {_number(self.redrawn.readout)})"
        if self.order_blind:
            trap = ""
            if self.fixed_index_trap and self.full.fixed is not None:
                trap = f"; a reader that does not follow its row would be off by {_number(self.full.fixed)}"
            why = "order-blind" if self.positions is None and not self.causal else "order-blind on this batch"
            return f"{why}: learning a position cannot change the answer{trap}"
        if self.unreached is not None:
            return f"the split acts, {scale}; through what is not known: {self.unreached}"
        if not self.accounts_for_all:
            return f"the split acts, {scale}; through something else too: with all that is known off it still does"
        return f"the split acts through {', '.join(self.mechanisms)}: {scale}"

    @property
    def fixed_index_trap(self) -> bool:
        """Whether the tracked answer is the same at all splits and the one at a fixed index is not."""
        fixed = self.full.fixed
        return fixed is not None and self._acts(fixed) and not self._acts(self.full.readout)

    def table(self) -> dict[str, Change | None]:
        """The rows of the table, by what was done; None where that does not apply."""
        return {
            "as it is": self.full,
            "position off": self.position_off,
            "causal mask off": self.mask_off,
            "both off": self.both_off if self.causal else None,
            "prompt's positions alone": self.prompt_moves,
            "input's positions alone": self.input_moves,
            "new vectors": self.redrawn,
        }

    def text(self, value: float | None) -> str:
        """A change as the table shows it: 0 where it is rounding, a dash where there is none."""
        return "–" if value is None else _number(value) if self._acts(value) else "0"

    def __str__(self) -> str:
        every = self.splits == tuple(range(self.length + 1))
        splits = f"0..{self.length}" if every else ", ".join(map(str, self.splits))
        lines = [f"{self.model}, {self.length} prompt vectors, splits {splits}"]
        lines.append(f"{'':26}{'input rows':>10}{'answer':>9}{'fixed row':>11}")
        for name, change in self.table().items():
            if change is not None:
                cells = [self.text(value) for value in change]
                lines.append(f"{name:26}{cells[0]:>10}{cells[1]:>9}{cells[2]:>11}")
        return "\n".join([*lines, *textwrap.wrap(self.verdict, 72)])

    def _acts(self, change: float) -> bool:
        return not change <= self.tolerance  # a nan acts


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.095 else f"{value:.1g}"
