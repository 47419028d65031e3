"""The interactive figure of chapter 04: move the split k and watch three small frozen attention heads.

The heads share their queries, keys and values and differ only in what is added to the scores: nothing, a number for
each relative distance, or a causal mask. Everything is computed here, for every split, and stored in one piece of HTML
with a small script that only shows it. No library and no network are needed, and the bytes are the same on every
machine, so that a notebook's stored output can be compared. Without scripts the same numbers stand in a table.

    readings        the gates and the outputs of a head's input rows at every split
    split_explorer  the figure, for the last line of a notebook cell
    picture         a still of it at three splits, as SVG; book/_static/split-explorer.svg is one
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dplearn.insertion import insert
from dplearn.theory.attention import attend, causal_bias, gates, offsets, scores, segments_of

if TYPE_CHECKING:
    from IPython.display import HTML

# The vectors and the head: small numbers, chosen so that every share can be read off a bar. The last input token is
# the readout R; it stays last at every split, as an end-of-sequence token does.
PROMPT = ((-1.5, -1.3), (1.5, 0.5), (1.1, 0.3), (0.3, -0.8))  # (l, d)
INPUTS = ((-0.1, 0.7), (0.1, -0.9), (-1.2, -0.2), (-0.9, 0.1))  # (T, d)
QUERY = ((0.6, 0.3), (-0.3, 0.6))  # (d, d): the query of a row x is x @ QUERY, its key is x itself
VALUE = (1.0, -1.0)  # (d,): the value of a row x is the number x @ VALUE
# What the relative bias takes off a score for each step of distance to the left and to the right.
LEFT, RIGHT = 0.5, 0.2
# A difference between two outputs below this share of the largest is rounding in float64.
ROUNDING = 1e-12

# The parts of a bar, in the order of the gates; they are also the names of the styles.
SEGMENTS = ("before", "input", "after")
# Stands where scripts do not run; the script takes it away.
STILL = "Scripts are off in this view. The table below holds the numbers that the figure shows as the split moves."


class Head(NamedTuple):
    """The words of one head."""

    title: str
    rule: str  # what is added to its scores
    notice: str  # what to see when the split moves


HEADS = {
    "order-blind": Head(
        "Order-blind head",
        "Nothing is added to the scores.",
        "No output ever changes. A prompt vector that moves takes its attention along, so the two parts of the"
        " prompt's share keep their sum.",
    ),
    "relative bias": Head(
        "Relative-bias head",
        f"As in T5, a score depends on the distance: it loses {LEFT} per step to the left and {RIGHT} per step to"
        " the right.",
        "The outputs change, though the vectors are the same: their distances to the row are not.",
    ),
    "causal": Head(
        "Causal head",
        "A row sees itself and what stands before it.",
        "The rows X never see the prompt after them: that share is exactly 0. R stands last and sees every vector,"
        " so for R this one layer is order-blind.",
    ),
}


class Readings(NamedTuple):
    """A head at every split k = 0..l. Rows are the input tokens, wherever they stand."""

    gates: Tensor  # (l+1, T, 3), shares of a row's attention: prompt before the input, input, prompt after it
    outputs: Tensor  # (l+1, T)

    @property
    def changes(self) -> Tensor:
        """Difference of each output from the one at k = l, (l+1, T)."""
        return self.outputs - self.outputs[-1]


def head_bias(head: str, rows: int) -> Tensor:
    """What a head adds to the score of each row (first axis) and key: (rows, rows), float64.

    A head is one of "order-blind", "relative bias" and "causal"; any other raises ValueError.

    >>> head_bias("relative bias", 3).tolist()
    [[0.0, -0.2, -0.4], [-0.5, 0.0, -0.2], [-1.0, -0.5, 0.0]]
    """
    if head == "order-blind":
        return torch.zeros(rows, rows, dtype=torch.float64)
    if head == "relative bias":
        distance = offsets(rows).double()
        return torch.where(distance < 0, LEFT * distance, -RIGHT * distance) + 0.0  # no -0.0
    if head == "causal":
        return causal_bias(rows)
    raise ValueError(f"head={head!r} is unknown, expected one of {', '.join(map(repr, HEADS))}")


def readings(head: str, prompt=PROMPT, inputs=INPUTS) -> Readings:
    """Gates and outputs of a head's input rows for every split; the readout, the last input row, is kept last.

    prompt: (l, 2) and inputs: (T, 2), numbers or tensors; the head computes in float64. Raises ValueError for another
    shape and for an unknown head.

    >>> blind, causal = readings("order-blind"), readings("causal")
    >>> bool(blind.changes.abs().max() < 1e-12), causal.gates[:, :3, 2].count_nonzero().item()
    (True, 0)
    """
    prompt, inputs = _vectors("prompt", prompt), _vectors("inputs", inputs)
    query, value = (torch.tensor(weights, dtype=torch.float64) for weights in (QUERY, VALUE))
    bias = head_bias(head, len(prompt) + len(inputs))
    shares, outputs = [], []
    for k in range(len(prompt) + 1):
        placed = insert(prompt, inputs[None], split=k, keep_last=1)
        rows = placed.embeds[0]  # (l+T, d)
        found = scores(rows @ query, rows, bias)[placed.input_positions[0]]  # (T, l+T)
        shares.append(gates(found, segments_of(placed, k)[0]))
        outputs.append(attend(found, (rows @ value)[:, None])[:, 0])
    return Readings(torch.stack(shares), torch.stack(outputs))


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


# ---- numbers and words, as they are shown -----------------------------------------------------------------


def numbers(prompt=PROMPT, inputs=INPUTS) -> dict:
    """What the figure shows, rounded: gates in percent, outputs to two decimals, and their changes as words.

    A change is "0" if there is none but rounding, else the difference of the two outputs as they are shown.
    """
    found = {head: readings(head, prompt, inputs) for head in HEADS}
    count = next(iter(found.values())).outputs.shape[1]
    return {
        "rows": [*(f"X{t}" for t in range(1, count)), "R"],
        "heads": [
            {
                "name": head,
                "gates": (100 * read.gates).round().int().tolist(),
                "outputs": _decimals(read.outputs),
                "changes": _changes(read),
            }
            for head, read in found.items()
        ],
    }


def _vectors(name: str, rows) -> Tensor:
    rows = torch.as_tensor(rows, dtype=torch.float64).detach()
    if rows.dim() != 2 or len(rows) == 0 or rows.shape[1] != len(VALUE):
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)}, expected (rows, {len(VALUE)}) with rows >= 1"
        )
    return rows


def _decimals(outputs: Tensor) -> list[list[float]]:
    return [[round(value, 2) + 0.0 for value in row] for row in outputs.tolist()]  # + 0.0: no -0.0


def _changes(read: Readings) -> list[list[str]]:
    shown = _decimals(read.outputs)
    none = ROUNDING * max(1.0, read.outputs.abs().max().item())
    return [
        [
            "0" if abs(exact) <= none else _text(now - then, "+")
            for exact, now, then in zip(exacts, row, shown[-1])
        ]
        for exacts, row in zip(read.changes.tolist(), shown)
    ]


def _text(value: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}".replace("-", "\N{MINUS SIGN}")


def _order(data: dict, k: int) -> list[str]:
    """The names of all rows of the sequence at split k."""
    vectors = [f"P{i}" for i in range(1, len(data["heads"][0]["outputs"]))]
    return [*vectors[:k], *data["rows"][:-1], *vectors[k:], data["rows"][-1]]


# ---- the page ---------------------------------------------------------------------------------------------


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
                f"<td>{' · '.join(map(str, percent))}<br>{_text(output)} ({change})</td>"
                for percent, output, change in zip(*columns)
            )
            lines.append(
                f"<tr><th>{head['name']}</th><td>{k}</td><td>{' '.join(_order(data, k))}</td>{cells}</tr>"
            )
    return [*lines, "</tbody></table>", "</div>"]


# ---- the still --------------------------------------------------------------------------------------------

PICTURE_STYLE = """
text { fill: #1a1a1a; font: 12px Helvetica, Arial, sans-serif } .bold { font-weight: bold } .end { text-anchor: end }
.box { text-anchor: middle; font-size: 11px } .light { fill: #ffffff } path { stroke: #767676 }
rect { stroke: #a8660a } .before { fill: #1f6fb2 } .input { fill: #fde8c8 } .after { fill: #8fcdf2 }
.ground { fill: #ffffff; stroke: none }
"""


def picture() -> str:
    """The figure at postfix, one surround and prefix as an SVG on a white ground, with words for all of it."""
    data = numbers()
    length = len(data["heads"][0]["outputs"]) - 1
    shapes = []
    for column, k in enumerate((0, length // 2, length)):
        left = 16 + 248 * column
        kind = {0: "postfix", length: "prefix"}.get(k, "surround")
        shapes.append(_label(left, 26, f"k = {k}, {kind}", "bold"))
        for i, name in enumerate(_order(data, k)):
            segment = "input" if name in data["rows"] else "before" if i < k else "after"
            shapes.append(_box(left + 28.5 * i, 38, 26, 26, segment, name))
        for h, head in enumerate(data["heads"]):
            top = 104 + 140 * h
            if column == 0:
                shapes.append(f'<path d="M16 {top - 22}H744"/>')
                shapes.append(_label(left, top, HEADS[head["name"]].title, "bold"))
            for row, name in enumerate(data["rows"]):
                x, y, percents = left + 22.0, top + 10 + 25 * row, head["gates"][k][row]
                shapes.append(_label(left, y + 14, name))
                for segment, percent in zip(SEGMENTS, percents):
                    width = 114 * percent / sum(percents)
                    if percent:
                        shapes.append(_box(x, y, width, 20, segment, str(percent) if percent > 11 else ""))
                    x += width
                words = f"{_text(head['outputs'][k][row])} ({head['changes'][k][row]})"
                shapes.append(_label(left + 232, y + 14, words, "end"))
    words = " ".join(f"{head.title}: {head.notice}" for head in HEADS.values())
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 506" role="img">',
            "<title>Three attention heads at three splits</title>",
            "<desc>A bar holds the percent of a row's attention on the prompt before the input, on the input and on the"
            f" prompt after it. Beside it stand the row's output and its change from k = {length}. {words}</desc>",
            f"<style>{PICTURE_STYLE}</style>",
            '<rect class="ground" width="760" height="506"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _label(x: float, y: float, text: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{kind}>{text}</text>'


def _box(x: float, y: float, width: float, height: float, segment: str, text: str) -> str:
    rect = f'<rect class="{segment}" x="{x:.4g}" y="{y}" width="{width:.4g}" height="{height}"/>'
    ink = "box light" if segment == "before" else "box"
    middle = float(f"{x + width / 2:.4g}")
    return rect + (_label(middle, y + height / 2 + 4, text, ink) if text else "")


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
