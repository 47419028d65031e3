"""What all figures that a reader can move share: the frame, the look, the controls, and what is left without scripts.

A figure is one piece of HTML. It holds a picture in its first state, as SVG and words; all numbers as a table; the data
as JSON; and a small script that makes the controls and only shows what the data say. No library and no network are
needed. Where scripts do not run, and on paper, the picture and the table are there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import HTML

KINDS = ("slider", "choice", "buttons")
# Stands where scripts do not run.
STILL = "Scripts are off in this view: the picture stays as it is. The table below holds the other numbers."


@dataclass(frozen=True)
class Control:
    """Something to move, with its label. It is made by the script, of the browser's own inputs.

    kind : "slider" or "choice" (one of several values), or "buttons" (which count).
    label : what it is.
    texts : what each value is called; of buttons, what each of them is called.
    start : the first value, an index of ``texts``; of buttons, the first count.
    ends : what stands under both ends of a slider.
    steps : what each button adds to the count; 0 sets it back to the start.
    """

    kind: str
    label: str
    texts: Sequence[str]
    start: int = 0
    ends: Sequence[str] = ()
    steps: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"kind={self.kind!r} is no control, expected one of {', '.join(map(repr, KINDS))}"
            )
        if self.kind == "buttons":
            if len(self.steps) != len(self.texts):
                raise ValueError(
                    f"steps={self.steps!r} has no entry for each of the {len(self.texts)} buttons"
                )
        elif type(self.start) is not int or not 0 <= self.start < len(self.texts):
            raise ValueError(
                f"start={self.start!r} is no value, expected an int from 0 to {len(self.texts) - 1}"
            )

    def data(self) -> dict:
        """What the script needs."""
        return {name: value for name, value in asdict(self).items() if value not in ((), [])}


def checked_name(name: str) -> str:
    """The id of a figure, if it is one; else ValueError.

    >>> checked_name("pool-explorer")
    'pool-explorer'
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII):
        raise ValueError(f"name={name!r} is not an id, expected a letter, then letters, digits, - and _")
    return name


def frame(
    name: str, body: str, table: str, data: dict, script: str, *, style: str = "", still: str = STILL
) -> str:
    """A figure as HTML.

    Parameters
    ----------
    name : its id in the page; two figures of one page need different ones.
    body : what is seen: the picture in its first state.
    table : all numbers, as :func:`number_table` makes it. Open where scripts do not run, else folded away.
    data : for the script, as ``data``.
    script : what the figure does. It finds ``root`` (the figure), ``data`` and the functions of ``HELPERS``.
    style : rules beside those that all figures have.
    still : what is said where scripts do not run.
    """
    stored = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return "\n".join(
        [
            f'<div class="dpx" id="{checked_name(name)}">',
            f"<style>{STYLE}{style}</style>",
            f'<p class="dpx-still">{still}</p>',
            body,
            "<details open><summary>All numbers as a table</summary>",
            table,
            "</details>",
            f'<script type="application/json">{stored}</script>',
            f"<script>{HELPERS.replace('NAME', name)}{script}{END}</script>",
            "</div>",
        ]
    )


def number_table(
    words: str, head: Sequence[str], rows: Sequence[Sequence[str]], label: str = "All numbers"
) -> str:
    """A table in a box that scrolls, with a sentence above it. The first cell of a row is its head; cells are HTML."""
    lines = [
        f'<div class="dpx-scroll" tabindex="0" role="region" aria-label="{escape(label)}">',
        f"<p>{words}</p>",
        f"<table><thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead>",
        "<tbody>",
    ]
    for first, *others in rows:
        lines.append(f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in others)}</tr>")
    return "\n".join([*lines, "</tbody></table>", "</div>"])


def displayed(html: str) -> HTML:
    """The figure as an object that a notebook and the book display. Needs IPython, which the extra ``book`` brings."""
    from IPython.display import HTML

    return HTML(html)


# ---- styles and script ------------------------------------------------------------------------------------

# Colours: dark blue, sky blue and cream differ in lightness too. Ink and ground are the theme's, or the notebook's.
# The first two rules undo what the theme does to HTML outputs: a box of its own, in which nothing can be sticky, and a
# light card in the dark. Where a finger points, what it moves is 44 pixels high. On paper there is nothing to move.
STYLE = """
.cell_output:has(.dpx), .text_html:has(> .dpx) { overflow: visible !important }
.text_html:has(> .dpx) { background: none !important; color: inherit !important; padding: 0 !important }
.dpx { --before: #1f6fb2; --input: #fde8c8; --after: #8fcdf2; --edge: #a8660a; --line: rgba(128, 128, 128, .55);
  --ground: var(--pst-color-background, var(--jp-layout-color0, transparent));
  color: var(--pst-color-text-base, var(--jp-content-font-color1, inherit)); font-size: .9rem; line-height: 1.4;
  text-align: left; max-width: 60rem }
.dpx p { margin: .3rem 0; font-size: inherit; color: inherit }
.dpx svg { display: block; width: 100%; overflow: visible; font: 12px Helvetica, Arial, sans-serif }
.dpx[data-ready] > .dpx-still { display: none }
.dpx-control { max-width: 27rem; margin: 0 auto .6rem }
.dpx-control label { display: flex; justify-content: space-between; flex-wrap: wrap }
.dpx-control input { width: 100%; height: 2rem; margin: 0; accent-color: var(--before); cursor: pointer }
.dpx-control select, .dpx-control button { font: inherit; color: inherit; min-height: 2.2rem; cursor: pointer;
  background: var(--ground); border: 1px solid currentColor; border-radius: 4px; padding: .2rem .6rem }
.dpx-control select { width: 100% }
.dpx-control option { background: Canvas; color: CanvasText }
.dpx-control button { margin: 0 .5rem .3rem 0 }
.dpx-control :focus-visible { outline: 3px solid var(--before); outline-offset: 0 }
.dpx-ends { display: flex; justify-content: space-between; font-size: .8rem }
.dpx-key { display: flex; flex-wrap: wrap; gap: .1rem 1rem; justify-content: center; font-size: .85rem }
.dpx-key i { display: inline-block; width: 1em; height: 1em; vertical-align: -.12em; margin-right: .35em;
  border: 1px solid var(--edge); print-color-adjust: exact }
.dpx-state { min-height: 2.8em; text-align: center; max-width: 40rem; margin: .3rem auto !important }
.dpx rect, .dpx circle { transition: x .35s, width .35s, cx .35s, fill .35s }
.dpx-before { fill: var(--before); background: var(--before) }
.dpx-input { fill: var(--input); background: var(--input) }
.dpx-after { fill: var(--after); background: var(--after) }
.dpx rect { stroke: var(--edge) }
.dpx line, .dpx circle { stroke: currentColor; fill: none }
.dpx details { margin-top: .6rem; font-size: .85rem }
.dpx summary { padding: .3rem 0; cursor: pointer }
.dpx-scroll { overflow-x: auto }
.dpx table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums }
.dpx th, .dpx td { border-bottom: 1px solid var(--line); padding: .15rem .6rem .15rem 0; text-align: left;
  white-space: nowrap; font-weight: 400 }
.dpx thead th { font-weight: 600 }
@media (max-width: 42rem) { .dpx-state { min-height: 5.6em } .dpx-control { max-width: none } }
@media (pointer: coarse) { .dpx-control :is(input, select, button) { min-height: 44px }
  .dpx summary { padding: .8rem 0 } }
@media (prefers-reduced-motion: reduce) { .dpx * { transition: none !important } }
@media print { .dpx-control input, .dpx-ends, .dpx-control:has(select, button) { display: none }
  .dpx-scroll { overflow: visible } .dpx th, .dpx td { white-space: normal } }
"""

# The script finds the figure around itself, because a notebook can show the same output twice; older notebooks run
# scripts elsewhere, and there the id helps. `control` makes an input with its label and gives a function for its value.
HELPERS = """
(() => {
  const here = document.currentScript && document.currentScript.closest(".dpx");
  const root = here || document.getElementById("NAME");
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "yes";
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const add = (parent, tag, attributes = {}, text = "", space = "http://www.w3.org/1999/xhtml") => {
    const element = document.createElementNS(space, tag);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    element.textContent = text;
    return parent.appendChild(element);
  };
  const draw = (parent, tag, attributes, text) => add(parent, tag, attributes, text, "http://www.w3.org/2000/svg");
  // The data attribute keeps the arrow keys from JupyterLab, where they would move between cells.
  const keys = { "data-lm-suppress-shortcuts": "true" };
  const control = (box, { kind, label, texts, start, ends = [], steps = [] }, changed) => {
    if (kind === "buttons") {
      let count = start;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", label);
      texts.forEach((text, i) => {
        const button = add(box, "button", { type: "button", ...keys }, text);
        button.addEventListener("click", () => {
          count = steps[i] ? count + steps[i] : start;
          changed();
        });
      });
      return () => count;
    }
    const line = add(box, "label"), caption = add(line, "span", {}, label);
    if (kind === "choice") {
      const select = add(line, "select", { "aria-label": label, ...keys });
      texts.forEach((text, i) => add(select, "option", { value: i }, text));
      select.value = start;
      select.addEventListener("input", changed);
      return () => Number(select.value);
    }
    const slider = add(line, "input", { type: "range", min: 0, max: texts.length - 1, step: 1, value: start, ...keys });
    if (ends.length) {
      const under = add(box, "div", { class: "dpx-ends", "aria-hidden": "true" });
      ends.forEach((end) => add(under, "span", {}, end));
    }
    const name = () => {
      caption.textContent = `${label} ${texts[slider.value]}`;
      slider.setAttribute("aria-valuetext", texts[slider.value]);
    };
    slider.addEventListener("input", () => { name(); changed(); });
    name();
    return () => Number(slider.value);
  };
"""
END = """
  root.querySelector("details").open = false;
})();
"""
