"""Pictures that change with their controls: drawn in Python for every state, shown by one script.

A picture has parts. Each part depends on some of the controls and is drawn by a function of their values. What differs
between two states goes through :class:`Slots`: words, the widths of bars, marks. The page holds the part in its first
state and the values of the slots in all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from dplearn.interactive.page import STILL, Control, frame


class Slots:
    """What a part of a picture shows in one state: the values, in the order in which they were put.

    ``blank`` leaves the values out of the HTML, so that two states can be told apart by anything else.
    """

    def __init__(self, blank: bool = False):
        self.blank = blank
        self.values: list = []

    def _put(self, kind: str, value: Any) -> str:
        self.values.append(value)
        return f"{kind} {len(self.values) - 1}"

    def _shown(self, value: Any) -> str:
        return "" if self.blank else escape(str(value))

    def text(self, text: str, kind: str = "") -> str:
        """Words."""
        kind = f' class="{kind}"' if kind else ""
        return f'<span{kind} data-slot="{self._put("text", text)}">{self._shown(text)}</span>'

    def said(self, text: str, kind: str = "dpx-state") -> str:
        """The state in words, which is read out when it changes."""
        slot = self._put("text", text)
        return f'<p class="{kind}" aria-live="polite" data-slot="{slot}">{self._shown(text)}</p>'

    def bar(self, *pieces: tuple[str, float]) -> str:
        """Pieces side by side: the class of each and its width in percent. Words beside the bar say the same."""
        widths = [_small(round(width, 1)) for _, width in pieces]
        left, rects, slot = 0, [], self._put("bar", widths)
        for (kind, _), width in zip(pieces, widths):
            where = f'x="{self._shown(left)}%" width="{self._shown(width)}%"'
            rects.append(f'<rect class="dpx-{kind}" {where} y="0" height="100%"/>')
            left = round(left + width, 1)
        return (
            f'<svg class="dpx-bar" height="18" aria-hidden="true" data-slot="{slot}">{"".join(rects)}</svg>'
        )

    def marked(self, on: bool, inside: str, kind: str) -> str:
        """Something that stands out where ``on`` is true."""
        slot = self._put("mark", int(on))
        return f'<div class="{kind}" data-mark="{self._shown(int(on))}" data-slot="{slot}">{inside}</div>'

    def placed(self, text: str, before: Sequence[str], after: Sequence[str], last: str = "") -> str:
        """A text with the vectors of a prompt before and behind it, and what stands last."""
        room = len(before) + len(after)
        sides = ([*side, *[""] * (room - len(side))] for side in (before, after))
        front, back = (" ".join(self.text(word, "dpx-word") for word in side) for side in sides)
        return f'<p class="dpx-quote">{front} {self.text(text)} {back} {escape(last)}</p>'


@dataclass(frozen=True)
class Part:
    """A part of a picture.

    draw : slots and the values of some controls -> HTML, the same for all values but for what went through the slots.
    of : which controls these are, by their place in the list.
    script : a function of the script that gives the slots' values, where there are too many states to store.
    """

    draw: Callable[..., str]
    of: Sequence[int] = ()
    script: str = ""


def figure(
    name: str,
    controls: Sequence[Control],
    parts: Sequence[Part],
    table: str,
    *,
    data: dict | None = None,
    style: str = "",
    still: str = STILL,
) -> str:
    """A figure as HTML: controls above, the parts of the picture below them, all numbers in a table.

    ``data`` is for the scripts of parts that have one. Raises ValueError where a part's HTML depends on a control in
    another way than through its slots.
    """
    bodies, stored = [], []
    for number, part in enumerate(parts):
        html = part.draw(Slots(), *(controls[i].start for i in part.of))
        bodies.append(f'<div class="dpx-part" data-part="{number}">{html}</div>')
        stored.append({"of": list(part.of)} if part.script else {"slots": _states(part, controls, number)})
    own = "".join(f"  own[{n}] = {part.script.strip()};\n" for n, part in enumerate(parts) if part.script)
    everything = {"controls": [each.data() for each in controls], "parts": stored} | (data or {})
    body = '<div class="dpx-controls"></div>\n' + "\n".join(bodies)
    script = SHOW.replace("OWN", own)
    return frame(name, body, table, everything, script, style=STYLE + style, still=still)


def _states(part: Part, controls: Sequence[Control], number: int) -> list[list]:
    """For each slot of a part the controls that it depends on, and its values, nested in their order."""
    sizes, found, skeletons = [len(controls[i].texts) for i in part.of], {}, set()
    for at in itertools.product(*map(range, sizes)):
        slots = Slots()
        part.draw(slots, *at)
        skeletons.add(part.draw(Slots(blank=True), *at))
        found[at] = slots.values
    if len(skeletons) > 1:
        raise ValueError(f"part {number} changes beside its slots, expected the same HTML at all values")
    first = found[tuple(0 for _ in sizes)]
    return [_slot(part, found, sizes, place) for place in range(len(first))]


def _slot(part: Part, found: dict, sizes: Sequence[int], place: int) -> list:
    """One slot: [controls, values]."""

    def at_first(at: Any, axis: Any) -> Any:
        return (*at[:axis], 0, *at[axis + 1 :])

    needed = [
        axis
        for axis in range(len(sizes))
        if any(values[place] != found[at_first(at, axis)][place] for at, values in found.items())
    ]
    ranges = [range(size) if axis in needed else (0,) for axis, size in enumerate(sizes)]
    values = [found[at][place] for at in itertools.product(*ranges)]
    for axis in reversed(needed[1:]):
        values = [values[i : i + sizes[axis]] for i in range(0, len(values), sizes[axis])]
    return [[part.of[axis] for axis in needed], values if needed else values[0]]


def _small(value: Any) -> Any:
    """Whole numbers without their zeros, which JSON would keep."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# A line of a picture: its name, its bar, its number. What is marked has a frame and a word, not a colour alone.
STYLE = """
.dpx-controls { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(12rem, 100%), 1fr)); gap: 0 1.6rem;
  align-items: end }
.dpx-controls .dpx-control { max-width: none; margin: 0 0 .5rem }
.dpx-controls [role="group"] { grid-column: 1 / -1; text-align: center }
.dpx-part { max-width: 44rem; margin: 0 auto .4rem }
.dpx-line { display: grid; grid-template-columns: minmax(5.5rem, 8.5rem) 1fr 4rem; gap: .6rem; align-items: center;
  padding: .12rem .4rem; border: 1px solid transparent; border-radius: 4px; font-variant-numeric: tabular-nums }
.dpx-line[data-mark="1"] { border-color: currentColor; font-weight: 600 }
.dpx-line > :last-child { white-space: nowrap; text-align: right }
.dpx-bar { background: linear-gradient(var(--line), var(--line)) bottom / 100% 1px no-repeat }
.dpx-title { font-weight: 600; margin-top: .5rem !important }
.dpx-quote { font-size: 1.02rem; text-align: center; margin: .5rem auto !important; min-height: 1.6em }
.dpx-word { border: 1px solid var(--edge); border-radius: 4px; padding: .05rem .45rem; background: var(--before);
  color: #fff; margin: 0 .15rem; print-color-adjust: exact }
.dpx-word:empty { display: none }
@media (max-width: 42rem) { .dpx-line { grid-template-columns: 5.2rem 1fr 3.4rem; gap: .4rem }
  .dpx-quote { min-height: 2.8em } }
"""

# Every part looks up the values of its slots, or computes them (`own`), and puts them where they belong.
SHOW = """
  const own = {};
OWN
  const put = {
    text: (element, value) => { if (element.textContent !== value) element.textContent = value; },
    mark: (element, value) => { element.dataset.mark = value; },
    bar: (element, widths) => {
      let left = 0;
      widths.forEach((width, i) => {
        element.children[i].setAttribute("x", left + "%");
        element.children[i].setAttribute("width", width + "%");
        left += width;
      });
    },
  };
  const host = root.querySelector(".dpx-controls");
  const box = () => add(host, "div", { class: "dpx-control" });
  const controls = data.controls.map((spec) => control(box(), spec, () => show()));
  const places = data.parts.map((_, n) => [...root.querySelectorAll(`[data-part="${n}"] [data-slot]`)]
    .map((element) => [element, element.dataset.slot.split(" ")]));
  const show = () => {
    const now = controls.map((value) => value());
    data.parts.forEach(({ of, slots }, n) => {
      const values = slots
        ? slots.map(([needed, inner]) => needed.reduce((rest, i) => rest[now[i]], inner))
        : own[n](...of.map((i) => now[i]));
      for (const [element, [kind, slot]] of places[n]) put[kind](element, values[slot]);
    });
  };
  show();
"""
