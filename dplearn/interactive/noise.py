"""The interactive figure of chapter 05: temperature and noise of Gumbel-Softmax over four options.

The noise of every draw follows from its number, by a small generator that is the same in Python and in the browser, so
that a reader can go back to a draw and a test can compare both. The mathematics is that of
:func:`dplearn.choice.gumbel_one_hot`: the soft sample is ``softmax((alpha + g) / tau)``, the choice its largest entry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dplearn.interactive.page import Control, displayed, number_table
from dplearn.interactive.picture import Part, Slots, figure

if TYPE_CHECKING:
    from IPython.display import HTML

SCORES = (0.3, -0.5, 0.8, 0.1)  # those of the chapter's examples
TEMPERATURES = tuple(round(0.1 * 10 ** (i / 20), 2) for i in range(41))  # 0.1 to 10, in equal ratios
SCALES = tuple(i / 4 for i in range(9))  # of the noise: 0 is none, 1 is Gumbel's
DRAWS_OF_TABLE, TEMPERATURES_OF_TABLE = 6, (0.1, 1.0, 10.0)
SEED = 5


class Sample(NamedTuple):
    """One draw. soft: the relaxed choice, sums to 1.  chosen: its largest entry."""

    soft: list[float]
    chosen: int


def uniform(number: int) -> float:
    """A number strictly between 0 and 1 that looks random: the same in JavaScript (the mulberry32 generator).

    >>> [round(uniform(n), 4) for n in range(3)]
    [0.2664, 0.0003, 0.2233]
    """
    state = (number * 0x6D2B79F5 + 0x6D2B79F5) & 0xFFFFFFFF
    t = ((state ^ (state >> 15)) * (state | 1)) & 0xFFFFFFFF
    t = ((t + (((t ^ (t >> 7)) * (t | 61)) & 0xFFFFFFFF)) & 0xFFFFFFFF) ^ t
    return (((t ^ (t >> 14)) & 0xFFFFFFFF) + 0.5) / 4294967296


def gumbel(draw: int, options: int) -> list[float]:
    """The standard Gumbel noise of a draw, one number for each option."""
    return [-math.log(-math.log(uniform(1000 * SEED + draw * options + k))) for k in range(options)]


def softmax(values: Sequence[float]) -> list[float]:
    """With the largest value taken off first.

    >>> softmax([0.0, 0.0])
    [0.5, 0.5]
    """
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


def sample(scores: Sequence[float], temperature: float, scale: float, draw: int) -> Sample:
    """``softmax((scores + scale * g) / temperature)`` with the noise g of this draw, and its largest entry."""
    noisy = [score + scale * g for score, g in zip(scores, gumbel(draw, len(scores)))]
    return Sample(softmax([value / temperature for value in noisy]), noisy.index(max(noisy)))


def gumbel_explorer(
    name: str = "gumbel-explorer", *, scores: Sequence[float] = SCORES, start: float = 1.0
) -> HTML:
    """The interactive figure, as an object that a notebook and the book display.

    scores : alpha, one for each of two to six options.  start : the temperature that it opens with, one of
    ``TEMPERATURES``.
    """
    return displayed(markup(name, scores=scores, start=start))


def markup(name: str = "gumbel-explorer", *, scores: Sequence[float] = SCORES, start: float = 1.0) -> str:
    """The HTML of :func:`gumbel_explorer`."""
    scores = [float(score) for score in scores]
    if not 2 <= len(scores) <= 6 or not all(map(math.isfinite, scores)):
        raise ValueError(f"scores={scores} are not fit, expected two to six finite numbers")
    if start not in TEMPERATURES:
        raise ValueError(f"start={start!r} is no temperature of the slider, expected one of {TEMPERATURES}")
    controls = [
        Control(
            "slider", "Temperature τ =", [f"{tau:g}" for tau in TEMPERATURES], TEMPERATURES.index(start),
            ends=("0.1, nearly one-hot", "10, nearly uniform"),
        ),
        Control(
            "slider", "Noise, times", [f"{scale:g}" for scale in SCALES], SCALES.index(1.0),
            ends=("0, none: evaluation", "2"),
        ),
        Control(
            "buttons", "Draws of the noise", ("Draw again", "Draw 100 times", "First draw"), 1, steps=(1, 100, 0)
        ),
    ]  # fmt: skip
    pi = softmax(scores)

    def lines(slots: Slots, tau: int, scale: int, draw: int) -> str:
        made = sample(scores, TEMPERATURES[tau], SCALES[scale], draw)
        won = [sample(scores, 1.0, SCALES[scale], n).chosen for n in range(1, draw + 1)]
        return _draw(slots, pi, made, won)

    part = Part(lines, of=(0, 1, 2), script=SCRIPT)
    data = {"scores": scores, "temperatures": TEMPERATURES, "scales": SCALES, "seed": SEED}
    return figure(name, controls, [part], _table(scores), data=data, style=STYLE)


def _draw(slots: Slots, pi: Sequence[float], made: Sample, won: Sequence[int]) -> str:
    """A line for each option: the soft sample, below it the chance π and the share of the draws; their numbers."""
    lines = []
    for k, (soft, chance) in enumerate(zip(made.soft, pi)):
        share = won.count(k) / len(won)
        bars = slots.bar(("before", 100 * soft)) + _thin(chance) + slots.bar(("input", 100 * share))
        numbers = [slots.text(f"{soft:.2f}"), f"<span>{chance:.2f}</span>", slots.text(f"{share:.2f}")]
        name = f"<span>option {k}{slots.text(' ✓' if k == made.chosen else '')}</span>"
        inside = f"{name}<div>{bars}</div>{''.join(numbers)}"
        lines.append(slots.marked(k == made.chosen, inside, "dpx-line dpx-three"))
    return "\n".join([KEY, *lines, slots.said(_words(made, won))])


def _thin(chance: float) -> str:
    return (
        '<svg class="dpx-chance" height="7" aria-hidden="true">'
        f'<rect class="dpx-after" x="0" y="0" width="{100 * chance:.2f}%" height="7"/></svg>'
    )


def _words(made: Sample, won: Sequence[int]) -> str:
    draws = "1 draw" if len(won) == 1 else f"{len(won)} draws"
    return (
        f"Draw {len(won)}: option {made.chosen} is chosen, its soft entry is {max(made.soft):.2f}. "
        f"Of {draws} it has won {won.count(made.chosen)}."
    )


def _table(scores: Sequence[float]) -> str:
    """The first draws at a few temperatures; and the chances."""
    names = [f"option {k}" for k in range(len(scores))]
    rows = [["scores", "α", *_decimals(scores), ""], ["chances", "π", *_decimals(softmax(scores)), ""]]
    for draw in range(1, DRAWS_OF_TABLE + 1):
        rows.append([f"draw {draw}", "noise g", *_decimals(gumbel(draw, len(scores))), ""])
        for tau in TEMPERATURES_OF_TABLE:
            soft, chosen = sample(scores, tau, 1.0, draw)
            rows.append([f"draw {draw}", f"y at τ = {tau:g}", *_decimals(soft), f"option {chosen}"])
    words = "Scores, chances, and the first draws with the whole noise: y is the soft sample."
    return number_table(words, ["Draw", "What", *names, "Chosen"], rows)


def _decimals(values: Sequence[float]) -> list[str]:
    return [f"{value:.2f}".replace("-", "\N{MINUS SIGN}") for value in values]


KEY = """<div class="dpx-key"><span><i class="dpx-before"></i>soft sample y</span>
<span><i class="dpx-after"></i>chance π = softmax(α)</span>
<span><i class="dpx-input"></i>share of the draws so far</span><span>✓ chosen</span></div>
<div class="dpx-line dpx-three dpx-small"><span></span><span></span><span>y</span>
<span>π</span><span>share</span></div>"""

STYLE = """
.dpx-controls { grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)) }
.dpx-line.dpx-three { grid-template-columns: minmax(5.4rem, 7rem) 1fr 2.2rem 2.2rem 2.4rem }
.dpx-small { font-size: .85rem }
.dpx-chance { margin: 2px 0 }
.dpx-chance + .dpx-bar { height: 7px; background: none }
"""

# The same functions as above; a draw's noise does not depend on temperature or scale.
SCRIPT = """
  (() => {
    const uniform = (number) => {
      const state = (Math.imul(number, 0x6d2b79f5) + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
      return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 4294967296;
    };
    const { scores, temperatures, scales, seed } = data, n = scores.length;
    const noisy = (draw, scale) =>
      scores.map((score, k) => score - scale * Math.log(-Math.log(uniform(1000 * seed + draw * n + k))));
    const largest = (values) => values.indexOf(Math.max(...values));
    return (tau, scale, draws) => {
      const values = noisy(draws, scales[scale]), chosen = largest(values);
      const powers = values.map((value) => Math.exp((value - values[chosen]) / temperatures[tau]));
      const soft = powers.map((power) => power / powers.reduce((a, b) => a + b));
      const won = scores.map(() => 0);
      for (let draw = 1; draw <= draws; draw++) won[largest(noisy(draw, scales[scale]))] += 1;
      const times = draws === 1 ? "1 draw" : `${draws} draws`;
      return [
        ...soft.flatMap((y, k) => [[100 * y], [100 * won[k] / draws], y.toFixed(2), (won[k] / draws).toFixed(2),
          k === chosen ? " ✓" : "", k === chosen ? 1 : 0]),
        `Draw ${draws}: option ${chosen} is chosen, its soft entry is ${soft[chosen].toFixed(2)}. `
          + `Of ${times} it has won ${won[chosen]}.`,
      ];
    };
  })()
"""
