"""Verdicts: the sentences that paired runs allow, with the interval, the detectable effect and the seeds it takes.

Differences are paired by seed, their intervals are Student's. All comparisons of one table are one family: each
interval has the level at which Holm's procedure tests it, so that it excludes 0 exactly where Holm rejects (Holm 1979).
Of three sentences one is said:

- "better by a ± b" or "worse by a ± b", where the interval excludes 0;
- "no difference larger than m", where the whole interval lies within the margin m that was fixed in advance;
- "cannot tell (would need about n seeds)" otherwise: with n seeds, and mean and spread as they are, one of the other
  two would be said.

Where decision reports say that a decision did not move, or that one made per input is the same for all inputs in most
runs, "not learned" stands in their place, since nothing about the method follows; "not run" where runs are missing;
"not tested" where a study says that its claim was not put to a test, or the two have no seed in common.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dplearn.checks import is_number, refuse, shown

ALPHA = 0.05
MOST_SEEDS = 1000
KINDS = ("better", "worse", "no difference", "cannot tell", "not learned", "not tested", "not run")


class Difference(NamedTuple):
    """A mean of paired differences with its interval.

    half : half-width of the interval, the detectable effect at this number of seeds; infinite for one seed.
    level : the error that the interval allows (0.05 / m for the hardest of m comparisons).
    p : of a two-sided paired t-test, before any correction.
    """

    mean: float
    half: float
    seeds: int
    spread: float
    level: float
    p: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return abs(self.mean) > self.half

    def within(self, margin: float) -> bool:
        """Whether the whole interval lies in [-margin, margin]."""
        return abs(self.mean) + self.half <= margin


class Verdict(NamedTuple):
    """What may be said of a method against its baseline.

    kind : one of ``KINDS``.  difference : None where nothing was compared.  margin : fixed in advance.
    needed : seeds that a sentence of another kind would take, for "cannot tell"; None: more than a thousand.
    note : what the sentence does not say.
    """

    kind: str
    difference: Difference | None = None
    margin: float = 0.0
    needed: int | None = None
    note: str = ""

    def sentence(self, unit: float = 100.0, digits: int = 1) -> str:
        """In words; numbers are multiplied by ``unit`` (100: in points).

        >>> Verdict("no difference", margin=0.01).sentence()
        'no difference larger than 1.0'
        """
        if self.kind in ("better", "worse") and self.difference is not None:
            mean, half = abs(self.difference.mean) * unit, self.difference.half * unit
            words = f"{self.kind} by {mean:.{digits}f} ± {half:.{digits}f}"
        elif self.kind == "no difference":
            words = f"no difference larger than {self.margin * unit:.{digits}f}"
        elif self.kind == "cannot tell":
            seeds = f"more than {MOST_SEEDS:,}" if self.needed is None else f"about {self.needed}"
            words = f"cannot tell (would need {seeds} seeds)"
        else:
            words = self.kind
        return f"{words}: {self.note}" if self.note else words

    def told(self, unit: float = 100.0, digits: int = 1) -> str:
        """The sentence without its note, with the difference and its interval where the sentence does not name them.

        >>> gain = Difference(0.013, 0.04, 5, 0.03, 0.05, 0.4)
        >>> Verdict("cannot tell", gain, 0.01, 40).told()
        'cannot tell (would need about 40 seeds): +1.3 ± 4.0'
        """
        words, gain = self._replace(note="").sentence(unit, digits), self.difference
        if gain is None or gain.seeds < 2 or self.kind in ("better", "worse"):
            return words
        return f"{words}: {gain.mean * unit:+.{digits}f} ± {gain.half * unit:.{digits}f}"


def half_width(spread: float, seeds: int, level: float = ALPHA) -> float:
    """Half-width of Student's interval for a mean of so many values with this standard deviation.

    >>> round(half_width(0.05, 10), 4)
    0.0358
    """
    from scipy.stats import t

    if seeds < 2:
        return math.inf
    return float(t.ppf(1 - level / 2, seeds - 1)) * spread / math.sqrt(seeds)


def difference(gains: Sequence[float], level: float = ALPHA) -> Difference:
    """The interval of paired differences, one for each seed.

    Raises
    ------
    ValueError : there are none, one is no finite number, or the level is not in (0, 1).
    """
    from scipy.stats import t

    if not len(gains) or not all(is_number(gain) and math.isfinite(gain) for gain in gains):
        refuse("gains", gains, "a finite number for each seed")
    if not is_number(level) or not 0 < level < 1:
        refuse("level", level, "a number between 0 and 1")
    mean, seeds = statistics.fmean(gains), len(gains)
    if seeds < 2:
        return Difference(mean, math.inf, seeds, math.nan, level, 1.0)
    spread = statistics.stdev(gains)
    half = half_width(spread, seeds, level)
    if spread == 0:
        p = 1.0 if mean == 0 else 0.0
    else:
        p = float(2 * t.sf(abs(mean) * math.sqrt(seeds) / spread, seeds - 1))
    return Difference(mean, half, seeds, spread, level, p)


def holm_levels(ps: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """The level at which Holm's procedure tests each of several hypotheses: ``alpha / m`` for the smallest p, then
    ``alpha / (m - 1)``, and so on up to the first that is not rejected, whose level all later ones have too.

    A hypothesis is rejected exactly where its p is at most its level.

    >>> [round(level, 4) for level in holm_levels([0.2, 0.001, 0.02])]
    [0.05, 0.0167, 0.025]
    >>> [round(level, 4) for level in holm_levels([0.2, 0.001, 0.03])]
    [0.025, 0.0167, 0.025]
    """
    levels, order, level = [0.0] * len(ps), sorted(range(len(ps)), key=lambda i: ps[i]), alpha
    stopped = False
    for rank, number in enumerate(order):
        if not stopped:
            level = alpha / (len(ps) - rank)
            stopped = ps[number] > level
        levels[number] = level
    return levels


def family(gains: Mapping, alpha: float = ALPHA) -> dict:
    """The differences of one table, each with the level of Holm's procedure: key -> gains (by seed) -> Difference."""
    first = {key: difference(values) for key, values in gains.items()}
    levels = holm_levels([each.p for each in first.values()], alpha)
    return {key: difference(gains[key], level) for key, level in zip(first, levels)}


def seeds_needed(gain: Difference, margin: float) -> int | None:
    """The fewest seeds at which the interval, with this mean, spread and level, excludes 0 or lies within the margin.

    None: more than a thousand, or never (a mean at the margin itself).
    """
    if math.isnan(gain.spread):
        return None

    def enough(seeds: int) -> bool:
        trial = gain._replace(half=half_width(gain.spread, seeds, gain.level))
        return trial.excludes_zero or trial.within(margin)

    if not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS  # not enough, enough: widths shrink with every seed
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def judge(gain: Difference | None, margin: float, learned: bool | None = None, why: str = "") -> Verdict:
    """The verdict on a difference.

    Parameters
    ----------
    gain : None: it was not run.
    margin : differences up to this do not matter, fixed in advance; at least 0.
    learned : False: the method's decision was not learned, ``why`` says by which evidence.
    """
    if not is_number(margin) or not 0 <= margin < math.inf:
        raise ValueError(f"margin={shown(margin)} is not valid, expected a finite number of at least 0")
    if gain is None:
        return Verdict("not run", margin=margin, note=why)
    if learned is False:
        return Verdict("not learned", gain, margin, note=why)
    if gain.excludes_zero:
        return Verdict("better" if gain.mean > 0 else "worse", gain, margin)
    if gain.within(margin):
        return Verdict("no difference", gain, margin)
    return Verdict("cannot tell", gain, margin, seeds_needed(gain, margin))
