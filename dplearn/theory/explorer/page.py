"""The interactive figure as one piece of HTML: numbers, words, styles, and a small script that only shows them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from dplearn.theory.explorer.heads import HEADS, INPUTS, PROMPT
from dplearn.theory.explorer.shown import number_text, numbers, order_at

if TYPE_CHECKING:
    from IPython.display import HTML

# Stands where scripts do not run; the script takes it away.
STILL = "Scripts are off in this view. The table below holds the numbers that the figure shows as the split moves."


def split_explorer(
    name: str = "split-explorer", *, prompt=PROMPT, inputs=INPUTS, start: int | None = None
) -> HTML:
    """The interactive figure, as an object that a notebook and the book display.

    ``name`` is the figure's id in the page: several explorers in one page need different ones. ``start`` is the split
    that it opens with, None for the middle. Own ``prompt`` (l, 2) and ``inputs`` (T, 2) can be looked at in a live
    notebook. Needs IPython, which the extra ``book`` brings. Raises ValueError for an unfit argument.
    """
    from IPython.display import HTML

    return HTML(markup(name, prompt=prompt, inputs=inputs, start=start))


def markup(name: str = "split-explorer", *, prompt=PROMPT, inputs=INPUTS, start: int | None = None) -> str:
    """The HTML of `split_explorer`: styles, words, a table of all numbers, the numbers as JSON, the script."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII):
        raise ValueError(f"name={name!r} is not an id, expected a letter, then letters, digits, - and _")
    data = numbers(prompt, inputs)
    length = len(data["heads"][0]["outputs"]) - 1
    start = length // 2 if start is None else start
    if type(start) is not int or not 0 <= start <= length:
        raise ValueError(f"start={start!r} is not a split, expected an int from 0 to {length}")
    panels = (
        f'<div class="dpx-head"><p><strong>{head.title}</strong><br>{head.rule}</p>\n'
        f'<p class="dpx-notice"><em>Notice:</em> {head.notice}</p></div>'
        for head in HEADS.values()
    )
    stored = json.dumps({"start": start, **data}, separators=(",", ":"))
    return "\n".join(
        [
            f'<div class="dpx" id="{name}">',
            f"<style>{STYLE}</style>",
            f'<p class="dpx-still">{STILL}</p>',
            '<div class="dpx-heads">',
            *panels,
            "</div>",
            "<details open><summary>All numbers as a table</summary>",
            *_table(data),
            "</details>",
            f'<script type="application/json">{stored}</script>',
            f"<script>{SCRIPT.replace('NAME', name)}</script>",
            "</div>",
        ]
    )


def _table(data: dict) -> list[str]:
    """Every number of the figure, one line per head and split."""
    length = len(data["heads"][0]["outputs"]) - 1
    names = "".join(f"<th>{name}</th>" for name in data["rows"])
    lines = [
        '<div class="dpx-scroll" tabindex="0" role="region" aria-label="All numbers">',
        "<p>Percent of the row's attention on the prompt before · the input · the prompt after; then the row's output"
        f" and, in brackets, its change from k = {length}.</p>",
        f"<table><thead><tr><th>Head</th><th>k</th><th>Order</th>{names}</tr></thead>",
        "<tbody>",
    ]
    for head in data["heads"]:
        for k, columns in enumerate(zip(head["gates"], head["outputs"], head["changes"])):
            cells = "".join(
                f"<td>{' · '.join(map(str, percent))}<br>{number_text(output)} ({change})</td>"
                for percent, output, change in zip(*columns)
            )
            lines.append(
                f"<tr><th>{head['name']}</th><td>{k}</td><td>{' '.join(order_at(data, k))}</td>{cells}</tr>"
            )
    return [*lines, "</tbody></table>", "</div>"]


# ---- styles and script ------------------------------------------------------------------------------------

# Colours: dark blue, sky blue and cream differ in lightness too. Ink and ground are the theme's, or the notebook's.
# The first two rules undo what the theme does to HTML outputs: a box of its own, in which nothing can be sticky, and a
# light card in the dark. On a phone the slider stays in view while the heads below it are scrolled.
STYLE = """
.cell_output:has(.dpx), .text_html:has(> .dpx) { overflow: visible !important }
.text_html:has(> .dpx) { background: none !important; color: inherit !important; padding: 0 !important }
.dpx { --before: #1f6fb2; --input: #fde8c8; --after: #8fcdf2; --edge: #a8660a; --line: rgba(128, 128, 128, .55);
  color: var(--pst-color-text-base, var(--jp-content-font-color1, inherit)); font-size: .9rem; line-height: 1.4;
  text-align: left; max-width: 60rem }
.dpx p { margin: .3rem 0; font-size: inherit; color: inherit }
.dpx svg { display: block; width: 100%; overflow: visible; font: 12px Helvetica, Arial, sans-serif }
.dpx-heads { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .8rem 1.4rem }
.dpx-head { border-top: 2px solid var(--line); padding-top: .2rem; display: grid; grid-template-rows: subgrid;
  grid-row: span 3; row-gap: 0; align-content: start }
.dpx-notice { font-size: .85rem !important }
.dpx-control { max-width: 27rem; margin: 0 auto .6rem }
.dpx-control label { display: flex; justify-content: space-between; flex-wrap: wrap }
.dpx-control input { width: 100%; height: 2rem; margin: 0; accent-color: var(--before); cursor: pointer }
.dpx-ends { display: flex; justify-content: space-between; font-size: .8rem }
.dpx-control g { transition: transform .35s }
.dpx-key { display: flex; flex-wrap: wrap; gap: .1rem 1rem; justify-content: center; font-size: .85rem }
.dpx-key i { display: inline-block; width: 1em; height: 1em; vertical-align: -.12em; margin-right: .35em;
  border: 1px solid var(--edge) }
.dpx-wide { width: 100%; text-align: center }
.dpx-state { min-height: 2.8em; text-align: center; max-width: 40rem; margin: .3rem auto !important }
.dpx-count { font-weight: 600 }
.dpx-row { display: grid; grid-template-columns: 1.6rem 1fr; align-items: center; margin-bottom: .45rem }
.dpx-out { display: grid; grid-template-columns: 1fr auto; gap: .6rem; align-items: center; grid-column: 2;
  font-size: .8rem; font-variant-numeric: tabular-nums }
.dpx-out span { min-width: 5.8rem; text-align: right }
.dpx rect, .dpx circle { transition: x .35s, width .35s, cx .35s, fill .35s }
.dpx-before { fill: var(--before); background: var(--before) }
.dpx-input { fill: var(--input); background: var(--input) }
.dpx-after { fill: var(--after); background: var(--after) }
.dpx rect { stroke: var(--edge) }
.dpx text { fill: #1a1a1a; text-anchor: middle; transition: fill .35s }
.dpx text.dpx-light { fill: #fff }
.dpx line, .dpx circle { stroke: currentColor; fill: none }
.dpx circle.dpx-now { fill: currentColor; stroke: none }
.dpx details { margin-top: .6rem; font-size: .85rem }
.dpx-scroll { overflow-x: auto }
.dpx table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums }
.dpx th, .dpx td { border-bottom: 1px solid var(--line); padding: .15rem .6rem .15rem 0; text-align: left;
  white-space: nowrap; font-weight: 400 }
.dpx thead th { font-weight: 600 }
@media (max-width: 42rem) {
  .dpx-state { min-height: 5.6em }
  .dpx-control { position: sticky; top: calc(var(--pst-header-height, .6rem) - .6rem); z-index: 1;
    max-width: none; margin: 0 -2px .6rem; padding: .6rem max(2px, 50% - 13.5rem) .3rem;
    background: var(--pst-color-background, var(--jp-layout-color0, transparent)) }
}
@media (prefers-reduced-motion: reduce) { .dpx * { transition: none !important } }
"""

# The script finds the figure around itself, because a notebook can show the same output twice; older notebooks run
# scripts elsewhere, and there the id helps. It builds what needs a script, and closes the table.
SCRIPT = """
(() => {
  const here = document.currentScript && document.currentScript.closest(".dpx");
  const root = here || document.getElementById("NAME");
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "yes";
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const last = data.heads[0].outputs.length - 1, rows = data.rows.length;
  const segments = ["before", "input", "after"];
  const add = (parent, tag, attributes = {}, text = "", space = "http://www.w3.org/1999/xhtml") => {
    const element = document.createElementNS(space, tag);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    element.textContent = text;
    return parent.appendChild(element);
  };
  const draw = (parent, tag, attributes, text) => add(parent, tag, attributes, text, "http://www.w3.org/2000/svg");
  const number = (value) => value.toFixed(2).replace("-", "\\u2212");
  const kind = (k) => (k === 0 ? "postfix" : k === last ? "prefix" : "surround");
  const heads = root.querySelector(".dpx-heads");

  // The slider, and the sequence below it: one box per vector.
  const control = root.insertBefore(document.createElement("div"), heads);
  control.className = "dpx-control";
  const label = add(control, "label");
  const caption = add(label, "span");
  // The data attribute keeps the arrow keys from JupyterLab, where they would move between cells.
  const slider = add(label, "input", { type: "range", min: 0, max: last, step: 1, value: data.start,
    "data-lm-suppress-shortcuts": "true" });
  const ends = add(control, "div", { class: "dpx-ends", "aria-hidden": "true" });
  for (const k of [0, last]) add(ends, "span", {}, `${k} ${kind(k)}`);
  const wide = 46 * (last + rows);
  const strip = draw(control, "svg", { viewBox: `0 0 ${wide} 36`, role: "img" });
  const title = draw(strip, "title", {});
  const box = (name, segment) => {
    const group = draw(strip, "g", {});
    const shape = draw(group, "rect", { x: 2, y: 2, width: 42, height: 32, rx: 5, class: "dpx-" + segment });
    const text = draw(group, "text", { x: 23, y: 23, "font-size": 15 });
    draw(text, "tspan", {}, name[0]);
    draw(text, "tspan", { dy: 4, "font-size": 11 }, name.slice(1));
    return { group, shape, text };
  };
  const inputs = data.rows.map((name) => box(name, "input"));
  const prompt = Array.from({ length: last }, (_, i) => box("P" + (i + 1), "before"));

  // What the colours and marks mean, and the state in words.
  const key = root.insertBefore(document.createElement("div"), heads);
  key.className = "dpx-key";
  const names = ["prompt before", "input (X and R)", "prompt after"];
  add(key, "span", {}, "Percent of a row's attention:");
  names.forEach((name, s) => add(add(key, "span"), "i", { class: "dpx-" + segments[s] }).after(name));
  const then = `\\u25cb the output at k\\u00a0=\\u00a0${last}`;
  add(key, "span", { class: "dpx-wide" }, "\\u25cf output, with its change from " + then);
  const state = root.insertBefore(document.createElement("p"), heads);
  state.className = "dpx-state";
  state.setAttribute("aria-live", "polite");

  // One panel per head, one row per input token: a bar of shares, a line with the output.
  const all = data.heads.flatMap((head) => head.outputs.flat());
  const low = Math.min(...all), high = Math.max(...all);
  const at = (value) => (high > low ? 4 + (92 * (value - low)) / (high - low) : 50) + "%";
  const panels = data.heads.map((head, h) => {
    const panel = heads.children[h], notice = panel.querySelector(".dpx-notice");
    panel.setAttribute("role", "group");
    panel.setAttribute("aria-label", head.name + " head");
    const inner = panel.insertBefore(document.createElement("div"), notice);
    const count = add(inner, "p", { class: "dpx-count" });
    const lines = data.rows.map((name, r) => {
      const line = add(inner, "div", { class: "dpx-row" });
      const tag = add(line, "span", {}, name[0]);
      add(tag, "sub", {}, name.slice(1));
      const bar = draw(line, "svg", { height: 20, role: "img" });
      const words = draw(bar, "title", {});
      const parts = segments.map((s) => draw(bar, "rect", { y: 0, height: 20, class: "dpx-" + s }));
      const shares = segments.map((s) => draw(bar, "text", { y: 14, class: s === "before" ? "dpx-light" : "" }));
      const out = add(line, "div", { class: "dpx-out" });
      const scale = draw(out, "svg", { height: 16, "aria-hidden": "true" });
      draw(scale, "line", { x1: 0, x2: "100%", y1: 8, y2: 8, "stroke-opacity": .5 });
      draw(scale, "circle", { cx: at(head.outputs[last][r]), cy: 8, r: 5.5 });
      const dot = draw(scale, "circle", { cy: 8, r: 3.5, class: "dpx-now" });
      return { words, parts, shares, dot, value: add(out, "span") };
    });
    return { count, lines };
  });

  const show = () => {
    const k = Number(slider.value);
    caption.textContent = `Split k = ${k}, ${kind(k)}`;
    slider.setAttribute("aria-valuetext", `k = ${k}, ${kind(k)}`);
    const move = (b, to) => (b.group.style.transform = `translateX(${46 * to}px)`);
    inputs.forEach((b, t) => move(b, t === rows - 1 ? last + t : k + t));
    prompt.forEach((b, i) => {
      move(b, i < k ? i : i + rows - 1);
      b.shape.setAttribute("class", i < k ? "dpx-before" : "dpx-after");
      b.text.setAttribute("class", i < k ? "dpx-light" : "");
    });
    const names = prompt.map((_, i) => "P" + (i + 1)), x = data.rows;
    const order = [...names.slice(0, k), ...x.slice(0, -1), ...names.slice(k), x[rows - 1]];
    title.textContent = "Order of the vectors: " + order.join(", ");
    const said = data.heads.map((head, h) => {
      const changes = head.changes[k], moved = changes.filter((change) => change !== "0").length;
      panels[h].count.textContent = k === last
        ? `k = ${last} is the reference` : `${moved} of ${rows} outputs changed`;
      panels[h].lines.forEach((line, r) => {
        const share = head.gates[k][r], sum = share[0] + share[1] + share[2];
        let x = 0;
        share.forEach((part, s) => {
          const width = (100 * part) / sum;
          line.parts[s].setAttribute("x", x + "%");
          line.parts[s].setAttribute("width", width + "%");
          line.shares[s].setAttribute("x", x + width / 2 + "%");
          line.shares[s].textContent = width < (part < 10 ? 6 : 10) ? "" : part;
          x += width;
        });
        line.words.textContent = `Row ${data.rows[r]}, attention: ${share[0]} % prompt before, `
          + `${share[1]} % input, ${share[2]} % prompt after`;
        line.dot.setAttribute("cx", at(head.outputs[k][r]));
        line.value.textContent = `${number(head.outputs[k][r])} (${changes[r]})`;
      });
      const change = changes[rows - 1];
      return `${head.name} ${number(head.outputs[k][rows - 1])}`
        + (k === last ? "" : change === "0" ? " (unchanged)" : ` (changed by ${change})`);
    });
    state.textContent = `Output of the readout R at k = ${k}: ${said.join(", ")}.`;
  };
  slider.addEventListener("input", show);
  show();
  root.querySelector("details").open = false;
  root.querySelector(".dpx-still").remove();
})();
"""
